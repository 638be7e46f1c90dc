"""A new Ray fails here by name, before it fails somewhere else without one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from schemas.errors import OutboxError
from trainer import rllib_private
from trainer.batched_runner import BatchedEnvRunner
from trainer.callbacks import driver_callbacks, finish_run
from trainer.rllib_private import (
    TESTED_RAY,
    EnvRunnerBase,
    VectorContext,
    connector_settings,
    make_single_env,
    runner_callbacks,
)


class Mine(RLlibCallback):
    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word


@pytest.fixture(scope="module")
def algorithm(ray_session: None) -> Iterator[Any]:
    config = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=0)
    config.rl_module(model_config={"fcnet_hiddens": [8]}).callbacks([partial(Mine, "here")])
    made = config.build_algo()
    yield made
    made.stop()


def test_this_is_the_ray_that_the_private_parts_were_tested_with() -> None:
    assert ray.__version__ == TESTED_RAY, "try the tests of trainer/ on this Ray, then set TESTED_RAY to it"


def test_the_callbacks_of_a_runner_are_where_rllib_private_looks_for_them(algorithm: Any) -> None:
    assert [item.word for item in runner_callbacks(algorithm.env_runner)] == ["here"]


def test_a_sample_is_made_where_the_batched_runner_makes_it() -> None:
    # Ray adds its trace context to the methods of a class once some test has made an actor of it.
    theirs, ours = (
        [name for name in inspect.signature(one._sample).parameters if name != "_ray_trace_ctx"]
        for one in (SingleAgentEnvRunner, EnvRunnerBase)
    )
    assert theirs == ours
    assert "self._sample(" in inspect.getsource(SingleAgentEnvRunner.sample)


def test_the_private_parts_of_a_runner_are_what_the_batched_one_takes_them_for() -> None:
    config = PPOConfig().environment("CartPole-v1").debugging(seed=3).callbacks([partial(Mine, "there")])
    runner = BatchedEnvRunner(config=config.env_runners(num_env_runners=0), worker_index=2, num_workers=2)
    assert [item.word for item in runner.callback_objects] == ["there"]
    assert runner.runner_seed == 3 + 2
    assert str(runner.device) == "cpu"
    assert runner.needs_reset
    assert runner.weights_seq_no == 0
    runner.count_samples(7, 2)
    logger = runner.metrics
    runner.log_episodes([(5, 1.5, 0.1), (8, 2.5, 0.3)])
    assert runner.metrics is logger
    metrics = runner.metrics.reduce()
    counted = {name: metrics[name].peek() for name in ("num_env_steps_sampled_lifetime", "num_episodes")}
    assert counted == {"num_env_steps_sampled_lifetime": 7, "num_episodes": 2}
    of_episodes = {
        "episode_len_mean": 6.5,
        "episode_len_min": 5,
        "episode_len_max": 8,
        "episode_return_mean": 2.0,
        "episode_return_min": 1.5,
        "episode_return_max": 2.5,
        "episode_duration_sec_mean": 0.2,
    }
    assert {name: metrics[name].peek() for name in of_episodes} == pytest.approx(of_episodes)
    assert metrics["agent_episode_return_mean"]["default_agent"].peek() == 2.0
    assert metrics["module_episode_return_mean"]["default_policy"].peek() == 2.0
    runner.sample(num_timesteps=3)
    assert not runner.needs_reset
    runner.make_env()
    assert runner.needs_reset


def test_a_vector_environment_is_asked_for_with_a_context_that_knows_its_worker() -> None:
    assert 'env_ctx | {"num_envs": num_envs}' in inspect.getsource(SingleAgentEnvRunner.make_env)
    context = VectorContext({"a": 1}, 3, 4)
    asked = context | {"num_envs": 8}
    assert (dict(asked), asked.worker_index, asked.num_workers) == ({"a": 1, "num_envs": 8}, 3, 4)
    assert (context.num_envs, asked.num_envs) == (None, 8)


def test_connectors_of_a_config_are_found_by_their_settings_names() -> None:
    names = ("env_to_module_connector", "module_to_env_connector", "learner_connector")
    config = PPOConfig()
    assert connector_settings(config) == dict.fromkeys(names)
    config.env_runners(env_to_module_connector=len, module_to_env_connector=max).training(learner_connector=min)
    assert connector_settings(config) == dict(zip(names, (len, max, min), strict=True))


def test_a_registered_environment_is_made_with_its_config() -> None:
    def create(context: EnvContext) -> tuple[dict[str, Any], int]:
        return dict(context), context.worker_index

    ray.tune.register_env("asked-for-its-spaces", create)
    for env in ("asked-for-its-spaces", create):
        config = PPOConfig().environment(env, env_config={"a": 1})
        assert make_single_env(config) == ({"a": 1}, 0)


def test_an_algorithm_without_event_callbacks_is_told_so(algorithm: Any) -> None:
    for act in (finish_run, driver_callbacks):
        with pytest.raises(OutboxError, match=r"expected EventCallbacks among its callbacks.*config.callbacks\(\)"):
            act(algorithm)


def test_what_lean_learners_take_from_rllib_is_where_it_was(algorithm: Any) -> None:
    learner, runner, config = algorithm.learner_group._learner, algorithm.env_runner, algorithm.config
    version = rllib_private.next_weights_version(learner)
    assert learner.get_state()["weights_seq_no"] == version
    with torch.no_grad():
        for parameter in learner.module[DEFAULT_MODULE_ID].parameters():
            parameter.add_(1.0)
    rllib_private.LocalWeights(algorithm.learner_group, runner).copy()
    assert runner.get_state()["weights_seq_no"] == version
    theirs = learner.module[DEFAULT_MODULE_ID].state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in runner.module.state_dict().items())
    seen = {"obs": torch.zeros(3, 4)}
    forward = rllib_private.train_forward(learner.module[DEFAULT_MODULE_ID], seen)
    acted = rllib_private.act_forward(runner.module, seen, explore=True, timestep=0)
    assert torch.allclose(forward["action_dist_inputs"], acted["action_dist_inputs"])
    layers = rllib_private.actor_critic_layers(learner.module[DEFAULT_MODULE_ID].unwrapped())
    assert layers is not None
    assert [len(part) for part in layers] == [2, 2, 1, 1]
    assert len(rllib_private.policy_layers(runner.module)) == 3
    assert rllib_private.learner_class_setting(config) is None
    assert rllib_private.has_plain_steps(config)
    assert not rllib_private.has_plain_steps(
        config.copy(copy_frozen=False).training(grad_clip=1.0, grad_clip_by="value")
    )
    assert hasattr(Algorithm, "_create_local_replay_buffer_if_necessary")


def test_updates_follow_rllibs_reckoning_of_the_training_intensity() -> None:
    config = DQNConfig().env_runners(num_envs_per_env_runner=8, rollout_fragment_length=8)
    config.training(train_batch_size_per_learner=16)
    assert rllib_private.replay_weights(config) == (1, 1)
    assert rllib_private.replay_weights(config.training(training_intensity=2.0)) == (1, 8)
    assert rllib_private.replay_weights(config.training(training_intensity=0.125)) == (2, 1)
