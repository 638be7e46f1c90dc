"""What an environment shows: a window of features and the state of the account (docs/env.md)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from env.accounting import Ops, Value, Values
from env.padding import room_of
from env.settings import EnvSettings

OBSERVATION_LIMIT = 10.0
"""Observations are clipped to ± this, as Stable-Baselines3's ``VecNormalize`` does (``clip_obs=10``)."""

PER_SYMBOL = ("position", "unrealised_return", "time_in_position")
"""Position features that have one number a symbol."""

_LEAST_EQUITY = 1e-9


class Accounts(Protocol):
    """State of the accounts at a close, which the market model has."""

    cash: Value
    equity: Value
    highest: Value
    """Highest equity of the episode."""
    position: Values
    cost: Values
    """Average cost of the open trade; any number above 0 without one."""
    entry_row: Values
    """Row of its entry; any number without one."""


class Close(NamedTuple):
    """What the close adds to it, computed once for all features."""

    price: Values
    divisor: Value
    """Equity, and a little above 0 where there is none: what is then divided by it means nothing but its sign, which
    the clip keeps."""
    bars: Values
    """Bars since the entry, its own counted; any number without a trade."""


class Observer:
    """Makes observations.

    Args:
        features: Scaled features, float32 (N, F).
        settings: Window and position features.
        ops: Of the shape of the numbers.
        symbols: S of a portfolio, None for one symbol.
        num_envs: B, or None for one environment without a batch axis.

    Attributes:
        size: Length of an observation: window × F + position features, of which those in ``PER_SYMBOL`` count S times.
    """

    def __init__(
        self,
        features: NDArray[np.float32],
        settings: EnvSettings,
        ops: Ops,
        symbols: int | None,
        num_envs: int | None,
    ) -> None:
        self._features, self._ops, self._window = features, ops, settings.window
        self._plain = num_envs is None and symbols is None
        self._flat = settings.window * features.shape[1]
        counts = [(symbols or 1) if name in PER_SYMBOL else 1 for name in settings.position_features]
        self.size = self._flat + sum(counts)
        self._parts: list[tuple[str, slice]] = []
        at = 0
        for name, count in zip(settings.position_features, counts, strict=True):
            self._parts.append((name, slice(at, at + count)))
            at += count
        self._buffer = np.zeros((at, num_envs or 1))
        self._bind()

    def _bind(self) -> None:
        # Windows that reach over the numbers that follow them, where the account is then written: one copy makes an
        # observation, in a third of the time that filling an empty one takes.
        width = self._features.shape[1]
        roomy = room_of(self._features).reshape(-1)
        self._windows: Any = np.lib.stride_tricks.sliding_window_view(roomy, self.size)[::width]
        self._readers: list[tuple[slice, Callable[[Accounts, Close], Values]]] = [
            (part, getattr(self, f"_{name}")) for name, part in self._parts
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the views: pickled, they would be copies, window by window."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_windows", "_readers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()

    def observe(self, row: Value, price: Values, accounts: Accounts) -> NDArray[np.float32]:
        """Return new observations at ``row``, float32 (size,) for one environment, else (B, size)."""
        close = Close(price, self._ops.maximum(accounts.equity, _LEAST_EQUITY), row - accounts.entry_row + 1)
        first = row - (self._window - 1)
        if self._plain:
            out: NDArray[np.float32] = self._windows[first].copy()
            for place, (_, read) in enumerate(self._readers, self._flat):
                value = read(accounts, close)
                if not -OBSERVATION_LIMIT <= value <= OBSERVATION_LIMIT:  # a fifth of the time of min and max
                    value = math.copysign(OBSERVATION_LIMIT, value)
                out[place] = value
            return out
        out = self._windows[first]
        buffer = self._buffer
        for part, read in self._readers:
            buffer[part] = read(accounts, close)
        np.minimum(np.maximum(buffer, -OBSERVATION_LIMIT, out=buffer), OBSERVATION_LIMIT, out=buffer)
        out[..., self._flat :] = buffer.T
        return out

    def _position(self, accounts: Accounts, close: Close) -> Values:
        return accounts.position * close.price / close.divisor

    def _unrealised_return(self, accounts: Accounts, close: Close) -> Values:
        ops, position = self._ops, accounts.position
        gain = close.price / accounts.cost - 1.0
        return ops.where(position > 0.0, gain, ops.where(position < 0.0, -gain, 0.0))

    def _time_in_position(self, accounts: Accounts, close: Close) -> Values:
        bars = self._ops.where(accounts.position != 0.0, close.bars, 0)
        return bars / (bars + self._window)

    def _drawdown(self, accounts: Accounts, close: Close) -> Value:
        return 1.0 - accounts.equity / accounts.highest

    def _cash_share(self, accounts: Accounts, close: Close) -> Value:
        return accounts.cash / close.divisor
