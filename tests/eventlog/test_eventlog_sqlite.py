"""What only the SQLite engine can get wrong."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eventlog.log import Record, TopicPartition
from eventlog.open_log import canonical_address, open_log
from eventlog.sqlite_log import SqliteLog
from schemas.errors import LogUnavailableError, OffsetOutOfRangeError, SettingsError
from schemas.topics import TOPICS, Topic

RUNS = "millrace.runs.v1"
TRADES = "millrace.trades.v1"


@pytest.fixture
def log(tmp_path: Path) -> SqliteLog:
    made = SqliteLog(tmp_path)
    made.ensure_topics(list(TOPICS.values()), "millrace")
    return made


def numbered(count: int, topic: str = RUNS) -> list[Record]:
    return [Record(topic, f"key {n % 7}".encode(), str(n).encode()) for n in range(count)]


def test_open_log_takes_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log: with colon").mkdir()
    with open_log("sqlite:./log: with colon") as log:
        assert log.address == canonical_address("sqlite:log: with colon") == f"sqlite:{tmp_path}/log: with colon"
        with open_log(log.address) as again:
            assert again.cluster_id == log.cluster_id


@pytest.mark.parametrize("address", ["", "sqlite", "sqlite:", "redis:localhost:1", "/a/path"])
def test_another_form_of_address_is_refused(address: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"log address {address!r}: expected sqlite:DIRECTORY")):
        open_log(address)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        LogUnavailableError, match=rf"sqlite:{tmp_path}/none: expected an existing directory.*create it"
    ):
        open_log(f"sqlite:{tmp_path}/none")


def test_a_file_of_another_kind_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_text("no database " * 1_000)
    with pytest.raises(LogUnavailableError, match=rf"{path}: file is not a database; expected an SQLite file"):
        SqliteLog(tmp_path)
    assert path.read_text() == "no database " * 1_000
    path.unlink()
    path.mkdir()
    with pytest.raises(LogUnavailableError, match=r"unable to open .*; expected a file in a directory"):
        SqliteLog(tmp_path)


@pytest.mark.parametrize("statement", ["CREATE TABLE theirs (x)", "PRAGMA user_version=2"])
def test_the_database_of_another_program_is_refused(tmp_path: Path, statement: str) -> None:
    other = sqlite3.connect(tmp_path / "log.db")
    other.execute(statement)
    other.close()
    with pytest.raises(LogUnavailableError, match=r"expected an event log of version 1.*move it away"):
        SqliteLog(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_write_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(LogUnavailableError, match="this user may write to"):
            SqliteLog(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_locked_log_is_unavailable_after_the_time_given(tmp_path: Path, log: SqliteLog) -> None:
    other = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with log.producer() as producer:
        with pytest.raises(LogUnavailableError, match=r"locked \(waited up to 0.3 s\); another process"):
            producer.send(numbered(1), timeout_s=0.3)
        assert 0.2 < time.monotonic() - began < 5.0
        other.execute("COMMIT")
        other.close()
        assert len(producer.send(numbered(1))) == 1
    assert log.offsets(RUNS) == {0: (0, 1)}
    log.close()


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from eventlog.log import Record
from eventlog.sqlite_log import SqliteLog
from schemas.errors import LogUnavailableError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = SqliteLog(Path(sys.argv[1]))
producer = log.producer()
limit = 3_000_000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sent = 0
try:
    while True:
        sent += len(producer.send([Record("millrace.runs.v1", b"k", b"x" * 100_000)]))
except LogUnavailableError as error:
    print(sent, error)
"""


def test_a_full_disk_is_one_clear_error_and_keeps_what_was_acknowledged(tmp_path: Path, log: SqliteLog) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    sent, message = done.stdout.split(" ", 1)
    assert re.search(r"log .*log\.db: (disk I/O error|database or disk is full).*space", message)
    assert int(sent) > 5
    assert log.offsets(RUNS) == {0: (0, int(sent))}
    assert len(log.read(RUNS, 0, 0, int(sent))) == int(sent)
    log.close()


def test_a_log_deleted_under_its_producer_is_an_error_not_a_loss(tmp_path: Path, log: SqliteLog) -> None:
    with log.producer() as producer:
        producer.send(numbered(1))
        shutil.move(tmp_path / "log.db", tmp_path / "moved.db")
        with pytest.raises(LogUnavailableError, match=r"deleted or replaced"):
            producer.send(numbered(1))
    log.close()


def test_records_expire_by_age_from_the_start(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path, retention_every_s=0.0)
    log.ensure_topics([Topic("short", 1, 1, "k", 300), Topic("long", 1, 1, "k", -1)], "t")
    with log.producer() as producer:
        for topic in ("t.short.v1", "t.long.v1"):
            producer.send(numbered(5, topic))
        time.sleep(0.4)
        producer.send(numbered(2, "t.short.v1"))
        assert log.offsets("t.short.v1") == {0: (5, 7)}
        assert log.offsets("t.long.v1") == {0: (0, 5)}, "-1 keeps for ever"
        with pytest.raises(OffsetOutOfRangeError):
            log.read("t.short.v1", 0, 0, 7)
        assert len(log.read("t.short.v1", 0, 5, 7)) == 2
        time.sleep(0.4)
        producer.send(numbered(1, "t.long.v1"))
        assert log.offsets("t.short.v1") == {0: (7, 7)}, "any send expires the records of all topics"
    log.close()


def test_trim_stays_within_the_partition(log: SqliteLog) -> None:
    with log.producer() as producer:
        producer.send(numbered(10))
    with pytest.raises(OffsetOutOfRangeError, match=r"trim up to 10 .*got 11"):
        log.trim(RUNS, 0, 11)
    log.trim(RUNS, 0, 6)
    log.trim(RUNS, 0, 2)
    assert log.offsets(RUNS) == {0: (6, 10)}, "the start offset never falls"
    log.trim(RUNS, 0, 10)
    assert log.offsets(RUNS) == {0: (10, 10)}
    with log.producer() as producer:
        assert producer.send(numbered(1)) == [(TopicPartition(RUNS, 0), 10)], "offsets are not given again"
    log.close()


def test_gaps_come_from_the_seed(tmp_path: Path) -> None:
    def offsets(name: str, seed: int | None) -> list[int]:
        (tmp_path / name).mkdir()
        log = SqliteLog(tmp_path / name, gap_seed=seed)
        log.ensure_topics(list(TOPICS.values()), "millrace")
        with log.producer() as producer:
            places = producer.send(numbered(50))
        assert log.offsets(RUNS)[0][1] == places[-1][1] + 1
        log.close()
        return [offset for _, offset in places]

    assert offsets("none", None) == list(range(50))
    assert offsets("a", 1) == offsets("b", 1) != list(range(50))


def test_one_poll_holds_no_more_than_its_bytes(log: SqliteLog) -> None:
    with log.producer() as producer:
        for _ in range(6):
            producer.send([Record(RUNS, b"k", bytes(999_000))] * 10)
    with log.consumer("g", [RUNS]) as consumer:
        assert len(consumer.poll(1.0)) == 52
        assert len(consumer.poll(1.0)) == 8
    log.close()


SENDER = """
import sys
from eventlog.log import Record
from eventlog.open_log import open_log
with open_log(sys.argv[1]) as log, log.producer() as producer:
    for batch in range(40):
        numbers = range(batch * 50, batch * 50 + 50)
        keys, values = [f"{sys.argv[2]} {n % 5}" for n in numbers], [f"{sys.argv[2]}:{n}" for n in numbers]
        producer.send([Record("millrace.trades.v1", k.encode(), v.encode()) for k, v in zip(keys, values)])
"""


def test_several_processes_append_while_one_reads(log: SqliteLog) -> None:
    senders = [subprocess.Popen([sys.executable, "-c", SENDER, log.address, str(n)]) for n in range(3)]
    seen: list[str] = []
    deadline = time.monotonic() + 30.0
    with log.consumer("g", [TRADES]) as consumer:
        while len(seen) < 6_000 and time.monotonic() < deadline:
            records = consumer.poll(0.5)
            seen += [record.value.decode() for record in records]
            consumer.commit({record.source: record.offset + 1 for record in records})
    assert [sender.wait(10) for sender in senders] == [0, 0, 0]
    assert len(seen) == len(set(seen)) == 6_000
    assert log.lag("g", [TRADES]) == 0
    log.close()


FIRST = """
import sys
from pathlib import Path
from eventlog.sqlite_log import SqliteLog
from schemas.topics import TOPICS
log = SqliteLog(Path(sys.argv[1]))
log.ensure_topics(list(TOPICS.values()), "millrace")
print(log.cluster_id, log.topic("millrace.runs.v1").topic_id)
log.close()
"""


def test_processes_that_make_the_log_at_once_make_one(tmp_path: Path) -> None:
    makers = [
        subprocess.Popen([sys.executable, "-c", FIRST, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert len({maker.communicate(timeout=30)[0] for maker in makers}) == 1
    assert [maker.returncode for maker in makers] == [0, 0, 0, 0]


FORK = """
import os, sys, traceback
from pathlib import Path
from eventlog.log import Record
from eventlog.sqlite_log import SqliteLog
from schemas.errors import LogUnavailableError
log = SqliteLog(Path(sys.argv[1]))
producer = log.producer()
record = Record("millrace.runs.v1", b"k", b"parent")
producer.send([record])
child = os.fork()
if child == 0:
    try:
        for call in (
            lambda: producer.send([record]),
            lambda: log.offsets("millrace.runs.v1"),
            lambda: SqliteLog(Path(sys.argv[1])),
        ):
            try:
                call()
            except LogUnavailableError as error:
                assert "start this process by spawn" in str(error), error
            else:
                os._exit(1)
        producer.close()
        log.close()
    except BaseException:
        traceback.print_exc()
        os._exit(2)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
producer.send([record])
"""


def test_a_forked_child_is_refused_and_does_no_harm(tmp_path: Path, log: SqliteLog) -> None:
    subprocess.run([sys.executable, "-c", FORK, str(tmp_path)], check=True, timeout=30)
    assert [record.value for record in log.read(RUNS, 0, 0, 2)] == [b"parent", b"parent"]
    log.close()


def test_a_child_forked_before_the_log_was_opened_may_use_it(tmp_path: Path, log: SqliteLog) -> None:
    program = (
        "import os, sys; from pathlib import Path; from eventlog.sqlite_log import SqliteLog\n"
        "log = SqliteLog(Path(sys.argv[1])); log.close(); child = os.fork()\n"
        "log = SqliteLog(Path(sys.argv[1])); log.offsets('millrace.runs.v1'); log.close()\n"
        "sys.exit(os.waitpid(child, 0)[1] if child else 0)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=30)
    log.close()


def test_a_lease_from_before_a_restart_of_the_machine_counts_as_lapsed(tmp_path: Path, log: SqliteLog) -> None:
    with log.producer() as producer:
        producer.send(numbered(1))
    dead = log.consumer("g", [RUNS])
    assert len(dead.poll(1.0)) == 1
    with sqlite3.connect(tmp_path / "log.db") as db:
        db.execute("UPDATE groups SET lease_until_ns = ?", (time.monotonic_ns() + 10**15,))
    db.close()
    with log.consumer("g", [RUNS]) as heir:
        assert len(heir.poll(1.0)) == 1
    dead.close()
    log.close()


def test_one_log_serves_many_threads(log: SqliteLog) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with log.producer() as producer:
                for _ in range(20):
                    producer.send(numbered(5))
                    log.offsets(RUNS)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert log.offsets(RUNS) == {0: (0, 400)}
    log.close()


def test_a_closed_log_says_so(log: SqliteLog) -> None:
    log.close()
    calls: list[Callable[[], object]] = [lambda: log.offsets(RUNS), lambda: log.ensure_topics([], "x")]
    for call in calls:
        with pytest.raises(LogUnavailableError, match="closed; open it again"):
            call()
