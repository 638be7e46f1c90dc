"""Coarser bars: what they hold, and from when on they are known."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest

from env.bars import Bars, SymbolBars
from env.coarser import Coarser, fine_lookback
from env.features import Feature
from schemas.times import DAY, HOUR, MINUTE, from_iso

MIDNIGHT = from_iso("2024-03-04")  # a Monday


def minutes(rows: int, first: int = MIDNIGHT, seed: int = 1, keep: np.ndarray | None = None) -> SymbolBars:
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, rows)))
    opened = close * np.exp(rng.normal(0.0, 0.01, rows))
    high, low = np.maximum(opened, close) * 1.01, np.minimum(opened, close) / 1.01
    ts = first + np.arange(rows, dtype=np.int64) * MINUTE
    kept = np.ones(rows, dtype=bool) if keep is None else keep
    columns = (opened, high, low, close, rng.uniform(1, 9, rows), rng.normal(0, 1e-4, rows))
    return SymbolBars("M", 0, ts[kept], ts[kept] + MINUTE, *(column[kept] for column in columns))


def test_a_bar_closing_at_half_past_is_invisible_three_minutes_before():
    """Case 15."""
    bars = Bars.of(minutes(60))
    coarser = Coarser.of(bars, 5 * MINUTE)
    closing = {int((ts - MIDNIGHT) // MINUTE): row for row, ts in enumerate(bars.ts_close)}
    newest = {
        minute: (coarser.bars.ts_close[coarser.known[row]] - MIDNIGHT) // MINUTE for minute, row in closing.items()
    }
    assert newest[27] == newest[28] == newest[29] == 25
    assert newest[30] == newest[34] == 30
    assert coarser.known[:4].tolist() == [-1] * 4
    assert newest[5] == 5


def test_coarse_bars_are_pandas_own():
    bars = Bars.of(minutes(24 * 60 * 3))
    index = pd.to_datetime(bars.ts_open, unit="us")
    frame = pd.DataFrame({name: np.array(getattr(bars, name)) for name in Bars.columns()}, index=index)
    how = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum", "funding": "sum"}
    for interval, rule in ((5 * MINUTE, "5min"), (HOUR, "1h"), (DAY, "1D")):
        expected = frame.resample(rule).agg(how)
        ours = Coarser.of(bars, interval).bars
        assert ours.ts_open.tolist() == expected.index.as_unit("us").asi8.tolist()
        for name in how:
            np.testing.assert_allclose(getattr(ours, name), expected[name], rtol=1e-12, atol=1e-18, err_msg=name)


def test_the_period_under_way_is_never_a_bar():
    for rows in range(1, 13):
        bars = Bars.of(minutes(rows))
        coarser = Coarser.of(bars, 5 * MINUTE)
        assert len(coarser.bars) == rows // 5
        assert coarser.known.max() == rows // 5 - 1


def test_a_period_that_the_data_begins_within_is_no_bar():
    bars = Bars.of(minutes(20, first=MIDNIGHT + 2 * MINUTE))
    coarser = Coarser.of(bars, 5 * MINUTE)
    assert (coarser.bars.ts_open[0] - MIDNIGHT) // MINUTE == 5


def test_a_period_with_a_gap_closes_with_the_first_bar_after_it():
    keep = np.ones(30, dtype=bool)
    keep[8:17] = False  # bars closing at minutes 9 … 17 are not there
    bars = Bars.of(minutes(30, keep=keep))
    coarser = Coarser.of(bars, 5 * MINUTE)
    assert [(ts - MIDNIGHT) // MINUTE for ts in coarser.bars.ts_close] == [5, 10, 20, 25, 30]
    row = int(np.flatnonzero(bars.ts_close == MIDNIGHT + 18 * MINUTE)[0])
    assert coarser.bars.ts_close[coarser.known[row - 1]] == MIDNIGHT + 5 * MINUTE
    assert coarser.bars.ts_close[coarser.known[row]] == MIDNIGHT + 10 * MINUTE
    assert coarser.bars.close[1] == bars.close[7]  # the last trade before 00:10


def test_missing_fine_bars_add_nothing_and_a_period_of_them_stands_at_the_last_price():
    raw = minutes(20)
    for name in ("open", "high", "low", "close"):
        getattr(raw, name)[[5, 9]] = np.nan
        getattr(raw, name)[10:15] = np.nan
    bars = Bars.of(raw)
    coarse = Coarser.of(bars, 5 * MINUTE).bars
    assert coarse.tradable.tolist() == [True, True, False, True]
    assert (coarse.open[1], coarse.close[1]) == (raw.open[6], raw.close[8])
    assert (coarse.high[1], coarse.low[1]) == (raw.high[6:9].max(), raw.low[6:9].min())
    assert {float(getattr(coarse, name)[2]) for name in ("open", "high", "low", "close")} == {raw.close[8]}
    assert coarse.volume[2] == 0.0


@pytest.mark.parametrize("level", [0.5, 2.0])
def test_the_last_price_of_the_period_before_is_no_high_or_low_of_one_that_begins_with_a_missing_bar(level):
    raw = minutes(10)
    for name in ("open", "high", "low", "close"):
        getattr(raw, name)[:5] *= level
        getattr(raw, name)[5] = np.nan
    coarse = Coarser.of(Bars.of(raw), 5 * MINUTE).bars
    assert (coarse.high[1], coarse.low[1]) == (raw.high[6:].max(), raw.low[6:].min())


def test_weeks_begin_on_monday():
    ts = from_iso("2024-03-01") + np.arange(30, dtype=np.int64) * DAY  # a Friday
    price = np.arange(1.0, 31.0)
    bars = Bars.of(SymbolBars("D", 0, ts, ts + DAY, price, price, price, price, price))
    weeks = Coarser.of(bars, 7 * DAY).bars
    assert weeks.ts_open[0] == MIDNIGHT
    assert weeks.close.tolist() == [10.0, 17.0, 24.0]


def test_bars_off_the_clock_belong_to_the_period_in_which_they_close():
    ts = MIDNIGHT + 30_000_000 + np.arange(20, dtype=np.int64) * MINUTE
    price = np.arange(1.0, 21.0)
    bars = Bars.of(SymbolBars("O", 0, ts, ts + MINUTE, price, price, price, price, price))
    coarse = Coarser.of(bars, 5 * MINUTE).bars
    # The first period begins before the data; the bar closing at 00:05:30 is not in the one that ends at 00:05.
    assert coarse.open.tolist() == [5.0, 10.0, 15.0]
    assert coarse.close.tolist() == [9.0, 14.0, 19.0]


def test_a_coarse_feature_is_the_feature_of_the_coarse_bars_from_their_close_on():
    bars = Bars.of(minutes(24 * 60))
    coarser = Coarser.of(bars, HOUR)
    hourly = Feature.of("log_return(2)").compute(coarser.bars)
    ours = Feature.of("1h:log_return(2)").compute(bars)
    for row, ts in enumerate(bars.ts_close):
        closed = int(ts - MIDNIGHT) // HOUR
        assert ours[row] == (hourly[closed - 1] if closed else 0.0)
    assert len(np.unique(ours)) == 23


@pytest.mark.parametrize("lookback", [0, 1, 5])
@pytest.mark.parametrize("phase", range(5))
def test_the_look_back_in_fine_bars_is_enough_and_no_more(lookback, phase):
    """Over all phases of the clock, one bar less is too few for one of them."""
    raw = minutes(200, first=MIDNIGHT + phase * MINUTE)
    feature = Feature("oldest", partial(oldest_open, lookback), (), 5 * MINUTE, lookback, False, "")
    fine = fine_lookback(lookback, 5)
    assert feature.lookback(MINUTE) == fine
    whole = feature.compute(Bars.of(raw))
    short = []
    for begin in range(20):
        part = feature.compute(Bars.of(raw.cut(begin, 200)))
        assert np.array_equal(part[fine:], whole[begin + fine :])
        short.append(part[fine - 1] == whole[begin + fine - 1])
    assert not all(short)


def oldest_open(lookback: int, bars: Bars) -> np.ndarray:
    return np.concatenate([np.zeros(lookback), bars.open[: len(bars) - lookback]])


@pytest.mark.parametrize("seed", range(5))
def test_the_look_back_is_enough_with_gaps_too(seed):
    rng = np.random.default_rng(seed)
    raw = minutes(3_000, keep=rng.random(3_000) < 0.4, seed=seed)
    feature = Feature.of("15m:zscore(4)")
    fine = feature.lookback(MINUTE)
    whole = feature.compute(Bars.of(raw))
    for begin in range(1, 200, 7):
        part = feature.compute(Bars.of(raw.cut(begin, len(raw))))
        assert np.array_equal(part[fine:], whole[begin + fine :])
