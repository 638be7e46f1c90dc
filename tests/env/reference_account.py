"""The account of the reference simulator: cash, positions, fills and trades, in `decimal`. No import of the core."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context, Decimal

from env.settings import EnvSettings

CONTEXT = Context(prec=50)
ZERO, ONE = Decimal(0), Decimal(1)
FLOOR = Decimal("1e-6")
PROTECTIONS = ("stop_loss", "take_profit", "trailing_stop")


def exact(number: float | Decimal | None) -> Decimal:
    """Read a float as the shortest decimal that names it; None and NaN are 0."""
    if number is None or number != number:
        return ZERO
    return number if isinstance(number, Decimal) else Decimal(repr(float(number)))


def sign(number: Decimal) -> int:
    return (number > 0) - (number < 0)


@dataclass(frozen=True)
class Bar:
    """One bar of one symbol; volume and funding are 0 where there is none."""

    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    funding: Decimal

    @classmethod
    def of(cls, prices: Sequence[float], volume: float | None = None, funding: float | None = None) -> Bar | None:
        """Make a bar of open, high, low, close; None, a missing bar, where one of them is NaN."""
        if any(math.isnan(price) for price in prices):
            return None
        return cls(*(exact(price) for price in prices), exact(volume), exact(funding))


@dataclass(frozen=True)
class Fill:
    symbol: int
    step: int
    kind: str
    quantity: Decimal
    price: Decimal
    reference: Decimal
    fee: Decimal
    slippage: Decimal
    position_after: Decimal


@dataclass
class Trade:
    """From flat to flat or to the flip; the open one has no exit_kind yet."""

    symbol: int
    side: int
    entry_step: int
    cost: Decimal  # average cost of what is held
    peak: Decimal
    bars: int = 0
    quantity: Decimal = ZERO  # the largest held
    entered: Decimal = ZERO
    paid: Decimal = ZERO
    left: Decimal = ZERO
    received: Decimal = ZERO
    fee: Decimal = ZERO
    slippage: Decimal = ZERO
    borrow: Decimal = ZERO
    funding: Decimal = ZERO
    exit_step: int | None = None
    exit_kind: str | None = None

    @property
    def entry_price(self) -> Decimal:
        return self.paid / self.entered

    @property
    def exit_price(self) -> Decimal:
        return self.received / self.left

    def gross_pnl(self, position: Decimal = ZERO, price: Decimal = ZERO) -> Decimal:
        """Pnl before costs; of an open trade with what is held at a price."""
        return self.side * (self.received - self.paid) + position * price

    def net_pnl(self, position: Decimal = ZERO, price: Decimal = ZERO) -> Decimal:
        return self.gross_pnl(position, price) - self.fee - self.borrow - self.funding


@dataclass
class Holding:
    """What the account has, wants and has chosen in one symbol."""

    price: Decimal  # the last one known
    position: Decimal = ZERO
    trade: Trade | None = None
    carried: Decimal = ZERO
    chosen: Decimal = ZERO


class ReferenceAccount:
    """Books fills, closings and costs of one account, and notes how near its decisions were.

    Attributes:
        rate: The settings that are numbers, as decimals; 0 for none.
        nearest: Relative distance of the nearest decision so far to going the other way.
    """

    def __init__(self, settings: EnvSettings, last_prices: Sequence[Decimal]) -> None:
        self.settings = settings
        self.rate = {name: exact(value) for name, value in settings if isinstance(value, float | int | None)}
        self.cash = self.rate["initial_cash"]
        self.interest = ZERO
        self.holdings = [Holding(price) for price in last_prices]
        self.fills: list[Fill] = []
        self.trades: list[Trade] = []
        self.steps = 0
        self.nearest = ONE

    # -- decisions that a float may take the other way --------------------------------------------------------------

    def _compare(self, left: Decimal, right: Decimal) -> int:
        """Return -1, 0 or 1 as left is below, at or above right, and note how near the call was."""
        scale = max(abs(left), abs(right))
        if scale:
            self.nearest = min(self.nearest, abs(left - right) / scale)
        return sign(left - right)

    def _lots(self, quantity: Decimal, *, given: bool = False) -> Decimal:
        """Round towards zero to whole lots. A ``given`` quantity that is whole already is no near call."""
        lot = self.rate["lot"]
        if not lot or not quantity:
            return quantity
        count = abs(quantity) / lot
        whole = count.to_integral_value(ROUND_DOWN)
        if not (given and count == whole):
            self.nearest = min(self.nearest, min(count - whole, whole + 1 - count) / max(count, ONE))
        return sign(quantity) * whole * lot

    def _value(self) -> Decimal:
        return self.cash + sum((holding.position * holding.price for holding in self.holdings), ZERO)

    def _margin_call(self, opens: Sequence[Decimal], floor: Decimal) -> bool:
        notionals = [holding.position * price for holding, price in zip(self.holdings, opens, strict=True)]
        if not any(notionals):
            return False
        required = self.rate["maintenance_margin"] * sum((abs(notional) for notional in notionals), ZERO)
        return self._compare(self.cash + sum(notionals, ZERO), max(required, floor)) <= 0

    def _close_all(self, prices: Sequence[Decimal], kind: str) -> None:
        for symbol, holding in enumerate(self.holdings):
            self._close_out(symbol, prices[symbol], kind)
            holding.carried = ZERO

    # -- fills ------------------------------------------------------------------------------------------------------

    def _close_out(self, symbol: int, reference: Decimal, kind: str) -> None:
        """Close a whole position outside of an order."""
        holding = self.holdings[symbol]
        if not holding.position:
            return
        holding.carried = ZERO
        side = -sign(holding.position)
        price = reference
        if kind != "take_profit":
            price = reference * (1 + side * self.rate["slippage"]) + side * self.rate["half_spread"]
            price = max(price, FLOOR * reference)
        self._fill(symbol, -holding.position, price, reference, kind)

    def _fill(self, symbol: int, quantity: Decimal, price: Decimal, reference: Decimal, kind: str | None) -> None:
        """Book one fill; kind None is named after what it does to the position."""
        holding = self.holdings[symbol]
        before, after = holding.position, holding.position + quantity
        fee = self.rate["fee"] * abs(quantity) * price + self.rate["fee_fixed"]
        slippage = abs(quantity) * abs(price - reference)
        if kind is None:
            if not before:
                kind = "entry"
            elif before * quantity > 0:
                kind = "increase"
            else:
                kind = "exit" if not after else "reduce" if before * after > 0 else "reversal"
        self.cash -= quantity * price + fee
        holding.position = after
        self.fills.append(Fill(symbol, self.steps, kind, quantity, price, reference, fee, slippage, after))

        closing = min(abs(before), abs(quantity)) if before * quantity < 0 else ZERO
        opening = abs(quantity) - closing
        trade = holding.trade
        if closing:
            assert trade is not None
            trade.left += closing
            trade.received += closing * price
            trade.fee += fee * closing / abs(quantity)
            trade.slippage += slippage * closing / abs(quantity)
            if before * after <= 0:
                trade.exit_step, trade.exit_kind = self.steps, kind
                self.trades.append(trade)
                holding.trade = trade = None
        if opening:
            if trade is None:
                holding.trade = trade = Trade(symbol, sign(quantity), self.steps, price, price)
            held = abs(after) - opening
            trade.cost = (trade.cost * held + price * opening) / abs(after)
            trade.quantity = max(trade.quantity, abs(after))
            trade.entered += opening
            trade.paid += opening * price
            trade.fee += fee * opening / abs(quantity)
            trade.slippage += slippage * opening / abs(quantity)

    # -- rule 7  -----------------------------------------------------------------------------------------

    def _close(self, now: Sequence[Bar | None]) -> None:
        interest = self.rate["interest"] * self.cash
        self.interest += interest
        self.cash += interest
        for bar, holding in zip(now, self.holdings, strict=True):
            holding.price = bar.close if bar else holding.price
            trade = holding.trade
            if trade is None:
                continue
            notional = holding.position * holding.price
            borrow = self.rate["borrow"] * -notional if notional < 0 else ZERO
            funding = notional * bar.funding if bar else ZERO
            self.cash -= borrow + funding
            trade.borrow += borrow
            trade.funding += funding
            trade.bars += 1
            if bar:
                best = bar.high if trade.side > 0 else bar.low
                trade.peak = trade.side * max(trade.side * trade.peak, trade.side * best)
