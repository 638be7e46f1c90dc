"""The published schemas: no drift, and they accept what we write."""

import json

import orjson
import pytest
from jsonschema import Draft202012Validator

from schemas.generate import FOLDER, documents, event_schemas
from schemas.topics import TOPICS, topic_of


def test_generated_files_are_up_to_date() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert committed == documents(), "run `python -m schemas.generate` and commit the result"


@pytest.mark.parametrize("event_type", sorted(event_schemas()))
def test_each_schema_is_valid_json_schema(event_type: str) -> None:
    Draft202012Validator.check_schema(event_schemas()[event_type])


def test_a_published_event_satisfies_its_schema() -> None:
    from schemas.events import Event
    from schemas.payloads import ActionsTaken

    data = ActionsTaken(episode_id="e", actions=[0, 1])
    event = Event(
        event_type=data.EVENT_TYPE, run_id="r", attempt=1, publisher_id="p", number=1, rows=2, wall_time=1, data=data
    )
    Draft202012Validator(event_schemas()["episode.actions"]).validate(orjson.loads(event.encode()[1]))


def test_asyncapi_refers_only_to_what_is_there() -> None:
    document = json.loads(documents()["asyncapi.json"])
    assert document["asyncapi"] == "3.0.0"
    messages = document["components"]["messages"]
    for channel in document["channels"].values():
        for reference in channel["messages"].values():
            assert reference["$ref"].removeprefix("#/components/messages/") in messages
    for message in messages.values():
        if "payload" in message:
            assert message["payload"]["$ref"] in documents()


def test_topics_are_found_by_their_full_names() -> None:
    for topic in TOPICS.values():
        assert topic_of(topic.name("acme"), "acme") == topic
