"""The lean update of each algorithm: what it does not do, by name of the setting, and how a config uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.rllib.algorithms.algorithm_config import TorchCompileWhatToCompile

from trainer.fast_algorithms import FastAPPO, FastDQN, FastIMPALA, FastPPO, FastSAC
from trainer.lean_dqn import LeanDQNLearner
from trainer.lean_learner import LeanLearner
from trainer.lean_ppo import LeanPPOLearner
from trainer.lean_sac import LeanSACLearner
from trainer.lean_vtrace import LeanAPPOLearner, LeanIMPALALearner
from trainer.rllib_private import connector_settings, learner_class_setting

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
        replays: Whether it has a replay buffer.
        local: Whether its learner must be in the driver, on a CPU.
    """

    algorithm: type
    learner: type[LeanLearner]
    replays: bool = False
    local: bool = False

    def why_not(self, config: Any) -> Reason:
        """The setting that it does not do, or None."""
        rules: list[Callable[[Any], Reason]] = [_learners, _module]
        rules += [_buffer] if self.replays else []
        rules += [_local] if self.local else []
        return next((reason for rule in rules if (reason := rule(config)) is not None), None)

    def use(self, config: Any) -> None:
        """Set its classes, and what they make needless; the config is changed in place."""
        config.algo_class = self.algorithm
        config.learners(learner_class=self.learner)
        # Rounds push the weights. IMPALA's server of states would be asked before each sample, know nothing, and be one
        # more process to wait for at the start.
        config.env_runners(use_env_runner_state_server=False)


LEAN_UPDATES: dict[str, LeanAlgorithm] = {
    "PPO": LeanAlgorithm(FastPPO, LeanPPOLearner),
    "IMPALA": LeanAlgorithm(FastIMPALA, LeanIMPALALearner, local=True),
    "APPO": LeanAlgorithm(FastAPPO, LeanAPPOLearner, local=True),
    "DQN": LeanAlgorithm(FastDQN, LeanDQNLearner, replays=True),
    "SAC": LeanAlgorithm(FastSAC, LeanSACLearner, replays=True),
}
"""By the name of RLlib's algorithm class."""


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
