"""A batch: records of the log on their way into the store, and what must be done before their offsets may move."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from consumers import letters
from consumers.rows import LEDGER, Rows, read_event
from consumers.sink import Sink
from eventlog.log import Producer, Record, StoredRecord, TopicPartition
from schemas.errors import SchemaError


@dataclass(slots=True)
class Batch:
    """Records read and not yet committed.

    Attributes:
        dead_topic: full name of the dead-letter topic; records read from it are stored, unreadable ones are sent to it.
        rows: the rows of the readable events.
        dead: dead letters to be sent.
        problems: what is wrong with each of them, and where it was.
        arrived: dead letters that were read back, to be stored.
        offsets: per partition the offset to commit, one past the last record taken.
        records: how many records were taken.
        bytes: sum of their values' lengths.
        began: monotonic time of the first record.
    """

    dead_topic: str
    rows: Rows = field(default_factory=Rows)
    dead: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    arrived: list[StoredRecord] = field(default_factory=list)
    offsets: dict[TopicPartition, int] = field(default_factory=dict)
    records: int = 0
    bytes: int = 0
    began: float = 0.0

    def add(self, record: StoredRecord) -> None:
        """Take a record in; one that cannot be read becomes a dead letter."""
        if not self.records:
            self.began = time.monotonic()
        if record.topic == self.dead_topic:
            self.arrived.append(record)
        else:
            try:
                self.rows.add(read_event(record), record)
            except SchemaError as error:
                self.problems.append(f"{record.topic}/{record.partition}@{record.offset}: {error}")
                self.dead.append(letters.dead_letter(record, error, self.dead_topic))
        self.offsets[record.source] = record.offset + 1
        self.records += 1
        self.bytes += len(record.value)

    def age_s(self) -> float:
        """Seconds since the first record was taken; 0 for an empty batch."""
        return time.monotonic() - self.began if self.records else 0.0

    def store(self, sink: Sink, producer: Producer, until_done: Callable[[Callable[[], None]], None]) -> None:
        """Write everything: rows, dead letters, and last the ledger, which says that the rows before it are there.

        Every step may be done again: rows are folded by identity, and so are dead letters in their table.

        Args:
            sink: where rows go.
            producer: where dead letters go.
            until_done: runs one step, again and again while its failure is one that passes.

        Raises:
            StoreError: the store refused for good.
            LogError: the dead-letter topic refused for good.
        """
        for table, block in self.rows.tables.items():
            until_done(lambda table=table, block=block: sink.insert(table, block))  # type: ignore[misc]
        if self.arrived:
            arrived = letters.letter_block(self.arrived)
            until_done(lambda: sink.insert(letters.TABLE, arrived))
        if self.dead:
            until_done(lambda: _send(producer, self.dead))
        if self.rows.ledger.rows:
            until_done(lambda: sink.insert(LEDGER, self.rows.ledger))


def _send(producer: Producer, dead: list[Record]) -> None:
    producer.send(dead)
