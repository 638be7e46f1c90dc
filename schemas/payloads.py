"""What each event says: one model per event type, by topic.

A payload with ``COLUMNS`` is columnar: the named lists have one entry a row and may be split over several records;
its ``first_row`` is the number of its first row within the episode.
"""

from __future__ import annotations

from schemas.episode_payloads import ActionsTaken, EpisodeEnded, EpisodeStarted, Fills, Positions, Steps, Trades
from schemas.payload import Deferred, Payload, Split, Written
from schemas.run_payloads import (
    AttemptStarted,
    IterationEnded,
    PublisherReport,
    RunEnded,
    RunStarted,
    RunStatus,
    WindowOpened,
)

__all__ = [
    "PAYLOADS",
    "ActionsTaken",
    "AttemptStarted",
    "Deferred",
    "EpisodeEnded",
    "EpisodeStarted",
    "Fills",
    "IterationEnded",
    "Payload",
    "Positions",
    "Publishable",
    "PublisherReport",
    "RunEnded",
    "RunStarted",
    "RunStatus",
    "Split",
    "Steps",
    "Trades",
    "WindowOpened",
    "Written",
]

Publishable = Payload | Written | Deferred
"""What a publisher accepts."""

PAYLOADS: dict[str, type[Payload]] = {
    payload.EVENT_TYPE: payload
    for payload in (
        RunStarted,
        RunEnded,
        AttemptStarted,
        WindowOpened,
        IterationEnded,
        PublisherReport,
        EpisodeStarted,
        EpisodeEnded,
        ActionsTaken,
        Trades,
        Fills,
        Steps,
        Positions,
    )
}
"""Event type to payload model: every event that a publisher may emit."""
