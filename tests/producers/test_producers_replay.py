from __future__ import annotations

import dataclasses
import math
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.log import Log, Record, StoredRecord
from eventlog.open_log import open_log
from producers.bundled import FEED_NAME, bundled_feed_path
from producers.feed import Bars, Feed, read_feed
from producers.replay import BARS_PER_RECORD, replay
from schemas.bars import decode_bars
from schemas.errors import FeedError, LogError, SchemaError, SettingsError
from schemas.times import DAY, MINUTE, from_iso
from schemas.topics import DEFAULT_PREFIX, TOPICS

TOPIC = TOPICS["bars"].name()
START = from_iso("2013-01-01")
COLUMNS = ("ts_open", "ts_close", "open", "high", "low", "close", "volume")


def make_bars(symbol: str, steps: Sequence[int], *, interval: str = "1d", length: int = DAY) -> Bars:
    ts_open = START + np.array(steps, dtype=np.int64) * length
    price = 100.0 + np.arange(len(ts_open)) / 7
    volume = np.where(np.arange(len(ts_open)) % 3 == 0, np.nan, 1.5)
    return Bars(symbol, interval, False, ts_open, ts_open + length, price, price + 1, price - 1, price + 0.1, volume)


def make_feed(*bars: Bars) -> Feed:
    return Feed(Path("made.csv"), "made.csv sha256:0", bars[0].adjusted, {each.symbol: each for each in bars})


def one_partition(log: Log) -> None:
    """Make the topic with one partition, so that its offsets show the order over all symbols."""
    log.ensure_topics([dataclasses.replace(TOPICS["bars"], partitions=1)], DEFAULT_PREFIX)


def records_of(log: Log, topic: str = TOPIC) -> list[StoredRecord]:
    records: list[StoredRecord] = []
    for partition, (start, end) in log.offsets(topic).items():
        while page := log.read(topic, partition, start, end):
            records += page
            start = page[-1].offset + 1
    return records


def assert_topic_holds(log: Log, feed: Feed, name: str) -> None:
    """The topic holds each bar of the feed once, with its values, rising in ts_close, and no other of this name."""
    held: dict[str, dict[str, list[float | None]]] = {}
    for stored in records_of(log):
        record = decode_bars(stored.value)
        if record.feed == name:
            columns = held.setdefault(record.symbol, {column: [] for column in COLUMNS})
            for column in COLUMNS:
                columns[column] += getattr(record, column)
    assert held.keys() == feed.bars.keys()
    for symbol, columns in held.items():
        for column in COLUMNS:
            expected = [None if math.isnan(value) else value for value in getattr(feed.bars[symbol], column).tolist()]
            assert columns[column] == expected, (symbol, column)


def test_every_bundled_bar_is_published_once_in_order(log: Log) -> None:
    feed = read_feed(bundled_feed_path(), adjusted=True)
    seen: list[tuple[int, int, int]] = []
    result = replay(log, feed, feed_name=FEED_NAME, progress=lambda *done: seen.append(done))
    assert (result.feed, result.topic, result.stopped) == (FEED_NAME, TOPIC, False)
    assert result.published_bars == 12_154
    assert result.already_there == 0
    assert result.bars == {"AAPL": 3270, "FB": 196, "GOOG": 2148, "IBM": 3270, "MSFT": 3270}
    assert (result.first_ts, result.last_ts) == (from_iso("2000-03-02"), from_iso("2013-03-02"))
    assert (
        result.published_records == len(records_of(log)) == sum(-(-n // BARS_PER_RECORD) for n in result.bars.values())
    )
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][:2] == (12_154, 12_154)
    assert_topic_holds(log, feed, FEED_NAME)


def test_records_say_where_they_come_from(log: Log) -> None:
    feed = read_feed(bundled_feed_path(), symbols=["FB"])
    replay(log, feed, feed_name=FEED_NAME)
    stored = records_of(log)[0]
    record = decode_bars(stored.value)
    assert stored.key == b"stocks-daily/FB/1d"
    assert dict(stored.headers)["ce_type"] == b"bars"
    assert record.source == feed.source
    assert record.adjusted is False


def test_second_replay_publishes_nothing_and_says_so(log: Log) -> None:
    feed = read_feed(bundled_feed_path(), symbols=["FB", "IBM"])
    replay(log, feed, feed_name=FEED_NAME)
    before = records_of(log)
    result = replay(log, feed, feed_name=FEED_NAME)
    assert (result.published_bars, result.published_records, result.already_there) == (0, 0, 3466)
    assert result.bars == {}
    assert "all 3466 bars are on millrace.bars.v1 already, nothing was published; another feed name" in str(result)
    assert records_of(log) == before


def test_funding_rates_are_published_and_compared(log: Log) -> None:
    rates = np.array([0.0001, np.nan, -0.0002])
    bars = dataclasses.replace(make_bars("P", range(3)), funding_rate=rates)
    assert replay(log, make_feed(bars), feed_name="perps").published_bars == 3
    [record] = records_of(log)
    assert decode_bars(record.value).funding_rate == [0.0001, None, -0.0002]
    assert replay(log, make_feed(bars), feed_name="perps").published_bars == 0
    for other in (dataclasses.replace(bars, funding_rate=rates * 2), make_bars("P", range(3))):
        with pytest.raises(FeedError, match=r"symbol P, bar of 2013-01-02.*holds funding_rate 0.0001, the file has"):
            replay(log, make_feed(other), feed_name="perps")


def test_again_makes_a_new_feed_which_is_idempotent_too(log: Log) -> None:
    feed = make_feed(make_bars("A", range(10)))
    replay(log, feed, feed_name="one")
    assert replay(log, feed, feed_name="one", again="two").published_bars == 10
    assert replay(log, feed, feed_name="one", again="two").published_bars == 0
    assert_topic_holds(log, feed, "one")
    assert_topic_holds(log, feed, "two")


def test_bars_that_a_longer_file_adds_follow(log: Log) -> None:
    replay(log, make_feed(make_bars("A", range(700))), feed_name="f")
    longer = make_feed(make_bars("A", range(705)), make_bars("B", range(3)))
    result = replay(log, longer, feed_name="f")
    assert result.bars == {"A": 5, "B": 3}
    assert "published 8 bars of 2 symbols in 2 records" in str(result)
    assert "700 were there already" in str(result)
    assert_topic_holds(log, longer, "f")


def test_shorter_file_and_other_interval_disturb_nothing(log: Log) -> None:
    replay(log, make_feed(make_bars("A", range(9))), feed_name="f")
    assert replay(log, make_feed(make_bars("A", range(3))), feed_name="f").already_there == 3
    assert (
        replay(log, make_feed(make_bars("A", range(4), interval="1m", length=MINUTE)), feed_name="f").published_bars
        == 4
    )


@pytest.mark.parametrize(
    ("column", "row", "value"),
    [("close", 4, 100.5), ("volume", 4, 3.0), ("volume", 4, math.nan), ("volume", 6, 3.0), ("ts_open", 4, START)],
)
def test_other_values_for_a_published_bar_are_refused(log: Log, column: str, row: int, value: float) -> None:
    bars = make_bars("A", range(9))
    assert math.isnan(bars.volume[6])
    replay(log, make_feed(bars), feed_name="f")
    before = records_of(log)
    changed = getattr(bars, column).copy()
    changed[row] = value
    other = make_feed(dataclasses.replace(bars, **{column: changed}), make_bars("B", range(2)))
    with pytest.raises(FeedError, match=rf"symbol A, bar of 2013-01-0{row + 2}T.* holds {column} .*another feed name"):
        replay(log, other, feed_name="f")
    assert records_of(log) == before


def test_adjusted_bars_are_refused_where_raw_ones_are(log: Log) -> None:
    for adjusted in (False, True):
        feed = read_feed(bundled_feed_path(), symbols=["FB"], adjusted=adjusted)
        if adjusted:
            with pytest.raises(FeedError, match="holds raw prices, got adjusted ones; .*another feed name"):
                replay(log, feed, feed_name=FEED_NAME)
        else:
            replay(log, feed, feed_name=FEED_NAME)


def test_bar_missing_in_the_middle_is_refused_since_it_would_come_out_of_order(log: Log) -> None:
    replay(log, make_feed(make_bars("A", [0, 1, 3])), feed_name="f")
    bars = make_bars("A", [0, 1, 2, 3])
    same = {column: np.insert(getattr(make_bars("A", [0, 1, 3]), column), 2, 100.0) for column in COLUMNS[2:]}
    with pytest.raises(FeedError, match=r"bar of 2013-01-04T00:00:00Z: it is not on .*, but bars up to 2013-01-05T"):
        replay(log, make_feed(dataclasses.replace(bars, **same)), feed_name="f")  # type: ignore[arg-type]


def test_unreadable_record_of_the_feed_is_named(log: Log) -> None:
    log.ensure_topics([TOPICS["bars"]], DEFAULT_PREFIX)
    with log.producer() as producer:
        producer.send([Record(TOPIC, b"g/A/1d", b"not ours"), Record(TOPIC, b"f/A/1d", b"{}")])
    feed = make_feed(make_bars("A", range(3)))
    with pytest.raises(
        SchemaError, match=r"millrace.bars.v1 partition \d offset \d+: bars record: .*another feed name"
    ):
        replay(log, feed, feed_name="f")
    assert replay(log, feed, feed_name="f", again="h").published_bars == 3


def test_bad_arguments_are_named(log: Log) -> None:
    feed = make_feed(make_bars("A", range(3)))
    for name in ("", "a/b"):
        with pytest.raises(FeedError, match="feed name .*expected a name without '/'"):
            replay(log, feed, feed_name=name)
    for speed in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(SettingsError, match="speed .*expected a finite number above 0"):
            replay(log, feed, feed_name="f", speed=speed)
    with pytest.raises(FeedError, match="feed f: expected bars, got none"):
        replay(log, dataclasses.replace(feed, bars={}), feed_name="f")
    log.close()
    with pytest.raises(LogError):
        replay(log, feed, feed_name="f")


def test_bulk_records_are_ordered_by_their_first_bar(log: Log) -> None:
    one_partition(log)
    feed = read_feed(bundled_feed_path())
    replay(log, feed, feed_name="f")
    records = [decode_bars(stored.value) for stored in records_of(log)]
    firsts = [record.ts_close[0] for record in records]
    assert firsts == sorted(firsts)
    assert all(len(record.ts_close) <= BARS_PER_RECORD for record in records)
    assert_topic_holds(log, feed, "f")


def test_timed_records_hold_one_bar_and_are_ordered_over_all_symbols(log: Log) -> None:
    one_partition(log)
    feed = read_feed(bundled_feed_path(), symbols=["FB", "GOOG"])
    result = replay(log, feed, feed_name="f", speed=1e9)
    assert result.published_records == result.published_bars == len(feed)
    records = [decode_bars(stored.value) for stored in records_of(log)]
    times = [record.ts_close[0] for record in records]
    assert times == sorted(times)
    assert {len(record.ts_close) for record in records} == {1}
    assert_topic_holds(log, feed, "f")


def test_at_a_speed_no_bar_comes_before_its_time(log: Log) -> None:
    feed = make_feed(make_bars("A", range(0, 30, 2)), make_bars("B", range(1, 30, 3)))
    speed = DAY / 1e6 / 0.02  # a day in 20 ms
    began = time.monotonic()
    replay(log, feed, feed_name="f", speed=speed)
    took = time.monotonic() - began
    assert took >= 28 * 0.02
    published = sorted((stored.published_at, decode_bars(stored.value).ts_close[0]) for stored in records_of(log))
    first_wall, first_market = published[0]
    for wall, market in published:
        # The first send itself takes a moment, which later bars do not wait for.
        assert wall - first_wall >= (market - first_market) / speed - 50_000
    assert_topic_holds(log, feed, "f")


def test_stop_is_heard_while_it_waits_and_the_replay_goes_on_later(log: Log) -> None:
    feed = make_feed(make_bars("A", range(5)))
    stop = threading.Event()
    timer = threading.Timer(0.1, stop.set)
    timer.start()
    began = time.monotonic()
    result = replay(log, feed, feed_name="f", speed=1.0, stop=stop.is_set)
    assert time.monotonic() - began < 1.0
    timer.join()
    assert result.stopped
    assert result.published_bars == 1
    assert "stopped before the end" in str(result)
    assert replay(log, feed, feed_name="f").already_there == 1
    assert_topic_holds(log, feed, "f")


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(st.sampled_from("ABC"), st.sets(st.integers(0, 9_000), min_size=1, max_size=1_500), min_size=1),
    st.lists(st.integers(0, 3), max_size=4),
    st.booleans(),
)
def test_replay_stopped_anywhere_any_number_of_times_ends_complete(
    steps: dict[str, set[int]], stops: list[int], timed: bool
) -> None:
    feed = make_feed(*(make_bars(symbol, sorted(each)) for symbol, each in steps.items()))
    with tempfile.TemporaryDirectory() as directory, open_log(f"sqlite:{directory}") as log:
        there = 0
        for sends in stops:
            left = iter([False] * sends)
            result = replay(log, feed, feed_name="f", speed=1e12 if timed else None, stop=lambda: next(left, True))  # noqa: B023
            assert result.already_there == there
            there += result.published_bars
        result = replay(log, feed, feed_name="f")
        assert result.published_bars + there == len(feed)
        assert_topic_holds(log, feed, "f")


def test_two_replays_at_once_leave_only_equal_repeats(log: Log) -> None:
    feed = make_feed(make_bars("A", range(20_000), interval="1m", length=MINUTE), make_bars("B", range(900)))
    both = threading.Barrier(2)

    def run() -> None:
        with open_log(log.address) as own:
            both.wait()
            replay(own, feed, feed_name="f")

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held: dict[tuple[str, int], tuple[float, ...]] = {}
    for stored in records_of(log):
        record = decode_bars(stored.value)
        for ts, *values in zip(record.ts_close, record.open, record.high, record.low, record.close, strict=True):
            assert held.setdefault((record.symbol, ts), tuple(values)) == tuple(values)
    assert len(held) == len(feed)
    assert replay(log, feed, feed_name="f").published_bars == 0


CHILD = """
import sys, time
from producers.bundled import FEED_NAME, bundled_feed_path
from producers.feed import read_feed
from producers.replay import replay
from eventlog.open_log import open_log

speed = float(sys.argv[2]) or None
with open_log(sys.argv[1]) as log:
    # Slowed down, so that there is a middle in which it can be killed.
    replay(log, read_feed(bundled_feed_path(), adjusted=True), feed_name=FEED_NAME, speed=speed,
           progress=lambda *_: time.sleep(0.02 if speed else 0.3))
"""


@pytest.mark.parametrize("speed", [None, 1e8])
def test_killed_replay_run_again_leaves_every_bar_once(log: Log, speed: float | None) -> None:
    feed = read_feed(bundled_feed_path(), adjusted=True)
    log.ensure_topics([TOPICS["bars"]], DEFAULT_PREFIX)
    for _ in range(2):
        before = count_records(log)
        with subprocess.Popen([sys.executable, "-c", CHILD, log.address, str(speed or 0)]) as child:
            try:
                deadline = time.monotonic() + 30
                while count_records(log) == before:
                    assert child.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.002)
            finally:
                child.kill()
        assert child.returncode == -signal.SIGKILL
    result = replay(log, feed, feed_name=FEED_NAME)
    assert result.published_bars > 0
    assert result.already_there > 0
    assert_topic_holds(log, feed, FEED_NAME)


def count_records(log: Log) -> int:
    return sum(end - start for start, end in log.offsets(TOPIC).values())


def test_order_of_symbols_in_the_file_does_not_matter(
    log: Log, tmp_path: Path, write_feed: Callable[..., Path]
) -> None:
    rows = [f"{symbol},2013-01-{day:02},1,1,1,1,1,1" for day in (1, 2, 3) for symbol in "CAB"]
    by_time, by_symbol = write_feed(*rows, name="t.csv"), write_feed(*sorted(rows), name="s.csv")
    replay(log, read_feed(by_time), feed_name="f")
    assert replay(log, read_feed(by_symbol), feed_name="f").already_there == 9
