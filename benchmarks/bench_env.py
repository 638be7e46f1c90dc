"""Environment steps a second: TradingEnv, the market model in batches, and gym-anytrading beside them.

All contestants step through random actions on the same bars, window 32, observations made, ended episodes reset.
They run in turns within the same minutes, on one thread, and the median over the turns is told: absolute rates depend
on the machine, so a claim is a ratio of two columns here.

gym-anytrading (pip install gym-anytrading) steps its own StocksEnv: two positions, no ledger, no record, and its
observation is a view of the price and its difference (32 × 2) where ours is a copy of 32 × 5 features and 3 numbers.

Run: python benchmarks/bench_env.py [--quick]     (about 2 minutes; --quick 20 seconds)
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from env.market_data import MarketData
from env.bars import SymbolBars
from env.market_model import MarketModel
from env.settings import EnvSettings
from env.trading_env import TradingEnv

BARS, WINDOW, LENGTH = 3_000, 32, 256
DAY = 86_400_000_000
BATCHES = (64, 256)


def random_bars(seed: int) -> SymbolBars:
    """Bars of a random walk."""
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, BARS)))
    open_ = close * np.exp(rng.normal(0.0, 0.003, BARS))
    high, low = np.maximum(open_, close) * 1.002, np.minimum(open_, close) / 1.002
    ts = np.arange(BARS, dtype=np.int64) * DAY
    return SymbolBars("WALK", 0, ts, ts + DAY, open_, high, low, close, rng.uniform(1e5, 1e6, BARS))


def single(bars: SymbolBars, with_record: bool) -> Callable[[int], None]:
    """TradingEnv alone, or with the record of each episode read as event callbacks do."""
    env = TradingEnv(MarketData([bars]), EnvSettings(window=WINDOW, episode_length=LENGTH))
    env.reset(seed=1)
    rng = np.random.default_rng(1)

    def run(steps: int) -> None:
        for action in rng.integers(0, 3, steps).tolist():
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                if with_record:
                    env.episode_record()
                env.reset()

    return run


def batched(bars: SymbolBars, count: int) -> Callable[[int], None]:
    """The market model over ``count`` environments."""
    rngs = [np.random.default_rng([1, index]) for index in range(count)]
    settings = EnvSettings(window=WINDOW, episode_length=LENGTH)
    model = MarketModel(MarketData([bars]), settings, None, count, rngs)
    model.reset(range(count))
    out = np.empty((count, model.observation_size), dtype=np.float32)
    rng = np.random.default_rng(1)

    def run(steps: int) -> None:
        for actions in rng.integers(0, 3, (steps // count, count)):
            _, terminated, truncated = model.step(actions)
            ended = terminated | truncated
            if ended.any():
                model.reset(np.flatnonzero(ended))
            model.observations(out)

    return run


def anytrading(bars: SymbolBars) -> Callable[[int], None] | None:
    """gym-anytrading's StocksEnv, or None where the package is missing."""
    os.environ.setdefault("MPLBACKEND", "Agg")  # it imports pyplot
    try:
        from gym_anytrading.envs import StocksEnv
    except ImportError:
        return None
    import pandas as pd

    frame = pd.DataFrame({"Close": bars.close})
    # Its episodes run to the end of the frame: this one gives it episodes as long as ours.
    env = StocksEnv(frame, window_size=WINDOW, frame_bound=(WINDOW, WINDOW + LENGTH + 1))
    env.reset(seed=1)
    rng = np.random.default_rng(1)

    def run(steps: int) -> None:
        for action in rng.integers(0, 2, steps).tolist():
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return run


def measure(runs: dict[str, Callable[[int], None]], turns: int, seconds: float) -> dict[str, float]:
    """Steps a second of each contestant: median of ``turns`` turns of about ``seconds`` each."""
    steps: dict[str, int] = {}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():  # warm up, and find out how many steps make a turn
        run(20_000)
        start = time.perf_counter()
        run(20_000)
        steps[name] = int(20_000 * seconds / (time.perf_counter() - start)) + 1
    for turn in range(turns):
        for name, run in runs.items():
            start = time.perf_counter()
            run(steps[name])
            rates[name].append(steps[name] / (time.perf_counter() - start))
        shown = "  ".join(f"{name} {values[-1] / 1e3:,.0f} k" for name, values in rates.items())
        print(f"turn {turn + 1}/{turns}: {shown}", file=sys.stderr, flush=True)
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> int:
    """Measure, print a table, and one JSON object at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns: 20 seconds instead of 2 minutes")
    quick = parser.parse_args().quick
    bars = random_bars(1)
    runs = {"TradingEnv": single(bars, with_record=False), "TradingEnv + record": single(bars, with_record=True)}
    runs |= {f"batch of {count}": batched(bars, count) for count in BATCHES}
    peer = anytrading(bars)
    if peer is None:
        print("gym-anytrading is not installed: pip install gym-anytrading to compare", file=sys.stderr)
    else:
        runs["gym-anytrading"] = peer
    rates = measure(runs, turns=5 if quick else 15, seconds=0.6 if quick else 2.0)

    base = rates.get("gym-anytrading")
    print(f"\n{'contestant':<22}{'steps/s':>12}{'x gym-anytrading':>20}")
    for name, rate in rates.items():
        print(f"{name:<22}{rate:>12,.0f}{rate / base if base else float('nan'):>20.2f}")
    result = {
        "benchmark": "env",
        "window": WINDOW,
        "steps_per_second": {name: round(rate) for name, rate in rates.items()},
        "ratio_to_gym_anytrading": {name: round(rate / base, 3) for name, rate in rates.items()} if base else None,
        "quick": quick,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
