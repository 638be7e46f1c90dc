"""A feed: bars of one or more symbols, read from a file and checked row by row.

A bar that stands in the file at time t was made from t to t + interval and becomes known at its end, ``ts_close``. A
daily bar is dated by its day, so it runs from 00:00Z of that day to 00:00Z of the next; exchange calendars are not
known here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from producers.checks import Checker
from producers.long_csv import read_long_csv
from producers.rows import PRICES, BadRow, Floats, Ints, Rows
from schemas.errors import FeedError
from schemas.times import SECOND, interval_us

OnBadRow = Literal["error", "skip"]

_INTERVALS = {interval_us(name): name for name in ("1m", "5m", "15m", "30m", "1h", "4h", "1d", "1w")}


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """Bars of one symbol in order of time, n of them. The arrays are read-only.

    Attributes:
        symbol: name of the instrument.
        interval: length of each bar, such as ``1d``.
        adjusted: prices and volume are adjusted for splits and dividends.
        ts_open: (n,) int64, start of each bar, UTC microseconds.
        ts_close: (n,) int64, its end, when it becomes known; rising.
        open: (n,) float64, first price, above 0 like the other three, in the feed's currency.
        high: (n,) float64, highest price.
        low: (n,) float64, lowest price.
        close: (n,) float64, last price.
        volume: (n,) float64, units traded; NaN where the feed has none.
        funding_rate: (n,) float64, fraction of the notional that a long pays at the close, NaN where none is due; None
            where the feed has no such column.
    """

    symbol: str
    interval: str
    adjusted: bool
    ts_open: Ints
    ts_close: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    funding_rate: Floats | None = None

    def __post_init__(self) -> None:
        for column in (self.ts_open, self.ts_close, self.open, self.high, self.low, self.close, self.volume):
            column.flags.writeable = False
        if self.funding_rate is not None:
            self.funding_rate.flags.writeable = False

    def __len__(self) -> int:
        return len(self.ts_close)


@dataclass(frozen=True, slots=True, eq=False)
class Feed:
    """Bars of a file.

    Attributes:
        path: the file.
        source: its name and the start of its SHA-256.
        adjusted: prices and volume are adjusted for splits and dividends.
        bars: symbol to its bars, in order of the file.
        skipped: bad rows that were left out, in order of the file.
        cut_times: how many times of the file had a part below a microsecond, which was cut off.
    """

    path: Path
    source: str
    adjusted: bool
    bars: Mapping[str, Bars]
    skipped: tuple[BadRow, ...] = ()
    cut_times: int = 0

    def __len__(self) -> int:
        return sum(map(len, self.bars.values()))

    @property
    def skipped_by_reason(self) -> dict[str, int]:
        """Reason to number of rows that were left out for it."""
        return dict(Counter(bad.reason for bad in self.skipped))


def read_feed(
    path: Path | str,
    *,
    symbols: Sequence[str] | None = None,
    adjusted: bool = False,
    on_bad_row: OnBadRow = "error",
    interval: str | None = None,
) -> Feed:
    """Read a file of bars and check every row.

    Args:
        path: a CSV file of the long layout (``producers.long_csv``), plain or gzip-compressed.
        symbols: symbols to read; None reads all. For a file without a symbol's column: the one name of its symbol;
            None takes the file's name.
        adjusted: scale the four prices by Adj Close / Close and the volume by the inverse, so that splits and
            dividends are no jumps.
        on_bad_row: ``error`` refuses the file and names its first bad row; ``skip`` leaves bad rows out.
        interval: length of the bars, such as ``1h``; None infers it for each symbol from the smallest step between
            its times.

    Raises:
        FeedError: the file cannot be read (``read_long_csv``), has a bad row, has no good one, or its interval
            cannot be inferred.
        InputError: the interval is none.
    """
    path = Path(path)
    if interval is not None:
        interval_us(interval)
    if symbols is not None and not symbols:
        raise FeedError(f"feed file {path}: expected at least one symbol to read, got none")
    rows = read_long_csv(path, symbols=symbols, adjusted=adjusted)
    checker = Checker(path.name, rows)
    checker.check_values()
    places = {symbol: checker.check_order(at) for symbol, at in _by_symbol(rows)}
    _refuse(path, checker, on_bad_row)
    intervals = {symbol: interval or _infer_interval(path, symbol, rows.ts[at]) for symbol, at in places.items()}
    places = {symbol: checker.check_overlap(at, intervals[symbol]) for symbol, at in places.items()}
    _refuse(path, checker, on_bad_row)
    bars = {symbol: _bars(rows, at, symbol, intervals[symbol], adjusted) for symbol, at in places.items() if len(at)}
    if not bars or (symbols is not None and len(bars) < len(set(symbols))):
        empty = ", ".join(symbol for symbol in rows.symbols if symbol not in bars) or "any symbol"
        raise FeedError(
            f"feed file {path}: expected bars of {empty}, got {len(checker.bad)} bad rows and no good one; "
            f"the first: {_first(checker.bad)}"
        )
    return Feed(path, _source(path), adjusted, bars, tuple(sorted(checker.bad, key=_row)), rows.cut_times)


def _by_symbol(rows: Rows) -> Iterator[tuple[str, Ints]]:
    """Each symbol and the places of its rows, in the file's order (the sort is stable)."""
    order = np.argsort(rows.code, kind="stable")
    ends = np.searchsorted(rows.code[order], np.arange(len(rows.symbols)), side="right")
    return zip(rows.symbols, np.split(order, ends), strict=False)  # the last part, behind all ends, is empty


def _refuse(path: Path, checker: Checker, on_bad_row: OnBadRow) -> None:
    """Raise for the first bad row, unless bad rows are to be skipped."""
    if on_bad_row == "error" and checker.bad:
        reasons = Counter(bad.reason for bad in checker.bad)
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise FeedError(
            f"feed file {path}: {_first(checker.bad)}; bad rows in all: {len(checker.bad)} ({counts}); "
            "mend the file, or leave them out: feed.on_bad_row=skip"
        )


def _row(bad: BadRow) -> int:
    return bad.row


def _first(bad: Sequence[BadRow]) -> BadRow:
    return min(bad, key=_row)


def _infer_interval(path: Path, symbol: str, ts: Ints) -> str:
    """Name of the smallest step between the times. Without any bar there is nothing to name."""
    if not len(ts):
        return ""
    if len(ts) == 1:
        raise FeedError(
            f"feed file {path}: {symbol} has one bar, which does not tell its interval; give it: data.interval=1d"
        )
    step = int(np.diff(ts).min())
    name = _INTERVALS.get(step)
    if name is None:
        raise FeedError(
            f"feed file {path}: the interval of {symbol} cannot be inferred; expected a smallest step between its "
            f"times of {', '.join(_INTERVALS.values())}, got {step / SECOND:g} s; give it: data.interval=1d"
        )
    return name


def _bars(rows: Rows, at: Ints, symbol: str, interval: str, adjusted: bool) -> Bars:
    """The bars at these places. All four prices get one factor, which keeps their order exactly."""
    factor = rows.adj_close[at] / rows.prices["close"][at] if rows.adj_close is not None else np.ones(len(at))
    prices = {name: rows.prices[name][at] * factor for name in PRICES}
    ts_open = rows.ts[at]
    ts_close = ts_open + interval_us(interval)
    volume = rows.volume[at] / factor
    funding_rate = None if rows.funding_rate is None else rows.funding_rate[at]
    return Bars(symbol, interval, adjusted, ts_open, ts_close, **prices, volume=volume, funding_rate=funding_rate)


def _source(path: Path) -> str:
    with path.open("rb") as file:
        return f"{path.name} sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
