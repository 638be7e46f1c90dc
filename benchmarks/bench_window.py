"""Memory of a large window: what each env runner, the driver and a checkpoint take of it, on the fast path.

PPO trains with four env runners, processes of Ray, on a window of 200 MB, and before that on a tiny one. What a process
has beyond the tiny window is the window's. It is told apart by kind: private (anonymous) memory, which is a copy of the
process's own, and shared memory, which is Ray's object store, of which a node has one. Of shared memory PSS counts each
page in equal parts to the processes that have it in view; the sum over all of Ray's processes is what the node has.
USS is what a process alone has in view. (PSS also moves with the libraries' pages, as idle processes come and go.)

The checkpoints are PPO's and DQN's after training, without events. The last line is JSON.

Run: python benchmarks/bench_window.py [--quick] [--json]      (about a minute; --quick about 40 seconds)
--quick trains fewer steps, on the same windows. With --json only one line goes to the standard output.
"""

# ruff: noqa: E402 - threads are limited before numpy and torch are imported

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # two cores are shared by six processes

import argparse
import gc
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from env.bars import SymbolBars
from env.scaler import Scaler
from env.settings import EnvSettings
from trainer.algorithm import new_config
from trainer.environments import ENV_ID, register
from trainer.fast_path import use_fast_path
from trainer.ray_session import start_ray
from trainer.settings import AlgorithmSettings, EnvConfig
from trainer.window_store import WindowStore
from trainer.windows import History, Window, open_window

RUNNERS, ENVS, SYMBOLS = 4, 32, 8
MEGABYTES, TINY = 200, 1
MINUTE = 60_000_000
SETTINGS = EnvSettings(window=64)
MB = 1e6


def arrays_of(window: Window) -> int:
    """Bytes of the arrays that a window puts into shared memory: its features twice, raw and scaled."""
    arrays = [value for value in vars(window.data).values() if isinstance(value, np.ndarray)]
    return sum(array.nbytes for array in [*arrays, window.data.features])


def open_bars(rows: int) -> tuple[Window, Scaler]:
    """A window of so many minutes of each of eight symbols that walk at random."""
    rng = np.random.default_rng(1)
    ts = np.arange(rows, dtype=np.int64) * MINUTE
    bars = []
    for number in range(SYMBOLS):
        close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.001, rows)))
        volume = rng.uniform(1e5, 1e6, rows)
        bars.append(SymbolBars(f"S{number}", 0, ts, ts + MINUTE, close, close * 1.001, close * 0.999, close, volume))
    facts = {"feed": "walk", "interval": "1m", "cluster_id": "none", "topic": "none", "topic_id": "none"}
    facts |= {"partitions": [0], "start_offsets": [0], "end_offsets": [1]}
    window = open_window(History(tuple(bars), facts, {}), "train", (rows + 1) * MINUTE, SETTINGS)
    scaler = Scaler.fit(window.data)
    window.scale(scaler, SETTINGS)
    return window, scaler


def memory(pid: int) -> dict[str, float]:
    """MB that a process has, by kind, as the kernel shares them out."""
    rows = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    value = {name: int(text.split()[0]) * 1024 / MB for name, text in rows.items()}
    unique = value["Private_Clean"] + value["Private_Dirty"]
    return {"private": value["Pss_Anon"], "shared": value["Pss_Shmem"], "pss": value["Pss"], "uss": unique}


def algorithm_on(name: str, store: WindowStore, scaler: Scaler, runners: int) -> Any:
    """RLlib's algorithm on the fast path, by Millrace's defaults, trading the store's window."""
    environment = EnvConfig(
        window_store=store.name,
        split="train",
        settings=SETTINGS.model_dump(mode="json"),
        scaler=scaler.to_dict(),
        seed=1,
        num_envs=ENVS,
    )
    config = new_config(AlgorithmSettings(name=name)).debugging(seed=1, log_level="ERROR")
    config.environment(ENV_ID, env_config=environment.model_dump(mode="json"))
    config.env_runners(num_env_runners=runners, num_envs_per_env_runner=ENVS)
    path = use_fast_path(config)
    if path.no_batched is not None or path.no_lean is not None:
        raise SystemExit(f"{name}: expected the fast path, got: {path.line}")
    return config.build_algo()


def train(algorithm: Any, steps: int) -> None:
    """For whole iterations."""
    done = 0
    while done < steps:
        done += int(algorithm.train()["env_runners"]["num_env_steps_sampled"])


def measure(rows: int, steps: int, name: str) -> dict[str, Any]:
    """Train on a window of so many bars a symbol, and look at every process."""
    before = memory(os.getpid())["private"]
    window, scaler = open_bars(rows)
    size, bars = arrays_of(window) / MB, window.opened.bars
    store = WindowStore(name)
    try:
        window = store.put(window)  # as the training loop does: no copy stays here
        gc.collect()
        kept = memory(os.getpid())["private"] - before
        algorithm = algorithm_on("PPO", store, scaler, RUNNERS)
        try:
            train(algorithm, steps)
            driver = psutil.Process()
            pids = algorithm.env_runner_group.foreach_env_runner(lambda _: os.getpid(), local_env_runner=False)
            node = [memory(process.pid) for process in [driver, *driver.children(recursive=True)]]
            return {
                "window_mb": size,
                "bars": bars,
                "runners": [memory(pid) for pid in pids],
                "driver_private_mb": kept,
                "node_shared_mb": sum(one["shared"] for one in node),
                "checkpoint_mb": {"PPO": checkpoint(algorithm), "DQN": dqn_checkpoint(store, scaler, steps)},
            }
        finally:
            algorithm.stop()
    finally:
        store.close()


def dqn_checkpoint(store: WindowStore, scaler: Scaler, steps: int) -> float:
    """MB of DQN's, its buffer filled by so many steps."""
    algorithm = algorithm_on("DQN", store, scaler, 0)
    try:
        train(algorithm, steps)
        return checkpoint(algorithm)
    finally:
        algorithm.stop()


def checkpoint(algorithm: Any) -> float:
    """MB that it takes on disk."""
    with tempfile.TemporaryDirectory(prefix="bench-window-") as folder:
        algorithm.save_to_path(folder)
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / MB


def main() -> int:
    """Measure both windows, print a table, and one JSON object at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer steps: at most a minute")
    parser.add_argument("--json", action="store_true", help="nothing but the JSON line on the standard output")
    options = parser.parse_args()
    steps = 20_000 if options.quick else 200_000
    begin = time.monotonic()
    start_ray(num_cpus=RUNNERS + 2, object_store_mb=2 * MEGABYTES + 128)
    register()
    try:
        # 105 bytes a bar: eight columns of 8, a flag, and five features of 4 twice, raw and scaled.
        tiny, large = (
            measure(int(megabytes * MB / 105 / SYMBOLS), steps, f"{megabytes}-mb") for megabytes in (TINY, MEGABYTES)
        )
    finally:
        ray.shutdown()
    extra = {
        kind: [big[kind] - small[kind] for big, small in zip(large["runners"], tiny["runners"], strict=True)]
        for kind in ("private", "shared", "pss", "uss")
    }
    result = {
        "window_mb": round(large["window_mb"], 1),
        "bars": large["bars"],
        "runners": RUNNERS,
        "runner_private_mb": [round(value, 1) for value in extra["private"]],
        "runner_shared_mb": [round(value, 1) for value in extra["shared"]],
        "runner_pss_mb": [round(value, 1) for value in extra["pss"]],
        "runner_uss_mb": [round(value, 1) for value in extra["uss"]],
        "runner_base_pss_mb": round(sum(one["pss"] for one in tiny["runners"]) / RUNNERS),
        "node_shared_mb": round(large["node_shared_mb"] - tiny["node_shared_mb"], 1),
        "driver_private_mb": round(large["driver_private_mb"], 1),
        "checkpoint_mb": {name: round(size, 2) for name, size in large["checkpoint_mb"].items()},
    }
    if not options.json:
        for name, value in result.items():
            print(f"{name:<20} {value}")
    seconds = round(time.monotonic() - begin)
    print(
        json.dumps(
            {
                "benchmark": "window",
                "quick": options.quick,
                "seconds": seconds,
                **result,
                "python": platform.python_version(),
                "ray": ray.__version__,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
