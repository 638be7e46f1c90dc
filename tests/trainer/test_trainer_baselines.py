"""Baselines: their results are computed here a second time, from the bars alone."""

from __future__ import annotations

import re
from typing import Any

import pytest

from env.market_data import MarketData
from env.settings import EnvSettings
from schemas.ids import PublisherId, Role, new_run_id
from schemas.payloads import Written
from trainer.baselines import run_baselines
from trainer.episode_events import Lineage

SETTINGS = EnvSettings(window=4, starts="whole", fee=0.001, slippage=0.0005)
LINEAGE = Lineage(split="test", window_id="w", data_hash="d", settings_hash="s", scaler_version="v")
PUBLISHER = PublisherId(new_run_id(), 1, Role.DRIVER, 0, 0, "node")


def play(market: MarketData, settings: EnvSettings = SETTINGS, seed: int = 7) -> list[list[Any]]:
    return [
        [event.read() if isinstance(event, Written) else event for event in events]
        for events in run_baselines(market, settings, LINEAGE, PUBLISHER, 3, seed)
    ]


def ends(played: list[list[Any]], policy: str) -> list[Any]:
    return [
        event
        for events in played
        for event in events
        if type(event).__name__ == "EpisodeEnded" and event.policy == policy
    ]


def test_flat_makes_nothing(market: MarketData) -> None:
    flat = ends(play(market), "flat")
    assert [episode.symbol for episode in flat] == ["AAA", "BBB"]
    for episode in flat:
        assert (episode.pnl, episode.fee, episode.fill_count, episode.total_reward) == (0.0, 0.0, 0, 0.0)


def test_buy_and_hold_is_what_the_bars_say(market: MarketData) -> None:
    held = ends(play(market), "buy_and_hold")
    assert [episode.symbol for episode in held] == ["AAA", "BBB"]
    for number, episode in enumerate(held):
        rows = slice(int(market.offsets[number]), int(market.offsets[number + 1]))
        opens, closes = market.open[rows], market.mark[rows]
        # Decided at the close of bar 4, filled at the open of bar 5: all cash into units, costs included.
        price = opens[5] * 1.0005
        units = 10_000.0 / (price * 1.001)
        assert episode.fill_count == 1
        assert episode.final_value == pytest.approx(units * closes[-1], rel=1e-12)
        assert episode.fee == pytest.approx(units * price * 0.001, rel=1e-12)
        assert (episode.steps, episode.trade_count) == (295, 0)


def test_random_is_drawn_from_the_seed(market: MarketData) -> None:
    first, again, other = (
        [episode.final_value for episode in ends(play(market, seed=seed), "random")] for seed in (7, 7, 8)
    )
    assert first == again != other


def test_episodes_are_told_from_start_to_end_with_ids_of_their_own(market: MarketData) -> None:
    played = play(market)
    assert [type(events[0]).__name__ for events in played] == ["EpisodeStarted"] * 10
    assert len({events[0].episode_id for events in played}) == 10
    for events in played:
        assert {event.episode_id for event in events} == {events[0].episode_id}
        assert re.fullmatch(rf"{PUBLISHER}\.[0-4]\.[01]", events[0].episode_id)
        end = next(event for event in events if type(event).__name__ == "EpisodeEnded")
        assert (end.split, end.window_id, end.iteration) == ("test", "w", 3)
        assert (end.first_policy_version, end.last_policy_version) == (None, None)


@pytest.mark.parametrize("actions", ["targets", "weights"])
def test_a_portfolio_is_one_episode_a_baseline(market: MarketData, actions: Any) -> None:
    settings = SETTINGS.model_copy(update={"portfolio": True, "actions": actions})
    played = play(market, settings)
    policies = [events[0].policy for events in played]
    assert policies == ["flat", "buy_and_hold", "sma_cross", "momentum", "random"]
    [held] = ends(played, "buy_and_hold")
    assert (held.symbol, held.symbols, held.steps) == ("portfolio", ["AAA", "BBB"], 295)
    fills = next(event for events in played for event in events if type(event).__name__ == "Fills")
    assert set(fills.symbol) == {"AAA", "BBB"}
