"""SIGINT and SIGTERM end the demo within 10 s, and lose nothing."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from analytics.integrity import check_run
from analytics.names import ask

pytestmark = pytest.mark.slow

LIMIT_S = 10.0


def ends(demo: Any, sent: float, code: int) -> None:
    assert demo.finish() == code, demo.output
    took = time.monotonic() - sent
    assert took < LIMIT_S, f"{took:.1f} s\n{demo.output}"
    assert "Traceback" not in demo.output
    assert demo.left_running() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_mid_training_loses_nothing(run_demo: Any, number: int, code: int) -> None:
    demo = run_demo("train.iterations=1000")
    demo.wait_for(r"iteration 3/")
    # Ctrl-C goes to all processes of the terminal, Ray's among them; `kill` goes to one.
    ends(demo, demo.signal(number, group=number == signal.SIGINT), code)
    assert f"check {demo.run_id}" in demo.output
    with demo.stack() as stack:
        assert stack.drain(30)
        with stack.client() as client:
            table = check_run(client, demo.run_id)
            assert table.ok, table.problems
            assert ask(client, "SELECT status FROM runs").rows == [("stopped",)]


def test_a_signal_while_ray_starts_ends_it(run_demo: Any) -> None:
    demo = run_demo("train.iterations=1000")
    demo.wait_for(r"starting Ray")
    time.sleep(1.0)
    ends(demo, demo.signal(signal.SIGTERM, group=False), 143)


def test_a_signal_while_runners_start_ends_it(run_demo: Any) -> None:
    demo = run_demo("train.iterations=1000")
    demo.wait_for(r"starting Ray")
    deadline = time.monotonic() + 60
    while not demo.processes("ray::BatchedEnvRunner") and time.monotonic() < deadline:
        time.sleep(0.05)
    ends(demo, demo.signal(signal.SIGINT), 130)


def test_an_iteration_that_takes_long_is_interrupted(run_demo: Any) -> None:
    demo = run_demo("train.iterations=10", "algorithm.reporting.min_sample_timesteps_per_iteration=1000000")
    demo.wait_for(r"starting Ray")
    episodes = 0
    while not episodes:
        time.sleep(0.5)
        episodes = sum(path.stat().st_size > 100_000 for path in (demo.state_dir / "outbox").glob("*.outbox*"))
    ends(demo, demo.signal(signal.SIGINT), 130)
    with demo.stack() as stack:
        assert stack.drain(30)
        with stack.client() as client:
            table = check_run(client, demo.run_id)
            assert table.ok, table.problems


def test_a_signal_during_a_timed_replay_ends_it(run_demo: Any) -> None:
    demo = run_demo("feed.speed=10000000")
    demo.wait_for(r"replay: [1-9]")
    ends(demo, demo.signal(signal.SIGINT), 130)
    assert "stopped before the end, the same replay goes on from here" in demo.output
    assert "starting Ray" not in demo.output


def test_a_second_signal_ends_it_at_once(run_demo: Any) -> None:
    demo = run_demo("train.iterations=1000")
    demo.wait_for(r"iteration 1/")
    demo.signal(signal.SIGINT)
    demo.wait_for(r"a second signal ends it at once")
    sent = demo.signal(signal.SIGINT)
    assert demo.finish() == -signal.SIGINT
    assert time.monotonic() - sent < 2.0
    assert demo.left_running() == []
