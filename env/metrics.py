"""Figures of merit of an equity curve."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# Returns that differ by rounding alone have no spread: dividing by it would print a Sharpe ratio of 1e13.
_NO_SPREAD = 1e-12


def max_drawdown(values: NDArray[np.float64]) -> float:
    """Largest fall from a running peak, as a fraction of that peak.

    Args:
        values: Equity, float64 (n,), the first one positive.

    Returns:
        0 for a curve that never falls, 0.25 for a fall from 120 to 90; above 1 where equity turned negative.
    """
    peaks = np.maximum.accumulate(values)
    return float(np.max((peaks - values) / peaks))


def sharpe(returns: NDArray[np.float64], periods_per_year: float | None = None) -> float | None:
    """Mean over standard deviation (ddof 1, as ClickHouse's ``stddevSamp``) of simple returns.

    Args:
        returns: Simple returns per step, float64 (n,).
        periods_per_year: Steps in a year, to annualise by its square root; None keeps the ratio per step.

    Returns:
        None where it is not defined: fewer than two returns, or returns that do not vary.
    """
    if returns.size < 2:
        return None
    deviation = float(np.std(returns, ddof=1))
    if deviation <= _NO_SPREAD * max(1.0, float(np.max(np.abs(returns)))):
        return None
    return float(np.mean(returns)) / deviation * math.sqrt(periods_per_year or 1.0)
