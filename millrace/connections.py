"""Where the settings say that log and ClickHouse are, and clients of both."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from clickhouse_connect.driver.client import Client
from pydantic import SecretStr

from analytics.connect import connect
from eventlog.open_log import canonical_address
from local.kafka_broker import broker_address
from local.store import StoreAddress
from millrace.settings import ClickHouseSettings, Settings
from schemas.errors import LocalError, SettingsError


def log_address(settings: Settings) -> str:
    """Address of the event log: the Kafka cluster of ``log.bootstrap_servers``, or the local log.

    What a cluster needs to let us in goes into the environment, from where this process and those that it starts
    take it.

    Raises:
        SettingsError: the servers or the security make no sense.
        LocalError: the local log is Kafka, and its broker does not run.
    """
    log = settings.log
    if log.bootstrap_servers:
        os.environ.update(log.security.to_environment())
        return canonical_address(f"kafka:{log.bootstrap_servers}")
    if log.engine == "kafka":
        broker = broker_address(settings.state_dir)
        if broker is None:
            raise LocalError(
                f"Kafka broker of {settings.state_dir}: not running; start it with `millrace local up --log kafka`, or "
                "name a cluster by log.bootstrap_servers"
            )
        return canonical_address(broker.log_address)
    return canonical_address(f"sqlite:{settings.state_dir / 'log'}")


def configured_clickhouse(settings: Settings) -> StoreAddress | None:
    """The server that ``clickhouse.url`` names, if any.

    Raises:
        SettingsError: it is no URL of a server, or its password file cannot be read.
    """
    clickhouse = settings.clickhouse
    if not clickhouse.url:
        return None
    at = urlsplit(clickhouse.url)
    if at.scheme != "http" or not at.hostname or at.username or at.password:
        raise SettingsError(f"clickhouse.url {clickhouse.url!r}: expected http://HOST:PORT, user and password apart")
    return StoreAddress(at.hostname, at.port or 8123, clickhouse.user, _password(clickhouse), clickhouse.database)


def _password(clickhouse: ClickHouseSettings) -> SecretStr:
    if not clickhouse.password_file:
        return clickhouse.password
    if clickhouse.password.get_secret_value():
        raise SettingsError("clickhouse.password and clickhouse.password_file: expected one of them, got both")
    try:
        return SecretStr(Path(clickhouse.password_file).read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"clickhouse.password_file {clickhouse.password_file!r}: expected a readable text file: {error}"
        ) from error


def url_of(address: StoreAddress) -> str:
    """The address as consumers and analytics take it, without the password."""
    return f"http://{address.user}@{address.host}:{address.port}/{address.database}"


def connect_to(address: StoreAddress) -> Client:
    """A client to read with."""
    return connect(url_of(address), address.password.get_secret_value())
