"""The fills and trades of an episode as columns, out of what the market model wrote down."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from env.episode_tape import EpisodeTape
from env.kernel import END_OF_DATA
from env.state import KINDS

Columns = dict[str, NDArray[Any]]

# By what a fill does, and short or long side (of a reversal the side that it leaves). Partial fills are named like
# whole ones.
_OPERATIONS = np.array(
    [
        ["ENTRY_SHORT", "ENTRY_LONG"],
        ["ENTRY_SHORT", "ENTRY_LONG"],
        ["EXIT_SHORT", "EXIT_LONG"],
        ["EXIT_SHORT", "EXIT_LONG"],
        ["EXIT_SHORT+ENTRY_LONG", "EXIT_LONG+ENTRY_SHORT"],
    ]
)


class Market(NamedTuple):
    """What the episode was traded on, one row a step."""

    symbols: NDArray[np.str_]
    """Names, (S,)."""
    rows: NDArray[np.int64]
    """Absolute row of each step's bar."""
    decided_ts: NDArray[np.int64]
    """Close of the bar before it."""
    ts_open: NDArray[np.int64]
    ts_close: NDArray[np.int64]

    def times(self, step: NDArray[np.int64], kind: NDArray[np.int8]) -> NDArray[np.int64]:
        """A fill is at the open, or within the bar, which tells no time but its open; at the end of data at the close.

        Args:
            step: Of each fill.
            kind: Its number in ``KINDS``.
        """
        times = self.ts_open[step]
        if (kind == END_OF_DATA).any():
            times = np.where(kind == END_OF_DATA, self.ts_close[step], times)
        return times


def fill_columns(tape: EpisodeTape, market: Market) -> Columns:
    """Return the columns of fills, which ``EpisodeRecord`` tells."""
    fills = tape.fills
    step, kind = fills["step"].astype(np.int64), fills["kind"]
    # Trades are told in the order of their ends, the open ones after them.
    place = np.zeros(int(tape.account["opened"]), dtype=np.int64)
    place[tape.trades["trade"]] = np.arange(len(tape.trades))
    still_open = tape.holdings["trade"][tape.holdings["position"] != 0.0]
    place[still_open] = len(tape.trades) + np.arange(len(still_open))
    return {
        "symbol": market.symbols[fills["symbol"]],
        "trade_no": place[fills["trade"]],
        "step": step,
        "decided_ts": market.decided_ts[step],
        "ts": market.times(step, kind),
        "row": market.rows[step],
        "quantity": fills["quantity"].copy(),
        "price": fills["price"].copy(),
        "reference_price": fills["reference"].copy(),
        "fee": fills["fee"].copy(),
        "slippage": fills["slippage"].copy(),
        "kind": KINDS[kind],
        "position_after": fills["after"].copy(),
        "operations": _OPERATIONS[fills["deed"], fills["long"]],
    }


def trade_columns(trades: NDArray[Any], market: Market) -> Columns:
    """Return the columns of closed trades ``TRADE`` (trades,), which ``EpisodeRecord`` tells."""
    begin, end = trades["entry_step"].astype(np.int64), trades["exit_step"].astype(np.int64)
    kind = trades["exit_kind"]
    gross, fee, borrow, funding = (trades[name].copy() for name in ("gross_pnl", "fee", "borrow", "funding"))
    return {
        "symbol": market.symbols[trades["symbol"]],
        "side": trades["side"].copy(),
        "quantity": trades["quantity"].copy(),
        "entry_ts": market.ts_open[begin],
        "exit_ts": market.times(end, kind),
        "entry_row": market.rows[begin],
        "exit_row": market.rows[end],
        "entry_price": trades["entry_price"].copy(),
        "exit_price": trades["exit_price"].copy(),
        "gross_pnl": gross,
        "fee": fee,
        "slippage": trades["slippage"].copy(),
        "borrow": borrow,
        "funding": funding,
        "net_pnl": gross - fee - borrow - funding,
        "bars": end - begin,
        "exit_kind": KINDS[kind],
        "entry_step": begin,
        "exit_step": end,
    }


def open_pnl(holdings: NDArray[Any], mark: NDArray[np.float64]) -> float:
    """Return what the open trades have made so far after their costs, realised or not.

    Args:
        holdings: ``HOLDING`` (S,), of the episode.
        mark: Last closes, float64 (S,).
    """
    held = holdings[holdings["position"] != 0.0]
    if not len(held):
        return 0.0
    price = mark[holdings["position"] != 0.0]
    pnl = held["position"] * price - held["paid"] - (held["fee"] + held["borrow"] + held["funding"])
    return float(pnl.sum())
