"""Everything of RLlib that is not public, in one place. A test fails by name when a new Ray changes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from ray.rllib.algorithms.dqn.dqn import calculate_rr_weights
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.models.torch.encoder import TorchActorCriticEncoder, TorchMLPEncoder
from ray.rllib.core.models.torch.heads import TorchMLPHead
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.tune.registry import ENV_CREATOR, _global_registry

TESTED_RAY = "2.60.0"


def runner_callbacks(env_runner: Any) -> list[Any]:
    """The callback objects of an env runner: RLlib has no public way from a runner to them."""
    callbacks: list[Any] = env_runner._callbacks
    return callbacks


def connector_settings(config: Any) -> dict[str, Any]:
    """The connectors that a config adds to RLlib's own, by the name of the setting; None where there are none."""
    return {
        "env_to_module_connector": config._env_to_module_connector,
        "module_to_env_connector": config._module_to_env_connector,
        "learner_connector": config._learner_connector,
    }


def make_single_env(config: Any) -> Any:
    """One environment of a config, made as RLlib's runners make them."""
    env, context = config.env, EnvContext(dict(config.env_config), worker_index=0)
    if isinstance(env, str) and _global_registry.contains(ENV_CREATOR, env):
        return _global_registry.get(ENV_CREATOR, env)(context)
    return env(context) if callable(env) else gym.make(env, **context)


def spaces_of(config: Any) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Observation and action space of one environment of a config; one is made where the config does not say."""
    observation, action = config.observation_space, config.action_space
    if observation is None or action is None:
        env = make_single_env(config)
        observation, action = env.observation_space, env.action_space
        env.close()
    return observation, action


class VectorContext(EnvContext):
    """An ``env_config`` that still knows its worker when RLlib asks the creator for a vector environment.

    RLlib calls it with ``context | {"num_envs": B}``, which of an ``EnvContext`` leaves a plain dict.
    """

    def __init__(
        self, env_config: Any, worker_index: int, num_workers: int | None, num_envs: int | None = None
    ) -> None:
        super().__init__(env_config, worker_index=worker_index, num_workers=num_workers)
        self.num_envs = num_envs
        """B of the vector environment asked for; None asks for a single one."""

    def __or__(self, other: Any) -> VectorContext:
        num_envs = dict(other).get("num_envs", self.num_envs)
        return VectorContext({**self, **other}, self.worker_index, self.num_workers, num_envs)


class EnvRunnerBase(SingleAgentEnvRunner):
    """RLlib's runner with the parts that a runner of ours needs, under public names.

    ``sample()`` stays RLlib's: it pulls states, finds out how much to sample, and calls ``on_sample_end``. What it
    calls to do the work is ``collect``.
    """

    metrics: Any

    def collect(
        self,
        *,
        num_timesteps: int | None,
        num_episodes: int | None,
        explore: bool,
        random_actions: bool,
        force_reset: bool,
    ) -> list[Any]:
        """Sample at least ``num_timesteps`` steps or ``num_episodes`` episodes; exactly one of them is given."""
        raise NotImplementedError

    def _sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[Any]:
        return self.collect(
            num_timesteps=num_timesteps,
            num_episodes=num_episodes,
            explore=explore,
            random_actions=random_actions,
            force_reset=force_reset,
        )

    @property
    def callback_objects(self) -> list[Any]:
        """This process's callbacks."""
        callbacks: list[Any] = self._callbacks
        return callbacks

    @property
    def device(self) -> Any:
        """Where the module is."""
        return self._device

    @property
    def runner_seed(self) -> int | None:
        """RLlib's seed of this runner: the config's + worker index (+ 1e6 in evaluation)."""
        seed: int | None = self._seed
        return seed

    @property
    def weights_seq_no(self) -> int:
        """Version of the module's weights."""
        return int(self._weights_seq_no)

    @property
    def needs_reset(self) -> bool:
        """Whether the next ``sample()`` begins with a reset: at first, and after ``make_env()``."""
        return bool(self._needs_initial_reset)

    @needs_reset.setter
    def needs_reset(self, value: bool) -> None:
        self._needs_initial_reset = value

    def reset_envs(self, seed: int | None) -> tuple[Any, Any]:
        """Reset all environments; where that fails, make them again and try again, as the config allows."""
        observations, infos = self._try_env_reset(seed=seed, options=None)
        return observations, infos

    def count_samples(self, steps: int, episodes: int) -> None:
        """Add to RLlib's counters, lifetime ones included, and to its Prometheus counter."""
        if steps:
            self._log_env_steps(metric=self._metrics_num_env_steps_sampled, num_steps=steps)
        self._increase_sampled_metrics(steps, episodes)

    def log_episodes(self, ended: Iterable[tuple[int, float, float]]) -> None:
        """Log the metrics of ended episodes: length, return and seconds of each."""
        logger = self.metrics
        self.metrics = _QuickLogger(logger)
        try:
            for length, episode_return, seconds in ended:
                self._log_episode_metrics(length, episode_return, seconds)
        finally:
            self.metrics = logger


class _QuickLogger:
    """A metrics logger's ``log_value`` for many values under few names: each name is looked up once, not each time.

    What RLlib does for one value takes 2 µs, and for an episode it logs nine.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._stats: dict[Any, Any] = {}

    def log_value(self, key: Any, value: Any, **how: Any) -> None:
        stats = self._stats.get(key)
        if stats is None:
            self._logger.log_value(key, value, **how)
            self._stats[key] = self._logger._get_key(key)
        else:
            stats.push(value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)


# --- learners ---------------------------------------------------------------------------------------------------------


def next_weights_version(learner: Any) -> int:
    """Count one more update of a learner: the policy version that env runners get with the weights."""
    learner._weights_seq_no += 1
    return int(learner._weights_seq_no)


def has_plain_steps(config: Any) -> bool:
    """Whether a gradient step is: clip by the global norm, or not at all, then the optimizer's own step."""
    plain_clip = config.grad_clip is None or config.grad_clip_by == "global_norm"
    return bool(plain_clip and config._torch_grad_scaler_class is None and config._torch_lr_scheduler_classes is None)


def forget_sac_losses(learner: Any) -> None:
    """Drop the losses that SAC's loss function keeps for ``compute_gradients``."""
    learner._temp_losses.clear()


class LocalWeights:
    """Brings the weights of a learner group's local learner to a local env runner.

    Args:
        group: RLlib's ``LearnerGroup``, local.
        runner: An env runner of this process. It keeps its module meanwhile.
    """

    def __init__(self, group: Any, runner: Any) -> None:
        self._learner, self._runner = group._learner, runner
        source = _weights(self._learner.module[DEFAULT_MODULE_ID].unwrapped())
        target = _weights(runner.module)
        self._targets, self._sources = list(target.values()), [source[name] for name in target]

    def copy(self) -> None:
        """Copy them and their version, in place."""
        with torch.no_grad():
            torch._foreach_copy_(self._targets, self._sources)
        self._runner._weights_seq_no = self._learner._weights_seq_no


def _weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What ``state_dict`` has, as the objects themselves: kernels may lay a parameter out anew."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def replay_weights(config: Any) -> tuple[int, int]:
    """Rounds of sampling and, after them, updates: RLlib's reckoning of ``training_intensity``."""
    sampling, updates = calculate_rr_weights(config)
    return int(sampling), int(updates)


def learner_class_setting(config: Any) -> Any:
    """The learner class that a config was given; None where it has RLlib's own."""
    return config._learner_class


class OwnReplayBuffer:
    """Beside an RLlib ``Algorithm``: it makes its replay buffer itself. SAC's config admits RLlib's own types alone."""

    def make_replay_buffer(self, settings: Mapping[str, Any]) -> Any:
        """The buffer for a ``replay_buffer_config``."""
        raise NotImplementedError

    def _create_local_replay_buffer_if_necessary(self, config: Any) -> Any:
        return self.make_replay_buffer(config["replay_buffer_config"])


def train_forward(module: Any, batch: Any) -> Any:
    """A module's forward pass for training. ``forward_train`` would put each of its layers into training mode first."""
    return module._forward_train(batch)


def act_forward(module: Any, batch: Any, explore: bool, timestep: int) -> Any:
    """A module's forward pass for acting, of a module in evaluation mode.

    ``forward_exploration`` and ``forward_inference`` put each of its layers into that mode and back.
    """
    return module._forward_exploration(batch, t=timestep) if explore else module._forward_inference(batch)


Layers = list[torch.nn.Module]

_ACTING = ("_forward", "_forward_exploration", "_forward_inference")


def _keeps(module: Any, own: type, names: tuple[str, ...]) -> bool:
    """Whether these methods of a module are those of RLlib's own class."""
    return isinstance(module, own) and all(
        name not in vars(module) and getattr(type(module), name) is getattr(own, name) for name in names
    )


def policy_layers(module: Any) -> Layers:
    """The layers from observations to the inputs of the action distribution, where a module has no more than those.

    RLlib's own module of PPO, IMPALA, APPO and MARWIL with an MLP is such; of others the list is empty. One after
    another they do what ``act_forward`` does, exploring or not, without the dicts and checks between them.
    """
    if not _keeps(module, DefaultPPOTorchRLModule, _ACTING) or type(module.encoder) is not TorchActorCriticEncoder:
        return []
    shared = module.encoder.config.shared
    encoder = _mlp(module.encoder.encoder if shared else module.encoder.actor_encoder)
    head = _mlp(module.pi)
    return [*encoder, *head] if encoder and head else []


class ActorCriticLayers(NamedTuple):
    """The layers of a policy and a value function: an encoder and a head each. One encoder may be that of both."""

    actor: Layers
    critic: Layers
    pi: Layers
    vf: Layers


def actor_critic_layers(module: Any) -> ActorCriticLayers | None:
    """The layers that RLlib's own module of PPO trains, where they are MLPs; None of any other module."""
    names = ("_forward_train", "compute_values")
    if not policy_layers(module) or not _keeps(module, DefaultPPOTorchRLModule, names):
        return None
    encoder = module.encoder
    actor = _mlp(encoder.encoder if encoder.config.shared else encoder.actor_encoder)
    critic = actor if encoder.config.shared else _mlp(encoder.critic_encoder)
    return ActorCriticLayers(actor, critic, _mlp(module.pi), _mlp(module.vf))


class QLayers(NamedTuple):
    """The layers of a Q-network: encoder and head. A dueling one has two: advantages, and the state's value."""

    encoder: Layers
    af: Layers
    vf: Layers


_OF_Q = ("_forward_inference", "_forward_exploration", "_forward_train", "compute_q_values", "_qf_forward_helper")


def q_layers(module: Any, *, target: bool = False) -> QLayers | None:
    """The layers of DQN's own module, or of its target network, where they are MLPs of expected values; else None."""
    if not _keeps(module, DefaultDQNTorchRLModule, (*_OF_Q, "forward_target")) or module.num_atoms > 1:
        return None
    before = "_target_" if target else ""
    parts = [_mlp(getattr(module, f"{before}{name}")) for name in ("encoder", "af", *(["vf"] * module.uses_dueling))]
    return QLayers(*parts, *([[]] * (not module.uses_dueling))) if all(parts) else None


def _mlp(model: Any) -> Layers:
    """The layers of one of RLlib's MLPs; none of anything else."""
    is_mlp = type(model) is TorchMLPEncoder or (type(model) is TorchMLPHead and not model.clip_log_std)
    return [*model.net.mlp] if is_mlp else []
