"""A local stack for all the runs, and what a run on a generated market made of its test split."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from analytics.integrity import check_run
from analytics.names import ask
from millrace.settings import Settings, load_settings
from millrace.stack import LocalStack
from producers.replay import replay
from trainer.loop import Job, train

sys.path.insert(0, str(Path(__file__).parent))

from markets import Market

SEED = 2
DRAIN_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """The agent's episodes of the test split, as the store has them.

    Attributes:
        log_return: Sum of their log returns, after costs.
        optimum: What the player who knows the directions makes of the same bars; 0 where there is no direction.
        luck: Standard deviation of what holding any position over these bars makes, in log returns.
        bars: Bars traded, over all symbols.
    """

    log_return: float
    optimum: float
    luck: float
    bars: int


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    state_dir = tmp_path_factory.mktemp("learning")
    running = ray.is_initialized()
    with LocalStack(load_settings(overrides=[f"local.state_dir={state_dir}"])) as stack:
        yield stack
    if not running:
        ray.shutdown()


@pytest.fixture(scope="session")
def trained(stack: LocalStack) -> Callable[..., Outcome]:
    """Publish a market's bars, train on them as by default but for the overrides, and ask the store for the result."""

    def run(make: Callable[[int], Market], *overrides: str, seed: int = SEED) -> Outcome:
        market, name = make(seed), f"{make.__name__}-{seed}"
        settings = load_settings(
            overrides=[
                f"local.state_dir={stack.state_dir}",
                f"data.feed={name}",
                f"train.seed={seed}",
                f"train.name={name}",
                *overrides,
            ]
        )
        replay(stack.log, market.feed, feed_name=name)
        run_id = _train(settings, stack)
        assert stack.drain(DRAIN_S)
        outcome = _outcome(settings, stack, run_id, market)
        print(outcome)
        return outcome

    return run


def _train(settings: Settings, stack: LocalStack) -> str:
    job = Job(
        data=settings.data,
        env=settings.env,
        algorithm=settings.algorithm,
        train=settings.train,
        outbox=settings.outbox_settings,
        log_address=stack.log_address,
        folder=settings.state_dir / "runs",
        topic_prefix=settings.log.topic_prefix,
        parameters=settings.masked(),
    )
    result = train(job, stack.log, say=print, on_iteration=print, should_stop=lambda: False)
    assert result.status == "completed"
    return result.run_id


def _outcome(settings: Settings, stack: LocalStack, run_id: str, market: Market) -> Outcome:
    with stack.client() as client:
        check_run(client, run_id).require()
        (total,) = ask(
            client,
            "SELECT mean_reward * episodes AS log_return FROM test_results "
            "WHERE run_id = {run_id:String} AND policy = 'agent' AND symbol = 'all symbols'",
            {"run_id": run_id},
        ).dicts()
        (span,) = ask(
            client,
            "SELECT count() AS episodes, uniqExact(symbol) AS symbols, sum(steps) AS bars, "
            "toUnixTimestamp64Micro(min(assumeNotNull(first_ts))) AS first_ts, "
            "toUnixTimestamp64Micro(max(assumeNotNull(last_ts))) AS last_ts "
            "FROM episodes WHERE run_id = {run_id:String} AND split = 'test' AND policy = 'agent'",
            {"run_id": run_id},
        ).dicts()
    assert span["episodes"] == span["symbols"] == len(market.feed.bars)
    return Outcome(
        log_return=float(total["log_return"]),
        optimum=market.optimum(span["first_ts"], span["last_ts"], settings.env.fee + settings.env.slippage),
        luck=market.noise * span["bars"] ** 0.5,
        bars=int(span["bars"]),
    )
