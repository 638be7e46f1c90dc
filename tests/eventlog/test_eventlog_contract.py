"""What every engine of the event log must do. Another engine is one more entry in ENGINES."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kafka import KafkaAdminClient
from kafka import TopicPartition as KafkaPartition

from eventlog.kafka_log import KafkaLog
from eventlog.log import Consumer, Log, Record, StoredRecord, TopicPartition
from eventlog.sqlite_log import SqliteLog
from local.kafka_broker import BrokerAddress
from schemas.errors import CommitFencedError, OffsetOutOfRangeError, RecordTooLargeError, UnknownTopicError
from schemas.times import wall_now
from schemas.topics import MAX_RECORD_BYTES, TOPICS, Topic

LEASE_S = 0.5
PREFIX = "contract"
TRADES = TOPICS["trades"].name(PREFIX)
RUNS = TOPICS["runs"].name(PREFIX)


@dataclass
class SqliteEngine:
    """Opens logs on one SQLite file. An engine offers these methods, ``lease_s`` and ``keeps_late_member``.

    ``keeps_late_member``: a member that has slept through its lease keeps the group while nobody else wants it.
    """

    directory: Path
    gap_seed: int | None = None
    lease_s: float = LEASE_S
    keeps_late_member: bool = True
    opened: list[SqliteLog] = field(default_factory=list)

    def open(self) -> Log:
        """The log, by a connection of its own, as another process has it."""
        self.opened.append(SqliteLog(self.directory, lease_s=self.lease_s, gap_seed=self.gap_seed))
        return self.opened[-1]

    def trim(self, topic: str, partition: int, before: int) -> None:
        """Let the records with a lower offset expire."""
        self.opened[0].trim(topic, partition, before)

    def close(self) -> None:
        for log in self.opened:
            log.close()


@dataclass
class KafkaEngine:
    """Opens logs on one broker, and leaves it as empty as it was."""

    broker: BrokerAddress
    lease_s: float = 2 * LEASE_S
    keeps_late_member: bool = False
    opened: list[KafkaLog] = field(default_factory=list)

    def open(self) -> Log:
        self.opened.append(KafkaLog(self.broker.log_address, lease_s=self.lease_s))
        return self.opened[-1]

    def trim(self, topic: str, partition: int, before: int) -> None:
        with self.admin() as admin:
            admin.delete_records({KafkaPartition(topic, partition): before})

    def admin(self) -> KafkaAdminClient:
        return KafkaAdminClient(bootstrap_servers=f"{self.broker.host}:{self.broker.port}")

    def close(self) -> None:
        for log in self.opened:
            log.close()
        with self.admin() as admin:
            if topics := [name for name in admin.list_topics() if not name.startswith("__")]:
                admin.delete_topics(topics)
            if groups := [group["group_id"] for group in admin.list_groups()]:
                admin.delete_groups(groups)


Engine = SqliteEngine | KafkaEngine

ENGINES: dict[str, Callable[[pytest.FixtureRequest, Path], Engine]] = {
    "sqlite": lambda _, directory: SqliteEngine(directory),
    "sqlite-with-gaps": lambda _, directory: SqliteEngine(directory, gap_seed=7),
    "kafka": lambda request, _: KafkaEngine(request.getfixturevalue("broker")),
}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    made = ENGINES[request.param](request, tmp_path)
    yield made
    made.close()


@pytest.fixture
def log(engine: Engine) -> Log:
    opened = engine.open()
    opened.ensure_topics(list(TOPICS.values()), PREFIX)
    return opened


def send(log: Log, *records: Record) -> list[tuple[TopicPartition, int]]:
    with log.producer() as producer:
        return producer.send(records)


def numbered(count: int, first: int = 0, topic: str = TRADES) -> list[Record]:
    return [Record(topic, f"key {n % 7}".encode(), str(n).encode()) for n in range(first, first + count)]


def poll_all(consumer: Consumer, count: int, timeout_s: float = 20.0) -> list[StoredRecord]:
    found: list[StoredRecord] = []
    deadline = time.monotonic() + timeout_s
    while len(found) < count and time.monotonic() < deadline:
        found += consumer.poll(0.2)
    return found + consumer.poll(0.0)


def next_offsets(records: list[StoredRecord]) -> dict[TopicPartition, int]:
    return {record.source: record.offset + 1 for record in records}


def test_a_sent_record_is_read_back_as_it_was(log: Log) -> None:
    headers = (("ce_id", b"a:b:1"), ("empty", b""), ("bytes", bytes(range(256))), ("ce_id", b"twice"))
    before = wall_now()
    [(source, offset)] = send(log, Record(TRADES, b"k\x00\xff", b"\x00value\xff", headers))
    [stored] = log.read(source.topic, source.partition, offset, offset + 1)
    assert (stored.source, stored.offset, stored.key, stored.value) == (source, offset, b"k\x00\xff", b"\x00value\xff")
    assert stored.headers == headers
    assert before - 1_000 < stored.published_at <= wall_now(), "Kafka keeps milliseconds"


def test_topics_are_made_once_and_keep_their_identity(engine: Engine, log: Log) -> None:
    facts = log.topic(TRADES)
    assert facts.partitions == TOPICS["trades"].partitions
    assert log.ensure_topics(list(TOPICS.values()), PREFIX) == []
    assert log.ensure_topics([TOPICS["runs"]], "other") == ["other.runs.v1"]
    again = engine.open()
    assert again.topic(TRADES) == facts
    assert again.cluster_id == log.cluster_id
    assert again.address == log.address
    assert log.topic("other.runs.v1").topic_id != log.topic(RUNS).topic_id


def test_no_topic_comes_into_being_by_being_named(log: Log) -> None:
    with log.producer() as producer, pytest.raises(UnknownTopicError, match=r"nowhere.*expected a topic"):
        producer.send([Record(RUNS, b"k", b"v"), Record("nowhere.v1", b"k", b"v")])
    assert log.offsets(RUNS) == {0: (0, 0)}, "nothing of the call was sent"
    for call in (
        lambda: log.topic("nowhere.v1"),
        lambda: log.offsets("nowhere.v1"),
        lambda: log.read("nowhere.v1", 0, 0, 0),
        lambda: log.consumer("group", ["nowhere.v1"]),
        lambda: log.committed("group", ["nowhere.v1"]),
    ):
        with pytest.raises(UnknownTopicError, match="nowhere"):
            call()
    with pytest.raises(UnknownTopicError, match="partition"):
        log.read(TRADES, 99, 0, 0)


def test_a_record_over_the_limit_is_refused_with_the_whole_call(log: Log) -> None:
    fits = Record(RUNS, b"key", b"x" * (MAX_RECORD_BYTES - 3 - 6), (("four", b"22"),))
    assert fits.size == MAX_RECORD_BYTES
    with log.producer() as producer, pytest.raises(RecordTooLargeError, match=r"at most 1000000 .* got 1000001"):
        producer.send([fits, Record(RUNS, b"key", fits.value + b"x", fits.headers)])
    assert log.offsets(RUNS) == {0: (0, 0)}
    assert send(log, fits)[0][0] == TopicPartition(RUNS, 0)


@pytest.mark.parametrize(
    ("key", "murmur2"),
    [
        # From Apache Kafka's UtilsTest.testMurmur2.
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_a_key_goes_to_the_partition_that_kafka_would_choose(log: Log, key: bytes, murmur2: int) -> None:
    [(source, _)] = send(log, Record(TRADES, key, b""))
    assert source.partition == (murmur2 & 0x7FFFFFFF) % TOPICS["trades"].partitions


def test_each_partition_keeps_the_order_in_which_records_were_sent(log: Log) -> None:
    places = send(log, *numbered(200)) + send(log, *numbered(100, first=200))
    with log.consumer("group", [TRADES]) as consumer:
        records = poll_all(consumer, 300)
    assert sorted(int(record.value) for record in records) == list(range(300))
    for partition in range(TOPICS["trades"].partitions):
        of_one = [record for record in records if record.partition == partition]
        assert [int(record.value) for record in of_one] == sorted(int(record.value) for record in of_one)
        assert [record.offset for record in of_one] == [
            offset for source, offset in places if source.partition == partition
        ]


def test_the_end_offset_lies_behind_the_last_record(log: Log) -> None:
    assert log.offsets(TRADES) == dict.fromkeys(range(4), (0, 0))
    places = send(log, *numbered(50))
    last = dict(places)
    for partition, (start, end) in log.offsets(TRADES).items():
        assert start == 0
        assert end > last.get(TopicPartition(TRADES, partition), -1)


def test_read_takes_a_range_of_offsets_and_a_number_of_records(log: Log) -> None:
    places = send(log, *numbered(20, topic=RUNS))
    offsets = [offset for _, offset in places]
    end = log.offsets(RUNS)[0][1]
    assert [record.offset for record in log.read(RUNS, 0, 0, end)] == offsets
    assert [record.offset for record in log.read(RUNS, 0, offsets[3], offsets[9])] == offsets[3:9]
    assert [record.offset for record in log.read(RUNS, 0, offsets[3], end, max_records=2)] == offsets[3:5]
    assert log.read(RUNS, 0, end, end) == []


def test_read_outside_the_partition_names_both_ranges(engine: Engine, log: Log) -> None:
    places = send(log, *numbered(10, topic=RUNS))
    cut, end = places[4][1], log.offsets(RUNS)[0][1]
    engine.trim(RUNS, 0, cut)
    assert log.offsets(RUNS)[0] == (cut, end)
    with pytest.raises(OffsetOutOfRangeError, match=rf"within {cut}\.\.{end}.*got 0\.\.{end}"):
        log.read(RUNS, 0, 0, end)
    with pytest.raises(OffsetOutOfRangeError, match=rf"within {cut}\.\.{end}.*got {cut}\.\.{end + 1}"):
        log.read(RUNS, 0, cut, end + 1)
    assert len(log.read(RUNS, 0, cut, end)) == 6


def test_a_group_goes_on_where_it_committed(log: Log) -> None:
    send(log, *numbered(30))
    with log.consumer("group", [TRADES]) as consumer:
        first = consumer.poll(1.0, max_records=10)
        assert len(first) == 10
        assert log.committed("group", [TRADES]) == {}
        assert log.lag("group", [TRADES]) >= 30
        consumer.commit(next_offsets(first))
        uncommitted = consumer.poll(1.0, max_records=10)
    assert log.committed("group", [TRADES]) == next_offsets(first)
    assert log.committed("group", [RUNS]) == {}
    with log.consumer("group", [TRADES]) as consumer:
        rest = poll_all(consumer, 20)
        assert {record.value for record in uncommitted} <= {record.value for record in rest}
        assert len(rest) == 20
        consumer.commit(next_offsets(rest))
    assert log.lag("group", [TRADES]) == 0
    with log.consumer("another group", [TRADES]) as consumer:
        assert len(poll_all(consumer, 30)) == 30


def test_poll_reads_several_topics_and_starves_no_partition(log: Log) -> None:
    send(log, *numbered(400), *numbered(50, topic=RUNS))
    with log.consumer("group", [TRADES, RUNS]) as consumer:
        seen = {record.source for _ in range(5) for record in consumer.poll(1.0, max_records=20)}
        assert len(seen) == 5, "five polls have served all five partitions"
        assert consumer.assignment() == {
            TopicPartition(RUNS, 0),
            *(TopicPartition(TRADES, partition) for partition in range(4)),
        }


def test_poll_waits_for_a_record_and_returns_soon_after_it(engine: Engine, log: Log) -> None:
    with log.consumer("group", [RUNS]) as consumer:
        began = time.monotonic()
        assert consumer.poll(0.3) == []
        assert 0.25 < time.monotonic() - began < 2.0
        sent_at: list[float] = []

        def send_later() -> None:
            time.sleep(0.2)
            send(log, *numbered(1, topic=RUNS))
            sent_at.append(time.monotonic())

        thread = threading.Thread(target=send_later)
        thread.start()
        assert len(consumer.poll(10.0)) == 1
        thread.join()
        # The promise is 20 ms; the bound leaves room for a busy machine.
        assert time.monotonic() - sent_at[0] < 0.5


def test_a_second_member_waits_until_the_first_leaves(log: Log) -> None:
    send(log, *numbered(20, topic=RUNS))
    first, second = log.consumer("group", [RUNS]), log.consumer("group", [RUNS])
    taken = first.poll(1.0, max_records=5)
    assert second.poll(0.1) == []
    assert second.assignment() == set()
    with pytest.raises(CommitFencedError, match="group"):
        second.commit({TopicPartition(RUNS, 0): 20})
    first.commit(next_offsets(taken))
    first.close()
    assert [int(record.value) for record in poll_all(second, 15)] == list(range(5, 20))
    second.close()


def test_a_polling_member_keeps_the_group_beyond_the_lease(engine: Engine, log: Log) -> None:
    send(log, *numbered(1, topic=RUNS))
    first, second = log.consumer("group", [RUNS]), log.consumer("group", [RUNS])
    [record] = first.poll(1.0)
    until = time.monotonic() + 2.5 * engine.lease_s
    while time.monotonic() < until:
        assert first.poll(0.05) == []
        assert second.poll(0.0) == []
    first.commit({record.source: record.offset + 1})
    assert first.poll(2.5 * engine.lease_s) == [], "one long poll renews too"
    assert second.poll(0.0) == []
    first.close()
    second.close()


def test_a_member_that_slept_through_its_lease_is_fenced(engine: Engine, log: Log) -> None:
    send(log, *numbered(20, topic=RUNS))
    sleeper, heir = log.consumer("group", [RUNS]), log.consumer("group", [RUNS])
    stale = sleeper.poll(1.0, max_records=10)
    time.sleep(engine.lease_s * 1.2)
    assert [int(record.value) for record in heir.poll(2.0, max_records=5)] == list(range(5)), (
        "from the committed offset"
    )
    with pytest.raises(CommitFencedError, match=r"generation.*poll again"):
        sleeper.commit(next_offsets(stale))
    assert log.committed("group", [RUNS]) == {}
    heir.close()
    # The group is free by now, but the member learns first that its work is void.
    assert sleeper.poll(1.0) == []
    assert sleeper.assignment() == set()
    again = poll_all(sleeper, 20)
    assert [int(record.value) for record in again] == list(range(20))
    sleeper.commit(next_offsets(again))
    assert log.lag("group", [RUNS]) == 0
    sleeper.close()


def test_a_late_member_keeps_the_group_if_nobody_took_it(engine: Engine, log: Log) -> None:
    send(log, *numbered(3, topic=RUNS))
    with log.consumer("group", [RUNS]) as consumer:
        records = poll_all(consumer, 3)
        time.sleep(engine.lease_s * 1.6)
        if not engine.keeps_late_member:
            with pytest.raises(CommitFencedError, match="poll again"):
                consumer.commit(next_offsets(records))
            records = poll_all(consumer, 3)
        consumer.commit(next_offsets(records))
        assert consumer.poll(0.0) == []
    assert log.lag("group", [RUNS]) == 0


def test_expired_offsets_are_an_error_and_never_a_jump(engine: Engine, log: Log) -> None:
    places = send(log, *numbered(20, topic=RUNS))
    with log.consumer("group", [RUNS]) as consumer:
        assert len(consumer.poll(1.0, max_records=5)) == 5
        consumer.commit({TopicPartition(RUNS, 0): places[5][1]})
    engine.trim(RUNS, 0, places[10][1])
    position = places[5][1]
    # A new member: the old one may have fetched the records before they expired.
    with log.consumer("group", [RUNS]) as consumer:
        with pytest.raises(OffsetOutOfRangeError, match=rf"'group'.*within {places[10][1]}\.\.\d+.*got {position}"):
            poll_all(consumer, 1)
        consumer.commit({TopicPartition(RUNS, 0): places[10][1]})
    with log.consumer("group", [RUNS]) as consumer:
        assert [int(record.value) for record in poll_all(consumer, 10)] == list(range(10, 20))


def test_a_new_group_begins_at_the_start_offset(engine: Engine, log: Log) -> None:
    places = send(log, *numbered(10, topic=RUNS))
    engine.trim(RUNS, 0, places[6][1])
    assert log.lag("group", [RUNS]) == log.offsets(RUNS)[0][1] - places[6][1]
    with log.consumer("group", [RUNS]) as consumer:
        assert [int(record.value) for record in poll_all(consumer, 4)] == [6, 7, 8, 9]


def test_a_commit_outside_the_subscription_is_refused(log: Log) -> None:
    with log.consumer("group", [RUNS]) as consumer:
        consumer.poll(0.0)
        with pytest.raises(UnknownTopicError, match="expected to commit a partition of"):
            consumer.commit({TopicPartition(TRADES, 0): 1})
    assert log.committed("group", [TRADES]) == {}


def test_a_poll_for_no_records_keeps_the_group_and_takes_nothing(engine: Engine, log: Log) -> None:
    send(log, *numbered(10, topic=RUNS))
    with log.consumer("group", [RUNS]) as consumer:
        first = poll_all(consumer, 10)[:4]
        for _ in range(6):
            time.sleep(engine.lease_s / 2)
            assert consumer.poll(0.0, max_records=0) == []
        consumer.commit(next_offsets(first))
    with log.consumer("group", [RUNS]) as consumer:
        assert len(poll_all(consumer, 6)) == 6


def test_closing_twice_is_safe(log: Log) -> None:
    producer, consumer = log.producer(), log.consumer("group", [RUNS])
    consumer.poll(0.0)
    for _ in range(2):
        producer.close()
        consumer.close()
        log.close()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.integers(1, 30)),
            st.tuples(st.just("poll"), st.integers(1, 20)),
            st.tuples(st.sampled_from(["commit", "reopen"]), st.just(0)),
        ),
        max_size=25,
    )
)
def test_whatever_happens_commits_cover_each_record_once(log: Log, moves: list[tuple[str, int]]) -> None:
    # Each example has topics of its own on the one log.
    prefix = f"x{time.monotonic_ns()}"
    [topic] = log.ensure_topics([Topic("trades", 1, 3, "key", -1)], prefix)
    sent, done, open_work = 0, [], []
    consumer = log.consumer(prefix, [topic])
    with log.producer() as producer:
        for move, count in moves:
            if move == "send":
                producer.send(numbered(count, first=sent, topic=topic))
                sent += count
            elif move == "poll":
                open_work += consumer.poll(0.0, max_records=count)
            elif move == "commit" and open_work:
                consumer.commit(next_offsets(open_work))
                done += open_work
                open_work = []
            elif move == "reopen":
                consumer.close()
                consumer, open_work = log.consumer(prefix, [topic]), []
    open_work += poll_all(consumer, sent - len(done) - len(open_work))
    consumer.commit(next_offsets(open_work))
    done += open_work
    consumer.close()
    assert sorted(int(record.value) for record in done) == list(range(sent))
    assert log.lag(prefix, [topic]) == 0
