"""What the learners of the kernel layer share: lean learners whose gradient steps are made by hand, without autograd.

For RLlib's own modules with MLPs, on a processor. The networks are run forward and backward in numpy
(``kernel_mlp``), their loss's derivative is written out beside them, and Adam works on one array (``kernel_adam``).
What is reported is still computed by RLlib's loss, of the last minibatch. Parameters, optimizer states and checkpoints
are RLlib's. Which configs this does all of, ``lean_updates`` says.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import nn

from schemas.errors import SettingsError
from trainer.kernel_adam import FlatAdam
from trainer.lean_adam import is_plain_adam
from trainer.lean_learner import Batch, LeanLearner
from trainer.rllib_private import has_plain_steps, train_forward


class KernelLearner(LeanLearner):
    """Base of the kernel layer's learners. Subclasses put it before the lean learner of their algorithm."""

    _adam: FlatAdam

    def build(self) -> None:
        """As the lean learner's.

        Raises:
            SettingsError: The module, its loss or its optimizer is another one than is done by hand.
        """
        super().build()
        [(_, optimizer)] = self.get_optimizers_for_module(DEFAULT_MODULE_ID)
        if self.device.type != "cpu" or not is_plain_adam(optimizer) or not has_plain_steps(self.config):
            raise self._refusal("a processor, and steps of Adam clipped by the global norm or not at all")
        if not self.has_bare_loss():
            raise self._refusal("numbered actions, and a loss of expected values without a KL term")
        self._adam = FlatAdam(optimizer)
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        if not self._adam.covers(self.make_networks(module)):
            raise self._refusal(f"RLlib's own module with an MLP of tanh or relu, got {type(module).__name__}")

    def make_networks(self, module: Any) -> list[nn.Linear]:
        """Make what ``gradient`` runs.

        Returns:
            The layers that it trains; none where the module is not such.
        """
        raise NotImplementedError

    def gradient(self, batch: Batch) -> None:
        """Write the gradient of the loss of a minibatch to where ``self._adam`` has it."""
        raise NotImplementedError

    def begin_steps(self) -> None:
        """Gradient steps follow."""
        self._adam.begin()

    def finish_steps(self) -> None:
        """All of an update's gradient steps are made."""
        self._adam.finish()

    def gradient_step(self, batch: Batch, whole: bool) -> dict[str, torch.Tensor]:
        """Derivative, clip, step; ``whole``: beside it RLlib's loss, for what that reports."""
        losses: dict[str, torch.Tensor] = {}
        if whole:
            with torch.no_grad():
                forward = train_forward(self.module[DEFAULT_MODULE_ID], batch)
                losses = self.compute_losses(fwd_out={DEFAULT_MODULE_ID: forward}, batch={DEFAULT_MODULE_ID: batch})
        self.gradient(batch)
        norm = self._adam.norm()
        if not math.isfinite(norm):
            self.step_on_broken(self._adam.hand_over())
            self._adam.begin()
            return losses
        if whole:
            [(name, _)] = self.get_optimizers_for_module(DEFAULT_MODULE_ID)
            self.log_norm(name, norm)
        self._adam.step(norm, self.config.grad_clip)
        return losses

    def _refusal(self, difference: str) -> SettingsError:
        return SettingsError(f"{type(self).__name__}: expected {difference}; leave learner_class to use_fast_path()")
