"""Where episodes start and end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from env.common_clock import CommonClock
from env.market_data import MarketData
from env.settings import EnvSettings
from schemas.errors import InputError, SettingsError

Reason = Literal["running", "end_of_data", "length", "ruin"]


class Start(NamedTuple):
    """The rows of an episode, in the arrays that it is traded on."""

    symbol: int
    """Number of the symbol; 0 for a portfolio."""
    row: int
    """Row of the first observation."""
    end: int
    """Last row that it may reach."""


class Starts:
    """Draws and checks the first rows of episodes, and keeps those of the current ones.

    Args:
        data: The bars.
        settings: Window, starts, length, and whether all symbols are one portfolio.
        num_envs: B.

    Attributes:
        longest: Steps of the longest episode.
        bases: What makes a row of each environment in the arrays of the bars absolute, int64 (B,).

    Raises:
        SettingsError: The window does not fit into the bars of a symbol.
    """

    def __init__(self, data: MarketData, settings: EnvSettings, num_envs: int) -> None:
        self._current: list[Start | None] = [None] * num_envs
        self.bases: NDArray[np.int64] = np.zeros(num_envs, dtype=np.int64)
        self._data = data
        self._kind = settings.starts
        self._window = settings.window
        self._portfolio = settings.portfolio
        self._length = None if settings.starts == "whole" else settings.episode_length
        bars: MarketData | CommonClock = data
        if settings.portfolio:
            bars = clock = data.on_common_clock()
            self._names: tuple[str, ...] = ("portfolio",)
            ends = np.array([len(clock.ts_close)])
            self._bases: NDArray[np.int64] = np.array([clock.base_row])
        else:
            self._names, ends = data.symbols, data.offsets[1:]
            self._bases = data.base_rows - data.offsets[:-1]
        self._first = bars.first_rows(settings.window)
        self._last = ends - 2
        if (self._last < self._first).any():
            number = int(np.argmax(self._last < self._first))
            behind_lookback = int((ends - self._first)[number]) + settings.window - 1
            raise SettingsError(
                f"setting 'window': expected at most {max(behind_lookback - 1, 0)} for the"
                f" {behind_lookback + bars.lookback} bars of {self._names[number]!r}, got {settings.window};"
                " shorten the window or give more bars"
            )
        self.longest = int((self._last - self._first).max()) + 1
        if self._length is not None:
            self.longest = min(self.longest, self._length)

    def __getitem__(self, index: int) -> Start:
        """Return the current or last episode of environment ``index``.

        Raises:
            InputError: None was begun.
        """
        start = self._current[index]
        if start is None:
            raise InputError(f"environment {index}: expected an episode, got none; reset it first")
        return start

    def name(self, index: int) -> str:
        """Return what environment ``index`` trades: the name of a symbol, or "portfolio"."""
        return self._names[self[index].symbol]

    def base(self, index: int) -> int:
        """Return what makes a row of environment ``index`` absolute."""
        return int(self._bases[self[index].symbol])

    def begin(self, index: int, rng: np.random.Generator, symbol: str | None, start_row: int | None, row: int) -> Start:
        """Choose the next episode of environment ``index``.

        Args:
            index: Number of the environment.
            rng: Its generator: two numbers are always drawn, so that draw k is the same whatever was asked.
            symbol: Name to trade; None draws one, or in sequence goes on with the last.
            start_row: Absolute row of the first observation; None as the settings say.
            row: Where its last episode ended.

        Raises:
            InputError: The symbol is unknown, or the row leaves no room for the window before or one bar after it.
        """
        draws = rng.random(), rng.random()
        before = self._current[index]
        start = self._choose(draws, symbol, start_row, None if before is None else (before.symbol, row))
        self._current[index] = start
        self.bases[index] = self._bases[start.symbol]
        return start

    def reason(self, index: int, row: int) -> Reason:
        """Say why an episode that was not ruined ended at ``row``, or that it is running."""
        start = self[index]
        if row < start.end:
            return "running"
        cut = start.end > self._last[start.symbol] and start.end - start.row != self._length
        return "end_of_data" if cut else "length"

    def _choose(
        self, draws: Sequence[float], symbol: str | None, start_row: int | None, last: tuple[int, int] | None
    ) -> Start:
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
        base = int(self._bases[symbol])
        first, last = int(self._first[symbol]) + base, int(self._last[symbol]) + base
        if not isinstance(wanted, (int, np.integer)) or not first <= wanted <= last:
            raise InputError(
                f"start_row of {self._names[symbol]!r}: expected {first}..{last}"
                f" (window of {self._window} bars before, one bar after), got {wanted!r}"
            )
        return int(wanted) - base
