"""The accounting beyond the worked cases (test_env_cases.py): sizing, averages, records."""

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


def test_lot_that_is_no_binary_fraction_loses_no_lot(case_env):
    record, _ = run(case_env([(1, 1, 1, 1)] * 4, initial_cash=0.3, lot=0.1), [LONG])
    assert record.open_quantity == approx(0.3)


def test_equity_too_small_for_a_lot_sends_nothing(case_env):
    record, _ = run(case_env(initial_cash=50.0, lot=1.0), [LONG, LONG, FLAT])
    assert record.fills["quantity"].size == 0
    assert record.final_value == 50.0


def test_long_position_pays_no_borrow(case_env):
    record, _ = run(case_env(borrow=0.001), [LONG, LONG])
    assert record.borrow == 0.0


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


def test_ruin_at_the_close_is_marked_with_the_position(case_env):
    # A fixed fee and borrow take the last of a short that no price inside the bar has liquidated.
    env = case_env([(100, 100, 100, 100)] * 6, borrow=0.9, targets=(-1.0, 0.0))
    env.step(0)
    _, reward, terminated, truncated, info = env.step(0)
    record = env.episode_record()
    assert (terminated, truncated, info["reason"]) == (True, False, "ruin")
    assert reward == pytest.approx(math.log(1e-6))
    assert record.final_value == info["value"] == approx(-8_000.0)
    assert (record.bad_debt, record.open_quantity) == (approx(8_000.0), -100.0)
    assert record.fills["kind"].tolist() == ["entry"]
    assert record.max_drawdown == approx(1.8)
    assert np.isfinite(record.total_reward)
