"""Writes the JSON Schemas and the AsyncAPI 3 document: ``python -m schemas.generate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import create_model
from pydantic.json_schema import models_json_schema

from schemas import bars, dead_letters
from schemas.bars import BarsRecord
from schemas.events import SCHEMA_VERSION, Envelope
from schemas.payloads import PAYLOADS
from schemas.topics import DEFAULT_PREFIX, TOPICS

FOLDER = Path(__file__).parent / "generated"


def event_schemas() -> dict[str, dict[str, Any]]:
    """Event type to the JSON Schema (draft 2020-12) of the record's value."""
    schemas: dict[str, dict[str, Any]] = {}
    for event_type, payload in PAYLOADS.items():
        model = create_model(_title(event_type), __base__=Envelope, data=(payload, ...))
        model.__doc__ = payload.__doc__
        schemas[event_type] = _schema(model)
    schemas[bars.EVENT_TYPE] = _schema(BarsRecord)
    return schemas


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.0 document: topics as channels, event types as their messages."""
    messages: dict[str, Any] = {
        event_type: {
            "name": event_type,
            "contentType": "application/json",
            "summary": (schema.get("description") or "").split("\n")[0],
            "headers": {
                "type": "object",
                "required": ["ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time"],
                "properties": {
                    "ce_specversion": {"const": "1.0"},
                    "ce_id": {"type": "string"},
                    "ce_type": {"const": event_type},
                    "ce_source": {"type": "string"},
                    "ce_time": {"type": "string", "format": "date-time"},
                },
            },
            "payload": {"$ref": f"{_file_name(event_type)}"},
        }
        for event_type, schema in event_schemas().items()
    }
    names = [value for name, value in vars(dead_letters).items() if name.isupper() and name != "PREFIX"]
    messages["dead-letter"] = {
        "name": "dead-letter",
        "summary": "A record that could not be read, as it came",
        "headers": {"type": "object", "required": names, "properties": {name: {"type": "string"} for name in names}},
    }
    topics = {event_type: payload.TOPIC for event_type, payload in PAYLOADS.items()}
    topics |= {bars.EVENT_TYPE: "bars", "dead-letter": "dead-letters"}
    channels = {
        topic.short: {
            "address": topic.name(),
            "description": f"Record key: {topic.key}. The prefix {DEFAULT_PREFIX!r} is a setting.",
            "messages": {
                name: {"$ref": f"#/components/messages/{name}"}
                for name, short in topics.items()
                if short == topic.short
            },
            "bindings": {
                "kafka": {
                    "topic": topic.name(),
                    "partitions": topic.partitions,
                    "topicConfiguration": {"cleanup.policy": ["delete"], "retention.ms": topic.retention_ms},
                    "bindingVersion": "0.5.0",
                }
            },
        }
        for topic in TOPICS.values()
    }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Millrace event log", "version": SCHEMA_VERSION, "license": {"name": "Apache-2.0"}},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": {
            f"{action}-{short}": {"action": action, "channel": {"$ref": f"#/channels/{short}"}}
            for short in channels
            for action in ("send", "receive")
        },
        "components": {"messages": messages},
    }


def documents() -> dict[str, str]:
    """File name to text of everything that is generated."""
    out = {_file_name(event_type): _text(schema) for event_type, schema in event_schemas().items()}
    out["asyncapi.json"] = _text(asyncapi())
    return out


def _schema(model: Any) -> dict[str, Any]:
    _, schema = models_json_schema([(model, "validation")])
    definitions = schema["$defs"]
    own = definitions.pop(model.__name__)
    result = {"$schema": "https://json-schema.org/draft/2020-12/schema", **own}
    if definitions:
        result["$defs"] = definitions
    return result


def _title(event_type: str) -> str:
    return "".join(word.capitalize() for word in event_type.replace(".", " ").split()) + "Event"


def _file_name(event_type: str) -> str:
    return f"{event_type}.v{SCHEMA_VERSION.split('.')[0]}.json"


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write every document, remove what is no longer generated."""
    wanted = documents()
    for old in FOLDER.glob("*.json"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
