"""Bad input through the real command line: one clear line, no traceback, a non-zero exit, nothing started for it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from local.store import StoreAddress, start_store, stop_store
from millrace import TradingEnv
from schemas.errors import ActionError

HEADER = "Ticker,Date,Open,High,Low,Close,Volume\n"
GOOD = ["A,2020-01-01,10,11,9,10,100", "A,2020-01-02,10,11,9,10,100", "A,2020-01-03,10,11,9,10,100"]


def one_line(result: Any, code: int, *words: str) -> None:
    """The user reads one line that has these words, and nothing else on standard error."""
    assert result.code == code, result
    assert result.err.startswith("millrace: "), result.err
    assert result.err.count("\n") == 1, result.err
    for word in words:
        assert re.search(word, result.err), (word, result.err)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreAddress]:
    state = tmp_path_factory.mktemp("server")
    yield start_store(state)
    stop_store(state)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, ["feed file prices.csv: expected a CSV file, found nothing there; check the path"]),
        ("", ["feed file prices.csv: expected a header and rows, got an empty file"]),
        (HEADER, ["feed file prices.csv: expected rows below the header, got none"]),
        ("Ticker,Date,Open,High,Low\nA,2020-01-01,1,1,1\n", ["feed file prices.csv", "Close"]),
        (HEADER + "\n".join([*GOOD, "A,2020-01-04,NaN,11,9,10,100"]), ["prices.csv", "5", "Open|open", "NaN|nan"]),
        (HEADER + "\n".join([*GOOD, "A,2020-01-04,10,8,9,10,100"]), ["prices.csv", "5", "high|High", "low|Low"]),
        (HEADER + "\n".join([*GOOD, "A,2020-01-03,10,11,9,10,100"]), ["prices.csv", "5", "2020-01-03"]),
        (HEADER + "\n".join([*GOOD, "A,2020-01-02,10,11,9,10,100"]), ["prices.csv", "5", "2020-01-02"]),
    ],
    ids=["missing", "empty", "no-rows", "column", "nan", "high-below-low", "duplicate", "falling"],
)
def test_a_bad_feed_is_named_before_anything_starts(
    millrace: Any, workdir: Path, rows: str | None, words: list[str]
) -> None:
    if rows is not None:
        (workdir / "prices.csv").write_text(rows)
    began = time.monotonic()
    result = millrace("demo", "--set", "feed.file=prices.csv", "--set", "data.adjusted=false")
    one_line(result, 2, *words)
    assert time.monotonic() - began < 3.0
    assert not (workdir / ".millrace").exists()


def test_an_unknown_symbol_is_named_with_those_that_there_are(millrace: Any, workdir: Path) -> None:
    result = millrace("demo", "--set", 'data.symbols=["APPL"]')
    one_line(result, 2, "APPL", "AAPL")
    assert not (workdir / ".millrace").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("algorithm.name=DQM", ["algorithm.name 'DQM'", "expected one of", "did you mean 'DQN'"]),
        ("algorithm.training.lrr=1", ["algorithm.training.lrr", "did you mean 'lr'"]),
        ("algorithm.trainin.lr=1", ["algorithm.trainin", "did you mean 'training'"]),
        ("train.iteration=1", ["train.iteration", "did you mean train.iterations"]),
    ],
)
def test_a_misspelt_setting_is_named_before_anything_starts(
    millrace: Any, workdir: Path, override: str, words: list[str]
) -> None:
    one_line(millrace("demo", "--set", override), 2, *words)
    assert not (workdir / ".millrace").exists()


def test_a_window_longer_than_the_data_is_named_and_the_bars_stay(millrace: Any) -> None:
    result = millrace("demo", "--set", "env.window=100000")
    one_line(
        result, 2, "train window", "more than 100001 bars", "env.window", "shorten env.window or give more history"
    )
    assert "starting Ray" not in result.out
    assert "published 12154 bars" in result.out
    again = millrace("demo", "--set", "env.window=100000")
    assert "all 12154 bars are on millrace.bars.v1 already" in again.out


def test_a_busy_port_is_named(millrace: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for command in ("demo", "local up"):
            result = millrace(*command.split(), "--set", f"local.store_port={port}")
            one_line(result, 3, f"port {port}", "in use", "choose another port")


@pytest.mark.parametrize("command", ["demo", "local up", "query SELECT", "check", "local status", "local down"])
def test_a_state_directory_that_cannot_be_one_is_named(millrace: Any, workdir: Path, command: str) -> None:
    (workdir / "file").write_text("mine")
    result = millrace(*command.split(), "--set", "local.state_dir=file/state")
    assert (workdir / "file").read_text() == "mine"
    if command in ("local status", "local down"):
        assert result.code == 0, result.err  # nothing runs there, and that is what they say
    else:
        one_line(result, 3, "state directory .*file/state", "expected", "local.state_dir")


@pytest.mark.parametrize("command", ["query SELECT", "check", "check latest"])
def test_without_a_store_it_says_how_to_get_one(millrace: Any, workdir: Path, command: str) -> None:
    one_line(
        millrace(*command.split()), 3, "expected a store in it, there is none", "millrace demo", "millrace local up"
    )
    assert not (workdir / ".millrace").exists()


@pytest.mark.parametrize("command", ["query SELECT", "check", "demo", "local up"])
def test_a_server_that_does_not_answer_is_named_with_its_address(millrace: Any, free_port: int, command: str) -> None:
    result = millrace(*command.split(), "--set", f"clickhouse.url=http://127.0.0.1:{free_port}")
    one_line(result, 3, f"ClickHouse at http://127.0.0.1:{free_port}: expected an answer", "check that it runs")
    assert "starting Ray" not in result.out


@pytest.mark.parametrize("command", ["query SELECT", "check", "demo", "local up"])
def test_a_wrong_password_is_named_and_never_shown(
    millrace: Any, monkeypatch: pytest.MonkeyPatch, store: StoreAddress, command: str
) -> None:
    monkeypatch.setenv("MILLRACE__CLICKHOUSE__PASSWORD", "hush-hush")
    result = millrace(*command.split(), "--set", f"clickhouse.url={store.url}")
    one_line(result, 3, f"ClickHouse at http://127.0.0.1:{store.port}", "user or password")
    assert "hush-hush" not in result.out + result.err
    assert "starting Ray" not in result.out


@pytest.mark.parametrize("url", ["127.0.0.1:8123", "ftp://there", "http://"])
def test_an_address_in_another_form_is_named(millrace: Any, url: str) -> None:
    one_line(millrace("query", "SELECT 1", "--set", f"clickhouse.url={url}"), 2, "clickhouse.url", "http://HOST:PORT")


def test_wrong_sql_and_unknown_runs_are_one_line(millrace: Any) -> None:
    assert millrace("local", "up").code == 0
    try:
        one_line(millrace("query", "SELEC 1"), 3, "SELEC|Syntax")
        one_line(millrace("query", "SELECT x FROM runs"), 3, "x")
        one_line(millrace("query", "DROP TABLE runs"), 3, "readonly|read")
        one_line(millrace("check"), 2, "run 'latest'", "there is none yet", "millrace demo")
        one_line(millrace("check", "0123"), 2, "run '0123'", "found none", "millrace query")
        answer = millrace("query", "SELECT count() AS runs FROM runs", "--json")
        assert (answer.code, answer.out.split()) == (0, ["[", "{", '"runs":', "0", "}", "]"])
        status = millrace("local", "status")
        assert status.code == 0
        assert "consumer         pid " in status.out
        assert "0 records in outboxes, 0 on the log" in status.out
    finally:
        assert millrace("local", "down").code == 0
    assert "consumer         down" in millrace("local", "status").out


def test_an_action_outside_the_space_is_named() -> None:
    close = np.linspace(10, 20, 60)
    times = pd.date_range("2020-01-01", periods=60, freq="D")
    bars = pd.DataFrame(
        {"Open": close, "High": close + 1, "Low": close - 1, "Close": close, "Volume": 1.0}, index=times
    )
    env = TradingEnv(bars, {"window": 5})
    env.reset(seed=1)
    with pytest.raises(ActionError, match="expected an action 0..2, got 7; use the action space"):
        env.step(7)


def test_a_real_process_prints_one_line_and_no_traceback(workdir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "millrace.cli", "demo", "--set", "feed.file=none.csv"],
        cwd=workdir,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "none.csv" in done.stderr
