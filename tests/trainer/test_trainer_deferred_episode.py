"""What a training process leaves to the forwarder becomes the events that it would have made itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from env.episode_record import EpisodeRecord
from env.trading_env import TradingEnv
from env.vector_env import TradingVectorEnv
from eventlog import event_makers
from schemas.errors import OutboxError, SettingsError
from schemas.payloads import Deferred, EpisodeStarted, Payload, Written
from trainer import deferred_episode
from trainer.deferred_episode import MAKER, defer_end, defer_start
from trainer.env_facts import record_of, tape_of
from trainer.episode_events import Beginning, EpisodeFacts, Lineage, recorded, started

sys.path.insert(0, str(Path(__file__).parents[1] / "env"))
from env_kinds import KINDS, market, settings_of

FACTS = EpisodeFacts("e.0", "e" * 32, "runner", 1, 0, 0, "env", "agent", "train", 1)
LINEAGE = Lineage("train", "w", "d", "s", "v")


def played(kind: str, seed: int = 3, **settings: Any) -> TradingVectorEnv:
    """Three environments, one of which at least has ended its episode."""
    chosen = settings_of(kind, **settings)
    env = TradingVectorEnv(market(chosen), chosen, num_envs=3)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    ended = np.zeros(3, dtype=bool)
    while not ended.any():
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        ended = terminated | truncated
    return env


def written(payloads: list[Payload | Written]) -> list[tuple[type[Payload], int, Any]]:
    return [(one.model, one.rows, one.json if isinstance(one, Written) else one) for one in payloads]


def made(deferred: Deferred) -> list[Payload | Written]:
    return list(event_makers.make_events(deferred.maker, deferred.value))


@pytest.mark.parametrize("record", ["fills", "steps"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_events_are_those_of_the_record_byte_by_byte(kind: str, record: str) -> None:
    env = played(kind, record=record)
    steps = record == "steps"
    deferred, events = [], []
    for index in range(3):
        told = env.episode_record(index)
        versions = np.arange(told.steps if index else 0)
        events.append(recorded(FACTS, 2, 5, versions, told, LINEAGE, record_steps=steps))
        deferred.append(defer_end(FACTS, 2, 5, versions, env.episode_tape(index), LINEAGE, record_steps=steps))
    env.reset(seed=4)  # what was deferred is a copy
    for _ in range(5):
        env.step(env.action_space.sample())
    for before, after in zip(events, map(made, deferred), strict=True):
        assert written(after) == written(before)
    for one, before in zip(deferred, events, strict=True):
        assert list(one.models) == [payload.model for payload in before]
        assert one.maker == MAKER


def test_steps_that_are_kept_and_not_wanted_are_left_out() -> None:
    env = played("targets", record="steps")
    record = env.episode_record(0)
    versions = np.zeros(record.steps, dtype=np.int64)
    deferred = defer_end(FACTS, 2, 5, versions, env.episode_tape(0), None, record_steps=False)
    assert written(made(deferred)) == written(recorded(FACTS, 2, 5, versions, record, None, record_steps=False))


def test_steps_that_are_wanted_and_not_kept_are_an_error() -> None:
    env = played("targets", record="fills")
    with pytest.raises(SettingsError, match="record='steps'"):
        defer_end(FACTS, 2, 5, np.zeros(0, dtype=np.int64), env.episode_tape(0), LINEAGE, record_steps=True)


@pytest.mark.parametrize("lineage", [LINEAGE, None])
@pytest.mark.parametrize("beginning", [Beginning(), Beginning("AAA", np.int64(70), 10_000.0)])  # type: ignore[arg-type]
def test_a_start_is_the_event_that_it_would_have_been(beginning: Beginning, lineage: Lineage | None) -> None:
    deferred = defer_start(FACTS, 7, beginning, lineage)
    assert deferred.models == (EpisodeStarted,)
    [event] = made(deferred)
    assert event == started(FACTS, 7, beginning, lineage)
    assert type(event.start_row) in (int, type(None))  # type: ignore[union-attr]


def test_numbers_laid_out_by_another_version_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    deferred = defer_start(FACTS, 7, Beginning(), None)
    monkeypatch.setattr(deferred_episode, "_STAMP", "another")
    with pytest.raises(OutboxError, match="layouts another of this version of Millrace, got [0-9a-f]{8}"):
        made(deferred)


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_a_damaged_value_is_an_error_and_no_event(cut: int) -> None:
    env = played("targets")
    deferred = defer_end(FACTS, 2, 5, np.zeros(20, dtype=np.int64), env.episode_tape(0), LINEAGE, record_steps=False)
    with pytest.raises(OutboxError, match="event maker 'episode'"):
        event_makers.make_events(MAKER, deferred.value[:cut])


def test_an_environment_that_tells_its_episode_its_own_way_is_asked_for_its_record() -> None:
    class Own(TradingEnv):
        def episode_record(self) -> EpisodeRecord:
            return super().episode_record()

    settings = settings_of("targets")
    for make, plain in ((TradingEnv, True), (Own, False)):
        envs = gym.vector.SyncVectorEnv([lambda make=make: make(market(settings), settings)])  # type: ignore[misc]
        envs.reset(seed=1)
        assert (tape_of(envs, 0) is not None) is plain
        record = record_of(envs, 0)
        assert record is not None
        assert record.steps == 0


def test_the_forwarder_makes_events_without_ray_torch_and_pandas() -> None:
    code = (
        "import sys; from eventlog.event_makers import _maker; _maker('episode');"
        "print([name for name in ('ray', 'torch', 'pandas', 'gymnasium') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
