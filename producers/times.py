"""Times as feed files write them: ISO-8601, YYYYMMDD, or a number since 1970 whose unit shows in its size."""

from __future__ import annotations

import math
import re
from decimal import Decimal

from schemas.errors import InputError
from schemas.times import from_iso, to_iso

EXPECTED = "ISO-8601, YYYYMMDD, or seconds, ms, µs or ns since 1970"

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,2})?")
_BASIC_DATE = re.compile(r"[0-9]{8}")
_BELOW_MICROSECOND = re.compile(r"[.,][0-9]{6}0*[1-9]")

# Size of a number below which it counts in a unit, and that unit in microseconds. Read as seconds, 1e11 lies in the
# year 5138; read as milliseconds, in 1973: the units cannot be mistaken for one another on any real market's dates.
_UNITS = (
    (Decimal("1e11"), Decimal(1_000_000)),
    (Decimal("1e14"), Decimal(1_000)),
    (Decimal("1e17"), Decimal(1)),
    (Decimal("1e20"), Decimal("0.001")),
)

# A bar outside these years is a misread time, not history.
_EARLIEST = from_iso("1800-01-01")
_LATEST = from_iso("2200-01-01")


def parse_time(text: str) -> tuple[int, bool]:
    """Time in UTC microseconds, and whether a part below a microsecond was cut off (towards the past).

    A time without a zone is UTC. Eight digits are a date: 20130301 is a day in 2013, not a second in 1970.

    Raises:
        InputError: the text is no time, or one outside the years 1800 to 2199.
    """
    text = text.strip()
    if _NUMBER.fullmatch(text) and not _BASIC_DATE.fullmatch(text):
        ts, cut = _from_epoch(text)
    else:
        ts, cut = from_iso(text), _BELOW_MICROSECOND.search(text) is not None
    if not _EARLIEST <= ts < _LATEST:
        raise InputError(f"time {text!r}: expected the years 1800 to 2199; is it in another unit or format?")
    return ts, cut


def _from_epoch(text: str) -> tuple[int, bool]:
    value = Decimal(text)
    for limit, microseconds in _UNITS:
        if abs(value) < limit:
            exact = value * microseconds
            ts = math.floor(exact)
            return ts, exact != ts
    raise InputError(f"time {text!r}: too large for nanoseconds since {to_iso(0)}")
