"""Replay buffers of DQN and SAC as preallocated arrays: a transition is a bar row and account features, not a window.

``FastDQN`` and ``FastSAC`` make them in place of RLlib's EpisodeReplayBuffer and PrioritizedEpisodeReplayBuffer. They
take what ``BatchedEnvRunner`` brings (``Rollout``) and give index arrays (``Transitions``) that a lean learner gathers
windows for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.utils.replay_buffers.base import ReplayBufferInterface

from schemas.errors import InputError
from trainer.priority_tree import PriorityTree
from trainer.rollout import FullObservations, IndexedObservations, Observations, Rollout
from trainer.transitions import Transitions

_NO_SLOT = -1


class RingBuffer(ReplayBufferInterface):
    """The last ``capacity`` transitions; each is drawn with the same probability.

    An n-step transition is put together when it is drawn: it ends after n steps, or where its episode ends, or at the
    newest step that has come of a running episode, whichever is first, and ``n_step`` says how many steps it spans.
    So it never crosses the end of an episode, and always crosses from one rollout of a runner to its next. RLlib's
    EpisodeReplayBuffer bootstraps its shortened transitions with γ^n all the same, and its prioritised one never
    draws them, whereby the last n - 1 steps of an episode are never learned from as starts.

    Args:
        capacity: Transitions to keep.
    """

    def __init__(self, capacity: int = 50_000) -> None:
        super().__init__()
        if not 0 < capacity < 2**31:
            raise InputError(f"replay buffer: expected a capacity from 1 to 2^31 - 1 transitions, got {capacity}")
        self.capacity = capacity
        self.rng = np.random.default_rng()
        self._columns: dict[str, NDArray[Any]] = {}
        self._following = np.full(capacity, _NO_SLOT, dtype=np.int32)  # slot of the episode's next step
        self._size = 0
        self._position = 0
        self._windows: list[str] = []  # all that rollouts have named, in that order
        self._symbols: tuple[str, ...] = ()  # that the column of symbols counts
        # By a runner's life: number of its next step, and slots (B,) of its newest steps whose episodes go on.
        self._heads: dict[str, tuple[int, NDArray[np.int64]]] = {}
        self._first_rows: dict[str, int] = {}

    def __len__(self) -> int:
        return self._size

    @property
    def window_id(self) -> str | None:
        """The newest window that a rollout has named; a late one of an older window does not count."""
        return self._windows[-1] if self._windows else None

    @property
    def nbytes(self) -> int:
        """Size of all arrays, in bytes."""
        return self._following.nbytes + sum(column.nbytes for column in self._columns.values())

    # -- adding -----------------------------------------------------------------------------------------------------

    def add(self, batch: Sequence[Rollout], **kwargs: Any) -> None:
        """Add rollouts; the oldest transitions give way. A runner's rollouts have to come in their order."""
        for rollout in batch:
            self._add(rollout)

    def _add(self, rollout: Rollout) -> None:
        steps, envs = rollout.rewards.shape
        kept = slice(max(0, steps - self.capacity // envs), steps)
        if kept.start == steps:
            raise InputError(
                f"replay buffer: expected a capacity of at least one step of {envs} environments, got {self.capacity}"
            )
        taken = np.ones((steps, envs), dtype=bool) if rollout.valid is None else rollout.valid
        taken = taken[kept]
        count = int(np.count_nonzero(taken))
        slots = (self._position + np.arange(count)) % self.capacity
        grid = np.full(taken.shape, _NO_SLOT, dtype=np.int64)
        grid[taken] = slots
        goes_on = ~(rollout.terminateds | rollout.truncateds)[kept] & taken
        following = np.full(taken.shape, _NO_SLOT, dtype=np.int32)
        following[:-1] = np.where(goes_on[:-1], grid[1:], _NO_SLOT)

        self._drop_heads(count)
        next_step, heads = self._heads.get(rollout.source, (_NO_SLOT, grid[0]))
        if next_step == rollout.first_step and kept.start == 0:
            self._following[heads[heads != _NO_SLOT]] = grid[0][heads != _NO_SLOT]
        self._heads[rollout.source] = (rollout.first_step + steps, np.where(goes_on[-1], grid[-1], _NO_SLOT))

        self._following[slots] = following[taken]
        columns = self._columns_of(rollout)
        if not self._columns:
            self._columns = {
                name: np.empty((self.capacity, *column.shape[2:]), column.dtype) for name, column in columns.items()
            }
        for name, column in columns.items():
            self._columns[name][slots] = column[kept][taken]
        self._position = int((self._position + count) % self.capacity)
        self._size = min(self._size + count, self.capacity)
        self._entered(slots)
        if self._gone(slots).any():
            self._keep(~self._gone(self._by_age()))

    def _columns_of(self, rollout: Rollout) -> dict[str, NDArray[Any]]:
        """Columns (T, B, …) of a rollout's transitions; an episode has one symbol."""
        # Of one type, which is that of all rollouts of a runner.
        seen: Any = rollout.observations.at(slice(0, -1))
        following: Any = rollout.next_observations()
        own = {"actions": rollout.actions, "rewards": rollout.rewards, "terminated": rollout.terminateds}
        if isinstance(seen, FullObservations):
            return {**own, "values": seen.values, "next_values": following.values}
        if seen.window_id not in self._windows:
            self._windows.append(seen.window_id)
        if seen.symbol_names != self._symbols:
            self._symbols += tuple(name for name in seen.symbol_names if name not in self._symbols)
            numbers = np.array([self._symbols.index(name) for name in seen.symbol_names], dtype=np.int16)
            symbols = numbers[seen.symbols]
        else:
            symbols = seen.symbols
        return {
            **own,
            "symbols": symbols,
            "rows": seen.rows,
            "next_rows": following.rows,
            "accounts": seen.accounts,
            "next_accounts": following.accounts,
        }

    def _entered(self, slots: NDArray[np.int64]) -> None:
        """Called with the slots of new transitions."""

    def _drop_heads(self, count: int) -> None:
        """Forget newest steps that the next ``count`` transitions overwrite."""
        for _, heads in self._heads.values():
            heads[(heads - self._position) % self.capacity < count] = _NO_SLOT

    # -- sampling ---------------------------------------------------------------------------------------------------

    def sample(
        self,
        num_items: int | None = None,
        *,
        n_step: int | tuple[int, int] = 1,
        gamma: float = 0.99,
        beta: float | None = None,
        **kwargs: Any,
    ) -> list[Transitions]:
        """Draw transitions, with replacement.

        Args:
            num_items: How many.
            n_step: Steps of each; a range (low, high) draws them from low to high - 1, as RLlib does.
            gamma: Discount within the transition.
            beta: Exponent of the importance weights, which only prioritised buffers have; None is 0.
            **kwargs: RLlib's other arguments, for sequences.

        Returns:
            A list of one: RLlib's learners take lists of episodes.

        Raises:
            InputError: The buffer is empty.
        """
        if not self._size:
            raise InputError("replay buffer: expected transitions to draw from, got none: add rollouts first")
        count = num_items or 1
        slots, weights = self._draw(count, beta or 0.0)
        low, high = n_step if isinstance(n_step, (tuple, list)) else (n_step, n_step + 1)
        wanted = self.rng.integers(low, high, count) if high - low > 1 else np.full(count, low)
        last, rewards, spanned = self._walk(slots, wanted, int(high) - 1, gamma)
        return [
            Transitions(
                self._observations("", slots),
                self._observations("next_", last),
                self._columns["actions"][slots],
                rewards,
                self._columns["terminated"][last],
                spanned,
                weights,
                slots,
            )
        ]

    def _observations(self, prefix: str, slots: NDArray[np.int64]) -> Observations:
        if "values" in self._columns:
            return FullObservations(self._columns[f"{prefix}values"][slots])
        return IndexedObservations(
            self._windows[-1],
            self._symbols,
            self._columns[f"{prefix}rows"][slots],
            self._columns["symbols"][slots],
            self._columns[f"{prefix}accounts"][slots],
        )

    def _draw(self, count: int, beta: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return self.rng.integers(0, self._size, count), np.ones(count, dtype=np.float32)

    def _walk(
        self, slots: NDArray[np.int64], wanted: NDArray[np.int64], most: int, gamma: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """Follow each episode for the wanted steps: last slot, discounted reward, steps really gone."""
        last = slots
        rewards = self._columns["rewards"][slots].astype(np.float64)
        spanned = np.ones(len(slots), dtype=np.float32)
        for step in range(1, most):
            following = self._following[last]
            goes = (following != _NO_SLOT) & (step < wanted)
            last = np.where(goes, following, last)
            rewards += np.where(goes, gamma**step * self._columns["rewards"][last], 0.0)
            spanned += goes
        return last, rewards.astype(np.float32), spanned

    def update_priorities(self, slots: NDArray[np.int64], td_errors: NDArray[np.float32]) -> None:
        """Tell the buffer how wrong the values of drawn transitions were; uniform buffers do not mind."""

    # -- the window moves ---------------------------------------------------------------------------------------------

    def forget_before(self, first_rows: Mapping[str, int]) -> int:
        """Drop the transitions that need a bar which has left the window, now and when they are added later.

        Args:
            first_rows: By symbol, place of the first observation that the window can give. Symbols that are not named
                have left the window.

        Returns:
            How many were dropped.
        """
        self._first_rows = dict(first_rows)
        before = self._size
        gone = self._gone(self._by_age())
        if gone.any():
            self._keep(~gone)
        return before - self._size

    def _gone(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the slots hold a transition that the window cannot give."""
        if not self._first_rows or "rows" not in self._columns:
            return np.zeros(len(slots), dtype=bool)
        highest = np.iinfo(np.int64).max
        first = np.array([self._first_rows.get(name, highest) for name in self._symbols])
        gone: NDArray[np.bool_] = self._columns["rows"][slots] < first[self._columns["symbols"][slots]]
        return gone

    def _by_age(self) -> NDArray[np.int64]:
        """All slots in use, the oldest first."""
        start = self._position if self._size == self.capacity else 0
        return (start + np.arange(self._size)) % self.capacity

    def _keep(self, mask: NDArray[np.bool_]) -> None:
        """Keep the transitions (by age) of a mask, and close the gaps."""
        kept = self._by_age()[mask]
        moved = np.full(self.capacity + 1, _NO_SLOT, dtype=np.int32)  # one more: for -1, which stays -1
        moved[kept] = np.arange(len(kept))
        self._following[: len(kept)] = moved[self._following[kept]]
        for column in self._columns.values():
            column[: len(kept)] = column[kept]
        self._heads = {source: (step, moved[heads].astype(np.int64)) for source, (step, heads) in self._heads.items()}
        self._size = len(kept)
        self._position = self._size % self.capacity
        self._moved(kept)

    def _moved(self, kept: NDArray[np.int64]) -> None:
        """Called when the transitions at the old slots ``kept`` have moved to 0, 1, 2, …."""

    # -- state ------------------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Everything, for a checkpoint. Moves the transitions within the buffer."""
        self._keep(np.ones(self._size, dtype=bool))
        return {
            "columns": {name: column[: self._size].copy() for name, column in self._columns.items()},
            "following": self._following[: self._size].copy(),
            "heads": {source: (step, heads.copy()) for source, (step, heads) in self._heads.items()},
            "first_rows": dict(self._first_rows),
            "windows": list(self._windows),
            "symbols": self._symbols,
            "rng": self.rng.bit_generator.state,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over a state.

        Raises:
            InputError: It holds more transitions than fit.
        """
        size = len(state["following"])
        if size > self.capacity:
            raise InputError(
                f"replay buffer: expected a state of at most {self.capacity} transitions, got {size}; raise capacity"
            )
        self._columns = {}
        for name, column in state["columns"].items():
            self._columns[name] = np.empty((self.capacity, *column.shape[1:]), column.dtype)
            self._columns[name][:size] = column
        self._following[:size] = state["following"]
        self._heads = {source: (step, heads.copy()) for source, (step, heads) in state["heads"].items()}
        self._first_rows, self._windows = dict(state["first_rows"]), list(state["windows"])
        self._symbols = tuple(state["symbols"])
        self.rng.bit_generator.state = state["rng"]
        self._size, self._position = size, size % self.capacity


class PrioritizedRingBuffer(RingBuffer):
    """Draws transitions in proportion to |TD error|^α, with importance weights, as RLlib's prioritised buffer does.

    Source: Schaul et al. 2016, https://arxiv.org/abs/1511.05952, proportional variant.

    Args:
        capacity: Transitions to keep.
        alpha: Amount of prioritisation: 0 none, 1 full.
    """

    def __init__(self, capacity: int = 50_000, alpha: float = 0.6) -> None:
        super().__init__(capacity)
        if alpha < 0:
            raise InputError(f"prioritised replay buffer: expected alpha ≥ 0, got {alpha}")
        self.alpha = alpha
        self._tree = PriorityTree(capacity)
        self._highest = 1.0

    @property
    def nbytes(self) -> int:
        """Size of all arrays, in bytes."""
        return super().nbytes + self._tree.nbytes

    def update_priorities(self, slots: NDArray[np.int64], td_errors: NDArray[np.float32]) -> None:
        """Set the priorities of drawn transitions (n,) to their absolute TD errors (n,).

        To be called before anything is added, forgotten or saved: these move transitions to other slots.
        """
        errors = np.maximum(np.abs(td_errors), 1e-12).astype(np.float64)
        self._tree[slots] = errors**self.alpha
        self._highest = max(self._highest, float(errors.max()))

    def _draw(self, count: int, beta: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        slots = self._tree.draw(self.rng.random(count))
        # (N · p / total)^-β over the highest of them: N and the total cancel.
        return slots, ((self._tree[slots] / self._tree.least) ** -beta).astype(np.float32)

    def _entered(self, slots: NDArray[np.int64]) -> None:
        self._tree[slots] = self._highest**self.alpha

    def _moved(self, kept: NDArray[np.int64]) -> None:
        priorities = self._tree[kept]
        self._tree = PriorityTree(self.capacity)
        self._tree[np.arange(len(kept))] = priorities

    def get_state(self) -> dict[str, Any]:
        """As of RingBuffer, with the priorities."""
        state = super().get_state()
        return state | {"priorities": self._tree[np.arange(self._size)], "highest": self._highest}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """As of RingBuffer."""
        super().set_state(state)
        self._tree = PriorityTree(self.capacity)
        self._tree[np.arange(self._size)] = state["priorities"]
        self._highest = state["highest"]
