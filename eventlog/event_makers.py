"""Events that a publisher left for the forwarder to make.

The rooms that publish such events are above this one, and only what is listed here is ever imported: the name comes
out of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module

from schemas.errors import OutboxError
from schemas.payloads import Payload, Written

MAKERS = {"episode": "trainer.deferred_episode"}
"""Name of a maker to the module that has it, as ``make_events(value)``."""

Maker = Callable[[bytes], Sequence[Payload | Written]]


def make_events(maker: str, value: bytes) -> Sequence[Payload | Written]:
    """The payloads that are made of ``value``.

    Raises:
        OutboxError: there is no such maker, or it cannot make them.
    """
    try:
        return _maker(maker)(value)
    except Exception as error:
        raise OutboxError(
            f"event maker {maker!r}: expected one of {sorted(MAKERS)}, of the version of Millrace that has published, "
            f"to make events of {len(value)} bytes; got {type(error).__name__}: {error}"
        ) from error


@cache
def _maker(name: str) -> Maker:
    make: Maker = import_module(MAKERS[name]).make_events
    return make
