"""Actions as they come in: checked against the space, and split into what orders are made of."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from env.accounting import Values
from env.settings import EnvSettings
from schemas.errors import ActionError

_TOLERANCE = 1e-6
"""Relative distance from a bound that float32 may put a number beyond it; it then counts as the bound."""


Action = tuple[Any, Values, tuple[Values, ...]]
"""Checked actions of all environments. What is recorded: an int or a float, or an array (B,); vectors of A numbers are
arrays (A,) or (B, A). Per symbol the number of the choice, the weight, or the quantity. Per symbol the distances of the
protective orders by action, in the order of ``settings.protections``."""


class Choices:
    """Numbered actions: one choice per environment, or per environment and symbol.

    Args:
        settings: Kind of actions.
        num_envs: B, or None for one environment without a batch axis.
        symbols: S of a portfolio, None for one symbol.
    """

    def __init__(self, settings: EnvSettings, num_envs: int | None, symbols: int | None) -> None:
        self.count = len(settings.targets) if settings.actions == "targets" else 3
        self._single = num_envs is None
        self._symbols = symbols
        batch = num_envs or 1
        self._shape = (batch,) if symbols is None else (batch, symbols)
        self.recorded = (self._shape, np.int64)
        self.labels = (
            tuple(f"{target:g}" for target in settings.targets)
            if settings.actions == "targets"
            else ("hold", "buy", "sell")
        )

    def __call__(self, given: Any) -> Action:
        """Check actions.

        Raises:
            ActionError: Another shape, no integers, or a number that is no choice.
        """
        if not self._single:
            return self._batch(given)
        if self._symbols is not None:
            return self._batch([given] if np.ndim(given) else given)
        try:
            action = operator.index(given)
        except TypeError:
            action = -1
        if not 0 <= action < self.count:
            raise self._error(0, given)
        return action, action, ()

    def _batch(self, given: Any) -> Action:
        array = np.asarray(given)
        if array.shape != self._shape or array.dtype.kind not in "iu":
            expected = f"{self._shape[0]} integers" if len(self._shape) == 1 else f"integers of shape {self._shape}"
            raise ActionError(
                f"actions: expected {expected}, one per environment{' and symbol' if self._symbols else ''}, got shape"
                f" {array.shape} of {array.dtype}; pass an integer array"
            )
        bad = (array < 0) | (array >= self.count)
        if np.count_nonzero(bad):
            index = int(np.argmax(bad.reshape(self._shape[0], -1).any(axis=1)))
            raise self._error(index, array[index].tolist())
        return array, array if self._symbols is None else array.T, ()

    def _error(self, index: int, action: Any) -> ActionError:
        each = " for each symbol" if self._symbols else ""
        return ActionError(
            f"environment {index}: expected an action 0..{self.count - 1}{each}, got {action!r}; use the action space"
        )


class Boxes:
    """Continuous actions: per symbol a weight or quantity, then the distances of protective orders by action.

    Args:
        settings: Kind of actions, bounds.
        num_envs: B, or None for one environment without a batch axis.
        symbols: S of a portfolio, None for one symbol.
    """

    def __init__(self, settings: EnvSettings, num_envs: int | None, symbols: int | None) -> None:
        largest = settings.leverage if settings.actions == "weights" else settings.max_quantity
        smallest = 0.0 if settings.actions == "weights" and not settings.short else -largest
        names = settings.protections if settings.protect_by_action else ()
        self._each = 1 + len(names)
        self._symbols = symbols
        self._single = num_envs is None
        self._plain = self._single and symbols is None
        self._batch = num_envs or 1
        self._size = self._each * (symbols or 1)
        self._low = np.array([smallest, *(0.0 for _ in names)] * (symbols or 1))
        self._high = np.array([largest, *(getattr(settings, name) for name in names)] * (symbols or 1))
        self._least = self._low - _TOLERANCE * np.abs(self._low)
        self._most = self._high + _TOLERANCE * np.abs(self._high)
        self.recorded = ((self._batch,) if self._size == 1 else (self._batch, self._size), np.float64)
        self.labels: tuple[str, ...] = ()

    def __call__(self, given: Any) -> Action:
        """Check actions.

        Raises:
            ActionError: Another shape, no numbers, NaN, or a number outside of its bounds.
        """
        array = np.asarray(given)
        shape = (self._size,) if self._single else (self._batch, self._size)
        if array.shape != shape or array.dtype.kind not in "fiu":
            raise ActionError(
                f"{'environment 0' if self._single else 'actions'}: expected numbers of shape {shape}, got"
                f" {given!r} of shape {array.shape}; use the action space"
            )
        values: NDArray[np.float64] = array.reshape(self._batch, self._size).astype(np.float64)
        inside = (values >= self._least) & (values <= self._most)  # NaN is not
        if np.count_nonzero(inside) != inside.size:
            self._refuse(values, inside)
        values = np.minimum(np.maximum(values, self._low), self._high)
        if self._plain:
            numbers = values[0].tolist()
            return numbers[0] if self._size == 1 else values[0], numbers[0], tuple(numbers[1:])
        if self._symbols is None:
            main, *distances = np.ascontiguousarray(values.T)
        else:
            parts = values.T.reshape(self._symbols, self._each, self._batch)
            main, *distances = (np.ascontiguousarray(parts[:, part]) for part in range(self._each))
        return values.reshape(self.recorded[0]), main, tuple(distances)

    def _refuse(self, values: NDArray[np.float64], inside: NDArray[np.bool_]) -> None:
        index, place = np.argwhere(~inside)[0].tolist()
        symbol, part = divmod(place, self._each)
        what = "an action" if part == 0 else "a distance of a protective order"
        of = f" of symbol {symbol}" if self._symbols else ""
        raise ActionError(
            f"environment {index}: expected {what}{of} in {self._low[place]:g}..{self._high[place]:g}, got"
            f" {float(values[index, place])!r}; use the action space"
        )


def action_reader(settings: EnvSettings, num_envs: int | None, symbols: int | None) -> Choices | Boxes:
    """Return what checks the actions that the settings ask for; arguments as of :class:`Choices`."""
    return (Choices if settings.discrete else Boxes)(settings, num_envs, symbols)
