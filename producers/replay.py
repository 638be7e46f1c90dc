"""Replay: a feed's bars onto the bars topic, in time order over symbols, each bar once.

The topic itself is the record of what was published, so a replay that was killed is repeated by the same call: what is
there is found and left alone, and what is missing follows. On the topic the bars of one series, that is of one
(feed, symbol, interval), rise in ``ts_close``; equal repeats aside, which readers ignore.

What "in time order over symbols" means:

- at a speed, each record holds one bar, and no record is sent before one with an earlier ``ts_close``;
- as fast as it goes, each record holds up to ``BARS_PER_RECORD`` bars of a series, and records are sent in the order
  of their first ``ts_close``.

Repeats come from two replays of one feed at the same time, or from a send whose acknowledgement was lost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from eventlog.log import Log, Producer, Record
from producers.feed import Bars, Feed
from producers.published import missing_bars
from producers.rows import Floats, Ints
from schemas.bars import BarsRecord
from schemas.errors import FeedError, SettingsError
from schemas.times import SECOND, wall_now
from schemas.topics import DEFAULT_PREFIX, TOPICS

BARS_PER_RECORD = 512
"""Bars in a record when nobody waits for them: some 60 kB, which one read takes in and no topic refuses."""

# Records in one send: one acknowledgement for many bars, and still one within a fraction of a second, so that progress
# is seen and a stop is heard.
_BULK_RECORDS = 8
_TIMED_RECORDS = 256
_LONGEST_SLEEP_S = 0.1

Progress = Callable[[int, int, int], None]
"""Called with bars done, bars in all, and market time (UTC microseconds) after each send."""


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a replay did.

    Attributes:
        feed: name of the feed on the topic.
        topic: full name of the topic.
        published_bars: bars that this replay sent.
        published_records: records that held them.
        already_there: bars of the feed that were on the topic before.
        bars: symbol to the bars that this replay sent of it.
        first_ts: ``ts_close`` of the feed's first bar.
        last_ts: ``ts_close`` of the feed's last bar.
        stopped: it was told to stop before the end.
    """

    feed: str
    topic: str
    published_bars: int
    published_records: int
    already_there: int
    bars: dict[str, int]
    first_ts: int
    last_ts: int
    stopped: bool

    def __str__(self) -> str:
        if self.published_bars == 0 and not self.stopped:
            return (
                f"feed {self.feed}: all {self.already_there} bars are on {self.topic} already, nothing was published; "
                "another feed name publishes them again, as a new feed"
            )
        there = f", {self.already_there} were there already" if self.already_there else ""
        end = "; stopped before the end, the same replay goes on from here" if self.stopped else ""
        return (
            f"feed {self.feed}: published {self.published_bars} bars of {len(self.bars)} symbols "
            f"in {self.published_records} records on {self.topic}{there}{end}"
        )


def replay(
    log: Log,
    feed: Feed,
    *,
    feed_name: str,
    prefix: str = DEFAULT_PREFIX,
    speed: float | None = None,
    again: str | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> ReplayResult:
    """Publish the bars of a feed that the topic does not hold yet.

    Args:
        log: where to.
        feed: the bars.
        feed_name: name of the feed on the topic; part of the identity of each bar.
        prefix: prefix of the topic's name.
        speed: market time runs this many times faster than wall time; None goes as fast as it can.
        again: publish under this name instead, as a new feed.
        progress: called after each send.
        stop: asked several times a second; once it says true, the replay ends with what it has sent.

    Raises:
        FeedError: the name is none, the topic holds other values for a bar, or a missing bar lies before one that is
            there; nothing was published then.
        SettingsError: the speed is no finite number above 0.
        SchemaError: a record of the feed on the topic cannot be read.
        LogError: the log failed. The same replay, called again, publishes what is missing.
    """
    name = feed_name if again is None else again
    if not name or "/" in name:
        raise FeedError(f"feed name {name!r}: expected a name without '/', such as stocks-daily")
    if speed is not None and not (math.isfinite(speed) and speed > 0):
        raise SettingsError(
            f"speed {speed!r}: expected a finite number above 0, such as 1000 for 1000 times market time"
        )
    if not len(feed):
        raise FeedError(f"feed {name}: expected bars, got none")
    log.ensure_topics([TOPICS["bars"]], prefix)
    topic = TOPICS["bars"].name(prefix)
    missing = missing_bars(log, topic, name, feed)
    already_there = len(feed) - sum(map(len, missing.values()))
    sending = _Sending(topic, name, feed, progress, stop or _never, already_there)
    with log.producer() as producer:
        if speed is None:
            sending.send_chunks(producer, missing)
        else:
            sending.send_timed(producer, missing, speed)
    return sending.result()


def _never() -> bool:
    return False


@dataclass(slots=True)
class _Sending:
    """A replay under way."""

    topic: str
    name: str
    feed: Feed
    progress: Progress | None
    stop: Callable[[], bool]
    already_there: int
    sent: dict[str, int] = field(default_factory=dict)
    records: int = 0
    stopped: bool = False

    def send_chunks(self, producer: Producer, missing: dict[str, Ints]) -> None:
        """Send as fast as it goes."""
        chunks = [
            (self.feed.bars[symbol], at[first : first + BARS_PER_RECORD])
            for symbol, at in missing.items()
            for first in range(0, len(at), BARS_PER_RECORD)
        ]
        # The sort is stable and starts symbol by symbol, so the chunks of a symbol keep their order.
        chunks.sort(key=lambda chunk: chunk[0].ts_close[chunk[1][0]])
        for first in range(0, len(chunks), _BULK_RECORDS):
            if self._stop():
                return
            self._send(producer, chunks[first : first + _BULK_RECORDS])

    def send_timed(self, producer: Producer, missing: dict[str, Ints], speed: float) -> None:
        """Send each bar when market time reaches its close. Market time starts with the first missing bar."""
        series = [(self.feed.bars[symbol], at) for symbol, at in missing.items()]
        closes = np.concatenate([bars.ts_close[at] for bars, at in series])
        which = np.repeat(np.arange(len(series)), [len(at) for _, at in series])
        place = np.concatenate([at for _, at in series])
        order = np.argsort(closes, kind="stable")
        closes, which, place = closes[order], which[order], place[order]
        began = time.monotonic()
        done = 0
        while done < len(closes) and not self._stop():
            passed = (time.monotonic() - began) * speed * SECOND
            due = int(np.searchsorted(closes, closes[0] + passed, side="right"))
            if due == done:
                wait = (closes[done] - closes[0] - passed) / SECOND / speed
                time.sleep(min(wait, _LONGEST_SLEEP_S))
                continue
            due = min(due, done + _TIMED_RECORDS)
            self._send(producer, [(series[which[i]][0], place[i : i + 1]) for i in range(done, due)])
            done = due

    def result(self) -> ReplayResult:
        """What was done so far."""
        bars = self.feed.bars.values()
        return ReplayResult(
            feed=self.name,
            topic=self.topic,
            published_bars=sum(self.sent.values()),
            published_records=self.records,
            already_there=self.already_there,
            bars=self.sent,
            first_ts=min(int(each.ts_close[0]) for each in bars),
            last_ts=max(int(each.ts_close[-1]) for each in bars),
            stopped=self.stopped,
        )

    def _stop(self) -> bool:
        self.stopped = self.stop()
        return self.stopped

    def _send(self, producer: Producer, chunks: Sequence[tuple[Bars, Ints]]) -> None:
        producer.send([self._record(bars, at) for bars, at in chunks])
        self.records += len(chunks)
        for bars, at in chunks:
            self.sent[bars.symbol] = self.sent.get(bars.symbol, 0) + len(at)
        if self.progress is not None:
            market_time = max(int(bars.ts_close[at[-1]]) for bars, at in chunks)
            self.progress(self.already_there + sum(self.sent.values()), len(self.feed), market_time)

    def _record(self, bars: Bars, at: Ints) -> Record:
        record = BarsRecord(
            feed=self.name,
            symbol=bars.symbol,
            interval=bars.interval,
            adjusted=bars.adjusted,
            source=self.feed.source,
            wall_time=wall_now(),
            ts_open=bars.ts_open[at].tolist(),
            ts_close=bars.ts_close[at].tolist(),
            open=bars.open[at].tolist(),
            high=bars.high[at].tolist(),
            low=bars.low[at].tolist(),
            close=bars.close[at].tolist(),
            volume=_or_none(bars.volume[at]),
            funding_rate=None if bars.funding_rate is None else _or_none(bars.funding_rate[at]),
        )
        return Record(self.topic, *record.encode())


def _or_none(values: Floats) -> list[float | None]:
    """The values, None in the place of NaN, which JSON does not know."""
    return [None if math.isnan(value) else value for value in values.tolist()]
