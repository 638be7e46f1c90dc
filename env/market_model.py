"""The market model: accounts that trade on bars, B of them or one, all by the same compiled step."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from env import kernel
from env.actions import Choices, action_reader
from env.episode_record import EpisodeRecord, build_record
from env.episode_tape import EpisodeTape, Told, build_tape
from env.market_data import MarketData
from env.memory import Memory
from env.observation import observation_size, part_codes
from env.rewards import RewardInput, reward_of
from env.rules import rules_of, target_table
from env.scaler import Scaler
from env.settings import EnvSettings
from env.starts import Reason, Starts
from env.state import FRAME
from schemas.errors import InputError

Observations = NDArray[np.float32]


Step = tuple[Observations, Any, Any, Any]
"""What a step returns: new observations float32 (B, size), rewards float64 (B,) times ``reward_scale``, terminated and
truncated bool (B,); for one environment an array (size,) and plain numbers."""

_FLOAT32 = np.dtype(np.float32)


class MarketModel:
    """Accounts that trade on bars: decide at the close of bar t, fill at the open of t + 1, mark at its close.

    The rules are those of docs/env.md; ``env.kernel`` has them. ``num_envs=None`` is one environment without a batch
    axis.

    Args:
        data: The bars.
        settings: Episode, execution, costs, observations, reward.
        scaler: Applied to the features; None leaves them as they are.
        num_envs: B, or None.
        rngs: One generator per environment, which draws the starts. Each reset takes exactly two numbers from it.

    Raises:
        SettingsError: The window does not fit into the bars of a symbol, or there is no such reward.
    """

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
        self._single, self._cash = num_envs is None, settings.initial_cash
        self._bars = data.on_common_clock() if settings.portfolio else data
        symbols = len(data.symbols) if settings.portfolio else None
        self._symbols = symbols or 1
        self._starts = Starts(data, settings, count)
        self._actions = action_reader(settings, num_envs, symbols)
        self._choice = self._actions if isinstance(self._actions, Choices) and symbols is None else None
        _, self._reward = reward_of(settings)
        self._features = self._bars.scaled(scaler, kernel.OBSERVATION_LIMIT)
        self._columns = self._features.shape[1]
        self.observation_size = observation_size(settings, self._columns, self._symbols)
        """Length of one observation: window × features + position features."""
        self._memory = Memory(count, self._symbols, self._actions.numbers.shape[1], settings, self._starts.longest)
        self._bind()

    # -- what the compiled step works on ----------------------------------------------------------------------------

    def _bind(self) -> None:
        """Make the frame: settings, sizes, and the addresses of arrays, all of which this object holds."""
        bars, actions, memory = self._bars, self._actions, self._memory
        arrays = {
            **{name: getattr(bars, name) for name in ("open", "high", "low", "volume", "funding", "tradable")},
            "close": bars.mark,
            "features": self._features,
            "targets": target_table(self.settings),
            "given": actions.numbers,
            "low_bound": actions.low,
            "high_bound": actions.high,
            "part_codes": part_codes(self.settings),
            **memory.arrays(),
        }
        self._arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # most are that already
        frame = np.zeros(1, dtype=FRAME)
        frame["rules"] = rules_of(self.settings)
        for name, value in {
            "envs": self.num_envs,
            "symbols": self._symbols,
            "size": actions.numbers.shape[1],
            "window": self.settings.window,
            "columns": self._columns,
            "rows": len(self._features),
            "parts": len(self.settings.position_features),
            "choices": len(self._arrays["targets"]),
            "stride": bars.open.shape[-1],
            "steps_room": memory.steps.shape[1],
            "fills_room": memory.fills.shape[1],
            "held_room": memory.held.size,
            **{name: array.__array_interface__["data"][0] for name, array in self._arrays.items()},
        }.items():
            frame[name] = value
        self._frame, self._address = frame, int(frame.ctypes.data)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the addresses: they are made again."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_frame", "_address", "_arrays")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()

    # -- episodes ---------------------------------------------------------------------------------------------------

    def reset(
        self, indices: Iterable[int], symbol: str | None = None, start_row: int | None = None, *, waits: bool = False
    ) -> None:
        """Begin a new episode in each of the environments ``indices``.

        Args:
            indices: Numbers of environments.
            symbol: Name to trade; None draws one, uniformly. Not in a portfolio.
            start_row: Absolute row of the first observation; None as ``settings.starts`` says.
            waits: They sit out the next step, whatever actions it has for them.

        Raises:
            InputError: The symbol is unknown, or the row leaves no room for the window before or one bar after it.
        """
        accounts = self._memory.accounts
        for index in indices:
            start = self._starts.begin(index, self.rngs[index], symbol, start_row, int(accounts["row"][index]))
            kernel.begin(self._address, index, start.row, start.end, self._cash, waits)

    # -- steps ------------------------------------------------------------------------------------------------------

    def step(self, actions: Any) -> Step:
        """Take one step in every environment that does not wait; those get reward 0 and neither flag.

        Args:
            actions: As the action space of the settings has them, with a leading axis B for a batch.

        Raises:
            ActionError: An action is outside of the action space. No environment has taken the step then.
            InputError: An environment's episode has ended, or none was begun.
        """
        if self._single:
            return self._step_one(actions)
        self._actions.read(actions)
        count = self.num_envs
        observations, rewards = np.empty((count, self.observation_size), np.float32), np.empty(count)
        terminated, truncated = np.empty(count, np.bool_), np.empty(count, np.bool_)
        outcome = kernel.step_all(self._address, observations, rewards, terminated, truncated)
        if outcome < 0:
            self._refused(outcome)
            return self.step(actions)
        if self._reward is not None:
            rewards = self._rewarded(self._reward)
        return observations, rewards, terminated, truncated

    def _step_one(self, action: Any) -> Step:
        observation = np.empty(self.observation_size, _FLOAT32)
        if self._choice is not None:
            try:
                outcome, reward = kernel.step_choice(self._address, operator.index(action), observation)
            except (TypeError, OverflowError):
                raise self._choice.refused(0, action) from None
        else:
            self._actions.read(action)
            outcome, reward = kernel.step_one(self._address, observation)
        if outcome < 0:
            self._refused(outcome)
            return self._step_one(action)
        if self._reward is not None:
            reward = float(self._rewarded(self._reward)[0])
        if outcome == 0:
            return observation, reward, False, False
        return observation, reward, outcome == 1, outcome == 2

    def _refused(self, outcome: int) -> None:
        """Make room, or raise what is wrong with the step."""
        index, reason = divmod(-1 - outcome, 3)
        if reason == kernel.NO_ROOM:
            self._memory.grow(index)
            self._bind()
            return
        if reason == kernel.HAS_ENDED:
            raise InputError(f"environment {index}: expected a running episode, got an ended one; reset it before step")
        raise self._actions.refused(index)

    def _rewarded(self, function: Any) -> NDArray[np.float64]:
        """Pay what a function of the user's says, and write it down."""
        accounts, symbols = self._memory.accounts, self._symbols
        stepped = accounts["row"] > accounts["start"]  # the others waited
        position = self._memory.holdings["position"].copy()
        row = accounts["row"].copy()
        bars = row[:, np.newaxis] + np.arange(symbols) * self._bars.mark.shape[-1]
        price = self._bars.mark.reshape(-1)[bars]
        if not self.settings.portfolio:
            position, price = position[:, 0], price[:, 0]
        step = np.maximum(row - accounts["start"] - 1, 0)
        names = ("equity_before", "equity", "highest_before", "cash")
        before, equity, peak, cash = (accounts[name].copy() for name in names)
        rewards: NDArray[np.float64] = np.array(
            function(RewardInput(before, equity, peak, cash, position, price, row + self._starts.bases, step))
        )
        rewards[~stepped] = 0.0
        at = np.flatnonzero(stepped)
        accounts["reward"] = rewards
        accounts["total_reward"] += rewards
        self._memory.steps["reward"][at, step[at]] = rewards[at]
        return rewards * self.settings.reward_scale

    # -- what is known ----------------------------------------------------------------------------------------------

    def observations(self) -> Observations:
        """Return what is known at the close of the current bars: new float32 (size,), or (B, size)."""
        observations = np.empty((self.num_envs, self.observation_size), np.float32)
        kernel.observe_all(self._address, observations)
        return observations[0] if self._single else observations

    @property
    def row(self) -> NDArray[np.int64]:
        """Where each environment is, as rows of the arrays of the bars, new int64 (B,)."""
        rows: NDArray[np.int64] = self._memory.accounts["row"].copy()
        return rows

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Whether the episode of each environment has ended, or none was begun, new bool (B,)."""
        ended: NDArray[np.bool_] = self._memory.accounts["ended"].copy()
        return ended

    def positions(self, index: int) -> NDArray[np.float64]:
        """Return the signed units that environment ``index`` holds, new float64 (S,)."""
        units: NDArray[np.float64] = self._memory.holdings["position"][index].copy()
        return units

    def value(self, index: int) -> float:
        """Return the equity of environment ``index``."""
        return float(self._memory.accounts["equity"][index])

    def beginning(self, index: int) -> tuple[str, int]:
        """Return symbol (or "portfolio") and absolute start row of the episode of environment ``index``."""
        return self._starts.name(index), self._starts[index].row + self._starts.base(index)

    def reason(self, index: int) -> Reason:
        """Say why the episode of environment ``index`` ended, or that it is running."""
        account = self._memory.accounts[index]
        return "ruin" if account["terminated"] else self._starts.reason(index, int(account["row"]))

    def episode_record(self, index: int, env_seed: str | None = None) -> EpisodeRecord:
        """Tell the current episode of environment ``index``, or its last one until it is reset.

        Args:
            index: Number of the environment.
            env_seed: What drew the start, to be kept in the record.

        Raises:
            InputError: No episode was begun.
        """
        return build_record(self.episode_tape(index, env_seed))

    def episode_tape(self, index: int, env_seed: str | None = None) -> EpisodeTape:
        """Return what ``episode_record`` is made of; arguments and errors as there."""
        symbol = self._starts[index].symbol
        told = Told(
            symbol=self._starts.name(index),
            symbols=self.data.symbols if self.settings.portfolio else (self.data.symbols[symbol],),
            base=self._starts.base(index),
            reason=self.reason(index),
            env_seed=env_seed,
            portfolio=self.settings.portfolio,
            bars_per_year=self.settings.bars_per_year or self._bars.bars_per_year,
            initial_cash=self.settings.initial_cash,
            labels=self._actions.labels,
            vector=self._actions.vector,
        )
        return build_tape(self._bars, self._memory.read(index), told)
