"""Settings to ``AlgorithmConfig``: everything of RLlib's passes, everything else is refused in one line."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from threadpoolctl import threadpool_info

from schemas.errors import SettingsError
from trainer.algorithm import build_config, known_algorithms, new_config
from trainer.callbacks import EventCallbacks
from trainer.settings import AlgorithmSettings, EnvConfig
from trainer.threads import computing_on


def settings(name: str = "DQN", **tables: Any) -> AlgorithmSettings:
    return AlgorithmSettings(name=name, **tables)


@pytest.mark.parametrize("name", known_algorithms())
def test_every_algorithm_that_rllib_exports_is_taken_by_its_name(name: str) -> None:
    config = new_config(settings(name))
    assert config.algo_class is not None
    assert config.algo_class.__name__ == {"A2C": "PPO"}.get(name, name)


def test_the_exported_algorithms_are_those_that_we_know_of() -> None:
    assert known_algorithms() == ["A2C", "APPO", "BC", "CQL", "DQN", "IMPALA", "MARWIL", "PPO", "SAC"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (settings("DQM"), ["algorithm.name 'DQM'", "expected one of A2C, APPO", "did you mean 'DQN'?"]),
        (settings("ppo"), ["did you mean 'PPO'?"]),
        (settings(trainin={"lr": 1}), ["[algorithm.trainin]", "a method of DQNConfig", "did you mean 'training'?"]),
        (settings(validate={}), ["[algorithm.validate]", "expected a method of DQNConfig"]),
        (settings(_is_frozen={}), ["[algorithm._is_frozen]", "expected a method"]),
        (settings(from_dict={}), ["[algorithm.from_dict]", "expected a method"]),
        (settings(training=3), ["algorithm.training: expected a table of arguments, got 3"]),
        (
            settings(training={"gama": 0.9}),
            ["algorithm.training.gama: DQNConfig.training() has no such argument", "did you mean 'gamma'?"],
        ),
        (settings("PPO", training={"clip_parm": 0.1}), ["did you mean 'clip_param'?"]),
        (
            settings(env_runners={"num_envs_per_runner": 2}),
            ["algorithm.env_runners.num_envs_per_runner", "'num_envs_per_env_runner'"],
        ),
        (
            settings(env_runners={"rollout_fragment_length": "x"}),
            ["[algorithm.env_runners] rollout_fragment_length = 'x': RLlib refuses it: ", "must be int >0 or 'auto'"],
        ),
        (settings(environment={"env": "CartPole-v1"}), ["algorithm.environment.env: set by the run itself; use [env]"]),
        (settings(debugging={"seed": 3}), ["algorithm.debugging.seed: set by the run itself; use train.seed"]),
        (
            settings(training={"learner_class": "class:no.such.Thing"}),
            ["algorithm.training.learner_class: expected class:package.module.Name", "no.such.Thing"],
        ),
        (settings(training={"learner_class": "class:collections.Nothing"}), ["class:collections.Nothing", "Nothing"]),
    ],
)
def test_what_rllib_does_not_know_is_refused_with_the_nearest_that_it_knows(
    wrong: AlgorithmSettings, words: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        new_config(wrong)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_arguments_of_every_level_of_the_config_classes_are_known() -> None:
    config = new_config(settings("APPO", training={"lr": 0.1, "clip_param": 0.3, "circular_buffer_num_batches": 2}))
    assert (config.lr, config.clip_param, config.circular_buffer_num_batches) == (0.1, 0.3, 2)


def test_a_class_is_named_by_a_string() -> None:
    name = "class:ray.rllib.core.learner.torch.torch_learner.TorchLearner"
    config = new_config(settings(training={"learner_class": name}))
    assert config.learner_class.__name__ == "TorchLearner"


def test_the_users_tables_win_over_the_defaults() -> None:
    assert new_config(settings(training={"lr": 0.25})).lr == 0.25
    assert new_config(settings(env_runners={"num_env_runners": 5})).num_env_runners == 5


def complete(algorithm: AlgorithmSettings, bench: Any) -> AlgorithmConfig:
    common: dict[str, Any] = {"window_store": "windows-x", "settings": {}, "scaler": {}, "seed": 7, "num_envs": 1}
    train = EnvConfig(split="train", **common)
    test = EnvConfig(split="test", branch="evaluation", **common)
    return build_config(algorithm, train, test, bench.settings(), 5)


@pytest.mark.parametrize("name", ["DQN", "PPO"])
def test_a_complete_config_trains_on_one_split_and_evaluates_on_the_other(name: str, bench: Any) -> None:
    config = complete(settings(name), bench)
    assert config.env_config["split"] == "train"
    assert config.seed == 7
    evaluation = config.get_evaluation_config_object()
    assert evaluation.env_config["split"] == "test"
    assert evaluation.explore is False
    assert (evaluation.num_envs_per_env_runner, config.evaluation_duration) == (1, 5)
    # Evaluation happens when the loop asks, not by itself.
    assert config.evaluation_interval > 10**9
    assert any(isinstance(item, partial) and item.func is EventCallbacks for item in config.callbacks_class)


def test_settings_that_contradict_each_other_are_refused_in_one_line(bench: Any) -> None:
    wrong = settings("PPO", training={"minibatch_size": 4_000, "train_batch_size_per_learner": 100})
    with pytest.raises(SettingsError, match="algorithm PPO: RLlib refuses its settings: .*minibatch_size") as caught:
        complete(wrong, bench)
    assert "\n" not in str(caught.value)


def threads() -> set[int]:
    """Of torch's pool and of those of all BLAS that there are."""
    blas = {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}
    assert blas, "numpy has a BLAS of its own"
    return {torch.get_num_threads(), *blas}


def test_a_run_computes_on_the_threads_of_the_setting_as_long_as_it_lasts(bench: Any) -> None:
    bench.send_walks("AAA")
    during: list[set[int]] = []
    with computing_on(1):
        bench.train(bench.job(train={"torch_threads": 2}), should_stop=lambda: bool(during.append(threads()) or 1))
        assert during
        assert all(one == {2} for one in during)
        assert threads() == {1}
