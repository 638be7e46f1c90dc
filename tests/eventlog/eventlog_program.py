"""The processes that the fault tests start, and kill: a publisher with a ledger, and forwarders right and wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson

from eventlog import forwarder
from eventlog.event_makers import MAKERS
from eventlog.outbox import Publisher
from eventlog.outbox_file import Entry, Outbox
from schemas.ids import Role, event_id
from schemas.payloads import ActionsTaken, Deferred, EpisodeStarted, Payload, Positions, Written

MAKERS["test"] = "eventlog_program"


def episode(publisher: Publisher, number: int) -> tuple[EpisodeStarted, ActionsTaken]:
    """What a runner publishes of its ``number``-th episode."""
    episode_id = publisher.publisher_id.episode(0, number)
    started = EpisodeStarted(
        episode_id=episode_id,
        rllib_episode_id="r",
        role="r",
        worker_index=publisher.publisher_id.worker_index,
        env_index=0,
        episode_no=number,
        env="test",
        policy="agent",
        split="train",
        iteration=1,
        started_at=1,
    )
    return started, ActionsTaken(episode_id=episode_id, actions=[0, 1, 2] * 20)


def deferred(publisher: Publisher, number: int, rows: int = 20) -> Deferred:
    """What a runner leaves to the forwarder of its ``number``-th episode: two events."""
    value = {"episode_id": publisher.publisher_id.episode(1, number), "rows": rows}
    return Deferred("test", (ActionsTaken, Positions), orjson.dumps(value))


def make_events(value: bytes) -> list[Payload | Written]:
    """The maker "test"."""
    episode_id, rows = orjson.loads(value).values()
    common = {"episode_id": episode_id, "split": "train", "policy": "agent", "iteration": 1, "window_id": None}
    columns = {"step": range(rows), "symbol": ["A"] * rows, "price": [1.5] * rows, "position": [0.0] * rows}
    columns = {name: list(column) for name, column in columns.items()} | {"stale": [False] * rows}
    return [
        ActionsTaken(episode_id=episode_id, actions=[0, 1] * (rows // 2)),
        Positions.write(**common, **columns, first_row=0),
    ]


def publish(directory: str, run_id: str, worker_index: str, ledger: str, count: str) -> int:
    """Publish ``count`` times two episodes and note each event id that was accepted in the ledger."""
    publisher = Publisher.open(
        Path(directory), run_id=run_id, attempt=1, role=Role.RUNNER, worker_index=int(worker_index), report_every_s=0.2
    )
    accepted = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    print(publisher.publisher_id, flush=True)
    for number in range(int(count)):
        started, actions = publisher.publish(*episode(publisher, number), deferred(publisher, number))
        names = [started.event_id, actions.event_id]
        # Of actions it is every second one.
        numbers = {ActionsTaken: actions.number + 1, Positions: started.number}
        names += [event_id(actions.publisher_id, model.EVENT_TYPE, last, 1, 1) for model, last in numbers.items()]
        os.write(accepted, "".join(f"{name}\n" for name in names).encode())
    publisher.close()
    return 0


class DeletesBeforeSending(forwarder.Forwarder):
    """The planted bug: at most once. The oracle must find it, or the oracle proves nothing."""

    def forward(self, outbox: Outbox, entries: Sequence[Entry]) -> None:
        outbox.acknowledge(entries, {})
        self.send(outbox, entries)


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    if kind == "publish":
        sys.exit(publish(*arguments))
    if kind == "forward-wrongly":
        forwarder.Forwarder = DeletesBeforeSending  # type: ignore[misc]
    sys.exit(forwarder.main(arguments))
