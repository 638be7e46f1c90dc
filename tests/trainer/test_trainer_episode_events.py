"""Events of an ended episode: what is written without validation is what validation would have written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from env.trading_env import TradingEnv
from schemas.events import Event, decode
from schemas.payloads import Payload
from trainer.environments import Lineage
from trainer.episode_events import EpisodeFacts, Outcome, ended

sys.path.insert(0, str(Path(__file__).parents[1] / "env"))
from env_kinds import KINDS, market, settings_of

RUN = "01998a52-0000-7000-8000-000000000000"
FACTS = EpisodeFacts(f"{RUN}.1.r1.0.n.0.0", "e" * 32, "runner", 1, 0, 0, "env", "agent", "train", 1)
LINEAGE = Lineage("train", "w", "d", "s", "v")


def event_of(payload: Payload) -> Event:
    return Event(
        event_type=payload.EVENT_TYPE,
        run_id=RUN,
        attempt=1,
        publisher_id=f"{RUN}.1.r1.0.n",
        number=1,
        rows=payload.rows,
        wall_time=1,
        data=payload,
    )


def events_of(kind: str, versions: list[int]) -> tuple[Any, list[Payload]]:
    settings = settings_of(kind)
    env = TradingEnv(market(settings), settings)
    env.reset(seed=3)
    env.action_space.seed(3)
    done = False
    while not done:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        done = terminated or truncated
    record = env.episode_record()
    outcome = Outcome(record.steps, record.total_reward, [], versions[: record.steps], False, True)
    return record, ended(FACTS, 2, 5, outcome, record, LINEAGE, record_steps=True)


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_what_the_validated_payloads_would_have_been(kind: str) -> None:
    record, payloads = events_of(kind, list(range(1_000)))
    assert {type(payload).__name__ for payload in payloads} >= {"EpisodeEnded", "ActionsTaken", "Fills", "Steps"}
    for payload in payloads:
        key, value, headers = event_of(payload).encode()
        read = decode(value, headers)  # strict: every number and text has the type that the schema says
        again = read.encode()
        assert (again[0], again[2]) == (key, headers)
        assert orjson.loads(again[1]) == orjson.loads(value)
        assert read.data.model_dump(mode="json") == orjson.loads(value)["data"]
        assert read.rows == payload.rows
    by_name = {type(payload).__name__: payload for payload in payloads}
    steps = record.fills["step"].tolist()
    assert list(getattr(by_name["Fills"], "policy_version")) == steps  # noqa: B009


def test_a_large_event_is_split_by_rows_of_its_arrays() -> None:
    _, payloads = events_of("portfolio: weights, everything on", list(range(1_000)))
    [steps] = [payload for payload in payloads if type(payload).__name__ == "Steps"]
    whole = event_of(steps)
    parts = [decode(part.encode()[1]) for part in whole.split(max_bytes=2_000)]
    assert len(parts) > 2
    joined = [value for part in parts for value in part.data.value]
    assert joined == steps.value.tolist()


def test_steps_that_no_policy_decided_have_no_version() -> None:
    _, payloads = events_of("targets", [7, 7, 7])
    [fills] = [payload for payload in payloads if type(payload).__name__ == "Fills"]
    expected = [7 if step < 3 else None for step in fills.step.tolist()]
    assert fills.policy_version == expected
    assert None in expected
