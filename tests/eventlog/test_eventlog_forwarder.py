from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eventlog.forwarder import drain, ensure_forwarder, forwarder_running, pending, stop_forwarder
from eventlog.open_log import open_log
from eventlog.outbox_file import Outbox
from schemas.errors import OutboxError, SettingsError
from schemas.topics import MAX_RECORD_BYTES, TOPICS


def outbox_files(bench: Any) -> list[str]:
    return sorted(path.name for path in bench.outbox.iterdir() if path.name.startswith(bench.run_id))


def test_everything_published_arrives_in_order_and_the_outbox_goes(bench: Any, actions: Any, started: Any) -> None:
    bench.make_log()
    publisher = bench.publisher()
    ensure_forwarder(bench.outbox, bench.address)
    accepted = [publisher.publish(started(publisher, n), actions(publisher, n)) for n in range(300)]
    assert drain(bench.outbox, 20.0)
    assert pending(bench.outbox) == 0
    assert bench.closing_reports() == [], "an open publisher has none"
    publisher.close()
    assert drain(bench.outbox, 20.0)
    assert outbox_files(bench) == []
    events = bench.events()
    assert {event.event_id for call in accepted for event in call} <= {event.event_id for event in events}
    assert len(events) == 601, "no fault, no repeat"
    [report] = bench.closing_reports()
    assert report.emitted == {"episode.started": 300, "episode.actions": 300, "publisher.report": 1}
    assert report.acknowledged == report.emitted
    assert report.closed_by == "publisher"
    assert bench.problems([]) == []


def test_a_publisher_that_published_nothing_still_gets_its_closing_report(bench: Any) -> None:
    bench.make_log()
    bench.publisher().close()
    ensure_forwarder(bench.outbox, bench.address)
    assert drain(bench.outbox, 20.0)
    [report] = bench.closing_reports()
    assert report.emitted == report.acknowledged == {"publisher.report": 1}


def test_parts_of_a_large_event_arrive(bench: Any, actions: Any) -> None:
    bench.make_log()
    with bench.publisher() as publisher:
        parts = publisher.publish(actions(publisher, rows=1_500_000))
    ensure_forwarder(bench.outbox, bench.address)
    assert drain(bench.outbox, 20.0)
    assert [event for event in bench.events() if event.event_type == "episode.actions"] == parts
    assert bench.closing_reports()[0].acknowledged["episode.actions"] == 1


def test_killed_publishers_lose_nothing_that_they_were_told_was_accepted(
    bench: Any, tmp_path: Path, wait_until: Any, kill: Any
) -> None:
    bench.make_log()
    bench.start_forwarder()
    ledgers = []
    for life in range(3):
        ledger = tmp_path / f"ledger-{life}"
        ledgers.append(ledger)
        publisher = bench.start_publisher(ledger, 1, 1_000_000)
        assert publisher.stdout.readline().strip().split(".")[3] == str(life), "a new number for each life"
        wait_until(lambda ledger=ledger: ledger.stat().st_size > 20_000, "some events")
        kill(publisher)
    assert drain(bench.outbox, 30.0)
    assert bench.problems(ledgers) == []
    assert outbox_files(bench) == []
    reports = bench.closing_reports()
    assert sorted(report.restart for report in reports) == [0, 1, 2]
    assert {report.closed_by for report in reports} == {"forwarder"}


def test_a_call_is_accepted_as_a_whole_or_not_at_all(bench: Any, tmp_path: Path, wait_until: Any, kill: Any) -> None:
    bench.make_log()
    for life in range(3):
        ledger = tmp_path / f"ledger-{life}"
        publisher = bench.start_publisher(ledger, 1, 1_000_000)
        wait_until(lambda ledger=ledger: ledger.exists() and ledger.stat().st_size > 5_000, "some events")
        kill(publisher)
    bench.start_forwarder()
    assert drain(bench.outbox, 30.0)
    counted = Counter((event.publisher_id, event.event_type) for event in bench.events())
    for publisher_id in {name for name, _ in counted}:
        assert counted[publisher_id, "episode.started"] == counted[publisher_id, "positions"] > 0
        assert counted[publisher_id, "episode.actions"] == 2 * counted[publisher_id, "positions"]


def churn(bench: Any, tmp_path: Path, kill: Any, forwarder: str, seed: int) -> list[Path]:
    """Two publishers publish and close in order while the forwarder is killed at random moments."""
    bench.make_log()
    chance = random.Random(seed)
    ledgers = [tmp_path / "ledger-1", tmp_path / "ledger-2"]
    publishers = [bench.start_publisher(ledger, index, 2_500) for index, ledger in enumerate(ledgers, 1)]
    for publisher in publishers:
        publisher.stdout.readline()
    kills = 0
    while kills < 4 or any(publisher.poll() is None for publisher in publishers):
        process = bench.start_forwarder(forwarder)
        deadline = time.monotonic() + 10.0
        while not forwarder_running(bench.outbox) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.25))
        kill(process)
        kills += 1
        assert kills < 100
    assert [publisher.wait() for publisher in publishers] == [0, 0]
    bench.start_forwarder(forwarder)
    assert drain(bench.outbox, 30.0)
    return ledgers


def test_a_forwarder_killed_again_and_again_loses_nothing(bench: Any, tmp_path: Path, kill: Any) -> None:
    ledgers = churn(bench, tmp_path, kill, "forward", seed=1)
    assert bench.problems(ledgers) == []
    assert outbox_files(bench) == []
    assert [report.closed_by for report in bench.closing_reports()] == ["publisher", "publisher"]


def test_the_oracle_finds_a_forwarder_that_deletes_before_it_sends(bench: Any, tmp_path: Path, kill: Any) -> None:
    for round_ in range(5):
        inner = tmp_path / str(round_)
        inner.mkdir()
        trial = type(bench)(inner)
        try:
            ledgers = churn(trial, inner, kill, "forward-wrongly", seed=round_)
            if any("lost" in problem for problem in trial.problems(ledgers)):
                return
        finally:
            trial.close()
    pytest.fail("the planted bug was not found in five rounds")


def test_a_forwarder_killed_anywhere_in_closing_leaves_one_closing_report(bench: Any, actions: Any, kill: Any) -> None:
    bench.make_log()
    chance = random.Random(3)
    for n in range(8):
        with bench.publisher() as publisher:
            publisher.publish(actions(publisher, n))
    while list(bench.outbox.glob("*.outbox")):
        process = bench.start_forwarder()
        while not forwarder_running(bench.outbox):
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.06))
        kill(process)
    bench.start_forwarder(idle_s=0.0).wait(20)
    assert outbox_files(bench) == [], "what a kill left behind is swept"
    reports = bench.closing_reports()
    assert sorted(report.restart for report in reports) == list(range(8))
    assert bench.problems([]) == []


def test_the_log_may_come_later_and_go_away(bench: Any, actions: Any, wait_until: Any) -> None:
    with bench.publisher() as publisher:
        publisher.publish(actions(publisher))
        ensure_forwarder(bench.outbox, bench.address)
        output = bench.outbox / "forwarder.log"
        wait_until(lambda: "expected an existing directory" in output.read_text(), "a warning that names the log")
        assert pending(bench.outbox) == 1
        assert not drain(bench.outbox, 0.2)
        (bench.root / "log").mkdir()
        wait_until(lambda: "expected a topic" in output.read_text(), "a complaint about the missing topic")
        assert pending(bench.outbox) == 1
        bench.make_log()
        wait_until(lambda: pending(bench.outbox) == 0, "the record to be sent")
        # Away again: what is published meanwhile arrives once the log is back.
        shutil.move(bench.root / "log", bench.root / "away")
        for n in range(50):
            publisher.publish(actions(publisher, n))
        time.sleep(0.3)
        assert pending(bench.outbox) == 50
        shutil.move(bench.root / "away", bench.root / "log")
    assert drain(bench.outbox, 20.0)
    assert bench.problems([]) == []
    assert bench.closing_reports()[0].acknowledged["episode.actions"] == 51


def test_one_publisher_without_its_topic_does_not_stop_the_others(bench: Any, actions: Any) -> None:
    bench.make_log()
    with bench.publisher(1, topic_prefix="missing") as lost, bench.publisher(2) as fine:
        lost.publish(actions(lost))
        fine.publish(actions(fine))
    ensure_forwarder(bench.outbox, bench.address)
    assert not drain(bench.outbox, 1.0)
    assert [report.worker_index for report in bench.closing_reports()] == [2]
    assert pending(bench.outbox) == 1
    with open_log(bench.address) as log:
        log.ensure_topics(list(TOPICS.values()), "missing")
    assert drain(bench.outbox, 20.0)


def test_a_record_that_the_log_refuses_for_good_is_set_aside_and_shown(
    bench: Any, actions: Any, wait_until: Any
) -> None:
    bench.make_log()
    with bench.publisher() as publisher:
        for n in range(3):
            publisher.publish(actions(publisher, n))
        # What cannot happen by publish(): a record over the limit.
        with sqlite3.connect(bench.outbox / f"{publisher.publisher_id}.outbox") as db:
            db.execute("UPDATE records SET value = zeroblob(?) WHERE seq = 2", (MAX_RECORD_BYTES + 1,))
        db.close()
    process = bench.start_forwarder(idle_s=0.5)
    _, output = process.communicate(timeout=20)
    assert process.returncode == 0, "it ends when nothing else is to be done"
    assert "set aside for good" in output
    assert "refused 1 records" in output
    assert sorted(event.number for event in bench.events()) == [1, 3]
    assert bench.closing_reports() == []
    assert pending(bench.outbox) == 1
    assert not drain(bench.outbox, 0.1)
    outbox = Outbox.open(next(bench.outbox.glob("*.outbox")))
    assert outbox.counts() == ({"episode.actions": 3}, {"episode.actions": 2})
    outbox.close()


def test_there_is_one_forwarder_a_directory(bench: Any) -> None:
    bench.make_log()
    bench.outbox.mkdir()
    first = bench.start_forwarder()
    while not forwarder_running(bench.outbox):
        time.sleep(0.01)
    second = bench.start_forwarder()
    _, output = second.communicate(timeout=20)
    assert second.returncode == 0
    assert "runs" in output
    assert "already" in output
    assert first.poll() is None
    ensure_forwarder(bench.outbox, bench.address)
    stop_forwarder(bench.outbox)
    assert first.wait(10) == 0
    stop_forwarder(bench.outbox)


def test_many_who_start_it_at_once_get_one(bench: Any) -> None:
    bench.make_log()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ensure_forwarder(bench.outbox, bench.address), range(4)))
    assert forwarder_running(bench.outbox)
    assert (bench.outbox / "forwarder.log").read_text().count("forwarding") == 1


def test_a_forwarder_that_sends_elsewhere_is_an_error(bench: Any, tmp_path: Path) -> None:
    bench.make_log()
    ensure_forwarder(bench.outbox, bench.address)
    with pytest.raises(OutboxError, match=r"expected one that sends to .*elsewhere, got one that sends to .*log"):
        ensure_forwarder(bench.outbox, f"sqlite:{tmp_path / 'elsewhere'}")


def test_bad_arguments_are_one_clear_error(bench: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'redis:x': expected sqlite:DIRECTORY"):
        ensure_forwarder(bench.outbox, "redis:x")
    for arguments, status, words in (
        (["--outbox", str(tmp_path), "--log", "redis:x"], 2, "expected sqlite:DIRECTORY"),
        (["--outbox", str(tmp_path / "none"), "--log", bench.address], 1, "expected an existing directory"),
    ):
        process = bench.start("forward", *arguments)
        _, output = process.communicate(timeout=20)
        assert process.returncode == status
        assert words in output
        assert len(output.splitlines()) == 1


def test_a_signal_ends_it_after_its_batch_and_the_rest_stays(bench: Any, actions: Any, wait_until: Any) -> None:
    bench.make_log()
    publisher = bench.publisher()
    process = bench.start_forwarder()
    publisher.publish(actions(publisher))
    wait_until(lambda: pending(bench.outbox) == 0, "the first record")
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "SIGINT" in output
    publisher.publish(actions(publisher, 1))
    assert pending(bench.outbox) == 1
    publisher.close()
    ensure_forwarder(bench.outbox, bench.address)
    assert drain(bench.outbox, 20.0)
    assert bench.problems([]) == []


def test_a_second_signal_ends_it_at_once(bench: Any, actions: Any, wait_until: Any) -> None:
    bench.make_log()
    writer = sqlite3.connect(bench.root / "log" / "log.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")  # the log does not take a record as long as this stands
    publisher = bench.publisher()
    publisher.publish(actions(publisher))
    process = bench.start_forwarder()
    wait_until(lambda: forwarder_running(bench.outbox), "the forwarder")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert process.poll() is None, "it waits for its batch"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=2)
    assert process.returncode == -signal.SIGTERM
    writer.execute("COMMIT")
    writer.close()
    publisher.close()
    ensure_forwarder(bench.outbox, bench.address)
    assert drain(bench.outbox, 20.0)
    assert bench.problems([]) == []


def test_it_ends_when_idle_but_never_while_an_outbox_is_open(bench: Any, actions: Any) -> None:
    bench.make_log()
    publisher = bench.publisher()
    process = bench.start_forwarder(idle_s=0.3)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    publisher.close()
    assert process.wait(10) == 0
    assert outbox_files(bench) == []


def test_an_outbox_that_is_no_database_does_not_stop_the_others(bench: Any, actions: Any) -> None:
    bench.make_log()
    with bench.publisher() as publisher:
        publisher.publish(actions(publisher))
    (bench.outbox / "broken.outbox").write_bytes(b"this is no SQLite file" * 100)
    process = bench.start_forwarder(idle_s=0.3)
    _, output = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "broken.outbox: file is not a database" in output
    assert len(bench.closing_reports()) == 1
    with pytest.raises(OutboxError, match="not a database"):
        pending(bench.outbox)


def test_an_empty_outbox_of_a_publisher_killed_at_its_start_is_removed(bench: Any) -> None:
    bench.make_log()
    bench.outbox.mkdir()
    for name in (f"{bench.run_id}.1.r1.0.aaaaaa.outbox", f"{bench.run_id}.1.r1.1.aaaaaa.lock"):
        (bench.outbox / name).touch()
    process = bench.start_forwarder(idle_s=0.0)
    assert process.wait(20) == 0
    assert outbox_files(bench) == []


def test_the_forwarder_outlives_the_process_that_started_it(bench: Any, actions: Any) -> None:
    bench.make_log()
    program = (
        "import sys; from pathlib import Path; from eventlog.forwarder import ensure_forwarder; "
        "ensure_forwarder(Path(sys.argv[1]), sys.argv[2])"
    )
    # A module in the working directory with the name of one of ours must not be taken for it.
    (bench.root / "schemas.py").write_text("raise SystemExit('the wrong module')")
    starter = subprocess.run(
        [sys.executable, "-P", "-c", program, str(bench.outbox), bench.address], cwd=bench.root, check=False
    )
    assert starter.returncode == 0
    assert forwarder_running(bench.outbox)
    with bench.publisher() as publisher:
        publisher.publish(actions(publisher))
    assert drain(bench.outbox, 20.0)
