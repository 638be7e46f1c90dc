"""What is killed, absent or wrong: nothing is lost, nothing is there twice, and each refusal is one clear line."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from consumers_fixtures import TOPIC_NAMES, AdminSink, Writer, make_trades, url_of

from analytics.connect import connect
from analytics.integrity import check_run
from consumers.consumer import GROUP, PASSWORD_VARIABLE, run_consumer
from consumers.sink import Sink
from eventlog.log import Log, Producer, Record, TopicPartition
from eventlog.open_log import open_log
from local.store import start_store, stop_store
from schemas.errors import (
    LogUnavailableError,
    SettingsError,
    StoreAuthError,
    StoreError,
    StoreUnavailableError,
    UnknownTopicError,
)
from schemas.topics import TOPICS

Drain = Callable[..., Any]
HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def environment(password: str) -> dict[str, str]:
    return {**os.environ, PASSWORD_VARIABLE: password, "PYTHONPATH": str(ROOT)}


@contextmanager
def consumer_process(log: Log, url: str, password: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "consumers.consumer", "--log", log.address, "--clickhouse-url", url, *more],
        env=environment(password),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def differences(writer: Writer, sink: AdminSink, reader: Any) -> list[str]:
    """The oracle: what was sent, against what a query sees. Empty where nothing is lost and nothing is there twice."""
    found = list(check_run(reader, writer.run_id).problems)
    sent = {dict(record.headers)["ce_id"].decode() for record in writer.sent}
    stored = [event_id for (event_id,) in sink.query("SELECT event_id FROM events")]
    if sorted(stored) != sorted(sent):
        found.append(f"{len(sent)} events sent, {len(stored)} stored, {len(sent - set(stored))} lost")
    for table, key in (("trades", "row_no"), ("fills", "row_no"), ("episodes", "status")):
        rows, distinct = sink.query(f"SELECT count(), uniqExact(run_id, episode_id, {key}) FROM {table}")[0]
        declared = sink.query(f"SELECT sum(rows) FROM events WHERE event_type = '{table}'")[0][0]
        if rows != distinct or (table != "episodes" and rows != declared):
            found.append(f"{table}: {rows} rows, {distinct} distinct, {declared} declared")
    return found


def faulty(log: Log, url: str, password: str, moment: str, count: int) -> int:
    directory = log.address.removeprefix("sqlite:")
    command = [sys.executable, str(HERE / "faulty_consumer.py"), directory, url, moment, str(count)]
    return subprocess.run(command, env=environment(password), timeout=60, check=False).returncode


@pytest.mark.parametrize(
    ("moment", "count"),
    [("before_insert", 2), ("after_insert", 3), ("before_ledger", 2), ("before_commit", 1), ("after_commit", 2)],
)
def test_a_consumer_killed_at_any_moment_loses_and_doubles_nothing(
    moment: str,
    count: int,
    writer: Writer,
    log: Log,
    sink: AdminSink,
    reader: Any,
    url: str,
    password: str,
    drain: Drain,
) -> None:
    for number in range(200):
        writer.episode(number, trades=4)
    writer.close()
    assert faulty(log, url, password, moment, count) == -signal.SIGKILL
    drain()
    assert differences(writer, sink, reader) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_consumer_killed_again_and_again_loses_and_doubles_nothing(
    seed: int, writer: Writer, log: Log, sink: AdminSink, reader: Any, url: str, password: str, drain: Drain
) -> None:
    chance = random.Random(seed)
    moments = ["before_insert", "after_insert", "before_ledger", "before_commit", "after_commit"]
    for number in range(100):
        writer.episode(number, trades=4)
    for _kill in range(3):
        for _ in range(100):
            writer.episode(writer.emitted["trades"], trades=chance.randrange(6))
        assert faulty(log, url, password, chance.choice(moments), chance.randint(1, 2)) == -signal.SIGKILL
    writer.close()
    drain()
    assert differences(writer, sink, reader) == []


def test_a_consumer_that_commits_before_it_stores_is_caught_by_the_same_oracle(
    writer: Writer, log: Log, sink: AdminSink, reader: Any, url: str, password: str, drain: Drain
) -> None:
    for number in range(200):
        writer.episode(number, trades=4)
    assert faulty(log, url, password, "commit_first", 1) == -signal.SIGKILL
    writer.close()
    drain()
    found = differences(writer, sink, reader)
    assert any("missing" in problem for problem in found)
    assert any("lost" in problem for problem in found)


def test_sigterm_in_the_middle_of_a_batch_stores_it_and_exits_0(
    writer: Writer, log: Log, sink: AdminSink, reader: Any, url: str, password: str
) -> None:
    writer.episode(0)
    writer.close()
    # A batch that is far from due: only the signal makes it go.
    with consumer_process(log, url, password, "--batch-seconds", "600") as process:
        wait_until(lambda: bool(process.stderr and "consuming" in process.stderr.readline()))
        time.sleep(0.5)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        assert time.monotonic() - asked < 5
    assert differences(writer, sink, reader) == []
    assert log.lag(GROUP, TOPIC_NAMES) == 0


def test_the_process_says_in_one_line_why_it_cannot_start(log: Log, url: str, password: str) -> None:
    with consumer_process(log, url, "hunter2") as process:
        error = process.communicate(timeout=30)[1]
        assert process.returncode == 3
    assert "it refused user or password" in error
    assert "Traceback" not in error
    assert "hunter2" not in error
    with consumer_process(log, url, password, "--password-file", "/nowhere/at/all") as process:
        error = process.communicate(timeout=30)[1]
        assert process.returncode == 2
    assert "password file '/nowhere/at/all': expected a readable text file" in error


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_store_that_is_absent_is_named_after_a_bounded_wait() -> None:
    port = free_port()
    began = time.monotonic()
    with pytest.raises(
        StoreUnavailableError, match=rf"http://127.0.0.1:{port}: expected an answer within 1 s.*refused"
    ):
        Sink.connect(f"http://u@127.0.0.1:{port}/db", "secret", timeout_s=1.0)
    assert time.monotonic() - began < 5


def test_a_store_that_starts_late_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    starting = threading.Thread(target=lambda: start_store(tmp_path / "late", port=port))
    (tmp_path / "late").mkdir()
    timer = threading.Timer(0.5, starting.start)
    timer.start()
    try:
        with pytest.raises(StoreAuthError):  # It answers: that is what was waited for.
            Sink.connect(f"http://nobody@127.0.0.1:{port}/db", "x", timeout_s=30)
    finally:
        timer.join()
        starting.join()
        stop_store(tmp_path / "late")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://u:hunter2@h:1/db", "MILLRACE__CLICKHOUSE__PASSWORD"),
        ("ftp://u@h:1/db", "expected http://USER@HOST:PORT/DATABASE"),
        ("http://u@h:port/db", "expected http://USER@HOST:PORT/DATABASE"),
    ],
)
def test_an_address_in_another_form_is_refused_without_its_password(url: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        Sink.connect(url, "x")
    assert "hunter2" not in str(caught.value)


@pytest.mark.usefixtures("fresh")
def test_a_missing_table_ends_the_consumer_at_once_and_commits_nothing(
    writer: Writer, log: Log, sink: AdminSink, drain: Drain
) -> None:
    writer.episode(0)
    sink.query("DROP TABLE fills_rows")
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"insert \d+ rows into \w+\.fills_rows.*UNKNOWN_TABLE") as caught:
        drain()
    assert not isinstance(caught.value, StoreUnavailableError)
    assert time.monotonic() - began < 5
    assert log.lag(GROUP, TOPIC_NAMES) == len(writer.sent)


@pytest.mark.usefixtures("fresh")
def test_a_missing_column_ends_the_consumer_and_names_it(writer: Writer, sink: AdminSink, drain: Drain) -> None:
    writer.episode(0)
    sink.query("ALTER TABLE trades_rows DROP COLUMN exit_kind")
    with pytest.raises(StoreError, match=r"trades_rows: .*exit_kind"):
        drain()


def test_a_store_killed_in_the_middle_comes_back_with_nothing_lost(tmp_path: Path, writer: Writer, log: Log) -> None:
    state = tmp_path / "store"
    address = start_store(state)
    url, password = url_of(address, "millrace"), address.password.get_secret_value()
    stop = threading.Event()
    failed: list[BaseException] = []
    progress: list[Any] = []

    def consume() -> None:
        try:
            with open_log(log.address) as own, Sink.connect(url, password, request_timeout_s=5) as sink:
                sink.migrate()
                progress.append(run_consumer(own, sink, batch_rows=50, batch_seconds=0.02, stop=stop))
        except BaseException as error:  # noqa: BLE001 - shown by the test below
            failed.append(error)

    thread = threading.Thread(target=consume)
    thread.start()
    try:
        kills = 0
        for number in range(120):
            writer.episode(number, trades=3)
            if number in (30, 80):
                wait_until(lambda: log.lag(GROUP, TOPIC_NAMES) < len(writer.sent))
                pid = int(re.search(r'"pid":\s*(\d+)', (state / "store.json").read_text())[1])  # type: ignore[index]
                os.kill(pid, signal.SIGKILL)
                kills += 1
                assert start_store(state).port == address.port
        writer.close()
        wait_until(lambda: log.lag(GROUP, TOPIC_NAMES) == 0, timeout_s=40)
        stop.set()
        thread.join(timeout=20)
        assert failed == []
        assert kills == 2
        assert progress[0].retries > 0
        with AdminSink.connect(url, password) as sink:
            reader = connect(url, password)
            assert differences(writer, sink, reader) == []
            reader.close()
    finally:
        stop.set()
        thread.join(timeout=20)
        stop_store(state)


def test_stopping_while_the_store_is_away_leaves_the_records_on_the_log(
    tmp_path: Path, writer: Writer, log: Log
) -> None:
    state = tmp_path / "store"
    address = start_store(state)
    stop = threading.Event()
    with Sink.connect(url_of(address, "millrace"), address.password.get_secret_value()) as sink:
        sink.migrate()
        stop_store(state)
        writer.episode(0)
        threading.Timer(1.0, stop.set).start()
        began = time.monotonic()
        done = run_consumer(log, sink, batch_seconds=0.05, stop=stop)
    assert time.monotonic() - began < 5
    assert (done.left, done.records) == (len(writer.sent), 0)
    assert done.retries < 20  # It pauses between attempts.
    assert log.lag(GROUP, TOPIC_NAMES) == len(writer.sent)


class NoDeadLetters(Producer):
    """A producer whose topic fails in a stated way."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def send(self, records: object, timeout_s: float = 60.0) -> list[tuple[TopicPartition, int]]:
        raise self._error

    def close(self) -> None:
        """Nothing is held."""


def poisoned(log: Log, writer: Writer, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    writer.episode(0)
    writer.put([Record(TOPICS["trades"].name(), b"k", b"{", ())])
    monkeypatch.setattr(log, "producer", lambda: NoDeadLetters(error))


def test_without_a_dead_letter_topic_the_source_offset_is_not_committed(
    writer: Writer, log: Log, drain: Drain, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(log, writer, monkeypatch, UnknownTopicError("topic 'x': gone"))
    with pytest.raises(UnknownTopicError):
        drain()
    assert log.lag(GROUP, TOPIC_NAMES) == len(writer.sent)


def test_a_dead_letter_topic_that_is_away_is_waited_for(
    writer: Writer, log: Log, sink: AdminSink, drain: Drain, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(log, writer, monkeypatch, LogUnavailableError("log: no answer"))
    stop = threading.Event()
    threading.Timer(0.7, stop.set).start()
    done = run_consumer(log, sink, batch_seconds=0.05, stop=stop)
    assert done.retries >= 1
    assert done.left == len(writer.sent)
    monkeypatch.undo()
    drain()
    drain()
    assert sink.query("SELECT count() FROM dead_letters") == [(1,)]


def test_a_batch_whose_member_was_replaced_is_dropped_and_stored_once(
    writer: Writer, log: Log, sink: AdminSink, drain: Drain, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.send(make_trades(writer.publisher.episode(0, 0), 3))
    thief_came = []
    insert = Sink.insert

    def slow_insert(self: Sink, *given: Any) -> None:
        insert(self, *given)
        if not thief_came:  # Meanwhile the lease lapses and another member takes over, and leaves again.
            thief_came.append(True)
            time.sleep(0.6)
            with open_log(log.address) as other, other.consumer(GROUP, TOPIC_NAMES) as thief:
                wait_until(lambda: bool(thief.poll(0.1)))

    monkeypatch.setattr(Sink, "insert", slow_insert)
    monkeypatch.setattr(log, "_lease_s", 0.3)
    done = drain()
    assert (done.dropped, done.records) == (1, 1)
    assert sink.query("SELECT count() FROM trades") == [(3,)]


def test_batches_do_not_grow_while_the_store_is_away(writer: Writer, log: Log, sink: AdminSink) -> None:
    for number in range(100):
        writer.episode(number)
    sizes: list[int] = []
    stop = threading.Event()

    class Away(AdminSink):
        def insert(self, table: str, block: Any) -> None:
            sizes.append(block.rows)
            if len(sizes) == 4:
                stop.set()
            raise StoreUnavailableError("store: away")

    away = Away(sink.client, sink.address, sink.database)
    done = run_consumer(log, away, batch_rows=50, stop=stop)
    assert len(set(sizes)) == 1
    assert done.left <= 500  # One poll.
