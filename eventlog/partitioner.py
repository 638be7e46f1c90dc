"""Which partition a key belongs to: what Kafka's own clients choose, for every engine."""

from __future__ import annotations

from functools import lru_cache

from kafka.partitioner.default import murmur2


@lru_cache(maxsize=4_096)
def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key in a topic with so many. Cached: many records in a row have the same key."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions
