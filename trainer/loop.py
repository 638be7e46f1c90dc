"""The training loop: window, build, iterate, evaluate on the test split, compare with baselines, close in order."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from env.ahead import compile_ahead
from env.scaler import Scaler
from env.settings import EnvSettings
from eventlog.log import Log
from schemas.errors import SettingsError
from schemas.ids import new_run_id
from schemas.payloads import RunStatus, Split
from schemas.times import to_iso
from schemas.topics import DEFAULT_PREFIX
from trainer import checkpoints
from trainer.algorithm import build_config, new_config
from trainer.algorithm_checks import check_algorithm
from trainer.baselines import run_baselines
from trainer.callbacks import counted, driver_callbacks, finish_run
from trainer.checkpoints import CheckpointFacts
from trainer.environments import settings_hash, trade_split
from trainer.episode_events import Lineage
from trainer.fast_path import use_fast_path
from trainer.ray_session import start_ray
from trainer.settings import AlgorithmSettings, DataSettings, EnvConfig, EventSettings, OutboxSettings, TrainSettings
from trainer.threads import computing_on
from trainer.window_store import WindowStore, store_name
from trainer.windows import Window, cuts, open_windows, read_history

# How long runners in the middle of something get to close, once the caller has lost patience.
_IMPATIENT_FINISH_S = 1.5


@dataclass(frozen=True)
class Iteration:
    """What one iteration brought, for a progress line.

    ``return_mean`` is unscaled, and that of the last iteration in which an episode ended; None before the first.
    """

    number: int
    total: int
    env_steps: int
    env_steps_total: int
    seconds: float
    return_mean: float | None


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    run_id: str
    attempt: int
    status: RunStatus
    iterations: int
    env_steps: int
    checkpoint: Path | None
    seconds: float


@dataclass(frozen=True)
class Job:
    """Everything a run is made of.

    Attributes:
        log_address: For the forwarder and for opening checkpoints later.
        folder: Where checkpoints go: ``folder/RUN_ID/iteration-NNNNNN``.
        parameters: The resolved settings, secrets masked, for the record.
        resume_from: A checkpoint to go on from; its run, windows, scaler and seed are kept.
    """

    data: DataSettings
    env: EnvSettings
    algorithm: AlgorithmSettings
    train: TrainSettings
    outbox: OutboxSettings
    log_address: str
    folder: Path
    topic_prefix: str = DEFAULT_PREFIX
    parameters: dict[str, Any] = field(default_factory=dict)
    resume_from: Path | None = None


def train(
    job: Job,
    log: Log,
    *,
    say: Callable[[str], None],
    on_iteration: Callable[[Iteration], None],
    should_stop: Callable[[], bool],
) -> TrainResult:
    """Train as the job says, and evaluate at the end.

    Args:
        job: Settings, log, folder.
        log: Where the bars are.
        say: Gets a line of progress.
        on_iteration: Called after each iteration.
        should_stop: Asked between the steps of the run; True ends it in order, without the evaluation. A caller that
            cannot wait for the step at hand may then raise KeyboardInterrupt, from a signal handler; what was published
            stays, and there is no checkpoint.

    Raises:
        SettingsError: a setting that RLlib or the market model refuses; before anything has started.
        WindowError: the bars asked for are not on the log.
        OutboxFullError: nothing can be published any more, so nothing is trained any more.
    """
    begin = time.monotonic()
    check_algorithm(job.algorithm, job.env, job.data)
    config = new_config(job.algorithm)
    runners = int(config.num_env_runners or 0)
    processes = runners + int(config.evaluation_num_env_runners or 0) + int(config.num_learners or 0)
    _check_record(job)
    prepared = _prepare(job, log, say)
    facts = prepared.facts
    train_settings = job.train
    compile_ahead(say)
    say(f"run {facts.run_id}: starting Ray and {runners} env runners for {job.algorithm.name}")
    live = _Live()
    with computing_on(train_settings.torch_threads):
        try:
            live.owns_ray = start_ray(train_settings.num_cpus or processes + 2, train_settings.object_store_mb)
            live.store = WindowStore(facts.run_id, resumed_from=facts.iteration if prepared.resumed else None)
            shared = {split: live.store.put(window) for split, window in prepared.windows.items()}
            prepared = replace(prepared, windows=shared)
            if should_stop():
                live.status = "stopped"
            else:
                config = _config(job, prepared)
                if train_settings.fast_path == "auto":
                    say(use_fast_path(config).line)
                live.algorithm = config.build_algo()
                if job.resume_from is not None:
                    live.algorithm.restore_from_path(str(job.resume_from.absolute()))
                live.status, live.checkpoint = _iterate(job, prepared, live.algorithm, on_iteration, should_stop)
                if live.status == "completed":
                    _evaluate(prepared, live.algorithm, say)
        except KeyboardInterrupt:
            live.status = "stopped"
            live.finish_s = _IMPATIENT_FINISH_S
            if not should_stop():
                raise
        finally:
            attempt, iterations, steps = live.close()
    return TrainResult(facts.run_id, attempt, live.status, iterations, steps, live.checkpoint, time.monotonic() - begin)


def _check_record(job: Job) -> None:
    if job.train.record_steps and job.env.record != "steps":
        raise SettingsError(
            f"train.record_steps: expected env.record = 'steps', got {job.env.record!r}: steps that the environment "
            "does not keep cannot be published; set env.record or leave record_steps out"
        )


@dataclass
class _Live:
    """What of a run must be closed, however it ends."""

    owns_ray: bool = False
    store: WindowStore | None = None
    algorithm: Any = None
    status: RunStatus = "failed"
    checkpoint: Path | None = None
    finish_s: float = 30.0

    def close(self) -> tuple[int, int, int]:
        """Close all of it, the last opened first. Returns attempt, iterations and env steps."""
        with ExitStack() as rest:
            if self.owns_ray:
                rest.callback(ray.shutdown)
            if self.store is not None:
                rest.callback(self.store.close)
            if self.algorithm is None:
                return 0, 0, 0
            rest.callback(self.algorithm.stop)
            driver = driver_callbacks(self.algorithm)
            steps = self.algorithm.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime"), default=0)
            finish_run(self.algorithm, self.status, timeout_s=self.finish_s)
            return driver.attempt, driver.iteration, int(steps)


@dataclass(frozen=True)
class _Prepared:
    facts: CheckpointFacts
    windows: dict[Split, Window]
    scaler: Scaler
    resumed: bool

    @property
    def evaluated(self) -> Split:
        """The split that is traded during training, if any is: the test is kept for the end."""
        return "validation" if "validation" in self.windows else "test"

    def symbols(self, split: Split) -> int:
        """Episodes that trade each symbol of a split once, or its portfolio."""
        return 1 if self.facts.env.portfolio else len(self.windows[split].data.symbols)


def _prepare(job: Job, log: Log, say: Callable[[str], None]) -> _Prepared:
    if job.resume_from is not None:
        facts = checkpoints.load_facts(job.resume_from)
        windows = checkpoints.reopen_windows(log, facts)
        say(f"resuming run {facts.run_id} after iteration {facts.iteration}")
        return _Prepared(facts, windows, Scaler.from_dict(facts.scaler), resumed=True)
    history = read_history(log, job.data, job.topic_prefix)
    for symbol, count in history.refused.items():
        say(f"{symbol}: {count} bars came again with other values; refused, the first ones stay")
    begin = cuts(history, job.data)
    # The scaler is the policy's: fitted on its training bars, and carried along with it.
    scaler = Scaler.fit(open_windows(history, begin, job.env)["train"].data)
    windows = open_windows(history, begin, job.env, scaler.version)
    for split, window in windows.items():
        window.scale(scaler, job.env)
        opened = window.opened
        say(
            f"{split} window {opened.window_id[:8]}: {opened.bars:,} bars of {', '.join(opened.symbols)}, "
            f"{to_iso(opened.first_ts)} to {to_iso(opened.last_ts)}"
        )
    absent = [bars.symbol for bars in history.bars if bars.symbol not in windows["train"].data.symbols]
    if absent:
        end = to_iso(begin.validation or begin.test)
        say(f"too few bars before {end} to train on: {', '.join(absent)}; only traded behind it")
    seed = job.train.seed if job.train.seed is not None else secrets.randbelow(2**31)
    facts = CheckpointFacts(
        run_id=new_run_id(),
        attempt=1,
        iteration=0,
        seed=seed,
        data=job.data,
        env=job.env,
        scaler=scaler.to_dict(),
        first_validation_ts=begin.validation,
        first_test_ts=begin.test,
        windows=[window.opened for window in windows.values()],
    )
    return _Prepared(facts, windows, scaler, resumed=False)


def _config(job: Job, prepared: _Prepared) -> Any:
    facts, windows = prepared.facts, prepared.windows
    name = store_name(facts.run_id)
    common = {"window_store": name, "scaler": facts.scaler, "seed": facts.seed}
    envs = int(new_config(job.algorithm).num_envs_per_env_runner)
    train_env = EnvConfig(split="train", settings=facts.env.model_dump(mode="json"), num_envs=envs, **common)
    evaluation_env = EnvConfig(
        split=prepared.evaluated,
        settings=_test_settings(facts.env).model_dump(mode="json"),
        branch="evaluation",
        num_envs=1,
        **common,
    )
    events = EventSettings(
        run_id=facts.run_id,
        # The registry of attempts lies in the outbox directory; where that was lost, the checkpoint still knows.
        attempt=facts.attempt + 1 if prepared.resumed else facts.attempt,
        name=job.train.name,
        notes=job.train.notes,
        seed=facts.seed,
        parameters=job.parameters,
        log=job.log_address,
        topic_prefix=job.topic_prefix,
        outbox=job.outbox,
        record_steps=job.train.record_steps,
        reward_scale=facts.env.reward_scale,
        windows=tuple(window.opened for window in windows.values()),
        window_store=name,
    )
    return build_config(job.algorithm, train_env, evaluation_env, events, prepared.symbols(prepared.evaluated))


def _test_settings(settings: EnvSettings) -> EnvSettings:
    """Over the test, an episode is the whole window, of one symbol or of the portfolio."""
    return settings.model_copy(update={"starts": "whole"})


def _iterate(
    job: Job,
    prepared: _Prepared,
    algorithm: Any,
    on_iteration: Callable[[Iteration], None],
    should_stop: Callable[[], bool],
) -> tuple[RunStatus, Path | None]:
    settings, facts = job.train, prepared.facts
    folder = job.folder / facts.run_id
    checkpoint: Path | None = None
    status: RunStatus = "completed"
    return_mean: float | None = None
    while algorithm.iteration < settings.iterations:
        if should_stop():
            status = "stopped"
            break
        begin = time.monotonic()
        result = algorithm.train()
        runners = result.get("env_runners", {})
        mean = runners.get("episode_return_mean")
        if mean is not None and np.isfinite(mean):
            return_mean = float(mean) / facts.env.reward_scale
        on_iteration(
            Iteration(
                number=int(algorithm.iteration),
                total=settings.iterations,
                env_steps=counted(runners, "num_env_steps_sampled"),
                env_steps_total=counted(runners, "num_env_steps_sampled_lifetime"),
                seconds=time.monotonic() - begin,
                return_mean=return_mean,
            )
        )
        if settings.checkpoint_every and algorithm.iteration % settings.checkpoint_every == 0:
            checkpoint = _save(algorithm, folder, facts)
    if checkpoint is None or checkpoint.name != f"iteration-{int(algorithm.iteration):06d}":
        checkpoint = _save(algorithm, folder, facts)
    return status, checkpoint


def _save(algorithm: Any, folder: Path, facts: CheckpointFacts) -> Path:
    now = {"attempt": driver_callbacks(algorithm).attempt, "iteration": int(algorithm.iteration)}
    return checkpoints.save(algorithm, folder, facts.model_copy(update=now))


def _turn_to_test(algorithm: Any, episodes: int) -> None:
    """Have the evaluation trade the test from now on, instead of the validation split."""
    config = algorithm.config.copy(copy_frozen=False)
    config.evaluation(evaluation_interval=None, evaluation_duration=episodes)
    config.freeze()
    algorithm.config = config
    algorithm.eval_env_runner_group.foreach_env_runner(partial(trade_split, "test"))


def _evaluate(prepared: _Prepared, algorithm: Any, say: Callable[[str], None]) -> None:
    """Trade the test split with the trained policy, then with the baselines; all of it becomes events."""
    say("test split: trading it with the trained policy and the baselines")
    if prepared.evaluated != "test":
        _turn_to_test(algorithm, prepared.symbols("test"))
    algorithm.evaluate()
    driver = driver_callbacks(algorithm)
    window = prepared.windows["test"]
    settings = _test_settings(prepared.facts.env)
    lineage = Lineage(
        split="test",
        window_id=window.opened.window_id,
        data_hash=window.opened.data_hash,
        settings_hash=settings_hash(settings),
        scaler_version=prepared.scaler.version,
    )
    publisher = driver.publisher.publisher_id
    for events in run_baselines(
        window.data, settings, lineage, publisher, int(algorithm.iteration), prepared.facts.seed
    ):
        driver.publish(*events)
