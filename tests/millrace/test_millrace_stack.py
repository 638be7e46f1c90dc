"""The local stack: what it starts, brings back, and leaves alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from consumers.sink import Sink
from local.store import store_address
from millrace.settings import load_settings
from millrace.stack import LocalStack, url_of
from schemas.errors import LocalError, StoreError
from schemas.ids import new_run_id

# Publishes one event and dies without closing.
PUBLISHER = """
import os, sys
from pathlib import Path
from eventlog.outbox import Publisher
from schemas.ids import Role
from schemas.payloads import AttemptStarted
publisher = Publisher.open(Path(sys.argv[1]), run_id=sys.argv[2], attempt=1, role=Role.DRIVER, worker_index=0)
publisher.publish(AttemptStarted(
    started_at=1_780_000_000_000_000, resumed_from_iteration=None, host="here", pid=1,
    num_env_runners=0, num_envs_per_env_runner=1))
os._exit(9)
"""

STARTER = """
import sys, time
from millrace import LocalStack
with LocalStack() as stack:
    print(stack.state().consumer_pid, flush=True)
    time.sleep(60)
"""


def new_stack() -> LocalStack:
    return LocalStack(load_settings())


def publish_and_die(outbox: Path, run_id: str) -> None:
    done = subprocess.run([sys.executable, "-c", PUBLISHER, str(outbox), run_id], check=False, timeout=30)
    assert done.returncode == 9


def wait_until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def store_pid(stack: LocalStack) -> int:
    return int(json.loads((stack.state_dir / "store.json").read_text())["pid"])


def test_what_was_killed_comes_back_and_what_waits_is_stored(workdir: Path) -> None:
    with new_stack() as stack:
        pid = stack.state().consumer_pid
        assert pid is not None
        assert stack.ensure() == []
        os.kill(pid, signal.SIGKILL)
        os.kill(store_pid(stack), signal.SIGKILL)
        wait_until(lambda: stack.state().consumer_pid is None and stack.state().store is None)
        run_id = new_run_id()
        publish_and_die(stack.outbox, run_id)
        # The forwarder too is started for the dead publisher's outbox alone: nobody else asks for one.
        assert stack.ensure() == [
            "the store had died and is up again",
            "the consumer had died and is up again",
            "the forwarder had died and is up again",
        ]
        assert stack.drain(20)
        table = stack.check(run_id)
        assert table.ok, table.problems
        assert {line.event_type: line.stored for line in table.lines} == {"attempt.started": 1, "publisher.report": 1}
    assert stack.state().consumer_pid is None
    assert store_address(stack.state_dir) is None


def test_what_a_dead_publisher_left_is_sent_after_the_next_start(workdir: Path) -> None:
    run_id = new_run_id()
    outbox = load_settings().outbox_settings.directory
    publish_and_die(outbox, run_id)
    assert new_stack().state().waiting_in_outboxes == 1
    with new_stack() as stack:
        assert stack.drain(20)
        assert stack.check(run_id).ok


def test_a_second_stack_leaves_alone_what_the_first_has_started(workdir: Path) -> None:
    with new_stack() as first:
        before = first.state()
        with new_stack() as second:
            assert second.state() == before
        assert first.state() == before


def test_a_consumer_that_ends_with_an_error_is_named_and_not_started_again(workdir: Path) -> None:
    with new_stack() as stack:
        address = stack.address
        with Sink.connect(url_of(address), address.password.get_secret_value()) as sink:
            sink.client.command(
                "INSERT INTO millrace.schema_migrations SELECT * REPLACE (9999 AS number, 'later' AS name) "
                "FROM millrace.schema_migrations LIMIT 1"
            )
        pid = stack.state().consumer_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(LocalError, match="consumer: .*ended with exit status 3: .*9999_later.*consumer.log"):
            wait_until(lambda: stack.ensure() == ["it is started again and again"])
    with pytest.raises(StoreError, match="9999_later"):
        new_stack().start()


def test_all_of_it_ends_with_a_starter_that_is_killed(workdir: Path) -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER], cwd=workdir, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    with starter, starter.stdout as lines:
        assert int(lines.readline()) > 0
        starter.kill()
    stack = new_stack()
    wait_until(lambda: stack.state().consumer_pid is None and stack.state().store is None)


def test_the_state_of_an_empty_directory_starts_and_makes_nothing(workdir: Path) -> None:
    state = new_stack().state()
    assert (state.store, state.consumer_pid, state.forwarder, state.waiting_in_outboxes, state.lag) == (
        *(None, None, False, 0),
        None,
    )
    new_stack().stop(everything=True)
    assert not (workdir / ".millrace").exists()


def test_the_address_of_a_store_that_is_down_says_how_to_start_it(workdir: Path) -> None:
    with pytest.raises(LocalError, match="not running; start it with `millrace local up`"):
        _ = new_stack().address
