"""The built-in features against TA-Lib, pandas, and their definitions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import talib

from env.bars import Bars, SymbolBars
from env.features import BUILT_IN, Feature, Recipe
from env.rolling import (
    TAIL,
    exponential_length,
    exponential_mean,
    sliding_mean,
    sliding_moments,
    sliding_sum,
)
from producers.bundled import bundled_feed_path
from producers.feed import read_feed
from schemas.times import HOUR, MINUTE, from_iso

SEEDED = 1_500
"""Rows after which nothing is left of how TA-Lib begins its recursive averages."""


def walk(seed: int, rows: int, interval: int = MINUTE, first: int = 0) -> Bars:
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, rows)))
    opened = np.concatenate([[100.0], close[:-1]]) * np.exp(rng.normal(0.0, 0.003, rows))
    up, down = np.exp(np.abs(rng.normal(0.0, 0.004, (2, rows))))
    ts = first + np.arange(rows, dtype=np.int64) * interval
    high, low = np.maximum(opened, close) * up, np.minimum(opened, close) / down
    return Bars.of(SymbolBars("W", 0, ts, ts + interval, opened, high, low, close, rng.lognormal(8.0, 1.0, rows)))


def stock(symbol: str) -> Bars:
    bars = read_feed(bundled_feed_path(), symbols=[symbol], adjusted=True).bars[symbol]
    columns = (bars.ts_open, bars.ts_close, bars.open, bars.high, bars.low, bars.close, bars.volume)
    return Bars.of(SymbolBars(symbol, 0, *columns))


MARKETS = [walk(1, 4_000), walk(2, 4_000), stock("AAPL"), stock("IBM")]


def series(name: str, bars: Bars) -> np.ndarray:
    return Feature.of(name).compute(bars)


def columns(bars: Bars) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(np.array(getattr(bars, name)) for name in ("close", "high", "low"))


# -- TA-Lib ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bars", MARKETS, ids=lambda bars: bars.symbol)
@pytest.mark.parametrize("n", [2, 14, 20, 50])
def test_windowed_indicators_equal_talib(bars, n):
    close, _, _ = columns(bars)
    upper, middle, _ = talib.BBANDS(close, n, 2.5, 2.5)
    np.testing.assert_allclose(series(f"sma_ratio({n})", bars)[n:], (close / talib.SMA(close, n) - 1)[n:], atol=1e-12)
    # TA-Lib takes the variance as a difference of squares: where the bands are narrow its last digits are noise.
    wide = (upper - middle)[n:] > 1e-3
    expected = ((close - middle)[n:] / np.maximum(upper - middle, 1e-9)[n:])[wide]
    np.testing.assert_allclose(series(f"bollinger({n},2.5)", bars)[n:][wide], expected, atol=1e-5)


@pytest.mark.parametrize("bars", MARKETS, ids=lambda bars: bars.symbol)
def test_recursive_indicators_are_talibs_but_for_the_weight_that_is_left_out(bars):
    """Of an average, the weight ``TAIL`` = 1e-5 falls on what is older than the window."""
    close, high, low = columns(bars)
    for n in (5, 14, 30):
        ema = talib.EMA(close, n)
        np.testing.assert_allclose(series(f"ema_ratio({n})", bars)[SEEDED:], (close / ema - 1)[SEEDED:], atol=2 * TAIL)
        rsi = (talib.RSI(close, n) - 50) / 50
        np.testing.assert_allclose(series(f"rsi({n})", bars)[SEEDED:], rsi[SEEDED:], atol=10 * TAIL)
        atr = talib.ATR(high, low, close, n) / close
        np.testing.assert_allclose(series(f"atr({n})", bars)[SEEDED:], atr[SEEDED:], rtol=50 * TAIL)
    for fast, slow, signal in ((12, 26, 9), (5, 35, 5)):
        histogram = talib.MACD(close, fast, slow, signal)[2] / close
        ours = series(f"macd({fast},{slow},{signal})", bars)
        np.testing.assert_allclose(ours[SEEDED:], histogram[SEEDED:], atol=2 * TAIL)
        assert histogram[SEEDED:].std() > 50 * TAIL  # the comparison means something


# -- pandas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bars", MARKETS[1:3], ids=lambda bars: bars.symbol)
@pytest.mark.parametrize("n", [2, 7, 64, 100])
def test_windowed_features_equal_pandas(bars, n):
    close, volume = pd.Series(np.array(bars.close)), pd.Series(np.array(bars.volume))
    returns = np.log(close / close.shift())
    expected = {
        f"log_return({n})": np.log(close / close.shift(n)),
        f"zscore({n})": (close - close.rolling(n).mean()) / close.rolling(n).std(),
        f"volatility({n})": np.sqrt((returns**2).rolling(n).mean()),
        f"volume_zscore({n})": (volume - volume.rolling(n).mean()) / volume.rolling(n).std(),
    }
    for name, values in expected.items():
        known = np.isfinite(values.to_numpy())
        ours = series(name, bars)
        assert known[Feature.of(name).bars_back :].mean() > 0.97  # two closes in a row are equal at times
        np.testing.assert_allclose(ours[known], values[known], rtol=1e-6, atol=1e-9, err_msg=name)


def test_an_exponential_mean_is_pandas_own_over_its_window():
    values = walk(3, 600).close
    for alpha in (1.0, 0.5, 2 / 21, 1 / 14):
        length = exponential_length(alpha)
        ours = exponential_mean(values, alpha)
        for row in (length - 1, 300, 599):
            window = pd.Series(values[row - length + 1 : row + 1])
            assert ours[row] == pytest.approx(window.ewm(alpha=alpha, adjust=True).mean().iloc[-1], rel=1e-13)


# -- definitions ----------------------------------------------------------------------------------------------------


def test_calendar_features_turn_once_a_day_and_once_a_week():
    bars = walk(4, 24 * 7, HOUR, first=from_iso("2024-01-01"))  # a Monday
    hours, days = np.arange(168) % 24, np.arange(168) // 24
    np.testing.assert_allclose(series("hour_sin", bars), np.sin(2 * np.pi * hours / 24), atol=1e-12)
    np.testing.assert_allclose(series("hour_cos", bars), np.cos(2 * np.pi * hours / 24), atol=1e-12)
    np.testing.assert_allclose(series("weekday_sin", bars), np.sin(2 * np.pi * days / 7), atol=1e-12)
    np.testing.assert_allclose(series("weekday_cos", bars), np.cos(2 * np.pi * days / 7), atol=1e-12)


def test_bounds():
    up = walk(5, 400)
    ts = up.ts_open
    rising, falling = np.linspace(100, 200, 400), np.linspace(200, 100, 400)
    for close, sign in ((rising, 1.0), (falling, -1.0)):
        bars = Bars.of(SymbolBars("U", 0, ts, ts + MINUTE, close, close, close, close, np.ones(400)))
        assert (series("rsi(14)", bars)[156:] == sign).all()
        assert (np.sign(series("bollinger(20,2)", bars)[19:]) == sign).all()


@pytest.mark.parametrize("name", [name for name in BUILT_IN if not name.startswith(("hour", "weekday"))])
def test_flat_prices_without_volume_give_0(name):
    ts = np.arange(500, dtype=np.int64) * MINUTE
    price = np.full(500, 0.1 + 0.2)
    bars = Bars.of(SymbolBars("F", 0, ts, ts + MINUTE, price, price, price, price, np.zeros(500)))
    np.testing.assert_allclose(series(name, bars), 0.0, atol=1e-15)


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_a_value_does_not_depend_on_where_the_bars_begin_bit_for_bit(name):
    bars = walk(6, 1_000)
    feature = Feature.of(name)
    whole = feature.compute(bars)
    for begin in (1, 2, 3, 137, 500):
        part = feature.compute(bars[begin:])
        assert np.array_equal(part[feature.bars_back :], whole[begin + feature.bars_back :])


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_the_look_back_is_as_short_as_it_can_be(name):
    """The oldest bar within it still matters: one bar less would be wrong."""
    feature = Feature.of(name)
    if not feature.bars_back:
        return
    bars, row = walk(7, 600), 500
    old = row - feature.bars_back
    changed = {column: np.array(getattr(bars, column)) for column in ("open", "high", "low", "close", "volume")}
    for values in changed.values():
        values[old] *= 1.7
    other = Bars.of(SymbolBars("W", 0, bars.ts_open, bars.ts_close, **changed))
    one, two = feature.compute(bars), feature.compute(other)
    assert one[row] != two[row]
    assert np.array_equal(one[row + 1 + feature.bars_back :], two[row + 1 + feature.bars_back :])


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_a_missing_bar_counts_as_one_at_the_last_price_without_volume(name):
    bars = walk(8, 600)
    gaps, stands = {}, {}
    for column in ("open", "high", "low", "close", "volume"):
        gaps[column] = np.array(getattr(bars, column))
        stands[column] = gaps[column].copy()
        gaps[column][400:410] = np.nan
        stands[column][400:410] = 0.0 if column == "volume" else bars.close[399]
    times = (bars.ts_open, bars.ts_close)
    missing = Recipe.of([name]).compute(Bars.of(SymbolBars("W", 0, *times, **gaps)))
    standing = Recipe.of([name]).compute(Bars.of(SymbolBars("W", 0, *times, **stands)))
    assert np.isfinite(missing).all()
    assert np.array_equal(missing, standing)


# -- sliding windows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 100, 255])
def test_sliding_windows_equal_the_window_by_itself(length):
    values = np.random.default_rng(9).normal(1e6, 1.0, 400)
    windows = np.lib.stride_tricks.sliding_window_view(values, length)
    mean, squares = sliding_moments(values, length)
    np.testing.assert_allclose(sliding_sum(values, length)[length - 1 :], windows.sum(axis=1), rtol=1e-14)
    np.testing.assert_allclose(mean[length - 1 :], windows.mean(axis=1), rtol=1e-14)
    np.testing.assert_allclose(squares[length - 1 :], windows.var(axis=1) * length, rtol=1e-6, atol=1e-12)


def test_an_outlier_leaves_nothing_behind():
    values = np.ones(200)
    values[50] = 1e18
    assert (sliding_mean(values, 20)[70:] == 1.0).all()
    assert (sliding_moments(values, 20)[1][70:] == 0.0).all()
