"""Times and intervals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InputError
from schemas.times import DAY, MINUTE, from_iso, interval_us, to_iso


def test_dates_before_1970_are_negative() -> None:
    assert from_iso("1962-01-02") == -2921 * DAY
    assert to_iso(-2921 * DAY) == "1962-01-02T00:00:00Z"


def test_a_time_with_a_zone_is_converted_to_utc() -> None:
    assert from_iso("2013-03-01T09:30:00-05:00") == from_iso("2013-03-01T14:30:00")


@given(st.integers(min_value=-(10**16), max_value=10**16))
def test_iso_round_trip_is_exact(ts: int) -> None:
    assert from_iso(to_iso(ts)) == ts


def test_intervals() -> None:
    assert interval_us("1d") == DAY
    assert interval_us("15m") == 15 * MINUTE


@pytest.mark.parametrize("text", ["", "d", "0m", "1y", "1 d", "-1m", "1M"])
def test_other_intervals_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a whole number"):
        interval_us(text)


def test_a_text_that_is_no_time_is_refused() -> None:
    with pytest.raises(InputError, match="03/01/2013.*ISO-8601"):
        from_iso("03/01/2013")
