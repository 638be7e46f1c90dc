"""Runners that are killed, and an outbox that is full: nothing is invented, nothing is dropped, nothing hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eventlog.outbox_file import Outbox
from schemas.errors import OutboxFullError
from trainer.settings import OutboxSettings

# --- kill -9 ----------------------------------------------------------------------------------------------------------


def train_and_kill(bench: Any, victims: tuple[int, ...]) -> Any:
    """A resumed run, some of whose runners are killed after its first iteration.

    ``seen`` is the iteration after which a new runner 1 had its outbox.
    """
    bench.send_walks("AAA", "BBB")
    job = bench.job("PPO", tables={"training": {"train_batch_size_per_learner": 100}}, train={"iterations": 1})
    begun = bench.train(job).result
    again = bench.job(
        "PPO",
        runners=2,
        tables={"fault_tolerance": {"delay_between_env_runner_restarts_s": 0.1}},
        train={"iterations": 2_000},
    )
    restarted_at: list[int] = []
    last: list[int] = []

    def outbox_of(worker: int, restart: int) -> list[Path]:
        return list(bench.outbox.directory.glob(f"*.2.r{worker}.{restart}.*.outbox"))

    def on_iteration(iteration: Any) -> None:
        last[:] = [iteration.number]
        if iteration.number == 2:
            for worker in victims:
                outbox = Outbox.open(outbox_of(worker, restart=0)[0])
                meta = outbox.meta()
                outbox.close()
                assert meta is not None
                os.kill(meta.pid, signal.SIGKILL)
        if not restarted_at and outbox_of(1, restart=1):
            restarted_at.append(iteration.number)

    run = bench.train(
        replace(again, resume_from=begun.checkpoint),
        on_iteration=on_iteration,
        # Until the new one has had time for some episodes of its own.
        should_stop=lambda: bool(restarted_at) and last[0] >= restarted_at[0] + 4,
    )
    run.seen = restarted_at
    return run


@pytest.fixture(scope="module")
def killed_run(new_bench: Callable[[], Any], ray_session: None) -> Any:
    return train_and_kill(new_bench(), victims=(1,))


def of_publisher(run: Any, publisher: str, event_type: str) -> list[Any]:
    identity = str(run.publishers()[publisher])
    return [event.data for event in run.events if event.publisher_id == identity and event.event_type == event_type]


def test_training_goes_on_without_a_killed_runner_and_gets_a_new_one(killed_run: Any) -> None:
    assert killed_run.seen, "the runner was not restarted"
    assert killed_run.result.status == "stopped"
    assert {"r1.0", "r1.1", "r2.0"} <= set(killed_run.publishers())
    numbers = [one.iteration for one in killed_run.of("iteration.ended")]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_restarted_runner_publishes_under_the_right_attempt_iteration_and_window(killed_run: Any) -> None:
    publisher = killed_run.publishers()["r1.1"]
    assert publisher.attempt == 2
    episodes = of_publisher(killed_run, "r1.1", "episode.ended")
    assert episodes
    # Its outbox is there within an iteration: of that one, or of the one before.
    assert {one.iteration for one in episodes} <= set(range(killed_run.seen[0], killed_run.result.iterations + 1))
    windows = {one.window_id for one in killed_run.of("window.opened", split="train")}
    assert {one.window_id for one in episodes} == windows
    first = {(one.env_index, one.episode_no) for one in of_publisher(killed_run, "r1.0", "episode.started")}
    second = {(one.env_index, one.episode_no) for one in of_publisher(killed_run, "r1.1", "episode.started")}
    assert first & second, "the same numbers again, so only the restart in the identity tells the episodes apart"
    ids = [one.episode_id for one in killed_run.of("episode.started")]
    assert len(ids) == len(set(ids))


def test_a_killed_publisher_is_closed_by_the_forwarder(killed_run: Any) -> None:
    closing = {
        name: [one for one in of_publisher(killed_run, name, "publisher.report") if one.closing]
        for name in ("r1.0", "r1.1", "r2.0")
    }
    assert {name: [one.closed_by for one in reports] for name, reports in closing.items()} == {
        "r1.0": ["forwarder"],
        "r1.1": ["publisher"],
        "r2.0": ["publisher"],
    }
    for [report] in closing.values():
        assert report.emitted == report.acknowledged


def test_episodes_of_a_killed_runner_have_a_start_and_no_end(killed_run: Any) -> None:
    started = {one.episode_id for one in of_publisher(killed_run, "r1.0", "episode.started")}
    ended = {one.episode_id for one in of_publisher(killed_run, "r1.0", "episode.ended")}
    assert ended <= started
    assert len(started - ended) == 2
    traded = {one.episode_id for one in killed_run.of("trades")}
    assert not traded & (started - ended)


@pytest.mark.slow
def test_training_goes_on_when_every_runner_was_killed(bench: Any, ray_session: None) -> None:
    run = train_and_kill(bench, victims=(1, 2))
    assert {"r1.0", "r1.1", "r2.0", "r2.1"} <= set(run.publishers())
    numbers = [one.iteration for one in run.of("iteration.ended")]
    assert numbers == list(range(1, len(numbers) + 1))


# --- a full outbox ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runners", [0, 2])
def test_a_full_outbox_ends_the_run_with_one_clear_error(runners: int, bench: Any, ray_session: None) -> None:
    bench.send_walks("AAA", "BBB", count=600)
    away = bench.root / "log-away"
    iterations: list[int] = []

    def say(line: str) -> None:
        if "starting Ray" in line:
            # From here on nothing leaves the outboxes.
            (bench.root / "log").rename(away)

    job = bench.job(
        "PPO",
        runners=runners,
        envs=4,
        env={"episode_length": 200},
        tables={"training": {"train_batch_size_per_learner": 2_000, "minibatch_size": 2_000}},
        train={"iterations": 200, "record_steps": True},
    )
    job = replace(job, outbox=OutboxSettings(directory=bench.outbox.directory, max_mb=1))
    with pytest.raises(OutboxFullError, match=r"outbox .*expected at most 1000000 bytes.*or raise the limit"):
        bench.train(job, say=say, on_iteration=lambda iteration: iterations.append(iteration.number))
    assert len(iterations) < 100

    # What was accepted is still there, and goes on its way once the log is back.
    away.rename(bench.root / "log")
    run = bench.run()
    [ended] = run.of("run.ended")
    assert ended.status == "failed"
    closing = run.of("publisher.report", closing=True)
    assert all(report.emitted == report.acknowledged for report in closing)
    assert sum(report.emitted.get("episode.ended", 0) for report in closing) == len(run.of("episode.ended")) > 4
