"""The market model: B environments as arrays, or one as plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from env.accounting import BATCH, ONE, PORTFOLIO, RUIN_RATIO, Costs, Value, Values, fees, fill_price
from env.actions import action_reader
from env.bar_reader import BarReader
from env.episode_record import EpisodeRecord, build_record
from env.exits import END_OF_DATA, LIQUIDATION, TAKE_PROFIT, Bar, Margin, Protection
from env.journal import Journal
from env.market_data import MarketData
from env.observation import OBSERVATION_LIMIT, Observer
from env.orders import Orders, Wanted
from env.rewards import RewardInput, reward_function
from env.scaler import Scaler
from env.settings import EnvSettings
from env.starts import Reason, Starts
from schemas.errors import InputError

_FIRST_CAPACITY = 4096

# What an environment is before its first episode, and what is set anew at each start.
_PER_ENV: dict[str, Any] = {
    "row": 0, "end": 0, "cash": 0.0, "equity": 0.0, "highest": 1.0, "cancelled": 0, "terminated": False, "ended": True,
}  # fmt: skip
_PER_SYMBOL: dict[str, Any] = {
    "position": 0.0, "chosen": 0.0, "carried": 0.0, "cost": 1.0, "best": 0.0, "entry_row": 0,
}  # fmt: skip


class MarketModel:
    """Accounts that trade on bars: decide at the close of bar t, fill at the open of t + 1, mark at its close.

    ``num_envs=None`` is one environment without a batch axis: actions and rewards are Python numbers. A number B gives
    arrays (B,). In a portfolio what belongs to a symbol is (S, B). The step is the same code for all, and its rules
    are numbered as in docs/env.md.

    Args:
        data: The bars.
        settings: Episode, execution, costs, observations, reward.
        scaler: Applied to the features; None leaves them as they are.
        num_envs: B, or None.
        rngs: One generator per environment, which draws the starts. Each reset takes exactly two numbers from it.

    Raises:
        SettingsError: The window does not fit into the bars of a symbol, or there is no such reward.
    """

    # One number per environment. ``row`` and ``end`` (its last row) index the arrays of the bars.
    row: Value
    end: Value
    cash: Value
    equity: Value
    highest: Value  # equity of the episode so far
    cancelled: Value  # orders
    terminated: Value
    ended: Value
    # One number per environment and symbol.
    position: Values
    chosen: Values  # the discrete target that was chosen last
    carried: Values  # what is left of an order
    cost: Values  # average cost of the open trade
    best: Values  # best price since its entry, in its direction; kept for trailing stops alone
    entry_row: Values

    def __init__(
        self,
        data: MarketData,
        settings: EnvSettings,
        scaler: Scaler | None,
        num_envs: int | None,
        rngs: Sequence[np.random.Generator],
    ) -> None:
        count = 1 if num_envs is None else num_envs
        if len(rngs) != count:
            raise InputError(f"market model: expected {count} generators, one per environment, got {len(rngs)}")
        self.data, self.settings, self.num_envs, self.rngs = data, settings, count, list(rngs)
        self._bars = data.on_common_clock() if settings.portfolio else data
        symbols = len(data.symbols) if settings.portfolio else None
        self._single = num_envs is None
        self._plain = self._single and not settings.portfolio
        self._ops = ONE if self._plain else PORTFOLIO if settings.portfolio else BATCH
        per_symbol = (count,) if symbols is None else (symbols, count)
        self._starts = Starts(data, settings, count)
        features = self._bars.scaled(scaler, OBSERVATION_LIMIT)
        self._observer = Observer(features, settings, self._ops, symbols, num_envs)
        self._actions = action_reader(settings, num_envs, symbols)
        self._reward = reward_function(settings, None if self._plain else count)

        self._costs, self._discrete = Costs.of(settings), settings.discrete
        self._orders = Orders(settings, self._ops)
        self._margin = Margin(settings, self._ops)
        self._protection = Protection(settings, self._ops)
        self._protects, self._trails = bool(settings.protections), self._protection.trails
        self._read = BarReader(self._bars, plain=self._plain)

        for names, shape in ((_PER_ENV, (count,)), (_PER_SYMBOL, per_symbol)):
            for name, value in names.items():
                setattr(self, name, value if self._plain else np.full(shape, value))
        self._first_step = np.zeros(count, dtype=np.int64)
        self._steps = 0  # that the model has taken
        capacity = min(self._starts.longest, _FIRST_CAPACITY)
        self._journal = Journal(settings, (count,), per_symbol, self._actions.recorded, capacity, plain=self._plain)
        self._room = self._journal.capacity

    @property
    def observation_size(self) -> int:
        """Length of one observation: window × features + position features."""
        return int(self._observer.size)

    # -- episodes ---------------------------------------------------------------------------------------------------

    def reset(self, indices: Iterable[int], symbol: str | None = None, start_row: int | None = None) -> None:
        """Begin a new episode in each of the environments ``indices``.

        Args:
            indices: Numbers of environments.
            symbol: Name to trade; None draws one, uniformly. Not in a portfolio.
            start_row: Absolute row of the first observation; None as ``settings.starts`` says.

        Raises:
            InputError: The symbol is unknown, or the row leaves no room for the window before or one bar after it.
        """
        begun: list[int] = []
        try:
            for index in indices:
                self._starts.begin(index, self.rngs[index], symbol, start_row, int(_of(self.row, index)))
                begun.append(index)
        finally:
            self.rewind(begun)

    def rewind(self, indices: Sequence[int]) -> None:
        """Put environments back to the start of their episodes, without a draw: they sit out a step of the others."""
        if not indices:
            return
        starts = [self._starts[index] for index in indices]
        cash = self.settings.initial_cash
        begun: dict[str, Any] = {"cash": cash, "equity": cash, "highest": cash, "ended": False}
        begun |= {"row": [start.row for start in starts], "end": [start.end for start in starts]}
        at: Any = indices
        if len(starts) == 1:  # an int costs a fifth of a list
            at, begun["row"], begun["end"] = indices[0], starts[0].row, starts[0].end
        for name, value in (_PER_ENV | _PER_SYMBOL | begun).items():
            if self._plain:
                setattr(self, name, value)
            else:
                getattr(self, name)[..., at] = value
        self._first_step[at] = self._steps
        self._reward.begin(indices)

    # -- steps ------------------------------------------------------------------------------------------------------

    def step(self, actions: Any) -> tuple[Value, Value, Value]:
        """Take one step in every environment.

        Args:
            actions: As the action space of the settings has them, with a leading axis B for a batch.

        Returns:
            Rewards (unscaled), terminated, truncated; numbers or arrays (B,).

        Raises:
            ActionError: An action is outside of the action space. No environment has taken the step then.
            InputError: An environment's episode has ended, or none was begun.
        """
        ops, orders, read, settings = self._ops, self._orders, self._read, self.settings
        if ops.any(self.ended):
            index = int(np.argmax(self.ended))
            raise InputError(f"environment {index}: expected a running episode, got an ended one; reset it before step")
        recorded, main, distances = self._actions(actions)
        if not self._room:
            self._make_room()
        self._room -= 1
        at = self._steps & (self._journal.capacity - 1)
        self._steps += 1
        book = self._journal.rows
        book.exit_kind[at] = 0

        row = self.row + 1
        opening, high, low, close = read.open(row), read.high(row), read.low(row), read.mark(row)
        tradable = read.tradable(row) if read.gaps else True
        before, cash, position = self.equity, self.cash, self.position
        floor = RUIN_RATIO * before

        # Rule 1: margin at the open.
        notional = position * opening
        worth = cash + ops.total(notional)
        solvent = worth > self._margin.required(notional, floor)
        all_solvent = ops.all(solvent)
        if not all_solvent:
            self.carried = ops.where(solvent, self.carried, 0.0)
            called = ops.where(solvent | (position == 0.0), 0, LIQUIDATION)
            cash, position = self._close_out(at, called, opening, cash, position)
            worth = ops.where(solvent, worth, 1.0)  # no order comes of it

        # Rules 2 to 4: orders at the open.
        if self._trails:
            self.best = ops.maximum(self.best, ops.where(position > 0.0, opening, -opening))
        wanted = orders.decide(main, self.chosen, position, opening, worth)
        if read.gaps or not all_solvent:
            wanted = self._accepted(wanted, solvent, tradable)
        elif self._discrete:
            self.chosen = wanted[1]
        price: Any = 0.0
        if orders.carries or ops.any(wanted[0]):
            volume = read.volume(row) if orders.needs_volume else 0.0
            filled, after, price, rest = orders.fill(
                wanted, cash, position, self.carried, worth, opening, tradable, volume
            )
            price = ops.where(filled, price, 0.0)
            quantity = after - position
            cash = cash - ops.total(quantity * price + fees(ops, self._costs, quantity, price))
            self._note_trades(row, price, position, after)
            position = after
            if orders.carries:
                self.carried = rest
        book.position[at] = position
        book.price[at] = price

        # Rules 5 and 6: what closes positions inside the bar.
        worst = ops.where(position > 0.0, low, high)
        if self._protects or self._margin.may_be_called(cash, position, worst, floor):
            bar = Bar(opening, high, low, close, tradable)
            cash, position = self._inside(at, bar, distances, floor, cash, position)

        # Rule 7: the close.
        if settings.interest:
            book.interest[at] = earned = settings.interest * cash
            cash = cash + earned
        if settings.borrow:
            cash = cash - ops.total(settings.borrow * close * ops.maximum(-position, 0.0))
        if read.funds:
            cash = cash - ops.total(position * close * read.funding(row))
        equity = cash + ops.total(position * close)
        terminated = equity <= floor
        truncated = (row >= self.end) & ops.negate(terminated)

        # Rule 8: the end.
        if settings.liquidate_at_end and ops.any(truncated):
            closed = ops.where(truncated & (position != 0.0), END_OF_DATA, 0)
            cash, position = self._close_out(at, closed, close, cash, position)
            equity = cash + ops.total(position * close)

        if book.reward is None:
            rewards = ops.log(ops.maximum(equity / before, RUIN_RATIO))
        else:
            rewards = self._reward(self._reward_input(row, before, equity, cash, position, close))
            book.reward[at] = rewards
        self.row, self.cash, self.equity, self.position = row, cash, equity, position
        self.highest = ops.maximum(self.highest, equity)
        self.terminated, self.ended = terminated, terminated | truncated
        book.equity[at] = equity
        book.action[at] = recorded
        if book.cash is not None:
            book.cash[at] = cash
        if self._single and not self._plain:
            return float(rewards[0]), bool(terminated[0]), bool(truncated[0])
        return rewards, terminated, truncated

    def _accepted(self, wanted: Wanted, solvent: Value, tradable: Values) -> Wanted:
        """Cancel the orders of accounts that were liquidated, and of symbols without a bar unless they are carried."""
        ops = self._ops
        new, weight, quantity = wanted
        accepted = solvent if self._orders.carries else solvent & tradable
        if self._discrete:
            self.chosen = ops.where(accepted, weight, self.chosen)
        self.cancelled = self.cancelled + ops.total((new & ops.negate(accepted)) * 1)
        return new & accepted, weight, quantity

    def _note_trades(self, row: Value, price: Values, before: Values, after: Values) -> None:
        """Keep average cost, entry and best price of the open trades."""
        ops = self._ops
        quantity = after - before
        along = before * quantity
        opened, increased = (after * quantity > 0.0) & (along <= 0.0), along > 0.0
        cost = ops.where(opened, price, self.cost)
        if ops.any(increased):
            units = ops.where(increased, abs(after), 1.0)
            mean = (self.cost * abs(before) + price * abs(quantity)) / units
            cost = ops.where(increased, mean, cost)
        self.cost = cost
        self.entry_row = ops.where(opened, row, self.entry_row)
        if self._trails:
            self.best = ops.where(opened, ops.where(after > 0.0, price, -price), self.best)

    def _inside(
        self, at: int, bar: Bar, distances: tuple[Values, ...], floor: Value, cash: Value, position: Values
    ) -> tuple[Value, Values]:
        """Liquidate and protect; return cash and positions after it."""
        ops, margin = self._ops, self._margin
        held = position != 0.0
        alone = (ops.total(held * 1) == 1) & held & bar.tradable
        # An account with several positions is looked at once more at the opens, after its orders.
        notional = position * bar.open
        value = cash + ops.total(notional)
        called = (value <= margin.required(notional, floor)) & (ops.total(alone * 1) == 0)
        liquidated = ops.where(called & held, LIQUIDATION, 0)
        if ops.any(liquidated):
            self.carried = ops.where(called, 0.0, self.carried)
            cash, position = self._close_out(at, liquidated, bar.open, cash, position)
            held = position != 0.0

        side = ops.where(position > 0.0, 1.0, -1.0)
        exits = self._protection.exits(
            bar, held & bar.tradable, side, margin.price(cash, position, alone), self.cost, self.best, distances
        )
        if ops.any(exits.kind):
            cash, position = self._close_out(at, exits.kind, exits.reference, cash, position)
        if self._trails:
            self.best = ops.maximum(self.best, ops.where(side > 0.0, bar.high, -bar.low))
        return cash, position

    def _close_out(
        self, at: int, kind: Values, reference: Values, cash: Value, position: Values
    ) -> tuple[Value, Values]:
        """Close whole positions where ``kind`` is not 0; return cash and positions after it."""
        ops, book = self._ops, self._journal.rows
        closed = kind != 0
        quantity = ops.where(closed, -position, 0.0)
        price = fill_price(ops, self._costs, reference, ops.where(quantity > 0.0, 1.0, -1.0))
        price = ops.where(kind == TAKE_PROFIT, reference, price)  # a limit order
        cash = cash - ops.total(quantity * price + fees(ops, self._costs, quantity, price))
        book.exit_kind[at] = ops.where(closed, kind, book.exit_kind[at])
        book.exit_reference[at] = ops.where(closed, reference, book.exit_reference[at])
        book.exit_price[at] = ops.where(closed, price, book.exit_price[at])
        self.carried = ops.where(closed, 0.0, self.carried)
        return cash, ops.where(closed, 0.0, position)

    def _reward_input(
        self, row: Value, before: Value, equity: Value, cash: Value, position: Values, close: Values
    ) -> RewardInput:
        each: Any = 0 if self._plain else slice(None)
        start, base = self._starts.rows[each], self._starts.bases[each]
        if self.settings.portfolio:
            position, close = position.T, close.T
        return RewardInput(before, equity, self.highest, cash, position, close, row + base, row - start - 1)

    def observations(self) -> NDArray[np.float32]:
        """Return what is known at the close of the current bars: new float32 (size,), or (B, size)."""
        seen = self._observer.observe(self.row, self._read.mark(self.row), self)
        return seen[0] if self._single and not self._plain else seen

    # -- what happened ----------------------------------------------------------------------------------------------

    def beginning(self, index: int) -> tuple[str, int]:
        """Return symbol (or "portfolio") and absolute start row of the episode of environment ``index``."""
        return self._starts.name(index), self._starts[index].row + self._starts.base(index)

    def value(self, index: int) -> float:
        """Return the equity of environment ``index``."""
        return float(_of(self.equity, index))

    def reason(self, index: int) -> Reason:
        """Say why the episode of environment ``index`` ended, or that it is running."""
        reason = self._starts.reason(index, int(_of(self.row, index)))
        return "ruin" if _of(self.terminated, index) else reason

    def episode_record(self, index: int, env_seed: str | None = None) -> EpisodeRecord:
        """Tell the current episode of environment ``index``, or its last one until it is reset.

        Args:
            index: Number of the environment.
            env_seed: What drew the start, to be kept in the record.

        Raises:
            InputError: No episode was begun.
        """
        start = self._starts[index]
        steps = int(_of(self.row, index)) - start.row
        return build_record(
            self._bars,
            self.settings,
            self._journal.read(index, int(self._first_step[index]), steps),
            symbol=self._starts.name(index),
            symbols=self.data.symbols if self.settings.portfolio else (self.data.symbols[start.symbol],),
            start=start.row,
            base=self._starts.base(index),
            reason=self.reason(index),
            env_seed=env_seed,
            cancelled=int(_of(self.cancelled, index)),
            labels=self._actions.labels,
        )

    def _make_room(self) -> None:
        """Count the steps that every environment can still write down; double the journal when one has none left."""
        running = self._steps - int(self._first_step.min())
        if running >= self._journal.capacity:
            self._journal.grow(self._steps)
        self._room = self._journal.capacity - running


def _of(value: Value, index: int) -> Any:
    """Take one environment's number out of the state."""
    return value[index] if isinstance(value, np.ndarray) else value
