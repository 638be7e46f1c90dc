"""``millrace check-feature``: exit codes, one line a feature, a user's own module, bars from a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MODULE = """
import numpy as np
from env.declaration import feature

@feature(lookback=1)
def gap(bars):
    return np.log(bars.open / np.append(bars.close[:1], bars.close[:-1]))

@feature(lookback=0)
def tomorrow(bars):
    return np.append(bars.close[1:], bars.close[-1]) / bars.close - 1
"""


@pytest.fixture(autouse=True)
def module(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the working directory, forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (workdir / "my_features.py").write_text(MODULE, encoding="utf-8")
    yield "my_features"
    sys.modules.pop("my_features", None)


def test_sound_features_pass_with_a_line_each(millrace: Any) -> None:
    result = millrace("check-feature", "rsi(14)", "my_features:gap", "5m:my_features:gap")
    assert result.code == 0, result
    lines = result.out.splitlines()
    assert [line.split("'")[1] for line in lines] == ["rsi(14)", "my_features:gap", "5m:my_features:gap"]
    assert all("no look-ahead" in line for line in lines)


def test_a_look_ahead_is_told_in_one_line_with_row_and_values(millrace: Any) -> None:
    result = millrace("check-feature", "log_close", "my_features:tomorrow")
    assert result.code == 1
    first, second = result.out.splitlines()
    assert "feature 'log_close': no look-ahead" in first
    assert second.startswith("feature 'my_features:tomorrow' of 'RANDOM' looks ahead: row ")
    assert " is " in second
    assert ", but " in second
    assert result.err == ""


def test_without_a_name_the_features_of_the_settings_are_checked(millrace: Any, workdir: Path) -> None:
    (workdir / "millrace.toml").write_text('[env]\nfeatures = ["log_close", "my_features:tomorrow"]\n')
    result = millrace("check-feature", "--json", "--trials", "10")
    assert result.code == 1
    told = json.loads(result.out)
    assert told["features"] == ["log_close", "my_features:tomorrow"]
    assert told["ok"] is False
    assert [problem["kind"] for problem in told["problems"]] == ["look-ahead"]


def test_bars_of_a_file_are_checked_on(millrace: Any, workdir: Path) -> None:
    bars = [f"2024-01-{day:02},10,{11 + day},9,{10 + day % 3},5,1e-4" for day in range(1, 29)]
    rows = [f"{symbol},{bar}" for symbol in "AB" for bar in bars]
    (workdir / "p.csv").write_text("\n".join(["Ticker,Date,Open,High,Low,Close,Volume,Funding Rate", *rows]))
    names = ("zscore(5)", "my_features:tomorrow")
    result = millrace("check-feature", *names, "--file", "p.csv", "--seed", "3", "--set", "data.adjusted=false")
    assert result.code == 1
    assert "(56 bars, " in result.out
    assert "of 'A' looks ahead" in result.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rsj(14)"], "unknown feature 'rsj'; did you mean 'rsi'?"),
        (["my_features:gapp"], "expected a function 'gapp' in module 'my_features'"),
        (["log_close", "--file", "none.csv"], "none.csv: expected a CSV file, found nothing there"),
        (["log_close", "log_close"], "features: expected one or more different ones"),
    ],
)
def test_what_cannot_be_checked_is_one_clear_line(millrace: Any, arguments: list[str], words: str) -> None:
    result = millrace("check-feature", *arguments)
    assert result.code == 2
    assert words in result.err
    assert result.err.count("\n") == 1
