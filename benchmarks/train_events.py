"""What publishing costs a training: PPO and DQN without events, with episodes, trades and fills, and with every step.

Shares are of CPU time, because wall time on a shared machine says little: CPU seconds inside the callbacks (which hold
the outbox's write), and apart from them those of the forwarder process, over the CPU seconds of all processes that
train. The wall ratio stands beside them: time with events over time without.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from train_contestants import BARS, ENV, WORKS, Arena, rllib_config, sampled

from eventlog.forwarder_control import LOCK_NAME, drain, stop_forwarder
from eventlog.open_log import open_log
from schemas.ids import new_run_id
from schemas.topics import TOPICS
from trainer.callbacks import EventCallbacks, add_callbacks, finish_run
from trainer.fast_path import use_fast_path
from trainer.rllib_private import runner_callbacks
from trainer.settings import EventSettings, OutboxSettings

WORK = {"PPO": "ppo128", "DQN": "dqn"}
KINDS = ("none", "events", "steps")
DRAIN_S = 120.0


class Measured(EventCallbacks):
    """EventCallbacks that add up the CPU seconds of their thread inside each call."""

    cpu_seconds = 0.0


def _measured(name: str) -> Callable[..., Any]:
    def call(self: Measured, **arguments: Any) -> Any:
        begin = time.thread_time()
        try:
            return getattr(EventCallbacks, name)(self, **arguments)
        finally:
            self.cpu_seconds += time.thread_time() - begin

    return call


for _name in ("on_episode_start", "on_episode_end", "on_sample_end", "on_train_result"):
    setattr(Measured, _name, _measured(_name))


@dataclass
class Publishing:
    """An algorithm, and what its turns took."""

    name: str
    kind: str
    algorithm: Any
    wall: list[float] = field(default_factory=list)  # seconds a step
    share: list[tuple[float, float]] = field(default_factory=list)  # callbacks, forwarder
    callbacks: list[float] = field(default_factory=list)  # CPU seconds a step

    def processes(self) -> list[psutil.Process]:
        """The driver, and the remote runners."""
        pids = self.algorithm.env_runner_group.foreach_env_runner(lambda _: os.getpid())
        return [psutil.Process(pid) for pid in {os.getpid(), *pids}]

    def callbacks_cpu(self) -> float:
        """CPU seconds inside the callbacks so far, over all processes."""

        def one(callbacks: list[Any]) -> float:
            return sum(getattr(item, "cpu_seconds", 0.0) for item in callbacks)

        runners = self.algorithm.env_runner_group.foreach_env_runner(lambda runner: one(runner_callbacks(runner)))
        return one(self.algorithm.callbacks) + sum(runners)

    def turn(self, least_s: float, outbox: Path) -> None:
        """Train for whole episodes, for so many seconds at least, and note what they took.

        All environments began together and end together: a turn that is no whole episode long might see no end at all.
        """
        training = self.processes()
        forwarder = [psutil.Process(int((outbox / LOCK_NAME).read_text().split()[0]))]
        before = _cpu(training), self.callbacks_cpu(), _cpu(forwarder)
        steps = wanted = 0
        begin = time.perf_counter()
        while not steps or time.perf_counter() - begin < least_s:
            wanted += WORKS[WORK[self.name]].envs * (ENV.episode_length or BARS)
            while steps < wanted:
                steps += sampled(self.algorithm.train())
        wall = time.perf_counter() - begin
        used, callbacks = _cpu(training) - before[0], self.callbacks_cpu() - before[1]
        if not drain(outbox, DRAIN_S):
            raise SystemExit(f"outbox {outbox}: not empty within {DRAIN_S:.0f} s; see forwarder.log in it")
        self.wall.append(wall / steps)
        self.callbacks.append(callbacks / steps)
        self.share.append((callbacks / used, (_cpu(forwarder) - before[2]) / used))


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def build(arena: Arena, name: str, kind: str, runners: int, root: Path) -> Publishing:
    """An algorithm on the fast path, publishing what ``kind`` says."""
    settings = ENV.model_copy(update={"record": "steps"}) if kind == "steps" else ENV
    config = rllib_config(arena, WORKS[WORK[name]], settings)
    config.env_runners(num_env_runners=runners)
    events = EventSettings(
        run_id=new_run_id(),
        attempt=1,
        log=f"sqlite:{root / 'log'}",
        outbox=OutboxSettings(directory=root / "outbox"),
        record_steps=kind == "steps",
    )
    if kind != "none":
        add_callbacks(config, partial(Measured, events))
    use_fast_path(config)
    return Publishing(name, kind, config.build_algo())


def measure(
    arena: Arena,
    kinds: tuple[str, ...],
    runners: int,
    turns: int,
    least_s: float,
    root: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The share of each kind and algorithm.

    Args:
        arena: The market.
        kinds: Of ``KINDS``; the first is what wall ratios are of.
        runners: Remote env runners.
        turns: Each trains this often.
        least_s: Seconds of a turn, at least.
        root: A folder for log and outbox.
        say: Gets a line of progress.
    """
    (root / "log").mkdir()
    with open_log(f"sqlite:{root / 'log'}") as log:
        log.ensure_topics(list(TOPICS.values()), "millrace")
    all_of_them = [build(arena, name, kind, runners, root) for name in WORK for kind in kinds]
    for one in all_of_them:  # DQN first fills its buffer, and everything warms up.
        one.algorithm.train()
        drain(root / "outbox", DRAIN_S)
    for number in range(turns):
        # Turned round each time: whoever comes first has no lasting advantage.
        for one in all_of_them if number % 2 else reversed(all_of_them):
            one.turn(least_s, root / "outbox")
        say(
            f"events, turn {number + 1}/{turns}: "
            + "  ".join(f"{o.name}/{o.kind} {1 / o.wall[-1]:,.0f}/s" for o in all_of_them)
        )
    for one in all_of_them:
        if one.kind != "none":
            finish_run(one.algorithm)
        one.algorithm.stop()
    drain(root / "outbox", DRAIN_S)
    stop_forwarder(root / "outbox")
    result: dict[str, Any] = {}
    plain = {one.name: one for one in all_of_them if one.kind == kinds[0]}
    for one in all_of_them:
        callbacks, forwarder = (statistics.median(part) for part in zip(*one.share, strict=True))
        ratio = statistics.median(mine / its for mine, its in zip(one.wall, plain[one.name].wall, strict=True))
        result.setdefault(one.kind, {})[one.name] = {
            "steps_per_second": round(1 / statistics.median(one.wall)),
            "wall_ratio": round(ratio, 4),
            "callbacks_us_per_step": round(1e6 * statistics.median(one.callbacks), 3),
            "callbacks_cpu_share": round(callbacks, 5),
            "forwarder_cpu_share": round(forwarder, 5),
            "cpu_share": round(callbacks + forwarder, 5),
        }
    return result
