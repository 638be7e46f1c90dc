"""A consumer group on the SQLite log: one member at a time, by a lease with a generation."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Mapping, Sequence

from eventlog.log import Consumer, StoredRecord, TopicPartition
from eventlog.sqlite_file import SqliteFile
from eventlog.sqlite_layout import bounds, committed_offsets, select_records
from schemas.errors import CommitFencedError, OffsetOutOfRangeError, UnknownTopicError

_LOOK_S = 0.015
"""How often a waiting ``poll`` asks whether the file has changed: some microseconds each."""

_RETRY_S = 0.1
"""How often a member that waits for the group looks at the lease. A lease lapses without any change of the file."""


class SqliteConsumer(Consumer):
    """A member of a group. It joins at its first ``poll``, when no other member holds the lease.

    A member that has lost the group learns it in two ways: ``commit`` raises ``CommitFencedError``, and the next
    ``poll`` returns nothing with ``assignment()`` empty, before it may join again. What it had read is then void.
    """

    def __init__(self, file: SqliteFile, group: str, topics: Sequence[str], lease_s: float) -> None:
        self._file = file
        self._group = group
        self._topics = sorted(set(topics))
        self._lease_ns = round(lease_s * 1e9)
        self._member = str(uuid.uuid4())
        self._generation: int | None = None
        self._renew_at_ns = 0
        self._next: dict[TopicPartition, int] = {}
        self._turn = 0

    def poll(self, timeout_s: float, max_records: int = 500) -> list[StoredRecord]:
        """Records after those of the last poll, at most 50 MiB of values; renews the lease."""
        deadline = time.monotonic() + timeout_s
        while True:
            version = self._file.data_version()  # before the reads: what comes after them changes it
            if self._is_fenced():
                self._leave()
                return []
            if self._own():
                records = self._fetch(max_records)
                if records:
                    return records
                look_again = self._renew_at_ns / 1e9
            else:
                look_again = time.monotonic() + _RETRY_S
            until = min(deadline, look_again)
            while self._file.data_version() == version and time.monotonic() < until:
                time.sleep(max(0.0, min(_LOOK_S, until - time.monotonic())))
            if time.monotonic() >= deadline:
                return []

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Set next offsets to read; renews the lease. A commit of a generation that has passed is refused."""
        with self._file.transaction() as db:
            known = bounds(db, self._topics)
            for source in offsets:
                if source not in known:
                    raise UnknownTopicError(
                        f"group {self._group!r}: expected to commit a partition of {', '.join(self._topics)}, got "
                        f"{source.topic}[{source.partition}]"
                    )
            generation = self._row(db)[0]
            if self._generation is None or generation != self._generation:
                raise CommitFencedError(
                    f"group {self._group!r}: expected a commit of generation {generation}, got one of "
                    f"{self._generation or 'none'}: another member has taken over; drop the work and poll again"
                )
            db.executemany(
                "INSERT OR REPLACE INTO committed VALUES (?, ?, ?, ?)",
                [(self._group, source.topic, source.partition, offset) for source, offset in offsets.items()],
            )
            self._renew(db)

    def assignment(self) -> set[TopicPartition]:
        """All partitions of the topics while this member holds the group, else none."""
        return set(self._next)

    def close(self) -> None:
        """Give the group up, so that another member has it at its next poll."""
        if self._generation is not None:
            with self._file.transaction() as db:
                db.execute(
                    "UPDATE groups SET member = NULL WHERE name = ? AND generation = ?", (self._group, self._generation)
                )
        self._leave()
        self._file.close()

    def _leave(self) -> None:
        self._generation = None
        self._next = {}

    def _row(self, db: sqlite3.Connection) -> tuple[int, str | None, int, int]:
        row: tuple[int, str | None, int, int] | None = db.execute(
            "SELECT generation, member, lease_until_ns, lease_ns FROM groups WHERE name = ?", (self._group,)
        ).fetchone()
        return row or (0, None, 0, 0)

    def _is_fenced(self) -> bool:
        if self._generation is None:
            return False
        with self._file.snapshot() as db:
            return self._row(db)[0] != self._generation

    def _own(self) -> bool:
        """Hold the group for another lease if it is free or this member's; whether it is now this member's."""
        if self._generation is not None and time.monotonic_ns() < self._renew_at_ns:
            return True
        if self._generation is None:
            with self._file.snapshot() as db:
                if not _is_free(self._row(db)):
                    return False
        with self._file.transaction() as db:
            row = self._row(db)
            if self._generation is None:
                if not _is_free(row):
                    return False
                self._join(db, row[0] + 1)
            elif row[0] != self._generation:
                return False
            self._renew(db)
        return True

    def _join(self, db: sqlite3.Connection, generation: int) -> None:
        db.execute("INSERT OR REPLACE INTO groups VALUES (?, ?, ?, 0, 0)", (self._group, generation, self._member))
        committed = committed_offsets(db, self._group)
        known = bounds(db, self._topics)
        self._next = {source: committed.get(source, start) for source, (_, start, _) in known.items()}
        self._generation = generation

    def _renew(self, db: sqlite3.Connection) -> None:
        now = time.monotonic_ns()
        db.execute(
            "UPDATE groups SET lease_until_ns = ?, lease_ns = ? WHERE name = ?",
            (now + self._lease_ns, self._lease_ns, self._group),
        )
        self._renew_at_ns = now + self._lease_ns // 3

    def _fetch(self, max_records: int) -> list[StoredRecord]:
        records: list[StoredRecord] = []
        with self._file.snapshot() as db:
            known = bounds(db, self._topics)
            for source, (_, start, end) in known.items():
                if not start <= self._next[source] <= end:
                    raise OffsetOutOfRangeError(
                        f"group {self._group!r}, {source.topic}[{source.partition}]: expected the next offset within "
                        f"{start}..{end} (start and end offset of the partition), got {self._next[source]}; if the "
                        f"records before {start} may be missed, commit {start} and open the consumer again"
                    )
            waiting = [source for source, (_, _, end) in known.items() if self._next[source] < end]
            # Each poll begins with another partition, so that a busy one cannot starve the rest.
            self._turn += 1
            for index in range(len(waiting)):
                if len(records) >= max_records:
                    break
                source = waiting[(self._turn + index) % len(waiting)]
                number, _, end = known[source]
                records += select_records(db, source, number, self._next[source], end, max_records - len(records))
        for record in records:
            self._next[record.source] = record.offset + 1
        return records


def _is_free(row: tuple[int, str | None, int, int]) -> bool:
    _, member, lease_until_ns, lease_ns = row
    # The monotonic clock is one for all processes, and a step of the wall clock does not touch it. It begins anew with
    # the machine: a lease from before that lies further ahead than any lease is long.
    return member is None or not 0 < lease_until_ns - time.monotonic_ns() <= lease_ns
