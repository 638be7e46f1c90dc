"""Environment steps a second: TradingEnv and TradingVectorEnv, with gym-anytrading and gym-trading-env beside them.

All contestants step through random actions on random bars, each observation 64 bars of 5 features, episodes of 256
steps, ended episodes reset. They run in turns in one process on one thread. Time is that thread's CPU time, so that
what else the machine does counts little; rates depend on the machine, and a claim is a ratio: the median over the turns
of the ratio of two contestants within a turn.

gym-anytrading steps its StocksEnv, gym-trading-env its TradingEnv, both given the same five features and episodes of
the same length: otherwise they would run to the end of the data. Both are development dependencies of Millrace.

"recording" is what the steps of 256 environments cost with every step kept, over fills alone; "reading" also makes the
record of every ended episode, as event callbacks do.

Run: python benchmarks/bench_env.py [--quick] [--json]     (about 4 minutes; --quick at most one)
With --json only one line goes to the standard output, a JSON object; it is the last line anyway.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from env.market_data import MarketData, SymbolBars
from env.settings import EnvSettings
from env.trading_env import TradingEnv
from env.vector_env import TradingVectorEnv

WINDOW, LENGTH, BATCH, SYMBOLS = 64, 256, 256, 10
SHORT_SERIES, LONG_SERIES, LONG_EPISODE = 3_000, 300_000, 20_000
DAY = 86_400_000_000
ALL_COSTS = {
    "fee": 0.0005,
    "fee_fixed": 0.01,
    "slippage": 0.0002,
    "half_spread": 0.001,
    "impact": 0.01,
    "borrow": 0.0001,
    "interest": 0.0001,
    "leverage": 2.0,
    "maintenance_margin": 0.25,
}

Run = Callable[[int], None]


def random_bars(seed: int, count: int, symbol: str = "WALK") -> SymbolBars:
    """Bars of a random walk, with funding."""
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, count)) * 0.2)
    open_ = close * np.exp(rng.normal(0.0, 0.003, count))
    high, low = np.maximum(open_, close) * 1.002, np.minimum(open_, close) / 1.002
    ts = np.arange(count, dtype=np.int64) * DAY
    volume, funding = rng.uniform(1e5, 1e6, count), rng.normal(0.0, 1e-4, count)
    return SymbolBars(symbol, 0, ts, ts + DAY, open_, high, low, close, volume, funding)


def single(data: MarketData, *, read: bool = False) -> Run:
    """TradingEnv, or with the record of each episode read as event callbacks do."""
    env = TradingEnv(data, EnvSettings(window=WINDOW, episode_length=LENGTH))
    env.reset(seed=1)
    rng = np.random.default_rng(1)

    def run(steps: int) -> None:
        for action in rng.integers(0, 3, steps).tolist():
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                if read:
                    env.episode_record()
                env.reset()

    return run


def batched(data: MarketData, *, read: bool = False, **settings: Any) -> Run:
    """TradingVectorEnv with BATCH environments; actions are drawn beforehand."""
    values = {"window": WINDOW, "episode_length": LENGTH} | settings
    env = TradingVectorEnv(data, EnvSettings.model_validate(values), num_envs=BATCH)
    env.reset(seed=1)
    env.action_space.seed(1)
    actions = [env.action_space.sample() for _ in range(64)]
    # Episodes that all end in one step would make that step slow and the others fast: spread the ends.
    for step in range(1, LENGTH):
        env.step(actions[step % 64])
        if step % 16 == 0:
            env.reset(options={"reset_mask": np.arange(BATCH) % 16 == step // 16})
    number = 0

    def run(steps: int) -> None:
        nonlocal number
        for _ in range(max(steps // BATCH, 1)):
            *_, infos = env.step(actions[number % 64])
            number += 1
            if read and "reason" in infos:
                for index in np.flatnonzero(infos["_reason"]).tolist():
                    env.episode_record(index)

    return run


def anytrading(bars: SymbolBars, features: np.ndarray) -> Run:
    """gym-anytrading's StocksEnv, with our features as its signal."""
    os.environ.setdefault("MPLBACKEND", "Agg")  # it imports pyplot
    from gym_anytrading.envs import StocksEnv

    class Stocks(StocksEnv):
        def _process_data(self) -> tuple[np.ndarray, np.ndarray]:
            prices, _ = super()._process_data()
            return prices, features[: len(prices)]

    frame = pd.DataFrame({"Close": bars.close})
    env = Stocks(frame, window_size=WINDOW, frame_bound=(WINDOW, WINDOW + LENGTH + 1))
    env.reset(seed=1)
    rng = np.random.default_rng(1)

    def run(steps: int) -> None:
        for action in rng.integers(0, 2, steps).tolist():
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return run


def trading_env(bars: SymbolBars, features: np.ndarray) -> Run:
    """gym-trading-env's TradingEnv, with our features, the same positions and costs."""
    with warnings.catch_warnings():  # it turns every warning of the process into an error
        warnings.simplefilter("ignore")
        from gym_trading_env.environments import TradingEnv as OtherEnv

    index = pd.to_datetime(bars.ts_open, unit="us")
    frame = pd.DataFrame(
        {name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")}, index=index
    )
    for number, column in enumerate(features.T):
        frame[f"feature_{number}"] = column
    env = OtherEnv(
        frame,
        positions=[-1, 0, 1],
        windows=WINDOW,
        trading_fees=0.0005,
        max_episode_duration=LENGTH,
        verbose=0,
    )
    env.reset(seed=1)
    rng = np.random.default_rng(1)

    def run(steps: int) -> None:
        for action in rng.integers(0, 3, steps).tolist():
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return run


def contestants() -> dict[str, Run]:
    """Every contestant by name, ready to step."""
    bars = random_bars(1, SHORT_SERIES)
    data, long_data = MarketData([bars]), MarketData([random_bars(1, LONG_SERIES)])
    portfolio = MarketData([random_bars(number, SHORT_SERIES, f"S{number}") for number in range(SYMBOLS)])
    return {
        "gym-anytrading": anytrading(bars, data.features),
        "gym-trading-env": trading_env(bars, data.features),
        "TradingEnv": single(data),
        "TradingEnv, records read": single(data, read=True),
        "256": batched(data, record="fills"),
        "256, every step recorded": batched(data, record="steps"),
        "256, records read": batched(data, record="steps", read=True),
        "256 x 10 symbols, weights, all costs": batched(portfolio, portfolio=True, actions="weights", **ALL_COSTS),
        "256, series of 300 k": batched(long_data, record="fills"),
        "256, episodes of 20 k": batched(long_data, record="fills", episode_length=LONG_EPISODE),
    }


def measure(runs: dict[str, Run], turns: int, seconds: float) -> dict[str, list[float]]:
    """Steps a second of CPU time of each contestant, one number a turn of about ``seconds`` each."""
    steps: dict[str, int] = {}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():  # warm up, and find out how many steps make a turn
        run(2_000)
        count = 2_000
        while True:
            start = time.process_time()
            run(count)
            taken = time.process_time() - start
            if taken > seconds / 4:
                break
            count *= 4
        steps[name] = max(round(count * seconds / taken / BATCH), 1) * BATCH
    for turn in range(turns):
        for name, run in runs.items():
            start = time.process_time()
            run(steps[name])
            rates[name].append(steps[name] / (time.process_time() - start))
        print(f"turn {turn + 1}/{turns}", file=sys.stderr, flush=True)
    return rates


def bytes_per_env(data: MarketData) -> dict[str, int]:
    """Memory that one more environment takes, measured between three sizes of batch."""
    used = {}
    for count in (BATCH, 2 * BATCH, 4 * BATCH):
        tracemalloc.start()
        env = TradingVectorEnv(data, EnvSettings(window=WINDOW, episode_length=LENGTH), num_envs=count)
        env.reset(seed=1)
        env.step(np.ones(count, dtype=np.int64))
        used[count] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    return {
        f"{BATCH} to {2 * BATCH}": (used[2 * BATCH] - used[BATCH]) // BATCH,
        f"{2 * BATCH} to {4 * BATCH}": (used[4 * BATCH] - used[2 * BATCH]) // (2 * BATCH),
    }


def ratios_of(rates: dict[str, list[float]]) -> dict[str, float]:
    """Compute the claims."""

    def ratio(faster: str, slower: str) -> float:
        return statistics.median(x / y for x, y in zip(rates[faster], rates[slower], strict=True))

    found = {
        "single_vs_gym_anytrading": ratio("TradingEnv", "gym-anytrading"),
        "single_vs_gym_trading_env": ratio("TradingEnv", "gym-trading-env"),
        "b256_vs_gym_anytrading": ratio("256", "gym-anytrading"),
        "recording_cpu": ratio("256", "256, every step recorded"),
        "reading_cpu": ratio("256", "256, records read"),
        "series_300k_vs_3k_cpu": ratio("256", "256, series of 300 k"),
        "episode_20k_vs_256_cpu": ratio("256, series of 300 k", "256, episodes of 20 k"),
    }
    portfolio = statistics.median(rates["256 x 10 symbols, weights, all costs"])
    return {name: round(value, 3) for name, value in found.items()} | {"b256_portfolio10_steps_per_s": round(portfolio)}


def main() -> int:
    """Measure, print a table, and one JSON object at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns: at most a minute in all")
    parser.add_argument("--json", action="store_true", help="nothing but the JSON object on the standard output")
    options = parser.parse_args()
    rates = measure(contestants(), turns=5 if options.quick else 15, seconds=0.4 if options.quick else 1.2)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = ratios_of(rates)
    if not options.json:
        print(f"{'contestant':<40}{'steps/s':>12}{'x gym-anytrading':>20}")
        for name, rate in medians.items():
            print(f"{name:<40}{rate:>12,.0f}{rate / medians['gym-anytrading']:>20.2f}")
    result = {
        "benchmark": "env",
        "window": [WINDOW, 5],
        "ratios": ratios,
        "steps_per_cpu_second": {name: round(rate) for name, rate in medians.items()},
        "bytes_per_env": bytes_per_env(MarketData([random_bars(1, SHORT_SERIES)])),
        "quick": options.quick,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
