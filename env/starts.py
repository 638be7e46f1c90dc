"""Where episodes start and end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from env.market_data import MarketData
from env.settings import EnvSettings
from schemas.errors import InputError, SettingsError


class Start(NamedTuple):
    """The rows of an episode, in the arrays that it is traded on."""

    symbol: int
    """Number of the symbol; 0 for a portfolio."""
    row: int
    """Row of the first observation."""
    end: int
    """Last row that it may reach."""


class Starts:
    """Draws and checks the first rows of episodes.

    Args:
        data: The bars.
        settings: Window, starts, length, and whether all symbols are one portfolio.

    Attributes:
        longest: Steps of the longest episode.

    Raises:
        SettingsError: The window does not fit into the bars of a symbol.
    """

    def __init__(self, data: MarketData, settings: EnvSettings) -> None:
        self._data = data
        self._kind = settings.starts
        self._window = settings.window
        self._portfolio = settings.portfolio
        self._length = None if settings.starts == "whole" else settings.episode_length
        if settings.portfolio:
            clock = data.on_common_clock()
            self._names: tuple[str, ...] = ("portfolio",)
            begins, ends = np.array([0]), np.array([len(clock.ts_close)])
            valid = np.array([clock.first_valid])
            self._bases: NDArray[np.int64] = np.array([clock.base_row])
        else:
            self._names = data.symbols
            begins, ends, valid = data.offsets[:-1], data.offsets[1:], data.first_valid
            self._bases = data.base_rows - data.offsets[:-1]
        self._first = begins + valid + data.lookback + settings.window - 1
        self._last = ends - 2
        if (self._last < self._first).any():
            number = int(np.argmax(self._last < self._first))
            bars = int((ends - begins - valid)[number])
            raise SettingsError(
                f"setting 'window': expected at most {max(bars - 1 - data.lookback, 0)} for the {bars} bars of"
                f" {self._names[number]!r}, got {settings.window}; shorten the window or give more bars"
            )
        self.longest = int((self._last - self._first).max()) + 1
        if self._length is not None:
            self.longest = min(self.longest, self._length)

    def name(self, symbol: int) -> str:
        """Return the name of a symbol, or "portfolio"."""
        return self._names[symbol]

    def base(self, symbol: int) -> int:
        """Return what makes a row of this symbol absolute."""
        return int(self._bases[symbol])

    def choose(
        self, draws: tuple[float, float], symbol: str | None, start_row: int | None, last: tuple[int, int] | None
    ) -> Start:
        """Choose the rows of an episode.

        Args:
            draws: Two numbers in [0, 1), for symbol and row.
            symbol: Name to trade; None draws one, or in sequence goes on with the last.
            start_row: Absolute row of the first observation; None as the settings say.
            last: Symbol and row where the last episode of the environment ended; None before the first.

        Raises:
            InputError: The symbol is unknown, or the row leaves no room for the window before or one bar after it.
        """
        if self._portfolio:
            number = 0
            if symbol is not None:
                raise InputError(f"symbol: expected None in a portfolio, which trades all symbols, got {symbol!r}")
        elif symbol is not None:
            number = self._data.number(symbol)
        elif self._kind == "sequential":
            number = self._in_sequence(last)
        else:
            number = int(draws[0] * len(self._names))
        row = self._row(number, draws[1], last) if start_row is None else self._checked(number, start_row)
        end = int(self._last[number]) + 1
        return Start(number, row, end if self._length is None else min(row + self._length, end))

    def at_end(self, start: Start) -> bool:
        """Whether an episode that reaches its last row is cut short by the end of the data."""
        return start.end > self._last[start.symbol] and start.end - start.row != self._length

    def _in_sequence(self, last: tuple[int, int] | None) -> int:
        """The symbol goes on to its end, then the next one begins; after the last one the first."""
        if last is None:
            return 0
        symbol, row = last
        return symbol if row <= self._last[symbol] else (symbol + 1) % len(self._names)

    def _row(self, symbol: int, draw: float, last: tuple[int, int] | None) -> int:
        first, final = int(self._first[symbol]), int(self._last[symbol])
        if self._kind == "whole":
            return first
        if self._kind == "sequential":
            goes_on = last is not None and last[0] == symbol and last[1] <= final
            return last[1] if goes_on and last is not None else first
        # Leave room for a whole episode where the data has it.
        final = max(first, final + 1 - (self._length or 1))
        return first + int(draw * (final - first + 1))

    def _checked(self, symbol: int, wanted: int) -> int:
        base = self.base(symbol)
        first, last = int(self._first[symbol]) + base, int(self._last[symbol]) + base
        if not isinstance(wanted, (int, np.integer)) or not first <= wanted <= last:
            raise InputError(
                f"start_row of {self._names[symbol]!r}: expected {first}..{last}"
                f" (window of {self._window} bars before, one bar after), got {wanted!r}"
            )
        return int(wanted) - base
