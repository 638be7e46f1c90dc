"""Sliding windows over a series, in O(n log length), each value from its own window alone.

A window is put together from windows of 1, 2, 4, … rows. So there is no running state: a value does not depend on where
the series begins, bit for bit, an outlier leaves nothing behind when it has left the window, and the rounding error is
that of a pairwise sum. In rows before ``length - 1`` the window reaches beyond the series; what is missing counts as 0.
"""

from __future__ import annotations

import math

import numpy as np

from env.bars import Floats

TAIL = 1e-5
"""Share of an exponential average's weight that is left out, so that its window is finite."""


def exponential_length(alpha: float) -> int:
    """Rows that hold all but ``TAIL`` of the weight of an exponential average, whose newest row has weight ``alpha``.

    11.5 / alpha or a little less: 156 rows for Wilder's smoothing of 14, 115 for an EMA of 20.
    """
    return 1 if alpha >= 1.0 else math.ceil(math.log(TAIL) / math.log1p(-alpha))


def sliding_sum(values: Floats, length: int, decay: float = 1.0) -> Floats:
    """Sum of the last ``length`` values, float64 (n,); one that is k rows old counts ``decay ** k``."""
    total, rows = np.zeros(len(values)), 0
    block, size = values, 1
    while True:
        if length & size:
            total = total + decay**rows * _older(block, rows)
            rows += size
        if rows == length:
            return total
        block = block + decay**size * _older(block, size)
        size *= 2


def sliding_mean(values: Floats, length: int) -> Floats:
    """Mean of the last ``length`` values, float64 (n,)."""
    return sliding_sum(values, length) / length


def exponential_mean(values: Floats, alpha: float) -> Floats:
    """Exponential average of the last ``exponential_length(alpha)`` values, float64 (n,); its weights sum to 1."""
    length, decay = exponential_length(alpha), 1.0 - alpha
    weight = 1.0 if decay <= 0.0 else (1.0 - decay**length) / alpha
    return sliding_sum(values, length, max(decay, 0.0)) / weight


def sliding_moments(values: Floats, length: int) -> tuple[Floats, Floats]:
    """Mean of the last ``length`` values and sum of their squared distances from it, float64 (n,) each.

    Windows are merged as in Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances" (1979): no difference of large squares, and exactly 0 for equal values.
    """
    mean, squares, rows = np.zeros(len(values)), np.zeros(len(values)), 0
    block, spread, size = values, np.zeros(len(values)), 1
    while True:
        if length & size:
            mean, squares = _merged(_older(block, rows), _older(spread, rows), size, mean, squares, rows)
            rows += size
        if rows == length:
            return mean, squares
        block, spread = _merged(_older(block, size), _older(spread, size), size, block, spread, size)
        size *= 2


def _merged(
    mean_a: Floats, squares_a: Floats, count_a: int, mean_b: Floats, squares_b: Floats, count_b: int
) -> tuple[Floats, Floats]:
    share = count_b / (count_a + count_b)
    distance = mean_b - mean_a
    return mean_a + share * distance, squares_a + squares_b + (share * count_a) * distance * distance


def _older(values: Floats, rows: int) -> Floats:
    """The values ``rows`` earlier, 0 before the first."""
    if rows == 0:
        return values
    out = np.zeros(len(values))
    out[rows:] = values[:-rows]
    return out
