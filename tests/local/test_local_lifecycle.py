"""Starting, finding, stopping and killing the store process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import Error

from local import engine_process
from local.store import StoreAddress, start_store, stop_store, store_address
from schemas.errors import LocalError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "state"
    yield directory
    if directory.is_dir():
        stop_store(directory)


def pid_of(state: Path) -> int:
    return int(json.loads((state / "store.json").read_text())["pid"])


def kill(state: Path) -> None:
    """Kill the store as a power cut would, and wait until it is gone."""
    process = psutil.Process(pid_of(state))
    process.kill()
    deadline = time.monotonic() + 10
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def serve(state: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "local.store_server", "--state-dir", str(state), *options]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for(state: Path) -> StoreAddress:
    deadline = time.monotonic() + 30
    while (address := store_address(state)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return address


def test_start_find_start_again_stop(state: Path) -> None:
    assert store_address(state) is None
    address = start_store(state)

    assert store_address(state) == address
    assert start_store(state, port=address.port) == address
    with pytest.raises(LocalError, match=f"already runs on port {address.port}, not on 1234"):
        start_store(state, port=1234)
    assert stop_store(state) is True
    assert store_address(state) is None
    assert stop_store(state) is False
    assert not (state / "store.json").exists()


def test_the_password_is_private_and_only_in_its_file(address: StoreAddress, state_dir: Path) -> None:
    password = address.password.get_secret_value()

    assert len(password) >= 32
    for name in ("store.password", "store.json", "store.log"):
        assert (state_dir / name).stat().st_mode & 0o777 == 0o600
    for name in ("store.json", "store.log"):
        assert password not in (state_dir / name).read_text()
    assert password not in repr(address) + address.url
    assert password not in " ".join(psutil.Process(pid_of(state_dir)).cmdline())


def test_it_listens_on_loopback_only(address: StoreAddress, state_dir: Path) -> None:
    listening = [
        (found.laddr.ip, found.laddr.port)
        for found in psutil.Process(pid_of(state_dir)).net_connections("all")
        if found.status == psutil.CONN_LISTEN
    ]
    assert listening == [("127.0.0.1", address.port)]


def test_two_starts_at_once_give_one_store(state: Path) -> None:
    found: list[StoreAddress] = []
    threads = [threading.Thread(target=lambda: found.append(start_store(state))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 3
    assert len(set(found)) == 1


def test_ended_engines_are_reaped_while_another_thread_starts_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(subprocess.Popen[bytes]):
        def poll(self) -> int | None:
            children[later.pid] = later  # what the other thread does at the worst moment
            return super().poll()

    slow, later = (kind([sys.executable, "-c", ""]) for kind in (Slow, subprocess.Popen))
    for process in (slow, later):
        process.wait()
    children = {slow.pid: slow}
    monkeypatch.setattr(engine_process, "_children", children)
    engine_process._reap_ended()
    assert list(children) == [later.pid]
    engine_process._reap_ended()
    assert not children


def test_after_kill_9_acknowledged_rows_are_there_on_the_same_port(state: Path, connect: Callable[..., Client]) -> None:
    first = start_store(state)
    client = connect(first)
    client.command("CREATE TABLE t (batch UInt32, row UInt32) ENGINE = MergeTree ORDER BY (batch, row)")
    acknowledged: list[int] = []

    def insert_until_it_dies() -> None:
        for batch in range(100_000):
            try:
                client.insert("t", [[batch, row] for row in range(500)], column_names=["batch", "row"])
            except (Error, OSError):
                return
            acknowledged.append(batch)

    writer = threading.Thread(target=insert_until_it_dies)
    writer.start()
    while len(acknowledged) < 10:
        time.sleep(0.01)
    kill(state)
    writer.join()
    assert store_address(state) is None

    second = start_store(state)
    stored = dict(connect(second).query("SELECT batch, count() FROM t GROUP BY batch").result_rows)

    assert second == first
    assert set(acknowledged) <= set(stored)
    assert set(stored.values()) == {500}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_while_a_query_runs(
    state: Path, connect: Callable[..., Client], number: signal.Signals
) -> None:
    process = serve(state)
    client = connect(wait_for(state))
    failed = threading.Event()

    def read() -> None:
        try:
            client.command("SELECT sum(sipHash64(number)) FROM numbers(1000000000000)")
        except (Error, OSError):
            failed.set()

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.5)
    process.send_signal(number)
    _, log = process.communicate(timeout=10)
    reader.join()

    assert (process.returncode, failed.is_set()) == (0, True)
    assert log.rstrip().endswith("stopped")


def test_a_running_insert_ends_before_the_store_does(state: Path, connect: Callable[..., Client]) -> None:
    client = connect(start_store(state))
    client.command("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
    sql = (
        "INSERT INTO t SELECT number + sleepEachRow(0.1) FROM numbers(12) SETTINGS max_block_size = 1, max_threads = 1"
    )
    insert = threading.Thread(target=client.command, args=(sql,))
    insert.start()
    time.sleep(0.4)
    assert stop_store(state)
    insert.join()

    assert connect(start_store(state)).command("SELECT count() FROM t") == 12


def test_an_attached_store_ends_with_its_starter_and_a_detached_one_does_not(state: Path) -> None:
    for detached in (False, True):
        code = (
            "import os, pathlib; from local.store import start_store;"
            f"start_store(pathlib.Path({str(state)!r}), detached={detached}); os._exit(1)"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60)
        if detached:
            assert store_address(state) is not None
        else:
            deadline = time.monotonic() + 10
            while (state / "store.json").exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)


@pytest.mark.parametrize("detached", [False, True])
def test_a_starter_ends_without_a_word_about_the_store(state: Path, detached: bool) -> None:
    program = (
        f"import pathlib; from local.store import start_store; "
        f"start_store(pathlib.Path({str(state)!r}), detached={detached})"
    )
    ended = subprocess.run([sys.executable, "-W", "default", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_busy_port_is_named(state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(LocalError, match=f"cannot listen on port {port} of 127.0.0.1: .*in use.*local.store_port"):
            start_store(state, port=port)


def test_a_remembered_port_that_is_busy_gives_way(state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        state.mkdir()
        (state / "store.port").write_text(f"{other.getsockname()[1]}\n")
        assert start_store(state).port != other.getsockname()[1]


def test_a_port_out_of_range_is_named(state: Path) -> None:
    with pytest.raises(LocalError, match="must be 0 to 65535, got 70000"):
        start_store(state, port=70_000)


@pytest.mark.parametrize("place", ["a file", "below a file", "not writable"])
def test_a_state_directory_that_cannot_be_one_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    # Tests may run as root, whom no permission stops: /proc refuses root as well.
    path = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "x", "not writable": Path("/proc/x")}[
        place
    ]
    with pytest.raises(
        LocalError, match=f"state directory {path} cannot be used: expected a directory.*choose another"
    ):
        start_store(path)
    assert store_address(path) is None
    assert stop_store(path) is False


def test_a_missing_chdb_names_the_extra(state: Path) -> None:
    code = (
        "import sys; sys.modules['chdb'] = None; from local.store_server import main;"
        f"sys.exit(main(['--state-dir', {str(state)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == LocalError.exit_code
    assert "pip install 'millrace[local]'" in done.stderr.splitlines()[-1]


def test_data_in_use_by_another_engine_is_named(state: Path) -> None:
    state.mkdir()
    data = str(state / "store")
    code = f"import chdb; c = chdb.connect({data!r}); c.query('SELECT 1'); print('up', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "up\n"
        with pytest.raises(LocalError, match="engine cannot open .*another process uses this directory"):
            start_store(state)
        other.communicate("\n", timeout=20)


def test_a_store_that_does_not_answer_is_named_with_its_process(state: Path) -> None:
    start_store(state)
    pid = pid_of(state)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(LocalError, match=rf"did not answer within 1 s \(process {pid}\)"):
            start_store(state, timeout_s=1)
        with pytest.raises(LocalError, match=rf"did not stop within 0.5 s \(process {pid}\).*kill -9"):
            stop_store(state, timeout_s=0.5)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_second_server_on_one_directory_leaves_at_once(state: Path) -> None:
    start_store(state)
    second = serve(state)
    _, log = second.communicate(timeout=30)

    assert second.returncode == 75
    assert "another store runs" in log
