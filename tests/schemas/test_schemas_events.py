"""Events: identities, encoding, splitting, and what a consumer refuses."""

import json
import uuid
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.dead_letters import EXCEPTION_MESSAGE, dead_letter_headers
from schemas.errors import RecordTooLargeError, SchemaError
from schemas.events import Event, decode
from schemas.ids import PublisherId, Role, new_run_id
from schemas.payloads import PAYLOADS, ActionsTaken, Payload, RunEnded

PUBLISHER = PublisherId("01998a52-0000-7000-8000-000000000000", 1, Role.RUNNER, 2, 0, "3fa9c1")


def event(data: Payload, number: int = 1) -> Event:
    return Event(
        event_type=data.EVENT_TYPE,
        run_id=PUBLISHER.run_id,
        attempt=PUBLISHER.attempt,
        publisher_id=str(PUBLISHER),
        number=number,
        rows=data.rows,
        wall_time=1_700_000_000_000_000,
        data=data,
    )


def run_ended() -> Event:
    return event(RunEnded(status="completed", ended_at=1, iterations=3, env_steps=99))


def body_of(e: Event) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(e.encode()[1])
    return body


def test_run_ids_are_uuid7_and_sort_by_time() -> None:
    ids = [new_run_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(uuid.UUID(i).version == 7 and uuid.UUID(i).variant == uuid.RFC_4122 for i in ids)
    assert [i[:8] for i in ids] == sorted(i[:8] for i in ids)


def test_publisher_id_round_trips_and_names_its_episodes() -> None:
    assert PublisherId.parse(str(PUBLISHER)) == PUBLISHER
    assert PUBLISHER.episode(5, 17) == f"{PUBLISHER}.5.17"


@pytest.mark.parametrize("text", ["", "x.1.r1.0.n", "01998a52-0000-7000-8000-000000000000.1.x1.0.n"])
def test_other_publisher_ids_are_refused(text: str) -> None:
    with pytest.raises(SchemaError, match="RUN.ATTEMPT"):
        PublisherId.parse(text)


def test_event_id_is_the_same_at_every_sending() -> None:
    first, second = run_ended(), run_ended()
    assert first.event_id == second.event_id == f"{PUBLISHER}:run.ended:1"
    assert first.encode() == second.encode()


def test_encode_then_decode_gives_the_same_event() -> None:
    before = run_ended()
    _, value, headers = before.encode()
    after = decode(value, headers)
    assert after == before
    assert isinstance(after.data, RunEnded)
    assert dict(headers)["ce_type"] == b"run.ended"


def test_every_event_type_has_a_topic_and_its_columns_are_fields() -> None:
    for event_type, payload in PAYLOADS.items():
        assert payload.EVENT_TYPE == event_type
        assert payload.TOPIC in {"runs", "episodes", "trades", "fills", "steps"}
        assert set(payload.COLUMNS) <= set(payload.model_fields)


def test_a_newer_minor_version_is_read_and_its_extra_fields_are_kept() -> None:
    body = body_of(run_ended())
    body["schema_version"] = "1.9"
    body["data"]["mood"] = "calm"
    read = decode(orjson.dumps(body))
    assert read.data.model_extra == {"mood": "calm"}


def change(path: str, value: Any) -> bytes:
    body = body_of(run_ended())
    target = body
    *above, last = path.split(".")
    for name in above:
        target = target[name]
    target[last] = value
    return orjson.dumps(body)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "UTF-8 JSON"),
        (b"{not json", "UTF-8 JSON"),
        (b'{"a": "\xff"}', "UTF-8 JSON"),
        (b'{"a": NaN}', "UTF-8 JSON"),
        (b"[1, 2]", "JSON object, got list"),
        (b"{}", "schema_version 1.x"),
        (change("schema_version", "2.0"), "schema_version 1.x"),
        (change("event_type", "run.exploded"), "event types"),
        (change("data.iterations", "secret-value"), "iterations: Input should be a valid integer"),
        (change("data.iterations", "12"), "iterations: Input should be a valid integer"),
        (change("number", "1"), "number: Input should be a valid integer"),
        (change("data", None), "run.ended"),
        (change("number", 0), "number: "),
        (change("rows", -1), "rows: "),
    ],
)
def test_a_record_that_cannot_be_read_says_why_and_quotes_nothing(value: bytes, words: str) -> None:
    with pytest.raises(SchemaError, match=words) as caught:
        decode(value)
    assert "secret-value" not in str(caught.value)


def test_a_header_that_names_another_event_is_refused() -> None:
    _, value, _ = run_ended().encode()
    with pytest.raises(SchemaError, match="ce_id names another event"):
        decode(value, (("ce_id", b"other"),))


def test_declared_rows_must_be_there() -> None:
    body = body_of(event(ActionsTaken(episode_id="e", actions=[1, 2, 3])))
    body["rows"] = 2
    with pytest.raises(SchemaError, match="declares 2 rows, holds 3"):
        decode(orjson.dumps(body))


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="columns of different lengths"):
        PAYLOADS["trades"].model_validate(
            {"episode_id": "e", "symbol": "A", "split": "train", "policy": "agent", "iteration": 1, "window_id": None}
            | {name: [] for name in PAYLOADS["trades"].COLUMNS}
            | {"side": [1]}
        )


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=3000), st.integers(700, 4000))
def test_parts_fit_and_together_are_the_whole(actions: list[int], limit: int) -> None:
    whole = event(ActionsTaken(episode_id=PUBLISHER.episode(0, 0), first_row=10, actions=actions), number=7)
    parts = list(whole.split(limit))
    joined: list[Any] = []
    for part in parts:
        key, value, headers = part.encode()
        assert len(key) + len(value) + sum(len(k) + len(v) for k, v in headers) <= limit
        read = decode(value, headers).data
        assert isinstance(read, ActionsTaken)
        assert read.first_row == 10 + len(joined)
        joined.extend(read.actions)
    assert joined == actions
    assert {(p.number, p.parts) for p in parts} == {(7, len(parts))}
    assert len({p.event_id for p in parts}) == len(parts)


def test_an_event_without_rows_that_is_too_large_is_refused_by_name() -> None:
    large = event(RunEnded(status="failed", ended_at=1, iterations=1, env_steps=1, notes="x" * 5_000))
    with pytest.raises(RecordTooLargeError, match=r"run\.ended:1: \d+ bytes, expected at most 2000"):
        list(large.split(2_000))


def test_dead_letter_headers_keep_the_original_ones_first() -> None:
    headers = dead_letter_headers(
        (("ce_id", b"x"),),
        topic="t",
        partition=3,
        offset=9,
        stage="VALUE_CONVERTER",
        where="w",
        error=SchemaError("no"),
    )
    assert headers[0] == ("ce_id", b"x")
    assert dict(headers)[EXCEPTION_MESSAGE] == b"no"
    assert dict(headers)["__connect.errors.offset"] == b"9"


def test_values_are_plain_json() -> None:
    json.loads(run_ended().encode()[1])
