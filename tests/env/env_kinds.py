"""Settings of every kind of action and observation, with everything switched on that can be."""

from __future__ import annotations

from typing import Any

import numpy as np

from env.market_data import MarketData, SymbolBars
from env.settings import EnvSettings

DAY = 86_400_000_000
SYMBOLS = ("AAA", "BBB", "CCC")

BASE: dict[str, Any] = {"window": 8, "episode_length": 20}
FULL: dict[str, Any] = {
    "fee_fixed": 0.1,
    "half_spread": 0.01,
    "impact": 0.02,
    "borrow": 0.0005,
    "interest": 0.0001,
    "leverage": 2.0,
    "maintenance_margin": 0.2,
    "max_volume_share": 0.2,
    "remainder": "carry",
    "stop_loss": 0.03,
    "take_profit": 0.04,
    "trailing_stop": 0.05,
}
ONE_SYMBOL: dict[str, dict[str, Any]] = {
    "targets": {},
    "hold_buy_sell": {"actions": "hold_buy_sell"},
    "weights": {"actions": "weights", "no_trade_band": 0.05},
    "weights, long only": {"actions": "weights", "short": False},
    "quantities": {"actions": "quantities", "lot": 1.0},
    "targets, everything on": FULL | {"targets": (-2.0, 0.0, 0.5, 2.0), "reward": "differential_sharpe"},
    "weights, everything on": FULL | {"actions": "weights", "protect_by_action": True, "reward": "drawdown"},
    "quantities, everything on": FULL
    | {"actions": "quantities", "protect_by_action": True, "liquidate_at_end": True, "reward": "pnl"},
    "ruin": {"targets": (-30.0, 0.0, 30.0), "leverage": 30.0},
    "no account in the observation": {"position_features": (), "features": ("log_close", "rsi(5)")},
}
KINDS = ONE_SYMBOL | {f"portfolio: {name}": values | {"portfolio": True} for name, values in ONE_SYMBOL.items()}


def settings_of(kind: str, **values: Any) -> EnvSettings:
    return EnvSettings.model_validate(BASE | KINDS[kind] | values)


def market(settings: EnvSettings) -> MarketData:
    """Three symbols with gaps, at different base rows and of different lengths."""
    return MarketData(
        [_bars(number, symbol, 400 - 70 * number) for number, symbol in enumerate(SYMBOLS)], settings.features
    )


def _bars(seed: int, symbol: str, rows: int) -> SymbolBars:
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.02, rows)))
    open_ = np.concatenate([[100.0], close[:-1]]) * np.exp(rng.normal(0.0, 0.01, rows))
    spread = np.exp(np.abs(rng.normal(0.0, 0.01, rows)))
    prices = np.stack([open_, np.maximum(open_, close) * spread, np.minimum(open_, close) / spread, close])
    prices[:, rng.random(rows) < 0.03] = np.nan
    opens = np.arange(rows, dtype=np.int64) * DAY
    volume, funding = rng.uniform(100.0, 2_000.0, rows), rng.normal(0.0, 1e-3, rows)
    return SymbolBars(symbol, 1_000 * seed, opens, opens + DAY, *prices, volume, funding)
