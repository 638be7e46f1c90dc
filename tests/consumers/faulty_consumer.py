"""A consumer process that is killed (kill -9, by itself) at a stated moment, or that holds a planted bug.

python faulty_consumer.py LOG_DIR URL MOMENT COUNT

MOMENT is what happens at the COUNT-th time that it could: before_insert, after_insert, before_ledger, before_commit,
after_commit, or commit_first: the bug that commits what it polls (as enable.auto.commit does) and is killed before the
insert. The password comes from the environment.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from consumers.consumer import PASSWORD_VARIABLE, run_consumer
from consumers.rows import LEDGER, Block
from consumers.sink import Sink
from eventlog.log import Consumer, Log, StoredRecord, TopicPartition
from eventlog.sqlite_log import SqliteLog

directory, url, moment, count = sys.argv[1:]
left = int(count)


def reached(here: str) -> None:
    global left
    if here == moment:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class FaultySink(Sink):
    def insert(self, table: str, block: Block) -> None:
        reached("before_ledger" if table == LEDGER else "before_insert")
        if moment == "commit_first" and table != LEDGER:
            os.kill(os.getpid(), signal.SIGKILL)
        super().insert(table, block)
        reached("after_insert")


class FaultyConsumer(Consumer):
    def __init__(self, inner: Consumer) -> None:
        self._inner = inner
        self.assignment = inner.assignment  # type: ignore[method-assign]
        self.close = inner.close  # type: ignore[method-assign]

    def poll(self, timeout_s: float, max_records: int = 500) -> list[StoredRecord]:
        records = self._inner.poll(timeout_s, max_records)
        if moment == "commit_first" and records:
            self._inner.commit({record.source: record.offset + 1 for record in records})
        return records

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        reached("before_commit")
        self._inner.commit(offsets)
        reached("after_commit")

    def assignment(self) -> set[TopicPartition]:
        return self._inner.assignment()

    def close(self) -> None:
        self._inner.close()


class FaultyLog(SqliteLog):
    def consumer(self, group: str, topics: object) -> Consumer:
        return FaultyConsumer(super().consumer(group, topics))  # type: ignore[arg-type]


log: Log = FaultyLog(Path(directory), lease_s=0.5)
with log, FaultySink.connect(url, os.environ[PASSWORD_VARIABLE]) as sink:
    run_consumer(log, sink, batch_rows=200, batch_seconds=0.05)
