"""``docker compose up`` without an engine: each of our services as a process, from its own command and environment.

What a container would give is put in its place: volumes are folders, the network's names are the local broker and the
local store, and whatever a service leaves running when it ends is killed with -9, as the end of a container does.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import psutil
import pytest
from deploy_compose import OURS, SERVICES, in_order, stays_up

from local.kafka_broker import BrokerAddress, start_broker, stop_broker
from local.store import StoreAddress, start_store, stop_store
from schemas.errors import LocalError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent
CONSUMERS = 2
STOPS_WITHIN_S = 10.0
# Small, but all of it. Over what compose.yaml says.
SMALL = {
    "producer": {"MILLRACE__FEED__SPEED": "200000000"},
    "trainer": {
        "MILLRACE__TRAIN__ITERATIONS": "3",
        "MILLRACE__ENV__EPISODE_LENGTH": "64",
        "MILLRACE__ALGORITHM__ENV_RUNNERS__NUM_ENV_RUNNERS": "2",
        "MILLRACE__ALGORITHM__ENV_RUNNERS__NUM_ENVS_PER_ENV_RUNNER": "4",
        "MILLRACE__ALGORITHM__REPORTING__MIN_SAMPLE_TIMESTEPS_PER_ITERATION": "500",
    },
}


class Ended(NamedTuple):
    code: int
    output: str
    seconds: float


class Container:
    """One of our services as a process."""

    def __init__(self, project: Project, name: str, command: list[str], environment: Mapping[str, str]) -> None:
        self._mark = uuid.uuid4().hex
        self._output = project.root / f"{name}-{self._mark[:6]}.log"
        # Nothing of this test's own environment: an image has none of it.
        given = {"PATH": f"{BIN}:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "TEST_MARK": self._mark}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                cwd=project.work,
                env=given | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def wait_for(self, pattern: str, timeout_s: float = 90.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not re.search(pattern, self.output):
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{self.output}"
            assert self.process.poll() is None, f"ended without {pattern!r}:\n{self.output}"
            time.sleep(0.05)

    def wait(self, timeout_s: float = 180.0) -> Ended:
        begin = time.monotonic()
        try:
            code = self.process.wait(timeout_s)
        finally:
            seconds = time.monotonic() - begin
            self.end()
        return Ended(code, self.output, seconds)

    def stop(self) -> Ended:
        """SIGTERM, as ``docker compose stop`` sends it to the process that init has started."""
        self.process.terminate()
        ended = self.wait(2 * STOPS_WITHIN_S)
        assert ended.seconds < STOPS_WITHIN_S, ended.output
        return ended

    def end(self) -> None:
        """The end of a container: nothing of it goes on."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("TEST_MARK") == self._mark:
                    process.kill()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        self.process.wait(10)


class Project:
    """The compose project: folders for its volumes, addresses for its names."""

    def __init__(self, root: Path, ray_folder: str) -> None:
        self.root = root
        self.work = root / "work"
        self.work.mkdir()
        self.ray_folder = ray_folder
        self.addresses: dict[str, str] = {}
        self.running: dict[str, list[Container]] = {}
        self.ended: dict[str, Ended] = {}
        self._started: list[Container] = []

    def volume(self, name: str) -> Path:
        return self.root / "volumes" / name

    def image_folder(self, name: str) -> Path:
        """What a service finds below a path that is no volume of its own: read-only in the container, absent here."""
        return self.root / "read-only" / name

    def mapped(self, name: str, text: str) -> str:
        """The text of a command or an environment, with folders and addresses of this machine."""
        for volume in OURS[name].get("volumes", []):
            source, target, *_ = volume.split(":")
            text = text.replace(target, str(self.volume(source)))
        for folder in ("/var/lib/millrace", "/run/millrace"):
            text = text.replace(folder, str(self.image_folder(name)) + folder)
        for address, here in self.addresses.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(address)}(?!\d)", here, text)
        return text

    def start(self, name: str, command: list[str] | None = None, **over: str) -> Container:
        environment = {
            variable: self.mapped(name, str(value)) for variable, value in OURS[name].get("environment", {}).items()
        }
        environment |= {"HOME": self.mapped(name, "/var/lib/millrace"), "RAY_TMPDIR": self.ray_folder, **over}
        words = OURS[name]["command"] if command is None else command
        container = Container(self, name, [self.mapped(name, word) for word in words], environment)
        self._started.append(container)
        return container

    def run(self, name: str, command: list[str] | None = None, **over: str) -> Ended:
        return self.start(name, command, **over).wait()

    def close(self) -> None:
        for container in self._started:
            container.end()


def start_kafka(state_dir: Path) -> BrokerAddress:
    """The local broker, with those settings of the service that are not about where things are."""
    here = ("NODE_ID", "PROCESS_ROLES", "LISTENER", "ADVERTISED", "CONTROLLER", "INTER_BROKER", "LOG_DIRS", "HEAP")
    settings = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in SERVICES["kafka"]["environment"].items()
        if name.startswith("KAFKA_") and not name.removeprefix("KAFKA_").startswith(here)
    }
    try:
        return start_broker(state_dir, settings=settings)
    except LocalError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def start_clickhouse(state_dir: Path, password_file: Path) -> StoreAddress:
    """The local store, with the user, the database and the password that the service is told."""
    state_dir.mkdir()
    (state_dir / "store.password").write_text(password_file.read_text())
    address = start_store(state_dir)
    told = SERVICES["clickhouse"]["environment"]
    assert (address.user, address.database) == (told["CLICKHOUSE_USER"], told["CLICKHOUSE_DB"])
    return address


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """All services, started in the order of their conditions, two consumers among them; `report` has ended."""
    root = tmp_path_factory.mktemp("compose")
    # Unix sockets have short names only.
    ray_folder = tempfile.mkdtemp(prefix="mr", dir="/tmp")
    made = Project(root, ray_folder)
    try:
        for name in in_order():
            if name == "kafka":
                broker = start_kafka(root / "kafka")
                made.addresses["kafka:9092"] = f"{broker.host}:{broker.port}"
            elif name == "clickhouse":
                [volume] = [v for v in SERVICES[name]["volumes"] if v.startswith("secrets:")]
                told = SERVICES[name]["environment"]["CLICKHOUSE_PASSWORD_FILE"]
                file = Path(told.replace(volume.split(":")[1], str(made.volume("secrets"))))
                address = start_clickhouse(root / "clickhouse", file)
                # Not by a name of the loopback's: as to a server elsewhere, rows go compressed.
                made.addresses["clickhouse:8123"] = f"127.1:{address.port}"
            elif name not in OURS:
                assert SERVICES[name]["profiles"] == ["tools"]
            elif stays_up(name):
                made.running[name] = [made.start(name) for _ in range(CONSUMERS)]
            else:
                made.ended[name] = ended = made.run(name, **SMALL.get(name, {}))
                assert ended.code == 0, f"{name}: {ended.output}"
        yield made
    finally:
        made.close()
        stop_store(root / "clickhouse")
        stop_broker(root / "kafka")
        shutil.rmtree(ray_folder, ignore_errors=True)


def query(project: Project, sql: str) -> list[dict[str, Any]]:
    ended = project.run("consumer", ["millrace", "query", sql, "--json"])
    assert ended.code == 0, ended.output
    rows: list[dict[str, Any]] = json.loads(ended.output)
    return rows


def test_the_bars_of_the_producer_become_episodes_and_the_integrity_table_holds(project: Project) -> None:
    assert set(project.ended) | set(project.running) == set(OURS)
    published = re.search(r"published ([\d,]+) bars", project.ended["producer"].output)
    assert published, project.ended["producer"].output
    report = project.ended["report"].output
    assert "The integrity table holds" in report
    assert "On bars that it had never seen the agent returned" in report
    [test] = query(project, "SELECT uniqExact(symbol) AS symbols FROM episodes WHERE split = 'test'")
    assert test["symbols"] == 5
    [train] = query(project, "SELECT count() AS episodes, sum(steps) AS steps FROM episodes WHERE split = 'train'")
    assert train["episodes"] > 0
    assert train["steps"] > 0


def test_the_commands_that_the_report_shows_can_be_pasted(project: Project) -> None:
    report = project.ended["report"].output
    lines = [line.strip() for line in report.partition("Next:")[2].splitlines() if line.strip()]
    assert len(lines) == 3, report
    for line in lines:
        words = shlex.split(line)
        assert words[:4] == ["docker", "compose", "exec", "consumer"]
        ended = project.run("consumer", words[4:])
        assert ended.code == 0, ended.output


def test_the_health_check_of_clickhouse_asks_what_answers(project: Project) -> None:
    url = SERVICES["clickhouse"]["healthcheck"]["test"][-1]
    with urlopen(project.mapped("consumer", url)) as answer:  # noqa: S310 - our own store
        assert answer.status == 200


def test_what_was_done_once_is_done_once_only(project: Project) -> None:
    # `docker compose up` again, on the same volumes.
    secret = next(project.volume("secrets").iterdir())
    before = secret.read_text()
    for name in ("secrets", "topics", "migrations", "producer"):
        ended = project.run(name)
        assert ended.code == 0, ended.output
    assert secret.read_text() == before
    assert before.strip() not in "".join(each.output for each in project.ended.values())
    assert "all topics are as declared" in project.run("topics").output
    assert query(project, "SELECT count() FROM schema_migrations GROUP BY number HAVING count() > 1") == []


def test_a_producer_ends_in_order_on_sigterm(project: Project) -> None:
    producer = project.start("producer", MILLRACE__DATA__FEED="slow", MILLRACE__FEED__SPEED="2000000")
    producer.wait_for(r"replay: [1-9]")
    ended = producer.stop()
    assert ended.code == 0, ended.output
    assert "stopped before the end" in ended.output


def test_a_trainer_ends_in_order_on_sigterm_and_loses_nothing(project: Project) -> None:
    trainer = project.start("trainer", **{**SMALL["trainer"], "MILLRACE__TRAIN__ITERATIONS": "1000"})
    trainer.wait_for(r"iteration 2/")
    ended = trainer.stop()
    assert ended.code == 0, ended.output
    sent = project.run("trainer", ["millrace", "forward"])
    assert sent.code == 0, sent.output
    report = project.run("report")
    assert report.code == 0, report.output
    assert query(project, "SELECT status FROM runs ORDER BY started_at DESC LIMIT 1") == [{"status": "stopped"}]


def test_services_without_a_volume_write_nothing_outside_of_tmp(project: Project) -> None:
    assert all(OURS[name]["read_only"] and OURS[name]["tmpfs"] == ["/tmp"] for name in OURS)  # noqa: S108
    assert not (project.root / "read-only").exists()
    assert list(project.work.iterdir()) == []


def test_consumers_share_the_work_and_end_in_order_on_sigterm(project: Project) -> None:
    # Last: nothing is stored after it.
    for consumer in project.running["consumer"]:
        ended = consumer.stop()
        assert ended.code == 0, ended.output
        done = re.search(r"done: (\d+) records", ended.output)
        assert done, ended.output
        assert int(done[1]) > 0, ended.output
