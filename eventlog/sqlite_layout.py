"""The tables of the SQLite log, and the reads that the log and its consumers share."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Sequence

from eventlog.log import StoredRecord, TopicPartition
from eventlog.sqlite_file import SqliteFile, unpack_headers
from schemas.errors import LogUnavailableError

SPAN = 1 << 40
"""A record's ``position`` is partition number * SPAN + offset: one integer key, and each partition lies together."""

MAX_POLL_BYTES = 50 * 1024 * 1024
"""Values that one read returns, at most, but always one record: Kafka's default ``fetch.max.bytes``."""

_APPLICATION_ID = 0x4D4C5243  # "MLRC"
_VERSION = 1
_TABLES = (
    "CREATE TABLE cluster (id TEXT NOT NULL)",
    "CREATE TABLE topics (name TEXT PRIMARY KEY, topic_id TEXT NOT NULL, partitions INTEGER NOT NULL, "
    "retention_ms INTEGER NOT NULL)",
    "CREATE TABLE partitions (id INTEGER PRIMARY KEY, topic TEXT NOT NULL, partition INTEGER NOT NULL, "
    "start_offset INTEGER NOT NULL DEFAULT 0, end_offset INTEGER NOT NULL DEFAULT 0, UNIQUE (topic, partition))",
    "CREATE TABLE records (position INTEGER PRIMARY KEY, published_at INTEGER NOT NULL, key BLOB NOT NULL, "
    "value BLOB NOT NULL, headers TEXT NOT NULL)",
    "CREATE TABLE groups (name TEXT PRIMARY KEY, generation INTEGER NOT NULL, member TEXT, "
    "lease_until_ns INTEGER NOT NULL, lease_ns INTEGER NOT NULL)",
    "CREATE TABLE committed (group_name TEXT, topic TEXT, partition INTEGER, offset INTEGER NOT NULL, "
    "PRIMARY KEY (group_name, topic, partition)) WITHOUT ROWID",
)


def lay_out(file: SqliteFile) -> str:
    """Make the tables in a new file. Returns the cluster id.

    Raises:
        LogUnavailableError: the file belongs to another program or another version of the log.
    """
    with file.snapshot() as db:
        application_id, version = _marks(db)
    if (application_id, version) == (0, 0):
        with file.transaction() as db:
            application_id, version = _marks(db)  # another process may have been first
            tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if (application_id, version, tables) == (0, 0, 0):
                for table in _TABLES:
                    db.execute(table)
                db.execute("INSERT INTO cluster VALUES (?)", (str(uuid.uuid4()),))
                db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={_VERSION}")
                application_id, version = _APPLICATION_ID, _VERSION
    if application_id != _APPLICATION_ID or version != _VERSION:
        raise LogUnavailableError(
            f"log {file.path}: expected an event log of version {_VERSION}, got an SQLite file of another kind "
            f"(application {application_id:#x}, version {version}); move it away or name another directory"
        )
    with file.snapshot() as db:
        return str(db.execute("SELECT id FROM cluster").fetchone()[0])


def bounds(db: sqlite3.Connection, topics: Sequence[str]) -> dict[TopicPartition, tuple[int, int, int]]:
    """Per partition of the topics: its number in this file, its start offset and its end offset."""
    rows = [
        row
        for topic in topics
        for row in db.execute(
            "SELECT topic, partition, id, start_offset, end_offset FROM partitions WHERE topic = ? ORDER BY partition",
            (topic,),
        )
    ]
    return {TopicPartition(topic, partition): (number, start, end) for topic, partition, number, start, end in rows}


def committed_offsets(db: sqlite3.Connection, group: str) -> dict[TopicPartition, int]:
    """All that the group has committed: the next offset to read of each partition."""
    rows = db.execute("SELECT topic, partition, offset FROM committed WHERE group_name = ?", (group,))
    return {TopicPartition(topic, partition): offset for topic, partition, offset in rows}


def select_records(
    db: sqlite3.Connection, source: TopicPartition, number: int, start: int, stop: int, max_records: int
) -> list[StoredRecord]:
    """The first records of a partition with ``start <= offset < stop``."""
    base, size = number * SPAN, 0
    found: list[StoredRecord] = []
    rows = db.execute(
        "SELECT position, published_at, key, value, headers FROM records WHERE position >= ? AND position < ? "
        "ORDER BY position LIMIT ?",
        (base + start, base + stop, max_records),
    )
    for position, published_at, key, value, headers in rows:
        size += len(value)
        if found and size > MAX_POLL_BYTES:
            break
        found.append(
            StoredRecord(
                source.topic, source.partition, position - base, published_at, key, value, unpack_headers(headers)
            )
        )
    rows.close()
    return found


def _marks(db: sqlite3.Connection) -> tuple[int, int]:
    return db.execute("PRAGMA application_id").fetchone()[0], db.execute("PRAGMA user_version").fetchone()[0]
