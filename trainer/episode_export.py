"""Recorded episodes back to transitions: each is run again through the market model, from its window and its actions.

The store keeps what an episode was made of, not its observations. With the bars of its window, its first row, its
actions and the settings it runs again to the last bit, and the record says what must come out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns

from env.scaler import Scaler
from env.settings import EnvSettings
from env.trading_env import TradingEnv
from eventlog.log import Log
from schemas.errors import InputError, IntegrityError, WindowError
from schemas.payloads import WindowOpened
from trainer.environments import settings_hash
from trainer.offline_data import FORMAT, MANIFEST, Manifest
from trainer.settings import DataSettings
from trainer.windows import Window, open_window, reopen_history

_FILE = "episodes.parquet"
_STEPS_PER_ROW_GROUP = 16_384
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class RecordedRun:
    """What of a run its episodes need to run again: settings, and the windows of its training split."""

    run_id: str
    data: DataSettings
    env: EnvSettings
    windows: Sequence[WindowOpened]


@dataclass(frozen=True)
class RecordedEpisode:
    """One ended episode as the store has it.

    Attributes:
        actions: Numbers of all steps, laid out one step after the other. The store does not know whether those of a
            vector are choices; the environment does.
    """

    episode_id: str
    symbol: str
    start_row: int
    window_id: str
    settings_hash: str
    scaler_version: str
    steps: int
    total_reward: float
    final_value: float
    actions: Sequence[float]


@dataclass(frozen=True)
class Transitions:
    """An episode of T steps: observations float32 (T + 1, size), actions (T,) or (T, A), rewards float32 (T,)."""

    observations: NDArray[np.float32]
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    terminated: bool
    truncated: bool


def open_environments(run: RecordedRun, log: Log) -> tuple[dict[str, TradingEnv], Scaler]:
    """An environment on each window of the run, by window id, and the policy's scaler.

    Raises:
        WindowError: the log does not hold the recorded bars any more.
    """
    windows: dict[str, Window] = {}
    for recorded in sorted(run.windows, key=lambda opened: opened.last_ts):
        if recorded.window_id in windows:
            continue  # opened again by a later attempt
        history = reopen_history(log, recorded, run.data)
        window = open_window(history, recorded.split, recorded.last_ts + 1, run.env)
        if window.opened.data_hash != recorded.data_hash:
            raise WindowError(
                f"window {recorded.window_id}: expected bars with hash {recorded.data_hash}, got "
                f"{window.opened.data_hash} at the same offsets; the topic is not the one that was recorded"
            )
        windows[recorded.window_id] = window
    if not windows:
        raise InputError(f"run {run.run_id}: expected a training window on record, got none")
    # Fitted on the first window, and carried along from there.
    scaler = Scaler.fit(next(iter(windows.values())).data)
    return {name: TradingEnv(window.data, run.env, scaler=scaler) for name, window in windows.items()}, scaler


def rebuild(env: TradingEnv, episode: RecordedEpisode) -> Transitions:
    """Run an episode again.

    Raises:
        IntegrityError: it does not come out as recorded; names what differs.
    """
    actions = _actions(episode, env)
    options: dict[str, Any] = {"start_row": episode.start_row}
    if not env.settings.portfolio:
        options["symbol"] = episode.symbol
    observation, _ = env.reset(options=options)
    observations = [observation]
    rewards: list[float] = []
    terminated = truncated = False
    for action in actions:
        if terminated or truncated:
            break
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
    record = env.episode_record()
    _compare(episode, "steps", episode.steps, len(rewards))
    _compare(episode, "ends", 1, int(terminated or truncated))
    _compare(episode, "total_reward", episode.total_reward, record.total_reward)
    _compare(episode, "final_value", episode.final_value, record.final_value)
    return Transitions(
        np.stack(observations), actions, np.array(rewards, dtype=np.float32), bool(terminated), bool(truncated)
    )


def _actions(episode: RecordedEpisode, env: TradingEnv) -> NDArray[Any]:
    space: Any = env.action_space
    return np.asarray(episode.actions, dtype=np.float64).astype(space.dtype).reshape(-1, *space.shape)


def _compare(episode: RecordedEpisode, what: str, recorded: float, found: float) -> None:
    if not math.isclose(recorded, found, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
        raise IntegrityError(
            f"episode {episode.episode_id}: expected {what} {recorded!r} as recorded, got {found!r} when it was run "
            "again; it was recorded by another version of the market model, or the record was changed"
        )


def export_episodes(run: RecordedRun, episodes: Iterable[RecordedEpisode], log: Log, folder: Path) -> Manifest:
    """Write a recording: the transitions of all episodes, in RLlib's columns, and the manifest.

    Args:
        run: Settings and windows.
        episodes: Of its training split.
        log: Where the bars are.
        folder: Made where it is missing; must hold no recording yet.

    Raises:
        InputError: the folder is in use, or there are no episodes.
        IntegrityError: an episode does not come out as recorded.
        WindowError: the log does not hold its bars any more.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"folder {folder}: expected a new or an empty one, got files in it; name another by --out")
    environments, scaler = open_environments(run, log)
    expected = {"settings_hash": settings_hash(run.env), "scaler_version": scaler.version}
    writer = None
    facts: dict[str, Any] = {"episodes": 0, "steps": 0}
    pending: list[Any] = []
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _FILE
    try:
        for episode in episodes:
            for name, wanted in expected.items():
                if (got := getattr(episode, name)) != wanted:
                    raise IntegrityError(
                        f"episode {episode.episode_id}: expected {name} {wanted} as of run {run.run_id}, got {got}"
                    )
            transitions = rebuild(environments[episode.window_id], episode)
            if writer is None:
                manifest = _manifest(run, scaler, transitions)
                writer = pq.ParquetWriter(path, manifest.schema, compression="zstd")
            pending.append(_table(episode, transitions, manifest.schema))
            facts["episodes"] += 1
            facts["steps"] += episode.steps
            if sum(len(table) for table in pending) >= _STEPS_PER_ROW_GROUP:
                writer.write_table(pa.concat_tables(pending).combine_chunks())
                pending = []
        if pending and writer is not None:
            writer.write_table(pa.concat_tables(pending).combine_chunks())
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        folder.rmdir()
        raise InputError(f"run {run.run_id}: expected ended episodes of its training split, got none that match")
    files = {_FILE: hashlib.sha256(path.read_bytes()).hexdigest()}
    manifest = manifest.model_copy(update={**facts, "files": files})
    # The manifest comes last: a folder without one is no recording.
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def _manifest(run: RecordedRun, scaler: Scaler, first: Transitions) -> Manifest:
    return Manifest(
        format=FORMAT,
        run_id=run.run_id,
        env=run.env.model_dump(mode="json"),
        settings_hash=settings_hash(run.env),
        scaler=scaler.to_dict(),
        scaler_version=scaler.version,
        observation_size=first.observations.shape[1],
        action_size=first.actions.shape[1] if first.actions.ndim == 2 else 0,
        discrete=first.actions.dtype.kind == "i",
        episodes=0,
        steps=0,
        files={},
    )


def _table(episode: RecordedEpisode, transitions: Transitions, schema: pa.Schema) -> Any:
    count = len(transitions.rewards)
    last = np.arange(count) == count - 1
    columns = {
        Columns.EPS_ID: pa.array([episode.episode_id] * count, pa.string()),
        Columns.T: np.arange(count),
        Columns.OBS: _lists(transitions.observations[:-1]),
        Columns.ACTIONS: _lists(transitions.actions) if transitions.actions.ndim == 2 else transitions.actions,
        Columns.REWARDS: transitions.rewards,
        Columns.NEXT_OBS: _lists(transitions.observations[1:]),
        Columns.TERMINATEDS: last & transitions.terminated,
        Columns.TRUNCATEDS: last & transitions.truncated,
    }
    return pa.table(columns, schema=schema)


def _lists(rows: NDArray[Any]) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])
