"""What an environment shows: a window of features and the state of the account (docs/env.md)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from env import kernel
from env.settings import EnvSettings

_CODES = {
    "position": kernel.POSITION,
    "unrealised_return": kernel.UNREALISED_RETURN,
    "time_in_position": kernel.TIME_IN_POSITION,
    "drawdown": kernel.DRAWDOWN,
    "cash_share": kernel.CASH_SHARE,
}


def part_codes(settings: EnvSettings) -> NDArray[np.int64]:
    """Return the numbers of the position features, in their order."""
    return np.array([_CODES[name] for name in settings.position_features], dtype=np.int64)


def observation_size(settings: EnvSettings, columns: int, symbols: int) -> int:
    """Return the length of an observation: window × columns + position features, some of which count by symbol.

    Args:
        settings: Window and position features.
        columns: Features of a bar, of all symbols of a portfolio together.
        symbols: S, 1 without a portfolio.
    """
    parts = part_codes(settings)
    per_symbol = int((parts <= kernel.TIME_IN_POSITION).sum())
    return settings.window * columns + per_symbol * symbols + len(parts) - per_symbol
