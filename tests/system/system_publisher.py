"""A publisher that notes what each publish() cost: OUTBOX ALONE RUN LEDGER, until its standard input is closed.

In turn with it another one publishes the same to the directory ALONE, which no forwarder and no log knows: what its
calls take is the work itself and the machine's doing.
"""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path
from typing import Any

from eventlog.outbox import Publisher
from schemas.events import Envelope
from schemas.ids import Role

sys.path.insert(0, str(Path(__file__).parents[1] / "eventlog"))

from eventlog_program import episode


def queued_ns() -> int:
    """How long this thread was ready and another had the processor."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1])


def timed(publisher: Publisher, number: int, notes: dict[str, list[Any]]) -> list[Envelope]:
    payloads = episode(publisher, number)
    queued, began = queued_ns(), time.perf_counter_ns()
    events = publisher.publish(*payloads)
    took = time.perf_counter_ns() - began
    notes["at"].append(time.monotonic())
    notes["wall_ns"].append(took)
    notes["own_ns"].append(took - (queued_ns() - queued))
    return events


def main(outbox: str, alone: str, run_id: str, ledger: str) -> None:
    publisher, control = (
        Publisher.open(Path(directory), run_id=run_id, attempt=1, role=Role.RUNNER, worker_index=1)
        for directory in (outbox, alone)
    )
    notes: dict[str, dict[str, list[Any]]] = {
        name: {"at": [], "wall_ns": [], "own_ns": []} for name in ("publisher", "control")
    }
    number = 0
    with open(ledger, "w") as accepted:
        while not select.select([sys.stdin], [], [], 0.01)[0]:
            timed(control, number, notes["control"])
            events = timed(publisher, number, notes["publisher"])
            accepted.write("".join(f"{event.event_id}\n" for event in events))
            accepted.flush()
            number += 1
    publisher.close()
    control.close()
    print(json.dumps(notes))


if __name__ == "__main__":
    main(*sys.argv[1:])
