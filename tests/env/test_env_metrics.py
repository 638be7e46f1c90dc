from __future__ import annotations

import math

import numpy as np
import pytest

from env.metrics import drawdown, sharpe


def test_max_drawdown_is_the_largest_fall_from_a_peak_and_how_long_it_lasted():
    assert drawdown(np.array([100.0, 120.0, 90.0, 130.0, 104.0])) == (0.25, 2)
    assert drawdown(np.array([100.0, 120.0, 120.0, 90.0, 100.0, 119.0])) == (0.25, 3)


def test_max_drawdown_of_a_rising_or_single_value_is_zero():
    assert drawdown(np.array([1.0, 2.0, 3.0])) == (0.0, 0)
    assert drawdown(np.array([5.0])) == (0.0, 0)


def test_sharpe_uses_the_sample_deviation():
    returns = np.array([0.01, -0.01, 0.02, 0.0])
    assert sharpe(returns) == pytest.approx(0.387298, abs=5e-7)
    assert sharpe(returns) == pytest.approx(0.005 / math.sqrt(0.0005 / 3))


@pytest.mark.parametrize("returns", [[], [0.01], [0.0, 0.0, 0.0], [0.01, 0.01 + 1e-16, 0.01]])
def test_sharpe_is_none_where_it_is_not_defined(returns):
    assert sharpe(np.array(returns, dtype=np.float64)) is None


def test_record_carries_the_metrics_of_its_equity(case_env):
    env = case_env()
    for action in (2, 2, 2):
        env.step(action)
    record = env.episode_record()
    values = np.concatenate([[10_000.0], record.steps_table["value"]])
    assert record.sharpe == pytest.approx(sharpe(np.diff(values) / values[:-1]))
    assert record.max_drawdown == pytest.approx(1 - 99 / 105)


def test_record_of_no_steps_invents_no_metrics(case_env):
    record = case_env().episode_record()
    assert (record.steps, record.reason, record.sharpe, record.win_rate) == (0, "running", None, None)
    assert record.final_value == record.initial_value == 10_000.0
    assert record.first_ts == record.last_ts
    assert record.total_reward == record.pnl == record.open_pnl == record.max_drawdown == 0.0
