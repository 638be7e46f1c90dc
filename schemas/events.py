"""An event on the log: an envelope that says which record this is, and a payload that says what happened.

The record's value is JSON: the envelope's fields, and the payload under ``data``. Its headers are those of
CloudEvents' Kafka binding in binary mode (https://github.com/cloudevents/spec, kafka-protocol-binding 3.2), so that a
consumer can route and count a record whose value it cannot read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas import ids
from schemas.errors import RecordTooLargeError, SchemaError
from schemas.payloads import PAYLOADS, Payload
from schemas.times import to_iso
from schemas.topics import MAX_RECORD_BYTES

SCHEMA_VERSION = "1.0"

Headers = tuple[tuple[str, bytes], ...]


class Envelope(BaseModel):
    """Which record this is, and who published it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: str = Field(default=SCHEMA_VERSION, pattern=r"^\d+\.\d+$")
    event_type: str
    run_id: str
    attempt: int = Field(ge=1)
    publisher_id: str
    number: int = Field(ge=1, description="Counted by the publisher per event type, without gaps")
    part: int = Field(default=1, ge=1)
    parts: int = Field(default=1, ge=1)
    rows: int = Field(default=0, ge=0, description="Rows in this part, of a columnar payload")
    wall_time: int = Field(description="Stamped once, when the event was accepted by the outbox; UTC microseconds")

    @property
    def event_id(self) -> str:
        """The same for every sending of this record."""
        return ids.event_id(self.publisher_id, self.event_type, self.number, self.part, self.parts)

    def record(self, key: str, data: bytes) -> tuple[bytes, bytes, Headers]:
        """Key, value and headers of the record whose payload is this JSON."""
        envelope = {name: getattr(self, name) for name in Envelope.model_fields} | (self.model_extra or {})
        value = b'%b,"data":%b}' % (orjson.dumps(envelope)[:-1], data)
        headers = (
            ("ce_specversion", b"1.0"),
            ("ce_id", self.event_id.encode()),
            ("ce_type", self.event_type.encode()),
            ("ce_source", self.publisher_id.encode()),
            ("ce_time", to_iso(self.wall_time).encode()),
            ("content-type", b"application/json"),
        )
        return key.encode(), value, headers


class Event(Envelope):
    """An envelope with its payload."""

    data: Payload

    def encode(self) -> tuple[bytes, bytes, Headers]:
        """Key, value and headers of the record."""
        key = self.run_id if self.data.TOPIC == "runs" else str(getattr(self.data, "episode_id"))  # noqa: B009
        return self.record(key, orjson.dumps(self.data.model_dump(mode="json")))

    def split(self, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Event]:
        """This event as records that each fit into ``max_bytes``: itself, or parts with consecutive rows.

        Raises:
            RecordTooLargeError: it does not fit and has no rows, or a single row is too large.
        """
        size = _size(self)
        if size <= max_bytes:
            yield self
            return
        rows = self.data.rows
        parts = -(-size // max_bytes) if rows else 0
        while 0 < parts <= rows:
            candidates = list(_parts(self, parts))
            if max(map(_size, candidates)) <= max_bytes:
                yield from candidates
                return
            parts = max(parts + 1, parts * 3 // 2)
        raise RecordTooLargeError(
            f"event {self.event_id}: {size} bytes, expected at most {max_bytes}, and it cannot be split into smaller "
            f"rows ({rows} rows)"
        )


def _size(event: Event) -> int:
    key, value, headers = event.encode()
    return len(key) + len(value) + sum(len(name) + len(content) for name, content in headers)


def _parts(event: Event, parts: int) -> Iterator[Event]:
    rows, first_row = event.data.rows, int(getattr(event.data, "first_row", 0))
    for index in range(parts):
        start, stop = rows * index // parts, rows * (index + 1) // parts
        slices: dict[str, Any] = {name: getattr(event.data, name)[start:stop] for name in event.data.COLUMNS}
        data = event.data.model_copy(update={**slices, "first_row": first_row + start})
        yield event.model_copy(update={"part": index + 1, "parts": parts, "rows": stop - start, "data": data})


def decode(value: bytes, headers: Headers | Mapping[str, bytes] = ()) -> Event:
    """The event in a record's value.

    Raises:
        SchemaError: not UTF-8 JSON, a newer major version, an unknown type, a field missing or of another type, or a
            ``ce_id`` that names another event. The message never holds a value of the record.
    """
    try:
        body = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        # Its text quotes no value of the document, only the position.
        raise SchemaError(f"record value: expected UTF-8 JSON, got {len(value)} bytes that are not: {error}") from error
    if not isinstance(body, dict):
        raise SchemaError(f"record value: expected a JSON object, got {type(body).__name__}")
    version = body.get("schema_version")
    if not isinstance(version, str) or version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        known = SCHEMA_VERSION.split(".")[0]
        raise SchemaError(
            f"record value: expected schema_version {known}.x, got {str(version)[:16]!r}; a newer consumer reads it"
        )
    model = PAYLOADS.get(str(body.get("event_type")))
    if model is None:
        raise SchemaError(f"record value: expected one of the event types {sorted(PAYLOADS)}, got another")
    data = body.pop("data", None)
    try:
        # Strict: the text "12" is no number, and neither is "nan".
        payload = model.model_validate(data, strict=True)
        event = Event.model_validate({**body, "data": payload}, strict=True)
    except ValidationError as error:
        raise SchemaError(f"{body['event_type']}: {_without_values(error)}") from error
    if payload.COLUMNS and event.rows != payload.rows:
        raise SchemaError(f"{event.event_id}: declares {event.rows} rows, holds {payload.rows}")
    claimed = dict(headers).get("ce_id")
    if claimed is not None and claimed != event.event_id.encode():
        raise SchemaError(f"{event.event_id}: the header ce_id names another event")
    return event


def _without_values(error: ValidationError) -> str:
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    shown = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems[:3])
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return f"{shown}{more}"
