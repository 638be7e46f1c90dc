"""PPO's and A2C's updates on rollouts: advantages over whole arrays, minibatches gathered out of the window."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical
from ray.rllib.evaluation.postprocessing import Postprocessing

from trainer.lean_learner import Batch, LeanLearner
from trainer.rollout import Rollout

VALUED = 1_024
"""Values are computed for this many observations at a time: enough to be fast, few enough to stay in the cache."""


def generalized_advantages(
    rewards: NDArray[np.float32],
    values: NDArray[np.float32],
    next_values: NDArray[np.float32],
    terminateds: NDArray[np.bool_],
    truncateds: NDArray[np.bool_],
    gamma: float,
    lambda_: float,
) -> NDArray[np.float64]:
    """Generalised advantage estimates of T steps in B environments.

    A terminated step has no next value; a truncated one, and the last of the rollout, bootstrap from theirs.

    Args:
        rewards: (T, B).
        values: Of the observations that were acted on, (T, B).
        next_values: Of what each step led to, the final observation where an episode ended, (T, B).
        terminateds: (T, B).
        truncateds: (T, B).
        gamma: Discount.
        lambda_: 0: one-step errors; 1: returns less values.

    Returns:
        float64 (T, B).

    Source: Schulman et al. 2016, https://arxiv.org/abs/1506.02438, equation 16.
    """
    errors = rewards + gamma * next_values.astype(np.float64) * ~terminateds - values
    carried = gamma * lambda_ * ~(terminateds | truncateds)
    following = np.zeros(rewards.shape[1])
    for step in range(len(errors) - 1, -1, -1):
        errors[step] += carried[step] * following
        following = errors[step]
    return errors


class LeanPPOLearner(LeanLearner, PPOTorchLearner):
    """RLlib's PPO learner on ``Rollout``; with the settings of A2C it is that.

    Two things differ from RLlib's own. Minibatches are shuffled in every epoch, where RLlib leaves the first one in
    the order of episodes. And advantages are standardised over steps alone, where RLlib counts in the value of the
    step that its connector appends to each piece of an episode.
    """

    _seen: torch.Tensor | None
    """Observations of the last ``_values``, where they were few enough to be made at once."""
    _judged: torch.Tensor | None
    """The minibatch whose values have been computed last, with the parameters as they are, if there is one."""

    def build(self) -> None:
        """As RLlib's."""
        super().build()
        self._seen = self._judged = None
        self._shuffles = np.random.default_rng(self.config.seed)

    def minibatches(
        self,
        taken: Sequence[Rollout],
        *,
        num_epochs: int = 1,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool = False,
        num_total_minibatches: int = 0,
        **how: Any,
    ) -> tuple[int, Iterator[Batch]]:
        """All epochs over the steps of the rollouts; the last minibatch is filled up from one pass more."""
        steps = sum(map(len, taken))
        size = minibatch_size or steps
        count = num_total_minibatches or math.ceil(num_epochs * steps / size)
        shuffled = shuffle_batch_per_epoch and minibatch_size is not None
        return count, self._batches(taken, count, size, shuffled)

    def _batches(self, taken: Sequence[Rollout], count: int, size: int, shuffled: bool) -> Iterator[Batch]:
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        parts = [self._steps(rollout, module) for rollout in taken]
        own = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        advantages = own[Postprocessing.ADVANTAGES]
        spread = advantages.std(correction=0).clamp(min=1e-4)
        own[Postprocessing.ADVANTAGES] = ((advantages - advantages.mean()) / spread).float()
        own[Postprocessing.VALUE_TARGETS] = own[Postprocessing.VALUE_TARGETS].float()
        alone = len(taken) == 1 and taken[0].valid is None
        if alone and self._seen is not None and count == 1 and size == len(advantages) and not shuffled:
            # The observations are there, and begin with the steps'.
            self._judged = self._seen[:size]
            yield {Columns.OBS: self._judged, **own}
            self._judged = None
            return
        seen = self.gatherer([rollout.observations.at(_steps_of(rollout)) for rollout in taken], Columns.OBS)
        for index in self._indices(len(seen), count, size, shuffled):
            picked = torch.from_numpy(index).to(self.device)
            yield {Columns.OBS: seen(index), **{name: column.index_select(0, picked) for name, column in own.items()}}

    def _indices(self, steps: int, count: int, size: int, shuffled: bool) -> Iterator[NDArray[np.int64]]:
        left = np.zeros(0, dtype=np.int64)
        for _ in range(count):
            while len(left) < size:
                one = self._shuffles.permutation(steps) if shuffled else np.arange(steps)
                left = np.concatenate([left, one])
            yield left[:size]
            left = left[size:]

    def has_bare_loss(self) -> bool:
        """For discrete actions and a critic, without the KL term."""
        distribution = self.module[DEFAULT_MODULE_ID].unwrapped().get_train_action_dist_cls()
        return distribution is TorchCategorical and self.config.use_critic and not self.config.use_kl_loss

    def bare_loss(self, batch: Batch, forward: dict[str, Any]) -> torch.Tensor:
        """Clipped surrogate, clipped squared errors of the values, entropy."""
        config = self.config
        logps = torch.log_softmax(forward[Columns.ACTION_DIST_INPUTS], -1)
        logp = logps.gather(-1, batch[Columns.ACTIONS].long().unsqueeze(-1)).squeeze(-1)
        ratio = (logp - batch[Columns.ACTION_LOGP]).exp()
        advantages = batch[Postprocessing.ADVANTAGES]
        clipped = ratio.clamp(1 - config.clip_param, 1 + config.clip_param)
        values = self.module[DEFAULT_MODULE_ID].unwrapped().compute_values(batch, forward.get(Columns.EMBEDDINGS))
        errors = (values - batch[Postprocessing.VALUE_TARGETS]).square()
        if config.vf_clip_param != math.inf:
            errors = errors.clamp(max=config.vf_clip_param)
        loss = config.vf_loss_coeff * errors - torch.minimum(advantages * ratio, advantages * clipped)
        entropy_coeff = float(self.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID].get_current_value())
        if entropy_coeff:
            loss = loss + entropy_coeff * (logps.exp() * logps).sum(-1)
        return loss.mean()

    def _steps(self, rollout: Rollout, module: Any) -> Batch:
        """Columns (n, …) of a rollout's steps, advantages not yet standardised."""
        shape = rollout.rewards.shape
        finals = rollout.finals
        values_of_finals = self._values(finals.observations, module) if len(finals) else np.zeros(0, np.float32)
        values = self._values(rollout.observations, module).reshape(shape[0] + 1, shape[1])
        next_values = values[1:].copy()
        next_values[finals.steps, finals.envs] = values_of_finals
        advantages = generalized_advantages(
            rollout.rewards,
            values[:-1],
            next_values,
            rollout.terminateds,
            rollout.truncateds,
            self.config.gamma,
            self.config.lambda_,
        )
        columns = {
            Columns.ACTIONS: rollout.actions,
            Columns.ACTION_LOGP: rollout.extras[Columns.ACTION_LOGP],
            Columns.ACTION_DIST_INPUTS: rollout.extras[Columns.ACTION_DIST_INPUTS],
            Postprocessing.ADVANTAGES: advantages,
            Postprocessing.VALUE_TARGETS: advantages + values[:-1],
        }
        steps = _steps_of(rollout)
        return {name: self.tensor(column[steps]) for name, column in columns.items()}

    def _values(self, observations: Any, module: Any) -> NDArray[np.float32]:
        """Values (n,) of observations (…)."""
        seen = self.gatherer([observations], "values")
        parts = []
        with torch.no_grad():
            for start in range(0, len(seen), VALUED):
                self._seen = seen(np.arange(start, min(start + VALUED, len(seen))))
                parts.append(self.values_of(self._seen, module))
        if len(parts) > 1:
            self._seen = None
        values: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return values

    def values_of(self, observations: torch.Tensor, module: Any) -> torch.Tensor:
        """Values (n,) of observations (n, …), as the module has them."""
        values: torch.Tensor = module.compute_values({Columns.OBS: observations})
        return values


def _steps_of(rollout: Rollout) -> Any:
    """Index of the steps into arrays (T, B, …) or (T + 1, B, …), which flattens these two axes."""
    steps = np.ones(rollout.rewards.shape, bool) if rollout.valid is None else rollout.valid
    return np.nonzero(steps)
