"""Dead letters: making them from records that cannot be read, and reading them back as rows."""

from __future__ import annotations

from typing import Any

from consumers.rows import Block
from eventlog.log import Record, StoredRecord
from schemas import dead_letters as header
from schemas.errors import SchemaError
from schemas.ids import PublisherId
from schemas.topics import MAX_RECORD_BYTES

TABLE = "dead_letters_rows"

COLUMNS = (
    *("source_topic", "source_partition", "source_offset", "run_id", "publisher_id", "event_type", "event_id", "stage"),
    *("class_name", "exception_class", "exception_message", "key", "value", "headers", "published_at"),
)

# Kafka Connect's name of the stage in which bytes become a record.
_STAGE = "VALUE_CONVERTER"
_WHERE = "consumers.rows.read_event"
SOURCE_KEY = "millrace.source.key"
"""Header of a dead letter that holds the record's own key."""

SHORTENED = "did not fit beside these headers"
"""Part of the message of a dead letter whose value was left out."""

_RUN_ID_LENGTH = 36


def dead_letter(record: StoredRecord, error: SchemaError, topic: str) -> Record:
    """The record as it came, for the dead-letter topic, with headers that say where it was and what was wrong.

    A record near the size limit does not fit with those headers: its value is then left out, and the message says so;
    the record itself stays where the headers point to until it expires.
    """
    letter = _letter(record, record.value, error, topic)
    if _size(letter) <= MAX_RECORD_BYTES:
        return letter
    shortened = SchemaError(f"{error} (the value of {len(record.value)} bytes {SHORTENED})")
    letter = _letter(record, b"", shortened, topic)
    if _size(letter) <= MAX_RECORD_BYTES:
        return letter
    return _letter(StoredRecord(*_place(record), record.published_at, b"", b"", ()), b"", shortened, topic)


def letter_block(records: list[StoredRecord]) -> Block:
    """Records of the dead-letter topic as rows of the table. Reads anything: what is missing or odd is left empty."""
    rows = [_row(record) for record in records]
    block = Block.empty(COLUMNS)
    block.extend([list(column) for column in zip(*rows, strict=True)], len(rows))
    return block


def _letter(record: StoredRecord, value: bytes, error: SchemaError, topic: str) -> Record:
    source_topic, partition, offset = _place(record)
    headers = header.dead_letter_headers(
        record.headers, topic=source_topic, partition=partition, offset=offset, stage=_STAGE, where=_WHERE, error=error
    )
    # The record's own key is kept by its headers and place; the letter's key is its source topic (schemas/topics.py).
    return Record(topic, source_topic.encode(), value, (*headers, (SOURCE_KEY, record.key)))


def _place(record: StoredRecord) -> tuple[str, int, int]:
    return record.topic, record.partition, record.offset


def _size(record: Record) -> int:
    return len(record.key) + len(record.value) + sum(len(name) + len(content) for name, content in record.headers)


def _row(record: StoredRecord) -> tuple[Any, ...]:
    headers = dict(record.headers)  # Of repeated names the last one: ours come after the record's own.

    def text(name: str) -> str:
        return headers.get(name, b"").decode(errors="backslashreplace")

    try:
        place = (text(header.TOPIC) or record.topic, int(text(header.PARTITION)), int(text(header.OFFSET)))
    except ValueError:  # Somebody else wrote to the topic: the letter is its own source.
        place = _place(record)
    key = headers.get(SOURCE_KEY, record.key)
    run_id, publisher_id = _publisher(text("ce_source"), text("ce_id").partition(":")[0], key.decode(errors="replace"))
    return (
        *place,
        *(run_id, publisher_id, text("ce_type"), text("ce_id"), text(header.STAGE), text(header.CLASS)),
        *(text(header.EXCEPTION_CLASS), text(header.EXCEPTION_MESSAGE), key, record.value),
        [(name, content.decode(errors="backslashreplace")) for name, content in record.headers],
        record.published_at,
    )


def _publisher(*claims: str) -> tuple[str, str]:
    """Run and publisher by the first claim that names one: a publisher's id, an episode's id, or a run's id."""
    for claim in claims:
        pieces = claim.split(".")
        try:
            found = PublisherId.parse(".".join(pieces[:5]))
        except SchemaError:
            if len(claim) == _RUN_ID_LENGTH and claim.count("-") == 4:
                return claim, ""
            continue
        return found.run_id, str(found)
    return "", ""
