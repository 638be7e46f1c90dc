"""What holds for any policy, any bars and every setting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from env.market_data import MarketData, SymbolBars
from env.market_model import MarketModel
from env.settings import EnvSettings
from env.trading_env import TradingEnv
from schemas.errors import ActionError

DAY = 86_400_000_000

CHOICES = {
    "window": st.integers(1, 4),
    "episode_length": st.sampled_from([None, 1, 17, 60]),
    "starts": st.sampled_from(["random", "sequential", "whole"]),
    "portfolio": st.booleans(),
    "liquidate_at_end": st.booleans(),
    "actions": st.sampled_from(["targets", "hold_buy_sell", "weights", "quantities"]),
    "targets": st.sampled_from(
        [(-1.0, 0.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (-2.0, -0.5, 0.0, 0.5, 1.0, 3.0), (-0.3, 0.1, 0.7)]
    ),
    "short": st.booleans(),
    "no_trade_band": st.sampled_from([0.0, 0.0, 0.1]),
    "lot": st.sampled_from([0.0, 0.01, 1.0, 7.0]),
    "min_notional": st.sampled_from([0.0, 0.0, 500.0]),
    "max_volume_share": st.sampled_from([None, None, 0.1, 1.0]),
    "remainder": st.sampled_from(["cancel", "carry"]),
    "stop_loss": st.sampled_from([None, None, 0.02]),
    "take_profit": st.sampled_from([None, None, 0.03]),
    "trailing_stop": st.sampled_from([None, None, 0.02]),
    "fee": st.sampled_from([0.0, 0.0005, 0.01]),
    "fee_fixed": st.sampled_from([0.0, 0.0, 3.0]),
    "slippage": st.sampled_from([0.0, 0.0002, 0.02]),
    "half_spread": st.sampled_from([0.0, 0.0, 0.05]),
    "impact": st.sampled_from([0.0, 0.0, 0.1]),
    "borrow": st.sampled_from([0.0, 0.0001, 0.01]),
    "interest": st.sampled_from([0.0, 0.0, 0.001]),
    "leverage": st.just(3.0),
    "maintenance_margin": st.sampled_from([0.0, 0.0, 0.2]),
}


@st.composite
def every_setting(draw: st.DrawFn) -> EnvSettings:
    values = draw(st.fixed_dictionaries(CHOICES))
    stops = any(values[name] for name in ("stop_loss", "take_profit", "trailing_stop"))
    by_action = values["actions"] in ("weights", "quantities") and stops and draw(st.booleans())
    return EnvSettings.model_validate(values | {"protect_by_action": by_action})


def random_bars(seed: int, rows: int, volatility: float, missing: float, symbols: int = 1) -> MarketData:
    rng, made = np.random.default_rng(seed), []
    for number in range(symbols):
        close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, volatility, rows)))
        open_ = close * np.exp(rng.normal(0.0, volatility, rows))
        wick = np.exp(np.abs(rng.normal(0.0, volatility, rows)))
        prices = np.column_stack([open_, np.maximum(open_, close) * wick, np.minimum(open_, close) / wick, close])
        prices[rng.random(rows) < missing] = np.nan
        prices[0] = 100.0
        ts = np.arange(rows, dtype=np.int64) * DAY
        volume, funding = rng.integers(0, 500, rows).astype(float), rng.normal(0.0, 0.001, rows)
        made.append(SymbolBars(f"R{number}", 500, ts, ts + DAY, *prices.T, volume, funding))
    return MarketData(made)


def play(env: TradingEnv, seed: int, stay: float):
    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)
    env.reset(seed=seed)
    action, rewards, ended = env.action_space.sample(), [], False
    while not ended:
        if rng.random() > stay:
            action = env.action_space.sample()
        _, reward, terminated, truncated, _ = env.step(action)
        rewards.append(reward)
        ended = terminated or truncated
    return env.episode_record(), rewards


@settings(max_examples=100, deadline=None)
@given(
    options=every_setting(),
    seed=st.integers(0, 10_000),
    volatility=st.sampled_from([0.002, 0.03, 0.3]),
    missing=st.sampled_from([0.0, 0.2]),
    stay=st.sampled_from([0.0, 0.7]),
)
def test_the_books_close_for_any_policy(options, seed, volatility, missing, stay):
    env = TradingEnv(random_bars(seed, 80, volatility, missing, symbols=2), options)
    record, rewards = play(env, seed, stay)
    trades, fills, steps = record.trades, record.fills, record.steps_table
    # Money is compared at the scale of what went through the books, in which rounding happens.
    tolerance = 1e-9 * (record.turnover + record.initial_value)
    close = {"rtol": 0, "atol": tolerance}

    change = record.final_value - record.initial_value
    np.testing.assert_allclose(trades["net_pnl"].sum() + record.open_pnl + record.interest, change, **close)
    costs = record.fee + record.borrow + record.funding - record.interest
    np.testing.assert_allclose(record.gross_pnl - costs, change, **close)
    parts = trades["fee"] + trades["borrow"] + trades["funding"]
    np.testing.assert_allclose(trades["net_pnl"], trades["gross_pnl"] - parts, **close)
    for name in ("fee", "slippage", "borrow"):
        assert trades[name].sum() <= getattr(record, name) + tolerance
        assert (trades[name] >= -tolerance).all()
    if record.reason == "ruin":
        assert rewards[-1] == pytest.approx(math.log(1e-6), abs=1e-4)
    else:
        assert sum(rewards) == pytest.approx(math.log(record.final_value / record.initial_value), rel=0, abs=1e-9)
    assert record.total_reward == pytest.approx(sum(rewards), rel=0, abs=1e-9)
    assert np.isfinite(rewards).all()
    assert record.bad_debt == max(0.0, -record.final_value)

    # A position is what was filled, and money is what was paid.
    table = record.positions_table or {"symbol": np.repeat(record.symbols, record.steps)} | steps
    for symbol in record.symbols:
        own = fills["symbol"] == symbol
        np.testing.assert_allclose(np.cumsum(fills["quantity"][own]), fills["position_after"][own], rtol=0, atol=1e-6)
        held = table["position"][table["symbol"] == symbol]
        assert held[-1] == (fills["position_after"][own][-1] if own.any() else 0.0)
        stale = table["stale"][table["symbol"] == symbol]
        forced = np.isin(fills["kind"], ["liquidation", "end_of_data"])
        assert not stale[fills["step"][own & ~forced]].any()
    notional = (table["position"] * table["price"]).reshape(record.steps, -1).sum(axis=1)
    np.testing.assert_allclose(steps["cash"] + notional, steps["value"], **close)
    for name in ("borrow", "funding", "interest"):
        np.testing.assert_allclose(steps[name].sum(), getattr(record, name), **close)
    assert (fills["fee"] >= 0).all()
    assert (fills["slippage"] >= 0).all()
    assert (fills["price"] > 0).all()
    assert len(record.actions) == record.steps
    assert all(len(column) == record.steps for column in steps.values())
    if options.discrete:
        assert sum(record.action_counts.values()) == record.actions.size


@settings(max_examples=20, deadline=None)
@given(options=every_setting(), seed=st.integers(0, 10_000), volatility=st.sampled_from([0.01, 0.2]))
def test_a_batch_gives_the_numbers_that_its_environments_give_alone(options, seed, volatility):
    data, count = random_bars(seed, 70, volatility, 0.1, symbols=9), 3
    batch = MarketModel(data, options, None, count, [np.random.default_rng([seed, i]) for i in range(count)])
    alone = [MarketModel(data, options, None, None, [np.random.default_rng([seed, i])]) for i in range(count)]
    batch.reset(range(count))
    for model in alone:
        model.reset([0])
    space = TradingEnv(data, options).action_space
    space.seed(seed)
    for _ in range(25):
        actions = [space.sample() for _ in range(count)]
        many, rewards, terminated, truncated = batch.step(np.array(actions))
        for index, model in enumerate(alone):
            seen, reward, ruined, cut = model.step(actions[index])
            assert rewards[index] == reward
            assert (bool(terminated[index]), bool(truncated[index])) == (ruined, cut)
            assert batch.value(index) == model.value(0)
            assert np.array_equal(many[index], seen)
            assert np.array_equal(seen, model.observations())
            if ruined or cut:
                left, right = batch.episode_record(index), model.episode_record(0)
                for name in ("trades", "fills", "steps_table", "positions_table"):
                    for column, numbers in getattr(left, name).items():
                        assert np.array_equal(numbers, getattr(right, name)[column]), (name, column)
                assert left.metrics == right.metrics
                model.reset([0])
        batch.reset(np.flatnonzero(terminated | truncated))


@pytest.mark.parametrize("batched", [False, True])
def test_the_journal_grows_with_an_episode_of_unknown_length(batched):
    rows = 10_000
    data = random_bars(3, rows, 0.002, 0.0)
    options = EnvSettings(window=2, starts="whole", fee=0.0, slippage=0.0, targets=(0.0, 1.0))
    model = MarketModel(data, options, None, 1 if batched else None, [np.random.default_rng(0)])
    model.reset([0])
    ended, steps = False, 0
    while not ended:
        _, _, terminated, truncated = model.step(np.array([1]) if batched else 1)
        ended, steps = bool(terminated) or bool(truncated), steps + 1
    record = model.episode_record(0)
    assert steps == record.steps == rows - 3
    assert record.steps_table["price"].tolist() == data.mark[3:].tolist()
    units = 10_000.0 / data.open[3]
    paid = units * (data.mark * data.funding)[3:]
    assert record.steps_table["value"][0] == pytest.approx(units * data.mark[3] - paid[0])
    assert record.final_value == pytest.approx(units * data.mark[-1] - paid.sum())


@pytest.mark.parametrize(
    ("values", "actions", "message"),
    [
        ({}, [0, 7], r"environment 1: expected an action 0\.\.2, got .*7"),
        ({}, [0.0, 1.0], "expected 2 integers"),
        ({}, [0], "expected 2 integers"),
        ({"actions": "hold_buy_sell"}, [3, 0], r"environment 0: expected an action 0\.\.2, got .*3"),
        ({"portfolio": True}, [[0, 1], [1, 3]], r"environment 1: expected an action 0\.\.2 for each symbol"),
        ({"portfolio": True}, [0, 1], r"expected integers of shape \(2, 2\)"),
        ({"actions": "weights"}, [[0.5], [1.5]], r"environment 1: expected an action in -1\.\.1, got 1\.5"),
        ({"actions": "weights", "short": False}, [[-0.5], [0.5]], r"environment 0: .* in 0\.\.1, got -0\.5"),
        ({"actions": "weights"}, [[math.nan], [0.5]], r"environment 0: .* got nan"),
        ({"actions": "weights"}, [0.5, 0.5], r"expected numbers of shape \(2, 1\)"),
        ({"actions": "quantities"}, [[0.0], [math.inf]], r"environment 1: .* in -100\.\.100, got inf"),
        ({"actions": "quantities"}, [["a"], ["b"]], "expected numbers of shape"),
        (
            {"actions": "weights", "portfolio": True, "stop_loss": 0.1, "protect_by_action": True},
            [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.2]],
            r"environment 1: expected a distance of a protective order of symbol 1 in 0\.\.0\.1, got 0\.2",
        ),
    ],
)
def test_an_action_out_of_the_space_is_an_error_and_nobody_steps(values, actions, message):
    data = random_bars(0, 30, 0.01, 0.0, symbols=2)
    options = EnvSettings.model_validate({"window": 2} | values)
    model = MarketModel(data, options, None, 2, [np.random.default_rng(i) for i in range(2)])
    model.reset(range(2))
    rows = model.row.copy()
    with pytest.raises(ActionError, match=message):
        model.step(np.array(actions))
    assert np.array_equal(model.row, rows)


def test_a_float32_bound_counts_as_the_bound():
    model = MarketModel(
        random_bars(0, 30, 0.01, 0.0),
        EnvSettings(window=2, actions="weights", leverage=1.1),
        None,
        None,
        [np.random.default_rng(0)],
    )
    model.reset([0])
    assert float(np.float32(1.1)) > 1.1
    model.step(np.array([1.1], dtype=np.float32))
    assert model.episode_record(0).actions.tolist() == [1.1]
