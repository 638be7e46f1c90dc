from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from env.bars import SymbolBars
from env.market_data import MarketData
from env.scaler import Scaler
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


def test_scaler_knows_its_training_data_alone():
    scaler = Scaler.fit_features(np.array([[1.0], [2.0], [3.0]]))
    assert scaler.mean.tolist() == [2.0]
    assert scaler.apply(np.array([[100.0]], dtype=np.float32))[0, 0] == pytest.approx(98.0 / np.sqrt(2 / 3))


def test_scaler_is_fitted_on_one_stretch_and_applied_to_another(make_bars, prices_of):
    train = MarketData([make_bars(prices_of(1, 300, 0.01))])
    test = MarketData([make_bars(prices_of(2, 300, 0.05))])
    scaler = Scaler.fit(train)
    np.testing.assert_allclose(scaler.apply(train.features[1:]).std(axis=0)[:4], 1.0, rtol=1e-3)
    assert (scaler.apply(test.features[1:]).std(axis=0)[:4] > 3.0).all()
    assert Scaler.fit(train).version == scaler.version != Scaler.fit(test).version


def test_scaler_does_not_count_missing_bars(make_bars, prices_of):
    prices = prices_of(1, 50)
    gaps = prices.copy()
    gaps[40:] = np.nan
    assert Scaler.fit(MarketData([make_bars(gaps)])).version == Scaler.fit(MarketData([make_bars(prices[:40])])).version


def test_constant_feature_is_only_centred():
    scaler = Scaler.of([2.0], [0.0])
    assert scaler.apply(np.array([[5.0]], dtype=np.float32)).tolist() == [[3.0]]


def test_scaler_round_trips_and_refuses_other_numbers():
    scaler = Scaler.of([0.1, 0.2], [1.0, 2.0])
    again = Scaler.from_dict(scaler.to_dict())
    assert again.version == scaler.version
    assert again.mean.tolist() == scaler.mean.tolist()
    with pytest.raises(InputError, match="expected version"):
        Scaler.from_dict(scaler.to_dict() | {"mean": [0.1, 0.3]})
    with pytest.raises(InputError, match="expected mean, std, recipe and version"):
        Scaler.from_dict({"mean": [0.1]})
    with pytest.raises(InputError, match="expected finite mean"):
        Scaler.of([float("nan")], [1.0])


def test_scaler_of_other_features_is_refused(random_data):
    with pytest.raises(InputError, match="expected 2 features, got 5"):
        Scaler.identity(2).apply(random_data.features)


def test_environments_share_scaled_features(random_data):
    scaler = Scaler.fit(random_data)
    assert random_data.scaled(scaler, 10.0) is random_data.scaled(scaler, 10.0)
    assert random_data.scaled(Scaler.identity(), 10.0) is not random_data.scaled(scaler, 10.0)
