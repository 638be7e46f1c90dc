"""Several symbols on one clock: what a portfolio trades on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from env.bars import Bars, Flags, Floats, Ints
from env.bars_per_year import bars_per_year
from env.features import Recipe
from env.scaler import ScaledOnce


class CommonClock(ScaledOnce):
    """Bars of S symbols at the T times at which any of them has a bar. Made by ``MarketData.on_common_clock``.

    A symbol without a bar at a time is stale there, which is a missing bar: it is not tradable, stands at its last
    price with no volume, and its features count it as such.

    Attributes:
        symbols: Names, in the given order.
        interval: Length of a bar, µs.
        ts_open: Opening times, UTC µs, int64 (T,): the earliest of the bars that close at a time.
        ts_close: Closing times, UTC µs, int64 (T,), rising.
        base_row: Absolute number of the first time.
        first_valid: First time by which every symbol has had a bar with prices.
        open: Opening prices, float64 (S, T); of a missing bar the last price known, like the next three. Never 0.
        high: Highest prices, float64 (S, T).
        low: Lowest prices, float64 (S, T).
        mark: Closing prices, float64 (S, T).
        volume: Traded volume, float64 (S, T); 0 where there is none.
        funding: Funding rates, float64 (S, T); 0 where none is due.
        tradable: False where a symbol is stale or its bar missing, bool (S, T).
        features: Raw causal features, float32 (T, S · F): the F features of the first symbol, then of the next.
        feature_names: ``SYMBOL feature`` of each column.
        recipe: What the F features are.
        lookback: Times before the first row whose features are defined.
        bars_per_year: For annual figures, from the times of the clock.
    """

    def __init__(
        self, bars: Sequence[Bars], features: Sequence[NDArray[np.float32]], recipe: Recipe, *, base_row: int = 0
    ) -> None:
        self.symbols = tuple(item.symbol for item in bars)
        self.interval = bars[0].interval
        self.recipe = recipe
        self.base_row = base_row
        self.feature_names = tuple(f"{symbol} {name}" for symbol in self.symbols for name in recipe.names)
        times, where = np.unique(np.concatenate([item.ts_close for item in bars]), return_inverse=True)
        self.ts_close: Ints = times
        self.ts_open: Ints = times.copy()
        np.minimum.at(self.ts_open, where, np.concatenate([item.ts_open for item in bars]))
        together = np.searchsorted(times, times + self.interval) - np.arange(len(times))
        self.lookback = recipe.lookback(self.interval, int(together.max()))
        rows = [np.searchsorted(times, item.ts_close) for item in bars]
        self.first_valid = max(int(row[item.first_valid]) for row, item in zip(rows, bars, strict=True))
        spread = [self._spread(item, row) for item, row in zip(bars, rows, strict=True)]
        self.open: Floats = np.stack([item.open for item in spread])
        self.high: Floats = np.stack([item.high for item in spread])
        self.low: Floats = np.stack([item.low for item in spread])
        self.mark: Floats = np.stack([item.close for item in spread])
        self.volume: Floats = np.stack([item.volume for item in spread])
        self.funding: Floats = np.stack([item.funding for item in spread])
        self.tradable: Flags = np.stack([item.tradable for item in spread])
        self.features: NDArray[np.float32] = np.concatenate(
            [
                own if len(own) == len(times) else recipe.compute(item)
                for own, item in zip(features, spread, strict=True)
            ],
            axis=1,
        )
        self.bars_per_year = bars_per_year(self.ts_open, self.interval)

    def first_rows(self, window: int) -> Ints:
        """Return the row of the first observation of ``window`` times, int64 (1,)."""
        return np.array([self.first_valid + self.lookback + window - 1], dtype=np.int64)

    def _spread(self, bars: Bars, rows: Ints) -> Bars:
        """Bars of one symbol at the times ``rows``, with missing ones between them."""
        if len(bars) == len(self.ts_close):
            return bars
        count = len(self.ts_close)
        last = np.searchsorted(rows, np.arange(count), side="right") - 1
        there = np.zeros(count, dtype=np.bool_)
        there[rows] = True
        close = bars.close[np.maximum(last, 0)]
        columns: dict[str, Any] = {"ts_open": self.ts_open, "ts_close": self.ts_close, "close": close}
        for name in ("open", "high", "low"):
            columns[name] = close.copy()
            columns[name][rows] = getattr(bars, name)
        for name in ("volume", "funding", "tradable"):
            values = getattr(bars, name)
            columns[name] = np.zeros(count, dtype=values.dtype)
            columns[name][rows] = values
        return Bars(bars.symbol, bars.interval, **columns)
