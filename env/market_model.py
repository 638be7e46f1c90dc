"""The market model: B environments as arrays, or one as plain numbers."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from env.accounting import BATCH, ONE, RUIN_RATIO, Costs, borrow_cost, fill_target
from env.episode_record import EpisodeRecord, Reason, build_record
from env.ledger import Ledger
from env.market_data import MarketData, Scaler
from env.settings import EnvSettings
from schemas.errors import ActionError, InputError, SettingsError

POSITION_FEATURES = 3
"""Numbers at the end of an observation: exposure, return of the open trade, time in it."""

OBSERVATION_LIMIT = 10.0
"""Observations are clipped to ± this, as Stable-Baselines3's ``VecNormalize`` does (``clip_obs=10``)."""

# A number per environment: float (or int) for one environment, an array (B,) for a batch. The code is the same.
Value = Any

_FIRST_CAPACITY = 4096
_VIEWS = ("_open", "_mark", "_tradable", "_columns", "_windows")

_UNBEGUN: dict[str, Any] = {
    "row": 0,
    "end": 0,
    "cash": 0.0,
    "position": 0.0,
    "held": 0.0,
    "equity": 0.0,
    "trade_equity": 0.0,
    "trade_row": 0,
    "terminated": False,
    "ended": True,
    "_cell": 0,
}


class MarketModel:
    """Accounts that trade on bars: decide at the close of bar t, fill at the open of t + 1, mark at its close.

    ``num_envs=None`` is one environment without a batch axis: state, actions and rewards are Python numbers. A number
    B gives arrays (B,). The step is the same code for both.

    An order is sent when the chosen target differs from the target held; a held one drifts with the market. On a
    missing bar an order is cancelled: it does not wait, its target does not count as held, and choosing it again
    sends a new one. An account is ruined, and its episode terminated, when its equity is at or below 0 at the open or
    the close of a bar (precisely: at or below ``RUIN_RATIO`` of the last step's equity). A ruin at the open is marked
    there: no fill, no recovery by the close.

    Args:
        data: The bars.
        settings: Episode, costs, targets.
        scaler: Applied to the features; None leaves them as they are.
        num_envs: B, or None.
        rngs: One generator per environment, which draws the starts. Each reset takes exactly two numbers from it.

    Raises:
        SettingsError: The window does not fit into the bars of a symbol.
    """

    # State, one number per environment. ``row`` and ``end`` (its last row) index the arrays of ``data``.
    row: Value
    end: Value
    cash: Value
    position: Value
    held: Value  # the target that the position was last brought to
    equity: Value
    trade_equity: Value  # equity just before the open trade
    trade_row: Value  # row of its first fill
    terminated: Value
    ended: Value
    _cell: Value  # row + _cell is where the ledger keeps the step that ends at row

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
        self.data, self.settings, self.rngs = data, settings, list(rngs)
        self.num_envs = count
        self._batched = num_envs is not None
        self._ops = BATCH if self._batched else ONE
        self._costs = Costs(settings.fee, settings.slippage, settings.borrow, settings.lot)
        self._weights: Any = np.array(settings.targets) if self._batched else settings.targets
        self._features = data.scaled(scaler or Scaler.identity(), OBSERVATION_LIMIT)
        self._first, self._last = self._start_rows()

        for name, value in _UNBEGUN.items():
            setattr(self, name, np.full(count, value) if self._batched else value)
        self._symbol = np.zeros(count, dtype=np.int64)
        self._start = np.zeros(count, dtype=np.int64)

        longest = int((self._last - self._first).max()) + 1
        self._capacity = min(settings.episode_length or longest, longest, _FIRST_CAPACITY)
        self._room = self._capacity
        self._ledger = {name: np.zeros((count, self._capacity)) for name in Ledger._fields}
        self._bind()

    @property
    def observation_size(self) -> int:
        """Length of one observation: window × features + position features."""
        return int(self.settings.window * self._features.shape[1] + POSITION_FEATURES)

    # -- episodes ---------------------------------------------------------------------------------------------------

    def reset(self, indices: Iterable[int], symbol: str | None = None, start_row: int | None = None) -> None:
        """Begin a new episode in each of the environments ``indices``.

        Args:
            indices: Numbers of environments.
            symbol: Name to trade; None draws one, uniformly.
            start_row: Absolute row of the first observation; None as ``settings.starts`` says.

        Raises:
            InputError: The symbol is unknown, or the row leaves no room for the window before or one bar after it.
        """
        for index in indices:
            draw_symbol, draw_row = self.rngs[index].random(2)  # always two: draw k is the same whatever was asked
            number = int(draw_symbol * len(self.data.symbols)) if symbol is None else self.data.number(symbol)
            self._begin(index, number, self._start_row(number, start_row, draw_row))

    def rewind(self, indices: Iterable[int]) -> None:
        """Put each of the environments ``indices`` back to the start of its episode, without a draw.

        The vector face needs it: an environment that begins a new episode sits out a step that the others take.
        """
        for index in indices:
            self._begin(index, int(self._symbol[index]), int(self._start[index]))

    def _begin(self, index: int, symbol: int, start: int) -> None:
        cash = self.settings.initial_cash
        last = int(self.data.offsets[symbol + 1]) - 1
        length = self.settings.episode_length
        begun = _UNBEGUN | {
            "row": start,
            "end": last if length is None else min(start + length, last),
            "cash": cash,
            "equity": cash,
            "trade_equity": cash,
            "ended": False,
            "_cell": index * self._capacity - start - 1,
        }
        for name, value in begun.items():
            if self._batched:
                getattr(self, name)[index] = value
            else:
                setattr(self, name, value)
        self._symbol[index], self._start[index] = symbol, start

    def _start_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last row, in ``data``, at which an episode of each symbol can start, int64 (S,) each."""
        data, window = self.data, self.settings.window
        first = data.offsets[:-1] + data.first_valid + window
        last = data.offsets[1:] - 2
        if (last < first).any():
            number = int(np.argmax(last < first))
            bars = int(data.offsets[number + 1] - data.offsets[number] - data.first_valid[number])
            raise SettingsError(
                f"setting 'window': expected at most {max(bars - 2, 0)} for the {bars} bars of"
                f" {data.symbols[number]!r}, got {window}; shorten the window or give more bars"
            )
        return first, last

    def _start_row(self, symbol: int, wanted: int | None, draw: float) -> int:
        first, last = int(self._first[symbol]), int(self._last[symbol])
        if wanted is not None:
            base = int(self.data.base_rows[symbol] - self.data.offsets[symbol])
            if not isinstance(wanted, (int, np.integer)) or not first + base <= wanted <= last + base:
                raise InputError(
                    f"start_row of {self.data.symbols[symbol]!r}: expected {first + base}..{last + base}"
                    f" (window of {self.settings.window} bars before, one bar after), got {wanted!r}"
                )
            return int(wanted) - base
        if self.settings.starts == "whole":
            return first
        # Leave room for a whole episode where the data has it.
        last = max(first, last + 1 - (self.settings.episode_length or 1))
        return first + int(draw * (last - first + 1))

    # -- steps ------------------------------------------------------------------------------------------------------

    def step(self, actions: Any) -> tuple[Value, Value, Value]:
        """Take one step in every environment.

        Args:
            actions: Index into ``settings.targets``: an int, or an integer array (B,).

        Returns:
            Rewards (log return of equity, unscaled), terminated, truncated; numbers or arrays (B,).

        Raises:
            ActionError: An action is not an integer within the targets.
            InputError: An environment's episode has ended, or none was begun.
        """
        ops, costs = self._ops, self._costs
        actions = self._checked(actions)
        if not self._room:
            self._make_room()
        self._room -= 1

        row = self.row + 1
        reference, mark = self._open[row], self._mark[row]
        weight = self._weights[actions]
        cash, position, before = self.cash, self.position, self.equity
        floor = RUIN_RATIO * before
        at_open = cash + position * reference
        solvent = at_open > floor
        ordered = (weight != self.held) & self._tradable[row] & solvent
        quantity = price = fee = 0.0
        if ops.any(ordered):
            fill = fill_target(ops, cash, position, weight, reference, costs)
            quantity = ops.where(ordered, fill.quantity, 0.0)
            price = ops.where(ordered, fill.price, 0.0)
            fee = ops.where(ordered, fill.fee, 0.0)
            cash = ops.where(ordered, fill.cash, cash)
            new = ops.where(ordered, fill.position, position)
            opened = (new != 0.0) & (position * new <= 0.0)
            self.trade_equity = ops.where(opened, at_open, self.trade_equity)
            self.trade_row = ops.where(opened, row, self.trade_row)
            self.held = ops.where(ordered, weight, self.held)
            self.position = position = new

        mark = ops.where(solvent, mark, reference)
        borrow = ops.where(solvent, borrow_cost(ops, position, mark, costs), 0.0)
        cash = cash - borrow
        equity = cash + position * mark
        terminated = ops.negate(solvent & (equity > floor))
        truncated = (row >= self.end) & ops.negate(terminated)
        rewards = ops.log(ops.maximum(equity / before, RUIN_RATIO))

        self.row, self.cash, self.equity = row, cash, equity
        self.terminated, self.ended = terminated, terminated | truncated
        cell = row + self._cell
        for column, value in zip(
            self._columns, (actions, quantity, price, fee, borrow, cash, position, equity, mark), strict=True
        ):
            column[cell] = value
        return rewards, terminated, truncated

    def observations(self, out: NDArray[np.float32]) -> None:
        """Write what is known at the close of the current bars into ``out``, float32 (size,) or (B, size)."""
        ops = self._ops
        window = self.settings.window
        out[..., :-POSITION_FEATURES] = self._windows[self.row - (window - 1)]
        in_trade = self.position != 0.0
        # Of a ruined account nothing but the sign of its position means anything: the clip takes care of the rest.
        exposure = self.position * self._mark[self.row] / ops.maximum(self.equity, 1e-9)
        gain = ops.where(in_trade, self.equity / self.trade_equity - 1.0, 0.0)
        bars = ops.where(in_trade, self.row - self.trade_row + 1, 0)
        out[..., -3] = ops.minimum(ops.maximum(exposure, -OBSERVATION_LIMIT), OBSERVATION_LIMIT)
        out[..., -2] = ops.minimum(ops.maximum(gain, -OBSERVATION_LIMIT), OBSERVATION_LIMIT)
        out[..., -1] = bars / (bars + window)

    def _checked(self, actions: Any) -> Any:
        count = len(self.settings.targets)
        if not self._batched:
            if self.ended:
                raise InputError("environment 0: expected a running episode, got an ended one; reset it before step")
            try:
                action = operator.index(actions)
            except TypeError:
                action = -1
            if not 0 <= action < count:
                raise _action_error(0, actions, count)
            return action
        array = np.asarray(actions)
        if array.shape != (self.num_envs,) or array.dtype.kind not in "iu":
            raise ActionError(
                f"actions: expected {self.num_envs} integers, one per environment, got shape {array.shape} of"
                f" {array.dtype}; pass an integer array"
            )
        bad = (array < 0) | (array >= count)
        if bad.any():
            index = int(np.argmax(bad))
            raise _action_error(index, array[index], count)
        if self.ended.any():
            index = int(np.argmax(self.ended))
            raise InputError(f"environment {index}: expected a running episode, got an ended one; reset it before step")
        return array

    # -- the ledger -------------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        """Make the views that the step reads and writes: memoryviews give Python numbers, at a fraction of the cost."""
        data = self.data
        view: Any = np.asarray if self._batched else memoryview
        self._open, self._mark, self._tradable = view(data.open), view(data.mark), view(data.tradable)
        self._columns = [view(column.reshape(-1)) for column in self._ledger.values()]
        size = self._features.shape[1]
        flat = self._features.reshape(-1)
        self._windows = np.lib.stride_tricks.sliding_window_view(flat, self.settings.window * size)[::size]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the views: they can neither be copied nor pickled, and are made again."""
        return {key: value for key, value in self.__dict__.items() if key not in _VIEWS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()

    def _make_room(self) -> None:
        """Count the steps that every environment can still write down; double the ledger when one has none left."""
        used = int(np.max(self.row - self._start))
        if used == self._capacity:
            self._ledger = {name: np.hstack([old, np.zeros_like(old)]) for name, old in self._ledger.items()}
            self._capacity *= 2
            cells = np.arange(self.num_envs) * self._capacity - self._start - 1
            self._cell = cells if self._batched else int(cells[0])
            self._bind()
        self._room = self._capacity - used

    def beginning(self, index: int) -> tuple[str, int]:
        """Return symbol and absolute start row of the episode of environment ``index``."""
        symbol = int(self._symbol[index])
        base = self.data.base_rows[symbol] - self.data.offsets[symbol]
        return self.data.symbols[symbol], int(self._start[index] + base)

    def reason(self, index: int) -> Reason:
        """Say why the episode of environment ``index`` ended, or that it is running."""
        if _of(self.terminated, index):
            return "ruin"
        row = _of(self.row, index)
        if row < _of(self.end, index):
            return "running"
        return "length" if row - int(self._start[index]) == self.settings.episode_length else "end_of_data"

    def episode_record(self, index: int, env_seed: str | None = None) -> EpisodeRecord:
        """Tell the current episode of environment ``index``, or its last one until it is reset.

        Args:
            index: Number of the environment.
            env_seed: What drew the start, to be kept in the record.

        Raises:
            InputError: No episode was begun.
        """
        if not self._start[index]:
            raise InputError(f"environment {index}: expected an episode, got none; reset it first")
        symbol, start = int(self._symbol[index]), int(self._start[index])
        steps = _of(self.row, index) - start
        ledger = Ledger(**{name: column[index, :steps].copy() for name, column in self._ledger.items()})
        return build_record(
            self.data, self.settings, ledger, symbol=symbol, start=start, reason=self.reason(index), env_seed=env_seed
        )


def _action_error(index: int, action: Any, count: int) -> ActionError:
    return ActionError(f"environment {index}: expected an action 0..{count - 1}, got {action!r}; use the action space")


def _of(value: Value, index: int) -> int:
    """Take one environment's number out of the state."""
    return int(np.atleast_1d(value)[index])
