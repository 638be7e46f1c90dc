"""What the tests of the outbox share: payloads, a log, and an oracle over what is on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from eventlog.forwarder import stop_forwarder
from eventlog.log import Log, StoredRecord
from eventlog.open_log import open_log
from eventlog.outbox import Publisher
from local.kafka_broker import BrokerAddress, start_broker, stop_broker
from schemas.errors import LocalError
from schemas.events import Event, decode
from schemas.ids import Role, new_run_id
from schemas.payloads import ActionsTaken, EpisodeStarted, PublisherReport
from schemas.topics import EVENT_TOPICS, TOPICS

# Tests import eventlog_kafka_broker, which lies beside them.
sys.path.insert(0, str(Path(__file__).parent))

PROGRAM = Path(__file__).with_name("eventlog_program.py")


@dataclass
class Bench:
    """A log and an outbox directory under a temporary directory, with the processes that a test starts on them."""

    root: Path
    run_id: str = field(default_factory=new_run_id)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def outbox(self) -> Path:
        return self.root / "outbox"

    @property
    def address(self) -> str:
        return f"sqlite:{self.root / 'log'}"

    def make_log(self) -> None:
        (self.root / "log").mkdir(exist_ok=True)
        with open_log(self.address) as log:
            log.ensure_topics(list(TOPICS.values()), "millrace")

    def publisher(self, worker_index: int = 1, **more: Any) -> Publisher:
        return Publisher.open(
            self.outbox, run_id=self.run_id, attempt=1, role=Role.RUNNER, worker_index=worker_index, **more
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        return process

    def start_publisher(self, ledger: Path, worker_index: int, count: int) -> subprocess.Popen[str]:
        return self.start("publish", str(self.outbox), self.run_id, str(worker_index), str(ledger), str(count))

    def start_forwarder(self, kind: str = "forward", idle_s: float = 30.0) -> subprocess.Popen[str]:
        self.outbox.mkdir(exist_ok=True)
        return self.start(kind, "--outbox", str(self.outbox), "--log", self.address, "--exit-when-idle", str(idle_s))

    def stored(self) -> list[StoredRecord]:
        """Every record of the event topics, in the order of each partition."""
        with open_log(self.address) as log:
            return [record for topic in EVENT_TOPICS for record in _read_all(log, TOPICS[topic].name())]

    def events(self) -> list[Event]:
        """Every event of the event topics, repeats included."""
        return [decode(record.value, record.headers) for record in self.stored()]

    def closing_reports(self) -> list[PublisherReport]:
        """Closing reports, each once, however often it was sent; and never two that differ."""
        values = {record.value for record in self.stored() if dict(record.headers)["ce_type"] == b"publisher.report"}
        reports = [decode(value).data for value in values]
        return [report for report in reports if isinstance(report, PublisherReport) and report.closing]

    def problems(self, ledgers: list[Path]) -> list[str]:
        """The oracle: what is wrong on the log, given the ledgers of accepted event ids."""
        found = []
        records = self.stored()
        first_seen: dict[bytes, StoredRecord] = {}
        for record in records:
            identity = dict(record.headers)["ce_id"]
            if first_seen.setdefault(identity, record).value != record.value:
                found.append(f"{identity.decode()}: sent twice with different bytes")
        for ledger in ledgers:
            accepted = ledger.read_text().splitlines()
            found += [f"{name}: lost" for name in accepted if name.encode() not in first_seen]
        # First appearances of a publisher's events of one type rise within a partition: repeats may come again later.
        last: dict[tuple[str, int, str, str], tuple[int, int]] = {}
        for record in sorted(first_seen.values(), key=lambda each: (each.source, each.offset)):
            event = decode(record.value, record.headers)
            stream = (record.topic, record.partition, event.publisher_id, event.event_type)
            if (event.number, event.part) <= last.get(stream, (0, 0)):
                found.append(f"{event.event_id}: out of order")
            last[stream] = (event.number, event.part)
        # Numbers have no gaps, up to what the closing report says.
        numbers: dict[tuple[str, str], set[int]] = {}
        for event in self.events():
            numbers.setdefault((event.publisher_id, event.event_type), set()).add(event.number)
        found += [
            f"{name}: numbers with gaps" for name, seen in numbers.items() if seen != set(range(1, len(seen) + 1))
        ]
        for event in self.events():
            if isinstance(event.data, PublisherReport) and event.data.closing:
                held = {kind: len(seen) for (name, kind), seen in numbers.items() if name == event.publisher_id}
                if not event.data.emitted == event.data.acknowledged == held:
                    found.append(f"{event.publisher_id}: closing report {event.data} but the log holds {held}")
        return found

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        if self.outbox.exists():
            stop_forwarder(self.outbox)


def _read_all(log: Log, topic: str) -> Iterator[StoredRecord]:
    for partition, (start, end) in log.offsets(topic).items():
        while start < end:
            records = log.read(topic, partition, start, end)
            if not records:
                break
            yield from records
            start = records[-1].offset + 1


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerAddress]:
    """One Kafka broker for all tests that leave it as they found it. Where there can be none CI fails."""
    state_dir = tmp_path_factory.mktemp("kafka")
    try:
        address = start_broker(state_dir)
    except LocalError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    yield address
    stop_broker(state_dir)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def actions() -> Callable[..., ActionsTaken]:
    """Makes a columnar payload with so many rows."""

    def make(publisher: Publisher, episode: int = 0, rows: int = 3) -> ActionsTaken:
        return ActionsTaken(
            episode_id=publisher.publisher_id.episode(0, episode), actions=[row % 3 for row in range(rows)]
        )

    return make


@pytest.fixture
def started() -> Callable[..., EpisodeStarted]:
    """Makes a payload without columns."""

    def make(publisher: Publisher, episode: int = 0, env: str = "test") -> EpisodeStarted:
        return EpisodeStarted(
            episode_id=publisher.publisher_id.episode(0, episode),
            rllib_episode_id="r",
            role="r",
            worker_index=1,
            env_index=0,
            episode_no=episode,
            env=env,
            policy="agent",
            split="train",
            iteration=1,
            started_at=1,
        )

    return make


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Waits for a condition; fails with what was awaited."""

    def wait(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
            time.sleep(0.01)

    return wait


@pytest.fixture
def kill() -> Callable[[subprocess.Popen[str]], None]:
    """kill -9, and wait for the end."""

    def end(process: subprocess.Popen[str]) -> None:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()

    return end
