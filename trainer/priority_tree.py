"""Priorities of a replay buffer as arrays: proportional draws and the least priority, without a Python loop an item."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Children of a node. Wide nodes make few levels, and numpy sums 64 neighbours in the time of a few.
_WIDTH = 64


class PriorityTree:
    """Sums and minima over the priorities of numbered slots.

    A tree of nodes with 64 children each: an update or a draw of n slots touches n nodes on each of log64(size)
    levels, in whole-array operations. RLlib's segment trees (Schaul et al. 2016, https://arxiv.org/abs/1511.05952,
    appendix B.2.1) hold the same numbers with two children a node.

    Args:
        size: Number of slots. All begin with priority 0, which is never drawn and counts in no minimum.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._sums = [np.zeros(_padded(size))]
        while len(self._sums[-1]) > _WIDTH:
            self._sums.append(np.zeros(_padded(len(self._sums[-1]) // _WIDTH)))
        self._least = [np.full(len(sums), np.inf) for sums in self._sums[1:]]

    @property
    def nbytes(self) -> int:
        """Size of all arrays, in bytes."""
        return sum(array.nbytes for array in (*self._sums, *self._least))

    @property
    def total(self) -> float:
        """Sum of all priorities."""
        return float(self._sums[-1].sum())

    @property
    def least(self) -> float:
        """Least priority above 0; infinity where there is none."""
        return float(self._least[-1].min() if self._least else _minima(self._sums[0][None])[0])

    def __getitem__(self, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        """Priorities (n,) of slots (n,)."""
        return self._sums[0][slots]

    def __setitem__(self, slots: NDArray[np.int64], priorities: NDArray[np.float64] | float) -> None:
        """Set the priorities (n,) of slots (n,); of a slot that is named twice the last one counts."""
        self._sums[0][slots] = priorities
        nodes = slots
        for level, sums in enumerate(self._sums[1:]):
            nodes = np.unique(nodes // _WIDTH)
            children = self._sums[level].reshape(-1, _WIDTH)[nodes]
            sums[nodes] = children.sum(axis=1)
            least = self._least[level - 1].reshape(-1, _WIDTH)[nodes].min(axis=1) if level else _minima(children)
            self._least[level][nodes] = least

    def draw(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Slots (n,) for numbers (n,) in [0, 1): each slot with the probability priority / total."""
        rest = uniforms * self.total
        nodes = np.zeros(len(uniforms), dtype=np.int64)
        for sums in reversed(self._sums):
            rows = sums.reshape(-1, _WIDTH)[nodes]
            reached = rows.cumsum(axis=1)
            # The last child with a priority, where rounding has left a rest beyond the sum of them all.
            last = _WIDTH - 1 - (rows[:, ::-1] > 0).argmax(axis=1)
            child = np.minimum((reached <= rest[:, None]).sum(axis=1), last)
            each = np.arange(len(rest))
            rest = np.maximum(rest - (reached[each, child] - rows[each, child]), 0.0)
            nodes = nodes * _WIDTH + child
        return nodes


def _padded(count: int) -> int:
    return -(-count // _WIDTH) * _WIDTH


def _minima(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    least: NDArray[np.float64] = np.where(rows > 0, rows, np.inf).min(axis=1)
    return least
