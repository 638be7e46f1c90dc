"""A feature and a reward of your own, named in the settings as ``module:function``.

The feature is the gap from the last close to this open, measured in the average range of the last days; it says how
far it looks back, and ``check_feature`` proves that it does not look ahead. The reward is the log return less a price
for the money that sits in the market. Both are plain functions of arrays, used as they are by one environment and by
a batch.

Run: python examples/trading_env_own_feature.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import millrace
from millrace import Bars, EnvSettings, RewardInput, TradingVectorEnv, check_feature, feature

CSV = Path(millrace.__file__).parents[1] / "producers" / "data" / "stocks.csv.gz"
HOLDING = 0.0002  # what a unit of exposure costs a day, in log return


@feature(lookback=lambda days: days)
def gap(bars: Bars, days: int = 10) -> np.ndarray:
    """Open over the last close, in average ranges of the ``days`` days before."""
    ranges = np.log(bars.high / bars.low)
    total = np.cumsum(np.concatenate([[0.0], ranges]))
    mean = (total[days:-1] - total[: -1 - days]) / days  # of the days before each row from ``days`` on
    gaps = np.zeros(len(bars.open))
    gaps[days:] = np.log(bars.open[days:] / bars.close[days - 1 : -1]) / np.maximum(mean, 1e-6)
    return gaps


def paid_for_calm(given: RewardInput) -> np.ndarray:
    """Log return, less a price for exposure; an account without equity counts as one with nearly none."""
    growth = np.log(np.maximum(given.equity / given.equity_before, 1e-6))
    exposure = np.abs(given.position * given.price) / np.maximum(given.equity, 1e-6)
    return growth - HOLDING * np.minimum(exposure, 10.0)


SETTINGS = EnvSettings(
    window=10,
    episode_length=250,
    targets=(0.0, 1.0),
    features=("log_close", "rsi(14)", "trading_env_own_feature:gap(10)"),
    reward="trading_env_own_feature:paid_for_calm",
)


def bars_of(tickers: tuple[str, ...]) -> pd.DataFrame:
    """Daily bars of several stocks, one below the other, adjusted for splits and dividends."""
    table = pd.read_csv(CSV, parse_dates=["Date"]).query("Ticker in @tickers").set_index("Date")
    factor = table["Adj Close"] / table["Close"]
    adjusted = table[["Open", "High", "Low", "Close"]].mul(factor, axis=0)
    return adjusted.assign(Volume=table["Volume"], Symbol=table["Ticker"])


def main() -> None:
    """Check the feature, then fade its gaps in 16 environments at once."""
    bars = bars_of(("AAPL", "IBM", "MSFT"))
    print(check_feature(SETTINGS.features[-1], bars))

    env = TradingVectorEnv(bars, SETTINGS, num_envs=16)
    observations, _ = env.reset(seed=1)
    rewards, growth = np.zeros(16), np.full(16, np.nan)
    for _ in range(250):
        gaps = observations[:, : 10 * 3].reshape(16, 10, 3)[:, -1, 2]
        observations, step_rewards, _, truncated, _ = env.step((gaps < 0.0).astype(np.int64))  # buy what opened lower
        rewards += step_rewards
    for index in np.flatnonzero(truncated).tolist():  # all of them
        growth[index] = np.log(env.episode_record(index).final_value / SETTINGS.initial_cash)
    print(f"16 episodes of 250 days: mean log growth {growth.mean():+.4f}, mean reward {rewards.mean():+.4f}")


if __name__ == "__main__":
    main()
