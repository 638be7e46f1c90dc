"""What one ``sample()`` of a batched runner brings for lean learners and buffers: whole arrays, time-major.

A learner class that reads these instead of RLlib's episodes says so by a class attribute ``reads_rollouts = True``;
so do callbacks whose episode hooks are content with an ``EpisodeSummary``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO


@dataclass(frozen=True, eq=False)
class FullObservations:
    """Observations as they are.

    Attributes:
        values: Of the space's dtype, (…, *observation).
    """

    values: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Leading axes are the caller's: the whole shape is told here, the observation's own axes last."""
        return self.values.shape

    def at(self, index: Any) -> Self:
        """The observations at an index into the leading axes: a view where numpy gives one."""
        return type(self)(self.values[index])

    def replaced(self, index: Any, other: Self) -> Self:
        """A copy in which those at ``index`` are the ``other`` ones."""
        values = self.values.copy()
        values[index] = other.values
        return type(self)(values)


@dataclass(frozen=True, eq=False)
class IndexedObservations:
    """Observations as places in a window: an ``ObservationSource`` of that window makes them whole.

    Places stay valid when the window moves, as long as it holds them (``trainer.places``).

    Attributes:
        window_id: Window that they were seen in.
        symbol_names: Names that ``symbols`` counts: those of that window, in its order.
        rows: Place of the newest bar: its absolute row, of a portfolio its time; int64 (…).
        symbols: Index into ``symbol_names``, int16 (…).
        accounts: The features that are the account's and not the market's, float32 (…, P).
    """

    window_id: str
    symbol_names: tuple[str, ...]
    rows: NDArray[np.int64]
    symbols: NDArray[np.int16]
    accounts: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        """The leading axes alone."""
        return self.rows.shape

    def at(self, index: Any) -> Self:
        """The observations at an index into the leading axes: views where numpy gives them."""
        columns = (self.rows[index], self.symbols[index], self.accounts[index])
        return type(self)(self.window_id, self.symbol_names, *columns)

    def replaced(self, index: Any, other: Self) -> Self:
        """A copy in which those at ``index`` are the ``other`` ones, of the same window."""
        rows, symbols, accounts = self.rows.copy(), self.symbols.copy(), self.accounts.copy()
        rows[index], symbols[index], accounts[index] = other.rows, other.symbols, other.accounts
        return type(self)(self.window_id, self.symbol_names, rows, symbols, accounts)


Observations: TypeAlias = FullObservations | IndexedObservations


@dataclass(frozen=True, eq=False)
class Finals:
    """The last observations of the episodes that ended, K of them, in the order of their steps.

    Attributes:
        steps: Step t after which the episode ended, int64 (K,).
        envs: Its environment b, int64 (K,).
        observations: What was seen then, (K, …). Row t + 1 of the rollout already is the next episode's first.
    """

    steps: NDArray[np.int64]
    envs: NDArray[np.int64]
    observations: Observations

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True, eq=False)
class Rollout:
    """T steps of the B environments of one runner. Plain arrays: cheap to pickle, and to be read only.

    Attributes:
        source: The runner's life: another one after a restart.
        first_step: Number of the first row in that life. The rollout goes on where another one of the same source
            ended if that one's ``first_step`` + T is this one's; else steps between them are lost.
        observations: (T + 1, B, …). Row t is what action t was chosen on.
        actions: As the module chose them, before any scaling to the space: (T, B, …).
        rewards: As the learner sees them, float32 (T, B).
        terminateds: bool (T, B).
        truncateds: bool (T, B).
        finals: Last observations of the episodes that ended.
        extras: The module's other outputs, such as action_logp and action_dist_inputs, float32 (T, B, …). Empty where
            actions were random.
        weights_seq_no: Version of the weights that acted.
        valid: None: all rows are steps. Else bool (T, B), False where a vector environment that resets in a step of
            its own took no action: what stands there is no transition. Our own environment has no such rows.
    """

    source: str
    first_step: int
    observations: Observations
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    terminateds: NDArray[np.bool_]
    truncateds: NDArray[np.bool_]
    finals: Finals
    extras: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    weights_seq_no: int = 0
    valid: NDArray[np.bool_] | None = None

    @property
    def id_(self) -> str:
        """RLlib's plumbing names what it carries."""
        return f"{self.source}.{self.first_step}"

    def __len__(self) -> int:
        """Environment steps."""
        return int(self.rewards.size if self.valid is None else np.count_nonzero(self.valid))

    def env_steps(self) -> int:
        """The same, by the name that RLlib's plumbing asks for."""
        return len(self)

    def agent_steps(self) -> int:
        """The same: there is one agent."""
        return len(self)

    def next_observations(self) -> Observations:
        """What each step led to, (T, B, …): the final observation where its episode ended."""
        following: Any = self.observations.at(slice(1, None))
        if not len(self.finals):
            return following  # type: ignore[no-any-return]
        return following.replaced((self.finals.steps, self.finals.envs), self.finals.observations)  # type: ignore[no-any-return]

    def shards(self, count: int) -> list[Self]:
        """The environments dealt out to ``count`` learners: rollouts of about B / count of them each."""
        borders = np.linspace(0, self.rewards.shape[1], count + 1).astype(int)
        return [self._of_envs(first, last) for first, last in pairwise(borders.tolist())]

    def _of_envs(self, first: int, last: int) -> Self:
        part: Any = (slice(None), slice(first, last))
        finals, inside = self.finals, (self.finals.envs >= first) & (self.finals.envs < last)
        return type(self)(
            source=f"{self.source}.{first}",
            first_step=self.first_step,
            observations=self.observations.at(part),
            actions=self.actions[part],
            rewards=self.rewards[part],
            terminateds=self.terminateds[part],
            truncateds=self.truncateds[part],
            finals=Finals(finals.steps[inside], finals.envs[inside] - first, finals.observations.at(inside)),
            extras={name: values[part] for name, values in self.extras.items()},
            weights_seq_no=self.weights_seq_no,
            valid=None if self.valid is None else self.valid[part],
        )


class Stretch(NamedTuple):
    """Steps of an episode, as views of what a runner has written down."""

    actions: NDArray[Any]
    """(l, …)."""
    rewards: NDArray[np.floating[Any]]
    """(l,)."""
    versions: NDArray[np.int64] | int
    """``weights_seq_no`` that decided each, (l,), or all of them."""


class EpisodeSummary:
    """An episode from its start, for callbacks: what a ``SingleAgentEpisode`` tells, without its observations.

    Its arrays are made when they are asked for: many callbacks ask for none of them.

    Args:
        id_: Name of the episode.
        length: Steps; 0 while it runs.
        stretches: Gives them all in order, one entry each, rewards as the learner sees them.
        terminated: Whether it ended by termination.
        truncated: Whether it was truncated.
    """

    def __init__(
        self,
        id_: str,
        length: int = 0,
        stretches: Callable[[], Sequence[Stretch]] = tuple,
        terminated: bool = False,
        truncated: bool = False,
    ) -> None:
        self.id_ = id_
        self._length, self._made = length, stretches
        self.is_terminated, self.is_truncated = terminated, truncated
        self.infos: dict[str, Any] = {}
        """What the reset told; of a running episode only."""

    @cached_property
    def _stretches(self) -> Sequence[Stretch]:
        return self._made()

    @cached_property
    def extra_model_outputs(self) -> dict[str, NDArray[np.int64]]:
        """Outputs of the module, one entry a step: the policy versions alone."""
        none = np.zeros(0, dtype=np.int64)
        versions = [np.broadcast_to(one.versions, len(one.rewards)) for one in self._stretches]
        return {WEIGHTS_SEQ_NO: np.concatenate([none, *versions])}

    def __len__(self) -> int:
        return self._length

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return self.is_terminated or self.is_truncated

    def get_actions(self) -> NDArray[Any]:
        """Actions, (L, …)."""
        return np.concatenate([one.actions for one in self._stretches]) if self._stretches else np.zeros(0)

    def get_return(self) -> float:
        """Sum of the rewards."""
        return float(sum(np.sum(one.rewards, dtype=np.float64) for one in self._stretches))

    def get_infos(self, index: int) -> dict[str, Any]:
        """The info at a step: only the reset's is kept, index 0.

        Raises:
            IndexError: Another one is asked for.
        """
        if index != 0:
            raise IndexError(f"episode {self.id_}: expected index 0, the info of its reset, got {index}")
        return self.infos

    def get_extra_model_outputs(self, key: str) -> NDArray[Any]:
        """One output of the module a step; only policy versions are kept."""
        return self.extra_model_outputs[key]
