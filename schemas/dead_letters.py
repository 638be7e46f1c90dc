"""A dead letter: a record that could not be read, as it came, with headers that say where from and why.

The headers are those of Kafka Connect (KIP-298), so that existing tools understand them. The error's message never
holds a value of the record.
"""

from __future__ import annotations

from schemas.events import Headers

PREFIX = "__connect.errors."

TOPIC = PREFIX + "topic"
PARTITION = PREFIX + "partition"
OFFSET = PREFIX + "offset"
STAGE = PREFIX + "stage"
CLASS = PREFIX + "class.name"
EXCEPTION_CLASS = PREFIX + "exception.class.name"
EXCEPTION_MESSAGE = PREFIX + "exception.message"


def dead_letter_headers(
    original: Headers, *, topic: str, partition: int, offset: int, stage: str, where: str, error: Exception
) -> Headers:
    """The original headers, followed by those that say where the record came from and what was wrong with it."""
    return (
        *original,
        (TOPIC, topic.encode()),
        (PARTITION, str(partition).encode()),
        (OFFSET, str(offset).encode()),
        (STAGE, stage.encode()),
        (CLASS, where.encode()),
        (EXCEPTION_CLASS, type(error).__qualname__.encode()),
        (EXCEPTION_MESSAGE, str(error)[:2_000].encode()),
    )
