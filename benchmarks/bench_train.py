"""What publishing events costs a training: RLlib with and without ``EventCallbacks``, PPO and DQN.

Four algorithms are built, two of each kind with the same config but for the callbacks. They train in turns within the
same minutes; each figure is a median over the turns.

The share is of CPU time, because wall time on a shared machine says little: CPU seconds inside the callbacks (which
hold the outbox's write) and of the forwarder process, over the CPU seconds of all processes that train. The wall ratio
stands beside it: time with events over time without.

Run: python benchmarks/bench_train.py [--quick] [--runners N]     (about 4 minutes; --quick 1 minute)
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from env.bars import SymbolBars
from env.scaler import Scaler
from env.settings import EnvSettings
from eventlog.forwarder_control import LOCK_NAME, drain, stop_forwarder
from eventlog.open_log import open_log
from schemas.ids import new_run_id
from schemas.topics import TOPICS
from trainer.algorithm import build_config
from trainer.callbacks import EventCallbacks, finish_run
from trainer.ray_session import start_ray
from trainer.rllib_private import runner_callbacks
from trainer.settings import AlgorithmSettings, EnvConfig, EventSettings, OutboxSettings
from trainer.window_store import WindowStore
from trainer.windows import History, open_window

BARS, DAY = 3_000, 86_400_000_000
TARGET = 0.05
ENV = EnvSettings()


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
class Contestant:
    """An algorithm, and what its turns took."""

    name: str
    algorithm: Any
    with_events: bool
    wall: list[float] = field(default_factory=list)  # seconds per 1,000 env steps
    share: list[tuple[float, float]] = field(default_factory=list)  # callbacks, forwarder
    steps: int = 0

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


def cpu(processes: list[psutil.Process]) -> float:
    """CPU seconds of the processes so far."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def turn(contestant: Contestant, iterations: int, outbox: Path) -> None:
    """Train for some iterations, and note what they took."""
    training = contestant.processes()
    forwarder = [psutil.Process(int((outbox / LOCK_NAME).read_text().split()[0]))]
    before = cpu(training), contestant.callbacks_cpu(), cpu(forwarder)
    steps, begin = 0, time.perf_counter()
    for _ in range(iterations):
        steps += int(contestant.algorithm.train()["env_runners"]["num_env_steps_sampled"])
    wall = time.perf_counter() - begin
    used, callbacks = cpu(training) - before[0], contestant.callbacks_cpu() - before[1]
    if not drain(outbox, 60.0):
        raise SystemExit(f"outbox {outbox}: not empty within 60 s; see forwarder.log in it")
    contestant.steps += steps
    contestant.wall.append(1_000 * wall / steps)
    contestant.share.append((callbacks / used, (cpu(forwarder) - before[2]) / used))


def random_walk() -> SymbolBars:
    """Daily bars of a random walk."""
    rng = np.random.default_rng(1)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, BARS)))
    open_ = close * np.exp(rng.normal(0.0, 0.003, BARS))
    high, low = np.maximum(open_, close) * 1.002, np.minimum(open_, close) / 1.002
    ts = np.arange(BARS, dtype=np.int64) * DAY
    return SymbolBars("WALK", 0, ts, ts + DAY, open_, high, low, close, rng.uniform(1e5, 1e6, BARS))


def open_store() -> tuple[WindowStore, Scaler]:
    """The window that all of them trade."""
    facts = {"feed": "walk", "interval": "1d", "cluster_id": "none", "topic": "none", "topic_id": "none"}
    facts |= {"partitions": [0], "start_offsets": [0], "end_offsets": [1]}
    window = open_window(History((random_walk(),), facts, {}), "train", (BARS + 1) * DAY, ENV)
    store = WindowStore("bench")
    store.put(window)
    return store, Scaler.fit(window.data)


def build(name: str, with_events: bool, runners: int, scaler: Scaler, root: Path) -> Contestant:
    """An algorithm by our own defaults."""
    tables = {"env_runners": {"num_env_runners": runners, "num_envs_per_env_runner": 8}}
    environment = EnvConfig(
        window_store="windows-bench",
        split="train",
        settings=ENV.model_dump(mode="json"),
        scaler=scaler.to_dict(),
        seed=1,
        num_envs=8,
    )
    events = EventSettings(
        run_id=new_run_id(), attempt=1, log=f"sqlite:{root / 'log'}", outbox=OutboxSettings(directory=root / "outbox")
    )
    config = build_config(AlgorithmSettings(name=name, **tables), environment, environment, events, test_episodes=1)
    others = [item for item in config.callbacks_class if getattr(item, "func", item) is not EventCallbacks]
    config.callbacks([*others, partial(Measured, events)] if with_events else others)
    return Contestant(name, config.build_algo(), with_events)


def main() -> int:
    """Measure, print a table, and one JSON object at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer turns, no remote runners: 1 minute, not 4")
    parser.add_argument("--runners", type=int, help="remote env runners (default: 2, or 0 with --quick)")
    options = parser.parse_args()
    runners = options.runners if options.runners is not None else 0 if options.quick else 2
    turns = 3 if options.quick else 9

    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        root = Path(folder)
        (root / "log").mkdir()
        with open_log(f"sqlite:{root / 'log'}") as log:
            log.ensure_topics(list(TOPICS.values()), "millrace")
        start_ray(num_cpus=4 * runners + 2, object_store_mb=256)
        store, scaler = open_store()
        contestants = []
        for name in ("PPO", "DQN"):
            for with_events in (False, True):
                contestants.append(build(name, with_events, runners, scaler, root))
                print(f"built {name}{' with events' if with_events else ''}", file=sys.stderr, flush=True)
        # DQN first fills its buffer, and everything warms up.
        for contestant in contestants:
            for _ in range(2):
                contestant.algorithm.train()
        for number in range(turns):
            # Turned round each time: whoever comes first has no lasting advantage.
            for contestant in contestants if number % 2 else reversed(contestants):
                turn(contestant, {"PPO": 1, "DQN": 2}[contestant.name], root / "outbox")
            shown = "  ".join(
                f"{c.name}{'+' if c.with_events else ''} {1_000 / c.wall[-1]:,.0f}/s" for c in contestants
            )
            print(f"turn {number + 1}/{turns}: {shown}", file=sys.stderr, flush=True)
        for contestant in contestants:
            if contestant.with_events:
                finish_run(contestant.algorithm)
            contestant.algorithm.stop()
        drain(root / "outbox", 60.0)
        stop_forwarder(root / "outbox")
        store.close()
        ray.shutdown()

    result: dict[str, Any] = {"benchmark": "train", "runners": runners, "quick": options.quick, "target": TARGET}
    print(
        f"\n{'':<6}{'steps/s':>10}{'with events':>13}{'wall ratio':>12}"
        f"{'callbacks':>11}{'forwarder':>11}{'together':>10}"
    )
    for name in ("PPO", "DQN"):
        plain, events = (next(c for c in contestants if c.name == name and c.with_events == w) for w in (False, True))
        callbacks, forwarder = (statistics.median(part) for part in zip(*events.share, strict=True))
        rates = [1_000 / statistics.median(c.wall) for c in (plain, events)]
        ratio = statistics.median(w / p for w, p in zip(events.wall, plain.wall, strict=True))
        print(
            f"{name:<6}{rates[0]:>10,.0f}{rates[1]:>13,.0f}{ratio:>12.3f}{callbacks:>11.2%}{forwarder:>11.2%}"
            f"{callbacks + forwarder:>10.2%}"
        )
        result[name] = {
            "steps_per_second": round(rates[0]),
            "steps_per_second_with_events": round(rates[1]),
            "wall_ratio": round(ratio, 4),
            "callbacks_cpu_share": round(callbacks, 5),
            "forwarder_cpu_share": round(forwarder, 5),
            "cpu_share": round(callbacks + forwarder, 5),
            "below_target": callbacks + forwarder < TARGET,
        }
    result |= {"ray": ray.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
