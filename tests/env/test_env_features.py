"""Features by name, a user's own ones, and recipes: names, look-back, identity."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from functools import partial

import features_of_a_user as mine
import numpy as np
import pytest

from env.bars import Bars, SymbolBars
from env.declaration import feature
from env.features import BUILT_IN, DEFAULT_FEATURES, Feature, Recipe
from env.market_data import MarketData
from env.settings import EnvSettings
from schemas.errors import InputError, SettingsError
from schemas.times import DAY, HOUR, MINUTE


def bars_of(rows: int = 300, seed: int = 1, interval: int = MINUTE) -> SymbolBars:
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, rows)))
    ts = np.arange(rows, dtype=np.int64) * interval
    return SymbolBars("W", 0, ts, ts + interval, close, close * 1.01, close * 0.99, close, rng.uniform(1, 9, rows))


def test_the_default_features_are_those_of_the_settings():
    assert EnvSettings.model_fields["features"].default == DEFAULT_FEATURES
    assert Recipe.of().names == DEFAULT_FEATURES
    assert Recipe.of().lookback(DAY) == 1


@pytest.mark.parametrize(
    ("wanted", "name", "lookback"),
    [
        ("rsi", "rsi(14)", 156),
        ("rsi(14)", "rsi(14)", 156),
        ("bollinger( 20, 2.5 )", "bollinger(20,2.5)", 19),
        ("bollinger(20)", "bollinger(20,2.0)", 19),
        ("macd(5,35)", "macd(5,35,9)", 201 + 51),
        ("hour_sin()", "hour_sin", 0),
        ("1h:log_return(3)", "1h:log_return(3)", (3 + 2) * 60 - 2),
        ("features_of_a_user:gap", "features_of_a_user:gap", 1),
        ("features_of_a_user:range_mean(30)", "features_of_a_user:range_mean(30,1.0)", 29),
        ("5m:features_of_a_user:range_mean(3,2)", "5m:features_of_a_user:range_mean(3,2.0)", 18),
    ],
)
def test_a_name_is_completed_and_tells_its_look_back(wanted, name, lookback):
    found = Feature.of(wanted)
    assert (found.name, found.lookback(MINUTE)) == (name, lookback)
    assert Feature.of(name) == found


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("rsy(14)", "unknown feature 'rsy'; did you mean 'rsi'?"),
        ("nothing_like_it", "unknown feature 'nothing_like_it'; known features: log_open, .*weekday_cos"),
        ("rsi(14", r"feature 'rsi\(14': expected a name such as 'rsi\(14\)'"),
        ("1y:rsi", "feature '1y:rsi': expected a name such as"),
        ("", "feature '': expected a name such as"),
        ("rsi(14,2)", r"feature 'rsi': expected rsi\(n\), got 2 arguments"),
        ("hour_sin(3)", "feature 'hour_sin': expected hour_sin without arguments, got 1 arguments"),
        ("rsi(2.5)", r"feature 'rsi', argument 'n': expected a whole number, got '2.5'; write rsi\(n\)"),
        ("bollinger(20,wide)", "argument 'k': expected a number, got 'wide'"),
        ("bollinger(20,nan)", "feature 'bollinger': expected a number of deviations above 0"),
        ("rsi(1)", r"feature 'rsi': expected a length of 2 or more bars, got \(1,\)"),
        ("log_return(0)", "feature 'log_return': expected a length of 1 or more bars"),
        ("macd(26,12,9)", "feature 'macd': expected a fast length of 1 or more bars below the slow one"),
        ("no_such_module:function", "setting 'features': expected a module on the Python path"),
        ("features_of_a_user:gapp", "setting 'features': expected a function 'gapp' in module 'features_of_a_user'"),
        ("features_of_a_user:range_mean", r"expected features_of_a_user:range_mean\(n,scale\), got 0 arguments"),
        ("features_of_a_user:undeclared", "expected a function declared with @feature"),
        (partial(mine.gap), "feature 'functools:partial': expected a function declared with @feature"),
        ("features_of_a_user:negative", "expected a look-back of whole bars, 0 or more, got -1"),
    ],
)
def test_a_bad_name_is_refused_in_words(wanted, words):
    with pytest.raises(SettingsError, match=words):
        Feature.of(wanted)


@pytest.mark.parametrize("wanted", [[], ["rsi", "rsi(14)"], ["log_close", "log_close"]])
def test_a_recipe_has_different_features(wanted):
    with pytest.raises(SettingsError, match="expected one or more different ones"):
        Recipe.of(wanted)


def test_a_function_and_its_name_are_the_same_feature():
    data = MarketData([bars_of()], ["log_close", mine.gap, "features_of_a_user:range_mean(5)"])
    named = MarketData([bars_of()], ["log_close", "features_of_a_user:gap", "features_of_a_user:range_mean(5)"])
    assert data.feature_names == named.feature_names
    assert np.array_equal(data.features, named.features)
    assert data.recipe.identity == named.recipe.identity
    bars = Bars.of(bars_of())
    np.testing.assert_allclose(data.features[1:, 1], np.log(bars.open[1:] / bars.close[:-1]), rtol=1e-6)


def test_recipes_carry_the_longest_look_back():
    recipe = Recipe.of(["log_close", "zscore(50)", "5m:log_close", "hour_cos"])
    assert recipe.lookback(MINUTE) == 49
    assert recipe.lookback(MINUTE) > Feature.of("5m:log_close").lookback(MINUTE) == 13
    assert recipe.scaled == (True, False, True, False)


def test_features_before_the_look_back_are_0_and_defined_after_it():
    data = MarketData([bars_of()], ["zscore(50)", "rsi(5)", "5m:log_close"])
    assert data.lookback == 52
    assert (data.features[:49, 0] == 0.0).all()
    assert (data.features[52:] != 0.0).mean() > 0.9
    assert data.features.dtype == np.float32


def test_features_never_reach_behind_the_first_bar_with_prices():
    late = bars_of(300)
    for name in ("open", "high", "low", "close"):
        getattr(late, name)[:40] = np.nan
    data = MarketData([late], ["sma_ratio(20)", "log_volume", "rsi(2)", "hour_cos"])
    assert data.first_valid.tolist() == [40]
    assert (data.features[:40] == 0.0).all()
    alone = MarketData([late.cut(40, 300)], ["sma_ratio(20)", "log_volume", "rsi(2)", "hour_cos"])
    assert np.array_equal(data.features[40:], alone.features)


def test_windows_that_begin_anywhere_hold_the_same_features():
    names = [
        "log_volume",
        "zscore(20)",
        "rsi(14)",
        "macd",
        "atr",
        "volume_zscore(30)",
        "5m:ema_ratio(9)",
        "1h:log_close",
    ]
    bars = bars_of(2_000)
    whole = MarketData([bars], names)
    for begin in (1, 2, 59, 61, 500):
        part = MarketData([bars.cut(begin, 2_000)], names)
        first = part.first_valid[0] + part.lookback
        # Bit for bit: a feature is a function of the rows in its look-back and of nothing else.
        assert np.array_equal(part.features[first:], whole.features[begin + first :])


def test_the_identity_tells_computations_apart():
    one = Recipe.of(["log_close", "rsi(14)", "5m:features_of_a_user:gap"]).identity
    assert one.startswith("v1 log_close rsi(14) 5m:features_of_a_user:gap#")
    assert Recipe.of(["rsi(14)", "log_close"]).identity != Recipe.of(["log_close", "rsi(14)"]).identity
    assert "#" not in Recipe.of(list(BUILT_IN)).identity


def test_the_identity_changes_with_the_source_of_a_users_function(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "from env.declaration import feature\n\n@feature(lookback=0)\ndef f(bars):\n    return bars.close * {}\n"
    identities = set()
    for name, factor in (("source_one", 1), ("source_two", 2), ("source_three", 1)):
        (tmp_path / f"{name}.py").write_text(text.format(factor))
        identities.add(Feature.of(f"{name}:f").identity.partition("#")[2])
    assert len(identities) == 2
    assert all(len(identity) == 12 for identity in identities)


def test_the_identity_is_the_same_in_another_process():
    code = (
        "import sys; sys.path.insert(0, 'tests/env'); from env.features import Recipe;"
        "print(Recipe.of(['rsi', 'features_of_a_user:gap']).identity)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == Recipe.of(["rsi", "features_of_a_user:gap"]).identity


def test_a_function_without_source_text_has_an_identity_by_its_code():
    space: dict = {"feature": feature}
    exec("@feature(lookback=0)\ndef f(bars): return bars.close\n", space)  # noqa: S102 - as at a bare prompt
    exec("@feature(lookback=0)\ndef g(bars): return bars.open\n", space)  # noqa: S102
    assert Feature.of(space["f"]).source != Feature.of(space["g"]).source


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e39])
def test_what_no_float32_holds_is_refused(value):
    @feature(lookback=2)
    def large(bars: Bars) -> np.ndarray:
        return np.where(np.arange(len(bars)) == 7, value, 1.0)

    with pytest.raises(InputError, match=re.escape(f"got {value} in row 7")):
        MarketData([bars_of()], [large])


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (mine.too_few, r"feature 'features_of_a_user:too_few' of 'W': expected 300 numbers, .* got shape \(299,\)"),
        (mine.words, "expected 300 numbers, one a bar, got shape .* of <U2"),
        (
            mine.not_finite,
            r"of 'W', bar closing 1970-01-01T.*Z: expected a finite float32 from row 5 \(its look-back\) on, got nan",
        ),
    ],
)
def test_a_function_that_returns_no_numbers_is_refused(wanted, words):
    with pytest.raises(InputError, match=words):
        MarketData([bars_of()], [wanted])


def test_a_feature_cannot_change_the_bars():
    with pytest.raises(ValueError, match="read-only"):
        MarketData([bars_of()], [mine.writes])


def test_market_data_with_a_users_feature_is_pickled_with_its_recipe():
    data = pickle.loads(pickle.dumps(MarketData([bars_of()], [mine.gap, "rsi(5)"])))  # noqa: S301 - our own bytes
    assert data.feature_names == ("features_of_a_user:gap", "rsi(5)")
    assert data.recipe == Recipe.of([mine.gap, "rsi(5)"])


@pytest.mark.parametrize("name", ["1m:rsi", "30s:rsi", "90s:rsi"])
def test_an_interval_that_holds_no_whole_bars_is_refused(name):
    with pytest.raises(SettingsError, match=rf"feature '{name}\(14\)': expected an interval of two or more whole bars"):
        MarketData([bars_of()], [name])


def test_bars_of_an_hour_have_features_of_a_day():
    data = MarketData([bars_of(24 * 20, interval=HOUR)], ["1d:log_close"])
    assert data.lookback == 70
    changes = np.flatnonzero(np.diff(data.features[data.lookback :, 0])) + data.lookback + 1
    assert len(changes) == 18
    assert (data.ts_close[changes] % DAY == 0).all()  # the bar of a day is known with the hour that closes it
