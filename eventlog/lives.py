"""Numbers that are given once and for ever: attempts of a run, and process lives of a worker.

They stand in ``lives.db`` beside the outboxes and stay when the outboxes are gone. A number that was given twice would
give two events one identity, and the store would keep one of them.
"""

from __future__ import annotations

from pathlib import Path

from eventlog.sqlite_file import SqliteFile
from schemas.errors import OutboxError, SettingsError
from schemas.ids import Role

_TABLES = (
    "CREATE TABLE IF NOT EXISTS attempts (run_id TEXT, attempt INTEGER, PRIMARY KEY (run_id, attempt)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS lives (run_id TEXT, attempt INTEGER, role TEXT, worker_index INTEGER, node TEXT, "
    "lives INTEGER NOT NULL, PRIMARY KEY (run_id, attempt, role, worker_index, node)) WITHOUT ROWID",
)


def claim_attempt(directory: Path, run_id: str, wanted: int | None = None) -> int:
    """The number of a new attempt of the run, from 1: ``wanted`` where it is free, else one above all given so far.

    Args:
        directory: the outbox directory; made where it is missing.
        run_id: the run.
        wanted: the number that the caller would like.

    Raises:
        SettingsError: ``wanted`` is below 1.
        OutboxError: the directory cannot be written.
    """
    if wanted is not None and wanted < 1:
        raise SettingsError(f"attempt of run {run_id}: expected a number from 1, got {wanted}")
    file = _open(directory)
    try:
        with file.transaction() as db:
            given = {attempt for (attempt,) in db.execute("SELECT attempt FROM attempts WHERE run_id = ?", (run_id,))}
            attempt = wanted if wanted is not None and wanted not in given else max(given, default=0) + 1
            db.execute("INSERT INTO attempts VALUES (?, ?)", (run_id, attempt))
    finally:
        file.close()
    return attempt


def allot_restart(directory: Path, run_id: str, attempt: int, role: Role, worker_index: int, node: str) -> int:
    """How many process lives this worker has had before in the attempt on the node, from 0.

    Raises:
        OutboxError: the directory cannot be written.
    """
    worker = (run_id, attempt, str(role), worker_index, node)
    file = _open(directory)
    try:
        with file.transaction() as db:
            row = db.execute(
                "SELECT lives FROM lives WHERE (run_id, attempt, role, worker_index, node) = (?, ?, ?, ?, ?)", worker
            ).fetchone()
            before = int(row[0]) if row else 0
            db.execute("INSERT OR REPLACE INTO lives VALUES (?, ?, ?, ?, ?, ?)", (*worker, before + 1))
    finally:
        file.close()
    return before


def make_directory(directory: Path) -> None:
    """Make the outbox directory where it is missing.

    Raises:
        OutboxError: it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutboxError(
            f"outbox directory {directory}: expected a directory that this user may write to: {error.strerror}; "
            f"correct the path or its permissions"
        ) from error


def _open(directory: Path) -> SqliteFile:
    make_directory(directory)
    # FULL, unlike the outboxes: a number that a loss of power took back would be given again.
    file = SqliteFile(directory / "lives.db", subject="outbox registry", error=OutboxError, synchronous="FULL")
    with file.transaction() as db:
        for table in _TABLES:
            db.execute(table)
    return file
