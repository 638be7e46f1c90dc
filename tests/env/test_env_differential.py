"""The market model against the reference simulator, on random bars, settings and actions.

Kinds, order, steps and ends must be the same, numbers within 1e-9 of the money that went through the books. A decision
that the reference takes by less than ``NEAR`` of a price, a weight or a lot (a trigger that is exactly the low, a
position that is exactly the one wanted) may fall the other way in floats; the comparison ends before that step, and
prices lie on a grid, settings off it, so that this stays rare. Decisions on such boundaries have tests of their own,
on numbers that floats have exactly.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_account import Bar
from reference_comparison import Market, check_episode, follow

from env.market_data import MarketData
from env.settings import EnvSettings
from env.trading_env import TradingEnv
from env.vector_env import TradingVectorEnv

ALL_ACCOUNT = ("position", "unrealised_return", "time_in_position", "drawdown", "cash_share")


EXECUTION: dict[str, tuple[object, ...]] = {  # the usual value first
    "lot": (0.0, 1.0, 0.25, 7.0),
    "min_notional": (0.0, 15.37, 2_203.7),
    "max_volume_share": (None, 0.0371, 0.41, 1.0),
    "remainder": ("cancel", "carry"),
    "stop_loss": (None, 0.0123, 0.0471, 0.213),
    "take_profit": (None, 0.0137, 0.0573, 1.31),
    "trailing_stop": (None, 0.0171, 0.0491, 0.271),
    "fee": (0.0013, 0.0, 0.0117),
    "fee_fixed": (0.0, 1.73),
    "slippage": (0.00071, 0.0, 0.0213),
    "half_spread": (0.0, 0.0137),
    "impact": (0.0, 0.0217, 0.0531),
    "borrow": (0.0, 0.00113, 0.0217),
    "interest": (0.0, 0.00071, 0.0131),
    "no_trade_band": (0.0, 0.0173, 0.213),
    "maintenance_margin": (0.0, 0.0517, 0.0931),
}
EPISODE = {
    "portfolio": st.booleans(),
    "episode_length": st.sampled_from([None, None, None, 1, 11, 40]),
    "starts": st.sampled_from(["random", "sequential", "whole"]),
    "liquidate_at_end": st.booleans(),
    "initial_cash": st.sampled_from([10_007.3, 10_007.3, 153_000.7, 71.9]),
    "window": st.integers(1, 3),
    "position_features": st.sampled_from([ALL_ACCOUNT, ALL_ACCOUNT[::-1]]),
    "reward": st.sampled_from(["log_return", "return", "pnl", "differential_sharpe", "drawdown"]),
    "reward_scale": st.sampled_from([1.0, 100.0]),
    "reward_decay": st.sampled_from([0.0137, 0.31]),
    "drawdown_penalty": st.sampled_from([0.0, 1.7]),
    "record": st.sampled_from(["fills", "steps"]),
}
ACTIONS = {
    "actions": st.sampled_from(["targets", "hold_buy_sell", "weights", "quantities"]),
    "targets": st.sampled_from([(-1.0, 0.0, 1.0), (0.0, 1.0), (-2.0, -0.5, 0.0, 0.5, 1.0, 3.0), (-0.3, 0.1, 0.7)]),
    "short": st.booleans(),
    "max_quantity": st.sampled_from([60.0, 700.0]),
    "protect_by_action": st.booleans(),
    "leverage": st.sampled_from([1.0, 1.0, 2.3, 9.7]),
}


@st.composite
def settings_of_every_kind(draw: st.DrawFn) -> EnvSettings:
    values = draw(st.fixed_dictionaries(EPISODE | ACTIONS))
    few = st.sets(st.sampled_from(sorted(EXECUTION)), max_size=4)
    active = draw(few | st.just(set(EXECUTION)))  # a few things at once, or everything
    for name, options in EXECUTION.items():
        values[name] = draw(st.sampled_from(options)) if name in active else options[0]
    discrete = values["actions"] in ("targets", "hold_buy_sell")
    if discrete:
        values["leverage"] = max(values["leverage"], *(abs(target) for target in values["targets"]))
    protected = any(values[name] is not None for name in ("stop_loss", "take_profit", "trailing_stop"))
    values["protect_by_action"] = values["protect_by_action"] and protected and not discrete
    return EnvSettings.model_validate(values)


MARKETS = st.builds(
    Market,
    seed=st.integers(0, 1_000_000),
    rows=st.sampled_from([8, 20, 36]),
    symbols=st.sampled_from([1, 2, 3]),
    volatility=st.sampled_from([0.004, 0.03, 0.25]),
    missing=st.sampled_from([0.0, 0.0, 0.15]),
    thin=st.sampled_from([0.0, 0.0, 0.3]),
)


@pytest.mark.parametrize("seed", range(8))
def test_an_account_that_is_all_in_does_not_sell_its_own_fee(seed, prices_of, make_bars):
    options = EnvSettings(actions="weights", window=1, starts="whole", fee=0.001, initial_cash=10_000.0 + 7.3 * seed)
    prices = prices_of(seed, 60)
    actions = [[1.0]] * 58
    assert follow(options, [make_bars(prices)], [[Bar.of(row) for row in prices]], actions) == ["entry"]


HALF_A_UNIT = {"initial_cash": 25.0, "maintenance_margin": 0.2}
LONG, SHORT = [100.0, 0.0], [-100.0, 0.0]
AT_THE_BOUNDARY = {
    "low at the stop": (LONG, (100, 120, 75, 80), {"stop_loss": 0.25}, "stop_loss"),
    "high at the stop of a short": (SHORT, (100, 125, 80, 110), {"stop_loss": 0.25}, "stop_loss"),
    "open at the stop": (LONG, (75, 120, 70, 80), {"stop_loss": 0.25}, "stop_loss"),
    "high at the profit": (LONG, (100, 150, 80, 110), {"take_profit": 0.5}, "take_profit"),
    "low at the profit of a short": (SHORT, (100, 120, 50, 110), {"take_profit": 0.5}, "take_profit"),
    "open beyond the profit, then the stop": (
        LONG,
        (160, 170, 60, 80),
        {"take_profit": 0.5, "stop_loss": 0.25},
        "take_profit",
    ),
    "open at the profit, then the stop": (
        LONG,
        (150, 170, 60, 80),
        {"take_profit": 0.5, "stop_loss": 0.25},
        "take_profit",
    ),
    "the same of a short": (SHORT, (50, 170, 40, 80), {"take_profit": 0.5, "stop_loss": 0.25}, "take_profit"),
    "stop and trailing stop are one": (
        LONG,
        (100, 100, 60, 80),
        {"stop_loss": 0.25, "trailing_stop": 0.25},
        "stop_loss",
    ),
    "trailing stop nearer": (LONG, (100, 100, 60, 80), {"stop_loss": 0.5, "trailing_stop": 0.25}, "trailing_stop"),
    "low at the bankruptcy": (LONG, (80, 100, 50, 60), {}, "liquidation"),
    "open at the bankruptcy": (LONG, (50, 100, 50, 60), {}, "liquidation"),
    "stop and bankruptcy are one": (LONG, (100, 100, 50, 60), {"stop_loss": 0.5}, "liquidation"),
    "open at the bankruptcy, beyond the stop": (LONG, (50, 60, 40, 50), {"stop_loss": 0.25}, "liquidation"),
    "open at the margin": (LONG, (62.5, 70, 62, 65), {"maintenance_margin": 0.2}, "liquidation"),
    "low at the margin of half a unit": ([0.5, 0.0], (100, 100, 62.5, 80), HALF_A_UNIT, "liquidation"),
    "open at nothing": (LONG, (5e-5,) * 4, {"initial_cash": 10_000.0, "leverage": 1.0}, "liquidation"),
    "open at the margin of a short": (SHORT, (120, 130, 110, 125), {"maintenance_margin": 0.25}, "liquidation"),
}


@pytest.mark.parametrize("case", AT_THE_BOUNDARY)
def test_a_decision_that_is_exactly_on_its_boundary(case, make_bars):
    """Where all numbers are exact in floats too, the model and the rules agree on equality itself."""
    (first, second), bar, values, kind = AT_THE_BOUNDARY[case]
    options = EnvSettings.model_validate(EXACT | {"initial_cash": 5_000.0, "leverage": 2.0} | values)
    prices = [(100.0,) * 4] * 3 + [bar]
    columns = [[Bar.of(row, 1_000.0) for row in prices]]
    assert follow(options, [make_bars(prices)], columns, [[first], [second]]) == ["entry", kind]


EXACT = {"actions": "quantities", "max_quantity": 500.0, "window": 1, "starts": "whole", "fee": 0.0, "slippage": 0.0}


@pytest.mark.parametrize(
    ("values", "actions", "kinds"),
    [
        ({"max_volume_share": 0.125, "remainder": "carry"}, [125.0, 0.0], ["entry"]),  # all that the bar has
        ({"max_volume_share": 0.125, "remainder": "carry"}, [150.0, 0.0], ["entry", "increase"]),
        ({"max_volume_share": 0.125, "remainder": "carry"}, [126.0, 0.0], ["entry", "increase"]),
        ({"min_notional": 2_500.0}, [25.0, 0.0], ["entry"]),
        ({"min_notional": 2_501.0}, [25.0, 0.0], []),
        ({"actions": "weights", "min_notional": 2_501.0}, [0.25, 0.0], []),
        ({"lot": 8.0}, [24.0, -24.0], ["entry", "exit"]),
        ({"lot": 8.0}, [7.0, 15.0], ["entry"]),
        ({"actions": "weights", "no_trade_band": 0.25}, [0.25, 0.5], ["entry", "increase"]),
        ({"actions": "weights", "no_trade_band": 0.25}, [0.25, 0.375], ["entry"]),
        ({"leverage": 1.0}, [100.0, 50.0], ["entry"]),  # no room is left
        ({"leverage": 1.0}, [120.0, -250.0], ["entry", "reversal"]),
        ({"leverage": 1.0, "fee": 0.25}, [90.0, 0.0], ["entry"]),  # its own fee leaves room for 80
        ({"leverage": 1.0, "initial_cash": 50.0}, [1.0, 0.0], ["entry"]),
        ({"leverage": 1.0, "initial_cash": 1.0}, [0.0078125, 0.0078125], ["entry", "increase"]),
        ({"actions": "weights", "fee": 0.25}, [0.5, 0.4], ["entry", "reduce"]),
        ({"actions": "weights", "slippage": 0.1, "leverage": 8.0}, [8.0, 4.0], ["entry", "exit"]),  # eats all equity
        ({"actions": "weights", "slippage": 0.1, "leverage": 8.0, "remainder": "carry"}, [8.0, 4.0], ["entry", "exit"]),
        ({"actions": "weights", "half_spread": 0.5}, [0.5, 0.25], ["entry", "reduce"]),
        ({"actions": "weights", "lot": 0.1, "initial_cash": 30.0}, [1.0, 1.0], ["entry"]),  # 0.3 / 0.1 are three lots
        ({"actions": "weights", "lot": 0.1, "initial_cash": 30.0}, [-1.0, -1.0], ["entry"]),
        ({"half_spread": 150.0}, [50.0, -20.0], ["entry", "reduce"]),  # no sale below a price of 0
    ],
)
def test_an_order_that_is_exactly_at_its_limit(values, actions, kinds, make_bars):
    options = EnvSettings.model_validate(EXACT | {"leverage": 4.0, "initial_cash": 10_000.0} | values)
    prices = [(100.0,) * 4] * 4
    columns = [[Bar.of(row, 1_000.0) for row in prices]]
    assert follow(options, [make_bars(prices)], columns, [[item] for item in actions]) == kinds


def test_an_order_that_is_dropped_is_not_carried(make_bars):
    options = EnvSettings.model_validate(EXACT | {"min_notional": 2_600.0, "remainder": "carry"})
    prices = [(100.0,) * 4] * 3 + [(3_000.0,) * 4] * 2  # where a single unit would be worth sending
    columns = [[Bar.of(row, 1_000.0) for row in prices]]
    assert follow(options, [make_bars(prices)], columns, [[25.0], [0.0], [0.0]]) == []


CARRIED = {"max_volume_share": 0.3, "remainder": "carry", "leverage": 4.0, "maintenance_margin": 0.24}


def test_a_liquidation_at_the_open_ends_what_is_carried(make_bars):
    prices = [(100.0,) * 4] * 3 + [(70.0,) * 4] * 3  # 300 of 390 units are bought, and 1,000 is left of the account
    columns = [[Bar.of(row, 1_000.0) for row in prices]]
    options = EnvSettings.model_validate(EXACT | CARRIED)
    assert follow(options, [make_bars(prices)], columns, [[390.0], [0.0], [0.0]]) == ["entry", "liquidation"]


def test_several_positions_are_liquidated_when_their_own_fills_take_the_margin(make_bars):
    # 300 units at 110 are worth 30,000 at the open, and of 10,000 are 7,000 left: less than the margin of 7,200.
    options = EnvSettings.model_validate(
        EXACT | CARRIED | {"max_volume_share": 0.15, "portfolio": True, "slippage": 0.1}
    )
    prices = [(100.0,) * 4] * 6
    bars = [make_bars(prices, name) for name in "AB"]
    columns = [[Bar.of(row, 1_000.0) for row in prices]] * 2
    actions = [[200.0, 200.0], [0.0, 0.0], [0.0, 0.0]]
    assert follow(options, bars, columns, actions) == ["entry", "entry", "liquidation", "liquidation"]


@pytest.mark.parametrize(
    ("values", "gap", "kinds"),
    [
        ({}, 70.0, ["entry", "liquidation"]),  # by the gap
        ({"slippage": 0.1}, 100.0, ["entry", "entry", "liquidation", "liquidation"]),  # by the fills themselves
    ],
)
def test_a_liquidation_ends_what_is_carried_for_other_symbols(values, gap, kinds, make_bars):
    prices = [(100.0,) * 4] * 3 + [(gap,) * 4] * 3
    volume = {"A": [1_000.0] * 6, "B": [0.0] * 3 + [1_000.0] * 3, "C": [1_000.0] * 6}
    share = 0.15 if values else 0.3
    options = EnvSettings.model_validate(EXACT | CARRIED | {"max_volume_share": share, "portfolio": True} | values)
    bars = [make_bars(prices, name, volume=volume[name]) for name in volume]
    columns = [[Bar.of(row, size) for row, size in zip(prices, volume[name], strict=True)] for name in volume]
    first = [200.0, 20.0, 200.0] if values else [300.0, 20.0, 0.0]
    assert follow(options, bars, columns, [first, [0.0] * 3, [0.0] * 3]) == kinds


PORTFOLIO = EXACT | {"portfolio": True, "targets": (-1.0, 0.0, 0.5, 1.0), "leverage": 1.0}
TARGETS = [[3, 0, 1], [3, 0, 2], [1, 0, 2], [1, 2, 3]]
BEYOND_THE_LEVERAGE = {
    # Half and half; no room for C; A leaves; B turns, as far as C, which is held now, leaves room.
    "targets": ({"actions": "targets"}, TARGETS, ["entry", "entry", "exit", "reversal", "entry"]),
    "weights": ({"actions": "weights", "leverage": 2.0}, [[2.0, -2.0, 0.0]] * 2, ["entry", "entry"]),
    "quantities": ({}, [[50.0, -50.0, 10.0], [-25.0, 0.0, 50.0]], ["entry", "entry", "entry", "reduce", "increase"]),
}


@pytest.mark.parametrize("case", BEYOND_THE_LEVERAGE)
def test_a_portfolio_beyond_the_leverage_is_cut_alike(case, make_bars):
    values, actions, kinds = BEYOND_THE_LEVERAGE[case]
    prices = [(100.0,) * 4] * 6
    bars = [make_bars(prices, name) for name in "ABC"]
    columns = [[Bar.of(row, 1_000.0) for row in prices]] * 3
    assert follow(EnvSettings.model_validate(PORTFOLIO | values), bars, columns, actions) == kinds


@pytest.mark.parametrize("case", BEYOND_THE_LEVERAGE)
def test_an_account_beyond_the_leverage_leaves_its_neighbour_in_a_batch_alone(case, make_bars):
    values, actions, _ = BEYOND_THE_LEVERAGE[case]
    data = MarketData([make_bars([(100.0,) * 4] * 6, name) for name in "ABC"])
    modest = [2, 1, 1] if case == "targets" else [0.25, 0.0, 0.125]
    batch = TradingVectorEnv(data, PORTFOLIO | values, num_envs=2)
    alone = TradingEnv(data, PORTFOLIO | values)
    batch.reset()
    alone.reset()
    for action in actions:
        batch.step(np.array([action, modest]))
        alone.step(np.array(modest))
    for name, column in alone.episode_record().fills.items():
        assert np.array_equal(batch.episode_record(1).fills[name], column), name


PROFILE = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
EXAMPLE = {"options": settings_of_every_kind(), "market": MARKETS, "stay": st.sampled_from([0.0, 0.5, 0.9])}


@settings(max_examples=300, **PROFILE)
@given(**EXAMPLE)
def test_the_market_model_is_the_reference(options, market, stay):
    check_episode(options, market, stay)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=3_000, **PROFILE)
@given(**EXAMPLE)
def test_the_market_model_is_the_reference_at_length(options, market, stay):
    check_episode(options, market, stay)
