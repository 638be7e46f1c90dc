"""What happens in the steps of one ``sample()``, written down as whole arrays, time-major."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from trainer.actor import Acted, Path
from trainer.rollout import Finals, FullObservations, Observations, Rollout, Stretch

_REWARD_SPACE = gym.spaces.Box(-np.inf, np.inf, (), np.float32)


class Recorder:
    """Columns of T steps of B environments, behind the last steps of the ``sample()`` before.

    Row 0 of this ``sample()`` is row ``lookback`` of the arrays: what stands before it is for RLlib's episodes, which
    can look back over where they were cut.

    Args:
        env: The vector environment.
        indexed: Write down where observations are, not what they are; the environment must be able to say.
        lookback: Steps to keep of the ``sample()`` before.
    """

    def __init__(self, env: Any, *, indexed: bool, lookback: int) -> None:
        self._env, self._indexed, self._lookback = env, indexed, lookback
        self._columns: dict[str, NDArray[Any]] = {}
        self._extras: dict[Path, NDArray[Any]] = {}
        self._tails: tuple[Mapping[Any, NDArray[Any]], Mapping[Any, NDArray[Any]]] = ({}, {})
        self._finals: list[tuple[int, NDArray[np.int64], dict[str, NDArray[Any]]]] = []
        self._capacity = 0
        self.steps = 0
        """T so far."""

    # -- writing ------------------------------------------------------------------------------------------------------

    def begin(self, observations: NDArray[Any], infos: list[dict[str, Any]] | None, capacity: int) -> None:
        """A ``sample()`` begins.

        Args:
            observations: The first ones, (B, …).
            infos: With them, one an environment; None where the environment has none.
            capacity: Steps that it will take, about.
        """
        # Copied: the arrays belong to what was made of them.
        kept = slice(self.steps, self.steps + self._lookback)
        columns, extras = (
            {name: column[kept].copy() for name, column in group.items()} for group in (self._columns, self._extras)
        )
        self._tails = (columns, extras)
        self._columns, self._extras, self._finals = {}, {}, []
        self._capacity, self.steps = max(capacity, 1), 0
        self._see(observations, infos)

    def write(
        self,
        acted: Acted,
        rewards: NDArray[np.floating[Any]],
        terminateds: NDArray[np.bool_],
        truncateds: NDArray[np.bool_],
        weights_seq_no: int,
        valid: NDArray[np.bool_] | None,
    ) -> None:
        """Write down a step, (B, …) each; its ends and what it led to come next."""
        if self.steps == self._capacity:
            self._grow()
        step = {
            "actions": acted.actions,
            "rewards": np.asarray(rewards, dtype=np.float64),
            "terminateds": terminateds,
            "truncateds": truncateds,
            WEIGHTS_SEQ_NO: np.asarray(weights_seq_no),
        }
        if valid is not None:
            step["valid"] = valid
        for name, values in step.items():
            self._put(self._columns, self._tails[0], name, self.steps, values)
        for path, values in acted.extras.items():
            self._put(self._extras, self._tails[1], path, self.steps, values)

    def end(self, envs: NDArray[np.int64], observations: NDArray[Any]) -> None:
        """The step ended the episodes of these environments (k,), with these observations (k, …)."""
        self._finals.append((self.steps, envs, self._seen(observations, envs)))

    def follow(self, observations: NDArray[Any], infos: list[dict[str, Any]] | None) -> None:
        """The next step will be decided on these observations (B, …): the step is complete."""
        self.steps += 1
        self._see(observations, infos)

    def _see(self, observations: NDArray[Any], infos: list[dict[str, Any]] | None) -> None:
        for name, values in self._seen(observations, slice(None)).items():
            self._put(self._columns, self._tails[0], name, self.steps, values)
        if infos is not None:
            boxed = np.empty(len(infos), dtype=object)
            boxed[:] = infos
            self._put(self._columns, self._tails[0], "infos", self.steps, boxed)

    def _seen(self, observations: NDArray[Any], envs: Any) -> dict[str, NDArray[Any]]:
        if self._indexed:
            return {"rows": self._env.rows[envs], "accounts": observations[:, -self._env.account_size :]}
        return {"observations": observations}

    def _put(
        self,
        columns: dict[Any, NDArray[Any]],
        tails: Mapping[Any, NDArray[Any]],
        name: Any,
        row: int,
        values: NDArray[Any],
    ) -> None:
        column = columns.get(name)
        if column is None:
            column = columns[name] = np.empty((self._lookback + self._capacity + 1, *values.shape), values.dtype)
            column[: self._lookback] = tails.get(name, np.zeros((), values.dtype))
        column[self._lookback + row] = values

    def _grow(self) -> None:
        self._capacity *= 2
        groups: tuple[dict[Any, NDArray[Any]], ...] = (self._columns, self._extras)
        for columns in groups:
            for name, column in columns.items():
                columns[name] = np.concatenate(
                    [column, np.empty((self._capacity // 2, *column.shape[1:]), column.dtype)]
                )

    # -- reading ------------------------------------------------------------------------------------------------------

    def stretch(self, env: int, start: int, stop: int) -> Stretch:
        """One environment's rows ``start`` to ``stop``."""
        rows, columns = slice(self._lookback + start, self._lookback + stop), self._columns
        return Stretch(columns["actions"][rows, env], columns["rewards"][rows, env], columns[WEIGHTS_SEQ_NO][rows])

    def ends(self, env: int) -> tuple[bool, bool]:
        """Whether the step that was written last has terminated or truncated an environment's episode."""
        row = self._lookback + self.steps
        return bool(self._columns["terminateds"][row, env]), bool(self._columns["truncateds"][row, env])

    def episode(
        self,
        env: int,
        start: int,
        stop: int,
        *,
        id_: str,
        t_started: int,
        final: tuple[NDArray[Any], dict[str, Any]] | None = None,
    ) -> SingleAgentEpisode:
        """One environment's steps ``start`` to ``stop`` as RLlib's episode, or as the fragment of one.

        Args:
            env: The environment.
            start: First step.
            stop: Step after the last.
            id_: Name of the episode; the same in all of its fragments.
            t_started: Steps that it had taken before.
            final: Where it has ended, its last observation and info.
        """
        lookback = min(self._lookback, t_started) if start == 0 else 0
        rows = slice(self._lookback + start - lookback, self._lookback + stop)
        seen = slice(rows.start, rows.stop + 1)
        observations = self._columns["observations"][seen, env].copy()
        infos: list[dict[str, Any]] = [{} for _ in range(len(observations))]
        if "infos" in self._columns:
            infos = [info or {} for info in self._columns["infos"][seen, env]]
        if final is not None:
            observations[-1], infos[-1] = final
        space, action_space = self._env.single_observation_space, self._env.single_action_space
        extras: dict[str, Any] = {WEIGHTS_SEQ_NO: self._columns[WEIGHTS_SEQ_NO][rows].copy()}
        for path, column in self._extras.items():
            _nest(extras, path, column[rows, env].copy())
        last = rows.stop - 1
        return SingleAgentEpisode(
            id_=id_,
            observations=InfiniteLookbackBuffer(observations, lookback, space),
            observation_space=space,
            infos=InfiniteLookbackBuffer(infos, lookback),
            actions=InfiniteLookbackBuffer(self._columns["actions"][rows, env].copy(), lookback, action_space),
            action_space=action_space,
            rewards=InfiniteLookbackBuffer(self._columns["rewards"][rows, env].copy(), lookback, _REWARD_SPACE),
            terminated=final is not None and bool(self._columns["terminateds"][last, env]),
            truncated=final is not None and bool(self._columns["truncateds"][last, env]),
            extra_model_outputs={name: InfiniteLookbackBuffer(column, lookback) for name, column in extras.items()},
            t_started=t_started,
            len_lookback_buffer=lookback,
        )

    def rollout(self, source: str, first_step: int, weights_seq_no: int) -> Rollout:
        """All of it, as a lean learner reads it."""
        steps = slice(self._lookback, self._lookback + self.steps)
        seen = slice(steps.start, steps.stop + 1)
        columns = {name: column[steps] for name, column in self._columns.items()}
        return Rollout(
            source=source,
            first_step=first_step,
            observations=self._observations({name: self._columns[name][seen] for name in self._seen_names()}),
            actions=columns["actions"],
            rewards=columns["rewards"].astype(np.float32),
            terminateds=columns["terminateds"],
            truncateds=columns["truncateds"],
            finals=self._all_finals(),
            extras={".".join(path): column[steps] for path, column in self._extras.items()},
            weights_seq_no=weights_seq_no,
            valid=columns.get("valid"),
        )

    def _seen_names(self) -> tuple[str, ...]:
        return ("rows", "accounts") if self._indexed else ("observations",)

    def _observations(self, columns: Mapping[str, NDArray[Any]]) -> Observations:
        if self._indexed:
            indexed: Observations = self._env.indexed(columns["rows"], columns["accounts"])
            return indexed
        return FullObservations(columns["observations"])

    def _all_finals(self) -> Finals:
        steps = [np.full(len(envs), step, dtype=np.int64) for step, envs, _ in self._finals]
        envs = [envs for _, envs, _ in self._finals]
        columns = {}
        for name in self._seen_names():
            empty = self._columns[name][:0].reshape(0, *self._columns[name].shape[2:])
            columns[name] = np.concatenate([empty, *(seen[name] for _, _, seen in self._finals)])
        none = np.zeros(0, dtype=np.int64)
        return Finals(np.concatenate([none, *steps]), np.concatenate([none, *envs]), self._observations(columns))


def _nest(columns: dict[str, Any], path: Path, values: NDArray[Any]) -> None:
    for name in path[:-1]:
        columns = columns.setdefault(name, {})
    columns[path[-1]] = values
