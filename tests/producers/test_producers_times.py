from __future__ import annotations

import pytest

from producers.times import parse_time
from schemas.errors import InputError
from schemas.times import from_iso

SECOND = from_iso("2025-01-01T00:00:01")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-01-01T00:00:01Z", (SECOND, False)),
        ("2025-01-01 00:00:01", (SECOND, False)),
        ("2025-01-01T05:30:01+05:30", (SECOND, False)),
        (" 2025-01-01 ", (SECOND - 1_000_000, False)),
        ("20250101", (SECOND - 1_000_000, False)),
        ("2025-01-01T00:00:01.000000001Z", (SECOND, True)),
        ("2025-01-01T00:00:01.000000000Z", (SECOND, False)),
        ("1735689601", (SECOND, False)),
        ("1735689601.0", (SECOND, False)),
        ("1735689601.25", (SECOND + 250_000, False)),
        ("1.735689601e9", (SECOND, False)),
        ("1735689601000", (SECOND, False)),
        ("1735689601000000", (SECOND, False)),
        ("1735689601000000000", (SECOND, False)),
        ("1735689601000000999", (SECOND, True)),
        ("-1000000000", (from_iso("1938-04-24T22:13:20"), False)),
        ("-1000000000000000001", (from_iso("1938-04-24T22:13:19.999999"), True)),
        ("99999999999.9", None),
        ("100000000000", (from_iso("1973-03-03T09:46:40"), False)),
        ("100000000000000", (from_iso("1973-03-03T09:46:40"), False)),
        ("100000000000000000", (from_iso("1973-03-03T09:46:40"), False)),
    ],
)
def test_unit_of_a_time_shows_in_its_form_and_size(text: str, expected: tuple[int, bool] | None) -> None:
    if expected is None:
        with pytest.raises(InputError, match="1800 to 2199"):
            parse_time(text)
    else:
        assert parse_time(text) == expected


@pytest.mark.parametrize(
    "text", ["", "nan", "NaT", "03/01/2013", "2013-02-30", "20130230", "9999-12-31", "1e30", "1e99", "inf", "١٢٣٤٥"]
)
def test_text_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"time .*expected|too large"):
        parse_time(text)
