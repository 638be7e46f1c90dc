"""Worked cases of the accounting: decide at the close, fill at the next open, mark at the close."""

from __future__ import annotations

import math

import numpy as np
import pytest

SHORT, FLAT, LONG = 0, 1, 2


def approx(value):
    return pytest.approx(value, rel=0, abs=5e-8)


def run(env, actions):
    rewards = [env.step(action)[1] for action in actions]
    return env.episode_record(), rewards


def test_all_in_without_costs_fills_at_the_next_open(case_env):
    record, _ = run(case_env(), [LONG, LONG])
    assert record.fills["quantity"][0] == approx(98.0392156863)
    assert record.fills["price"][0] == 102.0
    assert record.steps_table["value"].tolist() == [approx(10_098.0392157), approx(10_294.1176471)]


def test_fee_and_slippage_of_a_round_trip(case_env):
    record, rewards = run(case_env(fee=0.001, slippage=0.0005), [LONG, LONG, FLAT])
    fills = record.fills
    assert fills["price"].tolist() == [approx(102.051), approx(103.948)]
    assert fills["quantity"][0] == approx(97.8923282477)
    assert fills["fee"][0] == approx(9.9900099900)
    assert fills["slippage"][0] == approx(4.9925087406)
    assert record.steps_table["value"].tolist() == [
        approx(10_082.9098095),
        approx(10_278.6944660),
        approx(10_165.5360250),
    ]
    assert record.trades["gross_pnl"].tolist() == [approx(185.7017467)]
    assert record.trades["fee"].tolist() == [approx(20.1657217)]
    assert record.trades["net_pnl"].tolist() == [approx(165.5360250)]
    assert record.pnl == approx(165.5360250)
    assert rewards == [approx(0.0082567996), approx(0.0192313619), approx(-0.0110700764)]
    assert record.total_reward == approx(0.0164180851)
    assert record.open_quantity == 0.0
    assert record.open_pnl == 0.0
    assert record.win_rate == 1.0


def test_round_trip_at_a_flat_price_costs_two_fees(case_env):
    record, _ = run(case_env([(100, 100, 100, 100)] * 5, fee=0.001), [LONG, FLAT])
    assert record.final_value == approx(9_980.0199800)
    assert record.win_rate == 0.0


def test_integer_lots_round_towards_zero(case_env):
    record, _ = run(case_env(fee=0.001, lot=1.0), [LONG])
    assert record.open_quantity == 97.0
    assert record.steps_table["cash"][0] == approx(96.106)
    assert record.final_value == approx(10_087.106)
    short, _ = run(case_env(fee=0.001, lot=1.0), [SHORT])
    assert short.open_quantity == -97.0


def test_lot_that_is_no_binary_fraction_loses_no_lot(case_env):
    record, _ = run(case_env([(1, 1, 1, 1)] * 4, initial_cash=0.3, lot=0.1), [LONG])
    assert record.open_quantity == approx(0.3)


def test_equity_too_small_for_a_lot_sends_nothing(case_env):
    record, _ = run(case_env(initial_cash=50.0, lot=1.0), [LONG, LONG, FLAT])
    assert record.fills["quantity"].size == 0
    assert record.final_value == 50.0


def test_short_position_gains_as_the_price_falls(case_env):
    # -0.51 of 20,000 at 102 is 100 units.
    env = case_env(initial_cash=20_000.0, targets=(-0.51, 0.0))
    record, _ = run(env, [0, 0, 0, 1])
    assert record.fills["quantity"].tolist() == [approx(-100.0), approx(100.0)]
    assert record.steps_table["value"][0] == approx(19_900.0)
    assert record.final_value == approx(20_400.0)
    assert record.trades["side"].tolist() == [-1]


def test_borrow_is_paid_per_bar_on_the_notional_at_the_close(case_env):
    env = case_env(initial_cash=20_000.0, targets=(-0.51, 0.0), borrow=0.001)
    record, _ = run(env, [0, 0, 0, 1])
    assert record.borrow == approx(10.30 + 10.50 + 9.90)
    assert record.trades["borrow"].tolist() == [approx(30.70)]
    assert record.final_value == approx(20_369.30)


def test_borrow_of_ten_bars_is_ten_times_that_of_one(case_env):
    env = case_env([(100, 100, 100, 100)] * 13, borrow=0.001)
    one, _ = run(env, [SHORT])
    ten, _ = run(env, [SHORT] * 9)
    assert one.borrow == approx(10.0)
    assert ten.borrow == approx(100.0)


def test_long_position_pays_no_borrow(case_env):
    record, _ = run(case_env(borrow=0.001), [LONG, LONG])
    assert record.borrow == 0.0


def test_reversal_is_one_fill_that_closes_one_trade(case_env):
    fee = 0.001
    buy = 10_200 / (20_000 - 10_200 * fee)  # targets that make exactly +100 at 102, then -100 at 104
    value_at_104 = 20_000 - 10.2 + 200
    sell = -10_400 / (value_at_104 - 10_400 * fee)
    env = case_env(initial_cash=20_000.0, targets=(sell, 0.0, buy), fee=fee)
    record, _ = run(env, [LONG, LONG, SHORT])
    fills = record.fills
    assert fills["quantity"].tolist() == [approx(100.0), approx(-200.0)]
    assert record.fee == approx(31.00)
    assert fills["kind"].tolist() == ["entry", "reversal"]
    assert fills["operations"].tolist() == ["ENTRY_LONG", "EXIT_LONG+ENTRY_SHORT"]
    assert fills["trade_no"].tolist() == [0, 0]
    assert fills["position_after"].tolist() == [approx(100.0), approx(-100.0)]
    assert record.trades["net_pnl"].tolist() == [approx(179.40)]
    assert record.trades["exit_kind"].tolist() == ["reversal"]
    # 20,169.00 at 104, and the short gains 5 a unit to the close at 99.
    assert record.final_value - 100 * (104 - 99) == approx(20_169.00)
    assert record.open_entry_price == approx(104.0)


def test_end_of_data_marks_the_open_position_and_truncates(case_env):
    from_t0_to_t3 = [
        (99, 100, 98, 100),
        (100, 101, 99, 100),
        (102, 104, 101, 103),
        (103, 106, 102, 105),
        (104, 105, 98, 99),
    ]
    env = case_env(from_t0_to_t3, initial_cash=20_000.0, fee=0.001, targets=(0.0, 10_200 / (20_000 - 10.2)))
    env.step(1)
    env.step(1)
    _, _, terminated, truncated, info = env.step(1)
    record = env.episode_record()
    assert (terminated, truncated, info["reason"]) == (False, True, "end_of_data")
    assert record.reason == "end_of_data"
    assert record.final_value == info["value"] == approx(19_689.80)
    assert record.open_quantity == approx(100.0)
    assert record.open_entry_price == approx(102.0)
    assert record.open_pnl == approx(-310.20)
    assert record.trades["net_pnl"].size == 0
    assert record.win_rate is None


def test_ruin_at_the_close_terminates_with_a_finite_loss(case_env):
    env = case_env([(100, 100, 100, 100)] * 3 + [(120, 250, 120, 250)] + [(100, 100, 100, 100)] * 3)
    env.step(SHORT)
    _, reward, terminated, truncated, info = env.step(SHORT)
    record = env.episode_record()
    assert (terminated, truncated, info["reason"]) == (True, False, "ruin")
    assert reward == pytest.approx(math.log(1e-6))
    assert record.final_value == approx(-5_000.0)  # the bad debt is on record
    assert np.isfinite(record.total_reward)
    assert record.max_drawdown == approx(1.5)


def test_ruin_at_the_open_is_not_healed_by_the_close(case_env):
    env = case_env([(100, 100, 100, 100)] * 3 + [(250, 250, 90, 90)] + [(90, 90, 90, 90)] * 3)
    env.step(SHORT)
    _, reward, terminated, truncated, _ = env.step(FLAT)
    record = env.episode_record()
    assert (terminated, truncated) == (True, False)
    assert reward == pytest.approx(math.log(1e-6))
    assert record.final_value == approx(-5_000.0)
    assert record.steps_table["price"].tolist() == [100.0, 250.0]
    assert record.fills["kind"].tolist() == ["entry"]  # the order to leave came too late
    assert record.open_pnl == approx(-15_000.0)


def test_held_target_drifts_and_sends_no_order(case_env):
    record, _ = run(case_env(), [SHORT, SHORT, SHORT])
    assert len(record.fills["quantity"]) == 1
    assert len(set(record.steps_table["position"].tolist())) == 1


def test_larger_and_smaller_targets_are_fills_of_one_trade_at_average_cost(case_env):
    env = case_env(targets=(0.0, 0.5, 1.0))
    record, _ = run(env, [1, 2, 1, 0])
    fills, trades = record.fills, record.trades
    assert fills["kind"].tolist() == ["entry", "increase", "reduce", "exit"]
    assert fills["operations"].tolist() == ["ENTRY_LONG", "ENTRY_LONG", "EXIT_LONG", "EXIT_LONG"]
    assert fills["trade_no"].tolist() == [0, 0, 0, 0]
    first, second, third, fourth = fills["quantity"]
    assert len(trades["side"]) == 1
    assert trades["quantity"][0] == approx(first + second)
    assert trades["entry_price"][0] == approx((first * 102 + second * 103) / (first + second))
    assert trades["exit_price"][0] == approx((third * 104 + fourth * 98) / (third + fourth))
    assert trades["gross_pnl"][0] == approx(record.pnl)
    assert (trades["entry_row"][0], trades["exit_row"][0], trades["bars"][0]) == (2, 5, 3)


def test_record_times_and_rows_of_a_trade(case_env):
    record, _ = run(case_env(), [FLAT, LONG, FLAT])
    day = 86_400_000_000
    fills, trades, steps = record.fills, record.trades, record.steps_table
    assert (record.start_row, record.first_ts, record.last_ts) == (1, 2 * day, 5 * day)
    assert fills["row"].tolist() == [3, 4]
    assert fills["ts"].tolist() == [3 * day, 4 * day]  # the fill is at the open
    assert fills["decided_ts"].tolist() == [3 * day, 4 * day]  # of the bar after the one that was decided on
    assert fills["step"].tolist() == [1, 2]
    assert (trades["entry_step"].tolist(), trades["exit_step"].tolist()) == ([1], [2])
    assert (trades["entry_ts"].tolist(), trades["exit_ts"].tolist()) == ([3 * day], [4 * day])
    assert steps["ts"].tolist() == [3 * day, 4 * day, 5 * day]
    assert steps["action"].tolist() == [FLAT, LONG, FLAT]
    assert record.action_counts == {"-1": 0, "0": 2, "1": 1}


def test_reward_is_scaled_for_the_learner_and_not_on_record(case_env):
    plain, rewards = run(case_env(), [LONG, LONG])
    scaled, large = run(case_env(reward_scale=100.0), [LONG, LONG])
    assert large == [100.0 * reward for reward in rewards]
    assert scaled.total_reward == plain.total_reward
    assert scaled.steps_table["reward"].tolist() == plain.steps_table["reward"].tolist()


def test_no_order_where_slippage_puts_the_target_out_of_reach_from_both_sides(case_env):
    # Half of the equity at the open is above the 47.6 units held, at a buyer's price of 105 below them.
    env = case_env([(100, 100, 100, 100)] * 5, targets=(0.0, 0.5, 0.4999), slippage=0.05)
    record, _ = run(env, [1, 2])
    assert record.fills["kind"].tolist() == ["entry"]


def test_order_whose_slippage_eats_the_equity_only_closes_the_position(case_env):
    env = case_env([(100, 100, 100, 100)] * 3 + [(175, 175, 175, 175)] * 2, slippage=0.1)
    record, _ = run(env, [SHORT, LONG])
    assert record.fills["kind"].tolist() == ["entry", "exit"]
    assert record.fills["position_after"][-1] == 0.0
    assert record.reason == "ruin"


def test_open_position_is_told_at_average_cost(case_env):
    env = case_env(targets=(-1.0, 0.0, 0.5, 1.0))
    record, _ = run(env, [0, 2, 3, 2])  # short at 102, half long at 103, all long at 104, half again at 98
    put = record.fills["quantity"][1] - 10_000 / 102, record.fills["quantity"][2]
    assert record.fills["kind"].tolist() == ["entry", "reversal", "increase", "reduce"]
    assert record.fills["trade_no"].tolist() == [0, 0, 1, 1]
    average = (put[0] * 103 + put[1] * 104) / sum(put)
    assert record.open_entry_price == approx(average)
    assert record.open_quantity == approx(sum(put) + record.fills["quantity"][3])
    realised = (98 - average) * -record.fills["quantity"][3]
    assert record.open_pnl == approx(realised + (98 - average) * record.open_quantity)
    assert record.trades["net_pnl"].tolist() == [approx(-10_000 / 102)]
