"""The topics: declared here once, made and checked from here everywhere."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.errors import UnknownTopicError

DEFAULT_PREFIX = "millrace"

MAX_RECORD_BYTES = 1_000_000
"""Largest key + value + headers of a record. Below Kafka's default ``max.message.bytes`` of 1,048,588."""

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of the log.

    Attributes:
        short: the name without prefix and version.
        version: major version of the records on it.
        partitions: how many partitions it is created with.
        key: what the record key holds.
        retention_ms: age after which records may be deleted; -1 keeps them for ever.
    """

    short: str
    version: int
    partitions: int
    key: str
    retention_ms: int

    def name(self, prefix: str = DEFAULT_PREFIX) -> str:
        """The topic's name on the log, such as ``millrace.bars.v1``."""
        return f"{prefix}.{self.short}.v{self.version}"


TOPICS: dict[str, Topic] = {
    topic.short: topic
    for topic in (
        # Never compacted and never expired: a window is lineage only as long as its offsets exist.
        Topic("bars", 1, 4, "feed/symbol/interval", -1),
        Topic("runs", 1, 1, "run_id", 90 * _DAY_MS),
        Topic("episodes", 1, 4, "episode_id", 30 * _DAY_MS),
        Topic("trades", 1, 4, "episode_id", 30 * _DAY_MS),
        Topic("fills", 1, 4, "episode_id", 30 * _DAY_MS),
        Topic("steps", 1, 4, "episode_id", 30 * _DAY_MS),
        Topic("dead-letters", 1, 1, "source topic", 90 * _DAY_MS),
    )
}
"""Short name to topic."""

EVENT_TOPICS = ("runs", "episodes", "trades", "fills", "steps")
"""Short names of the topics that publishers of a run write."""


def topic_of(name: str, prefix: str = DEFAULT_PREFIX) -> Topic:
    """The topic with this full name.

    Raises:
        UnknownTopicError: no topic is called so under this prefix.
    """
    for topic in TOPICS.values():
        if topic.name(prefix) == name:
            return topic
    known = ", ".join(topic.name(prefix) for topic in TOPICS.values())
    raise UnknownTopicError(f"topic {name!r}: expected one of {known}")
