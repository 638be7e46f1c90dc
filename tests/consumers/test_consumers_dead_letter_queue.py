"""Dead letters for people: listed, picked, and sent back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.dead_letter_queue import dead_letters, pick, send_back
from consumers.letters import dead_letter
from eventlog.log import Log, Record
from eventlog.open_log import open_log
from schemas.errors import InputError, SchemaError
from schemas.topics import DEFAULT_PREFIX, MAX_RECORD_BYTES, TOPICS

EPISODES = TOPICS["episodes"].name()
LETTERS = TOPICS["dead-letters"].name()


@pytest.fixture
def log(tmp_path: Path) -> Log:
    opened = open_log(f"sqlite:{tmp_path}")
    opened.ensure_topics(list(TOPICS.values()), DEFAULT_PREFIX)
    return opened


def send(log: Log, *records: Record) -> None:
    with log.producer() as producer:
        producer.send(records)


def bury(log: Log, value: bytes, error: str = "expected JSON") -> None:
    record = Record(EPISODES, b"episode-7", value, (("ce_id", b"p:episode.ended:1"), ("ce_type", b"episode.ended")))
    with log.producer() as producer:
        [(place, offset)] = producer.send([record])
        [stored] = log.read(EPISODES, place.partition, offset, offset + 1)
        producer.send([dead_letter(stored, SchemaError(error), LETTERS)])


def test_a_letter_says_where_it_came_from_and_what_was_wrong(log: Log) -> None:
    bury(log, b"{broken")
    [letter] = dead_letters(log)
    assert (letter.topic, letter.event_type, letter.event_id) == (EPISODES, "episode.ended", "p:episode.ended:1")
    assert letter.error == "SchemaError: expected JSON"
    assert log.read(EPISODES, letter.partition, letter.offset, letter.offset + 1)[0].value == b"{broken"


def test_sent_back_it_is_the_record_as_it_came(log: Log) -> None:
    bury(log, b"\xff{broken")
    [letter] = dead_letters(log)
    assert send_back(log, [letter]) == 1
    start, stop = log.offsets(EPISODES)[letter.partition]
    first, again = log.read(EPISODES, letter.partition, start, stop)
    assert (again.key, again.value, again.headers) == (first.key, first.value, first.headers)


def test_letters_are_picked_by_number(log: Log) -> None:
    for value in (b"one", b"two", b"three"):
        bury(log, value)
    letters = list(dead_letters(log))
    assert [letter.record.value for letter in pick(letters, [letters[2].number, letters[0].number])] == [
        b"three",
        b"one",
    ]
    with pytest.raises(InputError, match=r"dead letter 99: .*millrace dlq list"):
        pick(letters, [99])


def test_a_letter_whose_value_was_left_out_is_not_sent(log: Log) -> None:
    bury(log, b"x" * (MAX_RECORD_BYTES - 200))
    bury(log, b"small")
    before = log.offsets(EPISODES)
    with pytest.raises(InputError, match=r"too large to be kept; it is at millrace\.episodes\.v1/"):
        send_back(log, dead_letters(log))
    assert log.offsets(EPISODES) == before


def test_what_others_wrote_to_the_topic_is_listed_too(log: Log) -> None:
    send(log, Record(LETTERS, b"k", b"v", (("__connect.errors.offset", b"x"),)))
    [letter] = dead_letters(log)
    assert (letter.topic, letter.offset, letter.size) == (LETTERS, -1, 1)
