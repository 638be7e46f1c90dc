"""The event log on Apache Kafka, by kafka-python.

What it takes from the cluster: topic ids and the cluster id as identities, murmur2 as the partitioner, the broker's
clock as the time of records (``message.timestamp.type=LogAppendTime``), so that neither a wrong clock here nor a bar
from 1990 can make a record look old.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec

from eventlog.kafka_client import client_options, open_client, stored_record, translated
from eventlog.kafka_consumer import KafkaLogConsumer
from eventlog.kafka_producer import KafkaLogProducer
from eventlog.kafka_security import KafkaSecurity
from eventlog.log import Consumer, Log, Producer, StoredRecord, TopicFacts, TopicPartition
from schemas.errors import LogError, LogUnavailableError, OffsetOutOfRangeError, UnknownTopicError
from schemas.topics import Topic

T = TypeVar("T")

MAX_MESSAGE_BYTES: Final = 1_048_588
"""``max.message.bytes`` of our topics: Kafka's default, above ``schemas.topics.MAX_RECORD_BYTES`` and its framing."""

_LONGEST_MS: Final = 2**63 - 1
_ANSWER_S: Final = 10.0


def topic_settings(topic: Topic) -> dict[str, str]:
    """The Kafka settings of a topic, by Kafka's names."""
    return {
        "cleanup.policy": "delete",
        "compression.type": "zstd",
        "max.message.bytes": str(MAX_MESSAGE_BYTES),
        "message.timestamp.type": "LogAppendTime",
        "retention.bytes": "-1",
        "retention.ms": str(topic.retention_ms),
        # What is kept for ever needs no segments by time.
        "segment.ms": str(_LONGEST_MS if topic.retention_ms < 0 else 86_400_000),
    }


class KafkaLog(Log):
    """The log of a Kafka cluster. May be shared by threads; to be opened after a fork, not before.

    Args:
        address: ``kafka:HOST:PORT[,HOST:PORT…]``.
        security: how the cluster lets us in; by default what the environment says.
        connect_timeout_s: how long to wait for a first answer.
        lease_s: how long a consumer group waits for a member that has stopped polling (``max.poll.interval.ms``).

    Raises:
        LogUnavailableError: the cluster did not answer in time.
        LogError: it refused user or password.
        SettingsError: address or security cannot be used.
    """

    def __init__(
        self,
        address: str,
        *,
        security: KafkaSecurity | None = None,
        connect_timeout_s: float = 5.0,
        lease_s: float = 300.0,
    ) -> None:
        self._address = address
        self._lease_s = lease_s
        self._options = client_options(
            address, (security or KafkaSecurity.from_environment()).client_options(), connect_timeout_s
        )
        self._closed = False
        self._reading = threading.Lock()
        self._reader: Any = None
        self._reader_at: tuple[KafkaPartition, int] | None = None
        self._admin = open_client(KafkaAdminClient, address, f"within {connect_timeout_s:g} s", **self._options)
        self._cluster_id = str(self._ask("to name its cluster", lambda admin: admin.describe_cluster()["cluster_id"]))

    @property
    def address(self) -> str:
        """``kafka:`` and the servers, as given."""
        return self._address

    @property
    def cluster_id(self) -> str:
        """Kafka's cluster id."""
        return self._cluster_id

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of kafka-python's clients, the password among them: not to be printed."""
        return self._options

    def ensure_topics(self, topics: Sequence[Topic], prefix: str) -> list[str]:
        """Create the topics that are missing. Returns the full names of those it created."""
        names = {topic.name(prefix): topic for topic in topics}
        missing = {
            name: {"num_partitions": topic.partitions, "configs": topic_settings(topic)}
            for name, topic in names.items()
            if name not in self._described(list(names))
        }
        if not missing:
            return []
        answer = self._ask("to create topics", lambda admin: admin.create_topics(missing, raise_errors=False))
        created = []
        for result in answer["topics"]:
            failure = kafka_errors.for_code(result["error_code"])
            if failure is kafka_errors.NoError:
                created.append(result["name"])
            elif failure is not kafka_errors.TopicAlreadyExistsError:  # made by another process meanwhile
                raise LogError(
                    f"topic {result['name']!r}: expected to create it on log {self.address}, got {failure.__name__}: "
                    f"{result['error_message']}; create it by hand, or see what the cluster allows"
                )
        self._ask("to have leaders for new topics", lambda admin: admin.wait_for_topics(list(missing)))
        return [name for name in names if name in created]

    def topic(self, name: str) -> TopicFacts:
        """Facts about a topic, asked anew each time: a topic may be deleted and made again."""
        found = self._described([name]).get(name)
        if found is None:
            known = sorted(each for each in self._ask("to list topics", lambda admin: admin.list_topics()))
            raise UnknownTopicError(
                f"topic {name!r}: expected a topic of log {self.address}, which has {', '.join(known) or 'none'}; "
                f"create it first"
            )
        return TopicFacts(name, str(found["topic_id"]), len(found["partitions"]))

    def offsets(self, topic: str) -> dict[int, tuple[int, int]]:
        """Partition to (start offset, end offset)."""
        return self._offsets(topic, range(self.topic(topic).partitions))

    def committed(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """The group's committed offsets; a partition without one is absent."""
        wanted = [KafkaPartition(name, number) for name in topics for number in range(self.topic(name).partitions)]
        answer = self._ask(
            f"to list the offsets of group {group!r}", lambda admin: admin.list_group_offsets({group: wanted})
        )
        return {
            TopicPartition(source.topic, source.partition): found.offset
            for source, found in answer[group].items()
            if found.offset >= 0
        }

    def read(self, topic: str, partition: int, start: int, stop: int, max_records: int = 500) -> list[StoredRecord]:
        """The first records with ``start <= offset < stop``."""
        partitions = self.topic(topic).partitions
        if not 0 <= partition < partitions:
            raise UnknownTopicError(
                f"{topic}[{partition}]: expected a partition from 0 to {partitions - 1}; the topic has no other"
            )
        first, end = self._offsets(topic, [partition])[partition]
        if start < first or stop > end:
            raise self._outside(topic, partition, (first, end), (start, stop))
        with self._reading:
            try:
                return self._read(KafkaPartition(topic, partition), start, stop, max_records)
            except kafka_errors.OffsetOutOfRangeError as error:  # expired between the two questions
                bounds = self._offsets(topic, [partition])[partition]
                raise self._outside(topic, partition, bounds, (start, stop)) from error
            except kafka_errors.KafkaError as error:
                raise translated(error, self.address, f"to read {topic}[{partition}]") from error

    def producer(self) -> Producer:
        """A producer. It connects at its first ``send``."""
        return KafkaLogProducer(self)

    def consumer(self, group: str, topics: Sequence[str]) -> Consumer:
        """A member of the group. It joins at its first ``poll``."""
        for topic in topics:
            self.topic(topic)
        return KafkaLogConsumer(self, group, topics, self._lease_s)

    def close(self) -> None:
        """Close the connections; producers and consumers keep theirs. A thread that asks is not answered any more."""
        self._closed = True
        with self._reading:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
        self._admin.close()

    def check(self) -> None:
        """Ask the cluster for a sign of life; ``LogUnavailableError`` where there is none."""
        self._ask("to a sign of life", lambda admin: admin.describe_cluster(), patience_s=0.0)

    def settings(self, topics: Sequence[str]) -> dict[str, dict[str, str]]:
        """Topic name to its Kafka settings in force, defaults included."""
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in topics]
        answer = self._ask(
            "to describe topics", lambda admin: admin.describe_configs(resources, config_filter="all")
        ).get("topic", {})
        return {name: {key: str(value["value"]) for key, value in found.items()} for name, found in answer.items()}

    def change_settings(self, topic: str, settings: Mapping[str, str]) -> None:
        """Set some of a topic's Kafka settings; the others stay."""
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, dict(settings))
        self._ask(f"to change the settings of {topic}", lambda admin: admin.alter_configs([resource], incremental=True))

    def missing(self, topics: Sequence[str]) -> list[str]:
        """Those of the topics that are known not to exist: none where the cluster does not answer one question."""
        try:
            found = self._described(topics, patience_s=0.0)
        except LogUnavailableError:
            return []
        return [topic for topic in topics if topic not in found]

    def _described(self, names: Sequence[str], patience_s: float = _ANSWER_S) -> dict[str, Mapping[str, Any]]:
        """Those of the topics that exist."""
        found = self._ask("to describe topics", lambda admin: admin.describe_topics(list(names)), patience_s)
        return {topic["name"]: topic for topic in found if topic["error_code"] == 0}

    def _offsets(self, topic: str, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        sources = [KafkaPartition(topic, partition) for partition in partitions]

        def ask(spec: OffsetSpec) -> dict[KafkaPartition, Any]:
            wanted = dict.fromkeys(sources, spec)
            answer: dict[KafkaPartition, Any] = self._ask(
                f"to list the offsets of {topic}", lambda admin: admin.list_partition_offsets(wanted)
            )
            return answer

        starts, ends = ask(OffsetSpec.EARLIEST), ask(OffsetSpec.LATEST)
        return {source.partition: (starts[source].offset, ends[source].offset) for source in sources}

    def _outside(
        self, topic: str, partition: int, bounds: tuple[int, int], asked: tuple[int, int]
    ) -> OffsetOutOfRangeError:
        return OffsetOutOfRangeError(
            f"{topic}[{partition}]: expected offsets within {bounds[0]}..{bounds[1]} (start and end offset of the "
            f"partition), got {asked[0]}..{asked[1]}; records before the start offset have expired"
        )

    def _read(self, source: KafkaPartition, start: int, stop: int, max_records: int) -> list[StoredRecord]:
        if self._reader is None:
            self._reader = open_client(
                KafkaConsumer,
                self.address,
                "to a new reader",
                **self._options,
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="none",
                metrics_enabled=False,
            )
        reader = self._reader
        # A read that goes on where the last one ended uses what is fetched already.
        if self._reader_at != (source, start):
            reader.assign([source])
            reader.seek(source, start)
        self._reader_at = None
        records: list[StoredRecord] = []
        deadline = time.monotonic() + _ANSWER_S
        while len(records) < max_records:
            # Its position also passes offsets that hold no record: transaction markers, compacted records.
            position = reader.position(source, timeout_ms=round(_ANSWER_S * 1_000))
            if position >= stop:
                self._reader_at = (source, position)
                return records
            found = reader.poll(timeout_ms=500, max_records=max_records - len(records)).get(source, [])
            for record in found:
                if record.offset >= stop:
                    return records
                records.append(stored_record(record))
            if found:
                deadline = time.monotonic() + _ANSWER_S
            elif time.monotonic() > deadline and reader.position(source) == position:
                raise LogUnavailableError(
                    f"log {self.address}: expected records of {source.topic}[{source.partition}] from offset "
                    f"{position} within {_ANSWER_S:g} s, got none; see whether the broker is well"
                )
        self._reader_at = (source, records[-1].offset + 1) if records else None
        return records

    def _ask(self, doing: str, request: Callable[[Any], T], patience_s: float = _ANSWER_S) -> T:
        """Ask the cluster, again where it says that it may know later, for a bounded time."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return request(self._admin)
            except kafka_errors.UnknownTopicOrPartitionError as error:
                raise UnknownTopicError(f"log {self.address}: expected a topic {doing}, got none: {error}") from error
            except kafka_errors.KafkaError as error:
                again = isinstance(error, kafka_errors.RetriableError) and time.monotonic() <= deadline
                if self._closed or not again:
                    raise translated(error, self.address, doing) from error
            time.sleep(0.05)
