"""A member of a consumer group on Kafka.

Partitions move between members one by one (cooperative-sticky), so a member keeps what it has while others come and go.
Positions never jump: where the group has no committed offset it is set to the start offset here, and said so; where the
offset has expired it is an error.

A member has to poll within the lease, or the group goes on without it; heartbeats in between are sent in the
background. While a batch is written that takes long, ``poll(0.0, max_records=0)`` keeps the membership and takes
nothing: what was fetched stays in a bounded buffer, and no more is fetched.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from kafka import KafkaConsumer, OffsetAndMetadata
from kafka import TopicPartition as KafkaPartition
from kafka import errors as kafka_errors
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from eventlog.kafka_client import REQUEST_TIMEOUT_S, open_client, stored_record, translated
from eventlog.log import Consumer, StoredRecord, TopicPartition
from schemas.errors import CommitFencedError, LogUnavailableError, OffsetOutOfRangeError, UnknownTopicError

if TYPE_CHECKING:
    from eventlog.kafka_log import KafkaLog

_SESSION_S: Final = 10.0
_HEARTBEAT_S: Final = 1.0
"""A member learns of a rebalance by the answer to a heartbeat, so this is how long the others wait for it."""
_FETCH_BYTES: Final = 8 * 1024 * 1024
_DRAIN_RECORDS: Final = 5_000
_COMMIT_S: Final = 20.0
_QUIET_S: Final = 5.0
"""After so long without a record the log is asked for a sign of life: a dead broker is silent like an empty topic."""

logger = logging.getLogger("millrace.log")


class KafkaLogConsumer(Consumer):
    """A member of a group of a ``KafkaLog``. It joins at its first ``poll``. Not for use by several threads at once.

    Args:
        log: the log.
        group: the group's name.
        topics: full names of the topics.
        lease_s: longest time between two polls.
    """

    def __init__(self, log: KafkaLog, group: str, topics: Sequence[str], lease_s: float) -> None:
        self._log = log
        self._group = group
        self._topics = sorted(set(topics))
        self._owned: set[KafkaPartition] = set()
        self._first: dict[KafkaPartition, int] = {}
        self._buffers: OrderedDict[KafkaPartition, deque[StoredRecord]] = OrderedDict()
        self._committing: dict[KafkaPartition, Any] = {}
        self._void = False
        self._closed = False
        self._heard_at = time.monotonic()
        self._client = open_client(
            KafkaConsumer,
            log.address,
            "to a new consumer",
            **log.options,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            partition_assignment_strategy=[CooperativeStickyAssignor],
            max_poll_interval_ms=round(lease_s * 1_000),
            session_timeout_ms=round(_SESSION_S * 1_000),
            heartbeat_interval_ms=round(min(_HEARTBEAT_S, lease_s / 3) * 1_000),
            fetch_max_bytes=_FETCH_BYTES,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )
        self._client.subscribe(self._topics, listener=_Listener(self))

    def poll(self, timeout_s: float, max_records: int = 500) -> list[StoredRecord]:
        """Records after those of the last poll. With ``max_records`` 0 it only keeps the membership."""
        if self._void:
            self._start_over()
            return []
        deadline = time.monotonic() + timeout_s
        while True:
            # A record at a time where some wait already: the membership needs the poll, not the records.
            waiting = max_records == 0 or any(self._buffers.values())
            left = deadline - time.monotonic()
            self._fetch(0.0 if waiting else max(0.0, left), 1 if waiting else _DRAIN_RECORDS)
            records = self._take(max_records)
            if records or max_records == 0 or time.monotonic() >= deadline:
                return records

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Set next offsets to read, all or none. Offsets of partitions that have moved on are refused."""
        wanted = {}
        for source, offset in offsets.items():
            if source.topic not in self._topics:
                raise UnknownTopicError(
                    f"group {self._group!r}: expected to commit a partition of {', '.join(self._topics)}, got "
                    f"{source.topic}[{source.partition}]"
                )
            wanted[KafkaPartition(source.topic, source.partition)] = OffsetAndMetadata(offset, "", -1)
        self._refuse_strangers(wanted)
        self._committing = wanted
        deadline = time.monotonic() + _COMMIT_S
        try:
            while self._committing:
                try:
                    self._client.commit(self._committing, timeout_ms=round(REQUEST_TIMEOUT_S * 1_000))
                    return
                except (kafka_errors.RebalanceInProgressError, kafka_errors.CommitFailedError) as error:
                    if not _is_rebalance(error):
                        self._drop(set(self._owned))
                        raise self._fenced(wanted) from error
                    if time.monotonic() > deadline:
                        raise LogUnavailableError(
                            f"group {self._group!r}: expected its rebalance to end within {_COMMIT_S:g} s, it goes on; "
                            "commit again"
                        ) from error
                except kafka_errors.KafkaError as error:
                    raise translated(error, self._log.address, f"to a commit of group {self._group!r}") from error
                # The group is dividing its partitions anew. The listener commits those that this member loses.
                self._fetch(0.1, 1)
                self._refuse_strangers(self._committing)
        finally:
            self._committing = {}

    def assignment(self) -> set[TopicPartition]:
        """Partitions that this member owns now."""
        return {TopicPartition(source.topic, source.partition) for source in self._owned}

    def close(self) -> None:
        """Leave the group, so that its other members take over at once."""
        if self._closed:
            return
        self._closed = True
        try:
            self._client.close(timeout_ms=round(REQUEST_TIMEOUT_S * 1_000))
        except kafka_errors.KafkaError as error:
            logger.warning(
                "log %s: group %r could not be left (%s); it goes on without this member after %g s",
                self._log.address,
                self._group,
                error,
                _SESSION_S,
            )
        self._drop(set(self._owned))

    def _fetch(self, wait_s: float, max_records: int) -> None:
        """One poll of the client: membership, rebalances, and records into the buffers."""
        try:
            batches = self._client.poll(timeout_ms=round(wait_s * 1_000), max_records=max_records)
        except kafka_errors.NoOffsetForPartitionError as error:
            self._begin(error.args[0])
            return
        except (kafka_errors.OffsetOutOfRangeError, kafka_errors.LogTruncationError) as error:
            raise self._out_of_range(error) from error
        except kafka_errors.KafkaError as error:
            raise translated(error, self._log.address, f"to group {self._group!r}") from error
        self._remember_joining()
        for source, records in batches.items():
            if source in self._owned:
                self._first.setdefault(source, records[0].offset)
                self._buffers.setdefault(source, deque()).extend(map(stored_record, records))
        if batches:
            self._heard_at = time.monotonic()
        elif time.monotonic() > self._heard_at + _QUIET_S:
            self._log.check()
            self._heard_at = time.monotonic()

    def _remember_joining(self) -> None:
        """Have the client go on with a join that the end of a poll has cut off.

        It does so by itself only as long as it sees a reason to join. Where that was that it got to know the topics'
        partitions, it is gone as soon as this member, as the leader, has divided them: kafka-python 3.0.12 then never
        takes the partitions that it was given, sends no heartbeats, and is silent for ever.
        """
        coordinator = self._client._coordinator
        if coordinator.rejoining and not coordinator.need_rejoin():
            coordinator.request_rejoin()

    def _take(self, max_records: int) -> list[StoredRecord]:
        records: list[StoredRecord] = []
        for source in list(self._buffers):
            if len(records) >= max_records:
                break
            buffer = self._buffers[source]
            records += [buffer.popleft() for _ in range(min(len(buffer), max_records - len(records)))]
            # The next poll begins with another partition, so that a busy one cannot starve the rest.
            self._buffers.move_to_end(source)
            if not buffer:
                del self._buffers[source]
        return records

    def _begin(self, sources: Iterable[KafkaPartition]) -> None:
        """Partitions without a committed offset begin at the start offset."""
        try:
            starts = self._client.beginning_offsets(list(sources), timeout_ms=round(REQUEST_TIMEOUT_S * 1_000))
        except kafka_errors.KafkaError as error:
            raise translated(error, self._log.address, "to list start offsets") from error
        for source, start in starts.items():
            logger.info(
                "group %r, %s[%d]: no committed offset; it begins at the start offset %d",
                self._group,
                source.topic,
                source.partition,
                start,
            )
            self._client.seek(source, start)

    def _start_over(self) -> None:
        """After a refused commit: what this member still owns is read again from the committed offsets."""
        self._buffers.clear()
        self._first.clear()
        for source in set(self._owned):
            try:
                # Time for a second request: where one gets no answer, the client finds its coordinator anew.
                committed = self._client.committed(source, timeout_ms=round(2 * REQUEST_TIMEOUT_S * 1_000))
            except kafka_errors.KafkaError as error:
                raise translated(error, self._log.address, f"to list offsets of group {self._group!r}") from error
            if committed is None:
                self._begin([source])
            else:
                self._client.seek(source, committed)
        self._void = False

    def _refuse_strangers(self, wanted: Mapping[KafkaPartition, Any]) -> None:
        """Refuse what Kafka would let pass: a member may commit any partition, also one that was taken from it."""
        if any(
            source not in self._owned or offset.offset < self._first.get(source, 0) for source, offset in wanted.items()
        ):
            raise self._fenced(wanted)

    def _fenced(self, wanted: Mapping[KafkaPartition, Any]) -> CommitFencedError:
        self._void = True
        mine = ", ".join(sorted(f"{source.topic}[{source.partition}]" for source in wanted))
        return CommitFencedError(
            f"group {self._group!r}: expected a commit of the present generation, got one of {mine}, which this member "
            "does not own now: another member has taken over; drop the work and poll again"
        )

    def _out_of_range(self, error: Exception) -> OffsetOutOfRangeError:
        positions = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
        for source, position in positions.items():
            start, end = self._log.offsets(source.topic)[source.partition]
            return OffsetOutOfRangeError(
                f"group {self._group!r}, {source.topic}[{source.partition}]: expected the next offset within "
                f"{start}..{end} (start and end offset of the partition), got {position}; if the records before "
                f"{start} may be missed, commit {start} and open the consumer again"
            )
        return OffsetOutOfRangeError(f"group {self._group!r}: expected offsets that exist, got {error}")

    def _drop(self, sources: set[KafkaPartition]) -> None:
        self._owned -= sources
        for source in sources:
            self._buffers.pop(source, None)
            self._first.pop(source, None)


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Runs within ``poll``, on the client's own thread. There only awaited calls work: ``commit()`` would raise."""

    def __init__(self, member: KafkaLogConsumer) -> None:
        self._member = member

    async def on_partitions_revoked(self, revoked: Iterable[KafkaPartition]) -> None:
        member, sources = self._member, set(revoked)
        last = {source: offset for source, offset in member._committing.items() if source in sources}
        try:
            if last:
                await member._client.commit_async(last)
                for source in last:
                    del member._committing[source]
        finally:
            member._drop(sources)  # what stays in _committing after a failure is refused as no longer owned

    async def on_partitions_lost(self, lost: Iterable[KafkaPartition]) -> None:
        self._member._drop(set(lost))

    async def on_partitions_assigned(self, assigned: Iterable[KafkaPartition]) -> None:
        self._member._owned |= set(assigned)


def _is_rebalance(error: Exception) -> bool:
    """Whether the group only divides its partitions anew, and this member is still one of it."""
    return isinstance(error, kafka_errors.RebalanceInProgressError) or (
        bool(error.args) and isinstance(error.args[0], kafka_errors.RebalanceInProgressError)
    )
