"""Several symbols in one account on a common clock."""

from __future__ import annotations

import numpy as np
import pytest

from env.market_data import MarketData, SymbolBars
from env.market_model import MarketModel
from env.settings import EnvSettings
from env.trading_env import TradingEnv
from schemas.errors import InputError

DAY = 86_400_000_000
FREE = {"portfolio": True, "window": 1, "starts": "whole", "fee": 0.0, "slippage": 0.0}


def flat(*prices: float) -> list[tuple[float, float, float, float]]:
    return [(price, price, price, price) for price in prices]


@pytest.fixture
def two(make_bars):
    """Opens and closes alike: AAA at 100, 100, 110, 120, 120; BBB at 50, 50, 50, 40, 40."""
    return MarketData(
        [make_bars(flat(100, 100, 100, 110, 120, 120), "AAA"), make_bars(flat(50, 50, 50, 50, 40, 40), "BBB")]
    )


def run(data, script, **values):
    env = TradingEnv(data, FREE | values)
    env.reset()
    for action in script:
        env.step(np.asarray(action, dtype=np.float32 if env.settings.actions == "weights" else None))
    return env.episode_record()


def test_weights_are_sized_with_one_equity_and_rebalanced(two):
    record = run(two, [[0.5, 0.5], [0.5, 0.5]], actions="weights")
    told = list(zip(*(record.fills[name].tolist() for name in ("symbol", "step", "quantity", "kind")), strict=True))
    # 10,500 at 110 and 50: 47.73 of AAA, 105 of BBB.
    assert told == [
        ("AAA", 0, 50.0, "entry"),
        ("BBB", 0, 100.0, "entry"),
        ("AAA", 1, pytest.approx(5_250 / 110 - 50), "reduce"),
        ("BBB", 1, pytest.approx(5.0), "increase"),
    ]
    assert record.symbol == "portfolio"
    assert record.symbols == ("AAA", "BBB")
    assert record.steps_table["exposure"].tolist() == [1.0, pytest.approx(1.0)]


def test_fees_of_all_orders_are_left_in_cash(two):
    record = run(two, [[0.6, -0.4]], actions="weights", fee=0.01)
    assert record.fills["quantity"].tolist() == [pytest.approx(6_000 / 101), pytest.approx(-4_000 / 50 / 1.01)]
    assert record.final_value == pytest.approx(10_000 / 1.01)


def test_weights_above_the_leverage_are_scaled_together(two):
    record = run(two, [[1.0, -0.6]], actions="weights")
    assert record.fills["quantity"].tolist() == [pytest.approx(62.5), pytest.approx(-75.0)]


def test_discrete_targets_share_the_leverage_that_is_left(two):
    record = run(two, [[2, 2], [2, 2]])
    assert record.fills["quantity"].tolist() == [50.0, 100.0]
    # AAA is all of the account first: nothing is left for BBB, whose target counts as chosen all the same.
    record = run(two, [[2, 1], [2, 2], [2, 2]])
    assert record.fills["symbol"].tolist() == ["AAA"]
    assert record.action_counts == {"-1": 0, "0": 1, "1": 5}


def test_positions_table_has_a_row_a_step_and_symbol(two):
    record = run(two, [[0.5, 0.0], [0.5, 0.0]], actions="weights", no_trade_band=0.1)
    table = record.positions_table
    assert table["step"].tolist() == [0, 0, 1, 1]
    assert table["symbol"].tolist() == ["AAA", "BBB"] * 2
    assert table["price"].tolist() == [100.0, 50.0, 110.0, 50.0]
    assert table["position"].tolist() == [50.0, 0.0, 50.0, 0.0]
    assert not {"price", "position", "action"} & set(record.steps_table)
    assert record.actions.tolist() == [[0.5, 0.0], [0.5, 0.0]]
    assert (record.open_quantity, record.open_entry_price, record.open_pnl) == (None, None, pytest.approx(500.0))


def test_symbol_without_a_bar_is_stale_and_the_others_trade(make_bars):
    aaa, bbb = make_bars(flat(100, 100, 100, 110, 120), "AAA"), make_bars(flat(50, 50, 50, 50, 40), "BBB")
    kept = np.array([0, 1, 2, 4])
    gone = SymbolBars(
        "BBB",
        0,
        *(getattr(bbb, name)[kept] for name in ("ts_open", "ts_close")),
        *(bbb.close[kept],) * 4,
        bbb.volume[kept],
    )
    record = run(MarketData([aaa, gone]), [[0.4, 0.4], [0.2, 0.8], [0.2, 0.8]], actions="weights")
    told = list(zip(*(record.fills[name].tolist() for name in ("symbol", "step")), strict=True))
    assert told == [("AAA", 0), ("BBB", 0), ("AAA", 1), ("AAA", 2), ("BBB", 2)]
    assert record.steps_table["stale"].tolist() == [False, True, False]
    assert record.positions_table["stale"].tolist() == [False, False, False, True, False, False]
    assert record.positions_table["price"][3] == 50.0
    assert (record.stale_steps, record.cancelled_orders) == (1, 1)


def test_trades_are_in_the_order_of_their_ends_and_fills_name_them(two):
    record = run(two, [[0.4, 0.4], [0.4, 0.0], [0.0, 0.3]], actions="weights", no_trade_band=0.05)
    assert record.trades["symbol"].tolist() == ["BBB", "AAA"]
    told = list(zip(*(record.fills[name].tolist() for name in ("symbol", "kind", "trade_no")), strict=True))
    assert told == [
        ("AAA", "entry", 1),
        ("BBB", "entry", 0),
        ("BBB", "exit", 0),
        ("AAA", "exit", 1),
        ("BBB", "entry", 2),
    ]


def test_observation_has_the_account_symbol_by_symbol(two):
    env = TradingEnv(two, FREE | {"actions": "weights"})
    observation, _ = env.reset()
    assert observation.shape == (2 * 5 + 2 * 3 + 2,)
    observation, *_ = env.step(np.array([0.5, -0.25], dtype=np.float32))
    assert observation[-8:].tolist() == pytest.approx([0.5, -0.25, 0.0, 0.0, 0.5, 0.5, 0.0, 0.75])


def test_symbol_cannot_be_chosen_in_a_portfolio(two):
    model = MarketModel(two, EnvSettings.model_validate(FREE), None, None, [np.random.default_rng(0)])
    with pytest.raises(InputError, match="expected None in a portfolio"):
        model.reset([0], symbol="AAA")


def test_sequential_episodes_follow_each_other_through_all_symbols(make_bars):
    data = MarketData([make_bars(flat(*range(100, 106)), "AAA", base_row=10), make_bars(flat(*range(50, 55)), "BBB")])
    options = EnvSettings(window=1, starts="sequential", episode_length=2)
    model = MarketModel(data, options, None, None, [np.random.default_rng(0)])
    begun = []
    for _ in range(6):
        model.reset([0])
        begun.append(model.beginning(0))
        ended = False
        while not ended:
            _, _, terminated, truncated = model.step(1)
            ended = terminated or truncated
    assert begun == [("AAA", 11), ("AAA", 13), ("BBB", 1), ("BBB", 3), ("AAA", 11), ("AAA", 13)]


def test_discrete_target_gets_nothing_where_drift_is_beyond_the_leverage(two):
    # A short of all the account in AAA is 1.22 of it at 110: BBB gets nothing, and no order the other way.
    record = run(two, [[0, 1], [0, 2], [0, 2]])
    assert record.fills["symbol"].tolist() == ["AAA"]
    record = run(two, [[0, 1], [0, 0]])
    assert record.fills["symbol"].tolist() == ["AAA"]
