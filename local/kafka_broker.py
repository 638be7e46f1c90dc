"""Start, find and stop an Apache Kafka broker on this machine, without Docker.

One node is broker and controller (KRaft), listens on 127.0.0.1, and keeps everything in ``kafka`` below one state
directory. Any Kafka client can use it::

    broker = start_broker(Path(".millrace"))
    log = open_log(broker.log_address)

Java 17 and, the first time, Maven must be there.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from local.engine_process import start_process, stop_process
from local.kafka_jars import ensure_jars, java
from local.kafka_keeper import ORDERS_VARIABLE, broker_dir
from local.process_dir import ProcessDir
from schemas.errors import LocalError

_PROBE_S: Final = 1.0
_STAYS_OPEN_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class BrokerSecurity:
    """TLS and SCRAM-SHA-512 on the broker's port. The user is made with the storage and cannot be changed here.

    Attributes:
        username: The one user.
        password: The user's password.
        certificate_file: PEM with the broker's private key (PKCS 8, not encrypted) and certificate for 127.0.0.1.
        ca_file: PEM of the authority that signed it.
    """

    username: str
    password: SecretStr
    certificate_file: Path
    ca_file: Path


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker listens.

    Attributes:
        host: Always 127.0.0.1 for the local broker.
        port: TCP port of its clients' listener.
        pid: Process id of its Java process.
        username: The SCRAM user; empty where the listener is plain.
    """

    host: str
    port: int
    pid: int
    username: str = ""

    @property
    def log_address(self) -> str:
        """The address for ``open_log``."""
        return f"kafka:{self.host}:{self.port}"


def start_broker(
    state_dir: Path,
    *,
    port: int = 0,
    detached: bool = False,
    timeout_s: float = 60.0,
    security: BrokerSecurity | None = None,
    settings: Mapping[str, str] | None = None,
    jars_dir: Path | None = None,
) -> BrokerAddress:
    """Start the broker of ``state_dir``, or find the one that already runs there.

    After a crash it opens the same log again, by default on the same port and always with the same cluster id, so that
    clients find it where it was.

    Args:
        state_dir: Directory of everything it keeps; made when missing.
        port: TCP port on 127.0.0.1; 0 takes the last one of this directory, else a free one.
        detached: The broker outlives this process. Otherwise it stops, cleanly, when this process ends in any way.
        timeout_s: Seconds to wait until it takes connections. Fetching the jars comes before.
        security: TLS and SCRAM; by default anyone on this machine is let in.
        settings: Broker settings over ours, by Kafka's names.
        jars_dir: Where Kafka's jars lie or shall lie; see ``local.kafka_jars``.

    Returns:
        The address of a broker that takes connections.

    Raises:
        LocalError: Java or Maven is missing, the directory or the port is not right, the running broker has another
            port or user, or it did not answer in time.
    """
    state = broker_dir(state_dir)
    state.create()
    java()
    jars = ensure_jars(jars_dir)
    orders: dict[str, object] = {"settings": dict(settings or {})}
    if security is not None:
        orders |= {
            "user": security.username,
            "password": security.password.get_secret_value(),
            "certificate": str(security.certificate_file.absolute()),
            "authority": str(security.ca_file.absolute()),
        }
    address = start_process(
        state,
        ["local.kafka_keeper", "--state-dir", str(state_dir.absolute()), "--jars", str(jars), "--port", str(port)],
        lambda: _answering(state),
        timeout_s=timeout_s,
        detached=detached,
        environment={ORDERS_VARIABLE: json.dumps(orders)},
    )
    wanted = "" if security is None else security.username
    if port not in (0, address.port) or address.username != wanted:
        raise LocalError(
            f"the Kafka broker on {state.root} already runs on port {address.port} for user {address.username!r}, "
            f"not on {port} for {wanted!r} as asked; stop it first, or ask for what it has"
        )
    return address


def broker_address(state_dir: Path) -> BrokerAddress | None:
    """Address of the broker that runs on ``state_dir`` and takes connections; None when there is none.

    Raises:
        LocalError: The runtime file is not one.
    """
    return _answering(broker_dir(state_dir))


def stop_broker(state_dir: Path, timeout_s: float = 40.0) -> bool:
    """Stop the broker on ``state_dir`` cleanly.

    Returns:
        Whether one was running.

    Raises:
        LocalError: It was still there after ``timeout_s`` seconds.
    """
    return stop_process(broker_dir(state_dir), timeout_s, "acknowledged records are safe")


def _answering(state: ProcessDir) -> BrokerAddress | None:
    if not state.is_held():
        return None
    record = state.record()
    if record is None:
        return None
    try:
        # A KRaft broker opens its listener last, when it has caught up and may serve. One that was killed just now
        # still takes a connection, but closes it; one that lives waits for us to speak.
        with socket.create_connection((record.host, record.port), _PROBE_S) as probe:
            probe.settimeout(_STAYS_OPEN_S)
            probe.recv(1)
            return None
    except TimeoutError:
        pass
    except OSError:
        return None  # it starts or stops; the caller's time limit decides
    return BrokerAddress(record.host, record.port, record.pid, record.user)
