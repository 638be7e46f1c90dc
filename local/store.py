"""Start, find and stop the local ClickHouse store.

The store is a process of its own (``local.store_server``) that speaks ClickHouse's HTTP interface on 127.0.0.1; all it
keeps lies under one state directory. Any ClickHouse client can use the address::

    address = start_store(Path(".millrace"))
    client = clickhouse_connect.get_client(
        host=address.host, port=address.port, username=address.user,
        password=address.password.get_secret_value(), database=address.database,
    )
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from local.engine_process import start_process, stop_process
from local.state_dir import DATABASE, StateDir
from schemas.errors import LocalError

_PROBE_TIMEOUT_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where a store listens and how to be let in.

    Attributes:
        host: Always 127.0.0.1 for the local store.
        port: TCP port of the HTTP interface.
        user: User name.
        password: Password, masked when printed.
        database: Database of Millrace's tables.
    """

    host: str
    port: int
    user: str
    password: SecretStr
    database: str = DATABASE

    @property
    def url(self) -> str:
        """The address as a URL, without user and password."""
        return f"http://{self.host}:{self.port}/"


def start_store(state_dir: Path, *, port: int = 0, timeout_s: float = 60.0, detached: bool = False) -> StoreAddress:
    """Start the store on ``state_dir``, or find the one that already runs there.

    Of two starts at once one wins and both get its address. After a crash the store opens the same data again, by
    default on the same port, so that clients find it where it was.

    Args:
        state_dir: Directory of everything the store keeps; made when missing.
        port: TCP port on 127.0.0.1; 0 takes the last one of this directory, else a free one.
        timeout_s: Seconds to wait until it answers.
        detached: The store outlives this process. Otherwise it stops, cleanly, when this process ends in any way.

    Returns:
        The address of a store that answers.

    Raises:
        LocalError: The directory, the port, the chdb package or the engine is not right, the running store has
            another port, or it did not answer in time.
    """
    state = StateDir(state_dir)
    state.create()
    address = start_process(
        state,
        ["local.store_server", "--state-dir", str(state.root), "--port", str(port)],
        lambda: _answering(state),
        timeout_s=timeout_s,
        detached=detached,
    )
    if port not in (0, address.port):
        raise LocalError(
            f"the store on {state.root} already runs on port {address.port}, not on {port} as asked; "
            f"stop it first, or ask for port {address.port} or 0"
        )
    return address


def store_address(state_dir: Path) -> StoreAddress | None:
    """Address of the store that runs on ``state_dir`` and answers; None when there is none.

    Raises:
        LocalError: The runtime file is not one.
    """
    return _answering(StateDir(state_dir))


def stop_store(state_dir: Path, timeout_s: float = 20.0) -> bool:
    """Stop the store on ``state_dir``: running inserts finish, running reads are cancelled.

    Args:
        state_dir: Its state directory.
        timeout_s: Seconds to wait for its end.

    Returns:
        Whether one was running.

    Raises:
        LocalError: It was still there after ``timeout_s``.
    """
    return stop_process(StateDir(state_dir), timeout_s, "acknowledged rows are safe")


def _answering(state: StateDir) -> StoreAddress | None:
    """The address in the runtime file, when a live store answers there with this directory's password."""
    if not state.is_held():
        return None
    record = state.record()
    if record is None:
        return None
    password = state.password()
    token = base64.b64encode(f"{record.user}:{password}".encode()).decode()
    connection = HTTPConnection(record.host, record.port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/?query=SELECT%201", headers={"Authorization": f"Basic {token}"})
        answer = connection.getresponse()
        if answer.status != 200 or answer.read() != b"1\n":
            return None
    except (OSError, HTTPException):
        return None  # it starts, stops or hangs; the caller's time limit decides
    finally:
        connection.close()
    return StoreAddress(record.host, record.port, record.user, SecretStr(password))
