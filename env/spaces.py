"""Action and observation spaces as the settings have them, for both faces of the market model."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from env.settings import EnvSettings


def action_space(settings: EnvSettings, symbols: int) -> spaces.Space[Any]:
    """Return the action space of one environment.

    Args:
        settings: Its settings.
        symbols: Symbols that one account trades: 1, or all of the data in a portfolio.

    Returns:
        ``Discrete`` (one symbol) or ``MultiDiscrete`` (portfolio) for numbered actions. Else a float32 ``Box`` of shape
        (symbols · (1 + P),), symbol by symbol: its weight or quantity, then its P distances of protective orders
        (P = 0 without ``protect_by_action``).
    """
    if settings.discrete:
        choices = len(settings.targets) if settings.actions == "targets" else 3
        return spaces.MultiDiscrete([choices] * symbols) if settings.portfolio else spaces.Discrete(choices)
    largest = settings.leverage if settings.actions == "weights" else settings.max_quantity
    smallest = 0.0 if settings.actions == "weights" and not settings.short else -largest
    distances = [getattr(settings, name) for name in settings.protections] if settings.protect_by_action else []
    low = [smallest, *(0.0 for _ in distances)] * symbols
    high = [largest, *distances] * symbols
    return spaces.Box(-_float32_within(np.negative(low)), _float32_within(np.array(high)), dtype=np.float32)


def observation_space(size: int, limit: float) -> spaces.Box:
    """Return the observation space of one environment: float32 (size,), clipped to ± limit."""
    return spaces.Box(-limit, limit, (size,), np.float32)


def _float32_within(limits: Any) -> Any:
    """Largest float32 not above each limit: 0.05 as float32 is 0.05000000075, which the settings do not allow."""
    rounded = np.asarray(limits, dtype=np.float32)
    return np.where(rounded.astype(np.float64) > limits, np.nextafter(rounded, np.float32(-np.inf)), rounded)
