"""Bars on the log."""

from typing import Any

import orjson
import pytest

from schemas.bars import MAX_BARS, BarsRecord, decode_bars
from schemas.errors import SchemaError
from schemas.times import DAY


def record(n: int = 3, **changes: Any) -> dict[str, Any]:
    return {
        "schema_version": "1.0",
        "feed": "f",
        "symbol": "AAPL",
        "interval": "1d",
        "adjusted": True,
        "wall_time": 0,
        "ts_open": [i * DAY for i in range(n)],
        "ts_close": [(i + 1) * DAY for i in range(n)],
        "open": [10.0] * n,
        "high": [11.0] * n,
        "low": [9.0] * n,
        "close": [10.5] * n,
        "volume": [None] * n,
    } | changes


def test_round_trip_and_identity() -> None:
    bars = BarsRecord.model_validate(record())
    key, value, headers = bars.encode()
    assert key == b"f/AAPL/1d"
    assert decode_bars(value) == bars
    assert dict(headers)["ce_id"] == b"f/AAPL/1d:adjusted:1970-01-02T00:00:00Z..1970-01-04T00:00:00Z"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"close": [10.0, -1.0, 10.0]}, "row 1: a price"),
        ({"close": [10.0, 12.0, 10.0]}, "row 1: open or close outside low..high"),
        ({"high": [11.0, 8.0, 11.0]}, "row 1: open or close outside low..high"),
        ({"ts_close": [DAY, DAY, 3 * DAY]}, "row 1: times do not rise"),
        ({"open": [10.0, 10.0]}, "columns of different lengths"),
        ({"symbol": "A/B"}, "symbol"),
        ({"interval": "daily"}, "interval"),
        ({"schema_version": "2.0"}, "schema_version 1.x"),
        ({"close": [10.0, None, 10.0]}, "close"),
        ({"funding_rate": [0.0, None]}, "columns of different lengths"),
        ({"funding_rate": [0.0, "much", None]}, "funding_rate"),
    ],
)
def test_bars_that_break_the_rules_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        decode_bars(orjson.dumps(record(**changes)))


def test_a_record_holds_at_most_4096_bars() -> None:
    decode_bars(orjson.dumps(record(MAX_BARS)))
    with pytest.raises(SchemaError, match="4096"):
        decode_bars(orjson.dumps(record(MAX_BARS + 1)))


@pytest.mark.parametrize("value", [b"", b"[]", b"\xff\xfe"])
def test_other_bytes_are_refused(value: bytes) -> None:
    with pytest.raises(SchemaError):
        decode_bars(value)


def test_funding_rates_are_carried_where_the_feed_has_them() -> None:
    with_rates = BarsRecord.model_validate(record(funding_rate=[0.0001, None, -0.0002]))
    assert decode_bars(with_rates.encode()[1]) == with_rates
    without = BarsRecord.model_validate(record())
    assert b"funding_rate" not in without.encode()[1]
    assert decode_bars(without.encode()[1]).funding_rate is None
    with pytest.raises(ValueError, match="row 1: a funding rate is not a finite number"):
        BarsRecord.model_validate(record(funding_rate=[0.0, float("inf"), 0.0]))
