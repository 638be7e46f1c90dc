"""The lean update of each algorithm: what it does not do, by name of the setting, and how a config uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from ray.rllib.algorithms.algorithm_config import TorchCompileWhatToCompile
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from env.settings import EnvSettings
from trainer.environments import ENV_ID
from trainer.fast_algorithms import FastAPPO, FastDQN, FastIMPALA, FastPPO, FastSAC
from trainer.kernel_dqn import KernelDQNLearner
from trainer.kernel_learner import KernelLearner
from trainer.kernel_mlp import KERNEL_ACTIVATIONS
from trainer.kernel_ppo import KernelPPOLearner
from trainer.lean_dqn import LeanDQNLearner
from trainer.lean_learner import LeanLearner
from trainer.lean_ppo import LeanPPOLearner
from trainer.lean_sac import LeanSACLearner
from trainer.lean_vtrace import LeanAPPOLearner, LeanIMPALALearner
from trainer.models import has_own_module
from trainer.rllib_private import connector_settings, has_plain_steps, learner_class_setting

Reason = str | None

_BUFFERS = ("EpisodeReplayBuffer", "PrioritizedEpisodeReplayBuffer")
# What a ring buffer takes of RLlib's settings; the others are for sequences.
_BUFFER_SETTINGS = {"type", "capacity", "alpha", "beta"}
_LEARNER_SETTINGS = {"sample_while_learning", "updates_per_call"}


@dataclass(frozen=True)
class LeanAlgorithm:
    """How one algorithm learns from rollouts.

    Attributes:
        algorithm: Its ``Algorithm`` with rounds.
        learner: Its learner.
        kernel: The learner that makes the same steps by hand, where there is one.
        replays: Whether it has a replay buffer.
        local: Whether its learner must be in the driver, on a CPU.
    """

    algorithm: type
    learner: type[LeanLearner]
    kernel: type[KernelLearner] | None = None
    replays: bool = False
    local: bool = False

    def why_not(self, config: Any) -> Reason:
        """The setting that it does not do, or None."""
        rules: list[Callable[[Any], Reason]] = [_learners, _module]
        rules += [_buffer] if self.replays else []
        rules += [_local] if self.local else []
        return first_reason(rules, config)

    def why_no_kernels(self, config: Any, spaces: Callable[[], tuple[Any, Any]]) -> Reason:
        """The setting for which steps are not made by hand, or None; ``spaces`` gives one environment's when asked."""
        if self.kernel is None:
            return f"{self.algorithm.__name__.removeprefix('Fast')} has no kernels"
        rules = (_processor, _steps, _networks, partial(_spaces, spaces=spaces), _loss)
        return first_reason(rules, config)

    def use(self, config: Any, *, by_hand: bool = False) -> None:
        """Set its classes, and what they make needless; the config is changed in place."""
        config.algo_class = self.algorithm
        config.learners(learner_class=self.kernel if by_hand else self.learner)
        # Rounds push the weights. IMPALA's server of states would be asked before each sample, know nothing, and be one
        # more process to wait for at the start.
        config.env_runners(use_env_runner_state_server=False)


LEAN_UPDATES: dict[str, LeanAlgorithm] = {
    "PPO": LeanAlgorithm(FastPPO, LeanPPOLearner, KernelPPOLearner),
    "IMPALA": LeanAlgorithm(FastIMPALA, LeanIMPALALearner, local=True),
    "APPO": LeanAlgorithm(FastAPPO, LeanAPPOLearner, local=True),
    "DQN": LeanAlgorithm(FastDQN, LeanDQNLearner, KernelDQNLearner, replays=True),
    "SAC": LeanAlgorithm(FastSAC, LeanSACLearner, replays=True),
}
"""By the name of RLlib's algorithm class."""


def first_reason(rules: Iterable[Callable[[Any], Reason]], config: Any) -> Reason:
    """What the first rule that is against a config says; None: none is."""
    return next((reason for rule in rules if (reason := rule(config)) is not None), None)


def _learners(config: Any) -> Reason:
    given = learner_class_setting(config)
    if given is not None:
        return f"learners.learner_class is set to {given.__name__}"
    if connector_settings(config)["learner_connector"] is not None:
        return "learners.learner_connector is set"
    if not config.add_default_connectors_to_learner_pipeline:
        return "learners.add_default_connectors_to_learner_pipeline is False"
    if config.num_learners > config.num_envs_per_env_runner:
        return f"learners.num_learners is {config.num_learners}, more than environments of a runner"
    what = config.torch_compile_learner_what_to_compile
    if config.torch_compile_learner and what != TorchCompileWhatToCompile.FORWARD_TRAIN:
        return "framework.torch_compile_learner_what_to_compile is not forward_train"
    unknown = sorted(set(config.learner_config_dict) - _LEARNER_SETTINGS)
    return f"learners.learner_config_dict has {unknown[0]}" if unknown else None


def _module(config: Any) -> Reason:
    return "rl_module.model_config.use_lstm is set" if config.model_config.get("use_lstm") else None


def _local(config: Any) -> Reason:
    # RLlib's own have learners share gradients in a way of their own, and threads that load a GPU.
    if config.num_learners:
        return f"learners.num_learners is {config.num_learners}"
    return "learners.num_gpus_per_learner is set" if config.num_gpus_per_learner else None


def _buffer(config: Any) -> Reason:
    settings = config.replay_buffer_config
    if settings["type"] not in _BUFFERS:
        return f"training.replay_buffer_config.type is {settings['type']}"
    unknown = sorted(set(settings) - _BUFFER_SETTINGS)
    return f"training.replay_buffer_config.{unknown[0]} is set" if unknown else None


# --- what is not made by hand -----------------------------------------------------------------------------------------


def _processor(config: Any) -> Reason:
    if config.num_gpus_per_learner:
        return "learners.num_gpus_per_learner is set"
    if config.num_learners > 1:
        return f"learners.num_learners is {config.num_learners}"
    return "framework.torch_compile_learner is set" if config.torch_compile_learner else None


def _steps(config: Any) -> Reason:
    if has_plain_steps(config):
        return None
    if config.grad_clip is not None and config.grad_clip_by != "global_norm":
        return f"training.grad_clip_by is {config.grad_clip_by}"
    return "experimental.torch_grad_scaler_class or torch_lr_scheduler_classes is set"


def _networks(config: Any) -> Reason:
    if has_own_module(config):
        return f"its model is not RLlib's MLP: {config.model_config.get('kind', 'rl_module_spec is set')}"
    model = asdict(DefaultModelConfig()) | config.model_config
    for name in ("fcnet_activation", *(["head_fcnet_activation"] if model["head_fcnet_hiddens"] else [])):
        if model[name] not in KERNEL_ACTIVATIONS:
            return f"rl_module.model_config.{name} is {model[name]}"
    for name in ("fcnet_use_layernorm", "head_fcnet_use_layernorm"):
        if model[name]:
            return f"rl_module.model_config.{name} is set"
    return None


def _spaces(config: Any, spaces: Callable[[], tuple[Any, Any]]) -> Reason:
    if config.env == ENV_ID:
        settings = EnvSettings.from_mapping(config.env_config.get("settings", {}))
        if settings.portfolio:
            return "env.portfolio is set"
        return None if settings.discrete else f"env.actions is {settings.actions}"
    observation, action = spaces()
    if not (
        isinstance(observation, Box) and len(observation.shape) == 1 and np.issubdtype(observation.dtype, np.floating)
    ):
        return f"environment.observation_space is {observation}"
    return None if isinstance(action, Discrete) else f"environment.action_space is a {type(action).__name__}"


_LOSS: dict[str, Any] = {"use_kl_loss": False, "use_critic": True, "num_atoms": 1, "noisy": False}
"""Settings of the losses by hand; an algorithm has some of them."""


def _loss(config: Any) -> Reason:
    for name, wanted in _LOSS.items():
        found = getattr(config, name, wanted)
        if found != wanted:
            return f"training.{name} is {found}"
    return None
