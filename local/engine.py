"""The chDB engine of this process: the only module that imports chdb.

One process owns one engine on one directory. Facts that shape this file, all of chDB 4.4 (ClickHouse 26.9):
a connection is a session of its own (settings, database, temporary tables) and costs 0.1 ms, so every request gets a
fresh one and nothing can leak from one request into the next; a fork after ``import chdb`` hangs the child; a thread
that queries while the interpreter exits crashes it.

SQL can read and write whatever files the process may: the store runs as its user, for its user.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from schemas.errors import LocalError, StoreError

MAX_EXECUTION_SECONDS: Final = 600
"""Bound on one query, unless the request sets ``max_execution_time`` itself: its client may be long gone."""

BAD_ARGUMENTS: Final = 36
_UNKNOWN: Final = 1000
_CODE = re.compile(r"Code: (\d+)\. DB::Exception: ")
_REPEATED = re.compile(r"^(Code: \d+\. DB::Exception: )\1+")
_SETTING_NAME = re.compile(r"[A-Za-z_]\w*")


class EngineError(StoreError):
    """The engine refused a statement, with ClickHouse's error code.

    Attributes:
        code: ClickHouse's number of the error, such as 60 for UNKNOWN_TABLE.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    @classmethod
    def of(cls, code: int, name: str, text: str) -> EngineError:
        """An error that the store itself raises, written as ClickHouse writes its own."""
        return cls(code, f"Code: {code}. DB::Exception: {text} ({name})")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one statement gave: the formatted rows and the engine's counts."""

    body: bytes = b""
    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0


class Engine:
    """The engine on ``store_dir``, open until ``close``.

    Args:
        store_dir: Data directory of the engine; created when missing.

    Raises:
        LocalError: chdb is not installed, or the engine cannot open the directory.
    """

    def __init__(self, store_dir: Path) -> None:
        # Every time in the store is UTC; the engine takes its zone from the environment, once.
        os.environ["TZ"] = "UTC"
        self._chdb = _import_chdb()
        self._path = str(store_dir)
        try:
            # Held open for the life of the engine, which ends with its last connection.
            self._anchor = self._chdb.connect(self._path)
            with self.session() as session:
                self.version, self.timezone = session.query("SELECT version(), timezone()").body.decode().split()
        except (RuntimeError, EngineError) as error:
            raise LocalError(
                f"the store's engine cannot open {store_dir}: {str(error).strip()}; "
                "if another process uses this directory, stop it or choose another state directory"
            ) from error

    @contextmanager
    def session(
        self,
        database: str = "default",
        settings: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Iterator[Session]:
        """A fresh session, closed at the end whatever happens inside.

        Args:
            database: Database of names without one.
            settings: ClickHouse settings by name, as text.
            params: Query parameters by name, escaped as in ClickHouse's HTTP interface.

        Raises:
            EngineError: No such database, setting, or value.
        """
        connection = self._chdb.connect(self._path)
        try:
            session = Session(connection)
            session.prepare(database, settings or {}, params or {})
            yield session
        finally:
            connection.close()

    def cancel_reads(self) -> None:
        """Cancel every running query that only reads; running inserts go on."""
        with self.session() as session:
            session.query("KILL QUERY WHERE query_kind IN ('Select', 'Explain', 'Show', 'Describe') ASYNC")

    def close(self) -> None:
        """Close the engine; every session must be closed by then."""
        self._anchor.close()


class Session:
    """One chDB connection, used by one thread, for one request."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def prepare(self, database: str, settings: Mapping[str, str], params: Mapping[str, str]) -> None:
        """Set database, settings and parameters of this session."""
        for name in (*settings, *params):
            if not _SETTING_NAME.fullmatch(name):
                raise EngineError.of(115, "UNKNOWN_SETTING", f"Setting or parameter name {name!r} is not a plain word.")
        values = {"max_execution_time": str(MAX_EXECUTION_SECONDS), **settings}
        # `readonly` forbids every later SET: it goes last, in the order of one statement.
        values.update({name: values.pop(name) for name in ("readonly",) if name in values})
        values = {**{f"param_{name}": value for name, value in params.items()}, **values}
        if database != "default":
            self.query(f"USE {_quoted(database, '`')}".encode("utf-8", "surrogateescape"))
        assignments = ", ".join(f"{name} = {_quoted(value)}" for name, value in values.items())
        self.query(f"SET {assignments}".encode("utf-8", "surrogateescape"))

    def query(self, sql: str | bytes, output_format: str = "TabSeparated") -> Answer:
        """Run one statement and return all of its answer.

        Raises:
            EngineError: The engine refused it.
        """
        try:
            result = self._connection.query(sql, output_format)
        except RuntimeError as error:
            raise _engine_error(error) from error
        return Answer(
            result.bytes() or b"",
            result.storage_rows_read(),
            result.storage_bytes_read(),
            result.rows_written(),
            result.bytes_written(),
        )

    def stream(self, sql: bytes, output_format: str) -> Generator[bytes, None, None]:
        """Run one SELECT and yield its answer in blocks; leaving early cancels it.

        Only for formats without head or foot: the engine formats each block by itself.

        Raises:
            EngineError: The engine refused it, at once or at a later block.
        """
        try:
            blocks = self._connection.send_query(sql, output_format)
            with blocks:
                for block in blocks:
                    yield block.bytes()
        except RuntimeError as error:
            raise _engine_error(error) from error

    def insert(self, head: bytes, input_format: str, chunks: Iterable[bytes]) -> Answer:
        """Insert formatted rows.

        Args:
            head: ``INSERT INTO table (columns)`` without FORMAT and data.
            input_format: A ClickHouse input format.
            chunks: The data, cut anywhere.

        Raises:
            EngineError: The engine refused the statement or the data.
        """
        try:
            with self._connection.send_insert(head, input_format) as inserter:
                for chunk in chunks:
                    inserter.append(chunk)
                done = inserter.finish()
        except RuntimeError as error:
            raise _engine_error(error) from error
        return Answer(written_rows=done.rows_written, written_bytes=done.bytes_written)

    def add_table(self, name: str, structure: str, input_format: str, data: bytes) -> None:
        """Make a table that only this session sees (external data of a query).

        Args:
            name: Name of the table.
            structure: Columns as in CREATE TABLE, such as ``id UInt64, name String``.
            input_format: Format of ``data``.
            data: Its rows.

        Raises:
            EngineError: The engine refused the structure or the data.
        """
        table = _quoted(name, "`")
        self.query(f"CREATE TEMPORARY TABLE {table} ({structure}) ENGINE = Memory")
        self.insert(f"INSERT INTO {table}".encode(), input_format, [data] if data else [])


def _import_chdb() -> ModuleType:
    try:
        import chdb
    except ImportError as error:
        raise LocalError(
            f"the local store needs the chdb package, which cannot be imported ({error}); "
            "install it with: pip install 'millrace[local]'"
        ) from error
    module: ModuleType = chdb
    return module


def _quoted(text: str, quote: str = "'") -> str:
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote


def _engine_error(error: RuntimeError) -> EngineError:
    # chDB puts words of its own before ClickHouse's text, and may wrap it in itself.
    text = str(error).strip()
    found = _CODE.search(text)
    if found is None:
        return EngineError.of(_UNKNOWN, "POCO_EXCEPTION", text or "the engine failed without a message")
    return EngineError(int(found.group(1)), _REPEATED.sub(r"\1", text[found.start() :]))
