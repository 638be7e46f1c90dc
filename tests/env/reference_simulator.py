"""The market model once more, slow and plain, to hold the real one against.

Written from docs/env.md (Rules of execution, Rewards, Accounts in an observation) and not from the code: one account,
`decimal` with 50 digits, no numpy, one rule after the other. It shares only ``EnvSettings`` with the package. A float
is read as the shortest decimal that names it: a stop of 0.05 is five per cent to the last digit.

``nearest`` tells how close the closest decision of the episode was, as a relative distance: to a trigger, to the next
lot, to a limit. Floats may decide the other way where it is about 1e-15, and there nothing can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from itertools import pairwise

from reference_account import CONTEXT, FLOOR, ONE, PROTECTIONS, ZERO, Bar, Holding, ReferenceAccount, exact, sign

from env.settings import EnvSettings

WHOLE = Decimal("1e-9")
"""Part of an order by which it may miss the whole position, or of equity by which a weight may miss another."""


@dataclass
class Order:
    """A target weight or a quantity, and what became of it."""

    weight: Decimal | None = None
    quantity: Decimal = ZERO
    side: int = 0
    price: Decimal = ZERO
    wanted: Decimal = ZERO
    filled: Decimal = ZERO
    impact: Decimal = ZERO
    dropped: bool = False


class ReferenceSimulator(ReferenceAccount):
    """One episode of one account.

    Args:
        bars: Bars of each symbol, one list a symbol, on the common clock; None is a missing bar.
        settings: The settings; ``episode_length`` counts from ``start``.
        start: Row of the first observation: the first order fills on the row after it.

    Attributes:
        equity: Equity at the start and after each step.
        rewards: Unscaled reward of each step.
        reason: "running", "ruin", "length" or "end_of_data".
        variance: What the differential Sharpe ratio of the last step was divided by, to the power of 3/2.
    """

    def __init__(self, bars: Sequence[Sequence[Bar | None]], settings: EnvSettings, start: int = 0) -> None:
        known = [[bar.close for bar in column[: start + 1] if bar is not None] for column in bars]
        super().__init__(settings, [closes[-1] for closes in known])
        self.bars = bars
        self.start = start
        self.equity = [self.cash]
        self.peak = self.cash
        self.rewards: list[Decimal] = []
        self.reason = "running"
        self.sharpe = (ZERO, ZERO)
        self.variance = ZERO

    @property
    def terminated(self) -> bool:
        return self.reason == "ruin"

    @property
    def truncated(self) -> bool:
        return self.reason in ("length", "end_of_data")

    # -- one step ---------------------------------------------------------------------------------------------------

    def step(
        self, action: Sequence[float], distances: Sequence[Sequence[float]] | None = None
    ) -> tuple[Decimal, bool, bool]:
        """Take one step.

        Args:
            action: One entry a symbol: number of the choice, weight or quantity.
            distances: With protect_by_action one row a symbol: the distances of the protective orders that are set,
                in the order of ``settings.protections``.

        Returns:
            The unscaled reward, terminated, truncated.
        """
        with localcontext(CONTEXT):
            return self._step(action, distances)

    def _step(self, action: Sequence[float], distances: Sequence[Sequence[float]] | None) -> tuple[Decimal, bool, bool]:
        now = [bars[self.start + self.steps + 1] for bars in self.bars]
        floor = FLOOR * self.equity[-1]
        opens = [bar.open if bar else holding.price for bar, holding in zip(now, self.holdings, strict=True)]
        if self._margin_call(opens, floor):  # 1
            self._close_all(opens, "liquidation")
        else:
            self._trade_at_open(action, now, opens)  # 2, 3, 4
            self._inside(now, opens, floor, distances)  # 5, 6
        self._close(now)  # 7
        value = self._value()
        if self._compare(value, floor) <= 0:
            self.reason = "ruin"
        length = None if self.settings.starts == "whole" else self.settings.episode_length
        if self.reason == "running" and self.steps + 1 == length:
            self.reason = "length"
        elif self.reason == "running" and self.start + self.steps + 2 == len(self.bars[0]):
            self.reason = "end_of_data"
        if self.truncated and self.settings.liquidate_at_end:  # 8
            self._close_all([holding.price for holding in self.holdings], "end_of_data")
            value = self._value()
        self.steps += 1
        self.rewards.append(self._reward(self.equity[-1], value))
        self.equity.append(value)
        self.peak = max(self.peak, value)
        return self.rewards[-1], self.terminated, self.truncated

    # -- rules 2 to 4: orders at the open ---------------------------------------------------------------------------

    def _trade_at_open(self, action: Sequence[float], now: Sequence[Bar | None], opens: Sequence[Decimal]) -> None:
        equity = self.cash + sum((h.position * price for h, price in zip(self.holdings, opens, strict=True)), ZERO)
        orders = self._decide(action, now, opens, equity)
        if self.settings.discrete:
            self._limit_targets(orders, opens, equity)
        self._size(orders, now, opens, equity)
        if self.rate["impact"]:
            for symbol, order in orders.items():
                bar = now[symbol]
                if bar and bar.volume:
                    order.impact = self.rate["impact"] * (abs(order.filled) / bar.volume).sqrt()
            self._size(orders, now, opens, equity)
        for symbol in sorted(orders):
            order, holding = orders[symbol], self.holdings[symbol]
            carry = self.settings.remainder == "carry" and not order.dropped
            holding.carried = order.wanted - order.filled if carry else ZERO
            if order.filled:
                self._fill(symbol, order.filled, order.price, opens[symbol], None)

    def _decide(
        self, action: Sequence[float], now: Sequence[Bar | None], opens: Sequence[Decimal], equity: Decimal
    ) -> dict[int, Order]:
        """Give the orders that stand at this open, new and carried, by symbol."""
        orders: dict[int, Order] = {}
        numbers = self._targets(action) if self.settings.actions != "quantities" else [exact(item) for item in action]
        for symbol, (number, holding) in enumerate(zip(numbers, self.holdings, strict=True)):
            order: Order | None
            if self.settings.actions == "quantities":
                order = Order(quantity=number) if number else None
            elif self.settings.actions == "weights":
                order = Order(weight=number) if self._out_of_band(number, holding, opens[symbol], equity) else None
            else:
                order = Order(weight=number) if number != holding.chosen else None
            if order is None and holding.carried:
                order = Order(quantity=holding.carried)
            if now[symbol] is None and self.settings.remainder == "cancel":
                order = None  # cancelled: a discrete target does not count as chosen
            elif self.settings.discrete:
                holding.chosen = number
            if order is not None:
                orders[symbol] = order
        return orders

    def _targets(self, action: Sequence[float]) -> list[Decimal]:
        targets = [exact(target) for target in self.settings.targets]
        if self.settings.actions == "targets":
            return [targets[int(item)] for item in action]
        if self.settings.actions == "hold_buy_sell":
            choices = [(holding.chosen, max(targets), min(targets)) for holding in self.holdings]
            return [choice[int(item)] for choice, item in zip(choices, action, strict=True)]
        weights = [exact(item) for item in action]
        gross = sum((abs(weight) for weight in weights), ZERO)
        leverage = self.rate["leverage"]
        return [weight * leverage / gross for weight in weights] if gross > leverage else weights

    def _out_of_band(self, weight: Decimal, holding: Holding, price: Decimal, equity: Decimal) -> bool:
        present = holding.position * price / equity
        if not weight and not present:
            return False
        distance = abs(weight - present)
        return self._compare(distance, WHOLE) > 0 and self._compare(distance, self.rate["no_trade_band"]) >= 0

    def _gross_weight(self, orders: dict[int, Order], opens: Sequence[Decimal], equity: Decimal) -> Decimal:
        gross = ZERO
        for symbol, holding in enumerate(self.holdings):
            weight = orders[symbol].weight if symbol in orders else None
            gross += abs(holding.position) * opens[symbol] / equity if weight is None else abs(weight)
        return gross

    def _limit_targets(self, orders: dict[int, Order], opens: Sequence[Decimal], equity: Decimal) -> None:
        """Scale the targets that have a new order by one factor, where all weights together go beyond the leverage."""
        new = [order for order in orders.values() if order.weight]
        excess = self._gross_weight(orders, opens, equity) - self.rate["leverage"]
        if new and excess > 0:
            gross = sum((abs(order.weight) for order in new if order.weight is not None), ZERO)
            for order in new:
                if order.weight is not None:
                    order.weight *= max(1 - excess / gross, ZERO)

    def _size(
        self, orders: dict[int, Order], now: Sequence[Bar | None], opens: Sequence[Decimal], equity: Decimal
    ) -> None:
        """Set price, wanted and filled quantity of every order, with the impact that it has."""
        rate = self.rate
        charge = ONE + self._gross_weight(orders, opens, equity) * rate["fee"]
        value = self.cash
        for symbol, holding in enumerate(self.holdings):
            price = opens[symbol]
            if symbol in orders:
                order = orders[symbol]
                order.side = sign(order.quantity)
                if order.weight is not None:
                    order.side = self._compare(order.weight * equity / (price * charge), holding.position)
                order.price = price * (1 + order.side * (rate["slippage"] + order.impact))
                order.price = max(order.price + order.side * rate["half_spread"], FLOOR * price)
                price = order.price
            value += holding.position * price
        for symbol, order in orders.items():
            position = self.holdings[symbol].position
            if order.weight is None:
                order.wanted = self._lots(order.quantity, given=True)
                continue
            exactly = order.weight * max(value, ZERO) / (order.price * charge)
            turned = order.side == 0 or self._compare(exactly, position) != order.side
            order.wanted = ZERO if turned else self._lots(exactly) - position
        if self.settings.actions == "quantities":
            self._limit_leverage(orders, opens, value)
        for symbol, order in orders.items():
            self._limit_size(order, now[symbol], self.holdings[symbol].position)

    def _limit_leverage(self, orders: dict[int, Order], opens: Sequence[Decimal], value: Decimal) -> None:
        """Scale the parts of quantities that increase positions by one factor."""
        reductions = dict.fromkeys(orders, ZERO)
        notional = reduced = increased = ZERO
        for symbol, holding in enumerate(self.holdings):
            position, price = holding.position, opens[symbol]
            if symbol in orders:
                price, wanted = orders[symbol].price, orders[symbol].wanted
                if wanted * position < 0:
                    reductions[symbol] = sign(wanted) * min(abs(wanted), abs(position))
                reduced += abs(reductions[symbol]) * price
                increased += abs(wanted - reductions[symbol]) * price
                position += reductions[symbol]
            notional += abs(position) * price
        if not increased:
            return
        fee, leverage = self.rate["fee"], self.rate["leverage"]
        room = leverage * (value - fee * reduced) - notional
        if self._compare(room, WHOLE * notional) <= 0:
            room = ZERO
        factor = room / (increased * (1 + leverage * fee))
        if self._compare(factor, ONE) >= 0:
            return
        for symbol, order in orders.items():
            increase = order.wanted - reductions[symbol]
            if increase:
                order.wanted = self._lots(reductions[symbol] + factor * increase)

    def _limit_size(self, order: Order, bar: Bar | None, position: Decimal) -> None:
        """Set what the bar fills of an order, by volume and minimum."""
        order.filled, order.dropped = order.wanted, False
        share = self.rate["max_volume_share"] if self.settings.max_volume_share is not None else None
        if bar is None or (not bar.volume and (share is not None or self.rate["impact"])):
            order.filled = ZERO
        elif share is not None and order.wanted and self._compare(abs(order.wanted), share * bar.volume) > 0:
            order.filled = self._lots(sign(order.wanted) * share * bar.volume)
        if abs(position + order.filled) <= WHOLE * abs(order.filled):
            order.filled = -position
        if order.filled and position + order.filled and self.rate["min_notional"]:
            notional = abs(order.filled) * order.price
            if self._compare(notional, self.rate["min_notional"]) < 0:
                order.filled, order.dropped = ZERO, True

    # -- rules 5 and 6: inside the bar ------------------------------------------------------------------------------

    def _inside(
        self,
        now: Sequence[Bar | None],
        opens: Sequence[Decimal],
        floor: Decimal,
        distances: Sequence[Sequence[float]] | None,
    ) -> None:
        held = [symbol for symbol, holding in enumerate(self.holdings) if holding.position]
        single = len(held) == 1 and now[held[0]] is not None
        if not single and self._margin_call(opens, floor):
            self._close_all(opens, "liquidation")
            return
        cash = self.cash
        for symbol in held:
            bar = now[symbol]
            if bar is not None:
                chosen = self._distances(distances[symbol] if distances is not None else None)
                self._protect(symbol, bar, chosen, cash if single else None)

    def _distances(self, chosen: Sequence[float] | None) -> dict[str, Decimal]:
        """Give the distance of each protective order, 0 for none."""
        if not self.settings.protect_by_action:
            return {name: self.rate[name] for name in PROTECTIONS}
        if chosen is None:
            raise ValueError("protect_by_action: expected distances, got none; give one row a symbol")
        return dict.fromkeys(PROTECTIONS, ZERO) | {
            name: exact(item) for name, item in zip(self.settings.protections, chosen, strict=True)
        }

    def _protect(self, symbol: int, bar: Bar, distances: dict[str, Decimal], cash: Decimal | None) -> None:
        """Fill the protective order or the liquidation that the bar reaches; cash is None in a wide account."""
        holding = self.holdings[symbol]
        trade = holding.trade
        assert trade is not None
        side, margin = trade.side, self.rate["maintenance_margin"]
        worst, best = (bar.low, bar.high) if side > 0 else (bar.high, bar.low)
        if trade.bars:  # open before this bar
            trade.peak = side * max(side * trade.peak, side * bar.open)
        adverse = []
        if cash is not None:
            adverse.append((-cash / (holding.position * (1 - side * margin)), "liquidation"))
        if distances["stop_loss"]:
            adverse.append((trade.cost * (1 - side * distances["stop_loss"]), "stop_loss"))
        if distances["trailing_stop"]:
            adverse.append((trade.peak * (1 - side * distances["trailing_stop"]), "trailing_stop"))
        adverse.sort(key=lambda item: -side * item[0])  # the order in which a falling (short: rising) price meets them
        for (left, _), (right, _) in pairwise(adverse):
            self._compare(left, right)
        beyond = [name for price, name in adverse if side * self._compare(bar.open, price) <= 0]
        gain = trade.cost * (1 + side * distances["take_profit"])
        has_gain = bool(distances["take_profit"]) and gain > 0
        if beyond:
            self._close_out(symbol, bar.open, "liquidation" if "liquidation" in beyond else beyond[0])
        elif has_gain and side * self._compare(bar.open, gain) >= 0:
            self._close_out(symbol, bar.open, "take_profit")
        elif adverse and side * self._compare(worst, adverse[0][0]) <= 0:
            self._close_out(symbol, *adverse[0])
        elif has_gain and side * self._compare(best, gain) >= 0:
            self._close_out(symbol, gain, "take_profit")

    # -- rewards and what the agent sees -----------------------------------------------------------------------------

    def _reward(self, before: Decimal, after: Decimal) -> Decimal:
        kind = self.settings.reward
        growth = after / before
        floored = max(growth, FLOOR)
        if kind == "log_return":
            return floored.ln()
        if kind == "return":
            return max(growth, ZERO) - 1
        if kind == "pnl":
            return after - before
        if kind == "drawdown":
            kept = before * floored
            rise = (1 - kept / max(self.peak, kept)) - (1 - before / self.peak)
            return floored.ln() - self.rate["drawdown_penalty"] * max(ZERO, rise)
        if kind == "differential_sharpe":
            mean, square = self.sharpe
            change = floored - 1
            to_mean, to_square = change - mean, change * change - square
            eta = self.rate["reward_decay"]
            self.sharpe = mean + eta * to_mean, square + eta * to_square
            self.variance = square - mean * mean
            if self._compare(self.variance, Decimal("1e-12")) <= 0:
                return ZERO
            return (square * to_mean - mean * to_square / 2) / (self.variance * self.variance.sqrt())
        raise ValueError(f"reward {kind!r}: expected one of the built-in ones; the reference knows no functions")

    def account(self) -> dict[str, list[Decimal]]:
        """Give the position features at the last close: one number, or one a symbol."""
        with localcontext(CONTEXT):
            equity, window = self.equity[-1], Decimal(self.settings.window)
            features: dict[str, list[Decimal]] = {
                "position": [holding.position * holding.price / equity for holding in self.holdings],
                "unrealised_return": [],
                "time_in_position": [],
                "drawdown": [1 - equity / self.peak],
                "cash_share": [self.cash / equity],
            }
            for holding in self.holdings:
                trade = holding.trade
                side = trade.side if trade else 0
                features["unrealised_return"].append(side * (holding.price / trade.cost - 1) if trade else ZERO)
                features["time_in_position"].append(trade.bars / (trade.bars + window) if trade else ZERO)
            return features
