"""The demo from end to end, as a user runs it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def next_commands(output: str) -> list[str]:
    after = output.partition("\nNext:\n")[2].splitlines()
    return [line.strip() for line in after if line.startswith("  ")]


def test_a_demo_proves_itself_and_a_second_one_adds_a_run(run_demo: Any) -> None:
    first = run_demo("train.iterations=2")
    assert first.finish() == 0, first.output
    assert "published 12154 bars of 5 symbols" in first.output
    assert re.search(r"iteration 2/2: 4,\d{3} env steps, [\d,]+ env steps/s, .*, consumer lag \d+ rec", first.output)
    assert "The test split, traded once by each policy under the same costs:" in first.output
    assert "On bars that it had never seen the agent returned" in first.output
    assert "The integrity table holds: all that was published is stored, once." in first.output
    assert "publishers 4 (4 closed, 0 open), dead letters 0 (0 resolved)" in first.output
    assert "DIFFERS" not in first.output
    assert "Traceback" not in first.output
    assert first.left_running() == []

    commands = next_commands(first.output)
    assert len(commands) == 3
    for command in commands:
        done = first.command(command)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stderr == ""
        assert "The integrity table holds" in done.stdout or re.search(r"^\d+ rows?$", done.stdout, re.MULTILINE)

    second = run_demo("train.iterations=1")
    assert second.finish() == 0, second.output
    assert "all 12154 bars are on millrace.bars.v1 already, nothing was published" in second.output
    tool = commands[0].partition(" check ")[0]
    runs = second.command(f'{tool} query "SELECT run_id, status, iterations FROM runs ORDER BY started_at" --json')
    assert json.loads(runs.stdout) == [
        {"run_id": first.run_id, "status": "completed", "iterations": 2},
        {"run_id": second.run_id, "status": "completed", "iterations": 1},
    ]
    windows = second.command(f'{tool} query "SELECT uniqExact(window_id) AS n FROM windows" --json')
    assert json.loads(windows.stdout) == [{"n": 2}], "the same bars must be the same windows"
