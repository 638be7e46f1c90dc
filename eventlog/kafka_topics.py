"""The topics as declared (``schemas.topics``) beside the topics as they are on a Kafka cluster."""

from __future__ import annotations

from collections.abc import Sequence

from eventlog.kafka_log import KafkaLog, topic_settings
from schemas.errors import UnknownTopicError
from schemas.topics import DEFAULT_PREFIX, TOPICS, Topic


def topics_diff(
    log: KafkaLog, prefix: str = DEFAULT_PREFIX, topics: Sequence[Topic] = tuple(TOPICS.values())
) -> list[str]:
    """One line for each difference between a declared topic and the cluster; empty where there is none.

    Compared are existence, partitions and the settings of ``topic_settings``; other settings are the cluster's affair.

    Raises:
        LogUnavailableError: the cluster does not answer.
    """
    lines = []
    for topic in topics:
        name = topic.name(prefix)
        try:
            partitions = log.topic(name).partitions
        except UnknownTopicError:
            lines.append(f"{name}: missing")
            continue
        if partitions != topic.partitions:
            lines.append(f"{name}: partitions: expected {topic.partitions}, got {partitions}")
        differing = _differing(log, topic, name)
        lines += [f"{name}: {key}: expected {wanted}, got {got}" for key, (wanted, got) in differing.items()]
    return lines


def topics_apply(
    log: KafkaLog, prefix: str = DEFAULT_PREFIX, topics: Sequence[Topic] = tuple(TOPICS.values())
) -> list[str]:
    """Create the missing topics and set the settings that differ. Returns one line for each thing done.

    The number of partitions is never changed: keys would move to other partitions, and records lose their order.
    ``topics_diff`` goes on to name it.

    Raises:
        LogError: the cluster refused.
        LogUnavailableError: the cluster does not answer.
    """
    done = [f"{name}: created" for name in log.ensure_topics(topics, prefix)]
    for topic in topics:
        name = topic.name(prefix)
        differing = _differing(log, topic, name)
        if differing:
            log.change_settings(name, {key: wanted for key, (wanted, _) in differing.items()})
            done += [f"{name}: {key}: {got} → {wanted}" for key, (wanted, got) in differing.items()]
    return done


def _differing(log: KafkaLog, topic: Topic, name: str) -> dict[str, tuple[str, str]]:
    """Setting to (declared, in force)."""
    actual = log.settings([name])[name]
    return {
        key: (wanted, actual.get(key, "none"))
        for key, wanted in topic_settings(topic).items()
        if actual.get(key) != wanted
    }
