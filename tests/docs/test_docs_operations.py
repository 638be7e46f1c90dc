"""docs/operations.md stays true: its commands parse, its settings exist, its retention is the declared one."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main

from consumers.consumer import GROUP
from millrace.cli import app
from millrace.settings import load_settings
from schemas.topics import EVENT_TOPICS, TOPICS

TEXT = (Path(__file__).resolve().parent.parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Those in blocks and those in sentences, from the word after ``millrace`` on."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    lines += re.findall(r"`(millrace [^`]+)`", TEXT)
    found = (re.search(r"(?:^|consumer )millrace (.+)", line) for line in lines)
    return [shlex.split(match[1], comments=True) for match in found if match]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_each_command_and_its_options_exist(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    context = command.make_context("millrace", words, resilient_parsing=True)
    rest = list(words)
    while rest and hasattr(command, "get_command"):
        command = command.get_command(context, rest.pop(0))
        assert command is not None, f"{words}: no such command"
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known
    load_settings(None, [value for option, value in pairwise(rest) if option == "--set"])


@pytest.mark.parametrize("text", blocks("toml"))
def test_the_toml_is_accepted(text: str, tmp_path: Path) -> None:
    file = tmp_path / "millrace.toml"
    file.write_text(text)
    settings = load_settings(file)
    assert settings.log.security.protocol == "SASL_SSL"


def test_names_and_numbers_are_those_of_the_code() -> None:
    assert f"`{GROUP}`" in TEXT
    days = {short: topic.retention_ms // 86_400_000 for short, topic in TOPICS.items()}
    assert days["runs"] == days["dead-letters"] == 90
    assert {days[short] for short in EVENT_TOPICS} == {30, 90}
    assert TOPICS["bars"].retention_ms == -1
    assert {TOPICS[short].partitions for short in EVENT_TOPICS} == {1, 4}
    for section, setting in re.findall(r"`(local|log|clickhouse|outbox)\.(\w+)`", TEXT):
        model: Any = load_settings().outbox_settings if section == "outbox" else getattr(load_settings(), section)
        assert setting in type(model).model_fields, f"{section}.{setting}"
