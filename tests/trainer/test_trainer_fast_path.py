"""The choice: what a config sets decides, and whatever ours do not do falls back to RLlib's, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import pytest
from gymnasium import spaces
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.connectors.module_to_env import GetActions
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from torch.optim.lr_scheduler import ExponentialLR

from trainer import fast_path
from trainer.batched_runner import BatchedEnvRunner
from trainer.callbacks import EventCallbacks
from trainer.environments import ENV_ID
from trainer.fast_path import FastPath, choose, use_fast_path
from trainer.kernel_learner import KernelLearner

BOX, CHOICE = spaces.Box(-1.0, 1.0, (4,)), spaces.Discrete(2)


class EachStep(RLlibCallback):
    def on_episode_step(self, **kwargs: Any) -> None:
        """Called at each step."""


class EachEnd(RLlibCallback):
    def on_episode_end(self, **kwargs: Any) -> None:
        """Called at each end."""


def a_factory() -> RLlibCallback:
    return EachStep()


def make_config(config: Any = None) -> Any:
    """Our environment, and our callbacks, as a run has them."""
    config = (config or PPOConfig()).environment(ENV_ID)
    return config.callbacks([RLlibCallback, partial(EventCallbacks, None)])


class Lean:
    """Stands for a lean update."""

    def __init__(self, reason: str | None = None, no_kernels: str | None = None) -> None:
        self.reason, self.no_kernels, self.used = reason, no_kernels, 0

    def why_not(self, config: Any) -> str | None:
        return self.reason

    def why_no_kernels(self, config: Any, spaces: Any) -> str | None:
        return self.no_kernels

    def use(self, config: Any, *, by_hand: bool = False) -> None:
        self.used += 1
        assert by_hand == (self.no_kernels is None)


@pytest.fixture
def lean(monkeypatch: pytest.MonkeyPatch) -> Lean:
    made = Lean()
    monkeypatch.setattr(fast_path, "LEAN_UPDATES", {"PPO": made})
    return made


@pytest.mark.parametrize("make", [PPOConfig, DQNConfig, SACConfig, APPOConfig, IMPALAConfig])
def test_every_algorithm_rolls_out_batched_on_our_environment(make: Any) -> None:
    config = make_config(make())
    assert use_fast_path(config).no_batched is None
    assert config.env_runner_cls is BatchedEnvRunner
    assert config.gym_env_vectorize_mode == "vector_entry_point"


SETTINGS: dict[str, Callable[[Any], Any]] = {
    "api_stack chooses RLlib's old one": lambda c: c.api_stack(
        enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False
    ),
    "framework is not torch": lambda c: c.framework("tf2"),
    "multi_agent is set": lambda c: c.multi_agent(policies={"a", "b"}, policy_mapping_fn=lambda *_, **__: "a"),
    "env_runners.env_runner_cls is set to SingleAgentEnvRunner": lambda c: c.env_runners(
        env_runner_cls=SingleAgentEnvRunner
    ),
    "offline_data.output is set": lambda c: c.offline_data(output="somewhere"),
    "env_runners.env_to_module_connector is set": lambda c: c.env_runners(
        env_to_module_connector=lambda env, spaces, device: MeanStdFilter()
    ),
    "env_runners.module_to_env_connector is set": lambda c: c.env_runners(
        module_to_env_connector=lambda env, spaces: GetActions()
    ),
    "env_runners.add_default_connectors_to_env_to_module_pipeline is False": lambda c: c.env_runners(
        add_default_connectors_to_env_to_module_pipeline=False
    ),
    "env_runners.add_default_connectors_to_module_to_env_pipeline is False": lambda c: c.env_runners(
        add_default_connectors_to_module_to_env_pipeline=False
    ),
    "env_runners.observation_filter is MeanStdFilter": lambda c: c.env_runners(observation_filter="MeanStdFilter"),
    "env_runners.episodes_to_numpy is False": lambda c: c.env_runners(episodes_to_numpy=False),
    "callbacks: on_episode_step is called at each step": lambda c: c.callbacks(on_episode_step=lambda **_: None),
    "callbacks: EachStep.on_episode_step is called at each step": lambda c: c.callbacks([EachStep]),
    "callbacks: a factory, a_factory, of which": lambda c: c.callbacks(a_factory),
    "environment.observation_space is a Dict": lambda c: c.environment(
        "x", observation_space=spaces.Dict({"a": BOX}), action_space=CHOICE
    ),
    "environment.action_space is a Tuple": lambda c: c.environment(
        "x", observation_space=BOX, action_space=spaces.Tuple([CHOICE])
    ),
}


@pytest.mark.parametrize("reason", SETTINGS)
def test_what_the_batched_runner_does_not_do_is_rllibs_and_the_line_names_it(reason: str, lean: Lean) -> None:
    config = make_config()
    SETTINGS[reason](config)
    before = config.env_runner_cls, config.gym_env_vectorize_mode
    path = use_fast_path(config)
    assert path.no_batched is not None
    assert path.line.startswith(f"roll-out and update: RLlib's own, because {reason}")
    assert "\n" not in path.line
    assert (config.env_runner_cls, config.gym_env_vectorize_mode) == before
    assert not lean.used


LEAN_SETTINGS: dict[str, Callable[[Any], Any]] = {
    "env_runners.batch_mode is complete_episodes": lambda c: c.env_runners(batch_mode="complete_episodes"),
    "callbacks: EachEnd.on_episode_end gets RLlib's episodes": lambda c: c.callbacks([EachEnd]),
    "callbacks: on_sample_end gets RLlib's episodes": lambda c: c.callbacks(on_sample_end=lambda **_: None),
}


@pytest.mark.parametrize("reason", LEAN_SETTINGS)
def test_what_the_lean_update_does_not_do_still_rolls_out_batched(reason: str, lean: Lean) -> None:
    config = make_config()
    LEAN_SETTINGS[reason](config)
    path = use_fast_path(config)
    assert path.line == f"roll-out: batched; update: RLlib's own, because {reason}"
    assert config.env_runner_cls is BatchedEnvRunner
    assert not lean.used


def test_the_lean_update_is_used_where_nothing_is_against_it(lean: Lean) -> None:
    assert use_fast_path(make_config()).line == "roll-out: batched; update: lean, by kernels"
    assert lean.used == 1
    lean.no_kernels = "training.noise is set"
    path = use_fast_path(make_config())
    assert path.line == "roll-out: batched; update: lean, by torch, because training.noise is set"
    assert lean.used == 2
    lean.reason = "training.shuffle is set"
    assert use_fast_path(make_config()) == FastPath(None, "training.shuffle is set", "training.shuffle is set")
    assert lean.used == 2


NO_KERNELS: dict[str, Callable[[], Any]] = {
    "IMPALA has no kernels": lambda: IMPALAConfig().learners(num_learners=0),
    "learners.num_gpus_per_learner is set": lambda: plain_ppo().learners(num_gpus_per_learner=1),
    "learners.num_learners is 2": lambda: plain_ppo().learners(num_learners=2).env_runners(num_envs_per_env_runner=2),
    "framework.torch_compile_learner is set": lambda: plain_ppo().framework(torch_compile_learner=True),
    "training.grad_clip_by is value": lambda: plain_ppo().training(grad_clip=1.0, grad_clip_by="value"),
    "experimental.torch_grad_scaler_class or torch_lr": lambda: plain_ppo().experimental(
        _torch_lr_scheduler_classes=[ExponentialLR]
    ),
    "its model is not RLlib's MLP: rl_module_spec is set": lambda: plain_ppo().rl_module(
        rl_module_spec=RLModuleSpec(module_class=OwnModule)
    ),
    "rl_module.model_config.fcnet_activation is swish": lambda: plain_ppo().rl_module(
        model_config={"fcnet_activation": "swish"}
    ),
    "rl_module.model_config.head_fcnet_activation is elu": lambda: plain_ppo().rl_module(
        model_config={"head_fcnet_hiddens": [4], "head_fcnet_activation": "elu"}
    ),
    "rl_module.model_config.fcnet_use_layernorm is set": lambda: plain_ppo().rl_module(
        model_config={"fcnet_use_layernorm": True}
    ),
    "env.portfolio is set": lambda: plain_ppo().environment(env_config={"settings": {"portfolio": True}}),
    "env.actions is weights": lambda: plain_ppo().environment(env_config={"settings": {"actions": "weights"}}),
    "training.use_kl_loss is True": PPOConfig,
    "training.use_critic is False": lambda: plain_ppo().training(use_critic=False),
    "training.num_atoms is 5": lambda: DQNConfig().training(num_atoms=5),
    "training.noisy is True": lambda: DQNConfig().training(noisy=True),
}


class OwnModule(TorchRLModule):
    """A user's."""


def plain_ppo() -> Any:
    return PPOConfig().training(use_kl_loss=False)


@pytest.mark.parametrize("reason", NO_KERNELS)
def test_what_kernels_do_not_do_is_torchs_and_the_line_names_it(reason: str) -> None:
    config = make_config(NO_KERNELS[reason]())
    path = use_fast_path(config)
    assert path.line.startswith(f"roll-out: batched; update: lean, by torch, because {reason}")
    assert not issubclass(config.learner_class, KernelLearner)


def test_kernels_are_used_where_nothing_is_against_them() -> None:
    for config in (make_config(plain_ppo()), make_config(DQNConfig()), plain_ppo().environment("CartPole-v1")):
        assert use_fast_path(config).no_kernels is None
        assert issubclass(config.learner_class, KernelLearner)
    for name, reason in (("Pendulum-v1", "environment.action_space is a Box"), ("Taxi-v3", "environment.observation")):
        assert str(choose(plain_ppo().environment(name)).no_kernels).startswith(reason)


@pytest.mark.parametrize("make", [APPOConfig, IMPALAConfig])
def test_runners_of_lean_rounds_ask_no_server_for_weights_that_they_are_sent(make: Any) -> None:
    config = make_config(make().learners(num_learners=0))
    assert config.use_env_runner_state_server
    assert use_fast_path(config).no_lean is None
    assert not config.use_env_runner_state_server
    stock = make_config(make().learners(num_learners=1))
    assert use_fast_path(stock).no_lean is not None
    assert stock.use_env_runner_state_server


def test_our_callbacks_are_content_with_rollouts(lean: Lean) -> None:
    assert choose(make_config()).no_lean is None


def test_an_algorithm_without_a_lean_update_is_named(lean: Lean) -> None:
    assert choose(make_config(MARWILConfig())).no_lean == "MARWIL has no lean update"


def test_a_foreign_environment_is_asked_for_its_spaces_and_keeps_its_vectorizer() -> None:
    for name in ("CartPole-v1", "Pendulum-v1"):
        config = PPOConfig().environment(name)
        assert use_fast_path(config).no_batched is None
        assert config.gym_env_vectorize_mode == "sync"
    assert choose(PPOConfig().environment(WordEnv)).no_batched == "environment.observation_space is a Text"


def test_a_foreign_environment_is_made_once_to_be_asked() -> None:
    made: list[Any] = []

    def create(context: Any) -> Any:
        made.append(context)
        return gym.make("CartPole-v1")

    assert choose(plain_ppo().environment(create)).no_kernels is None
    assert len(made) == 1


class WordEnv(gym.Env[Any, Any]):
    observation_space, action_space = spaces.Text(5), CHOICE

    def __init__(self, config: Any) -> None:
        assert config.worker_index == 0
