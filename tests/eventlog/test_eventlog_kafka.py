"""What is particular to the Kafka engine: its traps, each with the fix, on a real broker that stays well."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import BuiltinFunctionType

import crc32c
import pytest
from kafka import KafkaConsumer, KafkaProducer, codec
from kafka import TopicPartition as KafkaPartition
from kafka.admin import KafkaAdminClient
from kafka.record import util

from eventlog import kafka_producer
from eventlog.kafka_log import KafkaLog, topic_settings
from eventlog.kafka_security import KafkaSecurity
from eventlog.kafka_topics import topics_apply, topics_diff
from eventlog.log import Consumer, Record, StoredRecord, TopicPartition
from eventlog.open_log import canonical_address, open_log
from local.kafka_broker import BrokerAddress
from schemas.errors import (
    CommitFencedError,
    LogError,
    LogUnavailableError,
    RecordTooLargeError,
    SettingsError,
    UnknownTopicError,
)
from schemas.times import wall_now
from schemas.topics import TOPICS, Topic

# kafka-python drops sockets that were refused without closing them.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <s.*:pytest.PytestUnraisableExceptionWarning")

FOUR = Topic("four", 1, 4, "key", -1)


@pytest.fixture
def prefix() -> str:
    return f"t{uuid.uuid4().hex[:8]}"


@pytest.fixture
def log(broker: BrokerAddress) -> Iterator[KafkaLog]:
    with KafkaLog(broker.log_address) as opened:
        yield opened


@pytest.fixture
def topic(log: KafkaLog, prefix: str) -> str:
    [name] = log.ensure_topics([FOUR], prefix)
    return name


@pytest.fixture
def admin(broker: BrokerAddress) -> Iterator[KafkaAdminClient]:
    with KafkaAdminClient(bootstrap_servers=f"{broker.host}:{broker.port}") as client:
        yield client


def numbered(topic: str, count: int, first: int = 0) -> list[Record]:
    return [Record(topic, f"key {n % 7}".encode(), str(n).encode()) for n in range(first, first + count)]


def send(log: KafkaLog, *records: Record) -> None:
    with log.producer() as producer:
        producer.send(records)


def poll_until(consumer: Consumer, count: int, timeout_s: float = 8.0) -> list[StoredRecord]:
    found: list[StoredRecord] = []
    deadline = time.monotonic() + timeout_s
    while len(found) < count and time.monotonic() < deadline:
        found += consumer.poll(0.2)
    return found


def client_threads() -> int:
    return threading.active_count()


# Addresses and security


def test_an_address_names_servers_and_nothing_else(broker: BrokerAddress) -> None:
    assert canonical_address("kafka:a:1, b:2") == "kafka:a:1,b:2"
    assert canonical_address("kafka:[::1]:9092") == "kafka:[::1]:9092"
    with open_log(broker.log_address) as log:
        assert isinstance(log, KafkaLog)
        assert log.address == broker.log_address
    for wrong in ("kafka:", "kafka:host", "kafka:host:0", "kafka:host:99999", "kafka:a:1,,b:2", "kafka://a:1"):
        with pytest.raises(SettingsError, match="expected kafka:HOST:PORT"):
            canonical_address(wrong)
    with pytest.raises(SettingsError, match="log.sasl_username") as caught:
        canonical_address("kafka:user:hunter2@host:1")
    assert "hunter2" not in str(caught.value)


def test_security_comes_from_the_environment_and_is_masked(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    variables = {
        "MILLRACE__LOG__SECURITY_PROTOCOL": "SASL_SSL",
        "MILLRACE__LOG__SASL_USERNAME": "ann",
        "MILLRACE__LOG__SASL_PASSWORD_FILE": str(secret),
        "MILLRACE__LOG__SSL_CA_FILE": str(secret),
    }
    security = KafkaSecurity.from_environment(variables)
    assert security.client_options() == {
        "security_protocol": "SASL_SSL",
        "ssl_cafile": str(secret),
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "ann",
        "sasl_plain_password": "hunter2",
    }
    assert security.to_environment() == variables
    plain = KafkaSecurity(protocol="SASL_SSL", username="ann", password="hunter2")
    assert KafkaSecurity.from_environment(plain.to_environment()) == plain
    assert "hunter2" not in f"{plain!r} {plain}"
    assert KafkaSecurity.from_environment({}) == KafkaSecurity()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"SECURITY_PROTOCOL": "TLS"}, "MILLRACE__LOG__SECURITY_PROTOCOL.*'SASL_SSL'"),
        ({"SECURITY_PROTOCOL": "SASL_SSL"}, "log.sasl_username: expected a value"),
        ({"SECURITY_PROTOCOL": "SASL_SSL", "SASL_USERNAME": "a"}, "log.sasl_password or log.sasl_password_file"),
        (
            {
                "SECURITY_PROTOCOL": "SASL_SSL",
                "SASL_USERNAME": "a",
                "SASL_PASSWORD": "b",
                "SASL_PASSWORD_FILE": "/nowhere",
            },
            "got both; remove one",
        ),
        (
            {"SECURITY_PROTOCOL": "SASL_SSL", "SASL_USERNAME": "a", "SASL_PASSWORD_FILE": "/nowhere"},
            "sasl_password_file '/nowhere': expected a readable text file: No such file",
        ),
        ({"SECURITY_PROTOCOL": "SSL", "SSL_CA_FILE": "/nowhere"}, "ssl_ca_file '/nowhere'"),
    ],
)
def test_security_that_cannot_work_is_refused_at_once(variables: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        KafkaSecurity.from_environment(
            {f"MILLRACE__LOG__{name}": value for name, value in variables.items()}
        ).client_options()


def test_an_absent_broker_is_named_within_the_time_given() -> None:
    began, before = time.monotonic(), client_threads()
    with pytest.raises(LogUnavailableError, match=r"log kafka:127.0.0.1:1: expected an answer within 1 s"):
        KafkaLog("kafka:127.0.0.1:1", connect_timeout_s=1.0)
    assert time.monotonic() - began < 3.0
    assert client_threads() == before, "nothing of the attempt stays"


# Libraries


def test_the_checksum_and_the_compression_are_the_ones_in_c() -> None:
    assert util.crc32c_c is crc32c.crc32c, "else kafka-python loops over the bytes in Python"
    assert isinstance(crc32c.crc32c, BuiltinFunctionType)
    assert util.calc_crc32c(b"123456789") == 0xE3069283
    assert codec.zstd.__name__ == "zstandard"
    assert codec.zstd.backend == "cext"


# Topics


def test_topics_are_made_as_declared_and_differences_are_named(
    log: KafkaLog, admin: KafkaAdminClient, prefix: str
) -> None:
    count = len(TOPICS)
    assert topics_diff(log, prefix) == [f"{topic.name(prefix)}: missing" for topic in TOPICS.values()]
    assert len(topics_apply(log, prefix)) == count
    assert topics_diff(log, prefix) == []
    assert topics_apply(log, prefix) == []
    bars, runs = TOPICS["bars"].name(prefix), TOPICS["runs"].name(prefix)
    log.change_settings(bars, {"retention.ms": "60000", "compression.type": "gzip"})
    admin.delete_topics([runs])
    admin.create_topics({runs: {"num_partitions": 3}}, wait_for_metadata=True)
    deadline = time.monotonic() + 10
    while not (found := topics_diff(log, prefix)) and time.monotonic() < deadline:
        time.sleep(0.1)  # the broker acknowledges a change before it shows it
    assert f"{bars}: retention.ms: expected -1, got 60000" in found
    assert f"{bars}: compression.type: expected zstd, got gzip" in found
    assert f"{runs}: partitions: expected 1, got 3" in found
    assert f"{runs}: message.timestamp.type: expected LogAppendTime, got CreateTime" in found
    assert f"{bars}: retention.ms: 60000 → -1" in topics_apply(log, prefix)
    assert topics_diff(log, prefix) == [f"{runs}: partitions: expected 1, got 3"]


def test_two_that_make_the_same_topic_at_once_both_succeed(broker: BrokerAddress, prefix: str) -> None:
    topics = [Topic(f"race-{number}", 1, 1, "key", -1) for number in range(8)]
    made: list[str] = []

    def make() -> None:
        with KafkaLog(broker.log_address) as log:
            made.extend(log.ensure_topics(topics, prefix))

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [topic.name(prefix) for topic in topics]


def test_records_are_compressed_and_stamped_by_the_broker(log: KafkaLog, broker: BrokerAddress, topic: str) -> None:
    before = wall_now()
    send(log, *numbered(topic, 100))
    stored = [record for number in range(4) for record in log.read(topic, number, *log.offsets(topic)[number])]
    assert len(stored) >= 100
    assert all(before - 1_000 < record.published_at <= wall_now() for record in stored)
    settings = log.settings([topic])[topic]
    assert {key: settings[key] for key in topic_settings(FOUR)} == topic_settings(FOUR)
    consumer = KafkaConsumer(
        topic, bootstrap_servers=f"{broker.host}:{broker.port}", auto_offset_reset="earliest", group_id=None
    )
    record = next(iter(consumer))
    consumer.close()
    assert record.timestamp_type == 1, "LogAppendTime"


# Producer


def test_a_missing_topic_is_an_error_at_once(log: KafkaLog, admin: KafkaAdminClient, topic: str) -> None:
    began = time.monotonic()
    with log.producer() as producer:
        with pytest.raises(UnknownTopicError, match="nowhere"):
            producer.send([Record("nowhere", b"k", b"v")])
        assert time.monotonic() - began < 2.0
        producer.send(numbered(topic, 1))
        admin.delete_topics([topic])
        with pytest.raises(UnknownTopicError, match=topic):
            producer.send(numbered(topic, 1), timeout_s=1.0)


def test_a_record_that_only_the_broker_refuses_is_named_and_the_producer_lives_on(log: KafkaLog, topic: str) -> None:
    log.change_settings(topic, {"max.message.bytes": "20000"})
    noise = os.urandom(40_000)  # does not compress
    with log.producer() as producer:
        producer.send(numbered(topic, 5))
        with pytest.raises(RecordTooLargeError, match=rf"record for {topic}: .* got 40001 bytes.*MessageSize"):
            producer.send([Record(topic, b"k", b"small"), Record(topic, b"k", noise)])
        producer.send(numbered(topic, 5, first=5))
    # The small neighbour may have arrived: the client sends a batch that was refused again, one by one.
    assert sum(end - start for start, end in log.offsets(topic).values()) in (10, 11)


def test_a_call_larger_than_the_bound_stays_within_it(
    log: KafkaLog, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_producer, "MAX_PENDING_RECORDS", 50)
    lengths: list[int] = []
    settle = kafka_producer._settle

    def watched(pending: kafka_producer.Pending, deadline: float) -> tuple[TopicPartition, int]:
        lengths.append(len(pending))
        return settle(pending, deadline)

    monkeypatch.setattr(kafka_producer, "_settle", watched)
    with log.producer() as producer:
        places = producer.send(numbered(topic, 1_000))
    assert max(lengths) == 50
    assert len(set(places)) == 1_000
    for number in range(4):
        offsets = [offset for source, offset in places if source.partition == number]
        assert offsets == list(range(len(offsets))), "in order"


def test_a_closed_producer_and_consumer_leave_no_thread(log: KafkaLog, topic: str) -> None:
    before = {each.ident for each in threading.enumerate()}
    with log.producer() as producer, log.consumer("threads", [topic]) as consumer:
        producer.send(numbered(topic, 3))
        assert len(poll_until(consumer, 3)) == 3
    deadline = time.monotonic() + 3
    while left := {each for each in threading.enumerate() if each.ident not in before}:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


# Reading


def test_read_passes_over_transaction_markers(log: KafkaLog, broker: BrokerAddress, topic: str) -> None:
    producer = KafkaProducer(bootstrap_servers=f"{broker.host}:{broker.port}", transactional_id=uuid.uuid4().hex)
    producer.init_transactions()
    for number in range(6):
        producer.begin_transaction()
        producer.send(topic, str(number).encode(), b"k", partition=0)
        producer.commit_transaction()
    producer.close()
    start, end = log.offsets(topic)[0]
    assert end - start == 12, "each transaction's marker takes an offset"
    records = log.read(topic, 0, start, end)
    assert [record.value for record in records] == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert [record.offset for record in records] == [0, 2, 4, 6, 8, 10]
    assert log.read(topic, 0, end - 1, end) == [], "a marker alone"
    assert [record.offset for record in log.read(topic, 0, 1, 5)] == [2, 4]
    with log.consumer("markers", [topic]) as consumer:
        found = poll_until(consumer, 6)
        assert [record.value for record in found] == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_reads_that_follow_each_other_miss_and_repeat_nothing(log: KafkaLog, topic: str) -> None:
    with log.producer() as producer:
        producer.send([Record(topic, b"k", str(number).encode()) for number in range(1_000)])
    [(number, (start, end))] = [(each, found) for each, found in log.offsets(topic).items() if found[1]]
    found: list[StoredRecord] = []
    while start < end:
        found += log.read(topic, number, start, end, max_records=130)
        start = found[-1].offset + 1
    assert [int(record.value) for record in found] == list(range(1_000))
    assert len(log.read(topic, number, 500, 503)) == 3


# Groups


def test_a_member_that_polls_for_moments_alone_still_joins(log: KafkaLog, topic: str, prefix: str) -> None:
    # kafka-python forgets a join that outlasts the poll in which it began, if only new metadata had asked for it.
    send(log, *numbered(topic, 8))
    for number in range(6):
        consumer = log.consumer(f"{prefix}-{number}", [topic])
        until = time.monotonic() + 8.0
        while len(consumer.assignment()) < 4 and time.monotonic() < until:
            consumer.poll(0.002)
        assert len(consumer.assignment()) == 4, f"group {number} has got no partitions within 8 s"
        assert len(poll_until(consumer, 8)) == 8
        consumer.close()


def test_members_share_partitions_and_commit_each_record_once(broker: BrokerAddress, log: KafkaLog, topic: str) -> None:
    """Members come and go while records flow; a refused commit's records are read again by whoever owns them."""
    total, done, lock = 1_200, [], threading.Lock()
    stop = threading.Event()
    errors: list[Exception] = []

    def consume(until: threading.Event) -> None:
        try:
            with KafkaLog(broker.log_address) as mine, mine.consumer("shared", [topic]) as consumer:
                while not until.is_set():
                    records = consumer.poll(0.1, 40)
                    if not records:
                        continue
                    time.sleep(0.01)
                    try:
                        consumer.commit({record.source: record.offset + 1 for record in records})
                    except CommitFencedError:
                        continue
                    with lock:
                        done.extend(record.value for record in records)
        except LogError as error:
            errors.append(error)

    first, second = threading.Event(), threading.Event()
    threads = [threading.Thread(target=consume, args=(event,)) for event in (stop, first, second)]
    with log.producer() as producer:
        threads[0].start()
        producer.send(numbered(topic, 400))
        threads[1].start()
        time.sleep(1.0)
        producer.send(numbered(topic, 400, first=400))
        threads[2].start()
        first.set()
        producer.send(numbered(topic, 400, first=800))
        time.sleep(0.5)
        second.set()
        deadline = time.monotonic() + 15
        while log.lag("shared", [topic]) and time.monotonic() < deadline:
            time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(map(int, done)) == list(range(total)), "each record committed by exactly one member"


def test_a_partition_that_was_taken_cannot_be_committed_by_its_old_owner(log: KafkaLog, topic: str) -> None:
    send(log, *numbered(topic, 100))
    old, new = log.consumer("moves", [topic]), log.consumer("moves", [topic])
    held = poll_until(old, 100)
    taken: set[TopicPartition] = set()
    deadline = time.monotonic() + 10
    while not taken and time.monotonic() < deadline:
        old.poll(0.05, max_records=0)
        new.poll(0.05, max_records=0)
        taken = new.assignment()
    assert taken
    assert not taken & old.assignment()
    work = {record.source: record.offset + 1 for record in held}
    assert taken <= set(work)
    with pytest.raises(CommitFencedError, match="another member has taken over"):
        old.commit(work)
    assert log.committed("moves", [topic]) == {}, "nothing of the commit was done"
    assert old.poll(0.1) == [], "the work is void"
    kept = [record for record in held if record.source in old.assignment()]
    again: list[StoredRecord] = []
    while len(again) < len(kept) and time.monotonic() < deadline + 10:
        again += old.poll(0.1)
        new.poll(0.0, max_records=0)  # a member that does not poll holds up the rebalances of all
    assert {record.value for record in again} == {record.value for record in kept}, "and read again"
    old.close()
    new.close()


def test_a_commit_during_a_rebalance_waits_for_its_end(log: KafkaLog, topic: str) -> None:
    send(log, *numbered(topic, 40))
    first, second = log.consumer("waits", [topic]), log.consumer("waits", [topic])
    records = poll_until(first, 40)
    stop = threading.Event()

    def join() -> None:
        while not stop.is_set():
            second.poll(0.05, max_records=0)

    thread = threading.Thread(target=join)
    thread.start()
    deadline = time.monotonic() + 5
    committed = False
    # Over and over while the other member comes in: each commit succeeds, or is refused because partitions have gone.
    while time.monotonic() < deadline and not second.assignment():
        try:
            first.commit({record.source: record.offset + 1 for record in records})
            committed = True
        except CommitFencedError:
            break
        first.poll(0.01, max_records=0)
    stop.set()
    thread.join()
    assert committed
    assert log.lag("waits", [topic]) == 0
    first.close()
    second.close()


def test_a_group_whose_offsets_are_gone_begins_at_the_start_and_says_so(
    log: KafkaLog, admin: KafkaAdminClient, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    send(log, *numbered(topic, 20))
    admin.delete_records({KafkaPartition(topic, number): 1 for number in range(4) if log.offsets(topic)[number][1]})
    left = sum(end - start for start, end in log.offsets(topic).values())
    with caplog.at_level("INFO", "millrace.log"), log.consumer("fresh", [topic]) as consumer:
        assert len(poll_until(consumer, left)) == left
    assert "no committed offset; it begins at the start offset 1" in caplog.text
