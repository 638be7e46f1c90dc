"""Checkpoints: RLlib's own folder, and beside it what is needed to open its windows again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from env.scaler import Scaler
from env.settings import EnvSettings
from eventlog.log import Log
from eventlog.open_log import open_log
from schemas.errors import InputError, WindowError
from schemas.payloads import Split, WindowOpened
from trainer.environments import register
from trainer.ray_session import start_ray
from trainer.settings import DataSettings
from trainer.window_store import WindowStore
from trainer.windows import Cuts, Window, open_windows, reopen_history

SIDECAR = "millrace.json"


class CheckpointFacts(BaseModel):
    """What a checkpoint needs beside RLlib's state: the policy's scaler, and its windows by exact offsets."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    attempt: int
    iteration: int
    seed: int
    data: DataSettings
    env: EnvSettings
    scaler: dict[str, Any]
    first_validation_ts: int | None = None
    first_test_ts: int
    windows: list[WindowOpened]


def save(algorithm: Any, folder: Path, facts: CheckpointFacts) -> Path:
    """Save the algorithm under ``folder/iteration-NNNNNN``, whole or not at all.

    Returns:
        The checkpoint's folder, absolute.
    """
    target = folder.absolute() / f"iteration-{facts.iteration:06d}"
    partial = target.with_name(target.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)  # of a save that was interrupted
    algorithm.save_to_path(str(partial))
    (partial / SIDECAR).write_text(facts.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if target.exists():
        # An attempt that resumed from before has come here again: the newer one counts.
        os.rename(target, _free_name(target))
    os.rename(partial, target)
    return target


def _free_name(target: Path) -> Path:
    number = 1
    while (old := target.with_name(f"{target.name}.old-{number}")).exists():
        number += 1
    return old


def load_facts(checkpoint: Path) -> CheckpointFacts:
    """What stands beside RLlib's state in a checkpoint of ours.

    Raises:
        InputError: no checkpoint of Millrace is there, or its file cannot be read.
    """
    path = checkpoint / SIDECAR
    try:
        return CheckpointFacts.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"checkpoint {checkpoint}: expected a folder with {SIDECAR}, as `millrace train` writes it; there is none"
        ) from error
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"checkpoint {path}: cannot be read: {' '.join(str(error).split())[:200]}") from error


def latest(folder: Path) -> Path:
    """The newest checkpoint of a run's folder.

    Raises:
        InputError: there is none.
    """
    found = sorted(path for path in folder.glob("iteration-*") if path.suffix == "" and (path / SIDECAR).exists())
    if not found:
        raise InputError(f"run folder {folder}: expected a checkpoint iteration-NNNNNN in it, got none")
    return found[-1]


def reopen_windows(log: Log, facts: CheckpointFacts) -> dict[Split, Window]:
    """The windows of a checkpoint, read again from their exact offsets and compared with what was recorded.

    Returns:
        Split to window.

    Raises:
        WindowError: the log holds other bars there by now; names both hashes.
        OffsetOutOfRangeError: the offsets have expired; names both ranges.
    """
    history = reopen_history(log, facts.windows[0], facts.data)
    scaler = Scaler.from_dict(facts.scaler)
    windows = open_windows(history, Cuts(facts.first_validation_ts, facts.first_test_ts), facts.env, scaler.version)
    for recorded in facts.windows:
        window = windows[recorded.split]
        if (window.opened.data_hash, window.opened.window_id) != (recorded.data_hash, recorded.window_id):
            raise WindowError(
                f"{recorded.split} window {recorded.window_id}: expected bars with hash {recorded.data_hash}, got "
                f"{window.opened.data_hash} at the same offsets; the topic is not the one that was recorded"
            )
        window.scale(scaler, facts.env)
    return windows


@contextmanager
def open_checkpoint(checkpoint: str | os.PathLike[str], log: str) -> Iterator[CheckpointFacts]:
    """Open a checkpoint's windows, so that ``Algorithm.from_checkpoint`` works in a fresh process.

    Args:
        checkpoint: A folder that ``millrace train`` wrote.
        log: Address of the event log that holds its bars, such as ``sqlite:.millrace/log``.

    Yields:
        What stands in the checkpoint beside RLlib's state.

    Raises:
        InputError: no checkpoint is there.
        WindowError: the log does not hold its bars.
    """
    facts = load_facts(Path(checkpoint))
    with open_log(log) as source:
        windows = reopen_windows(source, facts)
    start_ray(num_cpus=4, object_store_mb=256)
    register()
    store = WindowStore(facts.run_id, resumed_from=facts.iteration)
    try:
        while windows:
            store.put(windows.popitem()[1])  # and keep no copy of it here
        yield facts
    finally:
        store.close()
