"""How many bars a year has, for annual figures, from the times of the bars alone."""

from __future__ import annotations

import numpy as np

from env.bars import Ints
from schemas.times import DAY

CALENDAR_DAYS = 365.0
TRADING_DAYS = 252.0

_SATURDAY = 2  # day number modulo 7: 1970-01-01 was a Thursday


def bars_per_year(ts_open: Ints, interval: int) -> float:
    """Bars a year of a series with these opening times.

    - Bars longer than a day: 365 days over the interval (weekly: 52.14).
    - A market that trades on Saturdays (UTC; on at least half of those between its first and last bar) has 365 days a
      year, another one 252. Without a Saturday between them it counts as open every day if its days are full.
    - A day has the median number of bars over the days with any; the first and the last day, which may be parts, do
      not count where there are others.

    So crypto of one minute has 525,600, daily stocks 252, and an exchange open for 390 minutes a day 98,280.

    Args:
        ts_open: Opening times, UTC µs, int64 (n,), rising.
        interval: Length of a bar, µs.
    """
    if interval > DAY:
        return CALENDAR_DAYS * DAY / interval
    days, counts = np.unique(ts_open // DAY, return_counts=True)
    whole = counts[1:-1] if len(days) > 2 else counts
    a_day = float(np.median(whole))
    span = np.arange(days[0], days[-1] + 1)
    saturdays = int((span % 7 == _SATURDAY).sum())
    around_the_clock = 1 < a_day == DAY // interval
    traded = int((days % 7 == _SATURDAY).sum())
    every_day = traded * 2 >= saturdays if saturdays else around_the_clock
    return a_day * (CALENDAR_DAYS if every_day else TRADING_DAYS)
