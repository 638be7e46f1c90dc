"""Where an observation lies in the bars, told so that every window of a run that holds it tells the same.

A symbol's place is its absolute row. A portfolio's is the time of its clock: its rows are the times at which any of its
symbols has a bar, and one that catches up with the others adds times between them.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from env.common_clock import CommonClock
from env.market_data import MarketData
from env.scaler import ScaledOnce
from env.settings import EnvSettings


class Places(Protocol):
    """The places of one window."""

    @property
    def names(self) -> tuple[str, ...]:
        """What its observations are of: symbols, or "portfolio"."""

    @property
    def bars(self) -> ScaledOnce:
        """What has their features, one row a place: float32 (N, columns)."""

    @property
    def first(self) -> NDArray[np.int64]:
        """Places of the first observations, one for each of ``names``."""

    def of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
        """Places and numbers of names of rows of ``bars``, int64 (…): int64 (…), int16 (…)."""

    def find(
        self, places: NDArray[np.int64], numbers: NDArray[np.int16]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Rows of ``bars`` (…), and whether this window has a whole observation there (…); the number -1 has none."""


class _OfSymbols:
    def __init__(self, data: MarketData, window: int) -> None:
        self.names, self.bars = data.symbols, data
        self._shift = data.offsets[:-1] - data.base_rows
        self.first: NDArray[np.int64] = data.first_rows(window) - self._shift
        self._last = data.offsets[1:] - 1 - self._shift

    def of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
        numbers = np.searchsorted(self.bars.offsets[1:], rows, side="right")
        return rows - self._shift[numbers], numbers.astype(np.int16)

    def find(
        self, places: NDArray[np.int64], numbers: NDArray[np.int16]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        known = numbers >= 0
        number = np.where(known, numbers, 0)
        held = known & (places >= self.first[number]) & (places <= self._last[number])
        return places + self._shift[number], held


class _OfClock:
    names = ("portfolio",)

    def __init__(self, clock: CommonClock, window: int) -> None:
        self.bars = clock
        self._times = clock.ts_close
        self._first_row = int(clock.first_rows(window)[0])
        self.first: NDArray[np.int64] = self._times[self._first_row : self._first_row + 1]

    def of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
        return self._times[rows], np.zeros(rows.shape, dtype=np.int16)

    def find(
        self, places: NDArray[np.int64], numbers: NDArray[np.int16]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        rows = np.minimum(np.searchsorted(self._times, places), len(self._times) - 1)
        return rows, (numbers >= 0) & (rows >= self._first_row) & (self._times[rows] == places)


def places_of(data: MarketData, settings: EnvSettings) -> Places:
    """The places of a window's observations, of the symbols or of the portfolio that is traded."""
    if settings.portfolio:
        return _OfClock(data.on_common_clock(), settings.window)
    return _OfSymbols(data, settings.window)
