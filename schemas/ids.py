"""Identities of runs, publishers and episodes.

A run is a UUIDv7. An attempt is one start of its driver. A *publisher* is one process life that emits events::

    0199aa52-….1.r2.0.3fa9c1      run . attempt . role and worker index . restart . node
    0199aa52-….1.r2.0.3fa9c1.5.17 … and an episode of it: . environment index . number

``restart`` counts the process lives of one worker within an attempt on one node, from 0. It is part of the identity
because a restarted env runner begins to count its episodes again: without it, its first episode would take the
identity, and so the row, of an episode that the killed process had already published. ``node`` tells apart two
machines that cannot see each other's count.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from dataclasses import dataclass
from enum import StrEnum

from schemas.errors import SchemaError


class Role(StrEnum):
    """What kind of process a publisher is."""

    DRIVER = "d"
    RUNNER = "r"
    EVALUATOR = "v"


def new_run_id() -> str:
    """A new UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then 74 random bits. Sorts by start time."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value &= ~(0xF << 76)
    value |= 0x7 << 76
    value &= ~(0b11 << 62)
    value |= 0b10 << 62
    return str(uuid.UUID(int=value))


@dataclass(frozen=True, slots=True)
class PublisherId:
    """One life of one process that publishes events of a run."""

    run_id: str
    attempt: int
    role: Role
    worker_index: int
    restart: int
    node: str

    def __str__(self) -> str:
        return f"{self.run_id}.{self.attempt}.{self.role}{self.worker_index}.{self.restart}.{self.node}"

    @classmethod
    def parse(cls, text: str) -> PublisherId:
        """The reverse of ``str``.

        Raises:
            SchemaError: the text has another form.
        """
        found = re.fullmatch(r"([0-9a-f-]{36})\.(\d+)\.([drv])(\d+)\.(\d+)\.([0-9A-Za-z_-]+)", text)
        if found is None:
            raise SchemaError(f"publisher id {text!r}: expected RUN.ATTEMPT.ROLE+WORKER.RESTART.NODE")
        return cls(found[1], int(found[2]), Role(found[3]), int(found[4]), int(found[5]), found[6])

    def episode(self, env_index: int, number: int) -> str:
        """Identity of episode ``number`` (from 0) of environment ``env_index`` (from 0) of this process life."""
        return f"{self}.{env_index}.{number}"


def event_id(publisher_id: str, event_type: str, number: int, part: int, parts: int) -> str:
    """Identity of one record: the same for every sending of it, since it holds no clock and nothing random."""
    suffix = f":{part}" if parts > 1 else ""
    return f"{publisher_id}:{event_type}:{number}{suffix}"
