"""Case 15: nothing of a later bar reaches an observation, a fill or a reward at or before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from env.market_data import MarketData, SymbolBars
from env.scaler import Scaler
from env.settings import EnvSettings
from env.trading_env import TradingEnv

DAY = 86_400_000_000
ROWS, WINDOW = 60, 5

STOPS = {"stop_loss": 0.1, "take_profit": 0.15, "trailing_stop": 0.12}
KINDS: dict[str, dict[str, Any]] = {
    "targets": {"borrow": 0.001},
    "stops": {"actions": "hold_buy_sell"} | STOPS,
    "thin": {"actions": "weights", "max_volume_share": 0.1, "impact": 0.1, "remainder": "carry", "lot": 0.5},
    "margin": {"actions": "quantities", "leverage": 4.0, "maintenance_margin": 0.2, "interest": 0.001},
    "by action": {"actions": "weights", "protect_by_action": True, "leverage": 2.0} | STOPS,
}


def bars(columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> MarketData:
    ts = np.arange(ROWS, dtype=np.int64) * DAY
    return MarketData(
        [
            SymbolBars(f"L{number}", 0, ts, ts + DAY, *prices.T, volume, funding)
            for number, (prices, volume, funding) in enumerate(columns)
        ]
    )


def random_columns(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    close = rng.uniform(80.0, 120.0, ROWS)
    open_ = rng.uniform(80.0, 120.0, ROWS)
    prices = np.column_stack([open_, np.maximum(open_, close) + 1.0, np.minimum(open_, close) - 1.0, close])
    prices[rng.random(ROWS) < 0.1] = np.nan
    prices[0] = 100.0
    return prices, rng.integers(0, 4, ROWS) * 100.0, rng.normal(0.0, 0.001, ROWS)


def play(data: MarketData, values: dict[str, Any], actions: list[Any]):
    scaler = Scaler.of(np.full(5, 0.01), np.full(5, 0.03))
    env = TradingEnv(data, EnvSettings.model_validate({"window": WINDOW, "starts": "whole"} | values), scaler=scaler)
    observation, _ = env.reset(options={} if env.settings.portfolio else {"symbol": "L0"})
    observations, rewards = [observation], []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        if terminated or truncated:
            break
    return observations, rewards, env.episode_record()


@pytest.mark.parametrize("portfolio", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 100_000), last=st.integers(WINDOW, ROWS - 2))
def test_changing_every_later_bar_changes_nothing_up_to_now(kind, portfolio, seed, last):
    rng, values = np.random.default_rng(seed), KINDS[kind] | {"portfolio": portfolio}
    columns, others = ([random_columns(rng) for _ in range(2)] for _ in range(2))
    then = np.arange(ROWS) > last
    changed = [
        tuple(np.where(then[:, None] if old.ndim > 1 else then, new, old) for old, new in zip(own, other, strict=True))
        for own, other in zip(columns, others, strict=True)
    ]
    space = TradingEnv(bars(columns), EnvSettings.model_validate(values)).action_space
    space.seed(seed)
    actions = [space.sample() for _ in range(ROWS)]
    observations, rewards, record = play(bars(columns), values, actions)
    changed_observations, changed_rewards, changed_record = play(bars(changed), values, actions)

    steps = last - WINDOW  # those that end at a bar up to ``last``
    known = min(steps, len(rewards), len(changed_rewards))
    assert rewards[:known] == changed_rewards[:known]
    for left, right in zip(observations[: known + 1], changed_observations[: known + 1], strict=True):
        assert left.tobytes() == right.tobytes()
    for name in record.steps_table:
        assert record.steps_table[name][:known].tolist() == changed_record.steps_table[name][:known].tolist(), name
    count = int((record.fills["step"] < known).sum())
    for name, column in record.fills.items():
        # "kind" among them: how a fill is told does not depend on what came after it. The number of its trade does in a
        # portfolio, where trades are in the order of their ends.
        if not (portfolio and name == "trade_no"):
            assert column[:count].tolist() == changed_record.fills[name][:count].tolist(), name


def test_the_observation_at_a_row_holds_exactly_the_bars_up_to_it(make_bars, prices_of):
    data = MarketData([make_bars(prices_of(4, 30))])
    env = TradingEnv(data, EnvSettings(window=3, starts="whole"))
    observation, info = env.reset()
    assert info["start_row"] == 3
    assert np.array_equal(observation[:-5].reshape(3, 5), data.features[1:4])
    observation, *_ = env.step(1)
    assert np.array_equal(observation[:-5].reshape(3, 5), data.features[2:5])
