"""What holds for any policy, any bars and any costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from env.bars import SymbolBars
from env.market_data import MarketData
from env.market_model import MarketModel
from env.settings import EnvSettings
from env.trading_env import TradingEnv

DAY = 86_400_000_000

SETTINGS = st.fixed_dictionaries(
    {
        "window": st.integers(1, 4),
        "episode_length": st.sampled_from([None, 1, 17, 60]),
        "targets": st.sampled_from(
            [(-1.0, 0.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (-2.0, -0.5, 0.0, 0.5, 1.0, 3.0), (-0.3, 0.1, 0.7)]
        ),
        "fee": st.sampled_from([0.0, 0.0005, 0.01]),
        "slippage": st.sampled_from([0.0, 0.0002, 0.02]),
        "borrow": st.sampled_from([0.0, 0.0001, 0.01]),
        "lot": st.sampled_from([0.0, 0.01, 1.0, 7.0]),
    }
)


def random_bars(seed: int, rows: int, volatility: float, missing: float) -> MarketData:
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, volatility, rows)))
    open_ = close * np.exp(rng.normal(0.0, volatility, rows))
    prices = np.column_stack([open_, np.maximum(open_, close), np.minimum(open_, close), close])
    prices[rng.random(rows) < missing] = np.nan
    prices[0] = 100.0
    ts = np.arange(rows, dtype=np.int64) * DAY
    return MarketData([SymbolBars("R", 500, ts, ts + DAY, *prices.T, rng.integers(0, 5, rows).astype(float))])


def play(env: TradingEnv, seed: int, stay: float):
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    action, rewards, ended = 0, [], False
    while not ended:
        if rng.random() > stay:
            action = int(rng.integers(env.action_space.n))
        _, reward, terminated, truncated, _ = env.step(action)
        rewards.append(reward)
        ended = terminated or truncated
    return env.episode_record(), rewards


@settings(max_examples=150, deadline=None)
@given(
    values=SETTINGS,
    seed=st.integers(0, 10_000),
    volatility=st.sampled_from([0.002, 0.03, 0.3]),
    missing=st.sampled_from([0.0, 0.2]),
    stay=st.sampled_from([0.0, 0.7]),
)
def test_the_books_close_for_any_policy(values, seed, volatility, missing, stay):
    env = TradingEnv(random_bars(seed, 80, volatility, missing), values)
    record, rewards = play(env, seed, stay)
    trades, fills, steps = record.trades, record.fills, record.steps_table
    # Money is compared at the scale of what went through the books, in which rounding happens.
    turnover = float(np.abs(fills["quantity"] * fills["price"]).sum()) + 10_000.0
    tolerance = 1e-9 * max(1.0, turnover / 10_000.0) * 10_000.0

    change = record.final_value - record.initial_value
    assert trades["net_pnl"].sum() + record.open_pnl == pytest.approx(change, rel=0, abs=tolerance)
    assert record.gross_pnl - record.fee - record.borrow == pytest.approx(change, rel=0, abs=tolerance)
    assert trades["fee"].sum() <= record.fee + tolerance
    assert trades["slippage"].sum() <= record.slippage + tolerance
    np.testing.assert_allclose(
        trades["net_pnl"], trades["gross_pnl"] - trades["fee"] - trades["borrow"], rtol=0, atol=tolerance
    )
    if record.reason == "ruin":
        assert rewards[-1] == pytest.approx(math.log(1e-6))
    else:
        assert sum(rewards) == pytest.approx(math.log(record.final_value / record.initial_value), rel=0, abs=1e-9)
    assert record.total_reward == pytest.approx(sum(rewards), rel=0, abs=1e-9)
    assert np.isfinite(rewards).all()

    # A position is what was filled, and money is what was paid.
    np.testing.assert_allclose(np.cumsum(fills["quantity"]), fills["position_after"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(steps["cash"] + steps["position"] * steps["price"], steps["value"], rtol=1e-12)
    assert (fills["fee"] >= 0).all()
    assert (fills["slippage"] >= 0).all()
    assert not steps["stale"][fills["step"]].any()
    assert len(record.actions) == record.steps == sum(record.action_counts.values())
    assert all(len(column) == record.steps for column in steps.values())


@settings(max_examples=40, deadline=None)
@given(values=SETTINGS, seed=st.integers(0, 10_000), volatility=st.sampled_from([0.01, 0.2]))
def test_a_batch_gives_the_numbers_that_its_environments_give_alone(values, seed, volatility):
    data, options, count = random_bars(seed, 70, volatility, 0.1), EnvSettings.model_validate(values), 3
    batch = MarketModel(data, options, None, count, [np.random.default_rng([seed, i]) for i in range(count)])
    alone = [MarketModel(data, options, None, None, [np.random.default_rng([seed, i])]) for i in range(count)]
    batch.reset(range(count))
    for model in alone:
        model.reset([0])
    many = np.empty((count, batch.observation_size), dtype=np.float32)
    one = np.empty(batch.observation_size, dtype=np.float32)
    rng = np.random.default_rng(seed)
    for _ in range(60):
        actions = rng.integers(0, len(options.targets), count)
        rewards, terminated, truncated = batch.step(actions)
        batch.observations(many)
        for index, model in enumerate(alone):
            reward, ruined, cut = model.step(int(actions[index]))
            model.observations(one)
            # The logarithms of numpy and of the C library may differ in the last bit; the money may not.
            assert rewards[index] == pytest.approx(reward, rel=1e-14, abs=1e-300)
            assert (bool(terminated[index]), bool(truncated[index])) == (ruined, cut)
            assert (batch.equity[index], batch.cash[index]) == (model.equity, model.cash)
            assert batch.position[index] == model.position
            assert np.array_equal(many[index], one)
            if ruined or cut:
                left, right = batch.episode_record(index), model.episode_record(0)
                for name in ("trades", "fills", "steps_table"):
                    for column, numbers in getattr(left, name).items():
                        assert np.array_equal(numbers, getattr(right, name)[column]), (name, column)
                model.reset([0])
        batch.reset(np.flatnonzero(terminated | truncated))


@pytest.mark.parametrize("batched", [False, True])
def test_the_ledger_grows_with_an_episode_of_unknown_length(batched):
    rows = 10_000
    data = random_bars(3, rows, 0.002, 0.0)
    options = EnvSettings(window=2, episode_length=None, starts="start", fee=0.0, slippage=0.0, targets=(0.0, 1.0))
    model = MarketModel(data, options, None, 1 if batched else None, [np.random.default_rng(0)])
    model.reset([0])
    ended, steps = False, 0
    while not ended:
        _, terminated, truncated = model.step(np.array([1]) if batched else 1)
        ended, steps = bool(terminated) or bool(truncated), steps + 1
    record = model.episode_record(0)
    assert steps == record.steps == rows - 3
    assert record.steps_table["value"][0] == pytest.approx(10_000.0 / data.open[3] * data.mark[3])
    assert record.final_value == pytest.approx(10_000.0 / data.open[3] * data.mark[-1])


def test_a_batch_refuses_an_action_out_of_the_space_by_environment():
    from schemas.errors import ActionError

    data = random_bars(0, 30, 0.01, 0.0)
    model = MarketModel(data, EnvSettings(window=2), None, 2, [np.random.default_rng(i) for i in range(2)])
    model.reset(range(2))
    with pytest.raises(ActionError, match=r"environment 1: expected an action 0\.\.2, got .*7"):
        model.step(np.array([0, 7]))
    with pytest.raises(ActionError, match="expected 2 integers"):
        model.step(np.array([0.0, 1.0]))
