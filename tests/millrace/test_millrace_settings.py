"""Settings: file < environment < --set, names that are checked, secrets that are masked."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from millrace.connections import log_address
from millrace.settings import load_settings
from schemas.errors import SettingsError


def toml(folder: Path, text: str, name: str = "millrace.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_each_place_wins_over_the_one_before_it(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml(workdir, "[train]\niterations = 1\nseed = 1\nname = 'file'\n[env]\nwindow = 9")
    monkeypatch.setenv("MILLRACE__TRAIN__SEED", "2")
    monkeypatch.setenv("MILLRACE__TRAIN__NAME", "environment")
    settings = load_settings(None, ["train.name=set"])
    assert (settings.train.iterations, settings.train.seed, settings.train.name) == (1, 2, "set")
    assert settings.env.window == 9
    assert settings.env.reward_scale > 1.0  # ours for training, where nobody says otherwise


def test_a_named_file_takes_the_place_of_the_default_one(workdir: Path) -> None:
    toml(workdir, "[train]\nseed = 1")
    other = toml(workdir, "[train]\niterations = 3", "other.toml")
    settings = load_settings(other)
    assert (settings.train.seed, settings.train.iterations) == (None, 3)


def test_tables_of_an_algorithm_merge_from_all_three_places(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml(
        workdir,
        """
        [algorithm]
        name = "PPO"
        [algorithm.training]
        lr = 1e-3
        gamma = 0.5
        [algorithm.rl_module.model_config]
        fcnet_hiddens = [8]
        fcnet_activation = "tanh"
        """,
    )
    monkeypatch.setenv("MILLRACE__ALGORITHM__TRAINING__GAMMA", "0.75")
    monkeypatch.setenv("MILLRACE__ALGORITHM__ENV_RUNNERS__NUM_ENV_RUNNERS", "0")
    settings = load_settings(None, ["algorithm.rl_module.model_config.fcnet_hiddens=[16, 16]"])
    assert settings.algorithm.name == "PPO"
    assert settings.algorithm.tables == {
        "training": {"lr": 1e-3, "gamma": 0.75},
        "env_runners": {"num_env_runners": 0},
        "rl_module": {"model_config": {"fcnet_hiddens": [16, 16], "fcnet_activation": "tanh"}},
    }


def test_a_setting_that_is_a_text_takes_what_looks_like_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE__CLICKHOUSE__PASSWORD", "012345")
    settings = load_settings(None, ["train.name=7", "train.seed=7", 'train.notes="8"', "algorithm.name=PPO"])
    assert settings.clickhouse.password.get_secret_value() == "012345"
    assert (settings.train.name, settings.train.seed, settings.train.notes) == ("7", 7, "8")
    assert settings.algorithm.name == "PPO"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("train.iteratoins", "3", "unknown setting train.iteratoins; did you mean train.iterations?"),
        ("trian.seed", "3", "unknown setting trian; did you mean train?"),
        ("outbox.max_mbs", "3", "unknown setting outbox.max_mbs; did you mean outbox.max_mb?"),
        ("feed.zzz", "3", "unknown setting feed.zzz; known here: file, on_bad_row, speed"),
    ],
)
def test_a_misspelt_name_is_named_with_the_near_one_wherever_it_stands(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, path: str, value: str, words: str
) -> None:
    section, name = path.split(".")
    with pytest.raises(SettingsError, match=words.replace("?", r"\?")):
        load_settings(None, [f"{path}={value}"])
    with pytest.raises(SettingsError, match=words.replace("?", r"\?")):
        load_settings(toml(workdir, f"[{section}]\n{name} = {value}", "other.toml"))
    monkeypatch.setenv(f"MILLRACE__{section}__{name}".upper(), value)
    with pytest.raises(SettingsError, match=words.replace("?", r"\?")):
        load_settings()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.iterations=0", "setting train.iterations: .*greater than or equal to 1, got 0"),
        ("train.iterations=many", "setting train.iterations: .*integer.*got 'many'"),
        ("feed.on_bad_row=ignore", "setting feed.on_bad_row: .*'error' or 'skip', got 'ignore'"),
        ("data.symbols=AAPL", r'setting data.symbols: .*got \'AAPL\'; write a list as \["A", "B"\]'),
        ("train=5", "setting train: .*got 5"),
        ("train.seed.x=5", "setting train.seed: .*integer, got {'x': 5}"),
        ("iterations", "--set 'iterations': expected section.name=value, such as train.seed=7"),
        ("clickhouse.database=a-b", "setting clickhouse.database: .*got 'a-b'"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(override: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load_settings(None, [override])


def test_a_value_where_a_table_belongs_is_named(workdir: Path) -> None:
    toml(workdir, "train = 5")
    with pytest.raises(SettingsError, match="setting 'train.seed': 'train' is a value already, expected a table"):
        load_settings(None, ["train.seed=1"])


def test_a_missing_or_broken_file_is_named(workdir: Path) -> None:
    with pytest.raises(SettingsError, match="settings file none.toml: expected a TOML file, there is none"):
        load_settings(Path("none.toml"))
    broken = toml(workdir, "[train\n", "broken.toml")
    with pytest.raises(SettingsError, match="settings file .*broken.toml: expected TOML: .*line 1"):
        load_settings(broken)


def test_secrets_are_masked_in_every_output(millrace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE__CLICKHOUSE__PASSWORD", "hush")
    for arguments in (("config",), ("config", "--json")):
        result = millrace(*arguments)
        assert result.code == 0
        assert "hush" not in result.out + result.err
        assert "***" in result.out
    assert "hush" not in json.dumps(load_settings().masked())
    assert "hush" not in repr(load_settings())


def test_a_masked_password_is_not_taken_for_one() -> None:
    with pytest.raises(SettingsError, match="clickhouse.password: .*asterisks.*MILLRACE__CLICKHOUSE__PASSWORD"):
        load_settings(None, ["clickhouse.password=**********"])


def test_what_config_prints_gives_the_same_settings(millrace: Any, workdir: Path) -> None:
    sets = [
        "train.seed=7",
        'data.symbols=["AAPL", "IBM"]',
        "algorithm.name=PPO",
        "algorithm.training.lr=[[0, 1e-3], [1000, 1e-4]]",
        'algorithm.training.replay_buffer_config={type = "EpisodeReplayBuffer"}',
        "feed.speed=100",
        "outbox.max_mb=5",
    ]
    given = [part for each in sets for part in ("--set", each)]
    first = millrace("config", *given)
    (workdir / "x.toml").write_text(first.out)
    again = millrace("config", "--config", "x.toml")
    assert (again.code, again.out) == (0, first.out)
    assert load_settings(Path("x.toml")) == load_settings(None, sets)
    shown = millrace("config", "--json", *given)
    as_json = json.loads(shown.out)
    assert as_json["train"].pop("num_cpus") is None
    assert tomllib.loads(first.out)["algorithm"] == as_json["algorithm"]


def test_directories_are_absolute_wherever_a_process_runs(workdir: Path) -> None:
    settings = load_settings(None, ["local.state_dir=here"])
    assert settings.state_dir == workdir / "here"
    assert log_address(settings) == f"sqlite:{workdir / 'here' / 'log'}"
    assert settings.outbox_settings.directory == workdir / "here" / "outbox"
    assert load_settings(None, ["outbox.directory=there"]).outbox_settings.directory == workdir / "there"
