"""Sending to Kafka. Idempotent, in order, and never stuck for longer than it was given.

kafka-python's producer has traps, and each shapes this class (seen on 3.0.12):

* Past ``delivery_timeout_ms`` an idempotent producer is dead without saying so. Hence no such timeout: one producer
  retries for as long as a ``send`` waits, and is thrown away when that gives up.
* Any error that is not retriable makes it fatal for all topics. Hence the checks before, and a new producer after.
* Its buffer has no bound. Hence the bound on what is pending here.
* ``send`` to a topic that does not exist blocks for a minute. Hence the question for the topic before.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kafka import KafkaProducer
from kafka import errors as kafka_errors

from eventlog.kafka_client import REQUEST_TIMEOUT_S, open_client, translated
from eventlog.log import Producer, Record, TopicPartition
from eventlog.partitioner import partition_of
from schemas.errors import LogUnavailableError, MillraceError, RecordTooLargeError, UnknownTopicError
from schemas.topics import MAX_RECORD_BYTES

if TYPE_CHECKING:
    from eventlog.kafka_log import KafkaLog

MAX_PENDING_RECORDS: Final = 5_000
MAX_PENDING_BYTES: Final = 16_000_000
"""Bounds on what one ``send`` has handed to the client and not yet seen acknowledged."""

_BATCH_BYTES: Final = 131_072
_LINGER_MS: Final = 10
_FACTS_S: Final = 60.0

_REFUSED_FOR_GOOD: Final = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.InvalidRecordError,
)

Pending: TypeAlias = "deque[tuple[Record, Any]]"

logger = logging.getLogger("millrace.log")


class KafkaLogProducer(Producer):
    """A producer of a ``KafkaLog``. It connects at its first ``send``, and anew after a failure."""

    def __init__(self, log: KafkaLog) -> None:
        self._log = log
        self._client: Any = None
        self._partitions: dict[str, tuple[int, float]] = {}

    def send(self, records: Sequence[Record], timeout_s: float = 60.0) -> list[tuple[TopicPartition, int]]:
        """Append the records in order and wait for the acknowledgement of all in-sync replicas."""
        deadline = time.monotonic() + timeout_s
        targets = [self._target(record) for record in records]
        if not records:
            return []
        client = self._connected()
        places: list[tuple[TopicPartition, int]] = []
        pending: Pending = deque()
        pending_bytes = 0
        try:
            for record, target in zip(records, targets, strict=True):
                while pending and (
                    len(pending) >= MAX_PENDING_RECORDS or pending_bytes + record.size > MAX_PENDING_BYTES
                ):
                    pending_bytes -= pending[0][0].size
                    places.append(_settle(pending, deadline))
                future = client.send(
                    target.topic, record.value, record.key, list(record.headers), partition=target.partition
                )
                pending.append((record, future))
                pending_bytes += record.size
            # Not by flush(): it fails on a batch that the client had to split.
            while pending:
                places.append(_settle(pending, deadline))
        except kafka_errors.KafkaError as error:
            self._discard()
            raise self._explained(error, pending, timeout_s) from error
        return places

    def close(self) -> None:
        """Close the client. Nothing is pending between two calls of ``send``."""
        self._discard()

    def _target(self, record: Record) -> TopicPartition:
        partitions, until = self._partitions.get(record.topic, (0, 0.0))
        if time.monotonic() > until:
            partitions = self._log.topic(record.topic).partitions
            self._partitions[record.topic] = (partitions, time.monotonic() + _FACTS_S)
        if record.size > MAX_RECORD_BYTES:
            raise RecordTooLargeError(
                f"record for {record.topic}: expected at most {MAX_RECORD_BYTES} bytes of key, value and headers, got "
                f"{record.size}; split it"
            )
        return TopicPartition(record.topic, partition_of(record.key, partitions))

    def _connected(self) -> Any:
        if self._client is None:
            self._client = open_client(
                KafkaProducer,
                self._log.address,
                "to a new producer",
                **self._log.options,
                acks="all",
                enable_idempotence=True,
                delivery_timeout_ms=float("inf"),
                max_block_ms=round(REQUEST_TIMEOUT_S * 1_000),
                compression_type="zstd",
                batch_size=_BATCH_BYTES,
                linger_ms=_LINGER_MS,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
        return self._client

    def _discard(self) -> None:
        """End the client with what it still holds: a call that has failed must not go on in the background."""
        client, self._client = self._client, None
        self._partitions.clear()
        if client is None:
            return
        # Not by close(): with records pending it raises before it has stopped the sender, which then lives on.
        sender = client._sender
        sender.force_close()
        sender.join(REQUEST_TIMEOUT_S)
        if sender.is_alive():
            logger.warning("log %s: a sender did not end within %g s", self._log.address, REQUEST_TIMEOUT_S)
            return
        client.close(timeout=0)

    def _explained(self, error: Exception, pending: Pending, timeout_s: float) -> MillraceError:
        """Why the call failed. Everything pending has failed by now: one record's failure takes the others along."""
        for record, future in pending:
            if isinstance(future.exception, _REFUSED_FOR_GOOD):
                return RecordTooLargeError(
                    f"record for {record.topic}: expected one that the broker takes, got {record.size} bytes that it "
                    f"refused with {type(future.exception).__name__}; split it, or raise max.message.bytes of the topic"
                )
        for record, future in pending:
            if isinstance(future.exception, kafka_errors.InvalidTimestampError):
                return LogUnavailableError(
                    f"record for {record.topic}: expected the broker to take the present as its time, got "
                    f"{type(future.exception).__name__}; set this machine's clock right"
                )
        if isinstance(error, _REFUSED_FOR_GOOD):
            return RecordTooLargeError(
                f"log {self._log.address}: expected records that it takes, got {error}; split them"
            )
        if isinstance(error, kafka_errors.KafkaTimeoutError):
            # A topic may have been deleted: for the client a reason to wait for ever.
            if missing := self._log.missing(sorted({record.topic for record, _ in pending})):
                return UnknownTopicError(
                    f"topic {missing[0]!r}: expected a topic of log {self._log.address}, it is gone; create it again"
                )
            return LogUnavailableError(
                f"log {self._log.address}: expected acknowledgements within {timeout_s:g} s, {len(pending)} records "
                "have none; they may or may not be on the log: send them again"
            )
        return translated(error, self._log.address, "to new records")


def _settle(pending: Pending, deadline: float) -> tuple[TopicPartition, int]:
    # Stays in the queue until it has succeeded, so that a failure finds it there.
    place = pending[0][1].get(max(0.0, deadline - time.monotonic()))
    pending.popleft()
    return TopicPartition(place.topic, place.partition), int(place.offset)
