"""docs/features.md tells the features as they are."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from env.bars import Bars, SymbolBars
from env.features import BUILT_IN, DEFAULT_FEATURES, Feature
from env.lookahead import TOLERANCE, check_feature
from env.rolling import TAIL
from millrace.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "features.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(.+?)` \| .+ \| (\d+) \| (yes|no) \|$", PAGE, re.MULTILINE)


def test_the_table_has_every_feature_with_its_defaults_look_back_and_scaling():
    features = [Feature.of(name) for name in BUILT_IN]
    assert ROWS == [(item.name, str(item.bars_back), "yes" if item.scaled else "no") for item in features]
    assert set(DEFAULT_FEATURES) <= {name for name, _, _ in ROWS}


def test_the_feature_of_the_page_does_not_look_ahead():
    """It is run as it stands there."""
    code = PAGE.partition("```python\n")[2].partition("```")[0]
    space: dict[str, object] = {}
    exec(compile(code, "features.md", "exec"), space)  # noqa: S102 - our own page
    report = check_feature(space["momentum"], trials=20)
    assert report.ok, str(report)


def test_names_and_numbers_of_the_page():
    assert TAIL == TOLERANCE == 1e-5
    assert "check-feature" in [command.name for command in app.registered_commands]
    for name in (*Bars.columns(), "interval"):
        assert f"`{name}`" in PAGE
    for name in re.findall(r'"([^"]+)"', PAGE.partition("features = [")[2].partition("]")[0])[:-1]:
        Feature.of(name)


def test_the_look_back_of_coarse_bars_is_that_of_the_page():
    minute = 60_000_000
    ts = np.arange(10, dtype=np.int64) * minute
    one = np.ones(10)
    interval = Bars.of(SymbolBars("A", 0, ts, ts + minute, one, one, one, one, one)).interval
    assert Feature.of("1h:rsi(14)").lookback(interval) == (156 + 2) * 60 - 2
