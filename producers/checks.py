"""Checks that every bar of a feed must pass, whatever the layout of its file.

Each check marks the rows that fail it and says why. A row is reported once, for the first check that it fails.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from producers.rows import BadRow, Flags, Floats, Ints, Rows
from schemas.times import interval_us, to_iso

NOISE = 1e-9
"""How far, relative to the price, open and close may pass high and low as rounding noise.

Sources that adjust prices themselves round each price on its own, so a close at the day's high can end a last digit
above it. Such a bar is kept, and its high and low are widened to hold open and close.
"""


class Checker:
    """Marks bad rows of one file."""

    def __init__(self, file: str, rows: Rows) -> None:
        """Begin with the rows that could not be read."""
        self._file = file
        self._rows = rows
        self.good: Flags = np.ones(len(rows.row), dtype=np.bool_)
        self.bad: list[BadRow] = list(rows.bad)

    def check_values(self) -> None:
        """Symbols, prices and volume, each row by itself. Widens high and low by rounding noise."""
        rows, prices = self._rows, self._rows.prices
        unfit = np.array([not name or "/" in name for name in rows.symbols], dtype=np.bool_)
        self._reject(
            unfit[rows.code], "ticker", lambda at: repr(rows.symbols[rows.code[at]]), "a name without '/'", "symbol"
        )
        columns = dict(prices) if rows.adj_close is None else {**prices, "adj close": rows.adj_close}
        for name, values in columns.items():
            sound = np.isfinite(values) & (values > 0)
            self._reject(~sound, name, _number_at(values), "a finite price above 0", "price")
        volume = rows.volume
        sound = np.isnan(volume) | (np.isfinite(volume) & (volume >= 0))
        self._reject(~sound, "volume", _number_at(volume), "a finite number of at least 0, or nothing", "volume")
        if (rate := rows.funding_rate) is not None:
            self._reject(
                np.isinf(rate), "funding rate", _number_at(rate), "a finite number, or nothing", "funding rate"
            )
        high, low = prices["high"], prices["low"]
        self._reject(high < low, "high", _number_at(high), "at least the low", "high below low")
        for name in ("open", "close"):
            price = prices[name]
            outside = (price > high * (1 + NOISE)) | (price < low * (1 - NOISE))
            self._reject(outside, name, _number_at(price), "a price from low to high", "outside low to high")
            np.maximum(high, price, out=high, where=self.good)
            np.minimum(low, price, out=low, where=self.good)

    def check_order(self, at: Ints) -> Ints:
        """Check that the times of one symbol rise.

        Args:
            at: the symbol's rows in the file's order.

        Returns:
            Those of them that are good.
        """
        at = at[self.good[at]]
        ts = self._rows.ts[at]
        latest = np.maximum.accumulate(ts)[:-1]
        twice, back = np.zeros(len(at), dtype=np.bool_), np.zeros(len(at), dtype=np.bool_)
        twice[1:], back[1:] = ts[1:] == latest, ts[1:] < latest
        self._reject_at(at[twice], "date", self._time_at, "a later time than the row before", "duplicate time")
        self._reject_at(
            at[back], "date", self._time_at, "a later time than the rows before; sort the file", "falling time"
        )
        return at[self.good[at]]

    def check_overlap(self, at: Ints, interval: str) -> Ints:
        """Check that no bar of one symbol begins before the one before it has closed, as in a mix of intervals.

        Args:
            at: the symbol's good rows, with rising times.
            interval: length of the bars, such as ``1d``.

        Returns:
            Those that are still good.
        """
        if len(at) < 2:
            return at
        ts = self._rows.ts[at]
        length = interval_us(interval)
        if int(np.diff(ts).min()) < length:
            closed = int(ts[0])
            early = []
            for place, start in enumerate(ts.tolist()):
                if start < closed:
                    early.append(place)
                else:
                    closed = start + length
            expected = f"the bar of {interval} before to have closed; is the interval another, or a mix?"
            self._reject_at(at[early], "date", self._time_at, expected, "overlap")
        return at[self.good[at]]

    def _time_at(self, at: int) -> str:
        return to_iso(int(self._rows.ts[at]))

    def _reject(self, wrong: Flags, column: str, value: Callable[[int], str], expected: str, reason: str) -> None:
        self._reject_at(np.flatnonzero(wrong & self.good), column, value, expected, reason)

    def _reject_at(self, at: Ints, column: str, value: Callable[[int], str], expected: str, reason: str) -> None:
        self.good[at] = False
        rows, name = self._rows, self._rows.names.get(column, column)
        self.bad.extend(
            BadRow(self._file, int(rows.row[i]), rows.symbols[rows.code[i]], name, value(int(i)), expected, reason)
            for i in at
        )


def _number_at(values: Floats) -> Callable[[int], str]:
    return lambda at: repr(float(values[at]))
