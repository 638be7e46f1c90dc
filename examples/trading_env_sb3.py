"""TradingEnv trained by Stable-Baselines3: PPO on a DataFrame of bars, then judged on bars that it has never seen.

IBM's daily bars from the bundled data: 11 years to train on, the last 1,000 days to trade. The scaler is fitted on the
training bars and used for both, because it belongs to the policy. Beside PPO stand the baselines, under the same costs.

A few thousand steps teach nobody to trade: give it --steps 500000, and do not expect to beat the stock.

Run: pip install stable-baselines3, then python examples/trading_env_sb3.py [--steps N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import millrace
from millrace import EnvSettings, EpisodeRecord, MarketData, Scaler, TradingEnv, baselines, play

CSV = Path(millrace.__file__).parents[1] / "producers" / "data" / "stocks.csv.gz"
DAYS = 1_000
COSTS = {"fee": 0.0005, "slippage": 0.0002, "borrow": 0.00005}
TRAIN = EnvSettings(window=20, episode_length=250, targets=(0.0, 1.0), reward_scale=100.0, **COSTS)
TEST = TRAIN.model_copy(update={"starts": "whole"})


def bars_of(ticker: str) -> pd.DataFrame:
    """Daily bars, adjusted for splits and dividends: unadjusted ones would show a split as a crash."""
    table = pd.read_csv(CSV, parse_dates=["Date"]).query("Ticker == @ticker").set_index("Date")
    factor = table["Adj Close"] / table["Close"]
    adjusted = table[["Open", "High", "Low", "Close"]].mul(factor, axis=0)
    return adjusted.assign(Volume=table["Volume"])


def trade(model: PPO, env: TradingEnv) -> EpisodeRecord:
    """Play one episode without exploring."""
    observation, _ = env.reset(seed=1)
    ended = False
    while not ended:
        action, _ = model.predict(observation, deterministic=True)
        observation, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
    return env.episode_record()


def show(name: str, record: EpisodeRecord) -> None:
    """Print one line."""
    sharpe = "–" if record.metrics.annual_sharpe is None else f"{record.metrics.annual_sharpe:.2f}"
    print(
        f"{name:<14}{record.final_value:>12,.2f}{record.max_drawdown:>10.1%}{sharpe:>8}"
        f"{len(record.trades['side']):>8}{record.fee + record.slippage:>12,.2f}"
    )


def main() -> None:
    """Train, trade, compare."""
    parser = argparse.ArgumentParser(description="Train PPO on TradingEnv")
    parser.add_argument("--steps", type=int, default=4_096)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)  # networks this small are slower on several
    bars = bars_of("IBM")
    past, recent = bars.iloc[:-DAYS], bars.iloc[-DAYS:]
    scaler = Scaler.fit(MarketData.from_frame(past))
    vector = make_vec_env(lambda: TradingEnv(past, TRAIN, scaler=scaler), n_envs=4, seed=1)
    model = PPO("MlpPolicy", vector, n_steps=256, batch_size=128, seed=1, device="cpu")
    model.learn(steps)

    test = TradingEnv(recent, TEST, scaler=scaler)
    print(f"IBM, {recent.index[0]:%Y-%m-%d} to {recent.index[-1]:%Y-%m-%d}, 10,000 to begin with")
    print(f"{'policy':<14}{'equity':>12}{'drawdown':>10}{'Sharpe':>8}{'trades':>8}{'costs':>12}")
    show("PPO", trade(model, test))
    for name, policy in baselines(TEST, np.random.default_rng(1)).items():
        show(name, play(test.model, policy))


if __name__ == "__main__":
    main()
