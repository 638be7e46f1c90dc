"""A missing bar: no fill, the last price with a stale flag, never a price of 0."""

from __future__ import annotations

import numpy as np
import pytest

from env.market_data import MarketData
from env.trading_env import TradingEnv
from schemas.errors import InputError, SettingsError

NAN = float("nan")
GAP = [(100, 100, 100, 100), (100, 100, 100, 100), (NAN, NAN, NAN, NAN), (110, 110, 110, 110), (120, 120, 120, 120)]
SHORT, FLAT, LONG = 0, 1, 2


def test_order_on_a_missing_bar_is_cancelled_and_sent_again_when_chosen_again(case_env):
    env = case_env(GAP)
    env.step(LONG)
    record = env.episode_record()
    assert record.fills["quantity"].size == 0
    assert (record.cancelled_orders, record.stale_steps) == (1, 1)
    assert record.open_quantity == 0.0
    env.step(LONG)
    record = env.episode_record()
    assert record.fills["price"].tolist() == [110.0]
    assert record.fills["step"].tolist() == [1]
    assert record.cancelled_orders == 1


def test_cancelled_order_does_not_wait(case_env):
    env = case_env(GAP)
    for action in (LONG, FLAT, FLAT):
        env.step(action)
    record = env.episode_record()
    assert record.fills["quantity"].size == 0
    assert record.cancelled_orders == 1


def test_position_is_marked_at_the_last_price_with_a_stale_flag(case_env):
    env = case_env([(100, 100, 100, 100), (100, 100, 100, 100), (100, 105, 100, 104), (NAN, NAN, NAN, NAN), *GAP[3:]])
    env.step(LONG)
    observation, reward, *_ = env.step(LONG)
    steps = env.episode_record().steps_table
    assert steps["stale"].tolist() == [False, True]
    assert steps["price"].tolist() == [104.0, 104.0]
    assert steps["value"][1] == steps["value"][0]
    assert reward == 0.0
    assert np.isfinite(observation).all()
    assert (observation[:-5] == 0.0).all()  # no news in the bar
    assert env.episode_record().cancelled_orders == 0


def test_short_pays_borrow_over_a_missing_bar(case_env):
    env = case_env([*GAP[:2], (100, 100, 100, 100), (NAN, NAN, NAN, NAN), (100, 100, 100, 100)], borrow=0.001)
    env.step(SHORT)
    env.step(SHORT)
    assert env.episode_record().borrow == pytest.approx(20.0)


def test_bar_with_one_missing_price_is_missing(make_bars):
    data = MarketData([make_bars([(100, 101, 99, 100), (101, 102, 100, NAN), (102, 103, 101, 102)])])
    assert data.tradable.tolist() == [True, False, True]
    assert data.mark.tolist() == [100.0, 100.0, 102.0]
    assert (data.mark > 0).all()
    assert (data.open > 0).all()
    assert data.features[2, 3] == pytest.approx(np.log(102 / 100))  # over the last known close


def test_episodes_start_after_leading_missing_bars(make_bars, prices_of):
    prices = prices_of(1, 20)
    prices[:6] = NAN
    env = TradingEnv(MarketData([make_bars(prices, base_row=100)]), {"window": 4, "starts": "whole"})
    _, info = env.reset()
    assert info["start_row"] == 110
    with pytest.raises(InputError, match=r"start_row of 'CASE': expected 110\.\.118 .*got 105"):
        env.reset(options={"start_row": 105})


def test_symbol_with_no_price_at_all_is_refused(make_bars):
    with pytest.raises(InputError, match="'CASE': expected a bar with prices, got NaN in every one"):
        MarketData([make_bars([(NAN, NAN, NAN, NAN)] * 3)])


def test_window_longer_than_the_bars_with_prices_is_refused(make_bars, prices_of):
    prices = prices_of(1, 20)
    prices[:6] = NAN
    with pytest.raises(SettingsError, match=r"'window': expected at most 12 for the 14 bars of 'CASE', got 13"):
        TradingEnv(MarketData([make_bars(prices)]), {"window": 13})
    TradingEnv(MarketData([make_bars(prices)]), {"window": 12}).reset()
