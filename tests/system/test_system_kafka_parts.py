"""One run made by separate processes, on SQLite and on Kafka: replay, train, stop, resume, consume, report."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from system_faults import differences

from analytics.names import ask
from millrace.settings import load_settings
from millrace.stack import LocalStack
from schemas.errors import LocalError

pytestmark = pytest.mark.slow

ENDS_WITHIN_S = 10.0


@pytest.fixture(params=["sqlite", "kafka"])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalStack]:
    """Log, store and consumer in the directory in which the commands run."""
    made = LocalStack(load_settings(None, [f"local.state_dir={tmp_path / '.millrace'}", f"log.engine={request.param}"]))
    try:
        made.start()
    except LocalError as error:
        made.stop()
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    yield made
    made.stop()


def ends(command: Any, number: signal.Signals, *, code: int = 0, group: bool = True) -> None:
    sent = command.signal(number, group=group)
    assert command.finish() == code, command.output
    assert time.monotonic() - sent < ENDS_WITHIN_S, command.output
    assert "Traceback" not in command.output
    assert command.left_running() == []


def test_a_run_is_trained_stopped_resumed_and_reported_by_separate_processes(run_demo: Any, stack: LocalStack) -> None:
    engine = f"log.engine={stack.settings.log.engine}"
    replay = run_demo(engine, command=("replay",))
    assert replay.finish() == 0, replay.output

    first = run_demo(engine, "train.iterations=1000", command=("train",))
    first.wait_for(r"iteration 2/.* records in outboxes")
    ends(first, signal.SIGINT)
    run_id = first.run_id
    assert f"run {run_id} stopped" in first.output

    unknown = run_demo(engine, command=("train", "--resume", "nonsense"))
    assert unknown.finish() == 2
    assert "--resume 'nonsense': expected a checkpoint's folder, or the unique start of a run's id" in unknown.output
    assert run_id in unknown.output

    second = run_demo(engine, "train.iterations=1000", command=("train", "--json", "--resume", run_id))
    second.wait_for(rf"resuming run {run_id} after iteration [2-9]")
    second.wait_for(r"iteration [3-9]/")
    ends(second, signal.SIGTERM, group=False)
    result = json.loads(second.output[second.output.index("\n{") :])
    assert (result["run_id"], result["attempt"], result["status"]) == (run_id, 2, "stopped")

    last = result["iterations"] + 1
    third = run_demo(engine, f"train.iterations={last}", command=("train", "--resume", result["checkpoint"]))
    assert third.finish() == 0, third.output
    assert f"run {run_id} completed: {last} iterations" in third.output

    report = run_demo(engine, command=("report", run_id, "--wait", "40"))
    assert report.finish() == 0, report.output
    assert "On bars that it had never seen the agent returned" in report.output
    assert "The integrity table holds" in report.output
    assert differences(stack, run_id) == []
    with stack.client() as client:
        sql = f"SELECT status, attempts, iterations FROM runs WHERE run_id = '{run_id}'"
        assert ask(client, sql).rows == [("completed", 3, last)]


def test_a_second_signal_ends_training_at_once(run_demo: Any, stack: LocalStack) -> None:
    if stack.settings.log.engine != "sqlite":
        pytest.skip("the log has no part in it")
    assert run_demo(command=("replay",)).finish() == 0
    train = run_demo("train.iterations=1000", command=("train",))
    train.wait_for(r"iteration 1/")
    train.signal(signal.SIGINT)
    train.wait_for(r"a second signal ends it at once")
    sent = train.signal(signal.SIGINT)
    assert train.finish() == -signal.SIGINT
    assert time.monotonic() - sent < 2.0
    assert train.left_running() == []
