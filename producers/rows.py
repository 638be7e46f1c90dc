"""What every layout hands to the checks: numbers with the rows that they came from, and the rows that have none."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

PRICES = ("open", "high", "low", "close")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row of a feed file that is not a sound bar.

    Attributes:
        file: name of the file.
        row: its line in the file, the header being line 1.
        symbol: symbol of the bar; empty where the row does not tell.
        column: the column at fault, by the name that the header gives it, or ``row`` for the row as a whole.
        value: what stands there.
        expected: what should.
        reason: the kind of fault, by which rows are counted, such as ``price`` or ``duplicate time``.
    """

    file: str
    row: int
    symbol: str
    column: str
    value: str
    expected: str
    reason: str

    def __str__(self) -> str:
        symbol = f" ({self.symbol})" if self.symbol else ""
        value = self.value if len(self.value) <= 60 else self.value[:57] + "..."
        return f"{self.file} row {self.row}{symbol}: {self.column} is {value}, expected {self.expected}"


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a feed file in the file's order, n of them. Times and numbers are read, and not checked yet.

    Attributes:
        row: (n,) line of the file, the header being line 1.
        code: (n,) index into ``symbols``.
        ts: (n,) start of the bar, UTC microseconds.
        prices: the columns open, high, low and close, each (n,), by those names.
        volume: (n,), NaN where there is none.
        adj_close: (n,) close adjusted for splits and dividends; None unless asked for.
        funding_rate: (n,) rate at the bar's close, NaN where none is due; None where the file has no such column.
        names: column to the name that the file's header gives it.
        symbols: symbols in order of appearance.
        bad: rows that could not be read at all.
        cut_times: how many times had a part below a microsecond, which was cut off.
    """

    row: Ints
    code: Ints
    ts: Ints
    prices: dict[str, Floats]
    volume: Floats
    adj_close: Floats | None
    funding_rate: Floats | None
    names: dict[str, str]
    symbols: list[str]
    bad: list[BadRow] = field(default_factory=list)
    cut_times: int = 0
