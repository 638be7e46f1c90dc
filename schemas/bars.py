"""Bars on the log: 1 to 4,096 consecutive bars of one (feed, symbol, interval, adjusted) as columns.

A bar is (feed, symbol, interval, ts_close); it becomes known at ``ts_close``, never at ``ts_open``. Its lineage is
(topic, partition, offset, row in the record).
"""

from __future__ import annotations

import math
from typing import Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schemas.errors import SchemaError
from schemas.events import SCHEMA_VERSION, Headers
from schemas.times import to_iso

MAX_BARS = 4_096
EVENT_TYPE = "bars"


class BarsRecord(BaseModel):
    """Consecutive bars in order of ``ts_close``."""

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: str = Field(default=SCHEMA_VERSION, pattern=r"^\d+\.\d+$")
    event_type: str = EVENT_TYPE
    feed: str = Field(pattern=r"^[^/]+$", description="Name of the feed; a replay of the same file keeps it")
    symbol: str = Field(pattern=r"^[^/]+$")
    interval: str = Field(pattern=r"^[1-9]\d*[smhdw]$")
    adjusted: bool = Field(description="Prices and volume adjusted for splits and dividends")
    source: str = Field(default="", description="Where the bars came from: a file's name and the start of its SHA-256")
    wall_time: int = Field(description="When the record was made; UTC microseconds")
    ts_open: list[int]
    ts_close: list[int] = Field(min_length=1, max_length=MAX_BARS)
    open: list[float]
    high: list[float]
    low: list[float]
    close: list[float]
    volume: list[float | None] = Field(description="None where the feed has none")
    funding_rate: list[float | None] | None = Field(
        default=None,
        description="Fraction of the notional that a long pays and a short receives at the close, None where none is"
        " due; absent where the feed has no such column",
    )

    @model_validator(mode="after")
    def _bars_are_sound(self) -> Self:
        columns = (self.ts_open, self.ts_close, self.open, self.high, self.low, self.close, self.volume)
        lengths = [len(column) for column in columns]
        if self.funding_rate is not None:
            lengths.append(len(self.funding_rate))
        if len(set(lengths)) > 1:
            raise ValueError(f"columns of different lengths {lengths}")
        previous = None
        for row, (ts_open, ts_close, low, high) in enumerate(
            zip(self.ts_open, self.ts_close, self.low, self.high, strict=True)
        ):
            prices = (self.open[row], high, low, self.close[row])
            if not all(math.isfinite(price) and price > 0 for price in prices):
                raise ValueError(f"row {row}: a price is not a finite number above 0")
            if not (low <= self.open[row] <= high and low <= self.close[row] <= high):
                raise ValueError(f"row {row}: open or close outside low..high")
            if ts_open >= ts_close or (previous is not None and ts_close <= previous):
                raise ValueError(f"row {row}: times do not rise")
            previous = ts_close
        for row, rate in enumerate(self.funding_rate or ()):
            if rate is not None and not math.isfinite(rate):
                raise ValueError(f"row {row}: a funding rate is not a finite number")
        return self

    @property
    def key(self) -> bytes:
        """The record's key: one series keeps to one partition, so its bars stay in order."""
        return f"{self.feed}/{self.symbol}/{self.interval}".encode()

    @property
    def event_id(self) -> str:
        """Identity of the record by what it holds."""
        adjusted = "adjusted" if self.adjusted else "raw"
        return f"{self.key.decode()}:{adjusted}:{to_iso(self.ts_close[0])}..{to_iso(self.ts_close[-1])}"

    def encode(self) -> tuple[bytes, bytes, Headers]:
        """Key, value and headers of the record."""
        headers = (
            ("ce_specversion", b"1.0"),
            ("ce_id", self.event_id.encode()),
            ("ce_type", EVENT_TYPE.encode()),
            ("ce_source", f"feed/{self.feed}".encode()),
            ("ce_time", to_iso(self.wall_time).encode()),
            ("content-type", b"application/json"),
        )
        absent = {"funding_rate"} if self.funding_rate is None else None
        return self.key, orjson.dumps(self.model_dump(mode="json", exclude=absent)), headers


def decode_bars(value: bytes) -> BarsRecord:
    """The bars in a record's value.

    Raises:
        SchemaError: not JSON, a newer major version, or bars that break the rules above. Never quotes a value.
    """
    try:
        body = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise SchemaError(f"bars record: expected UTF-8 JSON, got {len(value)} bytes that are not: {error}") from error
    version = body.get("schema_version") if isinstance(body, dict) else None
    if not isinstance(version, str) or version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise SchemaError(f"bars record: expected schema_version {SCHEMA_VERSION.split('.')[0]}.x")
    try:
        return BarsRecord.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
        raise SchemaError(f"bars record: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
