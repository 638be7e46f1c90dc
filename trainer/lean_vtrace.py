"""IMPALA's and APPO's updates on rollouts: RLlib's V-trace losses on sequences that are cut out of whole arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from ray.rllib.algorithms.appo.torch.appo_torch_learner import APPOTorchLearner
from ray.rllib.algorithms.impala.torch.impala_torch_learner import IMPALATorchLearner
from ray.rllib.core.columns import Columns

from trainer.lean_learner import Batch, LeanLearner
from trainer.rollout import Observations, Rollout


class _LeanVTraceLearner(LeanLearner):
    """One minibatch of all steps; subclasses say how often it is learned from."""

    counts_each_update = True

    def passes(self) -> int:
        """How often a batch is learned from."""
        return 1

    def minibatches(self, taken: Sequence[Rollout], **how: Any) -> tuple[int, Iterator[Batch]]:
        """The same batch, once for each pass."""
        batch = self._batch(taken)
        return self.passes(), iter([batch] * self.passes())

    def _batch(self, taken: Sequence[Rollout]) -> Batch:
        """All steps of the rollouts (n,), as ``_line_up`` has them."""
        lines = [_line_up(rollout) for rollout in taken]
        columns = {name: np.concatenate([line.columns[name] for line in lines]) for name in lines[0].columns}
        starts = np.cumsum([0, *(len(line.order) for line in lines)])
        seen = self.gatherer([each for line in lines for each in line.observations], Columns.OBS)
        order = np.concatenate([line.order + start for line, start in zip(lines, starts, strict=False)])
        return {Columns.OBS: seen(order), **{name: self.tensor(column) for name, column in columns.items()}}


class _Line(NamedTuple):
    """A rollout as a line of n steps."""

    columns: dict[str, NDArray[Any]]
    """Arrays (n, …) by RLlib's names, without observations."""
    observations: list[Observations]
    """Of the steps, then of what the pieces led to: n in all."""
    order: NDArray[np.int64]
    """Which of these each step of the line has, (n,)."""


def _line_up(rollout: Rollout) -> _Line:
    """Line up a rollout's steps as RLlib's ``AddOneTsToEpisodesAndTruncate`` does.

    Environment after environment, each piece of an episode with one step more, which repeats the last action, is paid
    nothing, is masked, and whose observation is what the piece led to: its value is the bootstrap value.
    """
    steps, envs = rollout.rewards.shape
    closing = rollout.terminateds | rollout.truncateds
    closing[-1] = True  # cut by the end of the rollout
    closes = closing.T.reshape(-1)
    source = np.repeat(np.arange(len(closes)), 1 + closes)
    places = np.arange(len(closes)) + np.cumsum(closes) - closes
    added = places[closes] + 1
    order = np.empty(len(source), dtype=np.int64)
    order[places] = np.arange(len(closes))
    order[added] = len(closes) + np.arange(len(added))
    env, step = np.divmod(np.arange(len(closes)), steps)

    def lined_up(values: NDArray[Any]) -> NDArray[Any]:
        return values.swapaxes(0, 1).reshape(steps * envs, *values.shape[2:])[source]

    real = np.ones(len(source), dtype=np.bool_) if rollout.valid is None else lined_up(rollout.valid)
    real[added] = False
    columns = {
        Columns.ACTIONS: lined_up(rollout.actions),
        Columns.ACTION_LOGP: lined_up(rollout.extras[Columns.ACTION_LOGP]),
        Columns.REWARDS: lined_up(rollout.rewards) * real,
        Columns.TERMINATEDS: lined_up(rollout.terminateds) & real,
        Columns.LOSS_MASK: real,
    }
    observations = [
        rollout.observations.at((step, env)),
        rollout.next_observations().at((step[closes], env[closes])),
    ]
    return _Line(columns, observations, order)


class LeanIMPALALearner(_LeanVTraceLearner, IMPALATorchLearner):
    """RLlib's IMPALA learner on ``Rollout``, in the thread that calls it."""


class LeanAPPOLearner(_LeanVTraceLearner, APPOTorchLearner):
    """RLlib's APPO learner on ``Rollout``, in the thread that calls it.

    A batch is learned from ``circular_buffer_iterations_per_batch`` times in a row, where RLlib's circular buffer deals
    out as many turns among the last ``circular_buffer_num_batches``.
    """

    def passes(self) -> int:
        """As the circular buffer's settings say."""
        return int(self.config.circular_buffer_iterations_per_batch) if self.config.use_circular_buffer else 1
