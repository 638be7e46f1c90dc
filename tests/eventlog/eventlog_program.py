"""The processes that the fault tests start, and kill: a publisher with a ledger, and forwarders right and wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from eventlog import forwarder
from eventlog.outbox import Publisher
from eventlog.outbox_file import Entry, Outbox
from schemas.ids import Role
from schemas.payloads import ActionsTaken, EpisodeStarted


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


def publish(directory: str, run_id: str, worker_index: str, ledger: str, count: str) -> int:
    """Publish ``count`` episodes and note each event id that was accepted in the ledger."""
    publisher = Publisher.open(
        Path(directory), run_id=run_id, attempt=1, role=Role.RUNNER, worker_index=int(worker_index), report_every_s=0.2
    )
    accepted = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    print(publisher.publisher_id, flush=True)
    for number in range(int(count)):
        events = publisher.publish(*episode(publisher, number))
        os.write(accepted, "".join(f"{event.event_id}\n" for event in events).encode())
    publisher.close()
    return 0


class DeletesBeforeSending(forwarder.Forwarder):
    """The planted bug: at most once. The oracle must find it, or the oracle proves nothing."""

    def forward(self, outbox: Outbox, entries: Sequence[Entry]) -> None:
        outbox.acknowledge(entries)
        self.send(outbox, entries)


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    if kind == "publish":
        sys.exit(publish(*arguments))
    if kind == "forward-wrongly":
        forwarder.Forwarder = DeletesBeforeSending  # type: ignore[misc]
    sys.exit(forwarder.main(arguments))
