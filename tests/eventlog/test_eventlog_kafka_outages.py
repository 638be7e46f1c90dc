"""The Kafka engine while the broker is frozen, killed and restarted; and on a broker with TLS and SCRAM."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from eventlog_kafka_broker import Broker, make_certificate
from pydantic import SecretStr

from eventlog.kafka_log import KafkaLog
from eventlog.kafka_security import KafkaSecurity
from eventlog.log import Record, StoredRecord
from local.kafka_broker import BrokerSecurity
from schemas.errors import LogError, LogUnavailableError
from schemas.topics import TOPICS, Topic

# kafka-python drops sockets that were refused without closing them; `gc.collect` keeps that within these tests.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <s.*:pytest.PytestUnraisableExceptionWarning")

ONE = Topic("one", 1, 1, "key", -1)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory, broker: object) -> Iterator[Broker]:
    """A broker to maltreat. Depends on the shared one, which skips or fails where there can be none."""
    made = Broker(tmp_path_factory.mktemp("victim"))
    made.start()
    yield made
    made.close()


@pytest.fixture
def mortal(victim: Broker) -> Iterator[Broker]:
    """The victim, empty and well."""
    victim.start()
    with victim.admin() as admin:
        if topics := [name for name in admin.list_topics() if not name.startswith("__")]:
            admin.delete_topics(topics)
    yield victim
    if victim.is_alive():
        victim.thaw()
    gc.collect()


def read_all(log: KafkaLog, topic: str) -> list[StoredRecord]:
    found: list[StoredRecord] = []
    for number, (start, end) in log.offsets(topic).items():
        while start < end and (records := log.read(topic, number, start, end)):
            found += records
            start = records[-1].offset + 1
    return found


def later(seconds: float, action: Callable[[], object]) -> threading.Thread:
    thread = threading.Timer(seconds, action)
    thread.start()
    return thread


def records(first: int, count: int, topic: str = "t.one.v1") -> list[Record]:
    return [Record(topic, b"k", str(number).encode()) for number in range(first, first + count)]


@pytest.mark.slow
def test_one_send_lasts_through_a_freeze_and_sends_nothing_twice(mortal: Broker) -> None:
    with KafkaLog(mortal.log_address) as log:
        log.ensure_topics([ONE], "t")
        with log.producer() as producer:
            producer.send(records(0, 10))
            mortal.freeze()
            thread = later(6.5, mortal.thaw)  # longer than a request may take: the client sends again
            producer.send(records(10, 500), timeout_s=30)
            thread.join()
        assert [int(record.value) for record in read_all(log, "t.one.v1")] == list(range(510))


def test_a_frozen_broker_costs_a_send_its_time_and_no_more(mortal: Broker) -> None:
    with KafkaLog(mortal.log_address) as log:
        log.ensure_topics([ONE], "t")
        with log.producer() as producer:
            producer.send(records(0, 1))
            threads = threading.active_count()
            mortal.freeze()
            began = time.monotonic()
            with pytest.raises(LogUnavailableError, match="acknowledgements within 1 s.*send them again"):
                producer.send(records(1, 5), timeout_s=1.0)
            assert time.monotonic() - began < 9.0
            assert threading.active_count() < threads, "the sender that failed is gone"
            mortal.thaw()
            producer.send(records(1, 5))
        values = [int(record.value) for record in read_all(log, "t.one.v1")]
    assert list(dict.fromkeys(values)) == list(range(6)), "in order; repeats may be"


def test_producer_and_consumer_go_on_after_a_killed_broker_returns(mortal: Broker) -> None:
    with KafkaLog(mortal.log_address) as log:
        cluster = log.cluster_id
        log.ensure_topics([ONE], "t")
        with log.producer() as producer, log.consumer("group", ["t.one.v1"]) as consumer:
            producer.send(records(0, 50))
            found = consumer.poll(5.0)
            assert found
            consumer.commit({record.source: record.offset + 1 for record in found})
            mortal.kill()
            with pytest.raises(LogUnavailableError, match=r"log kafka:127.0.0.1:\d+: expected an answer to a commit"):
                consumer.commit({found[-1].source: found[-1].offset + 1})
            with pytest.raises(LogUnavailableError):
                producer.send(records(50, 1), timeout_s=0.5)
            mortal.start()
            producer.send(records(50, 50))
            deadline = time.monotonic() + 20
            while len(found) < 100 and time.monotonic() < deadline:
                found += consumer.poll(0.5)
            assert list(dict.fromkeys(int(record.value) for record in found)) == list(range(100))
            consumer.commit({found[-1].source: found[-1].offset + 1})
            assert log.lag("group", ["t.one.v1"]) == 0
        assert log.cluster_id == cluster
    with KafkaLog(mortal.log_address) as log:
        assert log.cluster_id == cluster


@pytest.mark.slow
def test_a_dead_broker_is_no_empty_topic(mortal: Broker) -> None:
    with KafkaLog(mortal.log_address) as log:
        log.ensure_topics([ONE], "t")
        with log.consumer("group", ["t.one.v1"]) as consumer:
            consumer.poll(0.5)
            mortal.freeze()
            began = time.monotonic()

            def poll_on() -> None:
                while time.monotonic() - began < 30:
                    assert consumer.poll(0.5) == []

            with pytest.raises(LogUnavailableError, match="expected an answer"):
                poll_on()
            mortal.thaw()
            assert consumer.poll(0.5) == []


@pytest.mark.slow
def test_bars_of_long_ago_outlive_a_roll_of_their_segments(mortal: Broker) -> None:
    """Kafka deletes by record time; a record stamped 1990 under a retention is gone at once."""
    mortal.stop()
    mortal.settings = {"log.retention.check.interval.ms": "500", "log.initial.task.delay.ms": "500"}
    address = mortal.start()
    with KafkaLog(mortal.log_address) as log, mortal.admin() as admin, log.producer() as producer:
        log.ensure_topics(list(TOPICS.values()), "t")
        bars = TOPICS["bars"].name("t")
        admin.create_topics({"naive": {"num_partitions": 1}}, wait_for_metadata=True)
        naive = naive_producer(f"{address.host}:{address.port}")
        for year in (1962, 1990):
            stamp = (year - 1970) * 31_556_952_000_000
            for number in range(100):
                producer.send([Record(bars, b"feed/IBM/1d", f"{stamp + number}".encode())])
                naive.send("naive", f"{stamp + number}".encode(), timestamp_ms=max(0, (stamp + number) // 1_000))
        naive.flush()
        naive.close()
        log.change_settings(bars, {"segment.ms": "1000"})  # a roll at the next record
        time.sleep(1.5)
        producer.send([Record(bars, b"feed/IBM/1d", b"last")])
        deadline = time.monotonic() + 60
        while log.offsets("naive")[0][0] == 0:
            assert time.monotonic() < deadline, "the control: without our settings the records are deleted"
            time.sleep(0.5)
        assert len(read_all(log, bars)) == 201


def naive_producer(server: str):  # type: ignore[no-untyped-def]
    from kafka import KafkaProducer

    return KafkaProducer(bootstrap_servers=server)


# TLS and SCRAM


@dataclass
class Secured:
    broker: Broker
    security: KafkaSecurity


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, broker: object) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("secured")
    certificate, authority = make_certificate(directory)
    password = directory / "password"
    password.write_text('quote" and \\ and =\n')
    security = BrokerSecurity("ann", SecretStr(password.read_text().strip()), certificate, authority)
    made = Broker(directory / "state", security=security)
    made.start()
    yield Secured(made, KafkaSecurity(protocol="SASL_SSL", username="ann", password_file=password, ca_file=authority))
    made.close()


def test_a_log_behind_tls_and_scram_is_used_by_settings(secured: Secured) -> None:
    assert secured.broker.address is not None
    assert secured.broker.address.username == "ann"
    with KafkaLog(secured.broker.log_address, security=secured.security) as log:
        log.ensure_topics([ONE], "t")
        with log.producer() as producer, log.consumer("group", ["t.one.v1"]) as consumer:
            producer.send(records(0, 20))
            assert len(consumer.poll(10.0)) == 20
        assert len(read_all(log, "t.one.v1")) == 20


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"password_file": None, "password": SecretStr("hunter2")}, LogError, "log"),
        ({"ca_file": None}, LogUnavailableError, "expected an answer within 2 s"),
        ({"protocol": "PLAINTEXT"}, LogUnavailableError, "expected an answer within 2 s"),
    ],
)
def test_a_wrong_password_authority_or_protocol_is_refused(
    secured: Secured, change: dict[str, object], error: type[LogError], words: str
) -> None:
    wrong = secured.security.model_copy(update=change)
    with pytest.raises(error, match=words) as caught:
        KafkaLog(secured.broker.log_address, security=wrong, connect_timeout_s=2.0)
    assert "hunter2" not in str(caught.value)
    gc.collect()


def test_no_secret_is_on_a_command_line_or_readable_by_others(secured: Secured) -> None:
    import psutil

    assert secured.broker.address is not None
    broker = psutil.Process(secured.broker.address.pid)
    for process in (broker, broker.parent()):
        assert process is not None
        assert "quote" not in " ".join(process.cmdline())
    properties = secured.broker.state_dir / "kafka" / "server.properties"
    assert properties.stat().st_mode & 0o077 == 0
