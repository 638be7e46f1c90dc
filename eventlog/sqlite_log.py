"""The event log in one SQLite file, for one machine and several processes: Kafka's semantics without a broker.

Where it could hide a mistake that Kafka would punish it is as strict as Kafka: no topic comes into being by being
written to, records have a size limit, keys go to the partitions that Kafka's client would choose, a late commit is
fenced, expired offsets are an error. It is no broker: a consumer group has one member at a time, by lease.
"""

from __future__ import annotations

import random
import sqlite3
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from eventlog.log import Consumer, Log, Producer, Record, StoredRecord, TopicFacts, TopicPartition
from eventlog.partitioner import partition_of
from eventlog.sqlite_consumer import SqliteConsumer
from eventlog.sqlite_file import SqliteFile, pack_headers
from eventlog.sqlite_layout import SPAN, bounds, lay_out, select_records
from schemas.errors import (
    LogUnavailableError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
    UnknownTopicError,
)
from schemas.times import wall_now
from schemas.topics import MAX_RECORD_BYTES, Topic


class SqliteLog(Log):
    """The log in ``<directory>/log.db``. Threads may share it; each process opens its own, and none by a fork.

    Args:
        directory: an existing directory; the file is made in it when it is missing.
        lease_s: how long a consumer group stays with a member that has stopped polling.
        gap_seed: for tests: leave random gaps in the offsets, as compaction and transactions do in Kafka.
        retention_every_s: how often producers look for expired records, at most.

    Raises:
        LogUnavailableError: the directory is missing, cannot be written, or ``log.db`` is no log.
    """

    def __init__(
        self,
        directory: Path,
        *,
        lease_s: float = 10.0,
        gap_seed: int | None = None,
        retention_every_s: float = 60.0,
    ) -> None:
        self._directory = directory.absolute()
        self._lease_s = lease_s
        self._gap_seed = gap_seed
        self._retention_every_s = retention_every_s
        self._facts: dict[str, TopicFacts] = {}
        if not self._directory.is_dir():
            raise LogUnavailableError(
                f"log {self.address}: expected an existing directory, found none; create it or correct the address"
            )
        self._file = self._open(create=True)
        self._cluster_id = lay_out(self._file)

    @property
    def address(self) -> str:
        """``sqlite:`` and the absolute path of the directory."""
        return f"sqlite:{self._directory}"

    @property
    def cluster_id(self) -> str:
        """A UUID, made with the file."""
        return self._cluster_id

    def ensure_topics(self, topics: Sequence[Topic], prefix: str) -> list[str]:
        """Create the topics that are missing. Returns the full names of those it created."""
        created = []
        with self._file.transaction() as db:
            known = {name for (name,) in db.execute("SELECT name FROM topics")}
            for topic in topics:
                name = topic.name(prefix)
                if name in known:
                    continue
                db.execute(
                    "INSERT INTO topics VALUES (?, ?, ?, ?)",
                    (name, str(uuid.uuid4()), topic.partitions, topic.retention_ms),
                )
                db.executemany(
                    "INSERT INTO partitions (topic, partition) VALUES (?, ?)",
                    [(name, partition) for partition in range(topic.partitions)],
                )
                created.append(name)
        return created

    def topic(self, name: str) -> TopicFacts:
        """Facts about a topic; ``UnknownTopicError`` where it does not exist."""
        facts = self._facts.get(name)
        if facts is None:
            with self._file.snapshot() as db:
                row = db.execute("SELECT topic_id, partitions FROM topics WHERE name = ?", (name,)).fetchone()
                known = [topic for (topic,) in db.execute("SELECT name FROM topics ORDER BY name")]
            if row is None:
                raise UnknownTopicError(
                    f"topic {name!r}: expected a topic of log {self.address}, which has {', '.join(known) or 'none'}; "
                    f"create it first"
                )
            # Topics are never deleted here, so what was read once stays true.
            facts = self._facts[name] = TopicFacts(name, row[0], row[1])
        return facts

    def offsets(self, topic: str) -> dict[int, tuple[int, int]]:
        """Partition to (start offset, end offset)."""
        self.topic(topic)
        with self._file.snapshot() as db:
            return {source.partition: (start, end) for source, (_, start, end) in bounds(db, [topic]).items()}

    def committed(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """The group's committed offsets; a partition without one is absent."""
        for topic in topics:
            self.topic(topic)
        with self._file.snapshot() as db:
            rows = db.execute(
                "SELECT topic, partition, offset FROM committed WHERE group_name = ?", (group,)
            ).fetchall()
        return {TopicPartition(topic, partition): offset for topic, partition, offset in rows if topic in topics}

    def read(self, topic: str, partition: int, start: int, stop: int, max_records: int = 500) -> list[StoredRecord]:
        """The first records with ``start <= offset < stop``, at most 50 MiB of values."""
        source = self._partition(topic, partition)
        with self._file.snapshot() as db:
            number, first, end = bounds(db, [topic])[source]
            if start < first or stop > end:
                raise OffsetOutOfRangeError(
                    f"{topic}[{partition}]: expected offsets within {first}..{end} (start and end offset of the "
                    f"partition), got {start}..{stop}; records before the start offset have expired"
                )
            return select_records(db, source, number, start, stop, max_records)

    def trim(self, topic: str, partition: int, before: int) -> None:
        """Delete the records with ``offset < before``; the start offset rises to ``before``, and never falls.

        Raises:
            OffsetOutOfRangeError: ``before`` lies behind the end offset.
            UnknownTopicError: the topic or the partition does not exist.
        """
        source = self._partition(topic, partition)
        with self._file.transaction() as db:
            number, _, end = bounds(db, [topic])[source]
            if before > end:
                raise OffsetOutOfRangeError(
                    f"{topic}[{partition}]: expected to trim up to {end} (its end offset) at most, got {before}"
                )
            _trim(db, number, before)

    def producer(self) -> Producer:
        """A producer with a connection of its own; each ``send`` is one transaction."""
        return _SqliteProducer(self, self._open(), self._gap_seed, self._retention_every_s)

    def consumer(self, group: str, topics: Sequence[str]) -> Consumer:
        """A member of the group with a connection of its own."""
        for topic in topics:
            self.topic(topic)
        return SqliteConsumer(self._open(), group, topics, self._lease_s)

    def close(self) -> None:
        """Close the connection; producers and consumers keep theirs."""
        self._file.close()

    def _partition(self, topic: str, partition: int) -> TopicPartition:
        partitions = self.topic(topic).partitions
        if not 0 <= partition < partitions:
            raise UnknownTopicError(
                f"{topic}[{partition}]: expected a partition from 0 to {partitions - 1}; the topic has no other"
            )
        return TopicPartition(topic, partition)

    def _open(self, *, create: bool = False) -> SqliteFile:
        return SqliteFile(
            self._directory / "log.db",
            subject="log",
            error=LogUnavailableError,
            synchronous="NORMAL",
            page_bytes=16_384,  # records of 2 kB and more: with SQLite's 4 kB half of each page would be empty
            create=create,
        )


class _SqliteProducer(Producer):
    """One transaction for each ``send``."""

    def __init__(self, log: SqliteLog, file: SqliteFile, gap_seed: int | None, retention_every_s: float) -> None:
        self._log = log
        self._file = file
        self._gaps = None if gap_seed is None else random.Random(gap_seed)  # noqa: S311 - not for secrets
        self._retention_every_s = retention_every_s
        self._retention_due = 0.0

    def send(self, records: Sequence[Record], timeout_s: float = 60.0) -> list[tuple[TopicPartition, int]]:
        targets = [self._target(record) for record in records]
        packed = [pack_headers(record.headers) for record in records]
        topics = {target.topic for target in targets}
        with self._file.transaction(timeout_s) as db:
            published_at = wall_now()
            known = bounds(db, sorted(topics))
            ends = {source: end for source, (_, _, end) in known.items()}
            places: list[tuple[TopicPartition, int]] = []
            for target in targets:
                offset = ends[target] + self._gap()
                ends[target] = offset + 1
                places.append((target, offset))
            db.executemany(
                "INSERT INTO records VALUES (?, ?, ?, ?, ?)",
                [
                    (known[target][0] * SPAN + offset, published_at, record.key, record.value, headers)
                    for (target, offset), record, headers in zip(places, records, packed, strict=True)
                ],
            )
            db.executemany(
                "UPDATE partitions SET end_offset = ? WHERE id = ?",
                [(ends[target], known[target][0]) for target in set(targets)],
            )
            if time.monotonic() >= self._retention_due:
                _expire(db, published_at)
                self._retention_due = time.monotonic() + self._retention_every_s
        return places

    def close(self) -> None:
        self._file.close()

    def _target(self, record: Record) -> TopicPartition:
        partitions = self._log.topic(record.topic).partitions
        if record.size > MAX_RECORD_BYTES:
            raise RecordTooLargeError(
                f"record for {record.topic}: expected at most {MAX_RECORD_BYTES} bytes of key, value and headers, got "
                f"{record.size}; split it"
            )
        return TopicPartition(record.topic, partition_of(record.key, partitions))

    def _gap(self) -> int:
        if self._gaps is None or self._gaps.random() < 0.7:
            return 0
        return self._gaps.randint(1, 5)


def _expire(db: sqlite3.Connection, now: int) -> None:
    rows = db.execute(
        "SELECT id, end_offset, retention_ms FROM partitions JOIN topics ON name = topic WHERE retention_ms >= 0"
    ).fetchall()
    for number, end, retention_ms in rows:
        # Only a beginning of the partition can expire: a record after a younger one waits, as in a segment of Kafka.
        oldest = db.execute(
            "SELECT position FROM records WHERE position >= ? AND position < ? AND published_at >= ? "
            "ORDER BY position LIMIT 1",
            (number * SPAN, (number + 1) * SPAN, now - retention_ms * 1_000),
        ).fetchone()
        _trim(db, number, end if oldest is None else oldest[0] - number * SPAN)


def _trim(db: sqlite3.Connection, number: int, before: int) -> None:
    db.execute("UPDATE partitions SET start_offset = ? WHERE id = ? AND start_offset < ?", (before, number, before))
    db.execute("DELETE FROM records WHERE position >= ? AND position < ?", (number * SPAN, number * SPAN + before))
