"""Coarser bars made of finer ones, and what of them is known at the close of each fine bar.

Periods are aligned to UTC: an hour begins at a full hour, a day at 00:00, a week on Monday. A fine bar belongs to the
period in which it closes, (begin, end]. The coarse bar is known at the first fine bar that closes at or after the
period's end, and is never used before: not a part of it, not even its open.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from env.bars import Bars, Floats, Ints
from schemas.errors import SettingsError
from schemas.times import DAY, SECOND

_WEEK = 7 * DAY
_FIRST_MONDAY = 4 * DAY  # 1970-01-05; the epoch was a Thursday


def check_intervals(fine: int, coarse: int, name: str) -> None:
    """Raise SettingsError unless ``coarse`` is two or more times ``fine``, without remainder (both µs)."""
    if coarse % fine or coarse <= fine:
        raise SettingsError(
            f"feature {name!r}: expected an interval of two or more whole bars of {fine / SECOND:g} s,"
            f" got {coarse / SECOND:g} s; choose a multiple, or leave the interval out"
        )


def fine_lookback(lookback: int, ratio: int) -> int:
    """Fine bars before a row that a feature of coarse bars needs there.

    The newest closed period, ``lookback`` before it, and at most ``ratio - 2`` bars of the period under way. One bar
    less would not tell whether the oldest period is whole. With gaps fewer fine bars make a period, so this is enough.

    Args:
        lookback: The feature's look-back in coarse bars.
        ratio: Fine bars in a coarse one.
    """
    return (lookback + 2) * ratio - 2


@dataclass(frozen=True, eq=False)
class Coarser:
    """Coarse bars of one symbol, and where they are known.

    Attributes:
        bars: The closed periods that hold a fine bar, perhaps none. The first period counts only if the data begins
            with it: a part of it would be another bar.
        known: The newest period known at each fine bar, index into ``bars``, int64 (n,); -1 before the first.
    """

    bars: Bars
    known: Ints

    @classmethod
    def of(cls, fine: Bars, interval: int) -> Coarser:
        """Gather the fine bars in periods of ``interval`` µs."""
        shift = _FIRST_MONDAY if interval % _WEEK == 0 else 0
        period = (fine.ts_close - shift - 1) // interval
        first = np.flatnonzero(np.diff(period, prepend=period[0] - 1))
        begin = period[first] * interval + shift
        kept = begin + interval <= fine.ts_close[-1]
        kept[0] &= bool(fine.ts_open[0] <= begin[0])
        bars = _gather(fine, interval, first, begin)
        bars = Bars(fine.symbol, interval, **{name: getattr(bars, name)[kept] for name in Bars.columns()})
        known = np.searchsorted(bars.ts_close, fine.ts_close, side="right") - 1
        return cls(bars, known)

    def spread(self, values: Floats) -> Floats:
        """Values of the coarse bars (m,) at the fine bars that know them (n,); 0 before the first."""
        out = np.zeros(len(self.known))
        there = self.known >= 0
        out[there] = values[self.known[there]]
        return out


def _gather(fine: Bars, interval: int, first: Ints, begin: Ints) -> Bars:
    """One bar a period; ``first`` is the row of its first fine bar. A missing fine bar adds nothing to it."""
    last = np.append(first[1:], len(fine)) - 1
    tradable = np.logical_or.reduceat(fine.tradable, first)
    # The first fine bar of the period with prices; its other ones stand at the last close.
    rows = np.where(fine.tradable, np.arange(len(fine)), len(fine))
    opened = np.minimum(np.minimum.reduceat(rows, first), last)
    close = fine.close[last]
    high = np.maximum.reduceat(np.where(fine.tradable, fine.high, -np.inf), first)
    low = np.minimum.reduceat(np.where(fine.tradable, fine.low, np.inf), first)
    return Bars(
        fine.symbol,
        interval,
        ts_open=begin,
        ts_close=begin + interval,
        open=np.where(tradable, fine.open[opened], close),
        high=np.where(tradable, high, close),
        low=np.where(tradable, low, close),
        close=close,
        volume=np.add.reduceat(fine.volume, first),
        funding=np.add.reduceat(fine.funding, first),
        tradable=tradable,
    )
