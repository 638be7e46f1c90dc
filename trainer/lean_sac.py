"""SAC's updates on transitions of a ring buffer, for discrete actions and continuous ones."""

from __future__ import annotations

import torch
from ray.rllib.algorithms.sac.torch.sac_torch_learner import SACTorchLearner

from trainer.lean_dqn import LeanDQNLearner
from trainer.rllib_private import forget_sac_losses


class LeanSACLearner(LeanDQNLearner, SACTorchLearner):
    """RLlib's SAC learner on ``Transitions``, with one backward pass for all its losses.

    RLlib takes one for each optimizer. The losses have no parameters in common (targets are detached, and the critics
    are frozen while the policy's loss is computed), so that the gradients of their sum are the same.
    """

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of critics, policy and temperature."""
        loss.backward()
        forget_sac_losses(self)

    def has_bare_loss(self) -> bool:
        """SAC's losses are RLlib's in every minibatch."""
        return False
