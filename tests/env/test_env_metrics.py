from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from env.metrics import EpisodeMetrics, drawdown, episode_metrics, sharpe, sortino


def metrics_of(equity: list[float], trades: list[tuple[int, float, int]] | None = None, **more: Any) -> EpisodeMetrics:
    """Metrics of an equity curve; trades are (side, net pnl, bars)."""
    steps = len(equity) - 1
    side, net_pnl, bars = (np.array([trade[i] for trade in trades or []]) for i in range(3))
    given: dict[str, Any] = {
        "steps_in_position": 0,
        "traded_notional": 0.0,
        "actions": np.zeros(steps, dtype=np.int64),
        "bars_per_year": 252.0,
    } | more
    return episode_metrics(np.array(equity, dtype=np.float64), side=side, net_pnl=net_pnl, bars=bars, **given)


def test_case_13_max_drawdown_is_the_largest_fall_from_a_peak_whatever_the_reward():
    assert drawdown(np.array([100.0, 120.0, 90.0, 130.0, 104.0])) == (0.25, 2)
    # From the last time at the peak: the plateau before the fall does not count.
    assert drawdown(np.array([100.0, 120.0, 120.0, 90.0, 100.0, 119.0])) == (0.25, 3)
    # Of two equal falls the first.
    assert drawdown(np.array([100.0, 50.0, 100.0, 50.0, 60.0, 60.0, 60.0])) == (0.5, 2)


def test_max_drawdown_of_a_rising_or_single_value_is_zero():
    assert drawdown(np.array([1.0, 2.0, 3.0])) == (0.0, 0)
    assert drawdown(np.array([5.0])) == (0.0, 0)


def test_case_14_sharpe_uses_the_sample_deviation():
    returns = np.array([0.01, -0.01, 0.02, 0.0])
    assert sharpe(returns) == pytest.approx(0.387298, abs=5e-7)
    assert sharpe(returns) == pytest.approx(0.005 / math.sqrt(0.0005 / 3))
    equity = (100.0 * np.cumprod([1.0, *(1.0 + returns)])).tolist()
    assert metrics_of(equity).sharpe == pytest.approx(0.387298, abs=5e-7)
    assert metrics_of(equity).annual_sharpe == pytest.approx(6.148170, abs=5e-7)


@pytest.mark.parametrize("returns", [[], [0.01], [0.0, 0.0, 0.0], [0.01, 0.01 + 1e-16, 0.01]])
def test_sharpe_is_none_where_it_is_not_defined(returns):
    assert sharpe(np.array(returns, dtype=np.float64)) is None


def test_sortino_counts_losses_alone_over_all_steps():
    assert sortino(np.array([0.01, -0.01, 0.02, 0.0])) == pytest.approx(0.005 / math.sqrt(0.0001 / 4))
    assert sortino(np.array([0.01, 0.02])) is None
    assert sortino(np.array([])) is None


def test_returns_of_a_year():
    metrics = metrics_of([100.0, 110.0, 99.0, 121.0], bars_per_year=6.0)
    assert metrics.total_return == pytest.approx(0.21)
    assert metrics.annual_return == pytest.approx(1.21**2 - 1)
    returns = [0.1, -0.1, 121 / 99 - 1]
    assert metrics.volatility == pytest.approx(np.std(returns, ddof=1) * math.sqrt(6))
    assert metrics.max_drawdown == pytest.approx(0.1)
    assert metrics.calmar == pytest.approx((1.21**2 - 1) / 0.1)
    assert metrics.annual_sortino == pytest.approx(np.mean(returns) / math.sqrt(0.01 / 3) * math.sqrt(6))


def test_var_and_cvar_look_at_the_worst_twentieth():
    returns = np.arange(-50, 50) / 1_000  # 100 of them: 5 in the tail
    equity = np.cumprod([1.0, *(1.0 + np.random.default_rng(1).permutation(returns))])
    metrics = metrics_of(equity.tolist())
    assert metrics.var_95 == pytest.approx(-np.quantile(returns, 0.05), abs=1e-12)
    assert metrics.cvar_95 == pytest.approx((0.050 + 0.049 + 0.048 + 0.047 + 0.046) / 5, abs=1e-12)
    # Of 30 returns one and a half are in the tail.
    equity = np.cumprod([1.0, *(1.0 + returns[:30])])
    assert metrics_of(equity.tolist()).cvar_95 == pytest.approx((0.050 + 0.5 * 0.049) / 1.5, abs=1e-12)


def test_trades_are_counted_by_side():
    trades = [(1, 30.0, 2), (1, -10.0, 4), (-1, -5.0, 6), (1, 0.0, 8)]
    metrics = metrics_of([100.0, 115.0], trades)
    assert metrics.profit_factor == pytest.approx(2.0)
    assert metrics.expectancy == pytest.approx(15 / 4)
    assert (metrics.win_rate, metrics.win_rate_long, metrics.win_rate_short) == (0.25, pytest.approx(1 / 3), 0.0)
    assert (metrics.mean_trade_bars, metrics.median_trade_bars) == (5.0, 5.0)


def test_exposure_turnover_and_changes():
    metrics = metrics_of(
        [100.0, 110.0, 90.0, 100.0, 100.0], steps_in_position=3, traded_notional=250.0, actions=np.array([2, 2, 1, 0])
    )
    assert (metrics.exposure, metrics.turnover) == (0.75, 2.5)
    assert metrics.action_change_rate == pytest.approx(2 / 3)
    vectors = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.4], [0.5, 0.4]])
    assert metrics_of([1.0] * 5, actions=vectors).action_change_rate == pytest.approx(1 / 3)


def test_costs_are_handed_through():
    costs = {"fee": 1.0, "slippage": 2.0, "borrow": 3.0, "funding": -4.0, "interest": 5.0}
    metrics = metrics_of([1.0, 1.0], **costs)
    assert {name: getattr(metrics, name) for name in costs} == costs


NOT_DEFINED = {"profit_factor", "expectancy", "win_rate", "win_rate_long", "win_rate_short", "mean_trade_bars",
               "median_trade_bars"}  # fmt: skip
NO_SPREAD = {"sharpe", "annual_sharpe", "sortino", "annual_sortino", "calmar"}


def none_of(metrics: EpisodeMetrics) -> set[str]:
    return {name for name, value in vars(metrics).items() if value is None}


def test_without_a_trade_figures_of_trades_are_none():
    assert none_of(metrics_of([100.0, 110.0, 90.0])) == NOT_DEFINED


def test_flat_equity_has_no_ratios():
    metrics = metrics_of([100.0, 100.0, 100.0])
    assert none_of(metrics) == NOT_DEFINED | NO_SPREAD
    assert (metrics.total_return, metrics.annual_return, metrics.volatility, metrics.var_95) == (0.0, 0.0, 0.0, 0.0)


def test_one_bar_has_no_spread():
    metrics = metrics_of([100.0, 99.0], bars_per_year=12.0)
    assert none_of(metrics) == NOT_DEFINED | {"volatility", "sharpe", "annual_sharpe", "action_change_rate"}
    assert metrics.var_95 == metrics.cvar_95 == pytest.approx(0.01)


def test_no_bar_has_nothing():
    metrics = metrics_of([100.0])
    assert none_of(metrics) == NOT_DEFINED | NO_SPREAD | {
        "annual_return", "volatility", "var_95", "cvar_95", "exposure", "action_change_rate"
    }  # fmt: skip
    assert (metrics.total_return, metrics.max_drawdown, metrics.turnover) == (0.0, 0.0, 0.0)


def test_a_ruined_account_has_no_annual_return():
    metrics = metrics_of([100.0, 120.0, -30.0])
    assert none_of(metrics) == NOT_DEFINED | {"annual_return", "calmar"}
    assert (metrics.total_return, metrics.max_drawdown, metrics.max_drawdown_bars) == (-1.3, 1.25, 1)


def test_without_the_bars_of_a_year_annual_figures_are_none():
    annual = {"annual_return", "volatility", "annual_sharpe", "annual_sortino", "calmar"}
    assert none_of(metrics_of([100.0, 110.0, 90.0], bars_per_year=None)) == NOT_DEFINED | annual


def test_an_annual_return_too_large_for_a_float_is_none():
    assert metrics_of([1.0, 2.0], bars_per_year=525_600.0).annual_return is None


@given(
    st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=30),
    st.floats(-1e9, 1e9),
    st.lists(st.tuples(st.sampled_from([-1, 1]), st.floats(-1e6, 1e6), st.integers(0, 99)), max_size=5),
    st.sampled_from([None, 12.0, 525_600.0]),
)
def test_no_figure_is_ever_nan_or_infinite(equity, last, trades, year):
    metrics = metrics_of([*equity, last], trades, bars_per_year=year)
    assert all(math.isfinite(value) for value in vars(metrics).values() if value is not None)
    assert metrics.max_drawdown_bars <= len(equity)
    if metrics.var_95 is not None:
        assert metrics.cvar_95 >= metrics.var_95 - 1e-9 * abs(metrics.var_95)


def test_record_carries_the_metrics_of_its_equity(case_env):
    env = case_env()
    for action in (2, 2, 2):
        env.step(action)
    record = env.episode_record()
    values = np.concatenate([[10_000.0], record.steps_table["value"]])
    assert record.metrics.sharpe == pytest.approx(sharpe(np.diff(values) / values[:-1]))
    assert record.metrics.max_drawdown == pytest.approx(1 - 99 / 105)
    assert record.metrics.exposure == 1.0
    traded = np.abs(record.fills["quantity"] * record.fills["price"]).sum()
    assert record.metrics.turnover == pytest.approx(traded / values.mean())


def test_record_of_no_steps_invents_no_metrics(case_env):
    record = case_env().episode_record()
    assert (record.steps, record.reason, record.metrics.sharpe, record.metrics.win_rate) == (0, "running", None, None)
    assert record.final_value == record.initial_value == 10_000.0
    assert record.first_ts == record.last_ts
    assert record.total_reward == record.pnl == record.open_pnl == record.metrics.max_drawdown == 0.0
