"""Figures of merit of one episode, from its equity curve, its closed trades and its costs.

The view ``episode_metrics`` (consumers/migrations) computes the same numbers in SQL from the stored rows; each
definition here is one that ClickHouse has as well. A figure that is not defined (no trade, flat equity, one bar, a
ruined account) is None, never NaN or infinite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from env.compiled import compiled

Floats = NDArray[np.float64]

TAIL = 0.05
"""Share of the worst steps that VaR and CVaR look at."""

# Returns that differ by rounding alone have no spread: dividing by it would print a Sharpe ratio of 1e13.
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class EpisodeMetrics:
    """Figures of one episode. Returns are fractions, money is in the currency of the prices.

    "Returns" are simple returns of equity per step, E'/E - 1. Annual figures need ``bars_per_year`` and are None
    without it.

    Attributes:
        total_return: Final over initial equity, minus 1.
        annual_return: The same at a constant rate over a year, (final / initial)^(bars_per_year / steps) - 1; None
            for a ruined account, and where a short episode makes it too large for a float.
        volatility: Standard deviation of returns (ddof 1) times the root of bars_per_year.
        sharpe: Mean over standard deviation (ddof 1) of returns, per step, risk-free rate 0 (Sharpe 1994, "The Sharpe
            Ratio"); None for fewer than two steps or returns that do not vary.
        annual_sharpe: sharpe times the root of bars_per_year.
        sortino: Mean of returns over their downside deviation, the root of the mean of min(return, 0)² over all
            steps, per step, target 0 (Sortino and Price 1994, "Performance Measurement in a Downside Risk
            Framework"); None where no step lost.
        annual_sortino: sortino times the root of bars_per_year.
        calmar: annual_return over max_drawdown, both of the whole episode (Young 1991, "Calmar Ratio: A Smoother
            Tool", which takes 36 months); None without a drawdown.
        max_drawdown: Largest fall from a running peak, as a fraction of that peak; above 1 where equity went negative.
        max_drawdown_bars: Steps from the peak of that fall until equity is back at it, or to the end; 0 without one.
        var_95: Historical value at risk of one step: minus the 5 % quantile of returns, interpolated linearly (type 7
            of Hyndman and Fan 1996). A loss is positive; below 0 where even that quantile is a gain.
        cvar_95: Expected shortfall: minus the mean of the worst 5 % of returns, the one at the edge counted by the
            part that is inside (Acerbi and Tasche 2002, "On the coherence of expected shortfall"). Never below var_95.
        profit_factor: Net pnl of winning over that of losing closed trades; None where none lost.
        expectancy: Mean net pnl of closed trades, in money.
        win_rate: Share of closed trades with net pnl above 0.
        win_rate_long: The same of long trades.
        win_rate_short: The same of short trades.
        exposure: Share of steps at whose close a position was open.
        turnover: Traded notional over mean equity (the start included).
        mean_trade_bars: Mean of the bars from entry to exit of closed trades.
        median_trade_bars: Their median.
        action_change_rate: Share of steps, from the second on, whose action differs from the one before; a vector
            differs where any of its numbers does.
        fee: Fees paid.
        slippage: What the distance of fill prices from the reference prices cost; it is inside the prices.
        borrow: Cost of short positions.
        funding: Funding paid; received where below 0.
        interest: Interest received on cash; paid where below 0.
    """

    total_return: float
    annual_return: float | None
    volatility: float | None
    sharpe: float | None
    annual_sharpe: float | None
    sortino: float | None
    annual_sortino: float | None
    calmar: float | None
    max_drawdown: float
    max_drawdown_bars: int
    var_95: float | None
    cvar_95: float | None
    profit_factor: float | None
    expectancy: float | None
    win_rate: float | None
    win_rate_long: float | None
    win_rate_short: float | None
    exposure: float | None
    turnover: float | None
    mean_trade_bars: float | None
    median_trade_bars: float | None
    action_change_rate: float | None
    fee: float
    slippage: float
    borrow: float
    funding: float
    interest: float


def episode_metrics(
    equity: Floats,
    *,
    side: NDArray[Any],
    net_pnl: Floats,
    bars: NDArray[np.int64],
    steps_in_position: int,
    traded_notional: float,
    actions: NDArray[Any],
    bars_per_year: float | None,
    fee: float = 0.0,
    slippage: float = 0.0,
    borrow: float = 0.0,
    funding: float = 0.0,
    interest: float = 0.0,
) -> EpisodeMetrics:
    """Compute the figures of one episode.

    Args:
        equity: Equity at the start and after each step, float64 (steps + 1,); all but the last above 0.
        side: Of each closed trade, +1 long or -1 short, (trades,).
        net_pnl: Of each closed trade, after its costs, float64 (trades,).
        bars: From entry to exit of each closed trade, int64 (trades,).
        steps_in_position: Steps at whose close a position was open.
        traded_notional: Sum of |quantity| times price over all fills.
        actions: Of each step, (steps,) or (steps, n).
        bars_per_year: None where it is not known.
        fee: Total of the episode; see :class:`EpisodeMetrics`, as for the following.
        slippage: Total.
        borrow: Total.
        funding: Total.
        interest: Total.
    """
    steps = len(equity) - 1
    returns = equity[1:] / equity[:-1] - 1.0
    growth = float(equity[-1] / equity[0])
    year = math.nan if bars_per_year is None else bars_per_year
    root = math.sqrt(year)
    moments = _moments(returns) if steps else None
    per_step, downside = _sharpe(moments, steps), _sortino(moments)
    annual_return = _annual_return(growth, steps, year)
    fall, fall_bars = drawdown(equity)
    tail = _tail(returns)
    trades = _sums_of_trades(_floats(side), _floats(net_pnl))
    lengths = np.sort(bars)
    middle = len(lengths) // 2
    return EpisodeMetrics(
        total_return=growth - 1.0,
        annual_return=annual_return,
        volatility=_finite(moments.deviation * root) if moments is not None and steps > 1 else None,
        sharpe=per_step,
        annual_sharpe=None if per_step is None else _finite(per_step * root),
        sortino=downside,
        annual_sortino=None if downside is None else _finite(downside * root),
        calmar=_ratio(annual_return, fall),
        max_drawdown=fall,
        max_drawdown_bars=fall_bars,
        var_95=tail[0],
        cvar_95=tail[1],
        profit_factor=_ratio(trades.gains, trades.losses),
        expectancy=_share(trades.gains - trades.losses, trades.long + trades.short),
        win_rate=_share(trades.won_long + trades.won_short, trades.long + trades.short),
        win_rate_long=_share(trades.won_long, trades.long),
        win_rate_short=_share(trades.won_short, trades.short),
        exposure=_share(steps_in_position, steps),
        turnover=_ratio(traded_notional, float(equity.sum()) / len(equity)),
        mean_trade_bars=_share(float(lengths.sum()), len(lengths)),
        median_trade_bars=float(lengths[middle] + lengths[-1 - middle]) / 2.0 if len(lengths) else None,
        action_change_rate=_change_rate(actions),
        fee=fee,
        slippage=slippage,
        borrow=borrow,
        funding=funding,
        interest=interest,
    )


def sharpe(returns: Floats) -> float | None:
    """Mean over standard deviation (ddof 1, as ClickHouse's ``stddevSamp``) of simple returns, per step.

    Args:
        returns: Simple returns per step, float64 (n,).

    Returns:
        None where it is not defined: fewer than two returns, or returns that do not vary. The annual figure is this
        times the root of the steps in a year.
    """
    return _sharpe(_moments(_floats(returns)) if returns.size else None, returns.size)


def sortino(returns: Floats) -> float | None:
    """Mean of simple returns over the root of the mean of min(return, 0)², per step.

    Args:
        returns: Simple returns per step, float64 (n,).

    Returns:
        None where it is not defined: no return, or none below 0.
    """
    return _sortino(_moments(_floats(returns)) if returns.size else None)


def drawdown(equity: Floats) -> tuple[float, int]:
    """Largest fall from a running peak, and how long it lasted.

    Args:
        equity: Equity, float64 (n,), the first one above 0.

    Returns:
        The fall as a fraction of its peak (0 for a curve that never falls, 0.25 for a fall from 120 to 90, above 1
        where equity turned negative), and the steps from the last time at that peak until equity is back at it, or
        to the end.
    """
    return _drawdown(_floats(equity))


@compiled
def _drawdown(equity: Floats) -> tuple[float, int]:
    fall, begin, end = 0.0, 0, 0
    peak, peak_at, open_fall = equity[0], 0, False  # an open fall is the largest one, not yet made up for
    for step in range(len(equity)):
        value = equity[step]
        if value >= peak:
            if open_fall:
                end, open_fall = step, False
            peak, peak_at = value, step
        elif (peak - value) / peak > fall:
            fall, begin, open_fall = (peak - value) / peak, peak_at, True
    if open_fall:
        end = len(equity) - 1
    return fall, end - begin


class _Moments(NamedTuple):
    """Of returns, of which there is one at least."""

    mean: float
    deviation: float
    """Standard deviation, ddof 1."""
    largest: float
    """Of the absolute values."""
    downside: float
    """Root of the mean of min(return, 0)²."""


def _sharpe(moments: _Moments | None, count: int) -> float | None:
    if moments is None or count < 2 or moments.deviation <= _NO_SPREAD * max(1.0, moments.largest):
        return None
    return moments.mean / moments.deviation


def _sortino(moments: _Moments | None) -> float | None:
    return None if moments is None or moments.downside <= _NO_SPREAD else moments.mean / moments.downside


@compiled
def _moments(returns: Floats) -> _Moments:
    count = len(returns)
    total = largest = lost = 0.0
    for value in returns:
        total += value
        largest = max(largest, abs(value))
        lost += min(value, 0.0) ** 2
    mean = total / count
    squares = 0.0
    for value in returns:
        squares += (value - mean) ** 2
    return _Moments(mean, math.sqrt(squares / max(count - 1, 1)), largest, math.sqrt(lost / count))


class _TradeSums(NamedTuple):
    gains: float
    losses: float
    long: int
    short: int
    won_long: int
    won_short: int


@compiled
def _sums_of_trades(side: Floats, net_pnl: Floats) -> _TradeSums:
    gains = losses = 0.0
    longs = shorts = won_long = won_short = 0
    for trade in range(len(side)):
        won = net_pnl[trade] > 0.0
        if won:
            gains += net_pnl[trade]
        else:
            losses -= net_pnl[trade]
        if side[trade] > 0.0:
            longs += 1
            won_long += won
        else:
            shorts += 1
            won_short += won
    return _TradeSums(gains, losses, longs, shorts, won_long, won_short)


def _floats(values: NDArray[Any]) -> Floats:
    return np.ascontiguousarray(values, dtype=np.float64)


def _annual_return(growth: float, steps: int, year: float) -> float | None:
    if growth <= 0.0 or not steps:
        return None
    try:
        return _finite(growth ** (year / steps) - 1.0)
    except OverflowError:
        return None


def _tail(returns: Floats) -> tuple[float | None, float | None]:
    """VaR and CVaR, losses above 0."""
    if not returns.size:
        return None, None
    worst = np.sort(returns)
    at = (worst.size - 1) * TAIL
    below = int(at)
    above = min(below + 1, worst.size - 1)
    quantile = worst[below] + (at - below) * (worst[above] - worst[below])
    inside = worst.size * TAIL
    whole = int(inside)
    edge = (inside - whole) * worst[whole]
    return 0.0 - float(quantile), 0.0 - float((worst[:whole].sum() + edge) / inside)  # 0, not -0


def _change_rate(actions: NDArray[Any]) -> float | None:
    changed = actions[1:] != actions[:-1]
    if changed.ndim > 1:
        changed = changed.any(axis=1)
    return _share(int(np.count_nonzero(changed)), len(changed))


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _ratio(part: float | None, whole: float) -> float | None:
    return None if part is None or whole <= 0.0 else _finite(part / whole)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
