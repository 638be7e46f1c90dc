"""What the lean learners share: gradient steps on rollouts, without RLlib's per-episode and per-minibatch plumbing.

The losses, the optimizers, the schedules and the target networks are RLlib's own code, called on tensors that are
gathered out of the window. What is left out: connector pipelines, batch classes, and metrics of minibatches that the
next minibatch overwrites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core import ALL_MODULES, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.apis.self_supervised_loss_api import SelfSupervisedLossAPI
from ray.rllib.utils.metrics import (
    MODULE_TRAIN_BATCH_SIZE_MEAN,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    TD_ERROR_KEY,
    WEIGHTS_SEQ_NO,
)

from schemas.errors import InputError, SettingsError
from trainer.cpu_layers import use_cpu_layers
from trainer.lean_adam import clip, global_norm, gradients_of, is_plain_adam, step
from trainer.observation_source import ObservationSource
from trainer.rllib_private import has_plain_steps, next_weights_version, train_forward
from trainer.rollout import FullObservations, Observations, Rollout
from trainer.transitions import Transitions

# Values of which RLlib keeps more than the last, so that each has to be logged.
_ADDED_UP = ("sum", "lifetime_sum", "min", "max")

Batch = dict[str, torch.Tensor]
"""RLlib's column names to tensors (n, …) on the learner's device."""


class LeanLearner(TorchLearner):
    """Base of the lean learners: one module, one loss a minibatch, one report an update.

    Subclasses put it before RLlib's learner of their algorithm, and say what the minibatches are.
    """

    reads_rollouts = True
    """Batched runners bring this learner rollouts instead of episodes."""

    after_each_step = False
    """Whether ``after_gradient_based_update`` follows each gradient step: RLlib's DQN makes an update of each."""

    counts_each_update = False
    """Whether what was trained on is logged at once, and not at the next report: APPO's KL coefficient asks for it."""

    metrics: Any
    _plain: bool
    _bare: bool
    _sources: dict[str, ObservationSource]
    _rooms: dict[str, torch.Tensor]
    _td_errors: list[torch.Tensor]
    _trained: list[tuple[int, int, int]]
    """Module steps, minibatches and environment steps of each update that was not logged yet."""

    def build(self) -> None:
        """As RLlib's.

        Raises:
            SettingsError: The module carries a state from step to step: only whole sequences could train it.
        """
        super().build()
        self._sources, self._rooms = {}, {}
        self._td_errors = []
        self._trained = []
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        use_cpu_layers(module)
        if module.is_stateful():
            raise SettingsError(
                f"{type(self).__name__}: expected a module without a recurrent state, got {type(module).__name__}; set "
                'train.fast_path to "off", or use a model that reads its window anew, such as kind = "lstm"'
            )

    def minibatches(self, taken: Sequence[Any], **how: Any) -> tuple[int, Iterator[Batch]]:
        """How many minibatches there are to learn from, and these in order.

        Args:
            taken: Rollouts or transitions, whole.
            **how: num_epochs, minibatch_size, shuffle_batch_per_epoch and num_total_minibatches, as of RLlib's
                ``Learner.update``.
        """
        raise NotImplementedError

    def update(
        self,
        *,
        training_data: Any,
        timesteps: dict[str, Any] | None = None,
        report: bool = True,
        **how: Any,
    ) -> Any:
        """Learn from all that is given.

        Args:
            training_data: RLlib's ``TrainingData``; its episodes are rollouts or transitions.
            timesteps: For the schedules.
            report: False keeps the metrics for a later update to report.
            **how: As of ``minibatches``.

        Returns:
            The metrics, or None.

        Raises:
            InputError: The episodes are RLlib's own.
        """
        timesteps = timesteps or {}
        training_data.solve_refs()
        taken = training_data.episodes
        if not taken or not isinstance(taken[0], (Rollout, Transitions)):
            found = type(taken[0]).__name__ if taken else "nothing"
            raise InputError(
                f"{type(self).__name__}: expected rollouts or transitions of a batched env runner, got {found}; set "
                "env_runners(env_runner_cls=BatchedEnvRunner), or leave learner_class to RLlib"
            )
        self.before_gradient_based_update(timesteps=timesteps)
        version = next_weights_version(self)
        self._td_errors = []
        steps = 0
        count, batches = self.minibatches(taken, **how)
        module = self.module[DEFAULT_MODULE_ID]
        if not module.training:
            module.train()  # which goes through all parts of the module
        self._bare = self.has_bare_loss() and not isinstance(module.unwrapped(), SelfSupervisedLossAPI)
        self.begin_steps()
        try:
            for number, batch in enumerate(batches, start=1):
                is_last = number == count
                # RLlib's own loss computes what it reports; where nothing is, the bare one will do.
                whole = is_last and (report or not self._bare)
                steps += len(batch[Columns.OBS])
                with self._logging(everything=whole):
                    losses = self.gradient_step(batch, whole)
                    if is_last:
                        for module_id, loss in losses.items():
                            self.metrics.log_value((module_id, self.TOTAL_LOSS_KEY), loss.detach(), window=1)
                        self._trained.append((steps, count, sum(len(one) for one in taken)))
                        if report or self.counts_each_update:
                            self._log_trained(version)
                    if is_last or self.after_each_step:
                        self.after_gradient_based_update(timesteps=timesteps)
        finally:
            self.finish_steps()
        return self.metrics.reduce() if report else None

    def note_td_errors(self, errors: torch.Tensor) -> None:
        """Keep the absolute TD errors of a minibatch (n,)."""
        self._td_errors.append(errors)

    def td_errors(self) -> NDArray[np.float32]:
        """Absolute TD errors of the last update, (n,) in the order of its transitions."""
        errors: NDArray[np.float32] = torch.cat(self._td_errors).cpu().numpy()
        return errors

    # -- observations ---------------------------------------------------------------------------------------------

    def gatherer(self, observations: Sequence[Observations], room: str) -> Gatherer:
        """What makes observations of these, one after the other with their leading axes flattened, when asked to.

        Args:
            observations: Of one type.
            room: Name of the memory that they are made in: the next ones of that name may overwrite them. Fresh memory
                for each would cost more time than what is written there.
        """
        parts: Sequence[Any] = observations  # all of one type
        if isinstance(parts[0], FullObservations):
            axes = len(self.module[DEFAULT_MODULE_ID].observation_space.shape)
            whole: list[Any] = [part.values.reshape(-1, *part.shape[part.values.ndim - axes :]) for part in parts]
            return _FullGatherer(self.tensor(np.concatenate(whole)))
        source = self._source_of(parts[-1].window_id)
        flat = [source.flat(part) for part in parts]
        rows, symbols, accounts = (np.concatenate(columns) for columns in zip(*flat, strict=True))
        return _IndexedGatherer(source, rows, symbols, accounts, partial(self._room, room))

    def _room(self, name: str, rows: int, size: int) -> torch.Tensor:
        """Memory for observations, float32 (rows, size)."""
        found = self._rooms.get(name)
        if found is None or len(found) < rows or found.shape[1] != size:
            found = self._rooms[name] = torch.empty((rows, size), device=self.device)
        return found[:rows]

    def _source_of(self, window_id: str) -> ObservationSource:
        """The source of a window. The last two are kept: a late rollout may name the one before."""
        if window_id not in self._sources:
            self._sources = {**dict(list(self._sources.items())[-1:]), window_id: self.source()}
        return self._sources[window_id]

    def source(self) -> ObservationSource:
        """The run's current window. Asked for when a rollout names one that is not known."""
        return ObservationSource.current(self.config.env_config, self.device)

    def tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """An array on the learner's device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    # -- one gradient step ----------------------------------------------------------------------------------------

    def begin_steps(self) -> None:
        """Gradient steps of one update follow."""
        optimizers = self.get_optimizers_for_module(DEFAULT_MODULE_ID)
        self._plain = has_plain_steps(self.config) and all(is_plain_adam(optimizer) for _, optimizer in optimizers)

    def finish_steps(self) -> None:
        """All of them are made."""

    def gradient_step(self, batch: Batch, whole: bool) -> dict[str, torch.Tensor]:
        """Forward, RLlib's loss, backward, clip, step.

        Args:
            batch: A minibatch.
            whole: Compute, and log, all that the loss reports.

        Returns:
            The losses by module.
        """
        forward = train_forward(self.module[DEFAULT_MODULE_ID], batch)
        losses: dict[str, torch.Tensor]
        if self._bare and not whole:
            losses = {DEFAULT_MODULE_ID: self.bare_loss(batch, forward)}
        else:
            losses = self.compute_losses(fwd_out={DEFAULT_MODULE_ID: forward}, batch={DEFAULT_MODULE_ID: batch})
        if not self._plain:
            self.apply_gradients(self.postprocess_gradients(self.compute_gradients(losses)))
            return losses
        optimizers = self.get_optimizers_for_module(DEFAULT_MODULE_ID)
        for _, optimizer in optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        self.backward(sum(losses.values()))
        gradients = [gradients_of(optimizer) for _, optimizer in optimizers]
        norms = [float(global_norm(one)) for one in gradients]
        if not all(map(math.isfinite, norms)):
            self.step_on_broken(
                {
                    parameter: parameter.grad
                    for _, optimizer in optimizers
                    for group in optimizer.param_groups
                    for parameter in group["params"]
                    if parameter.grad is not None
                }
            )
            return losses
        for (name, optimizer), one, norm in zip(optimizers, gradients, norms, strict=True):
            if self.config.grad_clip:
                clip(one, norm, self.config.grad_clip)
            if whole:
                self.log_norm(name, norm)
            step(optimizer)
        return losses

    def log_norm(self, optimizer: str, norm: float) -> None:
        """The norm of an optimizer's gradient, where the config asks for it."""
        if self.config.grad_clip or self.config.log_gradients:
            self.metrics.log_value((DEFAULT_MODULE_ID, f"gradients_{optimizer}_global_norm"), norm, window=1)

    def step_on_broken(self, gradients: dict[Any, torch.Tensor]) -> None:
        """What is configured for a gradient, by parameter, with NaN or infinity in it.

        ``torch_skip_nan_gradients`` leaves the step out, as it says (RLlib's learner takes it all the same); else
        RLlib's own code replaces such numbers.
        """
        if not self.config.torch_skip_nan_gradients:
            self.apply_gradients(self.postprocess_gradients(gradients))

    def has_bare_loss(self) -> bool:
        """Whether ``bare_loss`` is RLlib's loss, with this module and these settings."""
        return False

    def bare_loss(self, batch: Batch, forward: dict[str, Any]) -> torch.Tensor:
        """RLlib's loss without the metrics that it computes beside it, for minibatches that report none."""
        raise NotImplementedError

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of the loss."""
        loss.backward()

    # -- metrics ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _logging(self, everything: bool) -> Iterator[None]:
        """Meanwhile keep TD errors apart, and drop what the next minibatch overwrites, unless ``everything``."""
        logger = self.metrics
        self.metrics = _Filter(logger, everything, self._td_errors)
        try:
            yield
        finally:
            self.metrics = logger

    def _log_trained(self, version: int) -> None:
        """What RLlib logs after each minibatch, once for all since the last time."""
        module, log = DEFAULT_MODULE_ID, self.metrics.log_value
        steps, minibatches, env_steps = map(sum, zip(*self._trained, strict=True))
        self._trained = []
        log((module, WEIGHTS_SEQ_NO), version, window=1)
        log((module, MODULE_TRAIN_BATCH_SIZE_MEAN), steps / max(minibatches, 1), reduce="mean")
        log((module, NUM_MODULE_STEPS_TRAINED), steps, reduce="sum")
        log((module, NUM_MODULE_STEPS_TRAINED_LIFETIME), steps, reduce="lifetime_sum", with_throughput=True)
        log((ALL_MODULES, NUM_MODULE_STEPS_TRAINED), steps, reduce="sum", with_throughput=True)
        log((ALL_MODULES, NUM_MODULE_STEPS_TRAINED_LIFETIME), steps, reduce="lifetime_sum", with_throughput=True)
        log((ALL_MODULES, NUM_ENV_STEPS_TRAINED), env_steps, reduce="sum", with_throughput=True)
        log((ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME), env_steps, reduce="lifetime_sum", with_throughput=True)


class Gatherer(Protocol):
    """Makes observations when asked to."""

    def __len__(self) -> int:
        """How many it can make."""

    def __call__(self, index: NDArray[np.int64]) -> torch.Tensor:
        """Those at an index (n,): float32 (n, *observation) on the learner's device, until the next call."""


class _FullGatherer:
    def __init__(self, values: torch.Tensor) -> None:
        self._values = values.float() if values.dtype == torch.float64 else values

    def __len__(self) -> int:
        return len(self._values)

    def __call__(self, index: NDArray[np.int64]) -> torch.Tensor:
        return self._values[torch.from_numpy(index).to(self._values.device)]


class _IndexedGatherer:
    def __init__(
        self,
        source: ObservationSource,
        rows: NDArray[np.int64],
        symbols: NDArray[np.int16],
        accounts: NDArray[np.float32],
        room: Callable[[int, int], torch.Tensor],
    ) -> None:
        self._source, self._rows, self._symbols, self._accounts = source, rows, symbols, accounts
        self._room, self._size = room, source.market_size + accounts.shape[1]

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, index: NDArray[np.int64]) -> torch.Tensor:
        out = self._room(len(index), self._size)
        return self._source.gather(self._rows[index], self._symbols[index], self._accounts[index], out)


class _Filter:
    """Stands in for a metrics logger while a loss is computed."""

    def __init__(self, logger: Any, everything: bool, td_errors: list[torch.Tensor]) -> None:
        self._logger, self._everything, self._td_errors = logger, everything, td_errors

    def log_value(self, key: Any, value: Any, **how: Any) -> None:
        if key[-1] == TD_ERROR_KEY:
            self._td_errors.append(value.detach())
        elif self._everything or how.get("reduce") in _ADDED_UP:
            self._logger.log_value(key, value, **how)

    def log_dict(self, values: Mapping[Any, Any], **how: Any) -> None:
        if self._everything or how.get("reduce") in _ADDED_UP:
            self._logger.log_dict(values, **how)

    def __contains__(self, key: Any) -> bool:
        return key in self._logger

    def peek(self, key: Any, **how: Any) -> Any:
        return self._logger.peek(key, **how)
