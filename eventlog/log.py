"""The log's interface. Its semantics are Kafka's; an engine may be simpler inside, never looser outside.

A topic has partitions; a partition is an append-only sequence of records with rising offsets, not always without
gaps. The end offset is the one that the next record may get; the start offset rises as records expire. Records of one
key keep to one partition (Kafka's murmur2 partitioner). Delivery is at least once: a record counts as sent when
``Producer.send`` has returned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from schemas.events import Headers
from schemas.topics import Topic


@dataclass(frozen=True, slots=True, order=True)
class TopicPartition:
    """One partition of a topic, by the topic's full name."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Record:
    """A record to be sent. Its time is set by the log when it is published."""

    topic: str
    key: bytes
    value: bytes
    headers: Headers = ()

    @property
    def size(self) -> int:
        """Bytes of key, value and headers, as the limit counts them (``schemas.topics.MAX_RECORD_BYTES``)."""
        return len(self.key) + len(self.value) + sum(len(name) + len(content) for name, content in self.headers)


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as the log holds it. ``published_at`` is publish time in UTC microseconds."""

    topic: str
    partition: int
    offset: int
    published_at: int
    key: bytes
    value: bytes
    headers: Headers

    @property
    def source(self) -> TopicPartition:
        """The partition that it was read from."""
        return TopicPartition(self.topic, self.partition)


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What identifies a topic for good: a topic that was deleted and made again has another id."""

    name: str
    topic_id: str
    partitions: int


class _Closes(ABC):
    """What is closed at the end of a ``with`` block."""

    @abstractmethod
    def close(self) -> None:
        """Release what is held. Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Producer(_Closes):
    """Sends records. Not for use by several threads at once."""

    @abstractmethod
    def send(self, records: Sequence[Record], timeout_s: float = 60.0) -> list[tuple[TopicPartition, int]]:
        """Append the records in order and wait until the log has acknowledged all of them.

        Returns:
            Partition and offset of each record.

        Raises:
            RecordTooLargeError: a record is larger than the limit; nothing of this call was sent.
            UnknownTopicError: a topic does not exist; nothing of this call was sent.
            LogUnavailableError: not acknowledged in time; some of the records may have been appended.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what the producer holds. Safe to call twice."""


class Consumer(_Closes):
    """A member of a consumer group, reading each partition from the group's committed offset."""

    @abstractmethod
    def poll(self, timeout_s: float, max_records: int = 500) -> list[StoredRecord]:
        """Records in order within each partition; empty where none came in time or the group has another owner.

        With ``max_records`` 0 it takes nothing and only keeps the membership: for the time of work that lasts longer
        than a member may stay away.

        A member that has lost the group gets at least one empty poll with an empty ``assignment()`` before it owns
        the group again: what it has read and not committed is then void, and will be read again by the owner.

        Raises:
            OffsetOutOfRangeError: the next offset has expired. Never jumps silently.
            LogUnavailableError: the log does not answer.
        """

    @abstractmethod
    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Set the group's next offset to read, per partition.

        Raises:
            CommitFencedError: the group has moved on to another member; drop the work and poll again.
            LogUnavailableError: the log does not answer.
        """

    @abstractmethod
    def assignment(self) -> set[TopicPartition]:
        """Partitions that this member owns now."""

    @abstractmethod
    def close(self) -> None:
        """Leave the group, so that another member can take over at once. Safe to call twice."""


class Log(_Closes):
    """A connection to one event log."""

    @property
    @abstractmethod
    def address(self) -> str:
        """Where the log is, for people and for opening it again in another process (``open_log``)."""

    @property
    @abstractmethod
    def cluster_id(self) -> str:
        """Identity of this log as a whole."""

    @abstractmethod
    def ensure_topics(self, topics: Sequence[Topic], prefix: str) -> list[str]:
        """Create the topics that are missing. Returns the full names of those it created."""

    @abstractmethod
    def topic(self, name: str) -> TopicFacts:
        """Facts about a topic.

        Raises:
            UnknownTopicError: it does not exist.
        """

    @abstractmethod
    def offsets(self, topic: str) -> dict[int, tuple[int, int]]:
        """Partition to (start offset, end offset)."""

    @abstractmethod
    def committed(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """The group's committed offsets; a partition without one is absent."""

    @abstractmethod
    def read(self, topic: str, partition: int, start: int, stop: int, max_records: int = 500) -> list[StoredRecord]:
        """The first records with start <= offset < stop, without a group. Empty where there are none.

        Raises:
            OffsetOutOfRangeError: start lies before the start offset or stop behind the end; names both ranges.
        """

    @abstractmethod
    def producer(self) -> Producer:
        """A new producer."""

    @abstractmethod
    def consumer(self, group: str, topics: Sequence[str]) -> Consumer:
        """A new member of the group. A group without a committed offset begins at the start offset."""

    @abstractmethod
    def close(self) -> None:
        """Release the connection. Safe to call twice."""

    def lag(self, group: str, topics: Sequence[str]) -> int:
        """How many offsets the group has yet to commit, over all the topics."""
        committed = self.committed(group, topics)
        return sum(
            max(0, end - max(start, committed.get(TopicPartition(topic, partition), start)))
            for topic in topics
            for partition, (start, end) in self.offsets(topic).items()
        )
