"""What the fault tests share: whom to kill, and how to see that nothing was lost."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

import psutil

from analytics.integrity import check_run
from analytics.names import ask
from consumers.consumer import source_topics
from millrace.stack import LocalStack

# How each process shows itself in a process list.
NAMES = {
    "consumer": "consumers.consumer",
    "broker": "kafka.Kafka",
    "env runner": "ray::BatchedEnvRunner",
    "store": "local.store_server",
    "forwarder": "eventlog.forwarder",
}


def differences(stack: LocalStack, run_id: str) -> list[str]:
    """The oracle: what the log took, against what a query sees. Empty where nothing is lost, nothing there twice."""
    on_log = set()
    for topic in source_topics():
        for partition, (start, stop) in stack.log.offsets(topic).items():
            while start < stop:
                batch = stack.log.read(topic, partition, start, stop)
                on_log |= {dict(record.headers)["ce_id"].decode() for record in batch}
                start = batch[-1].offset + 1
    with stack.client() as client:
        found = list(check_run(client, run_id).problems)
        stored = {row[0] for row in ask(client, "SELECT event_id FROM events").rows}
        if stored != on_log:
            found.append(f"{len(on_log - stored)} events of the log are not stored, {len(stored - on_log)} are others")
        for table, key in (("trades", "row_no"), ("fills", "row_no"), ("episodes", "status"), ("events", "event_id")):
            identity = key if table == "events" else f"run_id, episode_id, {key}"
            rows, distinct = ask(client, f"SELECT count(), uniqExact({identity}) FROM {table}").rows[0]
            if rows != distinct:
                found.append(f"{table}: {rows} rows, {distinct} distinct")
    return found


def find(demo: Any, name: str) -> list[psutil.Process]:
    """The demo's processes of a name, which must be there soon."""
    deadline = time.monotonic() + 20
    while not (found := sorted(demo.processes(NAMES[name]), key=lambda process: process.pid)):
        assert time.monotonic() < deadline, f"no {name} runs:\n{demo.output}"
        time.sleep(0.05)
    return found


def kill(demo: Any, name: str, rng: random.Random) -> None:
    victim: psutil.Process = rng.choice(find(demo, name))
    victim.send_signal(signal.SIGKILL)
