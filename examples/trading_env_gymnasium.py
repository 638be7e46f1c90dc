"""TradingEnv in plain Gymnasium: a DataFrame of bars goes in, an episode with its trades comes out. No log, no Ray.

Two rules trade the last 1,000 days of IBM in the bundled data, under the same costs: own it all the time, and own it
while its close stands above that of 50 days before.

Run: python examples/trading_env_gymnasium.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd

import millrace  # registers millrace/Trading-v0
from millrace import EnvSettings, EpisodeRecord, MarketData, Scaler

CSV = Path(millrace.__file__).parents[1] / "producers" / "data" / "stocks.csv.gz"
DAYS = 1_000
SETTINGS = EnvSettings(
    window=50,
    episode_length=None,
    starts="whole",
    targets=(0.0, 1.0),
    fee=0.0005,
    slippage=0.0002,
)


def bars_of(ticker: str) -> pd.DataFrame:
    """Daily bars, adjusted for splits and dividends: unadjusted ones would show a split as a crash."""
    table = pd.read_csv(CSV, parse_dates=["Date"]).query("Ticker == @ticker").set_index("Date")
    factor = table["Adj Close"] / table["Close"]
    adjusted = table[["Open", "High", "Low", "Close"]].mul(factor, axis=0)
    return adjusted.assign(Volume=table["Volume"])


def own_it_always(_observation: np.ndarray) -> int:
    """Buy and hold."""
    return 1


def own_what_rises(observation: np.ndarray) -> int:
    """Be long while the log returns of the last 50 closes add up to more than their usual sum (they are scaled)."""
    closes = observation[:-5].reshape(SETTINGS.window, -1)[:, 3]
    return int(closes.sum() > 0.0)


def trade(bars: pd.DataFrame, scaler: Scaler, rule: Callable[[np.ndarray], int]) -> EpisodeRecord:
    """Play one episode over all of ``bars``."""
    env = gymnasium.make("millrace/Trading-v0", data=bars, settings=SETTINGS, scaler=scaler)
    observation, _ = env.reset(seed=1)
    ended = False
    while not ended:
        observation, _, terminated, truncated, _ = env.step(rule(observation))
        ended = terminated or truncated
    return env.unwrapped.episode_record()


def main() -> None:
    """Trade both rules and print what became of them."""
    bars = bars_of("IBM")
    past, recent = bars.iloc[:-DAYS], bars.iloc[-DAYS:]
    scaler = Scaler.fit(MarketData.from_frame(past, symbol="IBM"))  # on what was known before, and nothing else
    print(f"IBM, {recent.index[0]:%Y-%m-%d} to {recent.index[-1]:%Y-%m-%d}, 10,000 to begin with")
    for rule in (own_it_always, own_what_rises):
        record = trade(recent, scaler, rule)
        sharpe = "none" if record.sharpe is None else f"{record.metrics.annual_sharpe:.2f} a year"
        print(
            f"\n{rule.__name__}: {record.final_value:,.2f} after {record.steps} days ({record.reason})\n"
            f"  gross {record.gross_pnl:+,.2f}, fees {record.fee:,.2f}, net {record.pnl:+,.2f}"
            f" (slippage of {record.slippage:,.2f} is inside the prices)\n"
            f"  largest drawdown {record.max_drawdown:.1%}, Sharpe {sharpe},"
            f" {len(record.trades['side'])} closed trades, open position {record.open_quantity:,.2f}"
        )
    table = pd.DataFrame(record.trades)
    table["entry"] = pd.to_datetime(table["entry_ts"], unit="us").dt.date
    table["exit"] = pd.to_datetime(table["exit_ts"], unit="us").dt.date
    columns = ["entry", "exit", "quantity", "entry_price", "exit_price", "fee", "net_pnl", "bars"]
    print(f"\nLast trades of {rule.__name__}:\n{table[columns].tail(5).round(2).to_string(index=False)}")


if __name__ == "__main__":
    main()
