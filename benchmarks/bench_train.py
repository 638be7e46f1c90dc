"""Environment steps a second in training: the fast path against stock RLlib, Stable-Baselines3 and a bare loop.

All contestants of a work train on the same market with the same settings (``train_contestants.py``), in turns, in one
process, each on one thread of torch and BLAS. A ratio is the median over the turns of the quotient of two rates within
a turn, by wall clock; `cpu_ratios` has the same by CPU time of the process, which other programs disturb less.

`..._vs_...` is how many times as fast the fast path is; `..._of_bare` is the share of the bare loop's rate that it
reaches. `events_cpu_share` and `steps_cpu_share` are what publishing costs (``train_events.py``): the CPU time inside
the callbacks, of all CPU time of training, for episodes, trades and fills, and with every step; of PPO and DQN the
larger. What the forwarder process takes stands beside them. It is the worst case: agents that have learned nothing
trade at most steps, and the faster the training, the larger the share of the same records.

Run: python benchmarks/bench_train.py [--quick] [--json] [--only KEY]...     (see --help for the keys)
--quick measures the keys of the last line's `ratios` in about two minutes, one --only in 15 to 60. Without it there are
more works and longer turns, which takes many minutes: an iteration of the transformer alone takes seconds. With --json
only one line goes to the standard output, a JSON object; it is the last line anyway.

On an AMD processor with AVX-512 torch's matrix products and tanh are slow, which those of the fast path and of the bare
loop are not: the processor is part of every figure.
"""

# ruff: noqa: E402 - threads are limited before numpy and torch are imported

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy and torch are imported, and for every contestant
# A library for another processor than this one, where somebody has chosen so, would slow numpy's products alone.
os.environ.pop("OPENBLAS_CORETYPE", None)

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch
import train_events
from train_contestants import Arena, Contestant, build

from trainer.ray_session import start_ray

KEYS = {
    "ppo128_vs_stock": ("ppo128", "stock"),
    "ppo128_vs_sb3": ("ppo128", "sb3"),
    "ppo_sb3hp_vs_stock": ("ppo_sb3hp", "stock"),
    "ppo_sb3hp_vs_sb3": ("ppo_sb3hp", "sb3"),
    "a2c_vs_stock": ("a2c", "stock"),
    "dqn_vs_stock": ("dqn", "stock"),
    "dqn_vs_sb3": ("dqn", "sb3"),
    "sac_vs_stock": ("sac", "stock"),
    "ppo128_of_bare": ("ppo128", "bare"),
    "dqn_of_bare": ("dqn", "bare"),
}
"""Ratio to its work, and whom the fast path is compared with."""

MORE = {
    "ppo32_vs_stock": ("ppo32", "stock"),
    "ppo32_vs_sb3": ("ppo32", "sb3"),
    "ppo32_of_bare": ("ppo32", "bare"),
    "ppo_sb3hp_of_bare": ("ppo_sb3hp", "bare"),
    "a2c_vs_sb3": ("a2c", "sb3"),
    "appo_vs_stock": ("appo", "stock"),
    "impala_vs_stock": ("impala", "stock"),
    "ppo_conv_vs_stock": ("ppo_conv", "stock"),
    "ppo_lstm_vs_stock": ("ppo_lstm", "stock"),
    "ppo_transformer_vs_stock": ("ppo_transformer", "stock"),
}
"""Those that --quick leaves out."""

SHARES = {"events_cpu_share": "events", "steps_cpu_share": "steps"}


def processor() -> str:
    """Its name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def compete(arena: Arena, name: str, paths: list[str], turns: int, least_s: float) -> list[Contestant]:
    """Build the contestants of a work, warm them up, and let them train in turns."""
    contestants = [build(arena, name, path) for path in paths]
    for contestant in contestants:
        contestant.turn(0.0, counts=False)
    for number in range(turns):
        # Turned round each time: whoever comes first has no lasting advantage.
        for contestant in contestants if number % 2 else reversed(contestants):
            contestant.turn(least_s)
    for contestant in contestants:
        contestant.close()
    rates = "  ".join(f"{c.path} {1 / statistics.median(c.wall):,.0f}/s" for c in contestants)
    say(f"{name}: {rates}")
    return contestants


def ratio(fast: list[float], other: list[float]) -> float:
    """Median over the turns."""
    return round(statistics.median(theirs / ours for ours, theirs in zip(fast, other, strict=True)), 3)


def race(arena: Arena, keys: dict[str, tuple[str, str]], turns: int, least_s: float) -> dict[str, Any]:
    """Measure some keys, each work once."""
    result: dict[str, Any] = {"ratios": {}, "cpu_ratios": {}, "steps_per_second": {}, "path": {}}
    for name in dict.fromkeys(work for work, _ in keys.values()):
        wanted = {key: path for key, (work, path) in keys.items() if work == name}
        fast, *others = compete(arena, name, ["fast", *wanted.values()], turns, least_s)
        for key, other in zip(wanted, others, strict=True):
            result["ratios"][key] = ratio(fast.wall, other.wall)
            result["cpu_ratios"][key] = ratio(fast.cpu, other.cpu)
        result["steps_per_second"][name] = {c.path: round(1 / statistics.median(c.wall)) for c in (fast, *others)}
        result["path"][name] = fast.note
    return result


def report(result: dict[str, Any]) -> None:
    """A table for people."""
    print(f"\n{'':<26}{'ratio':>9}{'by CPU time':>13}")
    for key, value in result["ratios"].items():
        print(f"{key:<26}{value:>9.3f}{result['cpu_ratios'].get(key, value):>13.3f}")
    print(f"\n{'steps/s':<18}" + "".join(f"{path:>10}" for path in ("fast", "stock", "sb3", "bare")))
    for name, rates in result["steps_per_second"].items():
        shown = "".join(f"{rates[p]:>10,}" if p in rates else f"{'':>10}" for p in ("fast", "stock", "sb3", "bare"))
        print(f"{name:<18}{shown}   {result['path'][name]}")
    for kind, algorithms in result["events"].items():
        for name, row in algorithms.items():
            print(
                f"events: {kind:<7}{name}  {row['steps_per_second']:>9,}/s  wall ratio {row['wall_ratio']:.3f}  "
                f"callbacks {row['callbacks_cpu_share']:.2%} ({row['callbacks_us_per_step']:.2f} µs a step)  "
                f"forwarder {row['forwarder_cpu_share']:.2%}"
            )


def main() -> int:
    """Measure, print tables, and one JSON object at the end."""
    known = [*KEYS, *SHARES, *MORE]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="short turns, and fewer works: about two minutes")
    parser.add_argument("--json", action="store_true", help="nothing but the JSON line on the standard output")
    parser.add_argument("--only", action="append", choices=known, metavar="KEY", help=f"one of {', '.join(known)}")
    parser.add_argument("--runners", type=int, default=0, help="remote env runners of those that publish (default: 0)")
    options = parser.parse_args()
    turns, least_s = (3, 0.4) if options.quick else (7, 1.0)
    wanted = options.only or [*KEYS, *SHARES, *([] if options.quick else MORE)]

    begin = time.monotonic()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    start_ray(num_cpus=4 * options.runners + 2, object_store_mb=256)
    arena = Arena.open()
    try:
        result = race(arena, {key: both for key, both in (KEYS | MORE).items() if key in wanted}, turns, least_s)
        kinds = [kind for key, kind in SHARES.items() if key in wanted]
        result["events"] = {}
        if kinds:
            with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
                result["events"] = train_events.measure(
                    arena, ("none", *kinds), options.runners, turns, least_s, Path(folder), say
                )
        for key, kind in SHARES.items():
            if key in wanted:
                shares = result["events"][kind].values()
                result["ratios"][key] = max(row["callbacks_cpu_share"] for row in shares)
    finally:
        arena.store.close()
        ray.shutdown()
    machine = {"processor": processor(), "cores": os.cpu_count(), "load_at_start": round(load, 2)}
    machine |= {"python": platform.python_version(), "ray": ray.__version__, "torch": torch.__version__}
    if not options.json:
        report(result)
        print(f"{machine['processor']}, {machine['cores']} cores, load {machine['load_at_start']} before")
    print(
        json.dumps(
            {
                "benchmark": "train",
                "quick": options.quick,
                "seconds": round(time.monotonic() - begin),
                **result,
                **machine,
            }
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
