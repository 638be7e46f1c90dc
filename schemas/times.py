"""Time as Millrace keeps it: UTC, integer microseconds since 1970-01-01T00:00:00Z.

Bar time (``ts_*``) and wall time (``wall_time``, ``*_at``) are different things and never share a column.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from schemas.errors import InputError

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}


def wall_now() -> int:
    """The wall clock in UTC microseconds. For stamps that people read; never for an identity or an order."""
    return time.time_ns() // 1_000


@lru_cache(maxsize=16)  # all events of one publish() have one time
def to_iso(ts: int) -> str:
    """ISO-8601 of a time in UTC microseconds: ``2013-03-01T00:00:00Z``, with a fraction only where there is one."""
    moment = _EPOCH + timedelta(microseconds=ts)
    return moment.isoformat().replace("+00:00", "Z")


def from_iso(text: str) -> int:
    """UTC microseconds of an ISO-8601 time or date. A time without a zone is UTC.

    Raises:
        InputError: the text is no ISO-8601 time.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"time {text!r}: expected ISO-8601 such as 2013-03-01 or 2013-03-01T14:30:00Z") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def interval_us(interval: str) -> int:
    """Length of a bar interval such as ``1m``, ``4h``, ``1d`` in microseconds.

    Raises:
        InputError: not a whole number followed by one of s, m, h, d, w.
    """
    found = re.fullmatch(r"([1-9]\d*)([smhdw])", interval)
    if found is None:
        raise InputError(f"interval {interval!r}: expected a whole number and one of s, m, h, d, w, such as 1m or 1d")
    return int(found[1]) * _UNITS[found[2]]
