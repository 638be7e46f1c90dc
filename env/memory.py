"""What the market model remembers of its environments: their state, and what their episodes' records will tell."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from env.settings import EnvSettings
from env.state import ACCOUNT, FILL, HELD, HOLDING, ORDER, STEP, TRADE

_RESERVED = 1 << 28
"""Bytes that an array may take at first. They are address space: memory is taken where something is written."""


class Kept(NamedTuple):
    """What is kept of one episode: views, but for the account and the holdings."""

    account: Any
    """One record ``ACCOUNT``."""
    holdings: NDArray[Any]
    """``HOLDING`` (S,)."""
    steps: NDArray[Any]
    """``STEP`` (steps,)."""
    actions: NDArray[np.float64]
    """(steps, size)."""
    held: NDArray[Any] | None
    """``HELD`` (steps, S); None unless steps are recorded."""
    fills: NDArray[Any]
    """``FILL`` (fills,), in time."""
    trades: NDArray[Any]
    """``TRADE`` (trades,), in the order of their ends."""


class Memory:
    """Preallocated arrays over all environments; an episode is a stretch of them from its environment's first place.

    Args:
        envs: B.
        symbols: S.
        size: Numbers of an action.
        settings: Whether every step is recorded.
        longest: Steps of the longest episode.

    Attributes:
        accounts: ``ACCOUNT`` (B,).
        holdings: ``HOLDING`` (B, S).
        orders: ``ORDER`` (S,): scratch.
        steps: ``STEP`` (B, steps that fit).
        actions: float64 (B, steps that fit, size).
        held: ``HELD`` (B, steps that fit, S); none fit unless steps are recorded.
        fills: ``FILL`` (B, fills that fit).
        trades: ``TRADE`` (B, fills that fit).
    """

    def __init__(self, envs: int, symbols: int, size: int, settings: EnvSettings, longest: int) -> None:
        steps = _room(longest, envs * symbols * HELD.itemsize)
        fills = max(_room(longest * symbols, envs * TRADE.itemsize), 3 * symbols)
        self.accounts = np.zeros(envs, ACCOUNT)
        self.accounts["ended"] = True  # as long as no episode was begun
        self.accounts["equity"] = self.accounts["highest"] = 1.0
        self.holdings = np.zeros((envs, symbols), HOLDING)
        self.holdings["cost"] = 1.0
        self.orders = np.zeros(symbols, ORDER)
        self.steps = np.zeros((envs, steps), STEP)
        self.actions = np.zeros((envs, steps, size))
        self.held = np.zeros((envs, steps if settings.record == "steps" else 0, symbols), HELD)
        self.fills = np.zeros((envs, fills), FILL)
        self.trades = np.zeros((envs, fills), TRADE)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all of them by name."""
        return dict(vars(self))

    def grow(self, index: int) -> None:
        """Double what environment ``index`` has filled: the room for steps, or else that for fills and trades."""
        account = self.accounts[index]
        steps = account["row"] - account["start"] >= self.steps.shape[1]
        for name in ("steps", "actions", "held") if steps else ("fills", "trades"):
            kept = getattr(self, name)
            larger = np.zeros((kept.shape[0], 2 * kept.shape[1], *kept.shape[2:]), kept.dtype)
            larger[:, : kept.shape[1]] = kept
            setattr(self, name, larger)

    def read(self, index: int) -> Kept:
        """Return what is kept of the current or last episode of environment ``index``."""
        account = self.accounts[index].copy()
        steps = int(account["row"] - account["start"])
        return Kept(
            account=account,
            holdings=self.holdings[index].copy(),
            steps=self.steps[index, :steps],
            actions=self.actions[index, :steps],
            held=self.held[index, :steps] if self.held.size else None,
            fills=self.fills[index, : account["fills"]],
            trades=self.trades[index, : account["trades"]],
        )


def _room(longest: int, bytes_each: int) -> int:
    """How many places an array has at first, of those that it may need."""
    return max(min(longest, _RESERVED // bytes_each), 2)
