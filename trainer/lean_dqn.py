"""DQN's updates on transitions of a ring buffer: several minibatches a call, RLlib's loss and target updates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.dqn.dqn_learner import QF_NEXT_PREDS, QF_PREDS, QF_TARGET_NEXT_PREDS
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core.columns import Columns
from torch.nn.functional import huber_loss, mse_loss

from trainer.lean_learner import Batch, LeanLearner
from trainer.transitions import Transitions

# Observations of several minibatches are made at once, up to this many: a call costs as much as a hundred of them.
_GATHERED = 4_096


class LeanDQNLearner(LeanLearner, DQNTorchLearner):
    """RLlib's DQN learner (double, dueling, n-step, distributional, noisy, prioritised) on ``Transitions``.

    Learning rates and target networks are updated after each minibatch, as RLlib does with one minibatch a call.
    """

    after_each_step = True

    def minibatches(self, taken: Sequence[Transitions], **how: Any) -> tuple[int, Iterator[Batch]]:
        """Transitions in the order they were drawn, ``minibatch_size`` at a time (none: all at once)."""
        size = how.get("minibatch_size") or max(map(len, taken))
        return sum(math.ceil(len(transitions) / size) for transitions in taken), self._batches(taken, size)

    def _batches(self, taken: Sequence[Transitions], size: int) -> Iterator[Batch]:
        stride = max(1, _GATHERED // size) * size
        for transitions in taken:
            for start in range(0, len(transitions), stride):
                columns = self._columns(transitions[start : start + stride])
                parts = [column.split(size) for column in columns.values()]
                for part in zip(*parts, strict=True):
                    yield dict(zip(columns, part, strict=True))

    def has_bare_loss(self) -> bool:
        """For expected values, not for distributions of them."""
        return bool(self.config.num_atoms == 1)

    def bare_loss(self, batch: Batch, forward: dict[str, Any]) -> torch.Tensor:
        """Huber or squared TD errors, weighted; double Q-learning chooses by the online network."""
        chosen = batch[Columns.ACTIONS].long().unsqueeze(-1)
        values = forward[QF_PREDS].gather(-1, chosen).squeeze(-1)
        with torch.no_grad():
            following = forward[QF_TARGET_NEXT_PREDS]
            best = (forward[QF_NEXT_PREDS] if self.config.double_q else following).argmax(-1, keepdim=True)
            discount = self.config.gamma ** batch["n_step"] * ~batch[Columns.TERMINATEDS]
            targets = batch[Columns.REWARDS] + discount * following.gather(-1, best).squeeze(-1)
            self.note_td_errors((values - targets).abs())
        loss = huber_loss if self.config.td_error_loss_fn == "huber" else mse_loss
        return (batch["weights"] * loss(values, targets, reduction="none")).mean()

    def _columns(self, transitions: Transitions) -> Batch:
        everything = np.arange(len(transitions))
        return {
            Columns.OBS: self.gatherer([transitions.observations], Columns.OBS)(everything),
            Columns.NEXT_OBS: self.gatherer([transitions.next_observations], Columns.NEXT_OBS)(everything),
            Columns.ACTIONS: self.tensor(transitions.actions),
            Columns.REWARDS: self.tensor(transitions.rewards),
            Columns.TERMINATEDS: self.tensor(transitions.terminated),
            "n_step": self.tensor(transitions.n_step),
            "weights": self.tensor(transitions.weights),
        }
