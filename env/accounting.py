"""The money: prices, quantities and fees of a fill, written once for one environment and for a batch.

Every function works on plain floats (one environment) and on float64 arrays alike, (B,) for B environments and (S, B)
for B portfolios of S symbols, through the few operations that Python and numpy spell differently: :class:`Ops`. All
compute in IEEE double precision, in the same order, so a batch gives the numbers that its environments give alone.
Floats make a single step about ten times cheaper than arrays of length one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from env.settings import EnvSettings

Value = Any
"""A number per environment: a float, or float64 (B,)."""

Values = Any
"""A number per environment and symbol: a float, float64 (B,) for one symbol, or (S, B) for a portfolio."""

RUIN_RATIO = 1e-6
"""An account that keeps no more than this part of its equity over one step is ruined; E <= 0 always is."""

LOWEST_PRICE = 1e-6
"""Spread and impact take the price of a sale no lower than this part of its reference price."""

ROUNDING = 1e-9
"""Relative distance within which a figure counts as the one that exact arithmetic would give."""


class Ops(NamedTuple):
    """Operations on masks and numbers. Masks are bool, or bool arrays."""

    where: Callable[[Any, Any, Any], Any]
    any: Callable[[Any], Any]
    all: Callable[[Any], Any]
    negate: Callable[[Any], Any]
    log: Callable[[Any], Any]
    sqrt: Callable[[Any], Any]
    trunc: Callable[[Any], Any]
    minimum: Callable[[Any, Any], Any]
    maximum: Callable[[Any, Any], Any]
    total: Callable[[Any], Any]
    """Sum over the symbols of an account."""


def _choose(mask: bool, yes: float, no: float) -> float:
    return yes if mask else no


def _log(number: float) -> float:
    # numpy's own, also for one number: math.log differs from it in the last bit of every twentieth.
    return float(np.log(number))


def _same(value: Any) -> Any:
    return value


def _all(mask: NDArray[np.bool_]) -> bool:
    return int(np.count_nonzero(mask)) == mask.size  # a third of the time of mask.all()


def _total(values: NDArray[Any]) -> NDArray[Any]:
    # One symbol after the other for any B. numpy's sum adds in pairs where B is 1: other bits for the same account.
    if values.shape[1] == 1:
        return np.asarray(np.add.accumulate(values, axis=0)[-1])
    return np.asarray(np.add.reduce(values, axis=0))


ONE = Ops(_choose, bool, bool, operator.not_, _log, math.sqrt, math.trunc, min, max, operator.pos)
BATCH = Ops(np.where, np.count_nonzero, _all, np.logical_not, np.log, np.sqrt, np.trunc, np.minimum, np.maximum, _same)
PORTFOLIO = BATCH._replace(total=_total)


class Costs(NamedTuple):
    """What a fill costs, and the smallest quantity; see ``EnvSettings``."""

    fee: float
    fee_fixed: float
    slippage: float
    half_spread: float
    impact: float
    lot: float

    @classmethod
    def of(cls, settings: EnvSettings) -> Self:
        """Take them from the settings."""
        return cls(*(getattr(settings, name) for name in cls._fields))


def fill_price(ops: Ops, costs: Costs, reference: Values, side: Values, impact: Values = 0.0) -> Values:
    """Return the price of a fill: the reference, moved to our loss.

    Args:
        ops: Of the shape of the numbers.
        costs: Slippage and half spread.
        reference: Open, trigger or close.
        side: 1.0 for a buy, -1.0 for a sell; 0.0 leaves the reference as it is.
        impact: Of the order, as a fraction.
    """
    price = reference * (1.0 + side * (costs.slippage + impact))
    if costs.half_spread:
        price = price + side * costs.half_spread
    if costs.half_spread or costs.impact:
        price = ops.maximum(price, reference * LOWEST_PRICE)
    return price


def fees(ops: Ops, costs: Costs, quantity: Values, price: Values) -> Values:
    """Return the fees of fills, in money; none where the quantity is 0."""
    fee = costs.fee * price * abs(quantity)
    if costs.fee_fixed:
        fee = fee + ops.where(quantity != 0.0, costs.fee_fixed, 0.0)
    return fee


def whole_lots(ops: Ops, quantity: Values, lot: float) -> Values:
    """Round a quantity towards zero to whole lots; a ``lot`` of 0 leaves it as it is."""
    if not lot:
        return quantity
    # The small constant keeps 0.3 / 0.1 = 2.9999999999999996 at three lots.
    lots = ops.trunc(quantity / lot + ops.where(quantity < 0, -ROUNDING, ROUNDING))
    return lots * lot + 0.0  # never -0.0


def position_after(ops: Ops, position: Values, quantity: Values) -> Values:
    """Return the position after a fill: exactly 0 where the fill closes it but for rounding."""
    after = position + quantity
    return ops.where(abs(after) <= ROUNDING * abs(quantity), 0.0, after)
