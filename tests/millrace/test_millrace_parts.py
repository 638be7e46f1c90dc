"""Each command as a process of its own, on a log and a store that others started: on SQLite and on Kafka."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from consumers.consumer import source_topics
from eventlog.kafka_log import KafkaLog
from eventlog.log import Record
from eventlog.open_log import open_log
from local.kafka_broker import broker_address, start_broker, stop_broker
from local.kafka_jars import java
from local.store import start_store, stop_store
from millrace.connections import log_address
from millrace.settings import load_settings
from schemas.errors import LocalError
from schemas.ids import new_run_id
from schemas.topics import TOPICS

ENDS_WITHIN_S = 10.0

# Publishes one event and dies without closing, and without a forwarder.
PUBLISHER = """
import os, sys
from pathlib import Path
from eventlog.outbox import Publisher
from schemas.ids import Role
from schemas.payloads import AttemptStarted
outbox, run_id, prefix = sys.argv[1:]
publisher = Publisher.open(
    Path(outbox), run_id=run_id, attempt=1, role=Role.DRIVER, worker_index=0, topic_prefix=prefix)
publisher.publish(AttemptStarted(
    started_at=1_780_000_000_000_000, resumed_from_iteration=None, host="here", pid=1,
    num_env_runners=0, num_envs_per_env_runner=1))
os._exit(9)
"""


def environment() -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.upper().startswith("MILLRACE__")}
    return plain | {"PYTHONUNBUFFERED": "1"}


class Place:
    """A log and a store, topics of a test's own, and commands on them."""

    def __init__(self, engine: str, state_dir: Path, folder: Path) -> None:
        self.engine = engine
        self.prefix = f"t{uuid.uuid4().hex[:8]}"
        self.folder = folder
        self.outbox = folder / "outbox"
        self.overrides = [
            *(f"local.state_dir={state_dir}", f"log.engine={engine}", f"log.topic_prefix={self.prefix}"),
            f"outbox.directory={self.outbox}",
        ]
        self.processes: list[subprocess.Popen[str]] = []

    def line(self, arguments: tuple[str, ...]) -> list[str]:
        sets = [part for override in self.overrides for part in ("--set", override)]
        return [sys.executable, "-m", "millrace.cli", *arguments, *sets]

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.line(arguments),
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def start(self, *arguments: str) -> tuple[subprocess.Popen[str], Path]:
        """A command that runs, and the file of all that it says."""
        output = self.folder / f"{arguments[0]}-{len(self.processes)}.txt"
        with output.open("w") as stream:
            process = subprocess.Popen(
                self.line(arguments), cwd=self.folder, env=environment(), stdout=stream, stderr=stream, text=True
            )
        self.processes.append(process)
        return process, output

    def open_log(self) -> Any:
        return open_log(log_address(load_settings(None, self.overrides)))

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)
    return found


def ends(process: subprocess.Popen[str], output: Path, number: signal.Signals) -> str:
    """Signal it; it must end in order and in time. Returns what it has said."""
    sent = time.monotonic()
    process.send_signal(number)
    code = process.wait(30)
    said = output.read_text()
    assert code == 0, said
    assert time.monotonic() - sent < ENDS_WITHIN_S, said
    assert "Traceback" not in said
    return said


@pytest.fixture(scope="module", params=["sqlite", "kafka"])
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A log and a store. Where there can be no Kafka, CI fails."""
    state_dir = tmp_path_factory.mktemp(request.param)
    if request.param == "kafka":
        try:
            start_broker(state_dir)
        except LocalError as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(str(error))
    start_store(state_dir)
    yield request.param, state_dir
    stop_store(state_dir)
    stop_broker(state_dir)


@pytest.fixture
def place(engines: tuple[str, Path], workdir: Path) -> Iterator[Place]:
    made = Place(*engines, workdir)
    yield made
    made.close()


# --- replay -----------------------------------------------------------------------------------------------------------


def test_a_feed_is_published_once_and_again_only_under_another_name(place: Place) -> None:
    first = place.json("replay")
    assert (first["published_bars"], first["already_there"], first["stopped"]) == (12_154, 0, False)
    assert first["topic"] == f"{place.prefix}.bars.v1"
    assert "all 12154 bars are on" in place.run("replay").stdout
    again = place.json("replay", "--again", "other")
    assert (again["feed"], again["published_bars"]) == ("other", 12_154)
    with place.open_log() as log:
        names = {
            record.key.decode().partition("/")[0]
            for partition, (start, stop) in log.offsets(first["topic"]).items()
            for record in log.read(first["topic"], partition, start, stop)
        }
    assert names == {"stocks-daily", "other"}


def test_a_replay_that_is_stopped_ends_in_order_and_a_repeat_completes_it(place: Place) -> None:
    process, output = place.start("replay", "--set", "feed.speed=20000000")
    wait_for(lambda: re.search(r"replay: [1-9]", output.read_text()), "bars are published")
    said = ends(process, output, signal.SIGINT if place.engine == "sqlite" else signal.SIGTERM)
    assert "stopped before the end, the same replay goes on from here" in said
    rest = place.json("replay")
    assert rest["already_there"] > 0
    assert rest["published_bars"] + rest["already_there"] == 12_154


@pytest.mark.slow
@pytest.mark.parametrize("engines", ["kafka"], indirect=True)
def test_a_frozen_broker_does_not_keep_commands_from_ending(engines: tuple[str, Path], place: Place) -> None:
    consumer = place.start("consume")
    replay = place.start("replay", "--set", "feed.speed=10000000")
    wait_for(lambda: re.search(r"replay: [1-9]", replay[1].read_text()), "bars are published")
    wait_for(lambda: " consuming " in consumer[1].read_text(), "it consumes")
    broker = broker_address(engines[1])
    assert broker is not None
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        time.sleep(1.0)
        said = ends(*replay, signal.SIGINT)
        ends(*consumer, signal.SIGTERM)
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    assert "cut off, the log does not answer; the same replay goes on from here" in said
    rest = place.json("replay")
    assert 0 < rest["already_there"] < 12_154
    assert rest["published_bars"] + rest["already_there"] == 12_154


# --- topics -----------------------------------------------------------------------------------------------------------


def test_topics_are_compared_and_made(place: Place) -> None:
    names = [topic.name(place.prefix) for topic in TOPICS.values()]
    if place.engine == "kafka":
        assert place.json("topics", "diff", code=1) == [f"{name}: missing" for name in names]
    assert place.json("topics", "apply") == [f"{name}: created" for name in names]
    assert place.run("topics", "diff").stdout == "all topics are as declared\n"
    assert place.run("topics", "apply").stdout == "all topics are as declared\n"
    if place.engine == "kafka":
        with place.open_log() as log:
            assert isinstance(log, KafkaLog)
            log.change_settings(names[0], {"retention.ms": "60000"})
        assert place.json("topics", "diff", code=1) == [f"{names[0]}: retention.ms: expected -1, got 60000"]
        assert place.json("topics", "apply") == [f"{names[0]}: retention.ms: 60000 → -1"]


# --- forward, consume, migrate, report --------------------------------------------------------------------------------


def test_what_a_killed_publisher_left_is_sent_and_stored_and_consumers_end_in_order(place: Place) -> None:
    run_id = new_run_id()
    left = [sys.executable, "-c", PUBLISHER, str(place.outbox), run_id, place.prefix]
    assert subprocess.run(left, check=False, timeout=30).returncode == 9
    place.run("topics", "apply")
    consumers = [place.start("consume"), place.start("consume")]
    assert place.json("forward") == {"waiting": 1, "left": 0, "sent": True}
    assert "all is sent" in place.run("forward").stdout
    report = place.run("report", run_id, "--wait", "30", "--as", "run.sh millrace")
    assert "The integrity table holds" in report.stdout
    assert f"  run.sh millrace check {run_id}" in report.stdout
    assert place.json("check", run_id)["problems"] == []
    whole = place.json("report", run_id)
    assert (whole["run_id"], whole["integrity"]["ok"], whole["test_results"]) == (run_id, True, [])
    assert place.json("migrate") == []
    for (process, output), number in zip(consumers, (signal.SIGINT, signal.SIGTERM), strict=True):
        assert f"{number.name}: finishing the batch" in ends(process, output, number)
    with place.open_log() as log:
        assert log.lag("millrace-clickhouse", source_topics(place.prefix)) == 0


@pytest.mark.parametrize("engines", ["sqlite"], indirect=True)
def test_forward_says_what_is_left_and_where(place: Place) -> None:
    place.run("forward", code=2)
    left = [sys.executable, "-c", PUBLISHER, str(place.outbox), new_run_id(), place.prefix]
    assert subprocess.run(left, check=False, timeout=30).returncode == 9
    # The log has no topics: what it cannot take stays.
    done = place.run("forward", "--wait", "1", code=1)
    assert f"1 records are left, safe in {place.outbox}" in done.stdout
    process, output = place.start("forward", "--wait", "50")
    wait_for(lambda: "1 records to go" in output.read_text(), "it waits")
    assert "1 records are left" in ends(process, output, signal.SIGTERM)
    place.run("topics", "apply")
    place.run("forward")


def test_migrations_are_applied_once(workdir: Path) -> None:
    place = Place("sqlite", workdir / "state", workdir)
    assert "store of" in place.run("migrate", code=3).stderr
    start_store(workdir / "state")
    try:
        assert place.run("migrate").stdout.startswith("applied 0001_")
        assert place.run("migrate").stdout == "all migrations were applied before\n"
    finally:
        stop_store(workdir / "state")


# --- dead letters -----------------------------------------------------------------------------------------------------


def dead_letters_on(place: Place) -> int:
    with place.open_log() as log:
        start, stop = log.offsets(TOPICS["dead-letters"].name(place.prefix))[0]
    return int(stop - start)


def test_a_record_that_cannot_be_read_is_listed_shown_and_sent_back(place: Place) -> None:
    place.run("topics", "apply")
    source = TOPICS["trades"].name(place.prefix)
    with place.open_log() as log, log.producer() as producer:
        producer.send([Record(source, b"someone", b'{"a": ', (("ce_type", b"trades"), ("ce_id", b"x-1")))])
    process, output = place.start("consume")
    wait_for(lambda: dead_letters_on(place) == 1, "a dead letter")
    letters = place.json("dlq", "list")
    assert [(each["number"], each["event_type"], each["bytes"]) for each in letters] == [(0, "trades", 6)]
    assert letters[0]["source"].startswith(f"{source}/")
    assert "SchemaError" in letters[0]["error"]
    shown = place.run("dlq", "show", "0").stdout
    assert 'value    {"a": ' in shown
    assert "header   ce_id: x-1" in shown
    assert "key      someone" in shown
    plain = place.json("dlq", "show", "0")
    assert (plain["key"], plain["value"]) == ("someone", '{"a": ')
    assert ["ce_id", "x-1"] in plain["headers"]
    assert "dead letter 7: expected one that `millrace dlq list` shows" in place.run("dlq", "show", "7", code=2).stderr
    assert "expected numbers of letters, or --all" in place.run("dlq", "replay", code=2).stderr
    assert place.run("dlq", "replay", "0").stdout == "sent 1 record back\n"
    # It still cannot be read.
    wait_for(lambda: dead_letters_on(place) == 2, "it is dead again")
    assert [each["event_type"] for each in place.json("dlq", "list")] == ["trades", "trades"]
    ends(process, output, signal.SIGINT)


# --- engines that are away --------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def one_line_each(workdir: Path, commands: list[str], overrides: list[str], address: str, limit_s: float) -> None:
    """All at once: each must give up within its time, with one line that holds the address."""
    (workdir / "outbox").mkdir(exist_ok=True)
    overrides = [*overrides, f"outbox.directory={workdir / 'outbox'}"]
    sets = [part for override in overrides for part in ("--set", override)]
    began = time.monotonic()
    running = {
        command: subprocess.Popen(
            [sys.executable, "-m", "millrace.cli", *command.split(), *sets],
            cwd=workdir,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    }
    for command, process in running.items():
        _, said = process.communicate(timeout=limit_s + 30)
        assert process.returncode == 3, (command, said)
        assert len(said.splitlines()) == 1, (command, said)
        assert address in said, (command, said)
    assert time.monotonic() - began < limit_s


def test_a_cluster_that_does_not_answer_ends_each_command_with_one_line(workdir: Path) -> None:
    server = f"127.0.0.1:{closed_port()}"
    start_store(workdir / "state")
    try:
        one_line_each(
            workdir,
            ["replay", "consume", "forward", "topics apply", "topics diff", "dlq list", "dlq show 1", "dlq replay 1"],
            [f"local.state_dir={workdir / 'state'}", f"log.bootstrap_servers={server}"],
            f"log kafka:{server}: expected an answer",
            25.0,
        )
    finally:
        stop_store(workdir / "state")


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_ends_training_before_it_begins(workdir: Path) -> None:
    server = f"127.0.0.1:{closed_port()}"
    one_line_each(workdir, ["train"], [f"log.bootstrap_servers={server}"], f"log kafka:{server}: expected", 40.0)


CLICKHOUSE = ["clickhouse.password=hush"]


def test_a_server_that_does_not_answer_ends_each_query_with_one_line(workdir: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    one_line_each(workdir, ["check", "report", "query SELECT(1)"], [*CLICKHOUSE, f"clickhouse.url={url}"], url, 20.0)


@pytest.mark.slow
@pytest.mark.parametrize("engines", ["sqlite"], indirect=True)
def test_a_server_that_does_not_answer_is_waited_for_before_tables_are_made(place: Place) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    overrides = [*CLICKHOUSE, *place.overrides, f"clickhouse.url={url}"]
    one_line_each(place.folder, ["migrate", "consume"], overrides, url, 45.0)


def test_a_local_broker_that_does_not_run_is_named_with_the_command_that_starts_it(
    workdir: Path, millrace: Callable[..., Any]
) -> None:
    for command in ("replay", "topics diff", "dlq list", "train"):
        result = millrace(*command.split(), "--set", "log.engine=kafka")
        assert result.code == 3
        last = result.err.splitlines()[-1]
        assert f"Kafka broker of {workdir / '.millrace'}: not running" in last
        assert "`millrace local up --log kafka`" in last


def test_without_java_or_maven_local_up_says_what_to_install(
    workdir: Path, millrace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        launcher = java()
    except LocalError:
        launcher = None
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    result = millrace("local", "up", "--log", "kafka")
    assert result.code == 3
    assert len(result.err.splitlines()) == 1
    assert "expected Java 17 or newer" in result.err
    assert "apt install openjdk-17-jre-headless" in result.err
    if launcher is not None:
        folder = workdir / "bin"
        folder.mkdir()
        (folder / "java").symlink_to(launcher)
        monkeypatch.setenv("PATH", str(folder))
        result = millrace("local", "up", "--log", "kafka", "--set", f"local.kafka_jars={workdir / 'jars'}")
        assert result.code == 3
        assert len(result.err.splitlines()) == 1
        assert "nor Maven to fetch them" in result.err
    assert not (workdir / ".millrace" / "store").exists()


# --- by what others wrote ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed: apt install kcat")
@pytest.mark.parametrize("engines", ["kafka"], indirect=True)
def test_kcat_reads_a_topic_and_sees_the_cloudevents_headers(place: Place) -> None:
    place.run("topics", "apply")
    run_id = new_run_id()
    left = [sys.executable, "-c", PUBLISHER, str(place.outbox), run_id, place.prefix]
    assert subprocess.run(left, check=False, timeout=30).returncode == 9
    place.run("forward")
    servers = log_address(load_settings(None, place.overrides)).removeprefix("kafka:")
    topic = TOPICS["runs"].name(place.prefix)
    done = subprocess.run(
        ["kcat", "-q", "-C", "-b", servers, "-t", topic, "-e", "-J"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    headers = [dict(zip(each["headers"][::2], each["headers"][1::2], strict=True)) for each in records]
    assert [each["ce_type"] for each in headers] == ["attempt.started", "publisher.report"]
    assert all(each["ce_id"].startswith(run_id) and "ce_specversion" in each for each in headers)
    assert {each["key"] for each in records} == {run_id}
    assert json.loads(records[0]["payload"])["data"]["host"] == "here"
