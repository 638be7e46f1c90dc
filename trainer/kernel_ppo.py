"""PPO's and A2C's gradient steps by hand: policy and value function, and the derivative of RLlib's loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import nn

from trainer.kernel_learner import KernelLearner
from trainer.kernel_mlp import Floats, as_array, chances_of, is_chain
from trainer.kernel_networks import ActorCritic
from trainer.lean_learner import Batch
from trainer.lean_ppo import VALUED, LeanPPOLearner
from trainer.rllib_private import actor_critic_layers
from trainer.rollout import IndexedObservations


class KernelPPOLearner(KernelLearner, LeanPPOLearner):
    """The lean PPO learner for MLPs and numbered actions, without the KL term; with the settings of A2C it is that."""

    _network: ActorCritic

    def make_networks(self, module: Any) -> list[nn.Linear]:
        """Policy and value function."""
        layers = actor_critic_layers(module)
        if layers is None or not all(map(is_chain, layers)):
            return []
        self._network = ActorCritic(layers, self._adam.gradients_of)
        return self._network.linears

    def values_of(self, observations: torch.Tensor, module: Any) -> torch.Tensor:
        """Values (n,) of observations (n, size)."""
        return torch.from_numpy(self._network.values(as_array(observations)).copy())

    def _values(self, observations: Any, module: Any) -> Floats:
        """As of the lean learner. Where many observations begin with few windows, each window is multiplied once."""
        if not isinstance(observations, IndexedObservations):
            return super()._values(observations, module)
        source = self._source_of(observations.window_id)
        rows, symbols, accounts = source.flat(observations)
        if 2 * len(source.windows) > len(rows):
            return super()._values(observations, module)
        self._seen = None
        index, windows = source.numbers_of(rows, symbols), source.windows
        products = np.concatenate([self._network.products(as_array(part)) for part in windows.split(VALUED)])
        parts = [slice(start, start + VALUED) for start in range(0, len(rows), VALUED)]
        values = [self._network.values_shared(products, index[part], accounts[part]).copy() for part in parts]
        return np.concatenate(values)

    def gradient(self, batch: Batch) -> None:
        """Of the clipped surrogate, the clipped squared errors of the values, and the entropy.

        Source: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equations 7 and 9, with RLlib's clipping of the
        values' squared errors.
        """
        config = self.config
        observations, actions = as_array(batch[Columns.OBS]), as_array(batch[Columns.ACTIONS])
        advantages = as_array(batch[Postprocessing.ADVANTAGES])
        count = len(actions)
        scale, places = np.float32(1.0 / count), np.arange(count)
        logits, values = self._network.forward(observations, judged=batch[Columns.OBS] is self._judged)
        chances, logps = chances_of(logits)
        ratio = np.exp(logps[actions, places] - as_array(batch[Columns.ACTION_LOGP]))
        plain = advantages * ratio
        least, most = np.float32(1.0 - config.clip_param), np.float32(1.0 + config.clip_param)
        limit = np.where(advantages > 0.0, most, least) * advantages
        # Beyond the limit the clipped surrogate is constant.
        slope = np.where(plain < limit, plain * -scale, np.float32(0.0))
        to_logits = chances * -slope
        to_logits[actions, places] += slope
        entropy_coeff = float(self.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID].get_current_value())
        if entropy_coeff:
            entropy = -(chances * logps).sum(axis=0)
            to_logits += np.float32(entropy_coeff) * scale * chances * (logps + entropy)

        errors = values - as_array(batch[Postprocessing.VALUE_TARGETS])
        if config.vf_clip_param != math.inf:
            errors[errors * errors > config.vf_clip_param] = 0.0
        errors *= np.float32(2.0 * config.vf_loss_coeff) * scale
        self._network.backward(observations, np.ascontiguousarray(to_logits.T), errors)
