"""The step of the market model, compiled: one account after the other, in plain numbers.

The rules are numbered as in docs/env.md. This file is one, and longer than others, for the reason that
``env.compiled.compiled`` gives. ``f`` is the frame and ``r`` its rules, ``a`` an account, ``h`` a holding, ``o`` an
order: records of ``env.state``. ``b`` is the number of an environment, ``s`` that of a symbol.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from env.compiled import compiled, pointer, prefetch
from env.state import ACCOUNT, FILL, FRAME, HELD, HOLDING, ORDER, STEP, TRADE, stamp

LAYOUTS = "2e0f1906"
"""Stamp of the layouts that this file is compiled for. Machine code on disk is kept as long as this file is unchanged:
with other layouts it would go on reading and writing where the fields were."""
if stamp() != LAYOUTS:
    raise ImportError(
        f"env/kernel.py: expected the layouts {LAYOUTS} of env/state.py, got {stamp()}; set LAYOUTS to that"
    )

RUIN_RATIO = 1e-6
"""An account that keeps no more than this part of its equity over one step is ruined; E <= 0 always is."""

LOWEST_PRICE = 1e-6
"""Spread and impact take the price of a sale no lower than this part of its reference price."""

ROUNDING = 1e-9
"""Relative distance within which a figure counts as the one that exact arithmetic would give."""

OBSERVATION_LIMIT = 10.0
"""Observations are clipped to ± this, as Stable-Baselines3's ``VecNormalize`` does (``clip_obs=10``)."""

TOLERANCE = 1e-6
"""Relative distance from a bound that float32 may put an action beyond it; it then counts as the bound."""

_TINY = 1e-300  # keeps a division by nothing, whose result is not used, from being one by 0
_LEAST_EQUITY = 1e-9
_NO_VARIANCE = 1e-12

# Kinds of fills, places in ``env.state.KINDS``. 0 to 4 are what a quantity makes of an order at the open.
ENTRY, INCREASE, REDUCE, EXIT, REVERSAL, STOP_LOSS, TRAILING_STOP, TAKE_PROFIT, LIQUIDATION, END_OF_DATA = range(10)
_BY_DEED = -1

# Position features.
POSITION, UNREALISED_RETURN, TIME_IN_POSITION, DRAWDOWN, CASH_SHARE = range(5)

# Rewards. What a function of the user's pays is written down after the step.
LOG_RETURN, RETURN, PNL, DIFFERENTIAL_SHARPE, DRAWDOWN_PENALISED, OF_USER = range(6)

# Why no environment has taken the step.
HAS_ENDED, BAD_ACTION, NO_ROOM = range(3)
_FILL_BYTES, _TRADE_BYTES, _STEP_BYTES, _HELD_BYTES = FILL.itemsize, TRADE.itemsize, STEP.itemsize, HELD.itemsize
_FILLS_A_STEP = 3  # of one symbol: at the open, inside the bar, at the end


# -- the money ---------------------------------------------------------------------------------------------------------


@compiled
def whole_lots(quantity: float, lot: float) -> float:
    """Round a quantity towards zero to whole lots; a ``lot`` of 0 leaves it as it is."""
    if lot == 0.0:
        return quantity
    # The small constant keeps 0.3 / 0.1 = 2.9999999999999996 at three lots.
    lots = np.trunc(quantity / lot + (-ROUNDING if quantity < 0.0 else ROUNDING))
    return float(lots * lot + 0.0)  # never -0.0


@compiled
def position_after(position: float, quantity: float) -> float:
    """Return the position after a fill: exactly 0 where the fill closes it but for rounding."""
    after = position + quantity
    return 0.0 if abs(after) <= ROUNDING * abs(quantity) else after


@compiled
def side_of(quantity: float) -> float:
    """1.0 for a buy, -1.0 for a sell, 0.0 for neither."""
    return 1.0 if quantity > 0.0 else (-1.0 if quantity < 0.0 else 0.0)


@compiled
def fill_price(r: Any, reference: float, side: float, impact: float) -> float:
    """Return the price of a fill: the reference, moved to our loss."""
    price = reference * (1.0 + side * (r.slippage + impact))
    if r.half_spread != 0.0:
        price = price + side * r.half_spread
    if r.half_spread != 0.0 or r.impact != 0.0:
        price = max(price, reference * LOWEST_PRICE)
    return float(price)


# -- what is written down ----------------------------------------------------------------------------------------------


@compiled
def begin_trade(a: Any, h: Any, row: int, after: float, price: float) -> None:
    """Open a trade, which nothing has been paid for yet."""
    h.trade = a.opened
    a.opened += 1
    h.side = 1 if after > 0.0 else -1
    h.cost, h.best, h.entry_row = price, h.side * price, row
    h.largest = h.paid = h.units_in = h.paid_in = h.units_out = h.paid_out = 0.0
    h.fee = h.slippage = h.borrow = h.funding = 0.0


@compiled
def trade_units(h: Any, units: float, price: float, fee: float, slippage: float) -> None:
    """Book the part of a fill that belongs to the open trade: units along its side are put in, others taken out."""
    if units * h.side > 0.0:
        h.units_in += units
        h.paid_in += units * price
    else:
        h.units_out += units
        h.paid_out += units * price
    h.paid += units * price
    h.fee += fee
    h.slippage += slippage


@compiled
def end_trade(f: Any, a: Any, h: Any, b: int, s: int, step: int, kind: int) -> None:
    """Write the open trade down as closed."""
    trades = carray(pointer(f.trades), f.envs * f.fills_room, TRADE)
    t = trades[b * f.fills_room + a.trades]
    a.trades += 1
    t.trade, t.symbol, t.side = h.trade, s, h.side
    t.quantity = h.largest
    t.entry_step, t.exit_step, t.exit_kind = h.entry_row - a.start - 1, step, kind
    t.entry_price, t.exit_price = h.paid_in / h.units_in, h.paid_out / h.units_out
    t.gross_pnl, t.fee, t.slippage, t.borrow, t.funding = -h.paid, h.fee, h.slippage, h.borrow, h.funding


@compiled
def book(
    f: Any, a: Any, h: Any, b: int, s: int, row: int, after: float, price: float, reference: float, kind: int
) -> None:
    """Book a fill: its cash and costs, the trades that it opens, changes and closes, and the fill itself (rule 3)."""
    r = f.rules
    before = h.position
    quantity = after - before
    fee = r.fee * price * abs(quantity) + r.fee_fixed
    slippage = abs(quantity) * abs(price - reference)
    a.cash -= quantity * price + fee
    a.fee += fee
    a.slippage += slippage
    a.turnover += abs(quantity) * price
    h.position = after

    step = row - a.start - 1
    deed = ENTRY
    if before != 0.0:
        deed = INCREASE if abs(after) > abs(before) else REDUCE
        if after == 0.0:
            deed = EXIT
        elif before * after < 0.0:
            deed = REVERSAL
    if kind == _BY_DEED:
        kind = deed
    fills = carray(pointer(f.fills), f.envs * f.fills_room, FILL)
    fill = fills[b * f.fills_room + a.fills]
    a.fills += 1
    fill.long = 1 if (after if before == 0.0 else before) > 0.0 else 0
    fill.trade = a.opened if deed == ENTRY else h.trade

    # A fill puts units into a trade or takes some out; a reversal, one execution, does both: its costs are split.
    if deed == REVERSAL:
        share = -before / quantity
        trade_units(h, -before, price, fee * share, slippage * share)
        end_trade(f, a, h, b, s, step, kind)
        begin_trade(a, h, row, after, price)
        trade_units(h, after, price, fee * (1.0 - share), slippage * (1.0 - share))
    else:
        if deed == ENTRY:
            begin_trade(a, h, row, after, price)
        elif deed == INCREASE:
            h.cost = (h.cost * abs(before) + price * abs(quantity)) / abs(after)
        trade_units(h, quantity, price, fee, slippage)
        if deed == EXIT:
            end_trade(f, a, h, b, s, step, kind)
    h.largest = max(h.largest, abs(after))

    fill.step, fill.symbol, fill.kind, fill.deed = step, s, kind, deed
    fill.quantity, fill.price, fill.reference = quantity, price, reference
    fill.fee, fill.slippage, fill.after = fee, slippage, after


@compiled
def close_out(f: Any, a: Any, h: Any, b: int, s: int, row: int, kind: int, reference: float) -> None:
    """Close a whole position, and end what is carried for its symbol."""
    price = reference  # a take-profit is a limit order
    if kind != TAKE_PROFIT:
        price = fill_price(f.rules, reference, 1.0 if h.position < 0.0 else -1.0, 0.0)
    book(f, a, h, b, s, row, 0.0, price, reference, kind)
    h.carried = 0.0


@compiled
def liquidate(f: Any, a: Any, b: int, row: int) -> None:
    """Close every position at the open, and end all that is carried."""
    holdings = carray(pointer(f.holdings), f.envs * f.symbols, HOLDING)
    opens = carray(pointer(f.open), f.symbols * f.stride, np.float64)
    for s in range(f.symbols):
        h = holdings[b * f.symbols + s]
        h.carried = 0.0
        if h.position != 0.0:
            close_out(f, a, h, b, s, row, LIQUIDATION, opens[s * f.stride + row])


@compiled
def at_opens(f: Any, b: int, row: int) -> tuple[float, float]:
    """Return the sums of the positions' values at the opens, and of their absolute values."""
    holdings = carray(pointer(f.holdings), f.envs * f.symbols, HOLDING)
    opens = carray(pointer(f.open), f.symbols * f.stride, np.float64)
    net = gross = 0.0
    for s in range(f.symbols):
        notional = holdings[b * f.symbols + s].position * opens[s * f.stride + row]
        net += notional
        gross += abs(notional)
    return net, gross


# -- rules 2 to 4: orders at the open ----------------------------------------------------------------------------------


@compiled
def decide(f: Any, a: Any, b: int, row: int, solvent: bool, worth: float) -> bool:
    """Make orders of the action and of what is carried; tell whether there is any."""
    r = f.rules
    count = f.symbols
    holdings = carray(pointer(f.holdings), f.envs * count, HOLDING)
    orders = carray(pointer(f.orders), count, ORDER)
    given = carray(pointer(f.given), f.envs * f.size, np.float64)
    opens = carray(pointer(f.open), count * f.stride, np.float64)
    tradable = carray(pointer(f.tradable), count * f.stride, np.bool_)
    targets = carray(pointer(f.targets), f.choices, np.float64)
    first = b * f.size

    continuous = not (r.discrete or r.quantities)
    gross = 0.0
    if continuous and count > 1:
        for s in range(count):
            gross += abs(given[first + s * r.each])

    wanted = False
    for s in range(count):
        h, o = holdings[b * count + s], orders[s]
        main = given[first + s * r.each]
        o.weight, o.quantity, o.target = 0.0, 0.0, not r.quantities
        if r.quantities:
            o.new = main != 0.0
            o.quantity = main
        elif r.discrete:
            choice = int(main)
            o.weight = h.chosen if r.holds and choice == 0 else targets[choice]
            o.new = o.weight != h.chosen
        else:
            o.weight = main
            if gross > r.leverage:
                o.weight = main * r.leverage / max(gross, _TINY)
            distance = abs(o.weight - h.position * opens[s * f.stride + row] / worth)
            # An account that is all in has a weight of 1 but for rounding: without a tolerance it would sell its fee.
            o.new = distance > ROUNDING and distance >= r.band
        accepted = solvent and (r.carries or tradable[s * f.stride + row])
        if accepted:
            if r.discrete:
                h.chosen = o.weight
        elif o.new:
            a.cancelled += 1
            o.new = False
        if not o.new:
            o.target = False
            o.quantity = h.carried if r.carries else 0.0
        wanted = wanted or o.new or o.quantity != 0.0
    return wanted


@compiled
def fit_discrete(f: Any, b: int, row: int, worth: float) -> float:
    """Scale the new targets of a portfolio to the leverage; return the gross weight that it is going to have."""
    r = f.rules
    count = f.symbols
    holdings = carray(pointer(f.holdings), f.envs * count, HOLDING)
    orders = carray(pointer(f.orders), count, ORDER)
    opens = carray(pointer(f.open), count * f.stride, np.float64)
    ordered = held = 0.0
    for s in range(count):
        if orders[s].new:
            ordered += abs(orders[s].weight)
        else:
            held += abs(holdings[b * count + s].position) * opens[s * f.stride + row] / worth
    if r.discrete and ordered + held > r.leverage:
        room = max(r.leverage - held, 0.0) / max(ordered, _TINY)
        factor = min(room, 1.0)
        for s in range(count):
            orders[s].weight *= factor
        ordered *= factor
    return ordered + held


@compiled
def whole_order(order: float, position: float, lot: float) -> float:
    """Round an order to whole lots, but for one that closes the position."""
    return order if order == -position else whole_lots(order, lot)


@compiled
def reducing(order: float, position: float) -> float:
    """Return the part of an order that reduces the position."""
    return side_of(order) * min(abs(order), abs(position)) if order * position < 0.0 else 0.0


@compiled
def within_leverage(f: Any, b: int, value: float) -> None:
    """Scale the parts of quantities that increase positions by one factor, so that the gross fits the leverage."""
    r = f.rules
    count = f.symbols
    holdings = carray(pointer(f.holdings), f.envs * count, HOLDING)
    orders = carray(pointer(f.orders), count, ORDER)
    gross = increase = cut_notional = 0.0
    for s in range(count):
        h, o = holdings[b * count + s], orders[s]
        cut = reducing(o.order, h.position)
        gross += abs(h.position + cut) * o.price
        increase += abs(o.order - cut) * o.price
        cut_notional += abs(cut) * o.price
    room = r.leverage * (value - r.fee * cut_notional) - gross
    if room <= ROUNDING * gross:  # a position at the limit grows by no rounding error
        room = 0.0
    needed = increase * (1.0 + r.leverage * r.fee)
    if needed <= room:
        return
    factor = min(room / max(needed, _TINY), 1.0)
    for s in range(count):
        h, o = holdings[b * count + s], orders[s]
        cut = reducing(o.order, h.position)
        more = o.order - cut
        if more != 0.0:
            o.order = whole_order(cut + factor * more, h.position, r.lot)


@compiled
def size_orders(f: Any, a: Any, b: int, row: int, charge: float, with_impact: bool) -> None:
    """Give every order its price, its size and what the bar has of it."""
    r = f.rules
    count = f.symbols
    holdings = carray(pointer(f.holdings), f.envs * count, HOLDING)
    orders = carray(pointer(f.orders), count, ORDER)
    opens = carray(pointer(f.open), count * f.stride, np.float64)
    volumes = carray(pointer(f.volume), count * f.stride, np.float64)
    tradable = carray(pointer(f.tradable), count * f.stride, np.bool_)
    net = 0.0
    for s in range(count):
        h, o = holdings[b * count + s], orders[s]
        impact = 0.0
        if with_impact:
            impact = r.impact * math.sqrt(abs(o.filled) / max(volumes[s * f.stride + row], _TINY))
        o.price = fill_price(r, opens[s * f.stride + row], o.side, impact)
        net += h.position * o.price
    value = a.cash + net

    for s in range(count):
        h, o = holdings[b * count + s], orders[s]
        o.order = o.quantity
        if r.quantities:
            o.order = whole_order(o.quantity, h.position, r.lot)
        elif o.target:
            # Slippage on the positions themselves may eat the last of the equity: nothing is left to size with then.
            o.goal = whole_lots(o.weight * max(value, 0.0) / (o.price * charge), r.lot)
            # Between two near targets of one sign, slippage can turn the side of the order: then there is none.
            o.order = o.goal - h.position if (o.goal - h.position) * o.side > 0.0 else 0.0
    if r.quantities:
        within_leverage(f, b, value)

    for s in range(count):
        h, o = holdings[b * count + s], orders[s]
        bar = s * f.stride + row
        o.filled, o.dropped = o.order, False
        if r.volume_share != 0.0 and abs(o.order) > r.volume_share * volumes[bar]:
            o.filled = whole_lots(side_of(o.order) * (r.volume_share * volumes[bar]), r.lot)
        if not tradable[bar] or ((r.volume_share != 0.0 or r.impact != 0.0) and volumes[bar] <= 0.0):
            o.filled = 0.0
        if r.min_notional != 0.0 and o.filled != 0.0 and abs(o.filled) * o.price < r.min_notional:
            o.dropped = position_after(h.position, o.filled) != 0.0
            if o.dropped:
                o.filled = 0.0


@compiled
def fill_orders(f: Any, a: Any, b: int, row: int, worth: float) -> None:
    """Size the orders at the open and fill what the bar has of them."""
    r = f.rules
    count = f.symbols
    holdings = carray(pointer(f.holdings), f.envs * count, HOLDING)
    orders = carray(pointer(f.orders), count, ORDER)
    opens = carray(pointer(f.open), count * f.stride, np.float64)
    charge = 1.0
    if not r.quantities:
        gross = abs(orders[0].weight) if count == 1 else fit_discrete(f, b, row, worth)
        charge = 1.0 + gross * r.fee
    for s in range(count):
        h, o = holdings[b * count + s], orders[s]
        o.side = side_of(o.quantity)
        if o.target:
            wants_more = o.weight * worth / (opens[s * f.stride + row] * charge) > h.position
            o.side = 1.0 if wants_more else -1.0
    size_orders(f, a, b, row, charge, False)
    if r.impact != 0.0:
        size_orders(f, a, b, row, charge, True)
    for s in range(count):
        h, o = holdings[b * count + s], orders[s]
        if r.carries:
            h.carried = 0.0 if o.dropped else o.order - o.filled
        if o.filled == 0.0:
            continue
        after = o.goal if o.target and o.filled == o.order else position_after(h.position, o.filled)
        if after != h.position:
            book(f, a, h, b, s, row, after, o.price, opens[s * f.stride + row], _BY_DEED)


# -- rules 5 and 6: inside the bar -------------------------------------------------------------------------------------


@compiled
def distance_of(f: Any, fixed: float, b: int, s: int, place: int) -> float:
    """Return the distance of a protective order: of the settings, or of the action. 0.0 is no order."""
    if fixed == 0.0 or not f.rules.by_action:
        return fixed
    given = carray(pointer(f.given), f.envs * f.size, np.float64)
    return float(given[b * f.size + s * f.rules.each + place])


@compiled
def inside(f: Any, a: Any, b: int, row: int, floor: float) -> None:
    """Liquidate and protect: what closes positions inside the bar.

    Prices are compared in the direction of the position: times 1 for a long one, times -1 for a short one. Adverse
    triggers then lie below the open and the take-profit above it, whichever way the position is.
    """
    r = f.rules
    count = f.symbols
    holdings = carray(pointer(f.holdings), f.envs * count, HOLDING)
    opens = carray(pointer(f.open), count * f.stride, np.float64)
    highs = carray(pointer(f.high), count * f.stride, np.float64)
    lows = carray(pointer(f.low), count * f.stride, np.float64)
    tradable = carray(pointer(f.tradable), count * f.stride, np.bool_)
    held, at = 0, 0
    for s in range(count):
        if holdings[b * count + s].position != 0.0:
            held, at = held + 1, s
    if held == 0:
        return
    net, gross = at_opens(f, b, row)
    alone = held == 1 and tradable[at * f.stride + row]
    # An account with several positions is looked at once more at the opens, after its orders.
    if not alone and a.cash + net <= max(r.maintenance * gross, floor):
        liquidate(f, a, b, row)
        return

    for s in range(count):
        h = holdings[b * count + s]
        bar = s * f.stride + row
        if h.position == 0.0:
            continue
        side = 1.0 if h.position > 0.0 else -1.0
        best = highs[bar] if side > 0.0 else -lows[bar]
        if tradable[bar]:
            liquidation = stop = trail = -math.inf
            gain = math.inf
            if alone:
                liquidation = -a.cash / (abs(h.position) * (1.0 - side * r.maintenance))
            distance = distance_of(f, r.stop_loss, b, s, r.stop_at)
            if distance > 0.0:
                stop = side * (h.cost * (1.0 - side * distance))
            distance = distance_of(f, r.trailing_stop, b, s, r.trail_at)
            if distance > 0.0:
                trail = h.best * (1.0 - side * distance)
            distance = distance_of(f, r.take_profit, b, s, r.profit_at)
            if distance > 0.0:
                gain = side * (h.cost * (1.0 + side * distance))
            opening, worst = side * opens[bar], lows[bar] if side > 0.0 else -highs[bar]
            nearest = max(max(stop, trail), liquidation)
            if worst <= nearest and not (opening >= gain and opening > nearest):
                # The first that the price meets names it; of equal ones liquidation, then stop-loss. Beyond a
                # liquidation price at the open everything else comes too late.
                kind = STOP_LOSS if stop >= nearest else TRAILING_STOP
                if liquidation >= nearest or opening <= liquidation:
                    kind = LIQUIDATION
                close_out(f, a, h, b, s, row, kind, side * min(opening, nearest))
            elif best >= gain:
                close_out(f, a, h, b, s, row, TAKE_PROFIT, side * max(opening, gain))
        h.best = max(h.best, best)


# -- one step ----------------------------------------------------------------------------------------------------------


@compiled
def at_close(f: Any, a: Any, b: int, row: int) -> float:
    """Book borrow, funding and interest, which rule 7 has; return the interest."""
    r = f.rules
    count = f.symbols
    holdings = carray(pointer(f.holdings), f.envs * count, HOLDING)
    closes = carray(pointer(f.close), count * f.stride, np.float64)
    rates = carray(pointer(f.funding), count * f.stride, np.float64)
    held = carray(pointer(f.held), f.held_room, HELD)
    interest = r.interest * a.cash
    cost = 0.0
    for s in range(count):
        h = holdings[b * count + s]
        close = closes[s * f.stride + row]
        borrow = r.borrow * close * max(-h.position, 0.0)
        funding = h.position * close * rates[s * f.stride + row]
        h.borrow += borrow
        h.funding += funding
        a.borrow += borrow
        a.funding += funding
        cost += borrow + funding
        if f.held_room > 0:
            place = (b * f.steps_room + row - a.start - 1) * count + s
            held[place].borrow, held[place].funding = borrow, funding
    a.cash = a.cash + interest - cost
    a.interest += interest
    return float(interest)


@compiled
def equity_at(f: Any, a: Any, b: int, row: int) -> float:
    """Return cash and positions at the closes."""
    count = f.symbols
    holdings = carray(pointer(f.holdings), f.envs * count, HOLDING)
    closes = carray(pointer(f.close), count * f.stride, np.float64)
    net = 0.0
    for s in range(count):
        net += holdings[b * count + s].position * closes[s * f.stride + row]
    return float(a.cash + net)


@compiled
def reward_of(r: Any, a: Any) -> float:
    """Return the reward of a step: docs/env.md has the formulas beside each other. Always finite."""
    if r.reward == PNL:
        return float(a.equity - a.equity_before)
    growth = max(a.equity / a.equity_before, RUIN_RATIO)
    if r.reward == LOG_RETURN:
        return math.log(growth)
    if r.reward == RETURN:
        return float(max(a.equity / a.equity_before, 0.0) - 1.0)
    if r.reward == DRAWDOWN_PENALISED:
        before = a.equity_before / a.highest_before
        after = growth * a.equity_before / max(a.highest_before, a.equity)
        return float(math.log(growth) - r.penalty * max(before - after, 0.0))
    if r.reward == DIFFERENTIAL_SHARPE:
        simple = growth - 1.0
        to_mean, to_square = simple - a.mean, simple * simple - a.square
        variance = a.square - a.mean * a.mean
        change = 0.0
        if variance > _NO_VARIANCE:
            change = (a.square * to_mean - 0.5 * a.mean * to_square) / (variance * math.sqrt(variance))
        a.mean += r.decay * to_mean
        a.square += r.decay * to_square
        return float(change)
    return 0.0


@compiled
def advance(f: Any, b: int) -> None:
    """Take one step in one environment."""
    r = f.rules
    count = f.symbols
    accounts = carray(pointer(f.accounts), f.envs, ACCOUNT)
    holdings = carray(pointer(f.holdings), f.envs * count, HOLDING)
    given = carray(pointer(f.given), f.envs * f.size, np.float64)
    low = carray(pointer(f.low_bound), f.size, np.float64)
    high = carray(pointer(f.high_bound), f.size, np.float64)
    opens = carray(pointer(f.open), count * f.stride, np.float64)
    closes = carray(pointer(f.close), count * f.stride, np.float64)
    tradable = carray(pointer(f.tradable), count * f.stride, np.bool_)
    a = accounts[b]
    row = a.row + 1
    step = row - a.start - 1
    a.row = row
    a.equity_before, a.highest_before = a.equity, a.highest
    floor = RUIN_RATIO * a.equity
    for k in range(f.size):
        given[b * f.size + k] = min(max(given[b * f.size + k], low[k]), high[k])

    # Rule 1: margin at the open. Trailing stops see the open of bars that found the trade open.
    stale = False
    for s in range(count):
        h = holdings[b * count + s]
        opening = opens[s * f.stride + row]
        h.best = max(h.best, opening if h.position > 0.0 else -opening)
        stale = stale or not tradable[s * f.stride + row]
    if stale:
        a.stale += 1
    net, gross = at_opens(f, b, row)
    worth = a.cash + net
    solvent = worth > max(r.maintenance * gross, floor)
    if not solvent:
        liquidate(f, a, b, row)
        worth = 1.0  # no order comes of it

    # Rules 2 to 7.
    if decide(f, a, b, row, solvent, worth):
        fill_orders(f, a, b, row, worth)
    inside(f, a, b, row, floor)
    interest = at_close(f, a, b, row)
    a.equity = equity_at(f, a, b, row)
    a.terminated = a.equity <= floor
    truncated = row >= a.end and not a.terminated
    a.ended = a.terminated or truncated

    # Rule 8: the end.
    if truncated and r.liquidate_at_end:
        for s in range(count):
            h = holdings[b * count + s]
            if h.position != 0.0:
                close_out(f, a, h, b, s, row, END_OF_DATA, closes[s * f.stride + row])
        a.equity = equity_at(f, a, b, row)

    a.highest = max(a.highest, a.equity)
    a.reward = reward_of(r, a)
    a.total_reward += a.reward
    write_down(f, a, b, step, interest)


@compiled
def write_down(f: Any, a: Any, b: int, step: int, interest: float) -> None:
    """Keep what the record of the episode will tell of the step."""
    count, size = f.symbols, f.size
    holdings = carray(pointer(f.holdings), f.envs * count, HOLDING)
    steps = carray(pointer(f.steps), f.envs * f.steps_room, STEP)
    held = carray(pointer(f.held), f.held_room, HELD)
    given = carray(pointer(f.given), f.envs * size, np.float64)
    actions = carray(pointer(f.actions), f.envs * f.steps_room * size, np.float64)
    place = b * f.steps_room + step
    steps[place].equity, steps[place].reward = a.equity, a.reward
    steps[place].cash, steps[place].interest = a.cash, interest
    for k in range(size):
        actions[place * size + k] = given[b * size + k]
    exposed = False
    for s in range(count):
        position = holdings[b * count + s].position
        exposed = exposed or position != 0.0
        if f.held_room > 0:
            held[place * count + s].position = position
    if exposed:
        a.exposed += 1


# -- observations ------------------------------------------------------------------------------------------------------


@compiled
def observe(f: Any, b: int, address: int, length: int) -> None:
    """Write what is known at the close of the current bar to an address: ``length`` numbers, float32.

    To an address, because a row of an array counts as a reference to the array: an atomic operation each, that waits
    until everything written before it has left the processor, and was a quarter of a step of 256 environments.
    """
    out = carray(pointer(address), length, np.float32)
    count = f.symbols
    accounts = carray(pointer(f.accounts), f.envs, ACCOUNT)
    holdings = carray(pointer(f.holdings), f.envs * count, HOLDING)
    closes = carray(pointer(f.close), count * f.stride, np.float64)
    codes = carray(pointer(f.part_codes), f.parts, np.int64)
    features = carray(pointer(f.features), f.rows * f.columns, np.float32)
    a = accounts[b]
    row = a.row
    size = f.window * f.columns
    first = (row - f.window + 1) * f.columns
    window = features[first : first + size]  # indexed from 0 on, the loop becomes a copy of whole vectors
    for k in range(size):
        out[k] = window[k]
    # Above 0 where there is no equity: what is then divided by it means nothing but its sign, which the clip keeps.
    divisor = max(a.equity, _LEAST_EQUITY)
    place = size
    for part in range(f.parts):
        code = codes[part]
        for s in range(count if code <= TIME_IN_POSITION else 1):
            h = holdings[b * count + s]
            value = 0.0
            if code == POSITION:
                value = h.position * closes[s * f.stride + row] / divisor
            elif code == UNREALISED_RETURN:
                if h.position != 0.0:
                    gain = closes[s * f.stride + row] / h.cost - 1.0
                    value = gain if h.position > 0.0 else -gain
            elif code == TIME_IN_POSITION:
                if h.position != 0.0:
                    bars = row - h.entry_row + 1
                    value = bars / (bars + f.window)
            elif code == DRAWDOWN:
                value = 1.0 - a.equity / a.highest
            else:
                value = a.cash / divisor
            out[place] = np.float32(min(max(value, -OBSERVATION_LIMIT), OBSERVATION_LIMIT))
            place += 1


# -- what Python calls -------------------------------------------------------------------------------------------------


@compiled
def refusal(f: Any, b: int) -> int:
    """Say why an environment cannot step, as the place of the reason in a negative number; 0 where it can."""
    accounts = carray(pointer(f.accounts), f.envs, ACCOUNT)
    given = carray(pointer(f.given), f.envs * f.size, np.float64)
    low = carray(pointer(f.low_bound), f.size, np.float64)
    high = carray(pointer(f.high_bound), f.size, np.float64)
    a = accounts[b]
    reason = -1
    if a.waits:
        return 0
    if a.ended:
        reason = HAS_ENDED
    elif a.row - a.start >= f.steps_room or a.fills + _FILLS_A_STEP * f.symbols > f.fills_room:
        reason = NO_ROOM
    else:
        for k in range(f.size):
            least, most = low[k] - TOLERANCE * abs(low[k]), high[k] + TOLERANCE * abs(high[k])
            if not least <= given[b * f.size + k] <= most:  # NaN is not
                reason = BAD_ACTION
    return 0 if reason < 0 else -(1 + 3 * b + reason)


@compiled
def begin(address: int, b: int, row: int, end: int, cash: float, waits: bool) -> None:
    """Begin an episode of environment ``b`` at a row; with ``waits`` it sits out the next step."""
    f = carray(pointer(address), 1, FRAME)[0]
    a = carray(pointer(f.accounts), f.envs, ACCOUNT)[b]
    holdings = carray(pointer(f.holdings), f.envs * f.symbols, HOLDING)
    a.row, a.start, a.end, a.waits = row, row, end, waits
    a.cash = a.equity = a.highest = a.equity_before = a.highest_before = cash
    a.reward = a.mean = a.square = a.total_reward = 0.0
    a.fee = a.slippage = a.borrow = a.funding = a.interest = a.turnover = 0.0
    a.cancelled = a.exposed = a.stale = a.fills = a.trades = a.opened = 0
    a.terminated = a.ended = False
    for s in range(f.symbols):
        h = holdings[b * f.symbols + s]
        h.position = h.chosen = h.carried = h.best = 0.0
        h.cost = 1.0
        h.entry_row = row


@compiled
def step_one(address: int, out: Any) -> tuple[int, float]:
    """Take a step in the only environment.

    Returns:
        Below 0: nothing was done (:func:`refusal`). 0: the episode goes on; 1: it was terminated; 2: truncated. And
        the reward, scaled.
    """
    f = carray(pointer(address), 1, FRAME)[0]
    refused = refusal(f, 0)
    if refused < 0:
        return refused, 0.0
    advance(f, 0)
    observe(f, 0, out.ctypes.data, len(out))
    a = carray(pointer(f.accounts), f.envs, ACCOUNT)[0]
    return (1 if a.terminated else 2) if a.ended else 0, a.reward * f.rules.scale


@compiled
def step_choice(address: int, choice: int, out: Any) -> tuple[int, float]:
    """Take a step in the only environment, whose action is one choice; returns what :func:`step_one` does."""
    f = carray(pointer(address), 1, FRAME)[0]
    carray(pointer(f.given), 1, np.float64)[0] = choice
    return step_one(address, out)


@compiled
def prefetch_places(f: Any, b: int) -> None:
    """Have the cache lines brought that the step of an environment will write its record into.

    They lie where no hardware prefetcher looks: without this, two fifths of a step of 256 environments are spent on
    waiting for them.
    """
    a = carray(pointer(f.accounts), f.envs, ACCOUNT)[b]
    fill = f.fills + (b * f.fills_room + a.fills) * _FILL_BYTES
    trade = f.trades + (b * f.fills_room + a.trades) * _TRADE_BYTES
    prefetch(fill)
    prefetch(trade)
    prefetch(trade + 64)
    place = b * f.steps_room + a.row - a.start
    prefetch(f.steps + place * _STEP_BYTES)
    if f.held_room > 0:
        prefetch(f.held + place * f.symbols * _HELD_BYTES)


@compiled
def step_all(address: int, out: Any, rewards: Any, terminated: Any, truncated: Any) -> int:
    """Take a step in every environment that does not wait.

    Returns:
        Below 0: no environment has stepped (:func:`refusal` of the first that cannot). Else 0.
    """
    f = carray(pointer(address), 1, FRAME)[0]
    for b in range(f.envs):
        refused = refusal(f, b)
        if refused < 0:
            return refused
    for b in range(f.envs):
        prefetch_places(f, b)
    accounts = carray(pointer(f.accounts), f.envs, ACCOUNT)
    for b in range(f.envs):
        a = accounts[b]
        if a.waits:
            a.waits = False
            rewards[b], terminated[b], truncated[b] = 0.0, False, False
        else:
            advance(f, b)
            rewards[b] = a.reward * f.rules.scale
            terminated[b], truncated[b] = a.terminated, a.ended and not a.terminated
        observe(f, b, out.ctypes.data + b * out.strides[0], out.shape[1])
    return 0


@compiled
def observe_all(address: int, out: Any) -> None:
    """Write the observations of all environments into ``out``, float32 (B, size)."""
    f = carray(pointer(address), 1, FRAME)[0]
    for b in range(f.envs):
        observe(f, b, out.ctypes.data + b * out.strides[0], out.shape[1])
