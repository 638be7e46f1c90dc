"""docs/training.md stays true: its commands parse, its settings exist, its files and rules are those of the code."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from millrace.cli import app
from millrace.settings import load_settings
from trainer import fast_path, lean_updates
from trainer.algorithm import known_algorithms, new_config
from trainer.algorithm_checks import OFFLINE
from trainer.models import KINDS
from trainer.settings import AlgorithmSettings

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
CONFIGS = {path.name for path in (ROOT / "examples" / "configs").glob("*.toml")}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    found = (re.search(r"^millrace (.+)", line) for line in lines)
    return [shlex.split(match[1], comments=True) for match in found if match]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_each_command_and_its_options_exist(words: list[str]) -> None:
    command: Any = typer.main.get_command(app).get_command(None, words[0])  # type: ignore[attr-defined]
    assert command is not None, f"{words}: no such command"
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    files = [Path(value) for option, value in pairwise(words) if option == "--config"]
    sets = [value for option, value in pairwise(words) if option == "--set"]
    load_settings(ROOT / files[0] if files else None, sets)


@pytest.mark.parametrize("text", blocks("toml"))
def test_the_toml_is_accepted_by_rllib(text: str, tmp_path: Path) -> None:
    file = tmp_path / "millrace.toml"
    # A reader has a module of this name; here RLlib's own stands for it.
    own = "class:ray.rllib.core.rl_module.torch.torch_rl_module.TorchRLModule"
    file.write_text(text.replace("class:my_models.MyModule", own))
    for name in ("PPO", "DQN"):
        settings = load_settings(file)
        new_config(AlgorithmSettings(name=name, **settings.algorithm.tables))


def test_the_files_are_there_and_all_are_told_of() -> None:
    assert set(re.findall(r"`(\w+\.toml)`", TEXT)) == CONFIGS


def test_algorithms_and_models_are_those_that_there_are() -> None:
    table = TEXT.partition("## Which algorithm")[2].partition("\n\nActions:")[0]
    first_cells = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([A-Z0-9]+)`", first_cells)) == set(known_algorithms())
    models = TEXT.partition("## Models")[2].partition("```toml")[0]
    assert set(re.findall(r"^\| `(\w+)`", models, re.MULTILINE)) == set(KINDS)


def test_settings_that_are_named_exist() -> None:
    for section, name in re.findall(r"`(train|data|env)\.(\w+)", TEXT):
        assert name in type(getattr(load_settings(), section)).model_fields, f"{section}.{name}"
    for method, name in re.findall(r"`algorithm\.(\w+)\.(\w+)`", TEXT):
        assert hasattr(AlgorithmConfig(), name.rstrip("_")) or hasattr(AlgorithmConfig(), name), f"{method}.{name}"


def test_what_falls_back_is_what_the_rules_say() -> None:
    section = TEXT.partition("## What is faster")[2].partition("\n## ")[0]
    for name in (*lean_updates._LEARNER_SETTINGS, "auto", "off"):
        assert name in section
    # Every setting that a rule names is in the table, under its own name.
    code = "".join(Path(module.__file__ or "").read_text(encoding="utf-8") for module in (fast_path, lean_updates))
    named = set(re.findall(r'"(?:env_runners|learners|offline_data|rl_module|training|environment)\.([a-z_.]+) ', code))
    for name in named - {"observation_space", "action_space", "num_learners"}:
        assert name.rpartition(".")[2] in section, name


def test_the_steps_of_an_iteration_are_the_defaults() -> None:
    [told] = re.findall(r"about a second on two cores \((.*?)\), of as many", TEXT)
    steps: dict[str, int] = {}
    names: list[str] = []
    for word in re.findall(r"[A-Z][A-Z\d]+|\d+,\d{3}", told):
        if word[0].isdigit():
            steps |= dict.fromkeys(names, int(word.replace(",", "")))
            names = []
        else:
            names.append(word)
    assert set(steps) == set(known_algorithms()) - {*OFFLINE, "CQL"}
    for name, count in steps.items():
        assert new_config(AlgorithmSettings(name=name)).min_sample_timesteps_per_iteration == count, name
