"""The local Kafka broker: found, stopped and started again like the store."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from kafka import KafkaAdminClient

from local.kafka_broker import BrokerAddress, broker_address, start_broker, stop_broker
from local.kafka_jars import JARS_VARIABLE, ensure_jars, java
from schemas.errors import LocalError


@pytest.fixture(scope="module", autouse=True)
def jars() -> Path:
    try:
        java()
        return ensure_jars()
    except LocalError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "state"
    stop_broker(tmp_path / "state")


def admin(address: BrokerAddress) -> KafkaAdminClient:
    return KafkaAdminClient(bootstrap_servers=f"{address.host}:{address.port}")


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for_end(pid: int, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not has_ended(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.02)


def test_it_is_found_stopped_killed_and_keeps_its_port_and_its_identity(state_dir: Path) -> None:
    assert broker_address(state_dir) is None
    assert not stop_broker(state_dir)
    first = start_broker(state_dir)
    assert start_broker(state_dir) == first == broker_address(state_dir)
    assert psutil.Process(first.pid).memory_info().rss < 220 * 2**20
    with admin(first) as client:
        cluster = client.describe_cluster()["cluster_id"]
        client.create_topics({"kept": {"num_partitions": 2}}, wait_for_metadata=True)
    with pytest.raises(LocalError, match=f"already runs on port {first.port} .*not on 1234"):
        start_broker(state_dir, port=1234)
    os.kill(first.pid, signal.SIGKILL)
    wait_for_end(first.pid)
    again = start_broker(state_dir)
    assert (again.port, again.pid == first.pid) == (first.port, False)
    with admin(again) as client:
        assert client.describe_cluster()["cluster_id"] == cluster
        assert client.list_topics() == ["kept"]
    assert stop_broker(state_dir)
    assert broker_address(state_dir) is None
    assert not psutil.pid_exists(again.pid)
    assert sorted(path.name for path in state_dir.iterdir()) == ["kafka"], "everything lies in one place"


@pytest.mark.parametrize("detached", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_ends_with_its_starter_unless_detached(state_dir: Path, detached: bool) -> None:
    code = (
        "import sys, time, pathlib; from local.kafka_broker import start_broker;"
        f"print(start_broker(pathlib.Path({str(state_dir)!r}), detached={detached}).pid, flush=True); time.sleep(60)"
    )
    root = Path(__file__).resolve().parents[2]
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    starter.stdout.close()
    if detached:
        time.sleep(1.0)
        assert broker_address(state_dir) is not None
        assert stop_broker(state_dir)
    wait_for_end(pid)
    assert broker_address(state_dir) is None


def test_a_busy_port_is_named(state_dir: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(LocalError, match=f"cannot listen on port {port} of 127.0.0.1: .*in use"):
            start_broker(state_dir, port=port)
    with pytest.raises(LocalError, match="must be 0 to 65535, got 70000"):
        start_broker(state_dir, port=70_000)


def test_a_setting_that_kafka_refuses_is_told_with_its_words(state_dir: Path) -> None:
    with pytest.raises(LocalError, match=r"(died at its start|cannot be formatted).*num.io.threads"):
        start_broker(state_dir, settings={"num.io.threads": "none"})


def test_without_java_or_maven_it_says_what_to_install(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(LocalError, match=r"expected Java 17 or newer, found no `java` on PATH; install"):
        start_broker(state_dir)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(LocalError, match=rf"under JAVA_HOME {tmp_path}; install"):
        start_broker(state_dir)
    with pytest.raises(LocalError, match=r"nor Maven to fetch them; install it, such as `apt install maven`"):
        ensure_jars(tmp_path / "jars")


def test_a_fetch_that_fails_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maven = tmp_path / "bin" / "mvn"
    maven.parent.mkdir()
    maven.write_text("#!/bin/sh\necho '[ERROR] no route to host'; exit 1\n")
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{maven.parent}:{os.environ['PATH']}")
    monkeypatch.setenv(JARS_VARIABLE, str(tmp_path / "cache" / "jars"))
    with pytest.raises(LocalError, match=rf"could not fetch its jars: \[ERROR\] no route to host.*{JARS_VARIABLE}"):
        ensure_jars()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["jars.lock"]
