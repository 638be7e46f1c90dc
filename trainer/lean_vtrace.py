"""IMPALA's and APPO's updates on rollouts: RLlib's V-trace losses on sequences that are cut out of whole arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ray.rllib.algorithms.appo.torch.appo_torch_learner import APPOTorchLearner
from ray.rllib.algorithms.impala.torch.impala_torch_learner import IMPALATorchLearner
from ray.rllib.core.columns import Columns

from trainer.lean_learner import Batch, LeanLearner
from trainer.rollout import Rollout


class _LeanVTraceLearner(LeanLearner):
    """One minibatch of all steps; subclasses say how often it is learned from."""

    def passes(self) -> int:
        """How often a batch is learned from."""
        return 1

    def minibatches(self, taken: Sequence[Rollout], **how: Any) -> tuple[int, Iterator[Batch]]:
        """The same batch, once for each pass."""
        batch = self._batch(taken)
        return self.passes(), iter([batch] * self.passes())

    def _batch(self, taken: Sequence[Rollout]) -> Batch:
        """Steps (n,) as RLlib's ``AddOneTsToEpisodesAndTruncate`` lines them up.

        Environment after environment, each piece of an episode with one step more, which repeats the last action, is
        paid nothing, is masked, and whose observation is what the piece led to: its value is the bootstrap value.
        """
        columns: dict[str, list[Any]] = {}
        observations = []
        order = []
        start = 0
        for rollout in taken:
            steps, envs = rollout.rewards.shape
            closing = rollout.terminateds | rollout.truncateds
            closing[-1] = True  # cut by the end of the rollout
            closes = closing.T.reshape(-1)
            source = np.repeat(np.arange(len(closes)), 1 + closes)
            places = np.arange(len(closes)) + np.cumsum(closes) - closes
            added = places[closes] + 1
            real = np.ones(len(source), dtype=np.bool_)
            real[added] = False
            if rollout.valid is not None:
                real &= rollout.valid.T.reshape(-1)[source]
            env, step = np.divmod(np.arange(len(closes)), steps)
            observations += [
                rollout.observations.at((step, env)),
                rollout.next_observations().at((step[closes], env[closes])),
            ]
            own = np.empty(len(source), dtype=np.int64)
            own[places] = np.arange(len(closes))
            own[added] = len(closes) + np.arange(len(added))
            order.append(start + own)
            start += len(source)
            for name, values in (
                (Columns.ACTIONS, rollout.actions),
                (Columns.ACTION_LOGP, rollout.extras[Columns.ACTION_LOGP]),
                (Columns.REWARDS, rollout.rewards),
                (Columns.TERMINATEDS, rollout.terminateds),
            ):
                column = values.swapaxes(0, 1).reshape(steps * envs, *values.shape[2:])[source]
                if name in (Columns.REWARDS, Columns.TERMINATEDS):
                    column = column * real
                columns.setdefault(name, []).append(column)
            columns.setdefault(Columns.LOSS_MASK, []).append(real)
        batch = {name: self.tensor(np.concatenate(parts)) for name, parts in columns.items()}
        return {Columns.OBS: self.gatherer(observations)(np.concatenate(order)), **batch}


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
