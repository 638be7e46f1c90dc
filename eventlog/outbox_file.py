"""The outbox of one publisher: a file that the publisher fills and the forwarder empties.

``<publisher_id>.outbox`` holds the records that the log has not acknowledged yet, in the order of their publication.
The publisher holds a lock on ``<publisher_id>.lock`` as long as it lives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from eventlog.event_makers import make_events
from eventlog.log import Record
from eventlog.outbox_records import Accepted, Meta, Unmade, make_records
from eventlog.sqlite_file import SqliteFile, is_full, pack_headers, unpack_headers
from schemas.errors import OutboxError, OutboxFullError
from schemas.events import Envelope
from schemas.ids import PublisherId

SUFFIX = ".outbox"

_PAGE_BYTES = 16_384
"""An episode takes some ten pages of SQLite's usual 4 kB, each with its checksum and its write."""

_TABLES = (
    # A record that is made, or what is to become several: maker, numbers and wall_time are of the latter alone.
    # AUTOINCREMENT: a number is not given again after its row was deleted.
    "CREATE TABLE records (seq INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT, key BLOB, value BLOB NOT NULL, "
    "headers TEXT, event_type TEXT, number INTEGER, part INTEGER, parts INTEGER, maker TEXT, numbers TEXT, "
    "wall_time INTEGER)",
    "CREATE TABLE refused (event_type TEXT, number INTEGER, part INTEGER, parts INTEGER NOT NULL, topic TEXT NOT NULL, "
    "key BLOB NOT NULL, value BLOB NOT NULL, headers TEXT NOT NULL, reason TEXT NOT NULL, "
    "PRIMARY KEY (event_type, number, part)) WITHOUT ROWID",
    "CREATE TABLE counters (event_type TEXT PRIMARY KEY, emitted INTEGER NOT NULL, acknowledged INTEGER NOT NULL) "
    "WITHOUT ROWID",
    "CREATE TABLE meta (publisher_id TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL, "
    "topic_prefix TEXT NOT NULL, closed INTEGER NOT NULL DEFAULT 0, closing INTEGER NOT NULL DEFAULT 0)",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A record that waits in an outbox. What was unmade becomes several, of one ``seq``."""

    seq: int
    record: Record
    event_type: str
    number: int
    part: int
    parts: int


class Outbox:
    """The file, from either end."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self.path = file.path

    @classmethod
    def create(cls, directory: Path, meta: Meta) -> Outbox:
        """A new outbox. The caller holds its lock already, so that nobody takes it for a dead publisher's."""
        # To copy the write-ahead file back takes milliseconds, and a publish() must not: the forwarder does it. The
        # publisher does so itself only after 100 MB, when there is no forwarder.
        file = _open(
            directory / f"{meta.publisher_id}{SUFFIX}", create=True, checkpoint_pages=100_000_000 // _PAGE_BYTES
        )
        # One transaction: a killed publisher leaves a whole outbox or an empty file.
        with file.transaction() as db:
            for table in _TABLES:
                db.execute(table)
            db.execute(
                "INSERT INTO meta (publisher_id, host, pid, topic_prefix) VALUES (?, ?, ?, ?)",
                (str(meta.publisher_id), meta.host, meta.pid, meta.topic_prefix),
            )
        return cls(file)

    @classmethod
    def open(cls, path: Path) -> Outbox:
        """An outbox that is there already.

        Raises:
            OutboxError: it cannot be opened.
        """
        return cls(_open(path, create=False, checkpoint_pages=4_000_000 // _PAGE_BYTES))

    def meta(self) -> Meta | None:
        """Whose outbox it is. None in an empty file: its publisher is not that far yet, or was killed there."""
        with self._file.snapshot() as db:
            if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchone():
                return None
            row = db.execute("SELECT publisher_id, host, pid, topic_prefix, closed, closing FROM meta").fetchone()
        return Meta(PublisherId.parse(row[0]), row[1], row[2], row[3], bool(row[4]), bool(row[5]))

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Per event type: the highest number given, and how many whole events the log has acknowledged."""
        with self._file.snapshot() as db:
            rows = db.execute("SELECT event_type, emitted, acknowledged FROM counters").fetchall()
        return {row[0]: row[1] for row in rows}, {row[0]: row[2] for row in rows}

    def append(self, events: Sequence[Accepted], max_bytes: int | None = None) -> None:
        """Add records, all or none.

        Raises:
            OutboxFullError: they would take the file past ``max_bytes``, or its disk is full.
            OutboxError: the file cannot be written.
        """
        try:
            self._append(events, max_bytes=max_bytes, closing=False)
        except OutboxError as error:
            if is_full(error.__cause__):
                raise OutboxFullError(str(error)) from error
            raise

    def append_closing_report(self, event: tuple[Envelope, Record]) -> None:
        """Add the last record. From here on, an empty outbox is one whose every record is acknowledged."""
        self._append([event], max_bytes=None, closing=True)

    def mark_closed(self) -> None:
        """The publisher has published its last event."""
        with self._file.transaction() as db:
            db.execute("UPDATE meta SET closed = 1")

    def batch(self, max_records: int, max_bytes: int) -> list[Entry]:
        """The records to send next, in order; at least one where there is one. What is unmade is made here, whole.

        Args:
            max_records: rows of the file; what is unmade is one.
            max_bytes: limit of their values, as they lie in the file.

        Raises:
            OutboxError: the first of them cannot be made.
        """
        meta = self.meta()
        if meta is None:
            return []
        rows: list[tuple[Any, ...]] = []
        size = 0
        with self._file.snapshot() as db:
            found = db.execute(
                "SELECT seq, topic, key, value, headers, event_type, number, part, parts, maker, numbers, wall_time "
                "FROM records ORDER BY seq LIMIT ?",
                (max_records,),
            )
            for row in found:
                size += len(row[3])
                if rows and size > max_bytes:
                    break
                rows.append(row)
            found.close()
        entries: list[Entry] = []
        for row in rows:
            try:
                entries += _entries(meta, row)
            except OutboxError:
                if entries:
                    break  # those before it can go
                raise
        return entries

    def acknowledge(self, entries: Sequence[Entry], refused: Mapping[Entry, str]) -> None:
        """Drop these records, which ``batch`` gave, and count the events that the log now has whole.

        Args:
            entries: the log has them, or will never take them.
            refused: those of them that it will never take, with the reason. They are set aside, where they stay until
                a person has looked at them.
        """
        if not entries:
            return
        with self._file.transaction() as db:
            db.executemany(
                "INSERT INTO refused VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        *(entry.event_type, entry.number, entry.part, entry.parts),
                        *(entry.record.topic, entry.record.key, entry.record.value),
                        *(pack_headers(entry.record.headers), reason),
                    )
                    for entry, reason in refused.items()
                ],
            )
            never = set(db.execute("SELECT event_type, number FROM refused"))
            whole = Counter(
                entry.event_type
                for entry in entries
                # The parts of an event lie in order, so the last one completes it.
                if entry.part == entry.parts and (entry.event_type, entry.number) not in never
            )
            # They lie together, and the publisher waits meanwhile: one statement takes two thirds of the time of many.
            db.execute("DELETE FROM records WHERE seq BETWEEN ? AND ?", (entries[0].seq, entries[-1].seq))
            db.executemany(
                "UPDATE counters SET acknowledged = acknowledged + ? WHERE event_type = ?",
                [(count, event_type) for event_type, count in whole.items()],
            )

    def refused(self) -> int:
        """How many records the log has refused for good."""
        with self._file.snapshot() as db:
            return int(db.execute("SELECT count(*) FROM refused").fetchone()[0])

    def pending(self) -> int:
        """How many records the log has not acknowledged, those that it refused included; an episode unmade is one."""
        if self.meta() is None:
            return 0
        with self._file.snapshot() as db:
            return sum(
                int(db.execute(query).fetchone()[0])
                for query in ("SELECT count(*) FROM records", "SELECT count(*) FROM refused")
            )

    def data_version(self) -> int:
        """Changes when the other end has written."""
        return self._file.data_version()

    def checkpoint(self) -> None:
        """Copy the write-ahead file back, without making the other end wait."""
        self._file.checkpoint()

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._file.close()

    def _append(self, events: Sequence[Accepted], *, max_bytes: int | None, closing: bool) -> None:
        with self._file.transaction() as db:
            db.executemany(
                "INSERT INTO records (topic, key, value, headers, event_type, number, part, parts, maker, numbers, "
                "wall_time) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                map(_row, events),
            )
            highest: dict[str, int] = {}
            for event in events:
                highest |= event.numbers if isinstance(event, Unmade) else {event[0].event_type: event[0].number}
            db.executemany(
                "INSERT INTO counters VALUES (?, ?, 0) ON CONFLICT DO UPDATE SET emitted = excluded.emitted",
                list(highest.items()),
            )
            if closing:
                db.execute("UPDATE meta SET closing = 1")
            if max_bytes is not None:
                page, pages, free = (
                    int(db.execute(f"PRAGMA {name}").fetchone()[0])
                    for name in ("page_size", "page_count", "freelist_count")
                )
                if (pages - free) * page > max_bytes:
                    raise OutboxFullError(
                        f"outbox {self.path}: expected at most {max_bytes} bytes waiting for the log, got "
                        f"{(pages - free) * page} with this call; see whether the log answers and the forwarder runs "
                        f"(forwarder.log beside it), or raise the limit"
                    )


def _row(event: Accepted) -> tuple[Any, ...]:
    """A row of table ``records``, without its ``seq``."""
    if isinstance(event, Unmade):
        numbers = orjson.dumps(event.numbers).decode()
        return None, None, event.value, None, None, None, None, None, event.maker, numbers, event.wall_time
    which, record = event
    headers = pack_headers(record.headers)
    number = which.event_type, which.number, which.part, which.parts
    return record.topic, record.key, record.value, headers, *number, None, None, None


def _entries(meta: Meta, row: tuple[Any, ...]) -> list[Entry]:
    """The records of one row of table ``records``."""
    seq, topic, key, value, headers, event_type, number, part, parts, maker, numbers, wall_time = row
    if maker is None:
        return [Entry(seq, Record(topic, key, value, unpack_headers(headers)), event_type, number, part, parts)]
    last: dict[str, int] = orjson.loads(numbers)
    counted = {event_type: number - 1 for event_type, number in last.items()}
    payloads = make_events(maker, value)
    try:
        made = make_records(meta, payloads, counted, wall_time)
    except Exception as error:
        raise OutboxError(f"event maker {maker!r}: expected events that fit into records, got {error}") from error
    if list(dict.fromkeys(event.event_type for event, _ in made)) != list(last) or counted != last:
        raise OutboxError(
            f"event maker {maker!r}: expected events numbered {last}, as was declared, got others up to {counted}"
        )
    return [Entry(seq, record, event.event_type, event.number, event.part, event.parts) for event, record in made]


def lock_path(outbox: Path) -> Path:
    """The lock that belongs to an outbox."""
    return outbox.with_name(outbox.name.removesuffix(SUFFIX) + ".lock")


def _open(path: Path, *, create: bool, checkpoint_pages: int) -> SqliteFile:
    # No fsync: a kill of any process loses nothing, a loss of power may; and publish() must not wait for a disk.
    return SqliteFile(
        path,
        subject="outbox",
        error=OutboxError,
        synchronous="OFF",
        create=create,
        page_bytes=_PAGE_BYTES,
        checkpoint_pages=checkpoint_pages,
    )
