"""Episodes on their way out of a training process: copied as they are, to be made into events by the forwarder.

The record of an ended one, its figures and their JSON take ten times as long as the copy. What is packed here is
unpacked on the same machine by the same version of Millrace, and holds no code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from env import state
from env.episode_record import build_record
from env.episode_tape import EachStep, EpisodeTape, Told
from schemas.errors import OutboxError, SettingsError
from schemas.payloads import (
    ActionsTaken,
    Deferred,
    EpisodeEnded,
    EpisodeStarted,
    Fills,
    Payload,
    Positions,
    Steps,
    Trades,
    Written,
)
from trainer.episode_events import Beginning, EpisodeFacts, Lineage, recorded, started

MAKER = "episode"
"""Name of this module in ``eventlog.event_makers``."""

_FLOAT, _INT = np.dtype(np.float64), np.dtype(np.int64)
_LAYOUTS: dict[str, np.dtype[Any]] = {
    "account": state.ACCOUNT,
    "holdings": state.HOLDING,
    "equity": _FLOAT,
    "actions": _FLOAT,
    "fills": state.FILL,
    "trades": state.TRADE,
    "ts_close": _INT,
    "ts_open": _INT,
    "last_mark": _FLOAT,
}
_LAYOUTS_OF_EACH: dict[str, np.dtype[Any]] = {
    "steps": state.STEP,
    "held": state.HELD,
    "mark": _FLOAT,
    "tradable": np.dtype(np.bool_),  # the last one: those before it keep to eight bytes
}


def _stamp() -> str:
    """What has to be the same where it is unpacked: eight hex digits."""
    parts = [version("millrace"), state.stamp(), *state.KINDS.tolist(), *Told._fields, *_LAYOUTS, *_LAYOUTS_OF_EACH]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]


_STAMP = _stamp()


def defer_start(facts: EpisodeFacts, iteration: int, beginning: Beginning, lineage: Lineage | None) -> Deferred:
    """What ``trainer.episode_events.started`` takes, for the event that it makes."""
    header = {"facts": facts, "iteration": iteration, "beginning": beginning, "lineage": lineage}
    return Deferred(MAKER, (EpisodeStarted,), _packed(header, []))


def defer_end(
    facts: EpisodeFacts,
    iteration: int,
    ended_at: int,
    versions: NDArray[np.int64],
    tape: EpisodeTape,
    lineage: Lineage | None,
    *,
    record_steps: bool,
) -> Deferred:
    """Copy an ended episode of the market model, for the events that ``trainer.episode_events.recorded`` makes.

    Args:
        facts: What is known from its start.
        iteration: In which it ended.
        ended_at: When.
        versions: ``weights_seq_no`` that decided each step, int64 (steps,); empty where no policy acted.
        tape: What it left behind.
        lineage: Where it comes from.
        record_steps: Whether every step is told.

    Raises:
        SettingsError: The environment does not keep the steps that are to be told.
    """
    if record_steps and tape.each is None:
        raise SettingsError(
            "record_steps: expected an environment with the setting record='steps', got one that keeps no steps; set it"
        )
    each = tape.each if record_steps and len(tape.equity) else None
    models: list[type[Payload]] = [EpisodeEnded, ActionsTaken]
    models += [Trades] * bool(len(tape.trades)) + [Fills] * bool(len(tape.fills))
    if each is not None:
        models += [Steps] + [Positions] * tape.told.portfolio
    arrays = [versions, *(getattr(tape, name) for name in _LAYOUTS), *(each or ())]
    header = {
        "facts": facts,
        "iteration": iteration,
        "ended_at": ended_at,
        "lineage": lineage,
        "told": tape.told._asdict(),
        "shapes": [array.shape for array in arrays],
    }
    return Deferred(MAKER, tuple(models), _packed(header, arrays))


def _packed(header: dict[str, Any], arrays: list[NDArray[Any]]) -> bytes:
    """The arrays, the header, and the header's length."""
    text = orjson.dumps({"stamp": _STAMP, **header}, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([*(array.tobytes() for array in arrays), text, len(text).to_bytes(4, "little")])


def make_events(value: bytes) -> Sequence[Payload | Written]:
    """The events of what ``defer_start`` or ``defer_end`` has packed.

    Raises:
        OutboxError: another version of Millrace has copied it.
    """
    end = len(value) - 4
    header = orjson.loads(value[end - int.from_bytes(value[end:], "little") : end])
    if header["stamp"] != _STAMP:
        raise OutboxError(
            f"deferred episode: expected the layouts {_STAMP} of this version of Millrace, got {header['stamp']}; empty"
            " the outbox with the version that has published, or stop this forwarder if it is the older one"
        )
    facts, lineage = EpisodeFacts(**header["facts"]), header["lineage"]
    common = {"facts": facts, "iteration": header["iteration"], "lineage": Lineage(**lineage) if lineage else None}
    if "beginning" in header:
        return [started(**common, beginning=Beginning(**header["beginning"]))]
    versions, *arrays = _arrays(value, header["shapes"])
    told, each = header["told"], arrays[len(_LAYOUTS) :]
    tape = EpisodeTape(
        Told(**told | {name: tuple(told[name]) for name in ("symbols", "labels")}),
        **dict(zip(_LAYOUTS, arrays, strict=False)),
        each=EachStep(*each) if each else None,
    )
    return recorded(
        **common,
        ended_at=header["ended_at"],
        versions=versions,
        record=build_record(tape),
        record_steps=tape.each is not None,
    )


def _arrays(value: bytes, shapes: list[list[int]]) -> list[Any]:
    """The arrays in front of a header; one of no axes as its only record."""
    arrays: list[Any] = []
    at = 0
    for layout, shape in zip((_INT, *_LAYOUTS.values(), *_LAYOUTS_OF_EACH.values()), shapes, strict=False):
        array: NDArray[Any] = np.ndarray(shape, layout, value, at)
        arrays.append(array if shape else array[()])
        at += array.nbytes
    return arrays
