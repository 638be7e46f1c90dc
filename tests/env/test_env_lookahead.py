"""Nothing of a later bar reaches an observation, a fill or a reward at or before it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from env.bars import SymbolBars
from env.market_data import MarketData
from env.scaler import Scaler
from env.settings import EnvSettings
from env.trading_env import TradingEnv

DAY = 86_400_000_000
ROWS, WINDOW = 60, 5


def bars(prices: np.ndarray, volume: np.ndarray) -> MarketData:
    ts = np.arange(ROWS, dtype=np.int64) * DAY
    return MarketData([SymbolBars("L", 0, ts, ts + DAY, *prices.T, volume)])


def random_columns(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    close = rng.uniform(80.0, 120.0, ROWS)
    open_ = rng.uniform(80.0, 120.0, ROWS)
    prices = np.column_stack([open_, np.maximum(open_, close) + 1.0, np.minimum(open_, close) - 1.0, close])
    prices[rng.random(ROWS) < 0.1] = np.nan
    prices[0] = 100.0
    return prices, rng.integers(0, 4, ROWS) * 100.0


def play(data: MarketData, actions: list[int]) -> tuple[list[np.ndarray], list[float], TradingEnv]:
    scaler = Scaler.of(np.full(5, 0.01), np.full(5, 0.03))
    settings_ = EnvSettings(window=WINDOW, episode_length=None, starts="start", borrow=0.001)
    env = TradingEnv(data, settings_, scaler=scaler)
    observation, _ = env.reset()
    observations, rewards = [observation], []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        if terminated or truncated:
            break
    return observations, rewards, env


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), last=st.integers(WINDOW, ROWS - 2))
def test_changing_every_later_bar_changes_nothing_up_to_now(seed, last):
    rng = np.random.default_rng(seed)
    prices, volume = random_columns(rng)
    other_prices, other_volume = random_columns(rng)
    changed_prices = np.where(np.arange(ROWS)[:, None] <= last, prices, other_prices)
    changed_volume = np.where(np.arange(ROWS) <= last, volume, other_volume)
    actions = rng.integers(0, 3, ROWS).tolist()
    observations, rewards, env = play(bars(prices, volume), actions)
    changed_observations, changed_rewards, changed_env = play(bars(changed_prices, changed_volume), actions)

    steps = last - WINDOW  # those that end at a bar up to ``last``
    known = min(steps, len(rewards), len(changed_rewards))
    assert rewards[:known] == changed_rewards[:known]
    for left, right in zip(observations[: known + 1], changed_observations[: known + 1], strict=True):
        assert left.tobytes() == right.tobytes()
    fills, changed_fills = env.episode_record().fills, changed_env.episode_record().fills
    count = int((fills["step"] < known).sum())
    for name, column in fills.items():
        # "kind" and "trade_no" among them: how a fill is told does not depend on what came after it
        assert column[:count].tolist() == changed_fills[name][:count].tolist(), name


def test_the_observation_at_a_row_holds_exactly_the_bars_up_to_it(make_bars, prices_of):
    data = MarketData([make_bars(prices_of(4, 30))])
    env = TradingEnv(data, EnvSettings(window=3, episode_length=None, starts="start"))
    observation, info = env.reset()
    assert info["start_row"] == 3
    assert np.array_equal(observation[:-3].reshape(3, 5), data.features[1:4])
    observation, *_ = env.step(1)
    assert np.array_equal(observation[:-3].reshape(3, 5), data.features[2:5])
