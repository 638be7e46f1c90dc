"""DQN's gradient steps by hand: the Q-network and its target, and the derivative of RLlib's loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import nn

from trainer.kernel_learner import KernelLearner
from trainer.kernel_mlp import as_array
from trainer.kernel_networks import QNetwork, q_network
from trainer.lean_dqn import LeanDQNLearner
from trainer.lean_learner import Batch


class KernelDQNLearner(KernelLearner, LeanDQNLearner):
    """The lean DQN learner for MLPs of expected values: double, dueling, n-step, prioritised."""

    _network: QNetwork
    _target: QNetwork

    def make_networks(self, module: Any) -> list[nn.Linear]:
        """The Q-network; its target is run forward alone."""
        network, target = q_network(module, self._adam.gradients_of), q_network(module, target=True)
        if network is None or target is None:
            return []
        self._network, self._target = network, target
        return network.linears

    def gradient(self, batch: Batch) -> None:
        """Of the Huber loss, or of the squared TD errors, weighted; double Q-learning chooses by the online network.

        Source: Mnih et al. 2015, https://doi.org/10.1038/nature14236; van Hasselt et al. 2016,
        https://arxiv.org/abs/1509.06461.
        """
        config = self.config
        observations, following = as_array(batch[Columns.OBS]), as_array(batch[Columns.NEXT_OBS])
        actions = as_array(batch[Columns.ACTIONS])
        count = len(actions)
        places = np.arange(count)
        worth = self._target.forward(following)
        best = (self._network.forward(following) if config.double_q else worth).argmax(axis=1)
        discount = np.float32(config.gamma) ** as_array(batch["n_step"])
        discount *= ~as_array(batch[Columns.TERMINATEDS])
        values = self._network.forward(observations)
        errors = values[places, actions]
        errors -= as_array(batch[Columns.REWARDS])
        errors -= discount * worth[places, best]
        self._errors = errors
        is_huber = config.td_error_loss_fn == "huber"
        slopes = np.minimum(np.maximum(errors, -1.0), 1.0) if is_huber else 2.0 * errors
        slopes *= as_array(batch["weights"])
        slopes /= np.float32(count)
        slope = np.zeros(values.shape, np.float32)
        slope[places, actions] = slopes
        self._network.backward(observations, slope)

    def gradient_step(self, batch: Batch, whole: bool) -> dict[str, torch.Tensor]:
        """As the kernel learner's, and keep the TD errors."""
        losses = super().gradient_step(batch, whole)
        if not whole:  # else RLlib's loss has told them
            self.note_td_errors(torch.from_numpy(np.abs(self._errors)))
        return losses
