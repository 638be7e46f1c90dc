"""Which episode each environment of a runner is in, since when, and what it has done so far."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.recorder import Recorder
from trainer.rollout import EpisodeSummary, Rollout, Stretch


class _Block(NamedTuple):
    """The steps of one ``sample()``: what of a rollout a summary needs."""

    first_step: int
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    weights_seq_no: int


class Ended(NamedTuple):
    """What RLlib's metrics say of an ended episode: steps, sum of rewards, seconds."""

    length: int
    total_reward: float
    seconds: float


class EpisodeLog:
    """The episodes of B environments. Rows count the steps of a runner's life, over all of its ``sample()``s.

    Args:
        num_envs: B.
    """

    def __init__(self, num_envs: int) -> None:
        self.ids = [""] * num_envs
        self.started = np.zeros(num_envs, dtype=np.int64)
        """Row of each episode's first step, (B,)."""
        self._returns = np.zeros(num_envs)
        self._times = np.zeros(num_envs)
        self._past: deque[_Block] = deque()

    def name(self, env: int) -> str:
        """A new episode is made for this environment; it begins with the next reset."""
        self.ids[env] = uuid.uuid4().hex
        return self.ids[env]

    def begin(self, envs: NDArray[np.int64], row: int) -> None:
        """Episodes begin: their first step is this row."""
        self.started[envs] = row
        self._returns[envs] = 0.0
        self._times[envs] = time.perf_counter()

    def add(self, rewards: NDArray[np.floating[Any]]) -> None:
        """A step of every environment, (B,)."""
        self._returns += rewards

    def end(self, env: int, stop: int) -> Ended:
        """An episode has ended; its last step was the row before ``stop``."""
        seconds = time.perf_counter() - float(self._times[env])
        return Ended(stop - int(self.started[env]), float(self._returns[env]), seconds)

    # -- whole episodes, where nothing else keeps them -----------------------------------------------------------------

    def keep(self, rollout: Rollout) -> None:
        """Keep a rollout's steps for as long as an episode that it is part of runs."""
        self._past.append(_Block(rollout.first_step, rollout.actions, rollout.rewards, rollout.weights_seq_no))
        oldest = int(self.started.min())
        while self._past and self._past[0].first_step + len(self._past[0].rewards) <= oldest:
            self._past.popleft()

    def summary(self, env: int, recorder: Recorder, first_step: int) -> EpisodeSummary:
        """An episode from its start to the step that the recorder has just written, which has ended it.

        Args:
            env: Its environment.
            recorder: Holds the steps of this ``sample()``.
            first_step: Row of the recorder's first step.
        """
        start = int(self.started[env])
        past, last = tuple(self._past), recorder.stretch(env, max(start - first_step, 0), recorder.steps + 1)
        length = first_step + recorder.steps + 1 - start
        return EpisodeSummary(self.ids[env], length, lambda: _stretches(past, env, start, last), *recorder.ends(env))


def _stretches(past: Sequence[_Block], env: int, start: int, last: Stretch) -> list[Stretch]:
    """An environment's steps in the blocks from a row on, and the last ones."""
    found = []
    for block in past:
        rows = slice(max(start - block.first_step, 0), None)
        found.append(Stretch(block.actions[rows, env], block.rewards[rows, env], block.weights_seq_no))
    return [*found, last]
