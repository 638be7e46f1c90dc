"""The money: how an order becomes a fill, written once for one environment and for a batch.

Every function works on plain floats (one environment) and on float64 arrays (B,) (a batch) alike, through the few
operations that Python and numpy spell differently: :class:`Ops`. Both compute in IEEE double precision, in the same
order, so a batch gives the numbers that its environments give alone. Floats make a single step about ten times
cheaper than arrays of length one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

X = TypeVar("X", float, NDArray[np.float64])

RUIN_RATIO = 1e-6
"""An account that keeps no more than this part of its equity over one step is ruined; E <= 0 always is."""


class Ops(NamedTuple):
    """Operations on masks and numbers. Masks are bool, or bool (B,)."""

    where: Callable[[Any, Any, Any], Any]
    any: Callable[[Any], Any]
    negate: Callable[[Any], Any]
    log: Callable[[Any], Any]
    trunc: Callable[[Any], Any]
    minimum: Callable[[Any, Any], Any]
    maximum: Callable[[Any, Any], Any]


def _choose(mask: bool, yes: float, no: float) -> float:
    return yes if mask else no


def _log(number: float) -> float:
    # numpy's own, also for one number: math.log differs from it in the last bit of every twentieth.
    return float(np.log(number))


ONE = Ops(_choose, bool, operator.not_, _log, math.trunc, min, max)
BATCH = Ops(np.where, np.any, np.logical_not, np.log, np.trunc, np.minimum, np.maximum)


class Costs(NamedTuple):
    """Rates as fractions of the notional, and the smallest quantity; see ``EnvSettings``."""

    fee: float
    slippage: float
    borrow: float
    lot: float


class Fill(NamedTuple, Generic[X]):
    """What an order did. A quantity of 0 is no fill."""

    quantity: X
    """Signed units bought (above 0) or sold (below 0)."""
    price: X
    """Price paid, slippage included."""
    fee: X
    """Money, not below 0."""
    position: X
    """Signed units held after it."""
    cash: X
    """Money after it."""


def sized(ops: Ops, weight: X, equity: X, price: X, costs: Costs) -> X:
    """Signed units that bring a flat account to ``weight`` times its equity, fee included, in whole lots."""
    quantity: X = weight * equity / (price * (1.0 + abs(weight) * costs.fee))
    if costs.lot:
        # Rounded towards zero; the small constant keeps 0.3 / 0.1 = 2.9999999999999996 at three lots.
        lots: X = ops.trunc(quantity / costs.lot + ops.where(quantity < 0, -1e-9, 1e-9))
        quantity = lots * costs.lot + 0.0  # never -0.0
    return quantity


def fill_target(ops: Ops, cash: X, position: X, weight: X, reference: X, costs: Costs) -> Fill[X]:
    """Fill the difference between a position and a target, sized with the equity at the fill price.

    Args:
        ops: ``ONE`` for floats, ``BATCH`` for arrays.
        cash: Money before.
        position: Signed units before.
        weight: Target, as a multiple of equity.
        reference: Price before slippage: the open of the filling bar.
        costs: Rates and lot.

    Returns:
        The fill: one execution, also for a reversal.
    """
    wanted = sized(ops, weight, cash + position * reference, reference, costs)
    side: X = ops.where(wanted > position, 1.0, -1.0)
    price = reference * (1.0 + side * costs.slippage)
    # Slippage on the position itself may eat the last of the equity: nothing is left to size with then.
    equity: X = ops.maximum(cash + position * price, 0.0)
    wanted = sized(ops, weight, equity, price, costs)
    # Between two near targets of one sign, slippage can turn the side of the order: then there is none.
    return fill_quantity(ops, cash, position, ops.where((wanted - position) * side > 0, wanted, position), price, costs)


def fill_quantity(ops: Ops, cash: X, position: X, wanted: X, price: X, costs: Costs) -> Fill[X]:
    """Bring a position to ``wanted`` units at ``price`` (slippage included) and pay the fee."""
    quantity = wanted - position
    fee = costs.fee * price * abs(quantity)
    return Fill(quantity, price, fee, wanted, cash - quantity * price - fee)


def borrow_cost(ops: Ops, position: X, mark: X, costs: Costs) -> X:
    """Money for one bar of a short position, on its notional at the close; 0 for a long one."""
    cost: X = costs.borrow * mark * ops.maximum(-position, 0.0)
    return cost
