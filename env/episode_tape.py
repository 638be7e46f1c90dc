"""What an episode leaves behind, before anything is reckoned from it.

The record can be made of it elsewhere and later, without the bars: to copy a tape takes a small part of the time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from env.actions import Boxes, Choices
from env.common_clock import CommonClock
from env.market_data import MarketData
from env.memory import Kept
from env.settings import EnvSettings
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
    steps: NDArray[Any] | None = None
    """``STEP`` (steps,); None unless steps are recorded, as for the following."""
    held: NDArray[Any] | None = None
    """``HELD`` (steps, S)."""
    mark: NDArray[np.float64] | None = None
    """The close, or on a missing bar the last price, (steps, S)."""
    tradable: NDArray[np.bool_] | None = None
    """Whether there was a bar, (steps, S)."""


def build_tape(
    bars: MarketData | CommonClock,
    settings: EnvSettings,
    actions: Choices | Boxes,
    kept: Kept,
    *,
    symbol: str,
    symbols: tuple[str, ...],
    base: int,
    reason: Reason,
    env_seed: str | None,
) -> EpisodeTape:
    """Bring together what one episode leaves behind: views.

    Args:
        bars: What it ran on.
        settings: Its settings.
        actions: How its actions are meant.
        kept: Its numbers.
        symbol: See :class:`EpisodeRecord`, as for ``symbols`` and ``env_seed``.
        symbols: Names.
        base: See :class:`Told`.
        reason: Why it ended.
        env_seed: What drew the start.
    """
    start, steps = int(kept.account["start"]), len(kept.steps)
    rows = slice(start + 1, start + 1 + steps)
    told = Told(
        symbol=symbol,
        symbols=symbols,
        base=base,
        reason=reason,
        env_seed=env_seed,
        portfolio=settings.portfolio,
        bars_per_year=settings.bars_per_year or bars.bars_per_year,
        initial_cash=settings.initial_cash,
        labels=actions.labels,
        vector=actions.vector,
    )
    tape = EpisodeTape(
        told,
        kept.account,
        kept.holdings,
        kept.steps["equity"],
        kept.actions,
        kept.fills,
        kept.trades,
        ts_close=bars.ts_close[start : start + 1 + steps],
        ts_open=bars.ts_open[rows],
        last_mark=np.atleast_1d(bars.mark[..., start + steps]),
    )
    if kept.held is None:
        return tape
    shape = (steps, len(symbols))
    return tape._replace(
        steps=kept.steps,
        held=kept.held,
        mark=bars.mark[..., rows].T.reshape(shape),
        tradable=bars.tradable[..., rows].T.reshape(shape),
    )
