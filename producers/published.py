"""What of a feed is on the bars topic already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from eventlog.log import Log, StoredRecord
from producers.feed import Bars, Feed
from producers.rows import Flags, Floats, Ints
from schemas.bars import BarsRecord, decode_bars
from schemas.errors import FeedError, SchemaError
from schemas.times import to_iso

# Records of up to a megabyte are read this many at a time.
_PAGE = 64

_COLUMNS = ("ts_open", "open", "high", "low", "close", "volume", "funding_rate")


def missing_bars(log: Log, topic: str, feed_name: str, feed: Feed) -> dict[str, Ints]:
    """Symbol to the places (rising) of its bars that the topic does not hold.

    Raises:
        FeedError: the topic holds other values for a bar of the feed, or a bar that follows a missing one.
        SchemaError: a record of the feed cannot be read.
    """
    series = {
        f"{feed_name}/{bars.symbol}/{bars.interval}".encode(): _Series(feed_name, topic, bars)
        for bars in feed.bars.values()
    }
    for record in _records(log, topic):
        known = series.get(record.key)
        if known is not None:
            known.take(_decode(record))
    return {known.bars.symbol: known.missing() for known in series.values()}


def _records(log: Log, topic: str) -> Iterator[StoredRecord]:
    """Every record of the topic, partition after partition."""
    for partition, (start, end) in log.offsets(topic).items():
        while page := log.read(topic, partition, start, end, _PAGE):
            yield from page
            start = page[-1].offset + 1


def _decode(record: StoredRecord) -> BarsRecord:
    try:
        return decode_bars(record.value)
    except SchemaError as error:
        where = f"{record.topic} partition {record.partition} offset {record.offset}"
        raise SchemaError(
            f"{where}: {error}; the feed cannot go on behind it, another feed name makes a new one"
        ) from error


class _Series:
    """The bars of one symbol, and which of them the topic holds."""

    def __init__(self, feed_name: str, topic: str, bars: Bars) -> None:
        self.bars = bars
        self._name = f"feed {feed_name}, symbol {bars.symbol}"
        self._topic = topic
        self._there: Flags = np.zeros(len(bars), dtype=np.bool_)
        self._latest: int | None = None

    def take(self, record: BarsRecord) -> None:
        """Compare the bars of a record with ours."""
        if record.adjusted != self.bars.adjusted:
            kind = {True: "adjusted", False: "raw"}
            raise FeedError(
                f"{self._name}: {self._topic} holds {kind[record.adjusted]} prices, got {kind[self.bars.adjusted]} "
                "ones; publish these under another feed name"
            )
        ts = np.array(record.ts_close, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.bars.ts_close, ts), len(self.bars) - 1)
        ours = np.flatnonzero(self.bars.ts_close[at] == ts)
        at = at[ours]
        for name in _COLUMNS:
            held, got = _column(getattr(record, name), ours), _column(getattr(self.bars, name), at)
            # A volume or rate that is not given is NaN on both sides.
            differs = np.flatnonzero((held != got) & ~(np.isnan(held) & np.isnan(got)))
            if len(differs):
                first = differs[0]
                raise FeedError(
                    f"{self._name}, bar of {to_iso(int(ts[ours[first]]))}: {self._topic} holds {name} {held[first]}, "
                    f"the file has {got[first]}; a published bar is never changed, "
                    "publish these under another feed name"
                )
        self._there[at] = True
        self._latest = max(int(ts[-1]), self._latest or int(ts[-1]))

    def missing(self) -> Ints:
        """Places of the bars that the topic does not hold. All of them follow those that it holds."""
        missing = np.flatnonzero(~self._there)
        if self._latest is not None and len(missing) and self.bars.ts_close[missing[0]] <= self._latest:
            raise FeedError(
                f"{self._name}, bar of {to_iso(int(self.bars.ts_close[missing[0]]))}: it is not on {self._topic}, but "
                f"bars up to {to_iso(self._latest)} are, and bars are published in order of time; "
                "publish these under another feed name"
            )
        return missing


def _column(values: Any, at: Ints) -> Floats | Ints:
    """The values there; NaN for None, and everywhere where the column is absent."""
    if values is None:
        return np.full(len(at), np.nan)
    array = np.asarray(values)
    return (array if array.dtype == np.int64 else array.astype(np.float64))[at]
