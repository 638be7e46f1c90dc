"""Our parts on the very images that compose.yaml names. It needs a container engine; where there is none it is skipped.

The whole suites run on Apache Kafka's jars and on the local store elsewhere; this says that the images do not differ.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from deploy_compose import ROOT, SERVICES
from docker.errors import DockerException
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import HttpWaitStrategy

sys.path.insert(0, str(ROOT / "tests" / "consumers"))

from consumers_fixtures import TOPIC_NAMES, Writer

from analytics.connect import connect
from analytics.integrity import check_run
from consumers.consumer import GROUP, Progress, run_consumer
from consumers.sink import Sink
from eventlog.kafka_log import KafkaLog
from eventlog.kafka_topics import topics_apply, topics_diff
from eventlog.log import Record, StoredRecord
from local.make_secret import make_secret
from schemas.errors import LogUnavailableError, StoreAuthError
from schemas.topics import TOPICS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    try:
        client = docker.from_env(timeout=10)
        client.ping()
        client.close()
    except DockerException as error:
        # Also in CI: the machines that run it have none.
        pytest.skip(f"no container engine answers; install Docker Engine and start it (docker info): {error}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def kafka_address() -> Iterator[str]:
    """The service ``kafka`` with its own settings, but on a free port: clients come back to the advertised one."""
    service, port = SERVICES["kafka"], free_port()
    container = DockerContainer(service["image"], hostname=service["hostname"]).with_bind_ports(29092, port)
    for name, value in service["environment"].items():
        container.with_env(name, value.replace("HOST://127.0.0.1:29092", f"HOST://127.0.0.1:{port}"))
    with container:
        yield f"kafka:127.0.0.1:{port}"


@pytest.fixture
def log(kafka_address: str) -> Iterator[KafkaLog]:
    deadline = time.monotonic() + 90
    while True:
        try:
            opened = KafkaLog(kafka_address)
            break
        except LogUnavailableError:
            if time.monotonic() > deadline:
                raise
    topics_apply(opened)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def password_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("secrets") / "clickhouse_password"
    make_secret(file)
    # Read by the user of the image.
    file.parent.chmod(0o755)
    return file


@pytest.fixture(scope="module")
def store_url(password_file: Path) -> Iterator[str]:
    """The service ``clickhouse`` with its own settings and a password by file."""
    service, port = SERVICES["clickhouse"], free_port()
    told = service["environment"]
    container = DockerContainer(service["image"]).with_bind_ports(8123, port)
    container.with_volume_mapping(str(password_file.parent), str(Path(told["CLICKHOUSE_PASSWORD_FILE"]).parent), "ro")
    for name, value in told.items():
        container.with_env(name, value)
    with container.waiting_for(HttpWaitStrategy(8123, "/ping").for_status_code(200)):
        yield f"http://{told['CLICKHOUSE_USER']}@127.0.0.1:{port}/{told['CLICKHOUSE_DB']}"


def test_kafka_sends_reads_and_commits(log: KafkaLog) -> None:
    assert topics_diff(log) == []
    topic = TOPICS["bars"].name()
    with log.producer() as producer:
        placed = producer.send([Record(topic, b"key", str(number).encode(), (("h", b"v"),)) for number in range(300)])
    [(source, first), *_] = placed
    assert placed == [(source, first + number) for number in range(300)]
    read = log.read(topic, source.partition, first, first + 300)
    assert [record.value for record in read] == [str(number).encode() for number in range(300)]
    with log.consumer("containers", [topic]) as consumer:
        got: list[StoredRecord] = []
        deadline = time.monotonic() + 60
        while len(got) < 300 and time.monotonic() < deadline:
            got += consumer.poll(0.5)
        assert [record.offset for record in got] == [record.offset for record in read]
        consumer.commit({source: got[-1].offset + 1})
    assert log.committed("containers", [topic])[source] == first + 300


def test_clickhouse_lets_in_the_user_with_the_password_of_the_file_alone(store_url: str, password_file: Path) -> None:
    with Sink.connect(store_url, password_file.read_text().strip()) as sink:
        assert sink.migrate()[0] == "0001_rows"
        assert sink.migrate() == []
    with pytest.raises(StoreAuthError, match="refused user or password"):
        Sink.connect(store_url, "another")


def test_events_go_from_kafka_to_clickhouse_and_the_integrity_table_holds(
    log: KafkaLog, store_url: str, password_file: Path
) -> None:
    writer = Writer(log)
    for number in range(3):
        writer.episode(number)
    writer.close()
    stop = threading.Event()

    def until_all_is_stored(_done: Progress) -> None:
        if log.lag(GROUP, TOPIC_NAMES) == 0:
            stop.set()

    password = password_file.read_text().strip()
    with Sink.connect(store_url, password) as sink:
        sink.migrate()
        run_consumer(log, sink, batch_seconds=0.5, stop=stop, on_progress=until_all_is_stored)
    with connect(store_url, password) as client:
        table = check_run(client, writer.run_id)
    assert table.ok, table.problems
