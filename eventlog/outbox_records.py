"""From payloads to what an outbox holds: numbered events, with the records that carry them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from eventlog.log import Record
from schemas.events import Envelope, Event
from schemas.ids import PublisherId
from schemas.payloads import Deferred, Payload, PublisherReport, Written
from schemas.topics import MAX_RECORD_BYTES, TOPICS


@dataclass(frozen=True, slots=True)
class Meta:
    """Whose outbox it is, and how far it has come.

    ``closed``: the publisher closed it in order. ``closing``: the closing report is written, and is its last record.
    """

    publisher_id: PublisherId
    host: str
    pid: int
    topic_prefix: str
    closed: bool = False
    closing: bool = False


@dataclass(frozen=True, slots=True)
class Unmade:
    """Events that wait to be made, numbered already.

    ``numbers``: event type to number, in the order of the events.
    """

    maker: str
    value: bytes
    numbers: dict[str, int]
    wall_time: int


Accepted = tuple[Envelope, Record] | Unmade
"""What a publisher appends."""


def make_records(
    meta: Meta, payloads: Iterable[Payload | Written], emitted: dict[str, int], wall_time: int
) -> list[tuple[Envelope, Record]]:
    """The payloads as events, numbered on from ``emitted`` (which is kept up), with the records that carry them.

    An event that is too large for one record becomes several.

    Raises:
        RecordTooLargeError: an event does not fit into one record and cannot be split.
    """
    made: list[tuple[Envelope, Record]] = []
    publisher_id = str(meta.publisher_id)
    for payload in payloads:
        model = payload.model
        number = emitted.get(model.EVENT_TYPE, 0) + 1
        fields: dict[str, Any] = {
            "event_type": model.EVENT_TYPE,
            "run_id": meta.publisher_id.run_id,
            "attempt": meta.publisher_id.attempt,
            "publisher_id": publisher_id,
            "number": number,
            "rows": payload.rows,
            "wall_time": wall_time,
        }
        topic = TOPICS[model.TOPIC].name(meta.topic_prefix)
        if isinstance(payload, Written):
            whole: Envelope = Envelope(**fields)
            record = Record(topic, *whole.record(payload.episode_id, payload.json))
        else:
            whole = event = Event(**fields, data=payload)
            record = Record(topic, *event.encode())
        if record.size <= MAX_RECORD_BYTES:
            made.append((whole, record))
        else:
            event = Event(**fields, data=payload.read() if isinstance(payload, Written) else payload)
            made += [(part, Record(topic, *part.encode())) for part in event.split()]
        emitted[model.EVENT_TYPE] = number
    return made


def number_deferred(deferred: Deferred, emitted: dict[str, int], wall_time: int) -> Unmade:
    """Deferred events with their numbers, on from ``emitted`` (which is kept up)."""
    numbers = {model.EVENT_TYPE: emitted.get(model.EVENT_TYPE, 0) + 1 for model in deferred.models}
    emitted |= numbers
    return Unmade(deferred.maker, deferred.value, numbers, wall_time)


def make_report(meta: Meta, emitted: dict[str, int], acknowledged: dict[str, int], *, closing: bool) -> PublisherReport:
    """The cumulative report of a publisher, which counts itself as emitted.

    The closing report counts itself as acknowledged too: who reads it has it from the log.
    """
    own = PublisherReport.EVENT_TYPE
    emitted = {**emitted, own: emitted.get(own, 0) + 1}
    acknowledged = {event_type: acknowledged.get(event_type, 0) for event_type in emitted}
    if closing:
        acknowledged[own] += 1
    publisher = meta.publisher_id
    return PublisherReport(
        role=str(publisher.role),
        worker_index=publisher.worker_index,
        restart=publisher.restart,
        node=publisher.node,
        host=meta.host,
        pid=meta.pid,
        emitted=emitted,
        acknowledged=acknowledged,
        closing=closing,
        closed_by="" if not closing else "publisher" if meta.closed else "forwarder",
    )
