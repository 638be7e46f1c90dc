"""What happened in an episode: read out of what the market model remembers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from env.episode_tape import EachStep, EpisodeTape
from env.ledger import Columns, Market, fill_columns, open_pnl, trade_columns
from env.metrics import EpisodeMetrics, episode_metrics
from env.starts import Reason


@dataclass(frozen=True, eq=False)
class EpisodeRecord:
    """One episode, running or ended, with its fills, trades and steps as columns.

    Money is in the currency of the prices, times are UTC µs, rows are absolute. ``symbol``, ``start_row`` and
    ``actions`` on the same bars and settings are enough to run it again.

    The books close: ``final_value - initial_value`` = ``pnl`` = ``gross_pnl - fee - borrow - funding + interest`` = the
    sum of ``trades["net_pnl"]`` + ``open_pnl`` + ``interest``. Slippage is inside the prices, and shown apart as what
    it cost.

    Attributes:
        symbol: Instrument traded, or "portfolio".
        symbols: Instruments that could be traded.
        start_row: Row of the first observation.
        first_ts: ``ts_close`` of that row.
        last_ts: ``ts_close`` of the last marked row.
        env_seed: What drew the start: ``entropy/spawn key#number of the reset``, or None.
        steps: Steps taken.
        terminated: The account was ruined.
        truncated: The episode reached its length or the end of the data.
        reason: Why it ended: "running", "end_of_data", "length", "ruin".
        bars_per_year: Of the bars or the setting, for annual figures.
        initial_value: Equity at the start.
        final_value: Equity at the last close.
        total_reward: Sum of rewards, unscaled; of log returns it is ln(final / initial) unless ruined.
        pnl: final_value - initial_value.
        gross_pnl: Pnl before fee, borrow, funding and interest, open positions included.
        fee: Fees paid.
        slippage: What the distance of fill prices from their reference prices cost.
        borrow: Cost of short positions.
        funding: Funding paid; received where below 0.
        interest: Interest received on cash; paid where below 0.
        bad_debt: What equity fell short of 0 by at the end.
        turnover: Traded notional, in money.
        open_quantity: Signed units held at the end; None for a portfolio.
        open_entry_price: Average price of them; None when flat, and for a portfolio.
        open_pnl: Realised and unrealised pnl of the open trades after their costs; 0 when flat.
        stale_steps: Steps in which a bar was missing.
        cancelled_orders: Orders cancelled because their bar was missing or the account was liquidated before them.
        actions: Action of each step: numbers of choices int64 (steps,), or (steps, S) in a portfolio; weights or
            quantities float64 (steps,), or (steps, A) where an action is a vector.
        action_counts: Number of steps per choice: by the target's value ("-1", "0", "1"), or "hold", "buy", "sell".
            In a portfolio every symbol counts. Empty for continuous actions.
        equity: Equity at the start and at each close, float64 (steps + 1,).
        metrics: Figures of merit.
        trades: One row per closed trade, in the order of their ends, flat to flat or to the flip, prices averaged over
            its fills: symbol, side (int8, +1 long, -1 short), quantity (largest held), entry_ts, exit_ts, entry_row,
            exit_row, entry_price, exit_price, gross_pnl, fee, slippage, borrow, funding, net_pnl (gross_pnl less fee,
            borrow and funding), bars (rows from entry to exit), exit_kind (kind of the fill that ended it),
            entry_step, exit_step.
        fills: One row per execution: symbol, trade_no (row of the trade that it opens, changes or closes; open trades
            come after the closed ones), step, decided_ts (``ts_close`` of the bar before), ts (``ts_open`` of its bar;
            ``ts_close`` at the end of data), row, quantity (signed), price, reference_price (open, trigger, or close),
            fee, slippage, kind ("entry", "increase", "reduce", "exit", "reversal", "stop_loss", "trailing_stop",
            "take_profit", "liquidation", "end_of_data"), position_after, operations ("ENTRY_LONG",
            "EXIT_LONG+ENTRY_SHORT", …).
        steps_table: One row per step, empty without ``record="steps"``: ts, row, value, reward (unscaled), price (the
            close, or the last price where the bar is missing) and position (both not for a portfolio), action (not
            where it is a vector), cash, exposure (gross notional over equity), borrow, funding, interest, stale (a bar
            was missing).
        positions_table: Of a portfolio, one row per step and symbol, empty without ``record="steps"``: step, symbol,
            price, position, stale. Empty for one symbol.
    """

    symbol: str
    symbols: tuple[str, ...]
    start_row: int
    first_ts: int
    last_ts: int
    env_seed: str | None
    steps: int
    terminated: bool
    truncated: bool
    reason: Reason
    bars_per_year: float
    initial_value: float
    final_value: float
    total_reward: float
    pnl: float
    gross_pnl: float
    fee: float
    slippage: float
    borrow: float
    funding: float
    interest: float
    bad_debt: float
    turnover: float
    open_quantity: float | None
    open_entry_price: float | None
    open_pnl: float
    stale_steps: int
    cancelled_orders: int
    actions: NDArray[Any]
    action_counts: dict[str, int]
    equity: NDArray[np.float64]
    metrics: EpisodeMetrics
    trades: Columns
    fills: Columns
    steps_table: Columns
    positions_table: Columns

    @property
    def sharpe(self) -> float | None:
        """Mean over standard deviation (ddof 1) of simple returns per step; None where not defined."""
        return self.metrics.sharpe

    @property
    def max_drawdown(self) -> float:
        """Largest fall from a peak, as a fraction of it."""
        return self.metrics.max_drawdown

    @property
    def win_rate(self) -> float | None:
        """Part of the closed trades with net pnl above 0; None without a closed trade."""
        return self.metrics.win_rate


def build_record(tape: EpisodeTape) -> EpisodeRecord:
    """Make the record of one episode."""
    told, steps = tape.told, len(tape.equity)
    account: dict[str, Any] = dict(zip(tape.account.dtype.names, tape.account.item(), strict=True))
    first = account["start"] + told.base
    # Copies: a record that someone writes into must not change the bars.
    market = Market(
        symbols=np.array(told.symbols),
        rows=np.arange(first + 1, first + 1 + steps),
        decided_ts=tape.ts_close[:-1],
        ts_open=tape.ts_open,
        ts_close=tape.ts_close[1:].copy(),
    )
    fills, trades = fill_columns(tape, market), trade_columns(tape.trades, market)
    values = np.empty(steps + 1)
    values[0], values[1:] = told.initial_cash, tape.equity
    done = (tape.actions if told.vector else tape.actions[:, 0]).astype(np.int64 if told.labels else np.float64)
    counts = np.bincount(done.reshape(-1), minlength=len(told.labels)).tolist() if told.labels else ()
    pnl = float(values[-1] - values[0])
    costs = {name: account[name] for name in ("fee", "slippage", "borrow", "funding", "interest")}
    turnover = account["turnover"]
    alone = not told.portfolio
    held = float(tape.holdings["position"][0])
    return EpisodeRecord(
        symbol=told.symbol,
        symbols=told.symbols,
        start_row=first,
        first_ts=int(tape.ts_close[0]),
        last_ts=int(tape.ts_close[-1]),
        env_seed=told.env_seed,
        steps=steps,
        terminated=told.reason == "ruin",
        truncated=told.reason in ("length", "end_of_data"),
        reason=told.reason,
        bars_per_year=told.bars_per_year,
        initial_value=told.initial_cash,
        final_value=float(values[-1]),
        total_reward=account["total_reward"],
        pnl=pnl,
        gross_pnl=pnl + costs["fee"] + costs["borrow"] + costs["funding"] - costs["interest"],
        bad_debt=max(-float(values[-1]), 0.0),
        turnover=turnover,
        open_quantity=held if alone else None,
        open_entry_price=float(tape.holdings["cost"][0]) if alone and held else None,
        open_pnl=open_pnl(tape.holdings, tape.last_mark),
        stale_steps=account["stale"],
        cancelled_orders=account["cancelled"],
        actions=done,
        action_counts=dict(zip(told.labels, counts, strict=True)),
        equity=values,
        metrics=episode_metrics(
            values,
            side=trades["side"],
            net_pnl=trades["net_pnl"],
            bars=trades["bars"],
            steps_in_position=account["exposed"],
            traded_notional=turnover,
            actions=done,
            bars_per_year=told.bars_per_year,
            **costs,
        ),
        trades=trades,
        fills=fills,
        steps_table=_steps_table(tape.each, market, done, alone=alone) if tape.each else {},
        positions_table=_positions_table(tape.each, market) if tape.each and not alone else {},
        **costs,
    )


def _steps_table(each: EachStep, market: Market, actions: NDArray[Any], *, alone: bool) -> Columns:
    steps, held, mark, tradable = each
    gross, equity = np.abs(held["position"] * mark).sum(axis=1), steps["equity"].copy()
    table: Columns = {"ts": market.ts_close, "row": market.rows, "value": equity, "reward": steps["reward"].copy()}
    if alone:
        table["price"] = mark[:, 0].copy()
    if actions.ndim == 1:
        table["action"] = actions
    if alone:
        table["position"] = held["position"][:, 0].copy()
    return table | {
        "cash": steps["cash"].copy(),
        "exposure": np.divide(gross, equity, out=np.zeros(len(gross)), where=(gross > 0.0) & (equity != 0.0)),
        "borrow": held["borrow"].sum(axis=1),
        "funding": held["funding"].sum(axis=1),
        "interest": steps["interest"].copy(),
        "stale": ~tradable.all(axis=1),
    }


def _positions_table(each: EachStep, market: Market) -> Columns:
    _, held, mark, tradable = each
    steps, symbols = held.shape
    return {
        "step": np.repeat(np.arange(steps), symbols),
        "symbol": np.tile(market.symbols, steps),
        "price": mark.flatten(),
        "position": held["position"].flatten(),
        "stale": ~tradable.flatten(),
    }
