"""One SQLite file, used by several processes at once: the ground under the SQLite log and the outbox.

Files are in write-ahead mode, so that a reader never waits for a writer (https://www.sqlite.org/wal.html). Every error
of SQLite leaves here as one of ``schemas.errors``, with the file's path and what to do.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import orjson

from schemas.errors import MillraceError
from schemas.events import Headers

_PATIENCE_S = 0.5
"""How long SQLite itself waits for a lock. Longer waits are made of these, so that signals are handled in between."""

_files: weakref.WeakSet[SqliteFile] = weakref.WeakSet()

_leaked: list[tuple[sqlite3.Connection, tuple[int, int] | None]] = []
"""Connections that came by a fork, with the device and inode of their files. They must not be closed here: they are
kept from being collected."""


class SqliteFile:
    """A connection to one SQLite file, for any thread of its process.

    The child of a fork is refused the file while it has its parent's connection: SQLite would take the parent's locks
    for the child's own, and the file could be damaged (https://www.sqlite.org/howtocorrupt.html, 2.6).

    Args:
        path: the file.
        subject: what messages call it, such as ``"log"``.
        error: the class of the errors that it raises.
        synchronous: SQLite's setting. All three survive a kill of any process; a loss of power takes nothing with FULL,
            what came after the last checkpoint with NORMAL, and possibly the file with OFF.
        page_bytes: page size of a new file.
        checkpoint_pages: length of the write-ahead file at which this connection's writes copy it back.
        busy_s: seconds to wait for another process's write.
        create: make the file where it is missing. Its directory must exist.
    """

    def __init__(
        self,
        path: Path,
        *,
        subject: str,
        error: type[MillraceError],
        synchronous: Literal["FULL", "NORMAL", "OFF"],
        page_bytes: int = 4_096,
        checkpoint_pages: int = 1_000,
        busy_s: float = 30.0,
        create: bool = True,
    ) -> None:
        self.path = path
        self._subject = subject
        self._error = error
        self._setup = (
            # The page size must come before the file is put into write-ahead mode.
            f"PRAGMA page_size={page_bytes}",
            "PRAGMA journal_mode=WAL",
            f"PRAGMA synchronous={synchronous}",
            f"PRAGMA wal_autocheckpoint={checkpoint_pages}",
            "PRAGMA journal_size_limit=67108864",
            # Some builds of SQLite overwrite what is deleted, which is as much to write as it was to store.
            "PRAGMA secure_delete=OFF",
        )
        self._busy_s = busy_s
        self._create = create
        self._lock = threading.RLock()
        self._inode: tuple[int, int] | None = None
        self._forked = False
        with self.errors():
            self._connection: sqlite3.Connection | None = self._connect()
        _files.add(self)

    @contextmanager
    def errors(self, busy_s: float | None = None) -> Iterator[None]:
        """Turns SQLite's errors into this file's, with its path and what to do."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(
                f"{self._subject} {self.path}: {_explain(error, self._busy_s if busy_s is None else busy_s)}"
            ) from error

    @contextmanager
    def transaction(self, busy_s: float | None = None) -> Iterator[sqlite3.Connection]:
        """A write that happens as a whole or not at all. Waits for other writers, at most ``busy_s`` seconds."""
        with self._begun("BEGIN IMMEDIATE", self._busy_s if busy_s is None else busy_s) as connection:
            # SQLite would go on writing to a file that was deleted under it, and nobody would ever read that.
            if self._found() != self._inode:
                raise self._error(f"{self._subject} {self.path}: the file was deleted or replaced while it was open")
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Reads that all see the same state."""
        with self._begun("BEGIN", self._busy_s) as connection:
            yield connection

    def data_version(self) -> int:
        """A number that changes when another connection has written to the file."""
        with self.errors(), self._used() as connection:
            return int(connection.execute("PRAGMA data_version").fetchone()[0])

    def checkpoint(self) -> None:
        """Copy what can be copied from the write-ahead file into the file, without making anybody wait."""
        with self.errors(), self._used() as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        """Close the connection. Safe to call twice."""
        with self._lock, self.errors():
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def leave_behind(self) -> None:
        """In the child of a fork: part from the parent's connection."""
        self._lock = threading.RLock()  # the old one may be held by a thread that does not exist here
        if self._connection is not None:
            _leaked.append((self._connection, self._inode))
            self._connection = None
            self._forked = True

    @contextmanager
    def _begun(self, begin: str, busy_s: float) -> Iterator[sqlite3.Connection]:
        with self.errors(busy_s), self._used() as connection:
            try:
                _execute_patiently(connection, begin, busy_s)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # After some errors (disk full) SQLite has rolled back by itself.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _used(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._forked:
                raise self._refusal()
            if self._connection is None:
                raise self._error(f"{self._subject} {self.path}: it was closed; open it again")
            yield self._connection

    def _found(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _refusal(self) -> MillraceError:
        return self._error(
            f"{self._subject} {self.path}: expected a process of its own, got a fork of one that has the file open; "
            f"start this process by spawn, or fork before the file is opened"
        )

    def _connect(self) -> sqlite3.Connection:
        found = self._found()
        if found is not None and any(inode == found for _, inode in _leaked):
            raise self._refusal()
        mode = "rwc" if self._create else "rw"
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=_PATIENCE_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            for statement in self._setup:
                _execute_patiently(connection, statement, self._busy_s)
        except sqlite3.Error:
            connection.close()
            raise
        self._inode = self._found()
        return connection


def pack_headers(headers: Headers) -> str:
    """Headers as JSON text; each byte of a value is one character."""
    return orjson.dumps([(name, content.decode("latin-1")) for name, content in headers]).decode()


def unpack_headers(text: str) -> Headers:
    """The reverse of ``pack_headers``."""
    return tuple([(name, content.encode("latin-1")) for name, content in orjson.loads(text)])


def is_full(error: BaseException | None) -> bool:
    """Whether SQLite ran out of disk space."""
    return isinstance(error, sqlite3.Error) and _code(error) == sqlite3.SQLITE_FULL


def _execute_patiently(connection: sqlite3.Connection, statement: str, busy_s: float) -> None:
    deadline = time.monotonic() + busy_s
    while True:
        try:
            connection.execute(statement).fetchall()
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            # The switch of a new file to write-ahead mode reports a busy file at once, without SQLite's own patience.
            time.sleep(0.01)
        else:
            return


def _code(error: sqlite3.Error) -> int:
    # Only errors that SQLite itself reported carry a code; its low byte is the kind, the rest the detail.
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _explain(error: sqlite3.Error, busy_s: float) -> str:
    advice = {
        sqlite3.SQLITE_BUSY: "another process held its write lock for too long; end that process or try again",
        sqlite3.SQLITE_FULL: "free space on its disk and try again",
        sqlite3.SQLITE_IOERR: "check that its disk has space and works, then try again",
        sqlite3.SQLITE_CANTOPEN: "expected a file in a directory that exists and that this user may write to",
        sqlite3.SQLITE_READONLY: "expected a file and directory that this user may write to",
        sqlite3.SQLITE_PERM: "expected a file and directory that this user may write to",
        sqlite3.SQLITE_NOTADB: "expected an SQLite file, got another kind of file; move it away",
        sqlite3.SQLITE_CORRUPT: "the file is damaged; restore it from a copy or move it away",
    }.get(_code(error))
    if "no such column" in str(error):
        advice = "expected a file of this version of Millrace; use the version that made it"
    waited = f" (waited up to {busy_s:g} s)" if _code(error) == sqlite3.SQLITE_BUSY else ""
    return f"{error}{waited}; {advice}" if advice else f"{error}"


def _leave_behind() -> None:
    for file in list(_files):
        file.leave_behind()


os.register_at_fork(after_in_child=_leave_behind)
