"""A store for the time of one command: the one that runs, or one that is started and stopped again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from clickhouse_connect.driver.client import Client

from local.store import start_store, stop_store, store_address
from millrace.connections import configured_clickhouse, connect_to
from millrace.settings import Settings
from schemas.errors import LocalError


@contextmanager
def store_session(settings: Settings) -> Iterator[Client]:
    """A client of ClickHouse.

    Yields:
        A clickhouse-connect client, to read with.

    Raises:
        LocalError: there is no store in the state directory.
        StoreError: it does not answer or refuses.
    """
    configured = configured_clickhouse(settings)
    if configured is not None:
        with connect_to(configured) as client:
            yield client
        return
    running = store_address(settings.state_dir)
    if running is None and not (settings.state_dir / "store").is_dir():
        raise LocalError(
            f"state directory {settings.state_dir}: expected a store in it, there is none; run `millrace demo` or "
            "`millrace local up` first, or name the directory with --set local.state_dir=DIR"
        )
    address = running or start_store(settings.state_dir, port=settings.local.store_port)
    try:
        with connect_to(address) as client:
            yield client
    finally:
        if running is None:
            stop_store(settings.state_dir)
