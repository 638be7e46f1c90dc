"""What the market model writes down at each step, and the fills and trades that are read out of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from env.market_data import MarketData

Columns = dict[str, NDArray[Any]]

KINDS = np.array(["entry", "increase", "reduce", "exit", "reversal"])
_ENTRY, _INCREASE, _REDUCE, _EXIT, _REVERSAL = range(5)

# By kind, and short or long side (of a reversal the side that it leaves). A partial fill is named like a whole one.
_OPERATIONS = np.array(
    [
        ["ENTRY_SHORT", "ENTRY_LONG"],
        ["ENTRY_SHORT", "ENTRY_LONG"],
        ["EXIT_SHORT", "EXIT_LONG"],
        ["EXIT_SHORT", "EXIT_LONG"],
        ["EXIT_SHORT+ENTRY_LONG", "EXIT_LONG+ENTRY_SHORT"],
    ]
)


class Ledger(NamedTuple):
    """The steps of one episode, float64 (steps,) each: the only source of its record."""

    action: NDArray[np.float64]
    quantity: NDArray[np.float64]
    """Signed units filled; 0 without a fill."""
    price: NDArray[np.float64]
    fee: NDArray[np.float64]
    borrow: NDArray[np.float64]
    cash: NDArray[np.float64]
    position: NDArray[np.float64]
    value: NDArray[np.float64]
    mark: NDArray[np.float64]


class OpenTrade(NamedTuple):
    """The trade that is open at the last step."""

    quantity: float
    """Signed units held."""
    entry_price: float
    """Average cost of them: taking units out leaves it as it is."""
    pnl: float
    """Realised and unrealised, after costs."""


class Books(NamedTuple):
    """Fills and trades of one episode; the columns are told in ``EpisodeRecord``."""

    fills: Columns
    trades: Columns
    open_trade: OpenTrade | None


def read_books(data: MarketData, ledger: Ledger, rows: NDArray[np.int64], base: int) -> Books:
    """Read fills and trades out of a ledger.

    Args:
        data: The bars.
        ledger: The steps.
        rows: Row of each step in the arrays of ``data``, int64 (steps,).
        base: What makes such a row absolute.
    """
    steps = np.flatnonzero(ledger.quantity)
    at = rows[steps]
    quantity, price, fee, after = (
        column[steps] for column in (ledger.quantity, ledger.price, ledger.fee, ledger.position)
    )
    before = np.concatenate([[0.0], after])[:-1]
    slippage = np.abs(quantity) * np.abs(price - data.open[at])
    kind = _kinds(before, after)
    opens, closes = (kind == _ENTRY) | (kind == _REVERSAL), (kind == _EXIT) | (kind == _REVERSAL)
    entered = np.cumsum(opens) - 1  # number of the trade that a fill leaves open, or closes
    left = entered - (kind == _REVERSAL)  # number of the trade that it takes units out of
    fills: Columns = {
        "trade_no": left,
        "step": steps,
        "decided_ts": data.ts_close[at - 1],
        "ts": data.ts_open[at],
        "row": at + base,
        "quantity": quantity,
        "price": price,
        "reference_price": data.open[at],
        "fee": fee,
        "slippage": slippage,
        "kind": KINDS[kind],
        "position_after": after,
        "operations": _OPERATIONS[kind, (np.where(before == 0.0, after, before) > 0.0).astype(np.intp)],
    }

    # A fill takes units out of a trade, or puts some in; a reversal, one execution, does both: its costs are split.
    units_out = np.where(kind == _REVERSAL, -before, np.where((kind == _REDUCE) | (kind == _EXIT), quantity, 0.0))
    units_in = np.where(kind == _REVERSAL, after, quantity - units_out)
    share_out = units_out / quantity
    count = int(opens.sum())

    def per_trade(out: NDArray[np.float64], into: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(left, out, count) + np.bincount(entered, into, count), dtype=np.float64)

    def split(cost: NDArray[np.float64]) -> NDArray[np.float64]:
        return per_trade(cost * share_out, cost * (1.0 - share_out))

    borrowed = np.concatenate([[0.0], np.cumsum(ledger.borrow)])
    first, last = np.flatnonzero(opens), np.flatnonzero(closes)
    closed = len(last)
    paid = per_trade(units_out * price, units_in * price)
    fees, slipped = split(fee), split(slippage)
    gross, borrow = -paid[:closed], borrowed[steps[last]] - borrowed[steps[first[:closed]]]
    entry, exit_ = first[:closed], last
    trades: Columns = {
        "side": np.sign(after[entry]).astype(np.int8),
        "quantity": np.maximum.reduceat(np.abs(after), first)[:closed] if count else np.zeros(0),
        "entry_ts": data.ts_open[at[entry]],
        "exit_ts": data.ts_open[at[exit_]],
        "entry_row": at[entry] + base,
        "exit_row": at[exit_] + base,
        "entry_price": (np.bincount(entered, units_in * price, count) / np.bincount(entered, units_in, count))[:closed],
        "exit_price": np.bincount(left, units_out * price, count)[:closed]
        / np.bincount(left, units_out, count)[:closed],
        "gross_pnl": gross,
        "fee": fees[:closed],
        "slippage": slipped[:closed],
        "borrow": borrow,
        "net_pnl": gross - fees[:closed] - borrow,
        "bars": at[exit_] - at[entry],
        "exit_kind": KINDS[kind[exit_]],
        "entry_step": steps[entry],
        "exit_step": steps[exit_],
    }
    if closed == count:
        return Books(fills, trades, None)
    begun = int(first[-1])
    held = float(after[-1])
    pnl = held * ledger.mark[-1] - paid[-1] - fees[-1] - (borrowed[-1] - borrowed[steps[begun]])
    average = _average_cost(units_in[begun:], units_out[begun:] * (np.arange(begun, len(steps)) > begun), price[begun:])
    return Books(fills, trades, OpenTrade(held, average, float(pnl)))


def _kinds(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.intp]:
    """Number in ``KINDS`` of each fill, by the positions around it."""
    larger = np.where(np.abs(after) > np.abs(before), _INCREASE, _REDUCE)
    kinds = np.where(before == 0.0, _ENTRY, np.where(after == 0.0, _EXIT, larger))
    return np.asarray(np.where(before * after < 0.0, _REVERSAL, kinds), dtype=np.intp)


def _average_cost(units_in: NDArray[np.float64], units_out: NDArray[np.float64], price: NDArray[np.float64]) -> float:
    """Average cost of what is held after these fills of one trade."""
    held = cost = 0.0
    for put, taken, paid in zip(units_in.tolist(), units_out.tolist(), price.tolist(), strict=True):
        if put:
            cost = (cost * held + paid * put) / (held + put)
        held += put + taken
    return cost
