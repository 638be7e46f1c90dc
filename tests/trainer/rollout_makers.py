"""Rollouts of a made-up market, of which the truth of every transition is known."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from trainer.rollout import Finals, FullObservations, IndexedObservations, Observations, Rollout
from trainer.threads import computing_on
from trainer.transitions import Transitions

SYMBOLS = ("AAA", "BBB")


@dataclass
class Step:
    """One step of an episode: what was seen, and whether it ended the episode."""

    row: int
    symbol: int
    account: float
    reward: float
    terminated: bool
    truncated: bool
    episode: int


@dataclass
class FakeRunner:
    """B environments that walk along rows; an observation is (row, symbol, account), an account is a unique number.

    ``truth`` holds each step by its account, and ``after`` the account that a step led to.
    """

    envs: int
    seed: int = 0
    source: str = "runner"
    ends: float = 0.15
    full: bool = False
    actions: int = 3
    continuous: bool = False
    first_row: int = 100
    size: int = 1
    truth: dict[float, Step] = field(default_factory=dict)
    after: dict[float, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.steps = 0
        self.episodes = 0
        self.accounts = self.seed * 100_000.0
        self.now = [self._begin() for _ in range(self.envs)]

    def _begin(self) -> list[Any]:
        self.episodes += 1
        return [self.first_row + int(self.rng.integers(50)), int(self.rng.integers(2)), self._account(), self.episodes]

    def _account(self) -> float:
        self.accounts += 1
        return self.accounts

    def sample(self, count: int) -> Rollout:
        """The next ``count`` steps."""
        shape = (count, self.envs)
        seen = np.zeros((count + 1, self.envs, 3))
        rewards = self.rng.normal(size=shape).astype(np.float32)
        terminateds, truncateds = np.zeros(shape, bool), np.zeros(shape, bool)
        finals: list[tuple[int, int, list[Any]]] = []
        for t in range(count):
            seen[t] = [state[:3] for state in self.now]
            for b, state in enumerate(self.now):
                row, symbol, account, episode = state
                ended = self.rng.random() < self.ends
                terminateds[t, b] = ended and self.rng.random() < 0.5
                truncateds[t, b] = ended and not terminateds[t, b]
                following = [row + 1, symbol, self._account(), episode]
                self.truth[account] = Step(
                    row, symbol, account, float(rewards[t, b]), terminateds[t, b], truncateds[t, b], episode
                )
                self.after[account] = following[2]
                if ended:
                    finals.append((t, b, following))
                self.now[b] = self._begin() if ended else following
        seen[count] = [state[:3] for state in self.now]
        last = np.array([state[:3] for _, _, state in finals]).reshape(-1, 3)
        places = np.array([(t, b) for t, b, _ in finals], dtype=np.int64).reshape(-1, 2)
        rollout = Rollout(
            source=self.source,
            first_step=self.steps,
            observations=self._observations(seen),
            actions=self._actions(shape),
            rewards=rewards,
            terminateds=terminateds,
            truncateds=truncateds,
            finals=Finals(places[:, 0], places[:, 1], self._observations(last)),
        )
        self.steps += count
        return rollout

    def _actions(self, shape: tuple[int, int]) -> NDArray[Any]:
        if self.continuous:
            return self.rng.uniform(-1, 1, (*shape, self.actions)).astype(np.float32)
        return self.rng.integers(0, self.actions, shape)

    def _observations(self, seen: NDArray[np.float64]) -> Observations:
        if self.full:
            # A bounded function of the account, so that networks may learn from it.
            phases = seen[..., 2:] * np.arange(1, self.size + 1)
            return FullObservations(np.sin(phases).astype(np.float32) if self.size > 1 else seen.astype(np.float32))
        rows, symbols = seen[..., 0].astype(np.int64), seen[..., 1].astype(np.int16)
        return IndexedObservations("w1", SYMBOLS, rows, symbols, seen[..., 2:].astype(np.float32))


@pytest.fixture(autouse=True)
def quick_learners(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small updates in a busy process.

    RLlib's connectors inspect the stack when they are made, which below pytest is deep; and threads wait for one
    another.
    """
    monkeypatch.setattr(inspect, "stack", partial(inspect.stack, 0))
    with computing_on(1):
        yield


def act(rollout: Rollout, learner: Any) -> Rollout:
    """The rollout with what a policy near the learner's would have put into ``extras``."""
    module = learner.module[DEFAULT_MODULE_ID]
    seen: Any = rollout.observations
    with torch.no_grad():
        inputs = module.forward_train({Columns.OBS: torch.from_numpy(seen.values[:-1])})[Columns.ACTION_DIST_INPUTS]
        inputs = inputs + 0.3 * torch.sin(17 * inputs)
        logp = module.get_train_action_dist_cls().from_logits(inputs).logp(torch.from_numpy(rollout.actions))
    extras = {Columns.ACTION_DIST_INPUTS: inputs.numpy(), Columns.ACTION_LOGP: logp.numpy()}
    object.__setattr__(rollout, "extras", extras)
    return rollout


def as_episodes(rollout: Rollout) -> list[SingleAgentEpisode]:
    """The same steps as RLlib's episodes, each environment's in turn."""
    seen, following = rollout.observations, rollout.next_observations()
    assert isinstance(seen, FullObservations)
    assert isinstance(following, FullObservations)
    episodes = []
    for b in range(rollout.rewards.shape[1]):
        ended = rollout.terminateds[:, b] | rollout.truncateds[:, b]
        stops = [*(np.flatnonzero(ended) + 1), len(ended)]
        for start, stop in zip([0, *stops], stops, strict=False):
            if start == stop:
                continue
            span = slice(start, stop)
            episodes.append(
                SingleAgentEpisode(
                    observations=[*seen.values[span, b], following.values[stop - 1, b]],
                    actions=list(rollout.actions[span, b]),
                    rewards=list(rollout.rewards[span, b]),
                    terminated=bool(rollout.terminateds[stop - 1, b]),
                    truncated=bool(rollout.truncateds[stop - 1, b]),
                    extra_model_outputs={name: list(values[span, b]) for name, values in rollout.extras.items()},
                    len_lookback_buffer=0,
                ).to_numpy()
            )
    return episodes


def parameters(learner: Any) -> dict[str, NDArray[np.float32]]:
    """All parameters of a learner's module, by name."""
    module = learner.module[DEFAULT_MODULE_ID]
    return {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}


def largest_difference(left: Any, right: Any) -> float:
    """Between the parameters of two learners."""
    ours, theirs = parameters(left), parameters(right)
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


def as_single_steps(transitions: Transitions) -> list[SingleAgentEpisode]:
    """The same transitions as RLlib's replay buffers give them: episodes of one step."""
    seen, following = transitions.observations, transitions.next_observations
    assert isinstance(seen, FullObservations)
    assert isinstance(following, FullObservations)
    return [
        SingleAgentEpisode(
            observations=[seen.values[index], following.values[index]],
            actions=[transitions.actions[index]],
            rewards=[transitions.rewards[index]],
            terminated=bool(transitions.terminated[index]),
            extra_model_outputs={"n_step": [transitions.n_step[index]], "weights": [transitions.weights[index]]},
            len_lookback_buffer=0,
        ).to_numpy()
        for index in range(len(transitions))
    ]
