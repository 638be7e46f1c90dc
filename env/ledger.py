"""The fills and trades of an episode, read out of what the market model wrote down at each step."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from env.accounting import BATCH, Costs, fees
from env.exits import END_OF_DATA
from env.journal import Entry

Columns = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

KINDS = np.array(
    [
        "entry",
        "increase",
        "reduce",
        "exit",
        "reversal",
        "stop_loss",
        "trailing_stop",
        "take_profit",
        "liquidation",
        "end_of_data",
    ]
)
_ENTRY, _INCREASE, _REDUCE, _EXIT, _REVERSAL = range(5)

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
    """What the episode was traded on, one row a step: arrays (steps, S), times (steps,)."""

    symbols: NDArray[np.str_]
    """Names, (S,)."""
    rows: Ints
    """Absolute row of each step's bar."""
    decided_ts: Ints
    """Close of the bar before it."""
    ts_open: Ints
    ts_close: Ints
    open: Floats
    mark: Floats


class Holding(NamedTuple):
    """What was held at the closes and what that cost, (steps, S) each."""

    position: Floats
    """Signed units after everything."""
    borrow: Floats
    funding: Floats


class OpenTrade(NamedTuple):
    """A trade that is open at the last step."""

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
    open_trades: list[OpenTrade]


class _Fills(NamedTuple):
    """Fills symbol by symbol, in time, (fills,) each: the order in which trades can be told apart."""

    symbol: Ints
    step: Ints
    slot: Ints
    """0 at the open, 1 inside the bar, 2 at the close."""
    before: Floats
    after: Floats
    price: Floats
    reference: Floats
    kind: Ints


def read_books(entry: Entry, market: Market, holding: Holding, costs: Costs) -> Books:
    """Read fills and trades out of the steps of one episode."""
    done = _fills(entry, market)
    quantity = done.after - done.before
    fee = fees(BATCH, costs, quantity, done.price)
    slippage = np.abs(quantity) * np.abs(done.price - done.reference)
    does = _deeds(done.before, done.after)
    opens, closes = (does == _ENTRY) | (does == _REVERSAL), (does == _EXIT) | (does == _REVERSAL)

    # A fill takes units out of a trade, or puts some in; a reversal, one execution, does both: its costs are split.
    entered = np.cumsum(opens) - 1  # number of the trade that a fill leaves open, or closes
    left = entered - (does == _REVERSAL)  # number of the trade that it takes units out of
    units_out = np.where(does == _REVERSAL, -done.before, np.where((does == _REDUCE) | (does == _EXIT), quantity, 0.0))
    units_in = np.where(does == _REVERSAL, done.after, quantity - units_out)
    share_out = units_out / quantity
    count = int(opens.sum())

    def per_trade(out: Floats, into: Floats) -> Floats:
        return np.asarray(np.bincount(left, out, count) + np.bincount(entered, into, count), dtype=np.float64)

    paid = per_trade(units_out * done.price, units_in * done.price)
    fee_of, slippage_of = (per_trade(cost * share_out, cost * (1.0 - share_out)) for cost in (fee, slippage))
    first = np.flatnonzero(opens)  # the fill that begins each trade
    symbol_of = done.symbol[first]
    is_closed = np.zeros(count, dtype=np.bool_)
    last = np.zeros(count, dtype=np.int64)  # the fill that ends it
    is_closed[left[closes]] = True
    last[left[closes]] = np.flatnonzero(closes)

    # What is booked at the closes belongs to the trade that is open there: not to one that this bar closed before.
    until = np.where(is_closed, done.step[last] + (done.kind[last] == END_OF_DATA), len(holding.borrow))
    since = done.step[first]
    running = (_running(holding.borrow), _running(holding.funding))
    borrow_of, funding_of = (total[until, symbol_of] - total[since, symbol_of] for total in running)

    # Closed trades in the order in which they closed, then the open ones.
    order = np.lexsort((symbol_of, done.slot[last], np.where(is_closed, done.step[last], len(holding.borrow))))
    closed = order[: int(is_closed.sum())]
    place = np.empty(count, dtype=np.int64)
    place[order] = np.arange(count)

    begin, end = first[closed], last[closed]
    gross = -paid[closed]
    entry_price, exit_price = (
        np.bincount(trade, units * done.price, count)[closed] / np.bincount(trade, units, count)[closed]
        for trade, units in ((entered, units_in), (left, units_out))
    )
    trades: Columns = {
        "symbol": market.symbols[symbol_of[closed]],
        "side": np.sign(done.after[begin]).astype(np.int8),
        "quantity": np.maximum.reduceat(np.abs(done.after), first)[closed] if count else np.zeros(0),
        "entry_ts": market.ts_open[done.step[begin]],
        "exit_ts": _times(market, done)[end],
        "entry_row": market.rows[done.step[begin]],
        "exit_row": market.rows[done.step[end]],
        "entry_price": entry_price,
        "exit_price": exit_price,
        "gross_pnl": gross,
        "fee": fee_of[closed],
        "slippage": slippage_of[closed],
        "borrow": borrow_of[closed],
        "funding": funding_of[closed],
        "net_pnl": gross - fee_of[closed] - borrow_of[closed] - funding_of[closed],
        "bars": done.step[end] - done.step[begin],
        "exit_kind": KINDS[done.kind[end]],
        "entry_step": done.step[begin],
        "exit_step": done.step[end],
    }

    open_trades = []
    for trade in order[len(closed) :].tolist():
        own = entered == trade
        held = float(done.after[own][-1])
        costs_of = float(fee_of[trade] + borrow_of[trade] + funding_of[trade])
        pnl = held * float(market.mark[-1, symbol_of[trade]]) - float(paid[trade]) - costs_of
        taken = np.where(does[own] == _REVERSAL, 0.0, units_out[own])
        open_trades.append(OpenTrade(held, _average_cost(units_in[own], taken, done.price[own]), pnl))

    in_time = np.lexsort((done.symbol, done.slot, done.step))
    fills: Columns = {
        "symbol": market.symbols[done.symbol],
        "trade_no": place[left],
        "step": done.step,
        "decided_ts": market.decided_ts[done.step],
        "ts": _times(market, done),
        "row": market.rows[done.step],
        "quantity": quantity,
        "price": done.price,
        "reference_price": done.reference,
        "fee": fee,
        "slippage": slippage,
        "kind": KINDS[done.kind],
        "position_after": done.after,
        "operations": _OPERATIONS[does, (np.where(done.before == 0.0, done.after, done.before) > 0.0).astype(np.intp)],
    }
    return Books({name: column[in_time] for name, column in fills.items()}, trades, open_trades)


def _fills(entry: Entry, market: Market) -> _Fills:
    there = np.stack([entry.price != 0.0, entry.exit_kind != 0], axis=-1)
    symbol, step, slot = np.nonzero(there.transpose(1, 0, 2))
    after = np.where(slot == 0, entry.position[step, symbol], 0.0)
    before = np.concatenate([[0.0], after])[:-1]
    before[np.flatnonzero(np.diff(symbol)) + 1] = 0.0  # of the next symbol
    price = np.where(slot == 0, entry.price[step, symbol], entry.exit_price[step, symbol])
    reference = np.where(slot == 0, market.open[step, symbol], entry.exit_reference[step, symbol])
    kind = np.where(slot == 0, _deeds(before, after), entry.exit_kind[step, symbol])
    slot[kind == END_OF_DATA] = 2
    return _Fills(symbol, step, slot, before, after, price, reference, kind)


def _deeds(before: Floats, after: Floats) -> Ints:
    """What each fill does, as the first five numbers in ``KINDS``, by the positions around it."""
    larger = np.where(np.abs(after) > np.abs(before), _INCREASE, _REDUCE)
    deeds = np.where(before == 0.0, _ENTRY, np.where(after == 0.0, _EXIT, larger))
    return np.asarray(np.where(before * after < 0.0, _REVERSAL, deeds), dtype=np.int64)


def _times(market: Market, done: _Fills) -> Ints:
    """A fill is at the open, or within the bar, which tells no time but its open; at the end of data at the close."""
    return np.asarray(np.where(done.kind == END_OF_DATA, market.ts_close[done.step], market.ts_open[done.step]))


def _running(costs: Floats) -> Floats:
    """Sum over the steps before each, (steps + 1, S)."""
    return np.concatenate([np.zeros((1, costs.shape[1])), np.cumsum(costs, axis=0)])


def _average_cost(units_in: Floats, units_out: Floats, price: Floats) -> float:
    """Average cost of what is held after these fills of one trade."""
    held = cost = 0.0
    for put, taken, paid in zip(units_in.tolist(), units_out.tolist(), price.tolist(), strict=True):
        if put:
            cost = (cost * held + paid * put) / (held + put)
        held += put + taken
    return cost
