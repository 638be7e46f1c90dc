"""Bars made of other bars."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from env.bars import SymbolBars

_COLUMNS = ("ts_open", "ts_close", "open", "high", "low", "close", "volume")


def without(bars: SymbolBars, gone: NDArray[np.bool_]) -> SymbolBars:
    """The bars without those that are marked, bool (n,); the others are numbered from 0 on."""
    columns: dict[str, Any] = {name: getattr(bars, name)[~gone] for name in _COLUMNS}
    return SymbolBars(bars.symbol, 0, **columns)
