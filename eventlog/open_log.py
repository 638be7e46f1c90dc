"""Opening an event log by its address."""

from __future__ import annotations

from pathlib import Path

from eventlog.kafka_client import bootstrap_servers
from eventlog.kafka_log import KafkaLog
from eventlog.log import Log
from eventlog.sqlite_log import SqliteLog
from schemas.errors import SettingsError


def canonical_address(address: str) -> str:
    """The address in the form that means the same in every process.

    ``sqlite:`` and an absolute directory, or ``kafka:`` and servers.

    Raises:
        SettingsError: the address has another form.
    """
    scheme, _, place = address.partition(":")
    if scheme == "sqlite" and place:
        return f"sqlite:{Path(place).expanduser().absolute()}"
    if scheme == "kafka":
        return f"kafka:{','.join(bootstrap_servers(address))}"
    raise SettingsError(
        f"log address {address!r}: expected sqlite:DIRECTORY, such as sqlite:./.millrace/log, or "
        "kafka:HOST:PORT[,HOST:PORT…]"
    )


def open_log(address: str) -> Log:
    """The log at an address: ``sqlite:DIRECTORY`` or ``kafka:HOST:PORT[,HOST:PORT…]``.

    How a Kafka cluster lets us in is read from the environment (``eventlog.kafka_security``).

    Raises:
        SettingsError: the address has another form.
        LogUnavailableError: the log does not answer.
        LogError: the log refused user or password.
    """
    canonical = canonical_address(address)
    scheme, _, place = canonical.partition(":")
    return KafkaLog(canonical) if scheme == "kafka" else SqliteLog(Path(place))
