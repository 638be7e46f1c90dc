from __future__ import annotations

import copy
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventlog.file_lock import FileLock
from eventlog.outbox import Publisher, claim_attempt, this_node
from eventlog.outbox_file import Entry, Outbox, lock_path
from schemas.errors import OutboxError, OutboxFullError, RecordTooLargeError, SchemaError, SettingsError
from schemas.events import Event, decode
from schemas.ids import Role, new_run_id
from schemas.payloads import ActionsTaken, Payload, PublisherReport
from schemas.topics import MAX_RECORD_BYTES


def entries_of(publisher: Publisher, directory: Path) -> list[Entry]:
    outbox = Outbox.open(directory / f"{publisher.publisher_id}.outbox")
    try:
        return outbox.batch(100_000, 1 << 40)
    finally:
        outbox.close()


def events_of(publisher: Publisher, directory: Path) -> list[Event]:
    return [decode(entry.record.value, entry.record.headers) for entry in entries_of(publisher, directory)]


def test_what_was_published_waits_in_order_with_numbers_from_one(bench: Any, actions: Any, started: Any) -> None:
    with bench.publisher(node="n0de") as publisher:
        assert str(publisher.publisher_id) == f"{bench.run_id}.1.r1.0.n0de"
        first = publisher.publish(started(publisher), actions(publisher))
        second = publisher.publish(actions(publisher, 1), started(publisher, 1))
        assert publisher.publish() == []
        assert events_of(publisher, bench.outbox) == first + second
        assert [(event.event_type, event.number) for event in first + second] == [
            ("episode.started", 1),
            ("episode.actions", 1),
            ("episode.actions", 2),
            ("episode.started", 2),
        ]
        assert {event.wall_time for event in first} == {first[0].wall_time}
        assert first[1].rows == 3
        assert {entry.record.topic for entry in entries_of(publisher, bench.outbox)} == {"millrace.episodes.v1"}


def test_topics_take_the_prefix(bench: Any, actions: Any) -> None:
    with bench.publisher(topic_prefix="team") as publisher:
        publisher.publish(actions(publisher))
        assert entries_of(publisher, bench.outbox)[0].record.topic == "team.episodes.v1"


def test_the_default_node_is_a_short_hash_of_the_host_name(bench: Any) -> None:
    with bench.publisher() as publisher:
        assert publisher.publisher_id.node == this_node()
    assert len(this_node()) == 6
    int(this_node(), 16)


def test_a_call_that_fails_changes_nothing(bench: Any, actions: Any, started: Any) -> None:
    with bench.publisher() as publisher:
        publisher.publish(started(publisher))
        with pytest.raises(RecordTooLargeError, match="cannot be split"):
            publisher.publish(actions(publisher), started(publisher, env="x" * 1_100_000))
        [event] = publisher.publish(actions(publisher))
        assert event.number == 1
        assert [event.event_type for event in events_of(publisher, bench.outbox)] == [
            "episode.started",
            "episode.actions",
        ]


def test_a_payload_that_no_consumer_knows_is_refused(bench: Any) -> None:
    class Unknown(Payload):
        EVENT_TYPE: ClassVar[str] = "unknown"
        TOPIC: ClassVar[str] = "episodes"

    with bench.publisher() as publisher, pytest.raises(SchemaError, match=r"expected payloads .* got Unknown"):
        publisher.publish(Unknown())


def test_a_full_outbox_refuses_the_whole_call_and_goes_on_once_there_is_room(bench: Any, actions: Any) -> None:
    with bench.publisher(max_bytes=400_000) as publisher:
        accepted: list[Event] = []

        def publish_on() -> None:
            while True:
                accepted.extend(publisher.publish(actions(publisher, rows=10_000), actions(publisher, rows=10_000)))

        with pytest.raises(OutboxFullError, match=r"at most 400000 bytes .* raise the limit"):
            publish_on()
        assert len(accepted) >= 8
        assert events_of(publisher, bench.outbox) == accepted
        outbox = Outbox.open(bench.outbox / f"{publisher.publisher_id}.outbox")
        outbox.acknowledge(outbox.batch(4, 1 << 40), {})
        outbox.close()
        [event] = publisher.publish(actions(publisher, rows=10_000))
        assert event.number == len(accepted) + 1, "no number was lost by the refusal"


def test_a_disk_without_space_is_a_full_outbox(bench: Any, actions: Any) -> None:
    publisher = bench.publisher()
    # SQLite's own limit on pages gives the same error as a disk that is full.
    with publisher._outbox._file.transaction() as db:
        db.execute("PRAGMA max_page_count=12")
    with pytest.raises(OutboxFullError, match=r"full; free space on its disk"):
        publisher.publish(actions(publisher, rows=100_000))
    [event] = publisher.publish(actions(publisher))
    assert event.number == 1
    publisher.close()


def test_an_outbox_that_was_deleted_under_its_publisher_is_an_error(bench: Any, actions: Any) -> None:
    publisher = bench.publisher()
    (bench.outbox / f"{publisher.publisher_id}.outbox").unlink()
    with pytest.raises(OutboxError, match="deleted or replaced"):
        publisher.publish(actions(publisher))
    with pytest.raises(OutboxError, match="deleted or replaced"):
        publisher.close()
    publisher.close()


def test_a_cumulative_report_comes_when_it_is_due(bench: Any, actions: Any) -> None:
    with bench.publisher(report_every_s=0.0) as publisher:
        [event] = publisher.publish(actions(publisher))
        assert event.event_type == "episode.actions", "reports are not among the caller's events"
        publisher.tick()
        first, second = [
            event.data for event in events_of(publisher, bench.outbox) if isinstance(event.data, PublisherReport)
        ]
    assert first.emitted == {"episode.actions": 1, "publisher.report": 1}
    assert second.emitted == {"episode.actions": 1, "publisher.report": 2}
    assert first.acknowledged == {"episode.actions": 0, "publisher.report": 0}
    assert (first.closing, first.closed_by) == (False, "")
    assert (first.pid, first.role, first.worker_index, first.restart) == (os.getpid(), "r", 1, 0)


def test_an_outbox_whose_publisher_is_not_that_far_yet_holds_nothing(bench: Any) -> None:
    bench.outbox.mkdir()
    path = bench.outbox / "new.outbox"
    path.touch()
    outbox = Outbox.open(path)
    assert (outbox.meta(), outbox.pending(), outbox.batch(10, 10)) == (None, 0, [])
    outbox.close()


def test_tick_does_nothing_before_its_time(bench: Any) -> None:
    with bench.publisher(report_every_s=3_600.0) as publisher:
        publisher.tick()
        assert entries_of(publisher, bench.outbox) == []


def test_an_event_counts_as_acknowledged_once_all_its_parts_are(bench: Any, actions: Any) -> None:
    with bench.publisher() as publisher:
        parts = publisher.publish(actions(publisher, rows=1_200_000))
        assert [event.part for event in parts] == [1, 2, 3]
        outbox = Outbox.open(bench.outbox / f"{publisher.publisher_id}.outbox")
        for acknowledged in (0, 0, 1):
            outbox.acknowledge(outbox.batch(1, 1), {})
            assert outbox.counts() == ({"episode.actions": 1}, {"episode.actions": acknowledged})
        assert outbox.pending() == 0
        outbox.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(0, 60), width=st.integers(1, 90_000))
def test_parts_joined_are_the_whole_and_each_fits(bench: Any, rows: int, width: int) -> None:
    with bench.publisher() as publisher:
        payload = ActionsTaken(
            episode_id=publisher.publisher_id.episode(0, 0),
            actions=[[float(row)] * (width // 4) for row in range(rows)],
        )
        events = publisher.publish(payload)
        entries = entries_of(publisher, bench.outbox)
    assert all(entry.record.size <= MAX_RECORD_BYTES for entry in entries)
    joined = [row for event in events for row in event.data.actions]  # type: ignore[attr-defined]
    assert joined == payload.actions
    assert sum(event.rows for event in events) == rows
    assert [event.part for event in events] == list(range(1, len(events) + 1))
    assert {event.parts for event in events} == {len(events)}
    assert len({event.event_id for event in events}) == len(events)
    first_rows = [event.data.first_row for event in events]  # type: ignore[attr-defined]
    assert first_rows == [sum(event.rows for event in events[:index]) for index in range(len(events))]


def test_threads_of_one_process_may_publish_at_once(bench: Any, actions: Any) -> None:
    with bench.publisher() as publisher, ThreadPoolExecutor(8) as pool:
        events = list(pool.map(lambda n: publisher.publish(actions(publisher, n))[0], range(200)))
        assert sorted(event.number for event in events) == list(range(1, 201))


def test_a_closed_publisher_refuses_and_closes_twice(bench: Any, actions: Any) -> None:
    publisher = bench.publisher()
    publisher.close()
    publisher.close()
    with pytest.raises(OutboxError, match="was closed; open another"):
        publisher.publish(actions(publisher))
    with pytest.raises(OutboxError, match="was closed"):
        publisher.tick()


def test_a_publisher_cannot_be_pickled_or_copied(bench: Any) -> None:
    with bench.publisher() as publisher:
        for attempt in (
            lambda: pickle.dumps(publisher),
            lambda: copy.copy(publisher),
            lambda: copy.deepcopy(publisher),
        ):
            with pytest.raises(TypeError, match=r"publisher .* cannot be pickled .* open one in each process"):
                attempt()


FORK = """
import os, sys
from pathlib import Path
from eventlog.file_lock import FileLock
from eventlog.outbox import Publisher
from eventlog.outbox_file import lock_path
from schemas.errors import OutboxError
from schemas.ids import Role
from schemas.payloads import ActionsTaken

directory, run_id = Path(sys.argv[1]), sys.argv[2]
publisher = Publisher.open(directory, run_id=run_id, attempt=1, role=Role.RUNNER, worker_index=1)
outbox = directory / f"{publisher.publisher_id}.outbox"
payload = ActionsTaken(episode_id=publisher.publisher_id.episode(0, 0), actions=[1])
publisher.publish(payload)
child = os.fork()
if child == 0:
    try:
        publisher.publish(payload)
    except OutboxError as error:
        assert "open one in each process" in str(error), error
    else:
        os._exit(1)
    publisher.close()
    os.read(0, 1)  # outlives its parent
    os._exit(0 if not FileLock.is_held(lock_path(outbox)) else 2)
assert FileLock.is_held(lock_path(outbox))
publisher.publish(payload)
print(child, flush=True)
os._exit(0)
"""


def test_a_forked_child_neither_publishes_nor_keeps_the_lock_nor_harms_the_file(bench: Any, wait_until: Any) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FORK, str(bench.outbox), bench.run_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    bench.processes.append(process)
    assert process.wait(20) == 0
    [path] = bench.outbox.glob("*.outbox")
    assert not FileLock.is_held(lock_path(path)), "the child is alive, and the parent's death is seen all the same"
    outbox = Outbox.open(path)
    assert [entry.number for entry in outbox.batch(10, 1 << 30)] == [1, 2]
    outbox.close()


def test_a_restart_number_is_never_given_twice(bench: Any) -> None:
    seen = []
    for _ in range(3):
        publisher = bench.publisher()
        seen.append(publisher.publisher_id.restart)
        publisher.close()
        for path in bench.outbox.glob("*.outbox*"):
            path.unlink()
    assert seen == [0, 1, 2]
    with bench.publisher(worker_index=2) as other_worker, bench.publisher(node="other") as other_node:
        assert other_worker.publisher_id.restart == other_node.publisher_id.restart == 0
    with Publisher.open(bench.outbox, run_id=bench.run_id, attempt=2, role=Role.RUNNER, worker_index=1) as second:
        assert second.publisher_id.restart == 0
    with Publisher.open(bench.outbox, run_id=bench.run_id, attempt=1, role=Role.DRIVER, worker_index=1) as driver:
        assert driver.publisher_id.restart == 0


def test_publishers_that_open_at_once_get_different_numbers(bench: Any) -> None:
    with ThreadPoolExecutor(12) as pool:
        publishers = list(pool.map(lambda _: bench.publisher(), range(12)))
    assert sorted(publisher.publisher_id.restart for publisher in publishers) == list(range(12))
    for publisher in publishers:
        publisher.close()


def test_attempts_are_claimed_once_and_for_ever(tmp_path: Path) -> None:
    run, other = new_run_id(), new_run_id()
    assert [claim_attempt(tmp_path, run) for _ in range(2)] == [1, 2]
    assert claim_attempt(tmp_path, run, wanted=5) == 5
    assert claim_attempt(tmp_path, run, wanted=5) == 6
    assert claim_attempt(tmp_path, run, wanted=4) == 4
    assert claim_attempt(tmp_path, run) == 7
    assert claim_attempt(tmp_path, other) == 1
    with pytest.raises(SettingsError, match="a number from 1, got 0"):
        claim_attempt(tmp_path, run, wanted=0)
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: claim_attempt(tmp_path, other), range(20)))
    assert sorted(claimed) == list(range(2, 22))


def test_what_cannot_be_an_identity_is_refused(bench: Any) -> None:
    with pytest.raises(SchemaError, match="publisher id"):
        Publisher.open(bench.outbox, run_id="../../etc", attempt=1, role=Role.RUNNER, worker_index=1)
    with pytest.raises(SchemaError, match="publisher id"):
        bench.publisher(node="a.b")
    with pytest.raises(SchemaError, match="publisher id"):
        bench.publisher(worker_index=-1)
    assert not bench.outbox.exists() or list(bench.outbox.glob("*.outbox")) == []


def test_a_directory_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for call in (
        lambda: Publisher.open(
            tmp_path / "file", run_id=new_run_id(), attempt=1, role=Role.RUNNER, worker_index=1
        ).close(),
        lambda: claim_attempt(tmp_path / "file" / "below", new_run_id()),
    ):
        with pytest.raises(OutboxError, match=r"outbox directory .*file.*: expected a directory"):
            call()


def test_a_publish_in_the_middle_of_the_forwarders_write_waits_for_it(bench: Any, actions: Any) -> None:
    with bench.publisher() as publisher:
        other = sqlite3.connect(bench.outbox / f"{publisher.publisher_id}.outbox", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        done = threading.Event()

        def publish() -> None:
            publisher.publish(actions(publisher))
            done.set()

        thread = threading.Thread(target=publish)
        thread.start()
        assert not done.wait(0.2)
        other.execute("COMMIT")
        other.close()
        assert done.wait(5.0)
        thread.join()


def test_a_lock_is_free_only_when_nobody_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    assert not FileLock.is_held(path)
    lock = FileLock.take(path, wait_s=0.0)
    assert lock is not None
    assert FileLock.is_held(path)
    assert FileLock.take(path, wait_s=0.02) is None
    lock.release()
    lock.release()
    assert not FileLock.is_held(path)
