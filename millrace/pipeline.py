"""The steps that ``millrace demo`` runs in one process, and ``millrace replay`` and ``millrace train`` one each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from eventlog.log import Log
from millrace.settings import Settings
from millrace.stopping import Stop
from producers.bundled import FEED_NAME, bundled_feed_path
from producers.feed import Feed, read_feed
from producers.replay import ReplayResult, replay
from schemas.times import to_iso

if TYPE_CHECKING:
    from trainer.loop import Iteration, TrainResult

Say = Callable[[str], None]

# Seconds between two lines of a replay's progress.
_PROGRESS_S = 2.0


def with_feed(settings: Settings) -> Settings:
    """The settings with the feed's name filled in: the bundled one's, or the file's name up to its first dot."""
    if settings.data.feed:
        return settings
    file = settings.feed.file
    name = file.replace("\\", "/").rpartition("/")[2].partition(".")[0] if file else FEED_NAME
    return settings.model_copy(update={"data": settings.data.model_copy(update={"feed": name})})


def read_bars(settings: Settings, say: Say) -> Feed:
    """Read the feed's file, and say what was left out.

    Raises:
        FeedError: the file, or a row of it, is not right.
    """
    data = settings.data
    feed = read_feed(
        settings.feed.file or bundled_feed_path(),
        symbols=list(data.symbols) or None,
        adjusted=data.adjusted,
        on_bad_row=settings.feed.on_bad_row,
        interval=data.interval if settings.feed.file and "interval" in data.model_fields_set else None,
    )
    say(f"feed {feed.source}: {len(feed):,} bars of {', '.join(feed.bars)}")
    for reason, count in feed.skipped_by_reason.items():
        say(f"skipped {count:,} bad rows: {reason}; the first: {next(b for b in feed.skipped if b.reason == reason)}")
    return feed


def replay_bars(settings: Settings, log: Log, feed: Feed, say: Say, stop: Stop) -> ReplayResult | None:
    """Publish what the topic does not hold yet.

    Returns:
        What was done; None where it had to be cut off after a signal, because the log did not answer.

    Raises:
        FeedError: the topic holds other values for a bar.
        LogError: the log failed; the same replay goes on from there.
    """
    last = time.monotonic()

    def progress(done: int, total: int, market: int) -> None:
        nonlocal last
        if time.monotonic() - last > _PROGRESS_S:
            last = time.monotonic()
            say(f"replay: {done:,} of {total:,} bars, market time {to_iso(market)}")

    try:
        with stop.interrupting():
            result = replay(
                log,
                feed,
                feed_name=settings.data.feed,
                prefix=settings.log.topic_prefix,
                speed=settings.feed.speed,
                progress=progress,
                stop=stop.heard,
            )
    except KeyboardInterrupt:
        if not stop.is_set():
            raise
        say("replay: cut off, the log does not answer; the same replay goes on from here")
        return None
    say(str(result))
    return result


def train_agent(
    settings: Settings,
    log: Log,
    say: Say,
    stop: Stop,
    *,
    after_iteration: Callable[[], str],
    resume_from: Path | None = None,
) -> TrainResult | None:
    """Train, and trade the test split.

    Args:
        settings: All of them, with the feed's name.
        log: Where the bars are, and where the forwarder sends events.
        say: Gets the lines of progress.
        stop: Ends it in order.
        after_iteration: Called after each iteration; what it returns ends the iteration's line.
        resume_from: A checkpoint to go on from.

    Returns:
        How it ended; None where it had to be cut off after a signal.

    Raises:
        MillraceError: whatever is wrong, in one line.
    """
    from trainer.loop import Job, train

    if settings.ray.address:
        # Ray's own name for it, which its tools know, too.
        os.environ["RAY_ADDRESS"] = settings.ray.address

    def show(iteration: Iteration) -> None:
        said = f"iteration {iteration.number}/{iteration.total}: "
        if iteration.env_steps_total:
            mean = "no episode yet" if iteration.return_mean is None else f"mean return {iteration.return_mean:+.4f}"
            rate = iteration.env_steps / iteration.seconds
            said += f"{iteration.env_steps_total:,} env steps, {rate:,.0f} env steps/s, {mean}, "
        else:
            said += f"{iteration.seconds:.1f} s on recorded episodes, "
        say(said + after_iteration())

    job = Job(
        data=settings.data,
        env=settings.env,
        algorithm=settings.algorithm,
        train=settings.train,
        outbox=settings.outbox_settings,
        log_address=log.address,
        folder=settings.state_dir / "runs",
        topic_prefix=settings.log.topic_prefix,
        parameters=settings.masked(),
        resume_from=resume_from,
    )
    try:
        with stop.interrupting():
            result = train(job, log, say=say, on_iteration=show, should_stop=stop.heard)
    except KeyboardInterrupt:
        if not stop.is_set():
            raise
        say("cut off: Ray did not stop in time")
        return None
    rate = result.env_steps / result.seconds
    say(
        f"run {result.run_id} {result.status}: {result.iterations} iterations, {result.env_steps:,} env steps "
        f"({rate:,.0f}/s over all); checkpoint {result.checkpoint}"
    )
    return result


def check_algorithm(settings: Settings) -> None:
    """Refuse what RLlib would refuse, or cannot do with these actions, before anything is started.

    Raises:
        SettingsError: an unknown algorithm, method, argument or model; actions that the algorithm cannot learn.
    """
    from trainer.algorithm_checks import check_algorithm as check

    check(settings.algorithm, settings.env, settings.data)
