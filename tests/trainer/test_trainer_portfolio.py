"""A portfolio with continuous weights: one episode trades all symbols, and each row names its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from env.ahead import compile_ahead
from env.market_model import MarketModel
from schemas.errors import SettingsError

SYMBOLS = ["AAA", "BBB", "CCC"]
POLICIES = ("agent", "flat", "buy_and_hold", "sma_cross", "momentum", "random")


@pytest.fixture(scope="module")
def run(new_bench: Callable[[], Any], ray_session: None) -> Any:
    """PPO on three symbols, with the runner in this process; ``seen`` counts how often an episode was told."""
    bench = new_bench()
    bench.send_walks(*SYMBOLS)
    compile_ahead(lambda _: None)  # which has records of its own, where it has anything to do
    made = MarketModel.episode_tape
    records: list[int] = []

    def counted(model: MarketModel, index: int, env_seed: str | None = None) -> Any:
        records.append(model.num_envs)
        return made(model, index, env_seed)

    env = {"portfolio": True, "actions": "weights", "leverage": 1.5, "borrow": 0.0001, "interest": 0.0001}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MarketModel, "episode_tape", counted)
        played = bench.train(bench.job("PPO", env=env, train={"record_steps": True, "iterations": 2}))
    played.seen = records
    return played


def test_each_episode_is_one_of_the_portfolio(run: Any) -> None:
    ended = run.of("episode.ended")
    assert len(run.agent()) >= 8
    for episode in ended:
        assert (episode.symbol, episode.symbols) == ("portfolio", SYMBOLS)
        assert episode.bars_per_year == pytest.approx(365.0)
        assert episode.action_counts == {}
        assert episode.pnl == pytest.approx(episode.final_value - episode.initial_value)
    for started in run.of("episode.started"):
        assert (started.symbol, started.initial_value) == ("portfolio", 10_000.0)
        assert started.start_row is not None


def test_the_test_is_traded_once_by_the_agent_and_by_each_baseline(run: Any) -> None:
    played = Counter(episode.policy for episode in run.of("episode.ended", split="test"))
    assert played == dict.fromkeys(POLICIES, 1)
    spans = {(e.start_row, e.first_ts, e.last_ts, e.steps) for e in run.of("episode.ended", split="test")}
    assert len(spans) == 1


def test_rows_name_their_symbols_and_add_up_to_the_episode(run: Any) -> None:
    for episode in run.agent():
        mine = {"episode_id": episode.episode_id}
        symbols = [symbol for fills in run.of("fills", **mine) for symbol in fills.symbol]
        assert set(symbols) == set(SYMBOLS)
        assert len(symbols) == episode.fill_count
        [steps], [positions] = run.of("steps", **mine), run.of("positions", **mine)
        assert positions.rows == steps.rows * len(SYMBOLS) == episode.steps * len(SYMBOLS)
        assert steps.price == steps.position == steps.action == [None] * episode.steps
        held, marks = (
            np.array(column).reshape(episode.steps, len(SYMBOLS)) for column in (positions.position, positions.price)
        )
        assert steps.cash + (held * marks).sum(axis=1) == pytest.approx(np.array(steps.value))
        assert positions.symbol == SYMBOLS * episode.steps
        assert steps.exposure == pytest.approx(np.abs(held * marks).sum(axis=1) / np.array(steps.value))
        [actions] = run.of("episode.actions", **mine)
        assert np.array(actions.actions).shape == (episode.steps, len(SYMBOLS))
        assert np.abs(actions.actions).max() <= 1.5


def test_costs_of_an_episode_are_those_of_its_rows(run: Any) -> None:
    for episode in run.agent():
        [steps] = run.of("steps", episode_id=episode.episode_id)
        for name in ("borrow", "funding", "interest"):
            assert sum(getattr(steps, name)) == pytest.approx(getattr(episode, name), abs=1e-9), name
        fills = run.of("fills", episode_id=episode.episode_id)
        assert sum(fee for part in fills for fee in part.fee) == pytest.approx(episode.fee)


def test_an_episode_is_told_once(run: Any) -> None:
    assert len(run.seen) == len(run.of("episode.ended"))


def test_what_cannot_be_trained_is_refused_before_anything_starts(bench: Any) -> None:
    def refused(job: Any, words: str) -> None:
        with pytest.raises(SettingsError, match=words):
            bench.train(job)
        assert not bench.outbox.directory.exists()

    portfolio = bench.job("DQN", env={"portfolio": True})
    refused(portfolio, r"algorithm.name 'DQN': expected actions of one choice \(Discrete\), got a choice per symbol")
    unkept = bench.job("DQN", env={"record": "fills"}, train={"record_steps": True})
    refused(unkept, r"train.record_steps: expected env.record = 'steps', got 'fills'")
