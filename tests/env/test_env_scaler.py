"""The scaler: fitted on training data alone, kept with the policy."""

from __future__ import annotations

import numpy as np
import pytest

from env.market_data import MarketData
from env.scaler import Scaler
from schemas.errors import InputError


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


RECIPE = ["log_close", "rsi(5)", "volatility(10)", "hour_cos", "zscore(10)"]


def test_only_features_that_want_it_are_scaled(make_bars, prices_of):
    data = MarketData([make_bars(prices_of(1, 300))], RECIPE)
    scaler = Scaler.fit(data)
    assert (scaler.mean != 0.0).tolist() == [True, False, True, False, False]
    assert (scaler.std != 1.0).tolist() == [True, False, True, False, False]
    rows = data.features[data.lookback :]
    scaled = scaler.apply(rows)
    assert np.array_equal(scaled[:, [1, 3, 4]], rows[:, [1, 3, 4]])
    np.testing.assert_allclose(scaled[:, [0, 2]].std(axis=0), 1.0, rtol=1e-3)


def test_rows_before_the_look_back_do_not_count(make_bars, prices_of):
    """Their zeros say nothing of the market."""
    prices = prices_of(1, 300)
    data = MarketData([make_bars(prices), make_bars(prices, "LATE", base_row=5)], ["volatility(50)"])
    known = data.features[np.r_[50:300, 350:600], 0]
    scaler = Scaler.fit(data)
    assert scaler.mean[0] == pytest.approx(known.mean(), rel=1e-5)
    assert scaler.std[0] == pytest.approx(known.std(), rel=1e-4)


def test_a_constant_column_is_centred_and_not_divided_by_0(make_bars):
    data = MarketData([make_bars([(5, 5, 5, 5)] * 60)], ["log_close", "atr(2)", "log_volume"])
    scaler = Scaler.fit(data)
    assert scaler.std.tolist() == [1.0, 1.0, 1.0]
    assert np.isfinite(scaler.apply(data.features)).all()


def test_a_scaler_of_other_features_is_refused_by_the_data(make_bars, prices_of):
    bars = make_bars(prices_of(1, 300))
    scaler = Scaler.fit(MarketData([bars], ["log_close", "rsi(5)"]))
    other = MarketData([bars], ["log_close", "rsi(6)"])
    for data in (other, other.on_common_clock()):
        with pytest.raises(InputError, match=r"expected features 'v1 log_close rsi\(5\)'.*got 'v1 log_close rsi\(6\)'"):
            data.scaled(scaler, 10.0)


def test_features_are_clipped_and_left_as_they_are_without_a_scaler(make_bars, prices_of):
    data = MarketData([make_bars(prices_of(1, 300))], ["zscore(20)"])
    assert np.array_equal(data.scaled(None, 1e9), data.features)
    assert np.abs(data.scaled(None, 0.5)).max() == 0.5
    assert data.scaled(None, 0.5) is data.scaled(None, 0.5)
