from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eventlog.log import Log
from eventlog.open_log import open_log

HEADER = "Ticker,Date,Open,High,Low,Close,Volume,Adj Close"
WriteFeed = Callable[..., Path]


@pytest.fixture
def write_feed(tmp_path: Path) -> WriteFeed:
    def write(*rows: str, header: str = HEADER, name: str = "feed.csv") -> Path:
        path = tmp_path / name
        path.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    directory = tmp_path / "log"
    directory.mkdir()
    with open_log(f"sqlite:{directory}") as opened:
        yield opened
