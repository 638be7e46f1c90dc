"""What the market model writes down at each step: preallocated columns over all environments."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from env.settings import EnvSettings


class Entry(NamedTuple):
    """Columns of the journal, one cell a step and environment, and a symbol where it says so."""

    equity: Any
    """Equity at the close, after everything."""
    action: Any
    """Number of the choice, or the vector of the action."""
    position: Any
    """Signed units after the order at the open, per symbol. What closes inside the bar is in the exit columns."""
    price: Any
    """Price of the fill at the open, per symbol; 0 without one."""
    exit_kind: Any
    """Kind of the fill that closed the position after that, int8 per symbol; 0 without one."""
    exit_reference: Any
    """Its price before slippage and spread, per symbol; only where there is an exit."""
    exit_price: Any
    """Its price, per symbol; only where there is an exit."""
    reward: Any
    """Unscaled; None for log returns, which the equity tells."""
    interest: Any
    """Interest on cash; None where there is none."""
    cash: Any
    """Money at the close; None unless steps are recorded."""


_PER_SYMBOL = ("position", "price", "exit_kind", "exit_reference", "exit_price")


class Journal:
    """A ring of steps. All environments write into one row of it, whatever step of their episodes they are at.

    The row is the number of steps that the model has taken, so one write serves all environments, and an episode is
    a stretch of rows. The ring doubles when the longest running episode does not fit.

    Args:
        settings: What is written down.
        shape: Of a number per environment: (B,).
        per_symbol: Of a number per environment and symbol: (B,) or (S, B).
        action: Shape and type of an action of all environments.
        capacity: Steps that fit at first.
        plain: Give views that take Python numbers, for one environment; shapes are then (1,).
    """

    def __init__(
        self,
        settings: EnvSettings,
        shape: tuple[int, ...],
        per_symbol: tuple[int, ...],
        action: tuple[tuple[int, ...], Any],
        capacity: int,
        *,
        plain: bool,
    ) -> None:
        self.capacity = 1 << (max(capacity, 2) - 1).bit_length()
        self._plain = plain
        self._symbols = per_symbol[0] if len(per_symbol) > 1 else 1

        def column(cell: tuple[int, ...], dtype: Any = np.float64) -> NDArray[Any]:
            return np.zeros((self.capacity, *cell), dtype=dtype)

        self._columns = Entry(
            equity=column(shape),
            action=column(*action),
            position=column(per_symbol),
            price=column(per_symbol),
            exit_kind=column(per_symbol, np.int8),
            exit_reference=column(per_symbol),
            exit_price=column(per_symbol),
            reward=column(shape) if settings.reward != "log_return" else None,
            interest=column(shape) if settings.interest else None,
            cash=column(shape) if settings.record == "steps" else None,
        )
        self._bind()

    def _bind(self) -> None:
        self.rows = Entry(*(self._row_view(column) for column in self._columns))

    def _row_view(self, column: NDArray[Any] | None) -> Any:
        """The column as the step writes into it: a memoryview is the cheapest way to write a Python number."""
        if column is None or not self._plain or column.ndim > 2 or column.shape[1] > 1:
            return column
        return memoryview(cast(Any, column.reshape(-1)))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the views: they can neither be copied nor pickled, and are made again."""
        return {key: value for key, value in self.__dict__.items() if key != "rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()

    def grow(self, now: int) -> None:
        """Double the ring; ``now`` is the number of steps that were taken."""
        size = self.capacity
        kept = np.arange(max(now - size, 0), now)
        self.capacity = size * 2

        def larger(column: NDArray[Any] | None) -> NDArray[Any] | None:
            if column is None:
                return None
            grown = np.zeros((self.capacity, *column.shape[1:]), dtype=column.dtype)
            grown[kept & (self.capacity - 1)] = column[kept & (size - 1)]
            return grown

        self._columns = Entry(*(larger(column) for column in self._columns))
        self._bind()

    def read(self, index: int, first: int, steps: int) -> Entry:
        """Copy ``steps`` steps of one environment from the step ``first`` of the model on.

        Returns:
            Arrays (steps,), per symbol (steps, S), actions (steps,) or (steps, A).
        """
        at = np.arange(first, first + steps) & (self.capacity - 1)
        read: dict[str, Any] = {}
        for name, column in self._columns._asdict().items():
            if column is None:
                read[name] = None
            elif name in _PER_SYMBOL:
                read[name] = column[at, ..., index].reshape(steps, self._symbols)
            else:
                read[name] = column[at, index]
        return Entry(**read)
