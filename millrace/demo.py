"""``millrace demo``: real bars the whole way, from a feed file to SQL, with the proof that nothing was lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

from clickhouse_connect.driver.client import Client

from millrace.pipeline import check_algorithm, read_bars, replay_bars, train_agent, with_feed
from millrace.report import Progress, console, print_next, print_result
from millrace.settings import Settings
from millrace.stack import LocalStack
from millrace.stopping import DRAINED_BY_S, Stop, stop_signals
from schemas.errors import StoreUnavailableError

DRAIN_S = 60.0
# An iteration takes seconds; it waits no longer than this for news of the engines.
_LOOK_S = 0.5
_LAST_LOOK_S = 1.0


def run_demo(settings: Settings, pasted: Callable[[str], str]) -> int:
    """Replay, train, test, drain, check.

    Args:
        settings: All of them.
        pasted: Makes a command from its arguments (``check RUN``), for people to paste into this terminal.

    Returns:
        The exit code: 0 only where the integrity table holds; 130 or 143 after SIGINT or SIGTERM.

    Raises:
        MillraceError: whatever is wrong, in one line.
    """
    out = console()
    begin = time.monotonic()
    say = Progress(out)
    settings = with_feed(settings)
    feed = read_bars(settings, say)
    check_algorithm(settings)
    with stop_signals() as stop, LocalStack(settings) as stack:
        say(f"store {stack.address.url}, log {stack.log_address}")
        replay_bars(settings, stack.log, feed, say, stop)
        result = None
        if not stop.is_set():
            with _Watch(stack, say, stop) as watch:
                result = train_agent(settings, stack.log, say, stop, after_iteration=watch.look)
        say("draining: what was published goes to the store")
        drained = stack.drain(DRAIN_S, stop.is_set)
        if not drained and stop.is_set():
            drained = stack.drain(stop.left(DRAINED_BY_S))
        if not drained:
            say("not all of it is stored yet; the rest is safe in outbox and log and goes on with the next start")
        if stop.is_set() or result is None:
            say("stopped" if result is None else f"stopped; look at what there is: {pasted(f'check {result.run_id}')}")
            return stop.exit_code
        holds = print_result(out, _client(stack), result.run_id)
        print_next(out, pasted, result.run_id)
        say(f"done in {time.monotonic() - begin:.0f} s")
        return 0 if holds else 1


class _Watch:
    """Looks after the stack beside the training: an engine that hangs or starts again must hold up no iteration."""

    def __init__(self, stack: LocalStack, say: Callable[[str], None], stop: Stop) -> None:
        self._stack = stack
        self._say = say
        self._stop = stop
        self._thread = ThreadPoolExecutor(1, "watch")
        self._looking: Future[tuple[list[str], int | None]] | None = None

    def look(self) -> str:
        """Bring back what has died, and say what waits to be stored.

        Raises:
            LocalError: something died that cannot be brought back.
        """
        if self._looking is None:
            self._looking = self._thread.submit(lambda: (self._stack.ensure(), self._stack.known_lag()))
        wait([self._looking], _LOOK_S)
        if not self._looking.done():
            return "consumer lag unknown: looking"
        (lines, lag), self._looking = self._looking.result(), None
        for line in lines:
            self._say(line)
        return "consumer lag unknown: the log does not answer" if lag is None else f"consumer lag {lag:,} records"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What is being started must be known before it is stopped; after a signal there is little time for that.
        while self._looking is not None and not self._stop.is_set() and error is None:
            self.look()
        if self._looking is not None:
            wait([self._looking], _LAST_LOOK_S)
        self._thread.shutdown(wait=False)


def _client(stack: LocalStack) -> Client:
    try:
        return stack.client()
    except StoreUnavailableError:
        stack.ensure()
        return stack.client()
