"""Places name an observation the same in every window, also where a symbol has caught up with the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from bar_makers import without

from env.bars import SymbolBars
from env.market_data import MarketData
from env.scaler import Scaler
from env.settings import EnvSettings
from trainer.environments import LineageVectorEnv
from trainer.episode_events import Lineage
from trainer.observation_source import ObservationSource
from trainer.places import places_of

SETTINGS = EnvSettings(window=4, episode_length=20, portfolio=True, actions="weights")
ALONE = EnvSettings(window=4, episode_length=20)


@pytest.fixture
def windows(bars: Callable[..., SymbolBars]) -> tuple[MarketData, MarketData]:
    """One in which BBB lags behind AAA, which has gaps, and a later one in which it has caught up."""
    first, second = bars("AAA", 120), bars("BBB", 120, seed=2)
    gaps = without(first, np.arange(120) % 6 == 5)
    return MarketData([gaps, second.cut(0, 80)]), MarketData([gaps.cut(10, 100), second.cut(20, 120)])


def test_a_portfolios_place_is_found_again_when_times_have_come_between(
    windows: tuple[MarketData, MarketData],
) -> None:
    early, late = (places_of(data, SETTINGS) for data in windows)
    clocks = [data.on_common_clock() for data in windows]
    assert early.names == late.names == ("portfolio",)
    rows = np.arange(len(clocks[0].ts_close) - 10, len(clocks[0].ts_close))
    places, numbers = early.of(rows)
    found, held = late.find(places, numbers)
    assert held.all()
    assert (clocks[1].ts_close[found] == clocks[0].ts_close[rows]).all()
    assert (np.diff(found) > 1).any(), "no time came between: the test proves nothing"


def test_what_a_window_does_not_hold_is_not_found(windows: tuple[MarketData, MarketData]) -> None:
    early, late = (places_of(data, SETTINGS) for data in windows)
    last = windows[1].on_common_clock().ts_close[-1]
    wanted = np.array([late.first[0], late.first[0] - 86_400_000_000, late.first[0] + 1, last, last + 86_400_000_000])
    assert late.find(wanted, np.zeros(5, np.int16))[1].tolist() == [True, False, False, True, False]
    assert not late.find(wanted, np.full(5, -1, np.int16))[1].any()
    assert not early.find(last[np.newaxis], np.zeros(1, np.int16))[1].any()


def test_a_symbols_place_is_its_absolute_row(bars: Callable[..., SymbolBars]) -> None:
    whole = [bars("AAA", 120), bars("BBB", 120, seed=2)]
    early, late = (places_of(MarketData([one.cut(*span) for one in whole]), ALONE) for span in ((0, 80), (30, 120)))
    places, numbers = early.of(np.array([60, 79, 80, 159]))
    assert places.tolist() == [60, 79, 0, 79]
    assert numbers.tolist() == [0, 0, 1, 1]
    found, held = late.find(places, numbers)
    assert held.tolist() == [True, True, False, True]
    assert found[held].tolist() == [30, 49, 90 + 49]


@pytest.mark.parametrize("settings", [SETTINGS, ALONE])
def test_an_observation_is_made_again_from_its_place(
    windows: tuple[MarketData, MarketData], settings: EnvSettings
) -> None:
    data = windows[1]
    scaler = Scaler.fit(data)
    lineage = Lineage("train", "w", "hash", "hash", scaler.version)
    streams = [np.random.SeedSequence(number) for number in range(3)]
    env = LineageVectorEnv(data, settings, lineage=lineage, streams=streams, scaler=scaler)
    source = ObservationSource("w", data, scaler, settings)
    seen, _ = env.reset()
    rng = np.random.default_rng(1)
    assert env.single_observation_space.shape is not None
    size = env.single_observation_space.shape[0]
    for _ in range(15):
        indexed = env.indexed(env.rows, seen[:, -env.account_size :])
        assert source.market_size + env.account_size == size
        np.testing.assert_array_equal(source.whole(indexed).numpy(), seen)
        actions = rng.uniform(-0.4, 0.4, (3, 2)) if settings.portfolio else rng.integers(0, 3, 3)
        seen = env.step(actions)[0]
