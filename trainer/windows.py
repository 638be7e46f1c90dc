"""Windows: bars read from the bars topic by exact offsets, cut to a stretch of time, identified by what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from env.bars import SymbolBars
from env.features import Recipe
from env.kernel import OBSERVATION_LIMIT
from env.market_data import MarketData
from env.scaler import Scaler
from env.settings import EnvSettings
from eventlog.log import Log, StoredRecord
from schemas.bars import BarsRecord, decode_bars
from schemas.errors import WindowError
from schemas.payloads import Split, WindowOpened
from schemas.times import from_iso, to_iso
from schemas.topics import DEFAULT_PREFIX, TOPICS
from trainer.settings import DataSettings

BAR_POLICY = "first-wins-v1"
"""What happens to repeats: an equal one is ignored; one with other values is refused and counted, the first stays."""

_COLUMNS = ("ts_open", "open", "high", "low", "close", "volume")


@dataclass(frozen=True)
class History:
    """All bars of a feed that a run may use, with their place on the log.

    Attributes:
        bars: One entry a symbol, sorted by name; absolute row 0 is the symbol's first bar on the topic.
        facts: The fields of ``WindowOpened`` that say where the bars came from.
        refused: Bars that came again with other values, by symbol.
    """

    bars: tuple[SymbolBars, ...]
    facts: dict[str, Any]
    refused: dict[str, int]


@dataclass(frozen=True)
class Window:
    """A stretch of bars that episodes trade, and the event that describes it."""

    data: MarketData
    opened: WindowOpened

    def scale(self, scaler: Scaler, settings: EnvSettings) -> None:
        """Scale its features here, once: who shares its bars then shares the scaled features, too."""
        bars = self.data.on_common_clock() if settings.portfolio else self.data
        bars.scaled(scaler, OBSERVATION_LIMIT)


@dataclass
class _Series:
    rows: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    refused: int = 0


def read_history(log: Log, settings: DataSettings, prefix: str = DEFAULT_PREFIX) -> History:
    """Read every bar of the feed that is on the topic now.

    Raises:
        WindowError: the feed or a symbol has no such bars; names what there is.
        LogError: the log does not answer, or the topic is missing.
    """
    topic = TOPICS["bars"].name(prefix)
    ranges = {p: bounds for p, bounds in log.offsets(topic).items() if bounds[1] > bounds[0]}
    return _read(log, topic, ranges, settings)


def reopen_history(log: Log, opened: WindowOpened, settings: DataSettings) -> History:
    """Read the bars of a recorded window again, by its offsets.

    Raises:
        WindowError: the topic is another one by now, or its offsets do not hold the recorded bars any more.
        OffsetOutOfRangeError: the offsets have expired; names both ranges.
    """
    facts = log.topic(opened.topic)
    if (facts.topic_id, log.cluster_id) != (opened.topic_id, opened.cluster_id):
        raise WindowError(
            f"window {opened.window_id}: expected topic {opened.topic} with id {opened.topic_id} of cluster "
            f"{opened.cluster_id}, got id {facts.topic_id} of cluster {log.cluster_id}; open it on its own log"
        )
    spans = zip(opened.partitions, opened.start_offsets, opened.end_offsets, strict=True)
    ranges = {partition: (start, stop) for partition, start, stop in spans}
    return _read(log, opened.topic, ranges, settings)


def _read(log: Log, topic: str, ranges: dict[int, tuple[int, int]], settings: DataSettings) -> History:
    series: dict[str, _Series] = {}
    used: dict[int, tuple[int, int]] = {}
    seen: set[str] = set()
    for partition, (start, stop) in sorted(ranges.items()):
        for record in _records(log, topic, partition, start, stop):
            bars = _wanted(record, settings, seen)
            if bars is None:
                continue
            _add(series.setdefault(bars.symbol, _Series()), bars)
            used[partition] = (used.get(partition, (record.offset, 0))[0], record.offset + 1)
    missing = [symbol for symbol in settings.symbols if symbol not in series]
    if missing or not series:
        adjusted = "adjusted" if settings.adjusted else "unadjusted"
        wanted = f"{adjusted} bars of feed {settings.feed!r}, interval {settings.interval}"
        wanted += f", for {', '.join(missing)}" if missing else ""
        raise WindowError(
            f"topic {topic}: expected {wanted}, got {', '.join(sorted(seen)) or 'an empty topic'}; "
            "replay the feed first (`millrace demo` does) or name another feed or symbol"
        )
    facts = log.topic(topic)
    return History(
        bars=tuple(_symbol_bars(symbol, series[symbol]) for symbol in sorted(series)),
        facts={
            "feed": settings.feed,
            "interval": settings.interval,
            "cluster_id": log.cluster_id,
            "topic": topic,
            "topic_id": facts.topic_id,
            "partitions": list(used),
            "start_offsets": [start for start, _ in used.values()],
            "end_offsets": [stop for _, stop in used.values()],
        },
        refused={symbol: part.refused for symbol, part in series.items() if part.refused},
    )


def _records(log: Log, topic: str, partition: int, start: int, stop: int) -> Iterable[StoredRecord]:
    while start < stop:
        batch = log.read(topic, partition, start, stop)
        if not batch:
            return
        yield from batch
        start = batch[-1].offset + 1


def _wanted(record: StoredRecord, settings: DataSettings, seen: set[str]) -> BarsRecord | None:
    key = record.key.decode(errors="replace")
    feed, _, rest = key.partition("/")
    symbol, _, interval = rest.partition("/")
    if feed == settings.feed and interval == settings.interval and (not settings.symbols or symbol in settings.symbols):
        bars = decode_bars(record.value)
        if bars.adjusted == settings.adjusted:
            return bars
        key += " adjusted" if bars.adjusted else " unadjusted"
    seen.add(key)
    return None


def _add(series: _Series, bars: BarsRecord) -> None:
    rates = bars.funding_rate or [None] * len(bars.ts_close)
    columns = zip(*(getattr(bars, name) for name in _COLUMNS), rates, strict=True)
    for ts_close, row in zip(bars.ts_close, columns, strict=True):
        if series.rows.setdefault(ts_close, row) != row:
            series.refused += 1


def _symbol_bars(symbol: str, series: _Series) -> SymbolBars:
    times = sorted(series.rows)
    ts_open, *columns, rates = zip(*(series.rows[ts] for ts in times), strict=True)
    values = {name: np.array(column, dtype=np.float64) for name, column in zip(_COLUMNS[1:], columns, strict=True)}
    funding = None if set(rates) == {None} else np.array(rates, dtype=np.float64)
    return SymbolBars(
        symbol, 0, np.array(ts_open, dtype=np.int64), np.array(times, dtype=np.int64), **values, funding=funding
    )


class Cuts(NamedTuple):
    """Where the splits of a history begin: first ``ts_close`` (UTC µs) of each."""

    validation: int | None
    """None: there is no validation split."""
    test: int


def cuts(history: History, settings: DataSettings) -> Cuts:
    """Where the splits begin.

    Raises:
        WindowError: a cut leaves nothing on one of its sides.
    """
    test = first_test_ts(history, settings)
    if not settings.validation_fraction:
        return Cuts(None, test)
    times = np.unique(np.concatenate([bars.ts_close for bars in history.bars]))
    first, last = int(times[0]), int(times[-1])
    validation = int(times[np.searchsorted(times, test - int((last - first) * settings.validation_fraction))])
    if not first < validation < test:
        raise WindowError(
            f"data.validation_fraction {settings.validation_fraction}: expected bars before the validation and in it, "
            f"got {to_iso(first)} .. {to_iso(test)} for training and validation; choose a smaller share for it"
        )
    return Cuts(validation, test)


def open_windows(history: History, begin: Cuts, settings: EnvSettings, scaler_version: str = "") -> dict[Split, Window]:
    """The windows of all splits: as of ``open_window``; the validation ends where the test begins.

    Raises:
        WindowError: no symbol has enough bars in one of them.
        SettingsError: a feature is unknown or does not suit the interval.
    """
    windows: dict[Split, Window] = {
        "train": open_window(history, "train", begin.validation or begin.test, settings, scaler_version)
    }
    if begin.validation is not None:
        seen = [bars.cut(0, int(np.searchsorted(bars.ts_close, begin.test))) for bars in history.bars]
        before_test = replace(history, bars=tuple(bars for bars in seen if len(bars)))
        windows["validation"] = open_window(before_test, "validation", begin.validation, settings, scaler_version)
    windows["test"] = open_window(history, "test", begin.test, settings, scaler_version)
    return windows


def first_test_ts(history: History, settings: DataSettings) -> int:
    """The time (UTC µs) from which bars belong to the test: the first ``ts_close`` at or after the cut.

    Raises:
        WindowError: the cut leaves nothing on one of its sides.
    """
    times = np.unique(np.concatenate([bars.ts_close for bars in history.bars]))
    first, last = int(times[0]), int(times[-1])
    by_share = last - int((last - first) * settings.test_fraction)
    cut = from_iso(settings.test_from) if settings.test_from else by_share
    if not first < cut <= last:
        raise WindowError(
            f"data.test_from {to_iso(cut)}: expected a time inside the history {to_iso(first)} .. {to_iso(last)}"
        )
    return int(times[np.searchsorted(times, cut)])


def warm_up(settings: EnvSettings, interval: int) -> int:
    """Bars before the first one that is traded: the observation's, and those that its features look back on.

    Args:
        settings: Of the market model.
        interval: Length of a bar, µs.

    Raises:
        SettingsError: a feature is unknown or does not suit the interval.
    """
    return settings.window + Recipe.of(settings.features).lookback(interval)


def open_window(history: History, split: Split, cut: int, settings: EnvSettings, scaler_version: str = "") -> Window:
    """The window of one split: ``train`` ends before ``cut``; another begins there, with warm-up bars before it.

    A portfolio trades the same symbols in both, and begins its test at one time for all of them.

    Args:
        history: All the bars.
        split: train, validation or test.
        cut: First ``ts_close`` behind the training, or of the other split (UTC µs).
        settings: Of the market model: the warm-up, the features, and whether the symbols are one portfolio.
        scaler_version: Version of the policy's scaler, for the record.

    Raises:
        WindowError: no symbol has enough bars on this side of the cut, or one of a portfolio has none.
        SettingsError: a feature is unknown or does not suit the interval.
    """
    before = warm_up(settings, history.bars[0].interval)
    if settings.portfolio:
        parts, clock_base_row = _portfolio_parts(history, split, cut, before)
    else:
        parts, clock_base_row = _parts(history, split, cut, before), 0
    if not parts:
        counts = ", ".join(f"{bars.symbol} {int(np.searchsorted(bars.ts_close, cut))}" for bars in history.bars)
        raise WindowError(
            f"{split} window: expected a symbol with more than {before} bars (env.window and what its features look "
            f"back on), got none; bars before the cut {to_iso(cut)}: {counts}; shorten env.window or give more history"
        )
    data = MarketData(parts, settings.features, clock_base_row=clock_base_row)
    return Window(data, _describe(history, parts, data.recipe.identity, split, scaler_version))


def _parts(history: History, split: Split, cut: int, before: int) -> list[SymbolBars]:
    parts: list[SymbolBars] = []
    for bars in history.bars:
        edge = int(np.searchsorted(bars.ts_close, cut))
        start, stop = (0, edge) if split == "train" else (max(0, edge - before), len(bars))
        # One bar beyond the warm-up is the least on which something can be filled.
        if stop - start > before:
            parts.append(bars.cut(start, stop))
    return parts


def _portfolio_parts(history: History, split: Split, cut: int, before: int) -> tuple[list[SymbolBars], int]:
    """Bars of each symbol, and the row of the first time among all times of the history."""
    times = np.unique(np.concatenate([bars.ts_close for bars in history.bars]))
    begin = int(times[max(0, int(np.searchsorted(times, cut)) - before)])
    parts: list[SymbolBars] = []
    for bars in history.bars:
        edge = int(np.searchsorted(bars.ts_close, cut))
        # From the last bar at the beginning on: a symbol that has none at that very time stands at its last price.
        at_begin = int(np.searchsorted(bars.ts_close, begin, side="right")) - 1
        start, stop = (0, edge) if split == "train" else (max(0, at_begin), len(bars))
        if (edge if split == "train" else stop - edge) == 0:
            raise WindowError(
                f"{split} window: expected bars of every symbol of the portfolio, got none of {bars.symbol} "
                f"{'before' if split == 'train' else 'from'} the cut {to_iso(cut)}; leave it out of data.symbols"
            )
        parts.append(bars.cut(start, stop))
    ready = max(int(part.ts_close[0]) for part in parts)
    last = max(int(part.ts_close[-1]) for part in parts)
    if int(np.searchsorted(times, last, side="right") - np.searchsorted(times, ready)) <= before:
        return [], 0
    return parts, int(np.searchsorted(times, min(int(part.ts_close[0]) for part in parts)))


def _describe(
    history: History, parts: Sequence[SymbolBars], recipe: str, split: Split, scaler_version: str
) -> WindowOpened:
    symbols = [bars.symbol for bars in parts]
    first_ts = min(int(bars.ts_close[0]) for bars in parts)
    last_ts = max(int(bars.ts_close[-1]) for bars in parts)
    identity = {
        **history.facts,
        "symbols": symbols,
        "first_ts": first_ts,
        "last_ts": last_ts,
        "feature_recipe": recipe,
        "bar_policy": BAR_POLICY,
    }
    window_id = hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]
    return WindowOpened(
        **identity,
        window_id=window_id,
        data_hash=data_hash(parts),
        split=split,
        bars=sum(len(bars) for bars in parts),
        refused_bars=sum(history.refused.values()),
        scaler_version=scaler_version,
    )


def data_hash(parts: Sequence[SymbolBars]) -> str:
    """Hash of the bars alone: symbol, times and values, whatever log they came from."""
    digest = hashlib.sha256()
    for bars in parts:
        digest.update(f"{bars.symbol}\0{len(bars)}\0".encode())
        arrays: list[NDArray[Any]] = [bars.ts_open, bars.ts_close, bars.open, bars.high, bars.low, bars.close]
        arrays.append(np.nan_to_num(bars.volume, nan=-1.0))
        if bars.funding is not None:
            arrays.append(np.nan_to_num(bars.funding, nan=0.0))  # None is due, or it is 0: the same bars.
        for array in arrays:
            digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:32]
