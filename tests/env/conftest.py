from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from env.market_data import MarketData, SymbolBars
from env.settings import EnvSettings
from env.trading_env import TradingEnv

sys.path.insert(0, str(Path(__file__).parent))  # for reference_simulator
pytest.register_assert_rewrite("reference_comparison")

DAY = 86_400_000_000

# One bar before (an observation needs a previous close), then t0 … t4 of the worked cases.
CASE_BARS = [
    (99, 100, 98, 100),
    (100, 101, 99, 100),
    (102, 104, 101, 103),
    (103, 106, 102, 105),
    (104, 105, 98, 99),
    (98, 100, 97, 98),
]

BarsMaker = Callable[..., SymbolBars]


def bars_of(
    prices: Sequence[Sequence[float]] | np.ndarray,
    symbol: str = "CASE",
    base_row: int = 0,
    volume: object = None,
    funding: object = None,
) -> SymbolBars:
    table = np.asarray(prices, dtype=np.float64)
    ts = np.arange(len(table), dtype=np.int64) * DAY
    volumes = np.full(len(table), 1_000.0) if volume is None else np.asarray(volume, dtype=np.float64)
    rates = None if funding is None else np.asarray(funding, dtype=np.float64)
    return SymbolBars(symbol, base_row, ts, ts + DAY, *table.T, volumes, rates)


def random_prices(seed: int, rows: int, volatility: float = 0.02) -> np.ndarray:
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, volatility, rows)))
    open_ = np.concatenate([[100.0], close[:-1]]) * np.exp(rng.normal(0.0, volatility / 2, rows))
    spread = np.exp(np.abs(rng.normal(0.0, volatility / 2, rows)))
    return np.column_stack([open_, np.maximum(open_, close) * spread, np.minimum(open_, close) / spread, close])


@pytest.fixture
def make_bars() -> BarsMaker:
    """Bars from rows of open, high, low, close; daily, from 1970."""
    return bars_of


@pytest.fixture
def prices_of() -> Callable[..., np.ndarray]:
    """Random prices (rows, 4) from a seed."""
    return random_prices


@pytest.fixture
def case_env() -> Callable[..., TradingEnv]:
    """TradingEnv on the bars of the worked cases, at t0, without costs unless given."""

    def make(prices: Sequence[Sequence[float]] = CASE_BARS, **settings: object) -> TradingEnv:
        values = {"window": 1, "starts": "whole", "episode_length": None, "fee": 0.0, "slippage": 0.0} | settings
        env = TradingEnv(MarketData([bars_of(prices)]), EnvSettings.model_validate(values))
        env.reset()
        return env

    return make


@pytest.fixture
def random_data() -> MarketData:
    """Two symbols of 400 and 300 bars, at different base rows."""
    return MarketData(
        [bars_of(random_prices(1, 400), "AAA", base_row=1_000), bars_of(random_prices(2, 300), "BBB", base_row=50)]
    )
