"""Dead letters for people: list them, look at one, send them back to where they came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from consumers.letters import SHORTENED, SOURCE_KEY
from eventlog.log import Log, Record, StoredRecord
from schemas import dead_letters as header
from schemas.errors import InputError
from schemas.topics import DEFAULT_PREFIX, TOPICS


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be read.

    Attributes:
        number: its offset on the dead-letter topic, by which people name it.
        topic: where the record came from …
        partition: …
        offset: … and its place there.
        event_type: what its headers say that it is; empty where they do not.
        event_id: likewise.
        error: class and message of what was wrong; never a value of the record.
        published_at: when it became a dead letter, UTC microseconds.
        record: it, as it came.
    """

    number: int
    topic: str
    partition: int
    offset: int
    event_type: str
    event_id: str
    error: str
    published_at: int
    record: Record

    @property
    def size(self) -> int:
        """Bytes of its value."""
        return len(self.record.value)


def dead_letters(log: Log, prefix: str = DEFAULT_PREFIX) -> Iterator[DeadLetter]:
    """All dead letters that the topic holds, oldest first.

    Raises:
        LogError: the log does not answer, or has no such topic.
    """
    topic = TOPICS["dead-letters"].name(prefix)
    for partition, (start, stop) in sorted(log.offsets(topic).items()):
        position = start
        while position < stop and (batch := log.read(topic, partition, position, stop)):
            yield from map(_letter, batch)
            position = batch[-1].offset + 1


def pick(letters: Iterable[DeadLetter], numbers: Iterable[int]) -> list[DeadLetter]:
    """The letters of these numbers, in that order.

    Raises:
        InputError: there is none of a number.
    """
    by_number = {letter.number: letter for letter in letters}
    wanted = list(numbers)
    missing = [number for number in wanted if number not in by_number]
    if missing:
        known = ", ".join(map(str, list(by_number)[:10])) or "none at all"
        raise InputError(f"dead letter {missing[0]}: expected one that `millrace dlq list` shows, such as {known}")
    return [by_number[number] for number in wanted]


def send_back(log: Log, letters: Iterable[DeadLetter]) -> int:
    """Publish records again, as they were, on the topics that they came from.

    A record that can be read by now is stored as if it had never been a dead letter: its rows have the same identity
    however often it is sent. One that still cannot be read becomes a dead letter again.

    Returns:
        How many were sent.

    Raises:
        InputError: the value of one was too large to be kept beside its headers; nothing was sent.
        LogError: the log refused or did not answer.
    """
    chosen = list(letters)
    for letter in chosen:
        if SHORTENED in letter.error:
            raise InputError(
                f"dead letter {letter.number}: expected its value, which was too large to be kept; it is at "
                f"{letter.topic}/{letter.partition}@{letter.offset} until it expires there"
            )
    if chosen:
        with log.producer() as producer:
            producer.send([letter.record for letter in chosen])
    return len(chosen)


def _letter(stored: StoredRecord) -> DeadLetter:
    headers = dict(stored.headers)

    def text(name: str) -> str:
        return headers.get(name, b"").decode(errors="backslashreplace")

    place = text(header.PARTITION), text(header.OFFSET)
    topic = text(header.TOPIC) or stored.topic
    partition, offset = (int(part) if part.isdigit() else -1 for part in place)
    original = tuple(
        (name, value) for name, value in stored.headers if name != SOURCE_KEY and not name.startswith(header.PREFIX)
    )
    return DeadLetter(
        number=stored.offset,
        topic=topic,
        partition=partition,
        offset=offset,
        event_type=text("ce_type"),
        event_id=text("ce_id"),
        error=f"{text(header.EXCEPTION_CLASS)}: {text(header.EXCEPTION_MESSAGE)}",
        published_at=stored.published_at,
        record=Record(topic, headers.get(SOURCE_KEY, stored.key), stored.value, original),
    )
