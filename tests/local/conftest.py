"""One store for all tests of the room that only need a store."""

from collections.abc import Callable, Iterator
from pathlib import Path

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client

from local.store import StoreAddress, start_store, stop_store

Connect = Callable[..., Client]


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "state"


@pytest.fixture(scope="session")
def address(state_dir: Path) -> Iterator[StoreAddress]:
    yield start_store(state_dir)
    stop_store(state_dir)


@pytest.fixture(scope="session")
def connect() -> Iterator[Connect]:
    """A function: address → clickhouse-connect client, closed at the end."""
    clients: list[Client] = []

    def make(address: StoreAddress, **options: object) -> Client:
        given = {
            "host": address.host,
            "port": address.port,
            "username": address.user,
            "password": address.password.get_secret_value(),
            "database": address.database,
            **options,
        }
        clients.append(clickhouse_connect.get_client(**given))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture(scope="session")
def client(address: StoreAddress, connect: Connect) -> Client:
    return connect(address)
