"""A portfolio of five stocks in one account, traded by continuous weights.

The bundled daily bars of Apple, Facebook, Google, IBM and Microsoft, on a common clock. The policy holds each stock in
inverse proportion to its volatility over the last month ("risk parity" without correlations) and lets a weight drift
while it stays within two points of its aim. It is compared with the baselines under the same costs: proportional and
fixed fees, slippage that grows with the share of the day's volume, and a margin account with interest.

Facebook began to trade in May 2012, so that this is the first day of a portfolio of all five.

Run: python examples/trading_env_portfolio.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import millrace
from millrace import EnvSettings, EpisodeRecord, TradingEnv, baselines, play

CSV = Path(millrace.__file__).parents[1] / "producers" / "data" / "stocks.csv.gz"
SYMBOLS = ("AAPL", "FB", "GOOG", "IBM", "MSFT")
MONTH = 21
SETTINGS = EnvSettings(
    portfolio=True,
    starts="whole",
    initial_cash=1_000_000.0,
    actions="weights",
    short=False,
    no_trade_band=0.02,
    lot=1.0,
    fee=0.0002,
    fee_fixed=1.0,
    slippage=0.0001,
    impact=0.1,
    interest=0.00005,
    max_volume_share=0.01,
    window=MONTH,
    features=("log_close", "volatility(21)"),
)


def bars_of(tickers: tuple[str, ...]) -> pd.DataFrame:
    """Daily bars of several stocks, one below the other, adjusted for splits and dividends."""
    table = pd.read_csv(CSV, parse_dates=["Date"]).query("Ticker in @tickers").set_index("Date")
    factor = table["Adj Close"] / table["Close"]
    adjusted = table[["Open", "High", "Low", "Close"]].mul(factor, axis=0)
    return adjusted.assign(Volume=table["Volume"], Symbol=table["Ticker"])


def by_inverse_volatility(observation: np.ndarray) -> np.ndarray:
    """Weights from the volatility of each stock at the last bar: a bar has the features of one symbol after another."""
    count = len(SYMBOLS)
    window = observation[: MONTH * count * 2].reshape(MONTH, count, 2)
    calm = 1.0 / np.maximum(window[-1, :, 1], 1e-4)
    return (calm / calm.sum()).astype(np.float32)


def trade(env: TradingEnv) -> EpisodeRecord:
    """Play one episode."""
    observation, _ = env.reset(seed=1)
    ended = False
    while not ended:
        observation, _, terminated, truncated, _ = env.step(by_inverse_volatility(observation))
        ended = terminated or truncated
    return env.episode_record()


def show(name: str, record: EpisodeRecord) -> None:
    """Print one line of metrics; a ratio that is not defined is a dash."""
    metrics = record.metrics
    sharpe = "–" if metrics.annual_sharpe is None else f"{metrics.annual_sharpe:.2f}"
    print(
        f"{name:<20}{record.final_value:>14,.2f}{metrics.total_return:>8.1%}{metrics.max_drawdown:>10.1%}{sharpe:>8}"
        f"{len(record.fills['step']):>7}{record.fee:>11,.2f}{record.slippage:>11,.2f}{record.interest:>10,.2f}"
    )


def main() -> None:
    """Trade, compare, and show the positions at the end."""
    env = TradingEnv(bars_of(SYMBOLS), SETTINGS)
    record = trade(env)
    first, last = (pd.Timestamp(ts, unit="us") for ts in (record.first_ts, record.last_ts))
    print(f"{', '.join(record.symbols)}, {first:%Y-%m-%d} to {last:%Y-%m-%d}, 1,000,000 to begin with")
    print(
        f"{'policy':<20}{'equity':>14}{'return':>8}{'drawdown':>10}{'Sharpe':>8}"
        f"{'fills':>7}{'fees':>11}{'slippage':>11}{'interest':>10}"
    )
    show("inverse volatility", record)
    for name, policy in baselines(SETTINGS, np.random.default_rng(1)).items():
        show(name, play(env.model, policy))


if __name__ == "__main__":
    main()
