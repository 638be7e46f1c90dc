"""Bars of one symbol: as they were handed in, and with what is missing filled in for everything that computes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

PRICES = ("open", "high", "low", "close")

_UNEVEN = 0.1
"""How far a bar's length may be from the usual one, as a fraction: days of 23 and 25 hours, months of 28 days."""


@dataclass(frozen=True)
class SymbolBars:
    """Consecutive bars of one symbol and one interval, oldest first. Gaps between bars are fine, overlaps are not.

    Attributes:
        symbol: Name of the instrument.
        base_row: Absolute number of the first row; the absolute number of a row is base_row + its index.
        ts_open: Opening times, UTC µs, int64 (n,), rising.
        ts_close: Closing times, UTC µs, int64 (n,): a bar is known from then on.
        open: Opening prices, float64 (n,). A bar with NaN in any price is missing: nothing fills, the last price stays.
        high: Highest prices, float64 (n,).
        low: Lowest prices, float64 (n,).
        close: Closing prices, float64 (n,).
        volume: Traded volume, float64 (n,); NaN or 0 where there is none.
        funding: Funding rate of each bar, float64 (n,), as a fraction of the notional that a long pays and a short
            receives at its close; NaN where none is due, and none is on a missing bar. None: no bar has any.

    Raises:
        InputError: Lengths differ, times do not rise, bars overlap or differ in length, a price is not above 0, high is
            below low, or volume or funding is no number.
    """

    symbol: str
    base_row: int
    ts_open: Ints
    ts_close: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    funding: Floats | None = None

    def __post_init__(self) -> None:
        for name in ("ts_open", "ts_close"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.int64))
        for name in self._columns():
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float64))
        self._check_shapes()
        self._check_times()
        self._check_values()

    def __len__(self) -> int:
        return len(self.close)

    @property
    def interval(self) -> int:
        """Usual length of a bar, µs."""
        return int(np.median(self.ts_close - self.ts_open))

    def cut(self, start: int, stop: int) -> SymbolBars:
        """Return the rows from ``start`` to before ``stop``, which keep their absolute numbers."""
        columns = {name: getattr(self, name)[start:stop] for name in ("ts_open", "ts_close", *self._columns())}
        return SymbolBars(self.symbol, self.base_row + start, **columns)

    def _columns(self) -> tuple[str, ...]:
        return (*PRICES, "volume") if self.funding is None else (*PRICES, "volume", "funding")

    def _check_shapes(self) -> None:
        shapes = {name: getattr(self, name).shape for name in ("ts_open", "ts_close", *self._columns())}
        if len(set(shapes.values())) != 1 or len(shapes["close"]) != 1:
            raise InputError(f"bars of {self.symbol!r}: expected columns of one length, got {shapes}; trim them alike")
        if not len(self):
            raise InputError(f"bars of {self.symbol!r}: expected at least one bar, got none; check the time range")

    def _check_times(self) -> None:
        self._refuse(self.ts_close <= self.ts_open, "ts_close", "a time after ts_open (UTC µs)")
        for name in ("ts_open", "ts_close"):
            falls = np.diff(getattr(self, name), prepend=np.iinfo(np.int64).min // 2) <= 0
            self._refuse(falls, name, "a time after the previous bar's (UTC µs), sorted and without duplicates")
        early = np.zeros(len(self), dtype=np.bool_)
        early[1:] = self.ts_open[1:] < self.ts_close[:-1]
        self._refuse(early, "ts_open", "a time at or after the previous bar's ts_close: bars of one interval")
        uneven = np.abs(self.ts_close - self.ts_open - self.interval) > _UNEVEN * self.interval
        self._refuse(uneven, "ts_close", f"bars of one interval, {self.interval} µs")

    def _check_values(self) -> None:
        for name in PRICES:
            column = getattr(self, name)
            self._refuse((column <= 0) | np.isinf(column), name, "a price above 0, or NaN for a missing bar")
        self._refuse(self.high < self.low, "high", "a price not below low")
        self._refuse((self.volume < 0) | np.isinf(self.volume), "volume", "a number not below 0, or NaN")
        if self.funding is not None:
            self._refuse(np.isinf(self.funding), "funding", "a number, or NaN where none is due")

    def _refuse(self, bad: Flags, column: str, expected: str) -> None:
        if bad.any():
            index = int(np.argmax(bad))
            row, value = self.base_row + index, getattr(self, column)[index]
            raise InputError(
                f"bars of {self.symbol!r}, row {row}, column {column!r}: expected {expected}, got {value};"
                " correct or drop the row"
            )


@dataclass(frozen=True, eq=False)
class Bars:
    """Bars of one symbol without holes: what features are computed from. All arrays are read-only.

    A missing bar stands at the last price with no volume: open = high = low = close = the last close. Rows before the
    first bar with prices stand at its close; features never see them.

    Attributes:
        symbol: Name of the instrument.
        interval: Length of a bar, µs.
        ts_open: Opening times, UTC µs, int64 (n,).
        ts_close: Closing times, UTC µs, int64 (n,): a bar is known from then on.
        open: Opening prices, float64 (n,), finite and above 0, like the other three.
        high: Highest prices, float64 (n,).
        low: Lowest prices, float64 (n,).
        close: Closing prices, float64 (n,).
        volume: Traded volume, float64 (n,), 0 where there is none.
        funding: Funding rates, float64 (n,), 0 where none is due, as on a missing bar.
        tradable: False on a missing bar, bool (n,).
    """

    symbol: str
    interval: int
    ts_open: Ints
    ts_close: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    funding: Floats
    tradable: Flags

    def __post_init__(self) -> None:
        for name in self.columns():
            view = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    def __len__(self) -> int:
        return len(self.close)

    def __getitem__(self, rows: slice) -> Bars:
        return Bars(self.symbol, self.interval, **{name: getattr(self, name)[rows] for name in self.columns()})

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """Return the names of the arrays."""
        return tuple(item.name for item in fields(cls) if item.name not in ("symbol", "interval"))

    @classmethod
    def of(cls, bars: SymbolBars) -> Self:
        """Fill what is missing.

        Raises:
            InputError: No bar has prices.
        """
        tradable: Flags = np.isfinite(np.stack([getattr(bars, name) for name in PRICES])).all(axis=0)
        if not tradable.any():
            raise InputError(
                f"bars of {bars.symbol!r}: expected a bar with prices, got NaN in every one; drop the symbol"
            )
        close = bars.close[np.maximum.accumulate(np.where(tradable, np.arange(len(bars)), np.argmax(tradable)))]
        prices = {name: np.where(tradable, getattr(bars, name), close) for name in PRICES}
        volume = np.where(tradable & (bars.volume > 0), bars.volume, 0.0)
        funding = np.zeros(len(bars)) if bars.funding is None else bars.funding
        funding = np.where(tradable & ~np.isnan(funding), funding, 0.0)
        return cls(
            bars.symbol, bars.interval, bars.ts_open, bars.ts_close, volume=volume, funding=funding, tradable=tradable,
            **prices,
        )  # fmt: skip

    @property
    def first_valid(self) -> int:
        """Row of the first bar with prices."""
        return int(np.argmax(self.tradable))
