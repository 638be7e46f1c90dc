"""The bars as the step reads them: one number per environment, and per symbol in a portfolio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from numpy.typing import NDArray

from env.common_clock import CommonClock
from env.market_data import MarketData

Read = Callable[[Any], Any]

_COLUMNS = ("open", "high", "low", "mark", "volume", "funding", "tradable")


class BarReader:
    """Reads columns of bars at rows.

    Args:
        bars: Bars of symbols end to end, or of a portfolio on its common clock.
        plain: Rows are ints and what is read are Python numbers, for one environment with one symbol. Else rows are
            arrays (B,), and what is read is (B,), or (S, B) from a common clock.
    """

    open: Read
    high: Read
    low: Read
    mark: Read
    volume: Read
    funding: Read
    tradable: Read

    def __init__(self, bars: MarketData | CommonClock, *, plain: bool) -> None:
        self._bars, self._plain = bars, plain
        self.gaps = not bars.tradable.all()
        self.funds = bool(bars.funding.any())
        self._bind()

    def _bind(self) -> None:
        for name in _COLUMNS:
            setattr(self, name, self._read(getattr(self._bars, name)))

    def _read(self, column: NDArray[Any]) -> Read:
        if column.ndim > 1:
            return lambda rows: column.take(rows, axis=1)
        # A memoryview gives Python numbers at a fraction of an array's cost.
        return memoryview(cast(Any, column)).__getitem__ if self._plain else column.__getitem__

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the views: they can neither be copied nor pickled, and are made again."""
        return {key: value for key, value in self.__dict__.items() if key not in _COLUMNS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()
