"""Defaults of each algorithm, as calls of its ``AlgorithmConfig``'s methods, where RLlib's own do not suit windows.

Each table is what a user would write below ``[algorithm]``; the user's own tables are applied after it, and win.

An iteration is a report, not an update: ``min_sample_timesteps_per_iteration`` makes it last about a second on two
cores, of as many updates as fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Tables = dict[str, dict[str, Any]]
"""Method of the ``AlgorithmConfig`` to keyword arguments."""

# RLlib evaluates only where an interval is set; the loop asks for the evaluation itself.
NEVER_BY_ITSELF = 2**31 - 1

RLLIB_NAMES = {"A2C": "PPO"}
"""Names of ours to the RLlib algorithm that runs under them. RLlib has dropped A2C: it is PPO with other settings."""

# RLlib's 256 tanh units a layer, and 256 in an LSTM, are many for a window of noise.
_MODEL: dict[str, Any] = {"fcnet_hiddens": [64, 64], "fcnet_activation": "relu", "lstm_cell_size": 64}

_COMMON: Tables = {
    "env_runners": {"num_env_runners": 2, "num_envs_per_env_runner": 8},
    "rl_module": {"model_config": _MODEL},
    # RLlib waits 60 s before it restarts a runner.
    "fault_tolerance": {"restart_failed_env_runners": True, "delay_between_env_runner_restarts_s": 1.0},
    "debugging": {"log_level": "ERROR"},
    "evaluation": {
        "evaluation_interval": NEVER_BY_ITSELF,
        "evaluation_num_env_runners": 0,
        "evaluation_duration_unit": "episodes",
    },
}

_PPO: Tables = {
    "training": {
        "lr": 3e-4,
        "gamma": 0.9,
        "lambda_": 0.9,
        "train_batch_size_per_learner": 4_096,
        "minibatch_size": 512,
        # RLlib's 30 fit the noise of a window.
        "num_epochs": 4,
        "use_kl_loss": False,
        "vf_clip_param": 1e9,
        "grad_clip": 0.5,
    },
    "reporting": {"min_sample_timesteps_per_iteration": 16_384},
}

# One gradient step a batch, no clipping, plain n-step advantages: Huang et al. 2022, "A2C is a special case of PPO".
_A2C: Tables = {
    "training": {
        "lr": 1e-3,
        "gamma": 0.9,
        "lambda_": 1.0,
        "train_batch_size_per_learner": 512,
        "minibatch_size": None,
        "num_epochs": 1,
        "clip_param": 1e9,
        "vf_clip_param": math.inf,
        "use_kl_loss": False,
        "kl_coeff": 0.0,
        "grad_clip": 0.5,
    },
    "reporting": {"min_sample_timesteps_per_iteration": 8_192},
}

_DQN: Tables = {
    "training": {
        "lr": 5e-4,
        "gamma": 0.95,
        # The next bar alone is mostly noise, and an agent that follows it pays for it in costs at every turn.
        "n_step": 5,
        "train_batch_size": 64,
        # Steps replayed to steps sampled, in RLlib's count, which takes two runners for three: it makes 6 updates
        # after each 128 env steps of 2 runners with 8 environments.
        "training_intensity": 2.0,
        "target_network_update_freq": 1_000,
        "num_steps_sampled_before_learning_starts": 1_000,
        "epsilon": [[0, 1.0], [10_000, 0.05]],
        "replay_buffer_config": {"type": "EpisodeReplayBuffer", "capacity": 50_000},
    },
    # A round of sampling costs more by its calls than by its steps.
    "env_runners": {"rollout_fragment_length": 8},
    "reporting": {"min_sample_timesteps_per_iteration": 4_096},
}

_IMPALA: Tables = {
    "training": {
        "lr": 5e-4,
        "gamma": 0.9,
        "train_batch_size_per_learner": 512,
        "entropy_coeff": 0.003,
    },
    "env_runners": {"rollout_fragment_length": 32},
    # RLlib's learner is a process of its own; on one machine one in the driver does the same without copies.
    "learners": {"num_learners": 0},
    # RLlib's iteration lasts at least 10 s.
    "reporting": {"min_time_s_per_iteration": None, "min_sample_timesteps_per_iteration": 16_384},
}

_APPO: Tables = {
    **_IMPALA,
    "training": {
        **_IMPALA["training"],
        # A batch is learned twice and is gone: old ones are of another policy.
        "circular_buffer_num_batches": 2,
        "circular_buffer_iterations_per_batch": 2,
    },
}

_SAC: Tables = {
    "training": {
        "actor_lr": 3e-4,
        "critic_lr": 3e-4,
        "alpha_lr": 3e-4,
        "gamma": 0.95,
        "n_step": 5,
        # RLlib's "auto" is minus the number of dimensions: -1 for a choice, whose entropy is never below 0. With it the
        # temperature falls for ever. This is about a quarter of the entropy of three equal choices.
        "target_entropy": 0.3,
        "train_batch_size_per_learner": 64,
        "training_intensity": 2.0,
        "num_steps_sampled_before_learning_starts": 1_000,
        "replay_buffer_config": {"type": "EpisodeReplayBuffer", "capacity": 50_000},
    },
    "env_runners": {"rollout_fragment_length": 8},
    "reporting": {"min_time_s_per_iteration": None, "min_sample_timesteps_per_iteration": 2_048},
}

_MARWIL: Tables = {
    "training": {"lr": 1e-3, "gamma": 0.9, "train_batch_size_per_learner": 512, "grad_clip": 0.5},
    # Nothing is sampled: the episodes are there already.
    "env_runners": {"num_env_runners": 0},
    "offline_data": {
        "offline_data_class": "class:trainer.offline_data.EpisodeOfflineData",
        "dataset_num_iters_per_learner": 1,
    },
}

_BC: Tables = {**_MARWIL, "training": {"lr": 1e-3, "train_batch_size_per_learner": 512, "grad_clip": 0.5}}

_DEFAULTS: dict[str, Tables] = {
    "A2C": _A2C,
    "APPO": _APPO,
    "BC": _BC,
    "DQN": _DQN,
    "IMPALA": _IMPALA,
    "MARWIL": _MARWIL,
    "PPO": _PPO,
    "SAC": _SAC,
}


def default_tables(name: str) -> tuple[Tables, ...]:
    """The tables to apply for an algorithm before the user's, in this order."""
    return _COMMON, _DEFAULTS.get(name, {})


def with_model_defaults(tables: dict[str, Any]) -> dict[str, Any]:
    """The user's tables, with what their ``model_config`` leaves out: it would replace ours as a whole."""
    module = tables.get("rl_module")
    if not (isinstance(module, Mapping) and isinstance(module.get("model_config"), Mapping)):
        return tables
    return {**tables, "rl_module": {**module, "model_config": {**_MODEL, **module["model_config"]}}}
