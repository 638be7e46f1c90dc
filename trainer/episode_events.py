"""From an ended episode to its events: pure, so the same code serves callbacks, baselines and the forwarder.

What a record tells is written as it is (``Payload.write``): to look at each of several thousand values an episode, and
to box it, took most of the time that events cost. The tests read it back by the strict models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from env.episode_record import EpisodeRecord
from schemas.payloads import (
    ActionsTaken,
    EpisodeEnded,
    EpisodeStarted,
    Fills,
    Payload,
    Positions,
    Split,
    Steps,
    Trades,
    Written,
)


@dataclass(frozen=True)
class Lineage:
    """Where the episodes of an environment come from. Fixed when it is made: an episode ends on its window."""

    split: Split
    window_id: str
    data_hash: str
    settings_hash: str
    scaler_version: str


@dataclass(frozen=True)
class EpisodeFacts:
    """What is known of an episode from its start."""

    episode_id: str
    rllib_episode_id: str
    role: str
    worker_index: int
    env_index: int
    episode_no: int
    env: str
    policy: str
    split: Split
    started_at: int


@dataclass(frozen=True)
class Outcome:
    """What RLlib knows of an ended episode of any environment.

    Attributes:
        steps: Environment steps.
        total_reward: Sum of rewards over all of its fragments.
        actions: One entry a step, (steps, …).
        policy_versions: ``weights_seq_no`` that decided each step, int64 (steps,); empty where no policy acted.
    """

    steps: int
    total_reward: float
    actions: NDArray[Any]
    policy_versions: NDArray[np.int64]
    terminated: bool
    truncated: bool


@dataclass(frozen=True)
class Beginning:
    """Where an episode of a trading environment starts."""

    symbol: str | None = None
    start_row: int | None = None
    initial_value: float | None = None


def started(facts: EpisodeFacts, iteration: int, beginning: Beginning, lineage: Lineage | None) -> EpisodeStarted:
    """The event of an episode that has just been reset."""
    window_id = lineage.window_id if lineage else None
    return EpisodeStarted(**vars(facts), iteration=iteration, window_id=window_id, **vars(beginning))


def ended(facts: EpisodeFacts, iteration: int, ended_at: int, outcome: Outcome) -> list[Payload | Written]:
    """The events of an ended episode of any environment: its end, and its actions."""
    end = EpisodeEnded(
        **_common(facts, iteration, ended_at, outcome.policy_versions),
        terminated=outcome.terminated,
        truncated=outcome.truncated,
        reason="terminated" if outcome.terminated else "truncated",
        steps=outcome.steps,
        total_reward=outcome.total_reward,
        action_counts=_count(outcome.actions),
    )
    return [end, ActionsTaken(episode_id=facts.episode_id, actions=outcome.actions.tolist())]


def recorded(
    facts: EpisodeFacts,
    iteration: int,
    ended_at: int,
    versions: NDArray[np.int64],
    record: EpisodeRecord,
    lineage: Lineage | None,
    *,
    record_steps: bool,
) -> list[Payload | Written]:
    """All events of an ended episode that has a record: its end, its actions, trades, fills and steps.

    Args:
        facts: What is known from its start.
        iteration: In which it ended.
        ended_at: When.
        versions: ``weights_seq_no`` that decided each step, int64 (steps,); empty where no policy acted.
        record: What happened.
        lineage: Where it comes from.
        record_steps: Whether every step is told.
    """
    return [
        EpisodeEnded.write(**_common(facts, iteration, ended_at, versions), **_own_fields(record, lineage)),
        ActionsTaken.write(episode_id=facts.episode_id, actions=record.actions),
        *_tables(facts, iteration, versions, record, lineage, record_steps=record_steps),
    ]


def _common(facts: EpisodeFacts, iteration: int, ended_at: int, versions: NDArray[np.int64]) -> dict[str, Any]:
    return {
        **vars(facts),
        "iteration": iteration,
        "ended_at": ended_at,
        "first_policy_version": int(versions[0]) if len(versions) else None,
        "last_policy_version": int(versions[-1]) if len(versions) else None,
    }


_OWN_FIELDS = """
    terminated truncated reason steps total_reward action_counts symbol env_seed start_row first_ts last_ts
    bars_per_year initial_value final_value pnl gross_pnl bad_debt open_quantity open_entry_price open_pnl
    stale_steps cancelled_orders
"""


def _own_fields(record: EpisodeRecord, lineage: Lineage | None) -> dict[str, Any]:
    names = _OWN_FIELDS.split()
    fields = {name: getattr(record, name) for name in names}
    fields |= vars(record.metrics) | {"symbols": list(record.symbols)}
    fields |= {"trade_count": len(record.trades["side"]), "fill_count": len(record.fills["step"])}
    if lineage is not None:
        fields |= {name: value for name, value in vars(lineage).items() if name != "split"}
    return fields


def _tables(
    facts: EpisodeFacts,
    iteration: int,
    versions: NDArray[np.int64],
    record: EpisodeRecord,
    lineage: Lineage | None,
    *,
    record_steps: bool,
) -> list[Written]:
    common: dict[str, Any] = {
        "episode_id": facts.episode_id,
        "split": facts.split,
        "policy": facts.policy,
        "iteration": iteration,
        "window_id": lineage.window_id if lineage else None,
    }
    tables: list[Written] = []
    if len(record.trades["side"]):
        trades = _columns(record.trades)
        trades["entry_policy_version"] = _versions_at(trades.pop("entry_step"), versions, record.steps)
        trades["exit_policy_version"] = _versions_at(trades.pop("exit_step"), versions, record.steps)
        tables.append(Trades.write(**common, **trades))
    if len(record.fills["step"]):
        fills = _columns(record.fills)
        decided_by = _versions_at(fills["step"], versions, record.steps)
        tables.append(Fills.write(**common, **fills, policy_version=decided_by))
    if record_steps and record.steps:
        # A portfolio has no price and position of its own, and a vector of actions is no column.
        steps: dict[str, Any] = dict.fromkeys(("price", "position", "action"), [None] * record.steps)
        steps |= _columns(record.steps_table)
        decided_by = _versions_at(np.arange(record.steps), versions, record.steps)
        tables.append(Steps.write(**common, symbol=record.symbol, **steps, policy_version=decided_by))
        if record.positions_table:
            tables.append(Positions.write(**common, **_columns(record.positions_table)))
    return tables


def _columns(table: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Columns of numbers as they are, of texts as lists: orjson takes no arrays of texts."""
    return {name: values.tolist() if values.dtype.kind in "UO" else values for name, values in table.items()}


def _versions_at(steps: NDArray[np.int64], versions: NDArray[np.int64], count: int) -> Any:
    """The version that decided each of these steps, of ``count`` in all; None where no policy is known to have."""
    if len(versions) == count:
        return versions[steps]
    return [int(versions[step]) if step < len(versions) else None for step in steps.tolist()]


def _count(actions: NDArray[Any]) -> dict[str, int]:
    # Continuous actions have no counts worth a row each.
    if actions.ndim != 1 or actions.dtype.kind not in "iu":
        return {}
    values, counts = np.unique(actions, return_counts=True)
    return {str(value): count for value, count in zip(values.tolist(), counts.tolist(), strict=True)}
