"""Events from anybody's RLlib script, with one call."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from eventlog.open_log import open_log
from schemas.ids import new_run_id
from schemas.topics import DEFAULT_PREFIX, TOPICS
from trainer.callbacks import EventCallbacks, add_callbacks
from trainer.settings import EventSettings, OutboxSettings


def publish_events(
    config: Any,
    *,
    log: str,
    outbox: str | os.PathLike[str],
    name: str = "",
    notes: str = "",
    topic_prefix: str = DEFAULT_PREFIX,
) -> str:
    """Add ``EventCallbacks`` to any ``AlgorithmConfig``, beside the callbacks that it has.

    Call ``finish_run(algorithm)`` before ``algorithm.stop()``: it ends the run in the record.

    Args:
        config: The config; changed in place.
        log: Address of the event log, such as ``sqlite:.millrace/log``; its topics are made where missing.
        outbox: Folder on local disk from which the forwarder sends.
        name: A name for the run, for people.
        notes: Anything worth remembering about it.
        topic_prefix: First part of the topics' names.

    Returns:
        The run's id, to query by.

    Raises:
        LogUnavailableError: the log does not answer.
    """
    with open_log(log) as opened:
        opened.ensure_topics(list(TOPICS.values()), topic_prefix)
    settings = EventSettings(
        run_id=new_run_id(),
        attempt=1,
        name=name,
        notes=notes,
        log=log,
        topic_prefix=topic_prefix,
        outbox=OutboxSettings(directory=Path(outbox)),
    )
    add_callbacks(config, partial(EventCallbacks, settings))
    return settings.run_id
