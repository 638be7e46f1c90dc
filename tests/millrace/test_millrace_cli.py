"""The command line: help, commands to be pasted, results in words."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from millrace.cli import invocation, pasted
from millrace.report import ALL, verdict

COMMANDS = [
    *("demo", "replay", "train", "consume", "forward", "migrate", "report", "query", "check", "config"),
    "check-feature",
    *("local up", "local status", "local down", "topics apply", "topics diff", "dlq list", "dlq show", "dlq replay"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does_and_shows_an_example(millrace: Any, command: str) -> None:
    result = millrace(*command.split(), "--help")
    assert result.code == 0
    text = " ".join(result.out.split())
    assert f"Example: millrace {command}" in text
    assert "--config" in text
    assert "--set" in text


def test_help_lists_the_commands(millrace: Any) -> None:
    result = millrace("--help")
    assert result.code == 0
    for command in dict.fromkeys(command.split()[0] for command in COMMANDS):
        assert f"\n  {command} " in result.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["demo", "--sett", "a.b=c"], "No such option: --sett"),
        (["query"], "Missing argument 'sql'"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(millrace: Any, arguments: list[str], words: str) -> None:
    result = millrace(*arguments)
    assert result.code == 2
    assert words in result.err
    assert "Traceback" not in result.err


def test_debug_shows_the_traceback_wherever_it_stands(workdir: Path) -> None:
    for arguments in (["--debug", "config"], ["config", "--debug"]):
        done = subprocess.run(
            [sys.executable, "-m", "millrace.cli", *arguments, "--set", "a.b=1"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert "SettingsError: unknown setting a" in done.stderr


def row(policy: str, value: float, symbol: str = ALL) -> dict[str, Any]:
    return {"symbol": symbol, "policy": policy, "return": value}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [row("agent", 0.1), row("buy_and_hold", 0.05), row("flat", 0.0), row("random", -0.2)],
            "it beat buy-and-hold (+5.00%), flat (+0.00%) and random (-20.00%).",
        ),
        (
            [row("agent", -0.1), row("buy_and_hold", 0.05), row("random", -0.2)],
            "it beat random (-20.00%) and did NOT beat buy-and-hold (+5.00%).",
        ),
        ([row("agent", 0.0), row("flat", 0.0)], "it did NOT beat flat (+0.00%)."),
        ([row("agent", 1.0, "AAPL"), row("flat", 0.0)], "There is no result of the agent on the test split."),
        ([], "There is no result of the agent on the test split."),
    ],
)
def test_the_verdict_says_plainly_who_won(rows: list[dict[str, Any]], sentence: str) -> None:
    assert verdict(rows).endswith(sentence)


def executable(folder: Path, name: str = "millrace") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_command_to_paste_is_the_short_one_where_it_is_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = executable(tmp_path / "bin")
    monkeypatch.setattr(sys, "argv", [str(path)])
    monkeypatch.setenv("PATH", str(path.parent))
    assert invocation() == "millrace"


def test_the_command_to_paste_is_a_path_where_it_is_not(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(sys, "argv", [str(executable(workdir / ".venv" / "bin"))])
    assert invocation() == ".venv/bin/millrace"
    monkeypatch.setattr(sys, "argv", [str(executable(workdir.parent / "my tools"))])
    assert invocation() == shlex.quote(str(workdir.parent / "my tools" / "millrace"))
    monkeypatch.setattr(sys, "argv", [str(workdir / "millrace" / "cli.py")])
    assert invocation() == f"{sys.executable} -m millrace.cli"


def test_a_command_to_paste_finds_the_same_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/tools/millrace"])
    line = pasted(
        "check abc",
        config=Path("my settings.toml"),
        set_=["local.state_dir=a b", "train.seed=1", "clickhouse.password=hush", "clickhouse.user=me"],
    )
    assert shlex.split(line)[1:] == [
        *("check", "abc", "--config", "my settings.toml"),
        *("--set", "local.state_dir=a b", "--set", "clickhouse.user=me"),
    ]
