"""Publishers and the forwarder on Kafka: nothing is lost, repeats have one identity, order is kept."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Bench
from eventlog_kafka_broker import Broker

from eventlog.forwarder import drain, ensure_forwarder, pending
from eventlog.kafka_log import KafkaLog

pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <s.*:pytest.PytestUnraisableExceptionWarning")


@dataclass
class KafkaBench(Bench):
    """The bench with a broker of its own as the log."""

    broker: Broker | None = None

    @property
    def address(self) -> str:
        assert self.broker is not None
        return self.broker.log_address


@pytest.fixture
def kafka(tmp_path: Path, broker: object) -> Iterator[KafkaBench]:
    own = Broker(tmp_path / "state")
    own.start()
    made = KafkaBench(tmp_path, broker=own)
    made.make_log()
    yield made
    made.close()
    own.close()
    gc.collect()


def test_everything_published_arrives_once_and_in_order(kafka: KafkaBench, actions: Any) -> None:
    publisher = kafka.publisher()
    ensure_forwarder(kafka.outbox, kafka.address)
    for number in range(200):
        publisher.publish(actions(publisher, number))
    publisher.close()
    assert drain(kafka.outbox, 20.0)
    assert pending(kafka.outbox) == 0
    assert len(kafka.events()) == 201, "no fault, no repeat"
    assert kafka.problems([]) == []


def test_a_record_that_the_broker_refuses_is_set_aside_and_its_neighbours_arrive(
    kafka: KafkaBench, wait_until: Any
) -> None:
    from schemas.payloads import ActionsTaken

    with KafkaLog(kafka.address) as log:
        log.change_settings("millrace.episodes.v1", {"max.message.bytes": "20000"})
    with kafka.publisher() as publisher:
        for number in range(30):
            noise = list(os.urandom(60_000)) if number == 15 else [1, 2, 3]
            publisher.publish(ActionsTaken(episode_id=publisher.publisher_id.episode(0, number), actions=noise))
    ensure_forwarder(kafka.outbox, kafka.address)
    wait_until(lambda: len({event.event_id for event in kafka.events()}) >= 29, "the neighbours")
    wait_until(lambda: pending(kafka.outbox) == 1, "the poison alone stays, in the outbox")
    assert "set aside for good" in (kafka.outbox / "forwarder.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["frozen", "killed", "stopped"])
def test_a_broker_that_goes_and_returns_loses_nothing(
    kafka: KafkaBench, tmp_path: Path, wait_until: Any, fault: str
) -> None:
    ledgers = [tmp_path / f"ledger-{worker}" for worker in (1, 2)]
    for ledger in ledgers:
        ledger.touch()
    publishers = [kafka.start_publisher(ledger, worker, 15_000) for worker, ledger in enumerate(ledgers, 1)]
    kafka.start_forwarder()
    wait_until(lambda: all(ledger.stat().st_size > 50_000 for ledger in ledgers), "some events")
    assert kafka.broker is not None
    if fault == "frozen":
        kafka.broker.freeze()
        time.sleep(25)  # longer than a send of the forwarder may take
        kafka.broker.thaw()
    elif fault == "killed":
        kafka.broker.kill()
        time.sleep(5)
        kafka.broker.start()
    else:
        kafka.broker.stop()
        time.sleep(5)
        kafka.broker.start()
    for process in publishers:
        process.wait(60)
    assert drain(kafka.outbox, 60.0)
    assert kafka.problems(ledgers) == []
    assert len(kafka.closing_reports()) == 2
