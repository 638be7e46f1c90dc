"""Events that the forwarder makes: numbered when they are accepted, the same each time, and never lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import eventlog_program
import pytest
from eventlog_program import deferred, episode

from eventlog.event_makers import MAKERS, make_events
from eventlog.forwarder import Forwarder, pending
from eventlog.outbox import Publisher
from eventlog.outbox_file import Entry, Outbox
from schemas.errors import OutboxError, SchemaError
from schemas.events import decode
from schemas.payload import Payload
from schemas.payloads import ActionsTaken, Deferred, EpisodeStarted, Positions
from schemas.topics import MAX_RECORD_BYTES


class Unknown(Payload):
    EVENT_TYPE = "unknown"
    TOPIC = "episodes"


def opened(publisher: Publisher, directory: Path) -> Outbox:
    return Outbox.open(directory / f"{publisher.publisher_id}.outbox")


def named(entries: Sequence[Entry]) -> list[tuple[str, int]]:
    return [(entry.event_type, entry.number) for entry in entries]


def forward_all(bench: Any) -> None:
    """What a forwarder does, in this process."""
    forwarder = Forwarder(bench.outbox, bench.address, lambda: False)
    for _ in range(20):
        forwarder.step()
    forwarder.close()


def test_they_are_numbered_with_the_others_and_made_in_their_place(bench: Any) -> None:
    with bench.publisher() as publisher:
        for number in range(2):
            assert len(publisher.publish(*episode(publisher, number), deferred(publisher, number))) == 2
        outbox = opened(publisher, bench.outbox)
        entries = outbox.batch(100, 1 << 30)
        assert named(entries) == [
            ("episode.started", 1),
            ("episode.actions", 1),
            ("episode.actions", 2),
            ("positions", 1),
            ("episode.started", 2),
            ("episode.actions", 3),
            ("episode.actions", 4),
            ("positions", 2),
        ]
        assert [entry.seq for entry in entries] == [1, 2, 3, 3, 4, 5, 6, 6]
        assert outbox.batch(100, 1 << 30) == entries, "the same bytes each time that they are sent"
        made = decode(entries[3].record.value, entries[3].record.headers)
        assert isinstance(made.data, Positions)
        assert (made.rows, made.data.step) == (20, list(range(20)))
        assert made.wall_time == decode(entries[0].record.value, entries[0].record.headers).wall_time
        assert outbox.pending() == 6
        outbox.acknowledge(entries, {})
        assert outbox.counts()[1] == {"episode.started": 2, "episode.actions": 4, "positions": 2}
        outbox.close()


def test_a_batch_holds_all_events_of_a_row_or_none(bench: Any) -> None:
    with bench.publisher() as publisher:
        publisher.publish(*(deferred(publisher, number) for number in range(3)))
        outbox = opened(publisher, bench.outbox)
        assert named(outbox.batch(100, 1)) == [("episode.actions", 1), ("positions", 1)]
        assert len(outbox.batch(2, 1 << 30)) == 4
        outbox.close()


def test_a_large_one_is_split_and_counts_once_it_is_whole(bench: Any) -> None:
    bench.make_log()
    with bench.publisher() as publisher:
        publisher.publish(deferred(publisher, 0, rows=100_000))
        parts = [entry.part for entry in opened(publisher, bench.outbox).batch(1, 1) if entry.event_type == "positions"]
        assert parts == list(range(1, len(parts) + 1))
        assert len(parts) > 1
    forward_all(bench)
    assert bench.problems([]) == []
    assert bench.closing_reports()[0].acknowledged == {"episode.actions": 1, "positions": 1, "publisher.report": 1}


@pytest.mark.parametrize("fault", ["unknown", "raises", "too few", "others", "too large"])
def test_what_cannot_be_made_stays_with_all_behind_it_until_it_can(
    bench: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    bench.make_log()
    with bench.publisher(1) as publisher, bench.publisher(2) as fine:
        publisher.publish(*episode(publisher, 0))
        fine.publish(*episode(fine, 0))
        publisher.publish(deferred(publisher, 0), *episode(publisher, 1))
    made = eventlog_program.make_events(deferred(publisher, 0).value)
    with monkeypatch.context() as broken:
        if fault == "unknown":
            broken.setattr("eventlog.event_makers._maker", lambda name: {}[name])
        else:
            large = eventlog_program.make_events(deferred(publisher, 0).value)[1].read()
            large = large.model_copy(update={"policy": "x" * (MAX_RECORD_BYTES + 1)})
            results = {
                "raises": lambda value: 1 / 0,
                "too few": lambda value: made[:1],
                "others": lambda value: made[::-1],
                "too large": lambda value: [made[0], large],
            }
            broken.setattr(eventlog_program, "make_events", results[fault])
            broken.setattr("eventlog.event_makers._maker", lambda name: eventlog_program.make_events)
        forward_all(bench)
    assert "event maker 'test': expected" in caplog.text
    assert "nothing is lost" in caplog.text
    assert [report.worker_index for report in bench.closing_reports()] == [2], "the other one is done"
    assert [event.number for event in bench.events() if event.data.model is EpisodeStarted] == [1, 1]
    assert pending(bench.outbox) == 3
    forward_all(bench)
    assert pending(bench.outbox) == 0
    assert bench.problems([]) == []
    assert len(bench.closing_reports()) == 2


def test_a_refused_record_is_set_aside_and_its_neighbours_of_the_same_row_are_not(bench: Any) -> None:
    with bench.publisher() as publisher:
        publisher.publish(deferred(publisher, 0), deferred(publisher, 1))
        outbox = opened(publisher, bench.outbox)
        entries = outbox.batch(100, 1 << 30)
        outbox.acknowledge(entries, {entries[1]: "too large"})
        assert outbox.refused() == 1
        assert outbox.counts()[1] == {"episode.actions": 2, "positions": 1}
        assert outbox.batch(100, 1 << 30) == []
        assert outbox.pending() == 1
        outbox.close()


def test_only_listed_makers_are_imported_and_only_known_events_accepted(bench: Any) -> None:
    for name in ("json", "trainer.deferred_episode", ""):
        with pytest.raises(OutboxError, match=r"expected one of \['episode'"):
            make_events(name, b"[]")
    assert MAKERS["episode"] == "trainer.deferred_episode"
    with bench.publisher() as publisher:
        with pytest.raises(SchemaError, match="Unknown"):
            publisher.publish(Deferred("test", (ActionsTaken, Unknown), b"{}"))
        assert [event.number for event in publisher.publish(*episode(publisher, 0))] == [1, 1], "no number was lost"


def test_an_outbox_of_another_version_is_said_to_be_one_and_left_as_it_is(
    bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bench.make_log()
    with bench.publisher() as publisher:
        publisher.publish(*episode(publisher, 0))
    path = bench.outbox / f"{publisher.publisher_id}.outbox"
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE records DROP COLUMN maker")
    forward_all(bench)
    assert "no such column: maker; expected a file of this version of Millrace" in caplog.text
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM records").fetchone() == (2,)
