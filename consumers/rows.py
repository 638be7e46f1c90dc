"""Events as rows: which table an event goes to, and its columns as they are inserted.

A table's columns carry the names of the payload's fields, so the payload models (schemas/payloads.py) are the only
list of them; here stands what differs. Fields that a newer minor version added are not stored until the table has a
column for them: the record stays on the log.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from eventlog.log import StoredRecord
from schemas.errors import SchemaError
from schemas.events import Event, decode
from schemas.payloads import (
    PAYLOADS,
    ActionsTaken,
    AttemptStarted,
    EpisodeEnded,
    EpisodeStarted,
    Fills,
    IterationEnded,
    Payload,
    Positions,
    PublisherReport,
    RunEnded,
    RunStarted,
    Steps,
    Trades,
    WindowOpened,
)

LEDGER = "events_rows"
"""One row per stored record; written after the rows that it counts."""

_TABLE_OF: dict[type[Payload], str] = {
    RunStarted: "runs_started_rows",
    RunEnded: "runs_ended_rows",
    AttemptStarted: "attempts_rows",
    WindowOpened: "windows_rows",
    IterationEnded: "iterations_rows",
    PublisherReport: "publisher_reports_rows",
    EpisodeStarted: "episodes_started_rows",
    EpisodeEnded: "episodes_ended_rows",
    ActionsTaken: "episode_actions_rows",
    Trades: "trades_rows",
    Fills: "fills_rows",
    Steps: "steps_rows",
    Positions: "positions_rows",
}

_ENVELOPE = ("run_id", "attempt", "publisher_id", "number", "wall_time")

_INT64 = 2**63
_FLOAT64_WHOLE = 2**53  # Actions are stored as Float64, which holds every whole number up to here.
# What DateTime64(6) holds: 1900-01-01 to 2299-12-31. ClickHouse would clip a time outside it without a word.
_FIRST_TIME, _LAST_TIME = -2_208_988_800_000_000, 10_413_791_999_999_999

# ClickHouse-connect writes ints, floats and strings from any sequence; arrays hold them at 8 bytes and refuse an
# integer past 64 bits while the record can still be named, not when the whole batch is written.
_COLUMN_OF: dict[str, Callable[[], Any]] = {"list[int]": lambda: array("q"), "list[float]": lambda: array("d")}


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    is_time: bool
    has_integers: bool
    new_column: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Where the events of one type go.

    Attributes:
        name: the table in ClickHouse.
        columns: names of its columns, in the order of insertion.
        scalars: fields of the payload that hold one value a record.
        lists: fields of the payload that hold one value a row.
    """

    name: str
    columns: tuple[str, ...]
    scalars: tuple[_Field, ...]
    lists: tuple[_Field, ...]


def _is_time(name: str) -> bool:
    return name in ("ts", "wall_time") or name.endswith(("_ts", "_at"))


def _table(model: type[Payload]) -> Table:
    fields = {
        name: _Field(name, _is_time(name), "int" in str(info.annotation), _COLUMN_OF.get(str(info.annotation), list))
        for name, info in model.model_fields.items()
        if name != "first_row"
    }
    lists = tuple(fields.pop(name) for name in model.COLUMNS)
    scalars = tuple(fields.values())
    if model is ActionsTaken:  # One row a record: an action may be a vector, and nobody filters by one.
        columns: tuple[str, ...] = (
            *_ENVELOPE,
            "episode_id",
            "first_row",
            "action_kind",
            "action_size",
            "steps",
            "actions",
        )
    else:
        row_no = ("row_no",) if lists else ()
        columns = (*_ENVELOPE, *(f.name for f in scalars), *row_no, *(f.name for f in lists))
    return Table(_TABLE_OF[model], columns, scalars, lists)


TABLES: dict[str, Table] = {event_type: _table(model) for event_type, model in PAYLOADS.items()}
"""Event type to its table."""

LEDGER_COLUMNS = (
    *("run_id", "attempt", "publisher_id", "event_type", "number", "part", "parts", "rows", "event_id", "wall_time"),
    *("topic", "partition", "offset", "published_at"),
)


@dataclass(slots=True)
class Block:
    """Rows of one table, gathered column by column."""

    columns: tuple[str, ...]
    data: list[Any]
    rows: int = 0

    @classmethod
    def empty(cls, columns: tuple[str, ...]) -> Block:
        """A block without rows; each column becomes what is first put into it."""
        return cls(columns, [None] * len(columns))

    def extend(self, columns: Sequence[Any], rows: int) -> None:
        """Append rows that are given as columns in the block's order."""
        data = self.data
        if self.rows:
            for index, column in enumerate(columns):
                data[index].extend(column)
        else:
            data[:] = columns
        self.rows += rows


@dataclass(slots=True)
class Rows:
    """Rows of many events, by table; the ledger's apart, since it is written last."""

    tables: dict[str, Block] = field(default_factory=dict)
    ledger: Block = field(default_factory=lambda: Block.empty(LEDGER_COLUMNS))

    @property
    def count(self) -> int:
        """Rows of all data tables."""
        return sum(block.rows for block in self.tables.values())

    def add(self, event: Event, record: StoredRecord) -> int:
        """Add an event's rows and its line in the ledger: all of them, or on an error none.

        Returns:
            How many rows the event has in its own table.

        Raises:
            SchemaError: an integer or a time that the store cannot hold. The message holds no value of the record.
        """
        table = TABLES[event.event_type]
        columns, rows = _columns(event, table)
        declared = event.rows if event.data.COLUMNS else 1
        line: tuple[Any, ...] = (
            *(event.run_id, event.attempt, event.publisher_id, event.event_type, event.number, event.part),
            *(event.parts, declared, event.event_id, event.wall_time),
            *(record.topic, record.partition, record.offset, record.published_at),
        )
        _check_integers(event, {"part": event.part, "parts": event.parts})
        if rows:
            block = self.tables.get(table.name)
            if block is None:
                block = self.tables[table.name] = Block.empty(table.columns)
            block.extend(columns, rows)
        self.ledger.extend([[value] for value in line], 1)
        return rows


def read_event(record: StoredRecord) -> Event:
    """The event in a record of the log.

    Raises:
        SchemaError: it cannot be read, or lacks the header ``ce_id`` by which it can be counted without being read.
    """
    headers = dict(record.headers)
    if "ce_id" not in headers:
        raise SchemaError("record headers: expected ce_id (CloudEvents binary mode), found none")
    return decode(record.value, headers)


def _columns(event: Event, table: Table) -> tuple[list[Any], int]:
    _check_integers(event, {"attempt": event.attempt, "number": event.number})
    _check_times(event, "wall_time", (event.wall_time,))
    data = event.data
    rows = data.rows if table.lists else 1
    envelope = (event.run_id, event.attempt, event.publisher_id, event.number, event.wall_time)
    columns: list[Any] = [[value] * rows for value in envelope]
    if isinstance(data, ActionsTaken):
        columns = [[value] for value in (*envelope, *_actions(event, data))]
        return columns, 1
    for known in table.scalars:
        columns.append([_scalar(event, known, getattr(data, known.name))] * rows)
    if table.lists:
        first_row = int(getattr(data, "first_row", 0))
        _check_integers(event, {"first_row": first_row + rows})
        columns.append(array("q", range(first_row, first_row + rows)))
        columns.extend(_list(event, known, getattr(data, known.name)) for known in table.lists)
    return columns, rows


def _scalar(event: Event, known: _Field, value: Any) -> Any:
    if known.is_time and value is not None:
        _check_times(event, known.name, (value,))
    elif known.name == "parameters":  # Anything a setting may be: kept as JSON.
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    elif known.has_integers:
        _check_integers(event, {known.name: value})
    return value


def _list(event: Event, known: _Field, values: list[Any]) -> Any:
    column = known.new_column()
    try:
        column.extend(values)
    except OverflowError as error:
        raise SchemaError(f"{event.event_id}: {known.name}: expected integers of 64 bits, got a larger one") from error
    if isinstance(column, list) and known.has_integers:
        _check_integers(event, {known.name: column})
    elif known.is_time:
        _check_times(event, known.name, column)
    return column


def _actions(event: Event, data: ActionsTaken) -> tuple[Any, ...]:
    actions = data.actions
    size, kind = 1, "discrete"
    flat: list[float] = []
    if actions and isinstance(actions[0], list):
        vectors: list[list[float]] = [action for action in actions if isinstance(action, list)]
        sizes = {len(vector) for vector in vectors}
        if len(sizes) != 1:
            raise SchemaError(f"{event.event_id}: actions: expected vectors of one length, got lengths {sorted(sizes)}")
        size, kind = sizes.pop(), "box"
        flat = [float(number) for vector in vectors for number in vector]
    else:
        scalars = [action for action in actions if not isinstance(action, list)]
        kind = "box" if any(isinstance(action, float) for action in scalars) else "discrete"
        if kind == "discrete" and any(abs(action) > _FLOAT64_WHOLE for action in scalars):
            raise SchemaError(f"{event.event_id}: actions: expected whole numbers up to 2^53, got a larger one")
        flat = [float(action) for action in scalars]
    _check_integers(event, {"first_row": data.first_row})
    return data.episode_id, data.first_row, kind, size, len(actions), flat


def _check_integers(event: Event, values: dict[str, Any]) -> None:
    for name, value in values.items():
        inner: Iterable[Any] = (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else (value,)
        )
        if any(isinstance(number, int) and not -_INT64 <= number < _INT64 for number in inner):
            raise SchemaError(f"{event.event_id}: {name}: expected integers of 64 bits, got a larger one")


def _check_times(event: Event, name: str, times: Sequence[int]) -> None:
    if times and not (min(times) >= _FIRST_TIME and max(times) <= _LAST_TIME):
        raise SchemaError(f"{event.event_id}: {name}: expected microseconds between the years 1900 and 2299")
