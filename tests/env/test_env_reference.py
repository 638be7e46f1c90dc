"""The reference simulator by itself, on numbers worked by hand: case numbers are those of the issue's worked cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

import pytest
from reference_account import Bar
from reference_simulator import ReferenceSimulator

from env.settings import EnvSettings

NAN = math.nan
BARS = [(100, 101, 99, 100), (102, 104, 101, 103), (103, 106, 102, 105), (104, 105, 98, 99), (98, 100, 97, 98)]
BASE = {"fee": 0.0, "slippage": 0.0, "episode_length": None}
QUANTITIES = {"actions": "quantities", "max_quantity": 1e6}


def simulate(
    prices: Sequence[Sequence[float]] | dict[str, Sequence[Sequence[float]]],
    volume: float | Sequence[float] = 1e9,
    funding: Sequence[float] | None = None,
    **settings: object,
) -> ReferenceSimulator:
    tables = list(prices.values()) if isinstance(prices, dict) else [prices]
    columns = []
    for table in tables:
        volumes = [volume] * len(table) if isinstance(volume, float) else volume
        rates = funding or [0.0] * len(table)
        columns.append([Bar.of(*row) for row in zip(table, volumes, rates, strict=True)])
    return ReferenceSimulator(columns, EnvSettings.model_validate(BASE | settings))


def play(run: ReferenceSimulator, *actions: float, distances: Sequence[float] | None = None) -> ReferenceSimulator:
    for action in actions:
        run.step([action], [distances] if distances is not None else None)
    return run


def near(expected: float) -> object:
    return pytest.approx(expected, rel=1e-11, abs=5e-8)


def flat(*opens: float) -> list[tuple[float, float, float, float]]:
    return [(price, price, price, price) for price in opens]


def test_case_1_a_target_fills_at_the_next_open():
    run = play(simulate(BARS, targets=(0.0, 1.0)), 1, 1)
    assert [float(fill.quantity) for fill in run.fills] == [near(98.0392156863)]
    assert [float(value) for value in run.equity] == [10_000.0, near(10_098.0392157), near(10_294.1176471)]


def test_case_2_fee_and_slippage_of_a_round_trip():
    run = play(simulate(BARS, targets=(0.0, 1.0), fee=0.001, slippage=0.0005), 1, 1, 0)
    entry, exit_ = run.fills
    assert (entry.price, float(entry.quantity)) == (Decimal("102.0510"), near(97.8923282477))
    assert (float(entry.fee), float(entry.slippage)) == (near(9.99000999), near(4.9925087406))
    assert (exit_.price, exit_.kind) == (Decimal("103.9480"), "exit")
    assert [float(value) for value in run.equity[1:]] == [
        near(10_082.9098095),
        near(10_278.694466),
        near(10_165.536025),
    ]
    (trade,) = run.trades
    assert (float(trade.gross_pnl()), float(trade.fee)) == (near(185.7017467), near(20.1657217))
    assert float(trade.net_pnl()) == near(165.536025)
    assert [float(reward) for reward in run.rewards] == [
        pytest.approx(value, abs=5e-11) for value in (0.0082567996, 0.0192313619, -0.0110700764)
    ]


def test_cases_4_and_5_all_in_and_out_and_in_lots():
    run = play(simulate(flat(100, 100, 100), targets=(0.0, 1.0), fee=0.001), 1, 0)
    assert float(run.equity[-1]) == near(9_980.01998)
    run = play(simulate(BARS, targets=(0.0, 1.0), fee=0.001, lot=1.0), 1)
    assert (run.fills[0].quantity, run.cash, run.equity[1]) == (97, Decimal("96.106"), Decimal("10087.106"))


def test_case_6_a_short_with_borrow():
    free = play(simulate(BARS, initial_cash=20_000.0, **QUANTITIES), -100, 0, 0, 100)
    assert (free.equity[1], free.equity[-1]) == (19_900, 20_400)
    paid = play(simulate(BARS, initial_cash=20_000.0, borrow=0.001, **QUANTITIES), -100, 0, 0, 100)
    assert paid.equity[-1] == Decimal("20369.30")
    assert (paid.trades[0].borrow, paid.trades[0].net_pnl()) == (Decimal("30.700"), Decimal("369.300"))


def test_case_7_a_reversal_is_one_fill_of_two_trades():
    run = simulate(BARS, initial_cash=20_000.0, fee=0.001, slippage=0.0, **QUANTITIES)
    play(run, 100, 0, -200)
    assert [fill.kind for fill in run.fills] == ["entry", "reversal"]
    assert [fill.fee for fill in run.fills] == [Decimal("10.200"), Decimal("20.800")]
    assert [trade.net_pnl() for trade in run.trades] == [Decimal("179.400")]
    assert run.cash + run.holdings[0].position * 104 == 20_169


@pytest.mark.parametrize(("liquidate", "final"), [(False, "19689.8"), (True, "19679.9")])
def test_case_8_the_end_of_the_data(liquidate, final):
    run = simulate(BARS[:4], initial_cash=20_000.0, fee=0.001, liquidate_at_end=liquidate, **QUANTITIES)
    play(run, 100, 0, 0)
    assert (run.equity[-1], run.terminated, run.truncated, run.reason) == (Decimal(final), False, True, "end_of_data")
    assert [fill.kind for fill in run.fills] == (["entry", "end_of_data"] if liquidate else ["entry"])
    assert [fill.step for fill in run.fills][1:] == ([2] if liquidate else [])


def test_case_9_and_11_ruin_by_a_gap_is_bad_debt():
    run = simulate([*flat(100, 100, 75, 200, 200)], leverage=5.0, **QUANTITIES)
    play(run, 500)
    reward, terminated, truncated = run.step([0])
    assert (run.equity[-1], terminated, truncated, run.reason) == (-2_500, True, False, "ruin")
    assert float(reward) == math.log(1e-6)
    assert (run.fills[-1].kind, run.fills[-1].price, run.holdings[0].position) == ("liquidation", 75, 0)


def test_case_11_bankrupt_at_80_inside_a_bar():
    run = simulate([*flat(100, 100), (99, 99, 79, 90)], leverage=5.0, **QUANTITIES)
    play(run, 500, 0)
    assert (run.fills[-1].kind, run.fills[-1].price, run.equity[-1], run.reason) == ("liquidation", 80, 0, "ruin")


@pytest.mark.parametrize(
    ("bar", "price", "kind"),
    [
        ((90, 120, 85, 110), 90, "stop_loss"),
        ((102, 103, 98, 101), 100, "stop_loss"),
        ((115, 120, 105, 118), 115, "take_profit"),
        ((105, 112, 104, 108), 110, "take_profit"),
        ((105, 112, 99, 108), 100, "stop_loss"),  # both sides of the open: the adverse one
    ],
)
def test_case_10_a_stop_and_a_profit(bar, price, kind):
    run = simulate([*flat(100, 105), bar], initial_cash=20_000.0, stop_loss=5 / 105, take_profit=5 / 105, **QUANTITIES)
    play(run, 100, 0)
    fill = run.fills[-1]
    assert (float(fill.price), fill.kind, fill.position_after) == (pytest.approx(price, rel=1e-15), kind, 0)


@pytest.mark.parametrize(
    ("stop", "bar", "kind", "price"),
    [
        (0.05, (100, 100, 85, 90), "stop_loss", 95),  # the stop is met before the liquidation at 90
        (0.15, (100, 100, 85, 90), "liquidation", 90),
        (0.10, (100, 100, 85, 90), "liquidation", 90),  # equal: liquidation
        (0.05, (88, 100, 85, 90), "liquidation", 88),  # open beyond both
        (0.05, (92, 100, 85, 90), "stop_loss", 92),  # open beyond the stop alone
    ],
)
def test_case_10_a_stop_and_a_liquidation(stop, bar, kind, price):
    run = play(simulate([*flat(100, 100), bar], leverage=10.0, stop_loss=stop, **QUANTITIES), 1_000, 0)
    assert [(fill.kind, fill.price) for fill in run.fills[1:]] == [(kind, price)]


def test_case_10_a_short_is_the_mirror():
    run = simulate([*flat(100, 100), (100, 112, 85, 90)], leverage=5.0, stop_loss=0.05, take_profit=0.1, **QUANTITIES)
    play(run, -100, 0)
    assert [(fill.kind, fill.price, fill.quantity) for fill in run.fills[1:]] == [("stop_loss", 105, 100)]


def test_case_10_a_protective_order_lives_in_the_bar_of_its_entry():
    run = play(simulate([*flat(100), (100, 101, 94, 100)], stop_loss=0.05, targets=(0.0, 1.0)), 1)
    assert [(fill.kind, fill.price, fill.step) for fill in run.fills] == [("entry", 100, 0), ("stop_loss", 95, 0)]


def test_a_stop_pays_slippage_and_half_spread_and_a_profit_does_not():
    costs = {"slippage": 0.01, "half_spread": 0.5, "fee_fixed": 3.0, "initial_cash": 20_000.0, **QUANTITIES}
    stopped = play(simulate([*flat(100), (100, 101, 80, 90)], stop_loss=0.1, **costs), 10)
    entry, exit_ = stopped.fills
    assert (entry.price, entry.slippage, entry.fee) == (Decimal("101.5"), 15, 3)
    trigger = Decimal("101.5") * Decimal("0.9")
    assert (exit_.reference, exit_.price) == (trigger, trigger * Decimal("0.99") - Decimal("0.5"))
    profit = play(simulate([*flat(100), (100, 120, 100, 115)], take_profit=0.1, **costs), 10)
    assert (profit.fills[1].price, profit.fills[1].slippage) == (Decimal("111.65"), 0)


def test_a_trailing_stop_follows_the_highs_of_the_bars_before():
    bars = [*flat(100), (100, 110, 100, 108), (108, 130, 107, 128), (128, 129, 110, 112)]
    run = play(simulate(bars, trailing_stop=0.1, targets=(0.0, 1.0)), 1, 1, 1)
    # Bar 2: 110 · 0.9 = 99 is not reached, its own high does not count; bar 3: 130 · 0.9.
    assert [(fill.kind, fill.price, fill.step) for fill in run.fills[1:]] == [("trailing_stop", 117, 2)]


def test_a_trailing_stop_counts_the_open_of_its_bar():
    run = play(simulate([*flat(100, 100), (200, 201, 175, 190)], trailing_stop=0.1, targets=(0.0, 1.0)), 1, 1)
    assert [(fill.kind, fill.price) for fill in run.fills[1:]] == [("trailing_stop", 180)]


def test_a_stopped_target_is_not_entered_again_before_another_was_chosen():
    bars = [*flat(100), (100, 101, 90, 95), *flat(95, 95, 95)]
    run = play(simulate(bars, stop_loss=0.05, targets=(0.0, 1.0)), 1, 1, 0, 1)
    assert [(fill.kind, fill.step) for fill in run.fills] == [("entry", 0), ("stop_loss", 0), ("entry", 3)]


def test_an_increase_moves_the_average_cost_and_the_stop_with_it():
    bars = [*flat(100, 100, 120), (120, 120, 104, 110)]
    run = play(simulate(bars, initial_cash=90_000.0, stop_loss=0.05, **QUANTITIES), 10, 30, 0)
    assert [(fill.kind, fill.price) for fill in run.fills] == [
        ("entry", 100),
        ("increase", 120),
        ("stop_loss", Decimal("109.25")),  # 0.95 · (10 · 100 + 30 · 120) / 40
    ]
    (trade,) = run.trades
    assert (trade.entry_price, trade.exit_price, trade.quantity) == (115, Decimal("109.25"), 40)
    assert trade.gross_pnl() == -230


def test_distances_by_action_hold_for_one_bar():
    settings = {"stop_loss": 0.5, "take_profit": 0.5, "protect_by_action": True, "initial_cash": 20_000.0, **QUANTITIES}
    bars = [*flat(100), (100, 101, 90, 100), (100, 101, 94, 99)]
    run = simulate(bars, **settings)
    run.step([10], [[0.0, 0.0]])
    run.step([0], [[0.05, 0.0]])
    assert [(fill.kind, fill.price) for fill in run.fills] == [("entry", 100), ("stop_loss", 95)]


def test_case_12_partial_fills_carry():
    bars = flat(100, 102, 103, 104, 104)
    settings = {"initial_cash": 20_000.0, "max_volume_share": 0.1, "remainder": "carry", **QUANTITIES}
    run = play(simulate(bars, volume=[1, 500, 300, 900, 900], **settings), 100, 0, 0, 0)
    assert [(fill.quantity, fill.price) for fill in run.fills] == [(50, 102), (30, 103), (20, 104)]
    assert run.holdings[0].trade.entry_price == Decimal("102.7")


def test_case_12_partial_fills_cancel_and_a_target_counts_as_chosen():
    bars = flat(100, 100, 100, 100)
    run = simulate(bars, volume=[1, 500, 300, 900], max_volume_share=0.1, targets=(0.0, 1.0))
    play(run, 1, 1)
    assert [fill.quantity for fill in run.fills] == [50]


def test_case_12_a_new_order_replaces_what_is_carried():
    settings = {"initial_cash": 20_000.0, "max_volume_share": 0.1, "remainder": "carry", **QUANTITIES}
    run = play(simulate(flat(100, 100, 100, 100), volume=[1, 100, 900, 900], **settings), 50, -10, 0)
    assert [fill.quantity for fill in run.fills] == [10, -10]


def test_case_17_a_missing_bar_fills_nothing_and_keeps_the_price():
    bars = [*flat(100, 100), (NAN, NAN, NAN, NAN), *flat(50)]
    run = simulate(bars, targets=(0.0, 1.0), borrow=0.01)
    play(run, 0, 1)
    assert (run.fills, run.equity[-1]) == ([], 10_000)
    play(run, 1)
    assert [(fill.quantity, fill.step) for fill in run.fills] == [(200, 2)]
    run = play(simulate([*flat(100, 100), (NAN, NAN, NAN, NAN)], borrow=0.01, **QUANTITIES), -10, 0)
    assert [float(value) for value in run.equity[1:]] == [9_990.0, 9_980.0]


def test_weights_rebalance_outside_of_the_band():
    run = simulate(flat(100, 100, 120, 200), actions="weights", no_trade_band=0.05, fee=0.0)
    play(run, 0.5, 0.5, 0.5)
    # 50 units at 100; at 120 the weight is 6000 / 11000 = 0.545, inside; at 200 it is 10000 / 15000: back to 0.5.
    assert [(fill.kind, fill.quantity) for fill in run.fills] == [("entry", 50), ("reduce", Decimal("-12.5"))]


def test_weights_beyond_the_leverage_are_all_scaled():
    run = simulate({"A": flat(100, 100), "B": flat(50, 50)}, portfolio=True, actions="weights")
    run.step([1.0, -1.0])
    assert [(fill.symbol, fill.quantity) for fill in run.fills] == [(0, 50), (1, -100)]


def test_a_portfolio_is_sized_with_the_fees_of_all_its_orders():
    run = simulate({"A": flat(100, 100), "B": flat(50, 50)}, portfolio=True, actions="weights", fee=0.01)
    run.step([0.6, 0.3])
    assert [float(fill.quantity) for fill in run.fills] == [near(6_000 / 100 / 1.009), near(3_000 / 50 / 1.009)]
    assert float(run.cash) == near(10_000 - 9_000 * 1.01 / 1.009)


def test_quantities_beyond_the_leverage_are_scaled_where_they_increase():
    run = simulate({"A": flat(100, 100, 100), "B": flat(50, 50, 50)}, portfolio=True, fee=0.01, **QUANTITIES)
    run.step([60.0, 0.0])
    run.step([-20.0, 500.0])
    assert [fill.quantity for fill in run.fills[:2]] == [60, -20]
    assert float(run.holdings[1].position) == near((10_000 - 60 - 20 - 4_000) / (50 * 1.01))
    assert float(run.equity[-1]) == near(4_000 + float(run.holdings[1].position) * 50)


def test_a_minimum_drops_small_orders_but_not_a_closing_one():
    run = simulate(flat(100, 100, 100, 100), min_notional=1_000.0, **QUANTITIES)
    play(run, 9, 20, -15)
    assert [(fill.kind, fill.quantity) for fill in run.fills] == [("entry", 20), ("reduce", -15)]
    closing = simulate(flat(100, 100, 10), min_notional=1_000.0, **QUANTITIES)
    assert [fill.kind for fill in play(closing, 20, -20).fills] == ["entry", "exit"]


def test_impact_is_that_of_the_order_without_it():
    run = play(simulate(flat(100, 100), volume=[1, 400], impact=0.1, targets=(0.0, 1.0)), 1)
    (fill,) = run.fills
    assert fill.price == 105  # q₀ = 100 of 400: 0.1 · √0.25 = 5 %
    assert float(fill.quantity) == near(10_000 / 105)
    assert play(simulate(flat(100, 100), volume=[1, 0], impact=0.1, targets=(0.0, 1.0)), 1).fills == []


def test_funding_and_interest_are_booked_at_the_close():
    run = simulate(flat(100, 100, 110), funding=[0.0, 0.01, -0.02], interest=0.001, targets=(0.0, 0.5))
    play(run, 1, 1)
    # 50 units, 5,000 cash: + 5 interest − 50 funding, then + 4.955 interest + 110 funding.
    assert [float(value) for value in run.equity[1:]] == [near(9_955.0), near(4_955 + 4.955 + 110 + 5_500)]
    assert float(run.holdings[0].trade.funding) == near(-60.0)
    assert float(run.interest) == near(9.955)


def test_maintenance_liquidates_at_the_open_and_inside_the_bar():
    settings = {"leverage": 4.0, "maintenance_margin": 0.1, **QUANTITIES}
    gap = play(simulate(flat(100, 100, 80), **settings), 400, 0)
    assert [(fill.kind, fill.price) for fill in gap.fills[1:]] == [("liquidation", 80)]  # E₀ 2,000 ≤ 0.1 · 32,000
    bar = play(simulate([*flat(100, 100), (90, 90, 80, 85)], **settings), 400, 0)
    assert float(bar.fills[1].price) == near(30_000 / (400 * 0.9))
    short = play(simulate([*flat(100, 100), (105, 120, 100, 110)], **settings), -400, 0)
    assert float(short.fills[1].price) == near(50_000 / (400 * 1.1))


def test_a_margin_call_at_the_open_cancels_the_orders_of_the_step():
    run = simulate(flat(100, 100, 80, 80), leverage=4.0, maintenance_margin=0.1, targets=(0.0, 1.0, 4.0))
    play(run, 2, 1)
    assert [fill.kind for fill in run.fills] == ["entry", "liquidation"]
    play(run, 1)  # the cancelled one did not count as chosen
    assert [(fill.kind, fill.quantity) for fill in run.fills[2:]] == [("entry", 25)]


def test_an_account_of_several_positions_is_liquidated_at_an_open_alone():
    falling = [*flat(100, 100), (100, 100, 10, 100), *flat(70)]
    run = simulate({"A": falling, "B": flat(50, 50, 50, 50)}, portfolio=True, leverage=4.0, **QUANTITIES)
    for action in ([300.0, 100.0], [0.0, 0.0], [0.0, 0.0]):
        run.step(action)
    assert [fill.kind for fill in run.fills] == ["entry", "entry"]
    assert run.equity[-1] == 1_000


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("log_return", [math.log(1.2), math.log(0.75)]),
        ("return", [0.2, -0.25]),
        ("pnl", [2_000.0, -3_000.0]),
        ("drawdown", [math.log(1.2), math.log(0.75) - 2 * 0.25]),
    ],
)
def test_rewards(reward, expected):
    run = simulate(flat(100, 100, 120, 90), targets=(0.0, 1.0), reward=reward, drawdown_penalty=2.0)
    play(run, 1, 1, 1)
    assert [float(value) for value in run.rewards[1:]] == pytest.approx(expected, rel=1e-12)


def test_the_differential_sharpe_ratio():
    settings = {"targets": (0.0, 1.0), "reward": "differential_sharpe", "reward_decay": 0.1}
    run = play(simulate(flat(100, 100, 120, 90), **settings), 1, 1, 1)
    mean, square = 0.02, 0.004  # after R = 0 and R = 0.2
    to_mean, to_square = -0.25 - mean, 0.0625 - square
    expected = (square * to_mean - mean * to_square / 2) / (square - mean**2) ** 1.5
    assert [float(value) for value in run.rewards] == pytest.approx([0.0, 0.0, expected], rel=1e-12)


def test_the_account_as_the_agent_sees_it():
    run = play(simulate(flat(100, 100, 120, 90), targets=(-0.5, 0.0), window=3), 0, 0, 0)
    account = {name: [float(item) for item in items] for name, items in run.account().items()}
    assert account == {
        "position": [pytest.approx(-4_500 / 10_500)],
        "unrealised_return": [pytest.approx(0.1)],
        "time_in_position": [0.5],
        "drawdown": [0.0],
        "cash_share": [pytest.approx(15_000 / 10_500)],
    }


def test_an_order_on_a_missing_bar_is_carried_in_the_size_of_its_last_price():
    bars = [*flat(100), (NAN, NAN, NAN, NAN), *flat(50, 50)]
    run = play(simulate(bars, targets=(0.0, 1.0), remainder="carry"), 1, 1, 1)
    assert [(fill.quantity, fill.price, fill.step) for fill in run.fills] == [(100, 50, 1)]


def test_a_protective_order_and_a_liquidation_cancel_what_is_carried():
    settings = {"max_volume_share": 0.1, "remainder": "carry", **QUANTITIES}
    bars = [*flat(100), (100, 101, 90, 100), *flat(100, 100)]
    stopped = simulate(bars, volume=[1, 100, 900, 900], initial_cash=20_000.0, stop_loss=0.05, **settings)
    assert [fill.kind for fill in play(stopped, 50, 0, 0).fills] == ["entry", "stop_loss"]
    bars = [*flat(100), (100, 101, 40, 60), *flat(60, 60)]
    bankrupt = simulate(bars, volume=[1, 2_000, 900, 900], leverage=4.0, maintenance_margin=0.1, **settings)
    assert [fill.kind for fill in play(bankrupt, 300, 0, 0).fills] == ["entry", "liquidation"]


def test_length_is_the_reason_where_the_data_ends_with_it():
    assert play(simulate(flat(100, 100), episode_length=1), 1).reason == "length"


def test_the_first_adverse_trigger_on_the_way_names_a_gap():
    settings = {"stop_loss": 0.1, "trailing_stop": 0.05, "targets": (0.0, 1.0)}
    run = play(simulate(flat(100, 100, 50), **settings), 1, 1)
    assert [(fill.kind, fill.price) for fill in run.fills[1:]] == [("trailing_stop", 50)]
    settings["trailing_stop"] = 0.1  # equal ones: the stop-loss
    run = play(simulate([*flat(100), (100, 100, 80, 95)], **settings), 1)
    assert [(fill.kind, fill.price) for fill in run.fills[1:]] == [("stop_loss", 90)]


def test_a_stopped_trade_is_one_trade_with_both_fees():
    settings = {"fee": 0.01, "fee_fixed": 1.0, "stop_loss": 0.1, "initial_cash": 20_000.0, **QUANTITIES}
    run = play(simulate([*flat(100), (100, 100, 80, 95)], **settings), 10)
    (trade,) = run.trades
    assert (trade.fee, trade.net_pnl(), trade.exit_step) == (21, -121, 0)
