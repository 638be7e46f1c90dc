"""What happened in an episode: read out of the ledger that the market model keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from env.accounting import RUIN_RATIO
from env.ledger import Columns, Ledger, read_books
from env.market_data import MarketData
from env.metrics import drawdown, sharpe
from env.settings import EnvSettings

Reason = Literal["running", "end_of_data", "length", "ruin"]


@dataclass(frozen=True, eq=False)
class EpisodeRecord:
    """One episode, running or ended, with its fills, trades and steps as columns.

    Money is in the currency of the prices, times are UTC µs, rows are absolute. ``symbol``, ``start_row`` and
    ``actions`` on the same bars and settings are enough to run it again.

    The books close: ``final_value - initial_value`` = ``pnl`` = ``gross_pnl - fee - borrow`` = the sum of
    ``trades["net_pnl"]`` + ``open_pnl``. Slippage is inside the prices, and shown apart as what it cost.

    Attributes:
        symbol: Instrument traded.
        start_row: Row of the first observation.
        first_ts: ``ts_close`` of that row.
        last_ts: ``ts_close`` of the last marked row.
        env_seed: What drew the start: ``entropy/spawn key#number of the reset``, or None.
        steps: Steps taken.
        terminated: The account was ruined.
        truncated: The episode reached its length or the end of the data.
        reason: Why it ended: "running", "end_of_data", "length", "ruin".
        initial_value: Equity at the start.
        final_value: Equity at the last mark.
        total_reward: Sum of log returns, unscaled; ln(final / initial) unless ruined.
        pnl: final_value - initial_value.
        sharpe: Mean over standard deviation (ddof 1) of simple returns per step; None where not defined.
        max_drawdown: Largest fall from a peak, as a fraction of it.
        win_rate: Part of the closed trades with net pnl above 0; None without a closed trade.
        gross_pnl: Pnl before fee and borrow, open position included.
        fee: Fees paid.
        slippage: What the distance of fill prices from the opens cost.
        borrow: Cost of short positions.
        open_quantity: Signed units held at the end.
        open_entry_price: Average price of them, or None.
        open_pnl: Realised and unrealised pnl of the open trade after its costs; 0 when flat.
        stale_steps: Steps whose bar was missing.
        cancelled_orders: Orders cancelled because the bar to fill on was missing.
        actions: Action of each step, int64 (steps,).
        action_counts: Number of steps per target, by the target's value ("-1", "0", "1").
        trades: One row per closed trade, flat to flat or to the flip, prices averaged over its fills: side (int8, +1
            long, -1 short), quantity (largest held), entry_ts, exit_ts, entry_row, exit_row, entry_price, exit_price,
            gross_pnl, fee, slippage, borrow, net_pnl, bars (rows from entry to exit), exit_kind ("exit", "reversal"),
            entry_step, exit_step (numbers of the deciding steps, from 0).
        fills: One row per execution: trade_no (index into trades; the open trade has the next number; a reversal
            carries the trade it closes), step, decided_ts, ts, row, quantity (signed), price, reference_price, fee,
            slippage, kind ("entry", "increase", "reduce", "exit", "reversal"), position_after, operations
            ("ENTRY_LONG", "EXIT_LONG+ENTRY_SHORT", …).
        steps_table: One row per step: ts, row, value, reward (unscaled), price (the mark: the close, on a missing bar
            the last price, at a ruin on the open that open), action, position, cash, stale.
    """

    symbol: str
    start_row: int
    first_ts: int
    last_ts: int
    env_seed: str | None
    steps: int
    terminated: bool
    truncated: bool
    reason: Reason
    initial_value: float
    final_value: float
    total_reward: float
    pnl: float
    sharpe: float | None
    max_drawdown: float
    win_rate: float | None
    gross_pnl: float
    fee: float
    slippage: float
    borrow: float
    open_quantity: float
    open_entry_price: float | None
    open_pnl: float
    stale_steps: int
    cancelled_orders: int
    actions: NDArray[np.int64]
    action_counts: dict[str, int]
    trades: Columns
    fills: Columns
    steps_table: Columns


def build_record(
    data: MarketData,
    settings: EnvSettings,
    ledger: Ledger,
    *,
    symbol: int,
    start: int,
    reason: Reason,
    env_seed: str | None,
) -> EpisodeRecord:
    """Make the record of one episode.

    Args:
        data: The bars it ran on.
        settings: Its settings.
        ledger: Its steps.
        symbol: Number of its symbol in ``data``.
        start: Its first row in the arrays of ``data``.
        reason: Why it ended, or "running".
        env_seed: What drew its start.
    """
    steps = len(ledger.action)
    rows = np.arange(start + 1, start + 1 + steps)
    base = int(data.base_rows[symbol] - data.offsets[symbol])
    actions = ledger.action.astype(np.int64)
    stale = ~data.tradable[rows]
    values = np.concatenate([[settings.initial_cash], ledger.value])
    growth = values[1:] / values[:-1]
    rewards = np.log(np.maximum(growth, RUIN_RATIO))
    fills, trades, open_trade = read_books(data, ledger, rows, base)
    net = trades["net_pnl"]
    fee, borrow = float(ledger.fee.sum()), float(ledger.borrow.sum())
    pnl = float(values[-1] - values[0])
    counts = np.bincount(actions, minlength=len(settings.targets))
    return EpisodeRecord(
        symbol=data.symbols[symbol],
        start_row=start + base,
        first_ts=int(data.ts_close[start]),
        last_ts=int(data.ts_close[start + steps]),
        env_seed=env_seed,
        steps=steps,
        terminated=reason == "ruin",
        truncated=reason in ("length", "end_of_data"),
        reason=reason,
        initial_value=settings.initial_cash,
        final_value=float(values[-1]),
        total_reward=float(rewards.sum()),
        pnl=pnl,
        sharpe=sharpe(growth - 1.0),
        max_drawdown=drawdown(values)[0],
        win_rate=float((net > 0).mean()) if net.size else None,
        gross_pnl=pnl + fee + borrow,
        fee=fee,
        slippage=float(fills["slippage"].sum()),
        borrow=borrow,
        open_quantity=open_trade.quantity if open_trade else 0.0,
        open_entry_price=open_trade.entry_price if open_trade else None,
        open_pnl=open_trade.pnl if open_trade else 0.0,
        stale_steps=int(stale.sum()),
        cancelled_orders=_cancelled(np.array(settings.targets)[actions], stale),
        actions=actions,
        action_counts={f"{target:g}": int(count) for target, count in zip(settings.targets, counts, strict=True)},
        trades=trades,
        fills=fills,
        steps_table={
            "ts": data.ts_close[rows],
            "row": rows + base,
            "value": ledger.value,
            "reward": rewards,
            "price": ledger.mark,
            "action": actions,
            "position": ledger.position,
            "cash": ledger.cash,
            "stale": stale,
        },
    )


def _cancelled(targets: NDArray[np.float64], stale: NDArray[np.bool_]) -> int:
    """Count the orders on missing bars: steps there whose target is not the one held since the last good bar."""
    good = np.concatenate([[0], np.where(stale, 0, np.arange(1, len(targets) + 1))])
    held = np.concatenate([[0.0], targets])[np.maximum.accumulate(good)[:-1]]
    return int((stale & (targets != held)).sum())
