"""Orders at the open: from what an action asks for to what the bar fills (docs/env.md, rules 2 and 4)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from env.accounting import ONE, ROUNDING, Costs, Ops, Value, Values, fill_price, position_after, whole_lots
from env.settings import EnvSettings

_TINY = 1e-300
"""Keeps a division by nothing, whose result is not used, from being one by 0."""


Wanted = tuple[Values, Values, Values]
"""What an action asks for, per symbol: a mask of new orders, their targets as multiples of equity (0.0 where orders are
quantities), their signed units (0.0 where orders are targets)."""

Fills = tuple[Values, Values, Values, Values]
"""What orders did, per symbol: a mask of fills, signed units held after them, their prices with slippage, spread and
impact, and the signed units that the bar left of the orders."""


class Sized(NamedTuple):
    """An order with the price that it would have."""

    price: Values
    order: Values
    """Signed units wanted."""
    filled: Values
    """Signed units that the bar has for it."""
    dropped: Values
    """Mask: not worth sending."""


class Orders:
    """Sizes the orders of all accounts at the open of a bar.

    Args:
        settings: Kind of actions, costs and limits.
        ops: Of the shape of the numbers.
    """

    def __init__(self, settings: EnvSettings, ops: Ops) -> None:
        self._ops = ops
        self._costs = Costs.of(settings)
        self._holds = settings.actions == "hold_buy_sell"
        table = (0.0, max(settings.targets), min(settings.targets)) if self._holds else settings.targets
        self._targets: Any = table if ops is ONE else np.array(table)
        self._portfolio = settings.portfolio
        self._quantities = settings.actions == "quantities"
        self._discrete = settings.discrete
        self._leverage = settings.leverage
        self._band = settings.no_trade_band
        self._share = settings.max_volume_share
        self._min_notional = settings.min_notional
        self.carries = settings.remainder == "carry"
        self.needs_volume = bool(self._share or settings.impact)
        # Orders that nothing but lots can cut: the way that most accounts go, and the shortest.
        self._plain = not (self._portfolio or self._quantities or self.carries or self.needs_volume)
        self._plain = self._plain and not self._min_notional

    # -- what the action asks for -----------------------------------------------------------------------------------

    def decide(self, main: Values, chosen: Values, position: Values, opening: Values, equity: Value) -> Wanted:
        """Return the orders that actions make.

        Args:
            main: Number of the choice, weight or quantity.
            chosen: The discrete target that was chosen last.
            position: Signed units held.
            opening: The opens.
            equity: Cash and positions at the opens, above 0.
        """
        if self._quantities:
            return main != 0.0, 0.0, main
        if not self._discrete:
            return self._rebalance(main, position, opening, equity)
        target = self._targets[main]
        if self._holds:
            target = self._ops.where(main == 0, chosen, target)
        return target != chosen, target, 0.0

    def _rebalance(self, weight: Values, position: Values, opening: Values, equity: Value) -> Wanted:
        """Order where a weight differs from the present one by the band, or at all; weights fit the leverage first."""
        ops = self._ops
        if self._portfolio:
            gross = ops.total(abs(weight))
            above = gross > self._leverage
            if ops.any(above):
                weight = ops.where(above, weight * self._leverage / ops.maximum(gross, _TINY), weight)
        distance = abs(weight - position * opening / equity)
        # An account that is all in has a weight of 1 but for rounding: without a tolerance it would sell its own fee.
        return (distance > ROUNDING) & (distance >= self._band), weight, 0.0

    # -- what it becomes --------------------------------------------------------------------------------------------

    def fill(
        self,
        wanted: Wanted,
        cash: Value,
        position: Values,
        carried: Values,
        equity: Value,
        opening: Values,
        tradable: Values,
        volume: Values,
    ) -> Fills:
        """Fill orders.

        Args:
            wanted: New orders.
            cash: Money before.
            position: Signed units before.
            carried: Signed units left of older orders; not read where none are carried.
            equity: Cash and positions at the opens, above 0.
            opening: The opens.
            tradable: Mask: the symbol has a bar. Where orders are not carried, none is for a symbol without one.
            volume: Of the bar; not read where it does not matter.
        """
        ops, costs = self._ops, self._costs
        new, weight, quantity = wanted
        if self._plain:
            return self._fill_target(new, weight, cash, position, equity, opening)
        ordered, charge = new, 1.0
        if self.carries:
            ordered = new | (carried != 0.0)
            quantity = ops.where(new, quantity, carried)
        quantity = ops.where(ordered, quantity, 0.0)
        if self._quantities:
            side = _side(ops, quantity)
        else:
            weight, gross = self._gross(new, weight, position, opening, equity)
            charge = 1.0 + gross * costs.fee
            wants_more = weight * equity / (opening * charge) > position
            side = ops.where(new, ops.where(wants_more, 1.0, -1.0), _side(ops, quantity))

        def sized(impact: Values) -> Sized:
            price = fill_price(ops, costs, opening, side, impact)
            order, value = quantity, cash + ops.total(position * price)
            if self._quantities:
                order = self._whole(order, position)
                order = self._within_leverage(order, position, price, value)
            else:
                target = whole_lots(ops, weight * ops.maximum(value, 0.0) / (price * charge), costs.lot)
                difference = target - position
                order = ops.where(new, ops.where(difference * side > 0.0, difference, 0.0), order)
            return self._within_bar(order, position, price, tradable, volume)

        done = sized(0.0)
        if costs.impact:
            done = sized(costs.impact * ops.sqrt(abs(done.filled) / ops.maximum(volume, _TINY)))
        after = ops.where(done.filled != 0.0, position_after(ops, position, done.filled), position)
        rest = ops.where(done.dropped, 0.0, done.order - done.filled) if self.carries else 0.0
        return after != position, after, done.price, rest

    def _fill_target(
        self, new: Values, weight: Values, cash: Value, position: Values, equity: Value, opening: Values
    ) -> Fills:
        """Fill the targets of accounts with one symbol, which only lots can cut."""
        ops, costs = self._ops, self._costs
        charge = 1.0 + abs(weight) * costs.fee
        # Between two near targets of one sign, slippage can turn the side of the order: then there is none.
        side = ops.where(weight * equity / (opening * charge) > position, 1.0, -1.0)
        price = fill_price(ops, costs, opening, side)
        # Slippage on the position itself may eat the last of the equity: nothing is left to size with then.
        value = ops.maximum(cash + position * price, 0.0)
        target = whole_lots(ops, weight * value / (price * charge), costs.lot)
        filled = new & ((target - position) * side > 0.0)
        return filled, ops.where(filled, target, position), price, 0.0

    def _gross(
        self, new: Values, weight: Values, position: Values, opening: Values, equity: Value
    ) -> tuple[Values, Value]:
        """Return the weights, and the sum of the absolute ones that the portfolio is going to have."""
        ops = self._ops
        if not self._portfolio:
            return weight, abs(weight)
        ordered = ops.total(ops.where(new, abs(weight), 0.0))
        held = ops.total(ops.where(new, 0.0, abs(position) * opening / equity))
        if self._discrete:
            above = ordered + held > self._leverage
            if ops.any(above):
                room = ops.maximum(self._leverage - held, 0.0) / ops.maximum(ordered, _TINY)
                factor = ops.where(above, ops.minimum(room, 1.0), 1.0)
                weight, ordered = weight * factor, ordered * factor
        return weight, ordered + held

    def _whole(self, order: Values, position: Values) -> Values:
        """Round quantities to whole lots, but for one that closes a position."""
        ops, lot = self._ops, self._costs.lot
        return ops.where(order == -position, order, whole_lots(ops, order, lot)) if lot else order

    def _within_leverage(self, order: Values, position: Values, price: Values, value: Value) -> Values:
        """Scale the parts of quantities that increase positions by one factor, so that the gross fits the leverage."""
        ops, fee = self._ops, self._costs.fee
        against = order * position < 0.0
        cut = ops.where(against, _side(ops, order) * ops.minimum(abs(order), abs(position)), 0.0)
        more = order - cut
        gross = ops.total(abs(position + cut) * price)
        increase = ops.total(abs(more) * price)
        room = self._leverage * (value - fee * ops.total(abs(cut) * price)) - gross
        room = ops.where(room > ROUNDING * gross, room, 0.0)  # a position at the limit grows by no rounding error
        above = increase * (1.0 + self._leverage * fee) > room
        if not ops.any(above):
            return order
        factor = room / ops.maximum(increase * (1.0 + self._leverage * fee), _TINY)
        scaled = self._whole(cut + ops.minimum(factor, 1.0) * more, position)
        return ops.where(above & (more != 0.0), scaled, order)

    def _within_bar(self, order: Values, position: Values, price: Values, tradable: Values, volume: Values) -> Sized:
        """Cut an order to what the bar has, and drop it where that is not worth sending."""
        ops, filled = self._ops, order
        if self.needs_volume:
            tradable = tradable & (volume > 0.0)
        if self._share is not None:
            most = self._share * volume
            part = whole_lots(ops, _side(ops, order) * most, self._costs.lot)
            filled = ops.where(abs(order) > most, part, order)
        filled = ops.where(tradable, filled, 0.0)
        dropped: Any = False
        if self._min_notional:
            closes = position_after(ops, position, filled) == 0.0
            dropped = (filled != 0.0) & (abs(filled) * price < self._min_notional) & ops.negate(closes)
            filled = ops.where(dropped, 0.0, filled)
        return Sized(price, order, filled, dropped)


def _side(ops: Ops, quantity: Values) -> Values:
    """1.0 for a buy, -1.0 for a sell, 0.0 for neither."""
    return ops.where(quantity > 0.0, 1.0, ops.where(quantity < 0.0, -1.0, 0.0))
