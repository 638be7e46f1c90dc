"""Leverage, maintenance margin, liquidation and protective orders beyond the worked cases."""

from __future__ import annotations

import pytest

from env.market_data import MarketData
from env.trading_env import TradingEnv

UNITS = {"actions": "quantities", "max_quantity": 1e6}


def flat(*prices: float) -> list[tuple[float, float, float, float]]:
    return [(price, price, price, price) for price in prices]


def run(env, *actions):
    for action in actions:
        *_, terminated, truncated, _ = env.step(action if isinstance(action, int) else list(action))
        if terminated or truncated:
            break
    return env.episode_record()


def kinds_and_prices(record):
    return list(zip(record.fills["kind"].tolist(), record.fills["price"].tolist(), strict=True))


@pytest.mark.parametrize(
    ("units", "bar", "price"),
    [
        # Long: 10,000 − 20,000 + 200·p = 0.25·200·p, at 66.67. Short: 30,000 − 200·p = 0.25·200·p, at 120.
        (200.0, (100, 101, 60, 62), 200 / 3),
        (-200.0, (100, 130, 99, 128), 120.0),
        (200.0, (50, 55, 45, 52), 50.0),
        (-200.0, (140, 150, 139, 145), 140.0),
    ],
)
def test_maintenance_margin_liquidates_at_its_price_or_a_gap(case_env, units, bar, price):
    env = case_env([*flat(99, 100, 100), bar, *flat(100)], leverage=3.0, maintenance_margin=0.25, **UNITS)
    record = run(env, [units], [0.0])
    assert kinds_and_prices(record)[1:] == [("liquidation", pytest.approx(price, rel=1e-12))]
    assert record.open_quantity == 0.0
    assert record.final_value == pytest.approx(10_000 + units * (price - 100))


def test_liquidated_account_with_equity_left_goes_on(case_env):
    prices = [*flat(99, 100, 100), (100, 101, 60, 62), *flat(60, 70, 80)]
    env = case_env(prices, leverage=3.0, maintenance_margin=0.25, **UNITS)
    record = run(env, [200.0], [0.0], [10.0], [0.0])
    assert record.fills["kind"].tolist() == ["entry", "liquidation", "entry"]
    assert record.reason != "ruin"
    assert record.final_value == pytest.approx(10_000 - 200 * 100 / 3 + 10 * 10)


def test_liquidation_pays_slippage_spread_and_fees(case_env):
    values = {"slippage": 0.01, "half_spread": 0.5, "fee": 0.001, "fee_fixed": 2.0}
    env = case_env([*flat(99, 100, 100), (40, 55, 35, 52), *flat(100)], leverage=3.0, **values, **UNITS)
    record = run(env, [200.0], [0.0])
    fills = record.fills
    assert fills["reference_price"][1] == 40.0
    assert fills["price"][1] == pytest.approx(40 * 0.99 - 0.5)
    assert fills["slippage"][1] == pytest.approx(-fills["quantity"][1] * 0.9)
    assert fills["fee"][1] == pytest.approx(-fills["quantity"][1] * fills["price"][1] * 0.001 + 2.0)
    assert record.bad_debt == -record.final_value > 0.0


def test_stopped_target_is_not_entered_again_before_another_was_chosen(case_env):
    prices = [*flat(99, 100, 100), (100, 100, 90, 95), *flat(95, 96, 97, 98)]
    record = run(case_env(prices, stop_loss=0.05, targets=(0.0, 1.0)), 1, 1, 1, 0, 1)
    assert kinds_and_prices(record) == [("entry", 100.0), ("stop_loss", 95.0), ("entry", 97.0)]
    assert record.trades["exit_kind"].tolist() == ["stop_loss"]
    assert record.trades["bars"].tolist() == [1]


def test_trailing_stop_follows_the_highs_of_the_bars_before(case_env):
    prices = [*flat(99, 100), (100, 110, 100, 108), (108, 120, 107, 119), (119, 119, 105, 106), *flat(106)]
    record = run(case_env(prices, trailing_stop=0.1, targets=(0.0, 1.0)), 1, 1, 1)
    # The high of 120 counts from the bar after it on: 108 is not met in its own bar, whose low is 107.
    assert kinds_and_prices(record) == [("entry", 100.0), ("trailing_stop", pytest.approx(108.0))]


def test_distances_by_action_hold_for_one_bar_and_0_is_none(case_env):
    prices = [*flat(99, 100, 100), (100, 100, 80, 100), (100, 100, 80, 100), *flat(100)]
    env = case_env(prices, stop_loss=0.3, take_profit=0.5, protect_by_action=True, **UNITS)
    assert env.action_space.shape == (3,)
    record = run(env, [10.0, 0.1, 0.5], [0.0, 0.0, 0.0], [0.0, 0.1, 0.0])
    assert kinds_and_prices(record) == [("entry", 100.0), ("stop_loss", 90.0)]
    assert record.fills["step"].tolist() == [0, 2]
    assert record.actions.shape == (3, 3)
    assert "action" not in record.steps_table


def test_protective_exit_is_told_as_an_exit_of_its_side(case_env):
    prices = [*flat(99, 100, 100), (100, 112, 100, 100), *flat(100)]
    record = run(case_env(prices, take_profit=0.1, stop_loss=0.1, slippage=0.01, **UNITS), [-10.0], [0.0])
    assert record.fills["operations"].tolist() == ["ENTRY_SHORT", "EXIT_SHORT"]
    assert record.fills["price"].tolist() == [99.0, pytest.approx(99 * 1.1 * 1.01)]


def test_several_positions_are_liquidated_together_at_an_open(make_bars):
    data = MarketData(
        [
            make_bars([*flat(99, 100, 100), (100, 100, 10, 60), *flat(55, 55)], "AAA"),
            make_bars([*flat(49, 50, 50, 50, 48, 48)], "BBB"),
        ]
    )
    values = {"portfolio": True, "window": 1, "starts": "whole", "fee": 0.0, "slippage": 0.0, "leverage": 2.0}
    env = TradingEnv(data, values | {"maintenance_margin": 0.3} | UNITS)
    env.reset()
    record = run(env, [100.0, 100.0], [0.0, 0.0], [0.0, 5.0])
    # 6,000 of equity at 60 and 50, gross 11,000. At the next open 5,300 over 10,300: above 0.3. No wick counts.
    assert record.fills["kind"].tolist() == ["entry", "entry", "increase"]
    env = TradingEnv(data, values | {"maintenance_margin": 0.49, "leverage": 1.9} | UNITS)
    env.reset()
    record = run(env, [120.0, 100.0], [0.0, 0.0], [0.0, 5.0])
    told = list(zip(*(record.fills[name].tolist() for name in ("symbol", "kind", "price", "step")), strict=True))
    assert told[2:] == [("AAA", "liquidation", 55.0, 2), ("BBB", "liquidation", 48.0, 2)]
    assert record.cancelled_orders == 1
    assert record.open_pnl == 0.0


def test_reversal_beyond_the_leverage_is_cut_after_the_fees_of_both_its_parts(case_env):
    env = case_env(flat(99, 100, 100, 100), initial_cash=20_000.0, fee=0.01, **UNITS)
    record = run(env, [100.0], [-300.0])
    # 19,900 less a fee of 100 on the way to 0: 19,800 / 1.01 of notional is left for the short.
    assert record.open_quantity == pytest.approx(-19_800 / 1.01 / 100)
    assert record.final_value == pytest.approx(19_800 / 1.01)


@pytest.mark.parametrize("price", [3.7, 97.3, 101.1, 113.7, 0.13, 1_234.567])
def test_position_at_the_leverage_limit_grows_by_no_rounding_error(case_env, price):
    env = case_env(flat(*[price] * 8), fee=0.0013, slippage=0.0, leverage=2.3, **UNITS)
    record = run(env, *[[1e6]] * 6)
    assert record.fills["kind"].tolist() == ["entry"]


def test_order_that_closes_a_position_but_for_rounding_closes_it(case_env):
    record = run(case_env(flat(*[100.0] * 6), **UNITS), [0.1], [0.2], [-0.3])
    assert record.fills["kind"].tolist() == ["entry", "increase", "exit"]
    assert record.open_quantity == 0.0
    assert record.trades["exit_kind"].tolist() == ["exit"]


@pytest.mark.parametrize(
    ("bar", "kind", "price"),
    [
        ((200, 250, 100, 150), "stop_loss", 100.0),
        ((200, 300, 101, 150), "take_profit", 300.0),
        ((200, 299, 101, 150), None, None),
    ],
)
def test_price_that_just_reaches_a_trigger_fills_it(case_env, bar, kind, price):
    prices = [*flat(199, 200, 200), bar, *flat(150)]
    env = case_env(prices, initial_cash=1e5, stop_loss=0.5, take_profit=0.5, **UNITS)
    record = run(env, [10.0], [0.0])
    assert kinds_and_prices(record)[1:] == ([(kind, price)] if kind else [])


def test_take_profit_fills_at_its_price_whatever_the_slippage(case_env):
    prices = [*flat(99, 100, 100), (100, 130, 100, 120), *flat(120)]
    record = run(case_env(prices, take_profit=0.25, slippage=0.01, half_spread=0.5, **UNITS), [10.0], [0.0])
    fills = record.fills
    assert fills["kind"].tolist() == ["entry", "take_profit"]
    assert fills["price"].tolist() == [pytest.approx(101.5), pytest.approx(101.5 * 1.25)]
    assert fills["slippage"][1] == 0.0


def test_trailing_stop_of_a_short_follows_the_lows_and_the_open_of_its_bar(case_env):
    prices = [*flat(99, 100), (100, 101, 90, 92), (80, 87, 79, 86), (86, 86, 86, 86), *flat(86)]
    record = run(case_env(prices, trailing_stop=0.1, **UNITS), [-10.0], [0.0], [0.0])
    # 99 after the low of 90; the open of 80 makes it 88, the low of 79 of the bar before 86.9.
    assert kinds_and_prices(record) == [("entry", 100.0)]
    prices[3] = (80, 89, 79, 86)
    record = run(case_env(prices, trailing_stop=0.1, **UNITS), [-10.0], [0.0], [0.0])
    assert kinds_and_prices(record) == [("entry", 100.0), ("trailing_stop", pytest.approx(88.0))]
