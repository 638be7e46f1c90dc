"""docs/env.md tells the settings and spaces as they are."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from env.market_data import MarketData, SymbolBars
from env.rewards import REWARDS, RewardInput
from env.settings import EnvSettings
from env.trading_env import TradingEnv

PAGE = (Path(__file__).parents[2] / "docs" / "env.md").read_text(encoding="utf-8")
SETTINGS = re.findall(
    r"^\| `(\w+)` \| `(.*?)` \| (.*?) \|$", PAGE.partition("Settings (`EnvSettings`)")[2], re.MULTILINE
)


def test_settings_have_the_names_defaults_and_meanings_of_the_page():
    fields = EnvSettings.model_fields
    assert SETTINGS == [(name, repr(field.default), field.description) for name, field in fields.items()]


def test_rewards_are_those_of_the_page():
    section = PAGE.partition("## Rewards")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)[1:] == list(REWARDS)


def test_a_users_reward_gets_the_fields_of_the_page():
    section = PAGE.partition("## Your own reward")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == RewardInput._fields


@pytest.mark.parametrize(
    "name", re.findall(r"`(EpisodeRecord|RewardInput|EnvSettings|TradingEnv|TradingVectorEnv|MarketData|Scaler)`", PAGE)
)
def test_names_of_the_page_can_be_imported_from_millrace(name):
    import millrace

    assert name in millrace.__all__


def test_default_observation_has_the_size_of_the_page():
    rows = np.arange(100, dtype=np.int64)
    price = np.full(100, 10.0)
    bars = SymbolBars("A", 0, rows * 60_000_000, (rows + 1) * 60_000_000, price, price, price, price, price)
    env = TradingEnv(MarketData([bars]), {})
    low, high, size = re.search(
        r"`Box\((-?\d+), (\d+), \((\d+),\), float32\)` with the default settings", PAGE
    ).groups()
    space = env.observation_space
    assert space.shape == (int(size),)
    assert (space.low.min(), space.high.max()) == (float(low), float(high))


def test_python_of_the_page_runs():
    import pandas as pd

    index = pd.date_range("2024-01-01", periods=400, freq="D")
    close = np.linspace(100.0, 160.0, 400)
    frame = pd.DataFrame({"open": close, "high": close, "low": close, "close": close, "volume": 1.0}, index=index)
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        names = {"frame": frame}
        exec(block, names)  # noqa: S102 - the page's own example
        assert isinstance(names["reward"], float)
