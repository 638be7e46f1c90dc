"""The bars and features that environments trade on, as arrays that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from env.bars import Bars, Flags, Floats, Ints, SymbolBars
from env.bars_per_year import bars_per_year
from env.common_clock import CommonClock
from env.features import DEFAULT_FEATURES, FeatureLike, Recipe
from env.frames import read_frames
from env.scaler import ScaledOnce
from schemas.errors import InputError
from schemas.times import SECOND

if TYPE_CHECKING:
    from pandas import DataFrame


class MarketData(ScaledOnce):
    """Bars of one or several symbols, end to end in the same arrays, with their features computed once.

    Attributes:
        symbols: Names, in the given order.
        base_rows: Absolute row number of each symbol's first bar, int64 (S,).
        offsets: Where each symbol starts in the arrays below, int64 (S + 1,); the last one is N.
        first_valid: Index within each symbol of its first bar with prices, int64 (S,).
        interval: Length of a bar, µs; the same for all symbols.
        ts_open: Opening times, UTC µs, int64 (N,).
        ts_close: Closing times, UTC µs, int64 (N,).
        open: Opening prices, float64 (N,); on a missing bar the last price known, like the next three. Never 0.
        high: Highest prices, float64 (N,).
        low: Lowest prices, float64 (N,).
        mark: Closing prices, float64 (N,).
        volume: Traded volume, float64 (N,); 0 where there is none or it is not known.
        funding: Funding rates, float64 (N,); 0 where none is due.
        tradable: False on a missing bar, bool (N,).
        features: Raw causal features, float32 (N, F), never NaN: row t uses bars up to t alone. A missing bar counts
            as one at the last price with no volume.
        recipe: What the features are: their names, look-backs and identity.
        lookback: Bars that a symbol needs, from ``first_valid`` on, before the first row whose features are defined.
        bars_per_year: For annual figures; the median over the symbols of what their times say
            (``env.bars_per_year``).
        clock_base_row: Absolute row number of the first time of the common clock.

    Args:
        bars: Bars of each symbol.
        features: Names of features, or declared functions (``env.declaration.feature``).
        clock_base_row: Absolute row number of the first time of the common clock.

    Raises:
        InputError: No symbols, a symbol given twice, one without any bar with prices, or different intervals.
        SettingsError: A feature is unknown or does not suit the interval.
    """

    def __init__(
        self, bars: Sequence[SymbolBars], features: Sequence[FeatureLike] = DEFAULT_FEATURES, *, clock_base_row: int = 0
    ) -> None:
        names = [item.symbol for item in bars]
        if not names or len(set(names)) != len(names):
            raise InputError(f"market data: expected one or more different symbols, got {names}; give each symbol once")
        self.symbols: tuple[str, ...] = tuple(names)
        self.interval: int = _common_interval(bars)
        self.recipe = Recipe.of(features)
        self.lookback: int = self.recipe.lookback(self.interval)
        self.base_rows: Ints = np.array([item.base_row for item in bars], dtype=np.int64)
        self.clock_base_row = clock_base_row
        self.offsets: Ints = np.cumsum([0, *(len(item) for item in bars)], dtype=np.int64)
        filled = [Bars.of(item) for item in bars]
        self.first_valid: Ints = np.array([item.first_valid for item in filled], dtype=np.int64)
        self.ts_open: Ints = np.concatenate([item.ts_open for item in filled])
        self.ts_close: Ints = np.concatenate([item.ts_close for item in filled])
        self.open: Floats = np.concatenate([item.open for item in filled])
        self.high: Floats = np.concatenate([item.high for item in filled])
        self.low: Floats = np.concatenate([item.low for item in filled])
        self.mark: Floats = np.concatenate([item.close for item in filled])
        self.volume: Floats = np.concatenate([item.volume for item in filled])
        self.funding: Floats = np.concatenate([item.funding for item in filled])
        self.tradable: Flags = np.concatenate([item.tradable for item in filled])
        self.features: NDArray[np.float32] = np.concatenate([self.recipe.compute(item) for item in filled])
        self.bars_per_year = float(np.median([bars_per_year(item.ts_open, self.interval) for item in bars]))
        self._clock: CommonClock | None = None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns of ``features``."""
        return self.recipe.names

    def number(self, symbol: str) -> int:
        """Return the number of a symbol, or raise InputError."""
        if symbol not in self.symbols:
            raise InputError(f"symbol {symbol!r}: expected one of {', '.join(self.symbols)}; choose one of these")
        return self.symbols.index(symbol)

    def bars(self, number: int) -> Bars:
        """Return the filled bars of a symbol by its number; its arrays are views of these."""
        rows = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        columns = {name: getattr(self, "mark" if name == "close" else name)[rows] for name in Bars.columns()}
        return Bars(self.symbols[number], self.interval, **columns)

    def first_rows(self, window: int) -> Ints:
        """Return the rows of the first observations of ``window`` bars, by symbol, int64 (S,).

        The features of an earlier one want bars that are not here.
        """
        rows: Ints = self.offsets[:-1] + self.first_valid + self.lookback + window - 1
        return rows

    def on_common_clock(self) -> CommonClock:
        """Return the same bars for a portfolio: every symbol at every time. Made once and kept."""
        if self._clock is None:
            filled = [self.bars(number) for number in range(len(self.symbols))]
            blocks = [self.features[self.offsets[i] : self.offsets[i + 1]] for i in range(len(filled))]
            self._clock = CommonClock(filled, blocks, self.recipe, base_row=self.clock_base_row)
        return self._clock

    @classmethod
    def from_frame(
        cls,
        frame: DataFrame | Mapping[str, DataFrame],
        symbol: str = "frame",
        features: Sequence[FeatureLike] = DEFAULT_FEATURES,
    ) -> Self:
        """Read pandas DataFrames of bars; see :func:`env.frames.read_frames`.

        Args:
            frame: Bars of one symbol; of several, told apart by a column or an index level named symbol or ticker; or
                a mapping of symbols to frames.
            symbol: Name of the instrument, where the frame names none.
            features: Names of features, or declared functions.

        Raises:
            InputError: No DatetimeIndex, a missing column, fewer than two bars, or a bad row.
            SettingsError: A feature is unknown or does not suit the interval.
        """
        return cls(read_frames(frame, symbol), features)


def _common_interval(bars: Sequence[SymbolBars]) -> int:
    intervals = {item.symbol: item.interval for item in bars}
    if len(set(intervals.values())) > 1:
        found = ", ".join(f"{symbol} {length / SECOND:g} s" for symbol, length in intervals.items())
        raise InputError(f"market data: expected bars of one interval, got {found}; give one interval only")
    return next(iter(intervals.values()))
