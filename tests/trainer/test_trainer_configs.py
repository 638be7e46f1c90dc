"""Algorithms by name: what each cannot do is said first, and each TOML of examples/configs trains."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from env.settings import EnvSettings
from millrace.settings import load_settings
from schemas.errors import SettingsError
from trainer.algorithm import known_algorithms, new_config
from trainer.algorithm_checks import OFFLINE, check_algorithm
from trainer.algorithm_defaults import default_tables
from trainer.settings import AlgorithmSettings, DataSettings

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
FILES = sorted(path.stem for path in CONFIGS.glob("*.toml"))
ONLINE = [name for name in FILES if name.upper() not in OFFLINE]
# These show a variant; the others show the defaults.
VARIANTS = ("models", "sac_weights")


def algorithm_of(file: str) -> AlgorithmSettings:
    return load_settings(CONFIGS / f"{file}.toml").algorithm


def test_each_algorithm_that_learns_here_has_a_config() -> None:
    assert {name.lower() for name in known_algorithms()} - {"cql"} == set(FILES) - set(VARIANTS)


@pytest.mark.parametrize("file", [name for name in FILES if name not in VARIANTS])
def test_a_config_shows_the_defaults(file: str) -> None:
    algorithm = algorithm_of(file)
    shown, default = new_config(algorithm), new_config(AlgorithmSettings(name=algorithm.name))
    for method, arguments in algorithm.tables.items():
        for name in set(arguments) - {"input_"}:
            assert getattr(shown, name) == getattr(default, name), f"{file}.toml: algorithm.{method}.{name}"


@pytest.mark.parametrize("file", FILES)
def test_a_config_says_how_to_use_it(file: str) -> None:
    text = (CONFIGS / f"{file}.toml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"--config examples/configs/{file}.toml" in text


def test_every_default_is_an_argument_of_the_algorithms_config() -> None:
    # new_config() refuses an unknown one; this also sees that no table is left without its algorithm.
    for name in known_algorithms():
        assert len(default_tables(name)) == 2
        new_config(AlgorithmSettings(name=name))


def test_a2c_is_ppo_with_one_unclipped_step_per_batch() -> None:
    config = new_config(AlgorithmSettings(name="A2C"))
    assert (config.num_epochs, config.minibatch_size, config.use_kl_loss, config.kl_coeff) == (1, None, False, 0.0)
    assert (config.clip_param, config.vf_clip_param, config.lambda_) == (1e9, math.inf, 1.0)


@pytest.mark.parametrize("name", ["APPO", "IMPALA", "SAC"])
def test_an_iteration_is_not_held_up_by_a_clock(name: str) -> None:
    assert new_config(AlgorithmSettings(name=name)).min_time_s_per_iteration is None


@pytest.mark.parametrize(
    ("name", "env", "words"),
    [
        (
            "DQN",
            {"actions": "weights"},
            ["(Box)", 'env.actions = "weights"', 'choose env.actions = "targets"', "'SAC'"],
        ),
        (
            "DQN",
            {"portfolio": True},
            ["(MultiDiscrete)", "env.portfolio = true", "choose env.portfolio = false", "'PPO'"],
        ),
        ("DQN", {"actions": "weights", "portfolio": True}, ['"targets" and env.portfolio = false']),
        ("SAC", {"portfolio": True}, ["(Discrete, Box)", "choose env.portfolio = false", "'PPO'"]),
        ("CQL", {}, ["(Box)", 'choose env.actions = "weights"']),
    ],
)
def test_actions_that_an_algorithm_cannot_learn_are_refused_in_one_line(
    name: str, env: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        check_algorithm(AlgorithmSettings(name=name), EnvSettings(**env), DataSettings())
    message = str(caught.value)
    assert message.startswith(f"algorithm.name '{name}': expected actions of ")
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["PPO", "A2C", "APPO", "IMPALA"])
@pytest.mark.parametrize(
    "env", [{}, {"actions": "weights"}, {"portfolio": True}, {"actions": "weights", "portfolio": True}]
)
def test_policy_gradients_take_all_actions(name: str, env: dict[str, Any]) -> None:
    check_algorithm(AlgorithmSettings(name=name), EnvSettings(**env), DataSettings())


def test_imitation_needs_a_recording() -> None:
    with pytest.raises(SettingsError, match="algorithm.offline_data.input_: expected the folder of a recording"):
        check_algorithm(AlgorithmSettings(name="BC"), EnvSettings(), DataSettings())
    endless: dict[str, Any] = {"reporting": {"min_sample_timesteps_per_iteration": 500}}
    with pytest.raises(SettingsError, match="expected 0, got 500; BC samples no steps"):
        check_algorithm(AlgorithmSettings(name="BC", **endless), EnvSettings(), DataSettings())


@pytest.mark.slow
@pytest.mark.parametrize("file", ONLINE)
def test_each_config_trains_and_trades_the_test(file: str, bench: Any, ray_session: None) -> None:
    bench.send_walks("AAA", "BBB")
    settings = load_settings(CONFIGS / f"{file}.toml")
    tables = {method: dict(arguments) for method, arguments in settings.algorithm.tables.items()}
    # As it stands but for the size of this machine.
    tables.setdefault("env_runners", {}).update(num_env_runners=1 if file in ("appo", "impala") else 0)
    tables.setdefault("reporting", {}).update(min_sample_timesteps_per_iteration=512)
    if file in ("dqn", "sac", "sac_weights"):
        tables["training"] |= {"num_steps_sampled_before_learning_starts": 256}
    if file in ("ppo", "models"):
        tables.setdefault("training", {}).update(train_batch_size_per_learner=512, minibatch_size=128)
    env = settings.env.model_copy(update={"window": 8, "episode_length": 64})
    job = bench.job("PPO", train={"iterations": 2})
    algorithm = AlgorithmSettings(name=settings.algorithm.name, **tables)
    run = bench.train(type(job)(**{**vars(job), "algorithm": algorithm, "env": env}))
    assert run.result is not None
    assert (run.result.status, run.result.iterations) == ("completed", 2)
    assert len(run.agent("train")) > 0
    assert {episode.symbol for episode in run.agent("test")} == {"AAA", "BBB"}
    closed = {
        event.publisher_id for event in run.events if event.event_type == "publisher.report" and event.data.closing
    }
    assert closed == {event.publisher_id for event in run.events}


def test_the_files_are_toml_with_known_settings_alone() -> None:
    for file in FILES:
        assert tomllib.loads((CONFIGS / f"{file}.toml").read_text(encoding="utf-8"))
        load_settings(CONFIGS / f"{file}.toml")
