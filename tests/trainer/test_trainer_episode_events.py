"""Events of an ended episode: what is written without validation is what validation would have written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from env.trading_env import TradingEnv
from eventlog.outbox_records import Meta, make_records
from schemas.events import Headers, decode
from schemas.ids import PublisherId
from schemas.payloads import ActionsTaken, EpisodeEnded, Fills, Payload, Positions, Steps, Written
from trainer.episode_events import EpisodeFacts, Lineage, recorded

sys.path.insert(0, str(Path(__file__).parents[1] / "env"))
from env_kinds import KINDS, market, settings_of

RUN = "01998a52-0000-7000-8000-000000000000"
FACTS = EpisodeFacts(f"{RUN}.1.r1.0.n.0.0", "e" * 32, "runner", 1, 0, 0, "env", "agent", "train", 1)
META = Meta(PublisherId.parse(f"{RUN}.1.r1.0.n"), "host", 1, "millrace")
LINEAGE = Lineage("train", "w", "d", "s", "v")


def record_of(payload: Payload | Written, number: int = 1) -> tuple[bytes, bytes, Headers]:
    [(_, record)] = make_records(META, [payload], {type_of(payload).EVENT_TYPE: number - 1}, 1)
    return record.key, record.value, record.headers


def type_of(payload: Payload | Written) -> type[Payload]:
    return payload.model if isinstance(payload, Written) else type(payload)


def events_of(kind: str, versions: list[int]) -> tuple[Any, dict[type[Payload], Any]]:
    settings = settings_of(kind)
    env = TradingEnv(market(settings), settings)
    env.reset(seed=3)
    env.action_space.seed(3)
    done = False
    while not done:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        done = terminated or truncated
    record = env.episode_record()
    known = np.array(versions[: record.steps], dtype=np.int64)
    payloads = recorded(FACTS, 2, 5, known, record, LINEAGE, record_steps=True)
    return record, {type_of(payload): payload for payload in payloads}


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_what_the_validated_payloads_would_have_been(kind: str) -> None:
    record, payloads = events_of(kind, list(range(1_000)))
    assert payloads.keys() >= {EpisodeEnded, ActionsTaken, Fills, Steps}
    for model, payload in payloads.items():
        key, value, headers = record_of(payload)
        read = decode(value, headers)  # strict: every number and text has the type that the schema says
        assert type(read.data) is model
        again = record_of(read.data)
        assert (again[0], again[2]) == (key, headers)
        assert orjson.loads(again[1]) == orjson.loads(value)
        assert read.data.model_dump(mode="json") == orjson.loads(value)["data"]
        assert read.rows == payload.rows
    assert payloads[Fills].read().policy_version == record.fills["step"].tolist()


def test_a_large_event_is_split_by_rows() -> None:
    length = 60_000
    columns: dict[str, Any] = {name: np.arange(length) for name in ("step", "decided_ts", "ts", "row", "trade_no")}
    numbers = ("quantity", "price", "reference_price", "fee", "slippage", "position_after")
    columns |= dict.fromkeys(numbers, np.linspace(0.0, 1.0, length)) | {"policy_version": [None] * length}
    columns |= {name: ["x"] * length for name in ("symbol", "kind", "operations")}
    common = {"episode_id": FACTS.episode_id, "split": "train", "policy": "agent", "iteration": 1, "window_id": None}
    written = Fills.write(**common, **columns)
    made = make_records(META, [written], {}, 1)
    parts = [decode(record.value, record.headers) for _, record in made]
    assert len(parts) > 5
    assert [row for part in parts for row in part.data.row] == list(range(length))  # type: ignore[attr-defined]
    assert {part.number for part in parts} == {1}


def test_steps_that_no_policy_decided_have_no_version() -> None:
    _, payloads = events_of("targets", [7, 7, 7])
    fills = payloads[Fills].read()
    expected = [7 if step < 3 else None for step in fills.step]
    assert fills.policy_version == expected
    assert None in expected


def test_nothing_is_written_with_fields_missing_or_of_other_lengths() -> None:
    whole = {"episode_id": FACTS.episode_id, "actions": [1, 2]}
    assert ActionsTaken.write(**whole).rows == 2
    with pytest.raises(ValueError, match="actoins"):
        ActionsTaken.write(episode_id=FACTS.episode_id, actoins=[1, 2])
    common = {"episode_id": FACTS.episode_id, "split": "train", "policy": "agent", "iteration": 1, "window_id": None}
    columns: dict[str, Any] = {name: [1] for name in ("step", "symbol", "price", "position")}
    with pytest.raises(ValueError, match="different lengths"):
        Positions.write(**common, **columns, stale=[True, False])
