"""Rounds of sampling and learning within one ``training_step``: what they do to runners and learners, counted once."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from ray.rllib.core import ALL_MODULES, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_AGENT_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from trainer.lean_learner import LeanLearner
from trainer.rllib_private import LocalWeights
from trainer.rollout import Rollout


class Shardable(Protocol):
    """Data for several learners."""

    def __len__(self) -> int:
        """Steps."""

    def shards(self, count: int) -> list[Self]:
        """Parts of nearly the same size, one a learner."""


_LOOK_S = 0.01
"""How long to wait for the slower ones of several runners before what the others have is taken."""

Data = TypeVar("Data", bound=Shardable)


@dataclass(frozen=True)
class Moment:
    """Where a training step stands: fixed when a round begins to learn, while sampling may go on.

    Attributes:
        lifetime: Environment steps sampled so far, by all attempts.
        is_last: Whether this is the training step's last round.
    """

    lifetime: int
    is_last: bool


class Rounds:
    """One ``training_step`` of an algorithm.

    Metrics of local runners and learners are collected once, at the end. Remote runners send theirs with each sample,
    so that nothing is lost with a runner.

    Args:
        algorithm: An RLlib ``Algorithm`` with batched runners and a lean learner.
    """

    def __init__(self, algorithm: Any) -> None:
        self._algorithm, self._config = algorithm, algorithm.config
        self._group, self._learners = algorithm.env_runner_group, algorithm.learner_group
        self._before = int(algorithm.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0))
        trained = (LEARNER_RESULTS, ALL_MODULES, NUM_MODULE_STEPS_TRAINED_LIFETIME)
        self._trained = algorithm.metrics.peek(trained, default=0)
        learned = (LEARNER_RESULTS, ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME)
        self._learned = algorithm.metrics.peek(learned, default=0)
        self._sampled = 0
        self._runner_metrics: list[Any] = []
        self._learner_metrics: list[Any] = []
        self._local_weights: LocalWeights | None = None
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)

    @property
    def now(self) -> Moment:
        """Where it stands."""
        enough = self._sampled >= (self._config.min_sample_timesteps_per_iteration or 0)
        return Moment(self._before + self._sampled, bool(self._sampled) and enough)

    @contextmanager
    def timed(self, timer: str) -> Iterator[None]:
        """Add to one of RLlib's timers."""
        start = time.perf_counter()
        yield
        self._seconds[timer].append(time.perf_counter() - start)

    def sample(self, least: int = 1) -> list[Rollout]:
        """Have all runners sample, until there are ``least`` steps.

        Returns:
            Their rollouts; none where no runner is left.
        """
        taken: list[Rollout] = []
        steps = 0
        with self.timed(ENV_RUNNER_SAMPLING_TIMER):
            while steps < least:
                lifetime = self._before + self._sampled
                if self._group.num_remote_workers():
                    found = self._group.foreach_env_runner(
                        partial(_sample, lifetime=lifetime, with_metrics=True),
                        local_env_runner=False,
                        timeout_seconds=self._config.sample_timeout_s,
                    )
                    if not found or self._group.num_healthy_remote_workers() <= 0:
                        break
                else:
                    found = [_sample(self._group.local_env_runner, lifetime, with_metrics=False)]
                steps += self._take(found, taken)
        return taken

    def sample_ready(self, least: int) -> list[Rollout]:
        """Take what runners have sampled by now, until there are ``least`` steps; each goes on sampling at once.

        No runner waits for another one, nor for the learner: its weights are some updates old. Where there is only the
        local runner, it samples.

        Returns:
            Their rollouts; none where no runner is left.
        """
        if not self._group.num_remote_workers():
            return self.sample(least)
        taken: list[Rollout] = []
        steps = 0
        with self.timed(ENV_RUNNER_SAMPLING_TIMER):
            until = time.monotonic() + self._config.sample_timeout_s
            while steps < least and time.monotonic() < until and self._group.num_healthy_remote_workers() > 0:
                found = self._group.foreach_env_runner_async_fetch_ready(
                    partial(_sample, lifetime=self._before + self._sampled, with_metrics=True),
                    tag="sample",
                    timeout_seconds=_LOOK_S,
                )
                steps += self._take(found, taken)
        return taken

    def _take(self, found: Sequence[tuple[list[Rollout], Any]], taken: list[Rollout]) -> int:
        """Add what runners have sampled to ``taken``, keep the metrics that came with it, and count its steps."""
        self._runner_metrics += [metrics for _, metrics in found if metrics is not None]
        new = [rollout for rollouts, _ in found for rollout in rollouts]
        taken += new
        steps = sum(map(len, new))
        self._sampled += steps
        return steps

    def learn(self, data: Sequence[Data], moment: Moment, report: bool, **how: Any) -> None:
        """One call of the learners.

        Args:
            data: What to learn from; each learner gets its part of each item.
            moment: For the schedules.
            report: False keeps the learners' metrics with them.
            **how: For ``Learner.update``.
        """
        timesteps = {
            NUM_ENV_STEPS_SAMPLED_LIFETIME: moment.lifetime,
            NUM_AGENT_STEPS_SAMPLED_LIFETIME: moment.lifetime,
            NUM_MODULE_STEPS_TRAINED_LIFETIME: self._trained,
            NUM_ENV_STEPS_TRAINED_LIFETIME: self._learned,
        }
        with self.timed(LEARNER_UPDATE_TIMER):
            count = len(self._learners)
            if count:
                parts = zip(*(item.shards(count) for item in data), strict=True)
                # By reference: RLlib would cut the items themselves, as if they were episodes.
                given: dict[str, Any] = {"episodes_refs": [ray.put(list(part)) for part in parts]}
            else:
                given = {"episodes": list(data)}
            results = self._learners.update(**given, timesteps=timesteps, report=report, **how)
        self._learned += sum(map(len, data))
        if report:
            self._learner_metrics = results

    def td_errors(self) -> NDArray[np.float32]:
        """Absolute TD errors of the last ``learn``, (n,) in the order of its data."""
        found = self._learners.foreach_learner(LeanLearner.td_errors)
        return np.concatenate([one.get() for one in found])

    def sync_weights(self) -> None:
        """Give the runners the learners' weights."""
        with self.timed(SYNCH_WORKER_WEIGHTS_TIMER):
            if self._learners.is_local and not self._group.num_remote_workers():
                if self._local_weights is None:
                    self._local_weights = LocalWeights(self._learners, self._group.local_env_runner)
                self._local_weights.copy()
            else:
                self._group.sync_weights(
                    from_worker_or_learner_group=self._learners, policies=[DEFAULT_MODULE_ID], inference_only=True
                )

    def report(self) -> None:
        """Put everything into the algorithm's metrics."""
        metrics = self._algorithm.metrics
        if not self._group.num_remote_workers():
            self._runner_metrics.append(self._group.local_env_runner.get_metrics())
        metrics.aggregate(self._runner_metrics, key=ENV_RUNNER_RESULTS)
        if self._learner_metrics:
            metrics.aggregate(self._learner_metrics, key=LEARNER_RESULTS)
        for timer, seconds in self._seconds.items():
            metrics.log_value((TIMERS, timer), sum(seconds) / len(seconds), reduce="ema")


def _sample(runner: Any, lifetime: int, with_metrics: bool) -> tuple[list[Rollout], Any]:
    # RLlib tells runners once an iteration; schedules of exploration would stand still over many rounds.
    runner.num_env_steps_sampled_lifetime = lifetime
    return runner.sample(), runner.get_metrics() if with_metrics else None
