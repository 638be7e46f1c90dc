"""Actions as they come in: turned into the numbers that the compiled step checks against their bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from env.kernel import TOLERANCE
from env.settings import EnvSettings
from schemas.errors import ActionError


class Choices:
    """Numbered actions: one choice per environment, or per environment and symbol.

    Args:
        settings: Kind of actions.
        num_envs: B, or None for one environment without a batch axis.
        symbols: S of a portfolio, None for one symbol.

    Attributes:
        numbers: The actions that were read last, float64 (B, size).
        low: Lowest of them, float64 (size,).
        high: Highest, float64 (size,).
        vector: Whether an action of one environment is an array.
        labels: Names of the choices.
    """

    def __init__(self, settings: EnvSettings, num_envs: int | None, symbols: int | None) -> None:
        count = len(settings.targets) if settings.actions == "targets" else 3
        self.vector = symbols is not None
        self._count = count
        self._single = num_envs is None
        batch, size = num_envs or 1, symbols or 1
        self._shape = (batch, size) if self.vector else (batch,)
        self.numbers: NDArray[np.float64] = np.zeros((batch, size))
        self.low, self.high = np.zeros(size), np.full(size, count - 1.0)
        self.labels: tuple[str, ...] = ("hold", "buy", "sell")
        if settings.actions == "targets":
            self.labels = tuple(f"{target:g}" for target in settings.targets)

    def read(self, given: Any) -> None:
        """Read actions of all environments into ``numbers``; not for one choice of one environment.

        Raises:
            ActionError: Another shape, or no integers.
        """
        array = np.asarray(given)
        if self._single and array.ndim:
            array = array[np.newaxis]
        if array.shape != self._shape or array.dtype.kind not in "iu":
            expected = f"integers of shape {self._shape}" if self.vector else f"{self._shape[0]} integers"
            raise ActionError(
                f"actions: expected {expected}, one per environment{' and symbol' if self.vector else ''}, got shape"
                f" {array.shape} of {array.dtype}; pass an integer array"
            )
        self.numbers[:] = array.reshape(self.numbers.shape)

    def refused(self, index: int, given: Any = None) -> ActionError:
        """Return the error that tells what is wrong with the action of environment ``index``."""
        if given is None:
            numbers = self.numbers[index].astype(np.int64).tolist()
            given = numbers if self.vector else numbers[0]
        each = " for each symbol" if self.vector else ""
        return ActionError(
            f"environment {index}: expected an action 0..{self._count - 1}{each}, got {given!r}; use the action space"
        )


class Boxes:
    """Continuous actions: per symbol a weight or quantity, then the distances of protective orders by action.

    Arguments and attributes are those of :class:`Choices`.
    """

    labels: tuple[str, ...] = ()

    def __init__(self, settings: EnvSettings, num_envs: int | None, symbols: int | None) -> None:
        largest = settings.leverage if settings.actions == "weights" else settings.max_quantity
        smallest = 0.0 if settings.actions == "weights" and not settings.short else -largest
        names = settings.protections if settings.protect_by_action else ()
        self._each = 1 + len(names)
        self._portfolio = symbols is not None
        self._single = num_envs is None
        size = self._each * (symbols or 1)
        self.vector = size > 1
        self.numbers: NDArray[np.float64] = np.zeros((num_envs or 1, size))
        self.low = np.array([smallest, *(0.0 for _ in names)] * (symbols or 1))
        self.high = np.array([largest, *(getattr(settings, name) for name in names)] * (symbols or 1))

    def read(self, given: Any) -> None:
        """Read actions of all environments into ``numbers``.

        Raises:
            ActionError: Another shape, or no numbers.
        """
        array = np.asarray(given)
        shape = self.numbers.shape[1:] if self._single else self.numbers.shape
        if array.shape != shape or array.dtype.kind not in "fiu":
            raise ActionError(
                f"{'environment 0' if self._single else 'actions'}: expected numbers of shape {shape}, got"
                f" {given!r} of shape {array.shape}; use the action space"
            )
        self.numbers[:] = array

    def refused(self, index: int) -> ActionError:
        """Return the error that tells what is wrong with the action of environment ``index``."""
        values = self.numbers[index]
        within = (values >= self.low - TOLERANCE * np.abs(self.low)) & (
            values <= self.high + TOLERANCE * np.abs(self.high)
        )
        place = int(np.argmin(within))  # NaN is not within
        symbol, part = divmod(place, self._each)
        what = "an action" if part == 0 else "a distance of a protective order"
        of = f" of symbol {symbol}" if self._portfolio else ""
        return ActionError(
            f"environment {index}: expected {what}{of} in {self.low[place]:g}..{self.high[place]:g}, got"
            f" {float(values[place])!r}; use the action space"
        )


def action_reader(settings: EnvSettings, num_envs: int | None, symbols: int | None) -> Choices | Boxes:
    """Return what reads the actions that the settings ask for; arguments as of :class:`Choices`."""
    return (Choices if settings.discrete else Boxes)(settings, num_envs, symbols)
