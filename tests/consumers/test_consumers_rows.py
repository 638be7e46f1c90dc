"""Events as rows: nothing is left out, and what the store cannot hold is refused while it can still be named."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.migrate import statements, steps
from consumers.rows import LEDGER, LEDGER_COLUMNS, TABLES, Rows, read_event
from eventlog.log import StoredRecord
from schemas.errors import SchemaError
from schemas.events import Event
from schemas.payloads import PAYLOADS, ActionsTaken, IterationEnded, RunStarted

PUBLISHER = "01a20724-faec-7b9f-92a6-98b8e508ba6f.1.r1.0.n0de00"


def event_of(payload: Any, **changes: Any) -> Event:
    facts: dict[str, Any] = {
        "event_type": payload.EVENT_TYPE,
        "run_id": PUBLISHER[:36],
        "attempt": 1,
        "publisher_id": PUBLISHER,
        "number": 1,
        "rows": payload.rows,
        "wall_time": 1_780_000_000_000_000,
        "data": payload,
    }
    return Event(**{**facts, **changes})


def stored(event: Event, **changes: Any) -> StoredRecord:
    key, value, headers = event.encode()
    return StoredRecord(**{"topic": "millrace.runs.v1", "partition": 0, "offset": 3, "published_at": 5, "key": key,
                           "value": value, "headers": headers, **changes})  # fmt: skip


def iteration(**changes: Any) -> IterationEnded:
    facts: dict[str, Any] = {"iteration": 1, "env_steps": 1, "env_steps_total": 1, "episodes": 0, "policy_version": 0}
    return IterationEnded(**{**facts, "episode_return_mean": None, "seconds": 0.5, **changes})


def sql_columns() -> dict[str, set[str]]:
    tables = {}
    for statement in statements(steps()[0].sql):
        found = re.match(r"CREATE TABLE IF NOT EXISTS (\w+)\s*\((.*)\)\s*ENGINE", statement, re.DOTALL)
        assert found, statement
        tables[found[1]] = set(re.findall(r"(?:^|,)\s*(\w+) [A-Z]", found[2]))
    return tables


def test_every_field_of_every_payload_has_a_column() -> None:
    tables = sql_columns()
    for event_type, table in TABLES.items():
        assert set(table.columns) == tables[table.name], event_type
        missing = set(PAYLOADS[event_type].model_fields) - set(table.columns) - {"first_row"}
        assert not missing, (event_type, missing)
    assert set(LEDGER_COLUMNS) == tables[LEDGER] - {"stored_at"}


@pytest.mark.parametrize(
    ("payload", "changes", "words"),
    [
        (iteration(iteration=2**63), {}, "iteration: expected integers of 64 bits"),
        (iteration(), {"number": 2**63}, "number: expected integers of 64 bits"),
        (
            iteration(),
            {"wall_time": 10_500_000_000_000_000},
            "wall_time: expected microseconds between the years 1900 and 2299",
        ),
        (ActionsTaken(episode_id="e", actions=[[1.0, 2.0], [3.0]]), {}, "actions: expected vectors of one length"),
        (ActionsTaken(episode_id="e", actions=[2**53 + 1]), {}, "actions: expected whole numbers up to 2\\^53"),
        (ActionsTaken(episode_id="e", first_row=2**63, actions=[1]), {}, "first_row: expected integers of 64 bits"),
    ],
)
def test_what_the_store_cannot_hold_is_refused_by_name_and_leaves_no_rows(
    payload: Any, changes: dict[str, Any], words: str
) -> None:
    rows = Rows()
    event = event_of(payload, **changes)
    with pytest.raises(SchemaError, match=words):
        rows.add(event, stored(event))
    assert rows.count == 0
    assert rows.ledger.rows == 0


def test_settings_of_a_run_are_kept_as_json() -> None:
    started = RunStarted(
        name="n", started_at=1, algorithm="DQN", env="e", seed=None, parameters={"b": [1, None], "a": {"x": 2**63 - 1}},
        versions={},
    )  # fmt: skip
    rows = Rows()
    rows.add(event_of(started), stored(event_of(started)))
    block = rows.tables["runs_started_rows"]
    assert block.data[block.columns.index("parameters")] == ['{"a":{"x":9223372036854775807},"b":[1,null]}']


@pytest.mark.parametrize(
    ("actions", "kind", "size", "flat"),
    [
        ([1, 0, 2], "discrete", 1, [1, 0, 2]),
        ([0.5], "box", 1, [0.5]),
        ([[1.0, 2.0], [3.0, 4.0]], "box", 2, [1, 2, 3, 4]),
        ([], "discrete", 1, []),
    ],
)
def test_actions_keep_their_kind_and_shape(actions: Any, kind: str, size: int, flat: list[float]) -> None:
    event = event_of(ActionsTaken(episode_id="e", actions=actions))
    rows = Rows()
    assert rows.add(event, stored(event)) == 1
    block = rows.tables["episode_actions_rows"]
    row = {name: column[0] for name, column in zip(block.columns, block.data, strict=True)}
    assert (row["action_kind"], row["action_size"], row["steps"], row["actions"]) == (kind, size, len(actions), flat)


def test_a_record_without_ce_id_is_refused() -> None:
    with pytest.raises(SchemaError, match="expected ce_id"):
        read_event(stored(event_of(iteration()), headers=()))


def test_fields_of_a_newer_minor_version_are_passed_over() -> None:
    body = orjson.loads(stored(event_of(iteration())).value)
    body["schema_version"] = "1.7"
    body["data"]["new_field"] = {"deep": [1]}
    event = read_event(stored(event_of(iteration()), value=orjson.dumps(body)))
    assert Rows().add(event, stored(event)) == 1


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_GOOD = [
    event_of(iteration()),
    event_of(ActionsTaken(episode_id="e", actions=[1, 2])),
]


@given(st.sampled_from(_GOOD), st.data())
def test_a_damaged_event_is_stored_or_refused_as_a_schema_error_and_nothing_else(
    good: Event, data: st.DataObject
) -> None:
    body = orjson.loads(good.encode()[1])
    place = data.draw(st.sampled_from([body, body["data"]]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(_JSON)
    record = stored(good, value=json.dumps(body).encode())  # json, as orjson writes no integer past 64 bits.
    rows = Rows()
    problem = ""
    try:
        rows.add(read_event(record), record)
    except SchemaError as error:
        problem = str(error)
    assert "\n" not in problem
    assert rows.ledger.rows == (0 if problem else 1)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_event_are_a_schema_error(value: bytes) -> None:
    with pytest.raises(SchemaError):
        read_event(stored(_GOOD[0], value=value))
