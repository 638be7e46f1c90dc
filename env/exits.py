"""What closes a position inside a bar: liquidation and protective orders (docs/env.md, rules 1, 5 and 6).

Prices are compared in the direction of the position: times 1 for a long one, times -1 for a short one. Adverse
triggers then lie below the open and the take-profit above it, whichever way the position is.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from env.accounting import Ops, Value, Values
from env.settings import EnvSettings

STOP_LOSS, TRAILING_STOP, TAKE_PROFIT, LIQUIDATION, END_OF_DATA = range(5, 10)
"""Kinds of fills that no order at the open makes: numbers in ``env.ledger.KINDS``. 0 is none."""


class Bar(NamedTuple):
    """Prices of the bar, and whether there is one; where there is none, all are the last price."""

    open: Values
    high: Values
    low: Values
    close: Values
    tradable: Values


class Exit(NamedTuple):
    """Positions that are closed inside the bar."""

    kind: Values
    """Number of the kind of fill; 0 where the position stays."""
    reference: Values
    """Price before slippage and spread: the trigger, or the open where that lies beyond it."""


class Margin:
    """When an account is liquidated.

    Args:
        settings: Maintenance margin.
        ops: Of the shape of the numbers.
    """

    def __init__(self, settings: EnvSettings, ops: Ops) -> None:
        self._ops = ops
        self.rate = settings.maintenance_margin

    def required(self, notional: Values, floor: Value) -> Value:
        """Return the equity at or below which an account with these signed notionals is liquidated."""
        if not self.rate:
            return floor
        return self._ops.maximum(self.rate * self._ops.total(abs(notional)), floor)

    def may_be_called(self, cash: Value, position: Values, worst: Values, floor: Value) -> Any:
        """Whether the worst prices of the bar come near the margin of any account. The exact price comes later."""
        ops = self._ops
        notional = position * worst
        equity = cash + ops.total(notional)
        if self.rate:
            equity = equity - self.rate * ops.total(abs(notional))
        return ops.any(equity <= floor)

    def price(self, cash: Value, position: Values, alone: Values) -> Values:
        """Return the liquidation price of the only position of an account, in its direction; -inf where not alone."""
        ops = self._ops
        rate = ops.where(position > 0.0, 1.0 - self.rate, 1.0 + self.rate)
        units = ops.where(alone, abs(position) * rate, 1.0)
        return ops.where(alone, -cash / units, -math.inf)


class Protection:
    """Stop-loss, trailing stop and take-profit of every open trade.

    Args:
        settings: Distances, or with ``protect_by_action`` which ones an action chooses.
        ops: Of the shape of the numbers.
    """

    def __init__(self, settings: EnvSettings, ops: Ops) -> None:
        self._ops = ops
        self._names = settings.protections
        self._fixed = {name: float(getattr(settings, name)) for name in self._names}
        self.trails = "trailing_stop" in self._names

    def exits(
        self,
        bar: Bar,
        held: Values,
        side: Values,
        liquidation: Values,
        cost: Values,
        peak: Values,
        chosen: tuple[Values, ...],
    ) -> Exit:
        """Return what the bar reaches.

        Args:
            bar: Prices.
            held: Mask: there is a position, and a bar for it.
            side: 1.0 for a long position, -1.0 for a short one.
            liquidation: Its price in the direction of the position, -inf for none.
            cost: Average cost of the open trade.
            peak: Best price since its entry, in the direction of the position.
            chosen: Distances by action, in the order of ``settings.protections``; empty where settings have them.
        """
        ops = self._ops
        distances = dict(zip(self._names, chosen, strict=True)) if chosen else self._fixed
        stop = trail = -math.inf
        gain = math.inf
        if "stop_loss" in distances:
            distance = distances["stop_loss"]
            stop = ops.where(distance > 0.0, side * (cost * (1.0 - side * distance)), -math.inf)
        if "trailing_stop" in distances:
            distance = distances["trailing_stop"]
            trail = ops.where(distance > 0.0, peak * (1.0 - side * distance), -math.inf)
        if "take_profit" in distances:
            distance = distances["take_profit"]
            gain = ops.where(distance > 0.0, side * (cost * (1.0 + side * distance)), math.inf)

        opening, worst = side * bar.open, ops.where(side > 0.0, bar.low, -bar.high)
        best = ops.where(side > 0.0, bar.high, -bar.low)
        nearest = ops.maximum(ops.maximum(stop, trail), liquidation)
        gapped_up = (opening >= gain) & (opening > nearest)
        adverse = held & (worst <= nearest) & ops.negate(gapped_up)
        profit = held & (best >= gain) & ops.negate(adverse)
        # The first that the price meets names it; of equal ones liquidation, then stop-loss. Beyond a liquidation
        # price at the open everything else comes too late.
        liquidated = (liquidation >= nearest) | (opening <= liquidation)
        kind = ops.where(liquidated, LIQUIDATION, ops.where(stop >= nearest, STOP_LOSS, TRAILING_STOP))
        reference = ops.where(profit, ops.maximum(opening, gain), opening)
        return Exit(
            ops.where(adverse, kind, ops.where(profit, TAKE_PROFIT, 0)),
            side * ops.where(adverse, ops.minimum(opening, nearest), reference),
        )
