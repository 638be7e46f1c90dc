"""Several symbols on one clock, for a portfolio."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from env.bars import PRICES, SymbolBars
from env.features import Recipe
from env.market_data import MarketData
from env.scaler import Scaler

DAY = 86_400_000_000
FEATURES = ("log_close", "zscore(5)", "log_volume", "hour_cos")


def bars_of(symbol: str, rows: np.ndarray, seed: int) -> SymbolBars:
    """Daily bars on the days ``rows``, of a walk over 60 days."""
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.02, 60)))[rows]
    ts = rows.astype(np.int64) * DAY
    funding = rng.normal(0.0, 1e-4, 60)[rows]
    volume = rng.uniform(1.0, 9.0, 60)[rows]
    return SymbolBars(symbol, 0, ts, ts + DAY, close * 1.001, close * 1.01, close / 1.01, close, volume, funding)


@pytest.fixture
def three() -> list[SymbolBars]:
    """Every day; from day 7 on, without every fifth; from day 4 to 50."""
    days = np.arange(60)
    return [
        bars_of("ALL", days, 1),
        bars_of("SOME", days[(days >= 7) & (days % 5 > 0)], 2),
        bars_of("PART", days[4:50], 3),
    ]


def test_the_clock_is_the_union_of_the_closing_times(three):
    clock = MarketData(three, FEATURES).on_common_clock()
    assert clock.symbols == ("ALL", "SOME", "PART")
    assert clock.ts_close.tolist() == [(day + 1) * DAY for day in range(60)]
    assert clock.ts_open.tolist() == [day * DAY for day in range(60)]
    for name in ("open", "high", "low", "mark", "volume", "funding", "tradable"):
        assert getattr(clock, name).shape == (3, 60)
    assert clock.features.shape == (60, 12)
    assert clock.feature_names[:5] == (
        "ALL log_close",
        "ALL zscore(5)",
        "ALL log_volume",
        "ALL hour_cos",
        "SOME log_close",
    )


def test_a_symbol_without_a_bar_is_stale_at_its_last_price(three):
    clock = MarketData(three, FEATURES).on_common_clock()
    assert clock.tradable[0].all()
    stale = np.flatnonzero(~clock.tradable[1])
    assert stale.tolist() == [*range(7), *range(10, 60, 5)]
    for row in range(10, 60, 5):
        for name in ("open", "high", "low", "mark"):
            assert getattr(clock, name)[1, row] == clock.mark[1, row - 1] == clock.mark[1, row]
        assert clock.volume[1, row] == clock.funding[1, row] == 0.0
    assert (clock.mark[2, 50:] == clock.mark[2, 49]).all()


def test_a_bar_that_is_there_is_as_it_was(three):
    data = MarketData(three, FEATURES)
    clock = data.on_common_clock()
    for number, bars in enumerate(three):
        rows = bars.ts_open // DAY
        for name in ("open", "high", "low", "volume", "funding"):
            assert np.array_equal(getattr(clock, name)[number, rows], getattr(bars, name))
        assert np.array_equal(clock.mark[number, rows], bars.close)


def test_it_starts_where_every_symbol_has_had_a_bar_with_prices(three):
    data = MarketData(three, FEATURES)
    assert data.on_common_clock().first_valid == 7
    three[0].close[:12] = np.nan
    assert MarketData(three, FEATURES).on_common_clock().first_valid == 12
    assert data.on_common_clock().lookback == data.lookback == 4


def test_features_count_a_stale_time_as_a_missing_bar(three):
    """They are those of the same series with NaN rows in the holes."""
    clock = MarketData(three, FEATURES).on_common_clock()
    some = three[1]
    rows = some.ts_open // DAY
    columns = {name: np.full(60, np.nan) for name in (*PRICES, "volume", "funding")}
    for name, values in columns.items():
        values[rows] = getattr(some, name)
    ts = np.arange(60, dtype=np.int64) * DAY
    holed = MarketData([replace(some, ts_open=ts, ts_close=ts + DAY, **columns)], FEATURES)
    assert np.array_equal(clock.features[:, 4:8], holed.features)
    assert (clock.features[10::5, 4] == 0.0).all()


def test_symbols_that_have_every_bar_keep_their_features(three):
    data = MarketData(three, FEATURES)
    assert np.array_equal(data.on_common_clock().features[:, :4], data.features[:60])


def test_bars_after_a_time_change_nothing_up_to_it(three):
    clock = MarketData(three, FEATURES).on_common_clock()
    cut = [bars.cut(0, int(np.searchsorted(bars.ts_close, 33 * DAY, side="right"))) for bars in three]
    early = MarketData(cut, FEATURES).on_common_clock()
    assert len(early.ts_close) == 33
    assert np.array_equal(early.features, clock.features[:33])
    assert np.array_equal(early.mark, clock.mark[:, :33])


def test_one_scaler_serves_all_symbols(three):
    data = MarketData(three, FEATURES)
    clock, scaler = data.on_common_clock(), Scaler.fit(data)
    scaled = clock.scaled(scaler, 10.0)
    for number in range(3):
        block = slice(4 * number, 4 * number + 4)
        assert np.array_equal(scaled[:, block], np.clip(scaler.apply(clock.features[:, block]), -10.0, 10.0))
    assert clock.scaled(scaler, 10.0) is scaled
    assert np.array_equal(clock.scaled(None, 1e9), clock.features)


def test_the_clock_is_made_once_and_travels_with_the_data(three):
    data = MarketData(three, FEATURES, clock_base_row=500)
    clock = data.on_common_clock()
    assert data.on_common_clock() is clock
    assert clock.base_row == 500
    again = pickle.loads(pickle.dumps(data))  # noqa: S301 - our own bytes
    assert np.array_equal(again.on_common_clock().features, clock.features)
    assert again.recipe == Recipe.of(FEATURES)


def test_symbols_whose_bars_are_off_by_some_minutes_share_no_time():
    early = bars_of("A", np.arange(10), 1)
    late = replace(
        bars_of("B", np.arange(10), 2), ts_open=early.ts_open + 60_000_000, ts_close=early.ts_close + 60_000_000
    )
    clock = MarketData([early, late]).on_common_clock()
    assert len(clock.ts_close) == 20
    assert clock.tradable.sum(axis=0).tolist() == [1] * 20
    assert clock.lookback == 1


def test_on_a_clock_with_several_times_an_interval_coarse_features_look_back_over_more_rows():
    days = np.arange(60)
    early, late = bars_of("A", days, 1), bars_of("B", days, 2)
    late = replace(late, ts_open=late.ts_open + DAY // 3, ts_close=late.ts_close + DAY // 3)
    data = MarketData([early, late], ["1w:log_close"])
    clock = data.on_common_clock()
    assert (data.lookback, clock.lookback) == (3 * 7 - 2, 3 * 14 - 2)
    weekly = data.features[59, 0]  # at the last bar of A
    assert (clock.features[clock.first_valid + clock.lookback :] != 0.0).all()
    assert clock.features[-2, 0] == weekly
