"""What an episode leaves behind, before anything is reckoned from it.

The record can be made of it elsewhere and later, without the bars: to copy a tape takes a small part of the time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from env.common_clock import CommonClock
from env.market_data import MarketData
from env.memory import Kept
from env.starts import Reason


class Told(NamedTuple):
    """What an episode's record says that its numbers do not."""

    symbol: str
    symbols: tuple[str, ...]
    base: int
    """What makes a row in the arrays of the bars absolute."""
    reason: Reason
    env_seed: str | None
    portfolio: bool
    bars_per_year: float
    initial_cash: float
    labels: tuple[str, ...]
    """Names of the choices; none where actions are continuous."""
    vector: bool
    """Whether an action is an array."""


class EachStep(NamedTuple):
    """What every step of an episode is told by."""

    steps: NDArray[Any]
    """``STEP`` (steps,)."""
    held: NDArray[Any]
    """``HELD`` (steps, S)."""
    mark: NDArray[np.float64]
    """The close, or on a missing bar the last price, (steps, S)."""
    tradable: NDArray[np.bool_]
    """Whether there was a bar, (steps, S)."""


class EpisodeTape(NamedTuple):
    """One episode, running or ended: its names, and its numbers as the market model wrote them down.

    Arrays are views as a market model gives them, and change when it goes on.
    """

    told: Told
    account: Any
    """One record ``ACCOUNT``."""
    holdings: NDArray[Any]
    """``HOLDING`` (S,)."""
    equity: NDArray[np.float64]
    """At each close, (steps,)."""
    actions: NDArray[np.float64]
    """(steps, size)."""
    fills: NDArray[Any]
    """``FILL`` (fills,), in time."""
    trades: NDArray[Any]
    """``TRADE`` (trades,), in the order of their ends."""
    ts_close: NDArray[np.int64]
    """Of the bars from the first observation's on, (steps + 1,)."""
    ts_open: NDArray[np.int64]
    """Of the bar of each step, (steps,)."""
    last_mark: NDArray[np.float64]
    """Last closes, (S,)."""
    each: EachStep | None
    """None unless steps are recorded."""


def build_tape(bars: MarketData | CommonClock, kept: Kept, told: Told) -> EpisodeTape:
    """Bring together what one episode leaves behind: views.

    Args:
        bars: What it ran on.
        kept: Its numbers.
        told: Its names.
    """
    start, steps = int(kept.account["start"]), len(kept.steps)
    rows = slice(start + 1, start + 1 + steps)
    each = None
    if kept.held is not None:
        shape = kept.held.shape
        mark, tradable = bars.mark[..., rows].T.reshape(shape), bars.tradable[..., rows].T.reshape(shape)
        each = EachStep(kept.steps, kept.held, mark, tradable)
    return EpisodeTape(
        told=told,
        account=kept.account,
        holdings=kept.holdings,
        equity=kept.steps["equity"],
        actions=kept.actions,
        fills=kept.fills,
        trades=kept.trades,
        ts_close=bars.ts_close[start : start + 1 + steps],
        ts_open=bars.ts_open[rows],
        last_mark=np.atleast_1d(bars.mark[..., start + steps]),
        each=each,
    )
