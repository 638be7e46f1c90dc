from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from env.bars import SymbolBars
from env.market_data import MarketData
from schemas.errors import InputError

DAY = 86_400_000_000


def frame(rows: int = 4, **changes) -> pd.DataFrame:
    columns = {
        "Open": [100.0, 102.0, 103.0, 104.0][:rows],
        "High": [101.0, 104.0, 106.0, 105.0][:rows],
        "Low": [99.0, 101.0, 102.0, 98.0][:rows],
        "Close": [100.0, 103.0, 105.0, 99.0][:rows],
        "Volume": [10, 20, 0, 40][:rows],
    }
    columns.update(changes)
    return pd.DataFrame(columns, index=pd.date_range("2024-01-02", periods=rows, freq="D"))


def test_features_are_log_changes_over_the_previous_close():
    data = MarketData.from_frame(frame())
    assert data.features.shape == (4, 5)
    assert data.features.dtype == np.float32
    assert data.features[0].tolist() == [0.0] * 5
    expected = [np.log(102 / 100), np.log(104 / 100), np.log(101 / 100), np.log(103 / 100), np.log(20 / 10)]
    np.testing.assert_allclose(data.features[1], expected, rtol=1e-6)


def test_bar_without_volume_has_volume_feature_zero_and_the_next_compares_with_the_last_traded():
    data = MarketData.from_frame(frame())
    assert data.features[2, 4] == 0.0
    assert data.features[3, 4] == pytest.approx(np.log(40 / 20))


def test_data_without_any_volume_is_fine():
    assert (MarketData.from_frame(frame(Volume=[0, np.nan, 0, 0])).features[:, 4] == 0.0).all()


def test_symbols_do_not_leak_into_each_other(random_data):
    assert random_data.symbols == ("AAA", "BBB")
    assert random_data.offsets.tolist() == [0, 400, 700]
    assert random_data.base_rows.tolist() == [1_000, 50]
    assert (random_data.features[400] == 0.0).all()


def test_frame_times_are_utc_microseconds_of_the_open():
    naive = MarketData.from_frame(frame())
    start = int(pd.Timestamp("2024-01-02", tz="UTC").value // 1_000)
    assert naive.ts_open[0] == start
    assert naive.ts_close[0] == start + DAY  # a bar is known at its close, not at its open
    local = frame()
    local.index = local.index.tz_localize("America/New_York")
    assert MarketData.from_frame(local).ts_open[0] == start + 5 * 3_600_000_000


def test_frame_with_weekends_closes_each_bar_after_one_interval():
    weekdays = frame()
    weekdays.index = pd.DatetimeIndex(["2024-01-04", "2024-01-05", "2024-01-08", "2024-01-09"])
    data = MarketData.from_frame(weekdays)
    assert (data.ts_close - data.ts_open).tolist() == [DAY] * 4


@pytest.mark.parametrize("zone", ["America/New_York", "Europe/Berlin", "Asia/Tokyo", "UTC"])
def test_days_of_a_zone_end_at_its_midnight_also_when_clocks_change(zone):
    index = pd.date_range("2024-01-01", "2024-12-31", freq="B", tz=zone)
    price = np.ones(len(index))
    columns = dict.fromkeys(("open", "high", "low", "close", "volume"), price)
    data = MarketData.from_frame(pd.DataFrame(columns, index=index), features=["log_close", "1w:log_close"])
    assert data.interval == DAY
    assert data.bars_per_year == 252.0
    hours = (data.ts_close - data.ts_open) // 3_600_000_000
    assert set(hours.tolist()) == {24}  # clocks change on Sundays
    daily = pd.date_range("2024-01-01", "2024-12-31", freq="D", tz=zone)
    columns = dict.fromkeys(columns, np.ones(len(daily)))
    data = MarketData.from_frame(pd.DataFrame(columns, index=daily))
    assert data.ts_close[:-1].tolist() == data.ts_open[1:].tolist()
    assert set(((data.ts_close - data.ts_open) // 3_600_000_000).tolist()) == (
        {24} if zone in ("Asia/Tokyo", "UTC") else {23, 24, 25}
    )


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (
            frame().drop(columns=["Low", "Volume"]),
            "expected columns open, high, low, close, volume, got .*add low, volume",
        ),
        (frame().reset_index(drop=True), "expected a DatetimeIndex of opening times, got RangeIndex"),
        (frame(1), "expected at least two bars, got 1"),
        (frame(Close=[100.0, -1.0, 105.0, 99.0]), "'AAPL', row 1, column 'close': expected a price above 0.*got -1.0"),
        (frame(Close=[100.0, np.inf, 105.0, 99.0]), "'AAPL', row 1, column 'close': expected a price above 0.*got inf"),
        (
            frame(High=[101.0, 104.0, 100.0, 105.0]),
            "'AAPL', row 2, column 'high': expected a price not below low.*100.0",
        ),
        (frame(Volume=[1, -2, 3, 4]), "'AAPL', row 1, column 'volume': expected a number not below 0.*got -2.0"),
        (frame(Open=[1.0, "2.5", "c", 4.0]), "'AAPL', row 2, column 'open': expected a number or NaN, got 'c'"),
        (frame().iloc[::-1], "'AAPL', row 1, column 'ts_open': expected a time after the previous bar's"),
        (frame().set_index(pd.DatetimeIndex(["2024-01-02"] * 4)), "row 1, column 'ts_open': expected a time after"),
        (frame().set_index(pd.DatetimeIndex(["2024-01-02", None, "2024-01-04", "2024-01-05"])), "row 1, index.*NaT"),
    ],
)
def test_bad_frame_is_refused_with_its_row_and_value(bad, words):
    with pytest.raises(InputError, match=words):
        MarketData.from_frame(bad, symbol="AAPL")


def test_row_numbers_in_messages_are_absolute(make_bars):
    with pytest.raises(InputError, match="row 1001, column 'low'"):
        make_bars([(1, 1, 1, 1), (1, 1, 0, 1)], base_row=1_000)


def test_columns_of_different_length_are_refused():
    ones = np.ones(3)
    with pytest.raises(InputError, match="'A': expected columns of one length"):
        SymbolBars("A", 0, np.arange(3), np.arange(3) + 1, ones, ones, ones, ones, np.ones(2))


def test_no_bars_and_no_symbols_are_refused(make_bars):
    with pytest.raises(InputError, match="expected at least one bar"):
        make_bars(np.empty((0, 4)))
    with pytest.raises(InputError, match="expected one or more different symbols"):
        MarketData([])
    bars = make_bars([(1, 1, 1, 1)] * 3)
    with pytest.raises(InputError, match="give each symbol once"):
        MarketData([bars, bars])


def test_unknown_symbol_names_the_known_ones(random_data):
    with pytest.raises(InputError, match="symbol 'CCC': expected one of AAA, BBB"):
        random_data.number("CCC")


def test_market_data_survives_pickling(random_data):
    again = pickle.loads(pickle.dumps(random_data))  # noqa: S301 - our own bytes
    assert np.array_equal(again.features, random_data.features)
    assert again.symbols == random_data.symbols


# -- what an environment reads ---------------------------------------------------------------------------------------


def test_a_missing_bar_stands_at_the_last_price_with_no_volume():
    gap = frame(Close=[100.0, np.nan, 105.0, 99.0], Open=[100.0, 102.0, 103.0, 104.0])
    data = MarketData.from_frame(gap)
    assert data.tradable.tolist() == [True, False, True, True]
    for name in ("open", "high", "low", "mark"):
        assert getattr(data, name)[1] == 100.0
    assert data.volume.tolist() == [10.0, 0.0, 0.0, 40.0]


def test_unknown_volume_is_0():
    assert MarketData.from_frame(frame(Volume=[np.nan, 1, np.nan, 2])).volume.tolist() == [0.0, 1.0, 0.0, 2.0]


def test_funding_is_read_where_there_is_any_and_0_where_none_is_due():
    assert MarketData.from_frame(frame()).funding.tolist() == [0.0] * 4
    data = MarketData.from_frame(frame(Funding_Rate=[0.0, np.nan, 0.0001, -0.0002]))
    assert data.funding.tolist() == [0.0, 0.0, 0.0001, -0.0002]
    gap = frame(Funding=[0.0, 0.0001, 0.0001, 0.0001], Close=[100.0, 103.0, np.nan, 99.0])
    assert MarketData.from_frame(gap).funding.tolist() == [0.0, 0.0001, 0.0, 0.0001]
    with pytest.raises(InputError, match="row 2, column 'funding': expected a number, or NaN"):
        MarketData.from_frame(frame(funding=[0.0, 0.0, np.inf, 0.0]))


def test_rows_of_a_symbol_are_its_bars(random_data):
    bars = random_data.bars(1)
    assert (bars.symbol, len(bars), bars.interval) == ("BBB", 300, DAY)
    assert np.array_equal(bars.close, random_data.mark[400:])
    with pytest.raises(ValueError, match="read-only"):
        bars.close[0] = 1.0


# -- one interval ----------------------------------------------------------------------------------------------------


def at_times(ts_open: list[int], length: int | list[int]) -> SymbolBars:
    ones = np.ones(len(ts_open))
    ts = np.array(ts_open, dtype=np.int64)
    return SymbolBars("T", 0, ts, ts + np.array(length), ones, ones, ones, ones, ones)


def test_gaps_between_bars_are_fine_and_overlaps_are_refused():
    assert at_times([0, DAY, 5 * DAY], DAY).interval == DAY
    with pytest.raises(InputError, match="row 2, column 'ts_open': expected a time at or after the previous bar's"):
        at_times([0, DAY, DAY + DAY // 2], DAY)


def test_bars_of_different_length_are_refused_but_not_days_of_23_hours():
    hour = DAY // 24
    at_times([0, DAY, 2 * DAY - hour, 3 * DAY], [DAY, DAY - hour, DAY + hour, DAY])
    with pytest.raises(InputError, match="row 1, column 'ts_close': expected bars of one interval, 86400000000 µs"):
        at_times([0, DAY, DAY + hour, 3 * DAY], [DAY, hour, DAY, DAY])


def test_symbols_of_different_intervals_are_refused(make_bars):
    hourly = at_times([0, DAY // 24, DAY // 12], DAY // 24)
    with pytest.raises(InputError, match="expected bars of one interval, got CASE 86400 s, T 3600 s"):
        MarketData([make_bars([(1, 1, 1, 1)] * 3), hourly])


# -- several symbols in a frame --------------------------------------------------------------------------------------


def long_frame() -> pd.DataFrame:
    return pd.concat([frame().assign(Symbol="AAA"), frame(3).assign(Symbol="BBB")])


@pytest.mark.parametrize(
    "given",
    [
        {"AAA": frame(), "BBB": frame(3)},
        long_frame(),
        long_frame().rename(columns={"Symbol": "ticker"}),
        long_frame().set_index("Symbol", append=True),
        long_frame().set_index("Symbol", append=True).swaplevel(),
        pd.concat([frame(3).assign(Symbol="BBB"), frame().assign(Symbol="AAA")]).sort_values("Symbol"),
    ],
    ids=["mapping", "column", "ticker", "level", "first level", "sorted"],
)
def test_a_frame_of_several_symbols_is_told_apart(given):
    data = MarketData.from_frame(given)
    assert data.symbols == ("AAA", "BBB")
    assert data.offsets.tolist() == [0, 4, 7]
    assert data.mark.tolist() == [100.0, 103.0, 105.0, 99.0, 100.0, 103.0, 105.0]


def test_a_bad_row_of_one_of_several_symbols_is_named():
    bad = long_frame()
    bad.iloc[5, 3] = -1.0
    with pytest.raises(InputError, match="'BBB', row 1, column 'close'"):
        MarketData.from_frame(bad)
    with pytest.raises(InputError, match="frame 'BBB': expected at least two bars, got 1"):
        MarketData.from_frame({"AAA": frame(), "BBB": frame(1)})


def test_a_row_without_a_symbol_is_refused():
    bad = long_frame()
    bad["Symbol"] = bad["Symbol"].where(np.arange(7) != 2)
    with pytest.raises(InputError, match="frame, row 2, column 'Symbol': expected a symbol, got none"):
        MarketData.from_frame(bad)


def test_features_may_be_chosen():
    data = MarketData.from_frame(frame(), features=["hour_cos", "log_close"])
    assert data.feature_names == ("hour_cos", "log_close")
    assert data.features[:, 0].tolist() == [1.0] * 4


# -- bars per year ---------------------------------------------------------------------------------------------------


def per_year(index: pd.DatetimeIndex) -> float:
    price = np.full(len(index), 1.0)
    columns = dict.fromkeys(("open", "high", "low", "close", "volume"), price)
    return MarketData.from_frame(pd.DataFrame(columns, index=index)).bars_per_year


def sessions(days: str, start: str, minutes: int, freq: str = "1min") -> pd.DatetimeIndex:
    opens = pd.date_range("2024-01-01", "2024-02-12", freq=days) + pd.Timedelta(start)
    times = [pd.date_range(at, periods=minutes // int(freq.removesuffix("min")), freq=freq) for at in opens]
    return times[0].append(times[1:])


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (pd.date_range("2024-01-01", periods=20_000, freq="1min"), 525_600.0),  # case 14: crypto
        (pd.date_range("2024-01-01", periods=3 * 1440, freq="1min"), 525_600.0),  # no Saturday, but round the clock
        (pd.date_range("2024-01-01 07:30", periods=500, freq="4h"), 2_190.0),
        (pd.date_range("2024-01-01", periods=100, freq="D"), 365.0),
        (pd.date_range("2024-01-01", periods=100, freq="B"), 252.0),
        (pd.date_range("2024-01-01", periods=3, freq="B"), 252.0),
        (pd.date_range("2024-01-01", periods=100, freq="W-MON"), 365 / 7),
        (sessions("B", "14h30min", 390), 390 * 252.0),
        (sessions("B", "14h30min", 390, "30min"), 13 * 252.0),
        (sessions("B", "00h00min", 1440), 1440 * 252.0),  # currencies
        (sessions("D", "08h00min", 600), 600 * 365.0),
        (sessions("B", "14h30min", 390)[380:790], 390 * 252.0),  # the end of a day, a whole one, and a beginning
    ],
)
def test_bars_per_year_come_from_the_times(index, expected):
    assert per_year(index) == pytest.approx(expected)


def test_bars_per_year_of_real_stocks_with_holidays_and_half_days_missing():
    index = pd.date_range("2020-01-01", periods=500, freq="B")
    assert per_year(index.delete([3, 17, 18, 200, 333])) == 252.0
    stray = index.append(pd.DatetimeIndex(["2020-02-01"])).sort_values()  # one bar on a Saturday
    assert per_year(stray) == 252.0
