"""check_feature: every built-in feature passes, and what looks ahead is caught."""

from __future__ import annotations

import features_of_a_user as mine
import numpy as np
import pandas as pd
import pytest

from env.bars import SymbolBars
from env.features import BUILT_IN, Feature
from env.lookahead import check_feature
from schemas.errors import InputError, SettingsError
from schemas.times import MINUTE

COARSE = ["5m:log_volume", "1h:rsi(5)", "1h:hour_sin", "4h:bollinger(10,2)", "1d:atr(5)", "1w:log_return(2)"]


@pytest.mark.parametrize("names", [list(BUILT_IN), COARSE], ids=["built-in", "coarse"])
def test_no_feature_of_ours_looks_ahead(names):
    report = check_feature(names)
    assert report.ok, str(report)
    assert len(report.features) == len(names)
    assert str(report).count("no look-ahead") == len(names)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_feature_of_ours_looks_ahead_whatever_the_seed(seed):
    assert check_feature(["log_volume", "zscore(5)", "rsi(3)", "5m:volume_zscore(3)"], seed=seed, trials=20).ok


@pytest.mark.parametrize("function", [mine.gap, mine.recursive, mine.hour_by_close])
def test_a_sound_feature_of_a_user_passes(function):
    report = check_feature(function)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    "function",
    [
        mine.centred_mean,
        mine.of_the_whole_series,
        mine.next_close,
        mine.next_volume_where_a_bar_is_missing,
        mine.hour_by_open,
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_feature_that_looks_ahead_is_caught(function, seed):
    report = check_feature(function, seed=seed)
    assert not report.ok
    problem = report.problems[0]
    assert problem.kind == "look-ahead"
    line = str(report).splitlines()[0]
    assert line == problem.message
    assert f"feature 'features_of_a_user:{function.__name__}' of 'RANDOM' looks ahead: row {problem.row} is " in line
    assert "row t may use the bars up to t alone" in line


def test_the_message_tells_the_row_and_both_values():
    problem = check_feature(mine.next_close).problems[0]
    words = problem.message.split()
    values = [float(words[place + 1].strip(",")) for place, word in enumerate(words) if word in ("is", "but")]
    assert values[0] != values[1]
    # The only value that the bars after row t can change is that of row t.
    assert f"bars after row {problem.row} " in problem.message


def test_a_look_ahead_hidden_behind_a_coarse_interval_is_caught():
    report = check_feature("5m:features_of_a_user:centred_mean")
    assert next(problem.kind for problem in report.problems) == "look-ahead"


def test_a_look_back_that_is_too_short_is_caught():
    [problem] = check_feature(mine.too_short).problems
    assert problem.kind == "look-back"
    assert "reaches behind its look-back of 20 bars" in problem.message
    assert check_feature(mine.too_short, tolerance=1e6).ok


@pytest.mark.parametrize(
    ("function", "kind", "words"),
    [
        (mine.not_finite, "values", "expected a finite float32"),
        (mine.too_few, "values", "one a bar, got shape"),
        (mine.words, "values", "one a bar, got shape"),
        (mine.unsteady, "unsteady", "in one call and"),
    ],
)
def test_values_that_are_none_are_a_problem(function, kind, words):
    [problem] = check_feature(function).problems
    assert problem.kind == kind
    assert words in problem.message


def test_a_whole_recipe_is_checked_in_one_call():
    report = check_feature(["log_close", mine.next_close, "rsi(5)", mine.too_short], trials=20)
    assert [(problem.feature, problem.kind) for problem in report.problems if problem.kind != "look-back"] == [
        ("features_of_a_user:next_close", "look-ahead")
    ]
    assert len(report.rows) == 4
    assert {problem.feature for problem in report.problems} == {
        "features_of_a_user:next_close",
        "features_of_a_user:too_short",
    }


def frame(rows: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    close = 50.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, rows)))
    columns = {"open": close, "high": close * 1.01, "low": close / 1.01, "close": close, "volume": 0.0}
    return pd.DataFrame(columns, index=pd.date_range("2024-01-01", periods=rows, freq="B"))


def test_bars_of_ones_own_are_checked_on():
    two = {"AAA": frame(), "BBB": frame(300)}
    report = check_feature(["zscore(20)", mine.centred_mean], two)
    assert report.rows == (700, 700)
    assert next(problem.kind for problem in report.problems) == "look-ahead"
    assert "of 'AAA' looks ahead" in str(report)
    assert check_feature(["1w:log_close", "log_volume", "volatility(5)"], frame()).ok


def test_bars_with_gaps_and_holes_are_checked_on():
    rng = np.random.default_rng(5)
    rows = 2_000
    ts = np.flatnonzero(rng.random(2 * rows) < 0.5)[: rows // 2].astype(np.int64) * MINUTE
    close = np.where(rng.random(len(ts)) < 0.2, np.nan, 100.0 + rng.normal(0.0, 1.0, len(ts)))
    volume = np.where(rng.random(len(ts)) < 0.3, 0.0, rng.uniform(1.0, 9.0, len(ts)))
    bars = SymbolBars("H", 0, ts, ts + MINUTE, close, close * 1.01, close / 1.01, close, volume)
    report = check_feature([*BUILT_IN, "5m:log_volume", "15m:zscore(5)"], [bars], trials=30)
    assert report.ok, str(report)


def test_too_few_bars_and_unknown_features_are_refused():
    with pytest.raises(InputError, match=r"feature 'rsi\(14\)': expected more than 157 bars of 'frame'.*got 100"):
        check_feature("rsi(14)", frame(100))
    with pytest.raises(SettingsError, match="did you mean 'rsi'"):
        check_feature("rsj")


def test_the_same_seed_makes_the_same_report():
    assert check_feature(mine.centred_mean, seed=7) == check_feature(mine.centred_mean, seed=7)
    assert Feature.of(mine.centred_mean).name == check_feature(mine.centred_mean, seed=7).features[0]
