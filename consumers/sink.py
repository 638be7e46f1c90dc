"""The connection to ClickHouse by which rows are written: always HTTP, to a server or to the local engine."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from clickhouse_connect.driver.insert import InsertContext

from consumers.migrate import migrate
from consumers.rows import Block
from consumers.store_errors import named_errors, store_error
from schemas.errors import SettingsError, StoreUnavailableError

# Servers differ in their defaults, and none of them may change what an acknowledged insert means here: written when it
# returns, and every row of it, since repeats are folded by row identity and not by the hash of a block. A replay of old
# events may touch many months at once.
_INSERT_SETTINGS = {"async_insert": 0, "insert_deduplicate": 0, "max_partitions_per_insert_block": 0}

_DATABASE_OF_EVERY_SERVER = "default"


class Sink:
    """Writes blocks of rows into one database. Not for use by several threads at once.

    Attributes:
        client: the connection itself.
        address: where the store is, for people.
        database: the database that is written.
    """

    def __init__(self, client: Client, address: str, database: str) -> None:
        self.client = client
        self._contexts: dict[str, InsertContext] = {}
        self.address = address
        self.database = database

    @classmethod
    def connect(
        cls,
        url: str,
        password: str,
        *,
        timeout_s: float = 30.0,
        request_timeout_s: float = 30.0,
        stop: threading.Event | None = None,
    ) -> Sink:
        """Connect, waiting for a store that is still starting.

        Args:
            url: ``http://USER@HOST:PORT/DATABASE`` (or https). Without a database it is ``millrace``.
            password: of that user; never part of the address, where every process list would show it.
            timeout_s: how long to wait until the store answers, in seconds.
            request_timeout_s: the longest that a single insert may take, in seconds; keep it below the time in which
                the log takes a silent member for dead.
            stop: once it is set, the waiting is over.

        Raises:
            SettingsError: the address has another form.
            StoreUnavailableError: no answer in time.
            StoreAuthError: user or password were refused.
        """
        scheme, host, port, user, database = _parts(url)
        address = f"{scheme}://{host}:{port}"
        deadline = time.monotonic() + timeout_s
        stop = stop or threading.Event()
        while True:
            try:
                client = clickhouse_connect.get_client(
                    interface=scheme,
                    host=host,
                    port=port,
                    username=user,
                    password=password,
                    database=_DATABASE_OF_EVERY_SERVER,  # Ours may not exist yet.
                    connect_timeout=max(1, min(10, int(timeout_s))),
                    send_receive_timeout=request_timeout_s,
                    autogenerate_session_id=False,  # A session would serialise requests, and keep state we do not want.
                    compress=host not in ("127.0.0.1", "::1", "localhost"),
                )
                return cls(client, address, database)
            except ClickHouseError as error:
                named = store_error(error, address, "connect")
                if not isinstance(named, StoreUnavailableError):
                    raise named from error
                if time.monotonic() >= deadline or stop.is_set():
                    raise StoreUnavailableError(
                        f"ClickHouse at {address}: expected an answer within {timeout_s:g} s, got none; check that it "
                        f"runs and that the address is right ({_cause(error)})"
                    ) from error
            stop.wait(min(0.5, max(0.0, deadline - time.monotonic())))

    def migrate(self) -> list[str]:
        """Bring the tables up to this version. Returns the names of the steps that were applied.

        Raises:
            StoreError: see :func:`consumers.migrate.migrate`.
        """
        return migrate(self.client, self.database)

    def insert(self, table: str, block: Block) -> None:
        """Insert a block. When this returns, ClickHouse has acknowledged every row of it.

        Raises:
            StoreUnavailableError: no answer, or an error that passes; the rows may or may not be there: insert again.
            StoreError: the insert is refused for good, such as for a missing table or column.
        """
        with named_errors(self.address, f"insert {block.rows} rows into {self.database}.{table}"):
            context = self._contexts.get(table)
            if context is None:
                context = self.client.create_insert_context(
                    table,
                    column_names=block.columns,
                    database=self.database,
                    column_oriented=True,
                    settings=dict(_INSERT_SETTINGS),
                )
                self._contexts[table] = context
            try:
                context.data = block.data
                self.client.insert(context=context)
            except ClickHouseError:
                # It read the table's columns once; after a failure they may be others.
                del self._contexts[table]
                raise

    def close(self) -> None:
        """Release the connection. Safe to call twice."""
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _parts(url: str) -> tuple[str, str, int, str, str]:
    expected = "expected http://USER@HOST:PORT/DATABASE"
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError as error:
        raise SettingsError(f"ClickHouse address: {expected}, got one that is no URL: {error}") from error
    if split.password is not None:
        raise SettingsError(
            f"ClickHouse address: {expected}, got one with a password in it, which every process list would show; set "
            "MILLRACE__CLICKHOUSE__PASSWORD or give --password-file"
        )
    if split.scheme not in ("http", "https") or not split.hostname:
        raise SettingsError(f"ClickHouse address {url!r}: {expected}")
    default_port = 8443 if split.scheme == "https" else 8123
    return (
        split.scheme,
        split.hostname,
        port or default_port,
        split.username or "default",
        split.path.strip("/") or "millrace",
    )


def _cause(error: BaseException) -> str:
    """The innermost reason, such as ``Connection refused``, without addresses of objects."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {error}"
