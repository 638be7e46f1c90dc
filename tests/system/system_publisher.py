"""A publisher that notes what each publish() cost: OUTBOX RUN LEDGER, until its standard input is closed."""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path

from eventlog.outbox import Publisher
from schemas.ids import Role
from schemas.payloads import ActionsTaken, EpisodeStarted


def queued_ns() -> int:
    """How long this thread was ready and another had the processor."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1])


def main(outbox: str, run_id: str, ledger: str) -> None:
    publisher = Publisher.open(Path(outbox), run_id=run_id, attempt=1, role=Role.RUNNER, worker_index=1)
    at, wall, own = [], [], []
    number = 0
    with open(ledger, "w") as accepted:
        while not select.select([sys.stdin], [], [], 0.01)[0]:
            episode_id = publisher.publisher_id.episode(0, number)
            started = EpisodeStarted(
                episode_id=episode_id,
                rllib_episode_id="r",
                role="r",
                worker_index=1,
                env_index=0,
                episode_no=number,
                env="test",
                policy="agent",
                split="train",
                iteration=1,
                started_at=1_780_000_000_000_000,
            )
            actions = ActionsTaken(episode_id=episode_id, actions=[0, 1, 2] * 20)
            queued, began = queued_ns(), time.perf_counter_ns()
            events = publisher.publish(started, actions)
            took = time.perf_counter_ns() - began
            at.append(time.monotonic())
            wall.append(took)
            own.append(took - (queued_ns() - queued))
            accepted.write("".join(f"{event.event_id}\n" for event in events))
            accepted.flush()
            number += 1
    publisher.close()
    print(json.dumps({"at": at, "wall_ns": wall, "own_ns": own}))


if __name__ == "__main__":
    main(*sys.argv[1:])
