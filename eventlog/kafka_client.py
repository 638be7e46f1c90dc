"""What the Kafka engine's parts share: client options, records and errors in the log's terms."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient

from eventlog.log import StoredRecord
from schemas.errors import LogError, LogUnavailableError, MillraceError, SettingsError

REQUEST_TIMEOUT_S: Final = 5.0
"""How long one request may take before the connection is given up. A broker that is frozen costs this much."""

_SERVER: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:,/@]+):(\d{1,5})")


def bootstrap_servers(address: str) -> list[str]:
    """``HOST:PORT`` of each server in an address ``kafka:HOST:PORT[,HOST:PORT…]``.

    Raises:
        SettingsError: it has another form.
    """
    servers = [server.strip() for server in address.removeprefix("kafka:").split(",")]
    for server in servers:
        found = _SERVER.fullmatch(server)
        if found is None or not 0 < int(found[2]) < 65_536:
            # Not shown: a URL with a password in it is a likely mistake.
            raise SettingsError(
                "log address: expected kafka:HOST:PORT[,HOST:PORT…], such as kafka:localhost:9092, got another form "
                "after kafka:; user and password belong into log.sasl_username and log.sasl_password_file"
            )
    return servers


def client_options(address: str, security: dict[str, Any], connect_timeout_s: float) -> dict[str, Any]:
    """Options of every client: bounded waits, and a way back to a returned broker within about a second."""
    return {
        "bootstrap_servers": bootstrap_servers(address),
        "bootstrap_timeout_ms": round(connect_timeout_s * 1_000),
        "request_timeout_ms": round(REQUEST_TIMEOUT_S * 1_000),
        # By default a client that has waited for a while tries only every 30 s.
        "reconnect_backoff_max_ms": 1_000,
        **security,
    }


def open_client(make: Callable[..., Any], address: str, doing: str, **options: Any) -> Any:
    """A client of kafka-python; where it cannot be made, nothing of it stays.

    Its constructors leave a thread and a socket behind when no broker answers: one for each attempt of an outage.

    Args:
        make: its class.
        address: the log's address, for the error.
        doing: what it is for, for the error.
        options: its options.

    Raises:
        LogUnavailableError: the cluster did not answer in time.
        LogError: it refused user or password.
    """
    networks: list[Any] = []

    def network(**configs: Any) -> Any:
        networks.append(KafkaNetClient(**configs))
        return networks[-1]

    try:
        return make(**options, kafka_client=network)
    except kafka_errors.KafkaError as error:
        for each in networks:
            each.close()
        raise translated(error, address, doing) from error


def stored_record(record: Any) -> StoredRecord:
    """A record of kafka-python's consumers as ours. Kafka keeps milliseconds."""
    headers = tuple((name, content or b"") for name, content in record.headers or ())
    return StoredRecord(
        record.topic,
        record.partition,
        record.offset,
        record.timestamp * 1_000,
        record.key or b"",
        record.value or b"",
        headers,
    )


def translated(error: Exception, address: str, doing: str) -> MillraceError:
    """The error of ours that says what a kafka-python error means.

    Args:
        error: what kafka-python raised.
        address: the log's address.
        doing: what was asked of the log, such as "to list the offsets".
    """
    text = f"{type(error).__name__}: {error}".removesuffix(": ")
    if isinstance(error, kafka_errors.AuthorizationError):
        return LogError(f"log {address}: expected to be allowed {doing}, got {text}; grant it to log.sasl_username")
    if isinstance(error, kafka_errors.SaslAuthenticationFailedError | kafka_errors.UnsupportedSaslMechanismError):
        return LogError(f"log {address}: expected to be let in, got {text}; correct log.sasl_username and its password")
    return LogUnavailableError(
        f"log {address}: expected an answer {doing}, got {text}; start the broker or correct the address"
    )
