"""``EventCallbacks``: RLlib callbacks that publish what happened, from the process in which it happened.

They work on any ``AlgorithmConfig`` and any gymnasium environment::

    config.callbacks(partial(EventCallbacks, EventSettings(...)))

One object lives in each process: the driver's counts attempts and iterations, a runner's its episodes. Nothing is
sent from here: ``Publisher`` appends to an outbox on local disk, in one transaction per ``sample()``.

An environment that has ``episode_record()`` (see ``env.episode_record``) also gets its trades, fills and steps. Starts,
and the ends of episodes of the market model, are only copied here, and made into events by the forwarder
(``trainer.deferred_episode``).
"""

from __future__ import annotations

import os
import platform
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from eventlog.forwarder_control import ensure_forwarder
from eventlog.outbox import Publisher, claim_attempt
from schemas.errors import OutboxError
from schemas.ids import Role
from schemas.payloads import AttemptStarted, IterationEnded, Payload, Publishable, RunEnded, RunStarted, RunStatus
from schemas.times import wall_now
from trainer.deferred_episode import defer_end, defer_start
from trainer.env_facts import beginning_of, lineage_of, record_of, tape_of
from trainer.environments import follow_window, register
from trainer.episode_events import EpisodeFacts, ended, recorded
from trainer.fragments import Taken
from trainer.rllib_private import runner_callbacks
from trainer.rollout import Rollout
from trainer.settings import EventSettings
from trainer.window_store import require_store, resumed_from

# Loading a checkpoint of ours imports this module: the environment must be known to RLlib from then on.
register()


class EventCallbacks(RLlibCallback):
    """Publishes episodes, trades, fills and steps from runners, and attempts and iterations from the driver.

    What goes wrong in a runner is raised in the driver, after the iteration: RLlib takes an exception in a runner for
    a broken runner, and would restart it for ever.

    Args:
        settings: Run, outbox and log; travels to every runner and into checkpoints.

    Raises:
        WindowError: the run has windows and they are not open in this Ray session.
    """

    reads_rollouts = True

    def __init__(self, settings: EventSettings) -> None:
        super().__init__()
        if settings.window_store is not None:
            # In the driver this runs before any runner is built: the error is a plain one, with what to do.
            require_store(settings.window_store)
        self.settings = settings
        self.attempt = settings.attempt
        self.iteration = 0
        self._publisher: Publisher | None = None
        self._role, self._worker_index = Role.DRIVER, 0
        self._env_name = ""
        self._pending: list[Publishable] = []
        self._facts: dict[int, EpisodeFacts] = {}
        self._earlier: dict[str, Taken] = {}
        self._failure: OutboxError | None = None
        self._numbers: Counter[int] = Counter()

    # --- in every process ---------------------------------------------------------------------------------------------

    @property
    def publisher(self) -> Publisher:
        """This process's publisher, opened at first use: most callback objects never publish."""
        if self._publisher is None:
            outbox = self.settings.outbox
            self._publisher = Publisher.open(
                outbox.directory,
                run_id=self.settings.run_id,
                attempt=self.attempt,
                role=self._role,
                worker_index=self._worker_index,
                node=outbox.node or None,
                topic_prefix=self.settings.topic_prefix,
                max_bytes=outbox.max_mb * 1_000_000,
            )
        return self._publisher

    def publish(self, *payloads: Publishable) -> None:
        """Publish at once, in one transaction.

        Raises:
            OutboxFullError: the outbox has reached its limit.
        """
        self.publisher.publish(*payloads)

    def close(self) -> None:
        """Publish what is pending and close the publisher. A later event would open another one.

        Raises:
            OutboxFullError: the outbox has reached its limit; the publisher is closed all the same.
        """
        if self._publisher is not None:
            publisher, self._publisher = self._publisher, None
            try:
                publisher.publish(*self._pending)
                self._pending = []
            finally:
                publisher.close()

    # --- in runners ---------------------------------------------------------------------------------------------------

    def on_environment_created(self, *, env_runner: Any, env: Any, env_context: Any, **kwargs: Any) -> None:
        """Learn which worker this process is."""
        self._role = Role.EVALUATOR if env_runner.config.in_evaluation else Role.RUNNER
        self._worker_index = int(env_runner.worker_index or 0)
        configured = env_runner.config.env
        self._env_name = configured if isinstance(configured, str) else getattr(configured, "__name__", "env")

    def on_episode_start(self, *, episode: Any, env: Any, env_index: int, **kwargs: Any) -> None:
        """An episode has been reset."""
        if env_index in self._facts:
            # The environment failed or was reset by force: the episode before this one has no end.
            self._earlier.pop(self._facts[env_index].rllib_episode_id, None)
        number = self._numbers[env_index]
        self._numbers[env_index] += 1
        lineage = lineage_of(env, env_index)
        facts = EpisodeFacts(
            episode_id=self.publisher.publisher_id.episode(env_index, number),
            rllib_episode_id=str(episode.id_),
            role=self._role.value,
            worker_index=self._worker_index,
            env_index=env_index,
            episode_no=number,
            env=self._env_name,
            policy="agent",
            split=lineage.split if lineage else ("test" if self._role is Role.EVALUATOR else "train"),
            started_at=wall_now(),
        )
        self._facts[env_index] = facts
        beginning = beginning_of(env, env_index, episode)
        self._pending.append(defer_start(facts, self.iteration, beginning, lineage))

    def on_episode_end(self, *, episode: Any, env: Any, env_index: int, **kwargs: Any) -> None:
        """An episode has ended: its last fragment, and its environment, not reset yet."""
        self._pending += self._ended(self._facts.pop(env_index), episode, env, env_index)

    def _ended(self, facts: EpisodeFacts, episode: Any, env: Any, env_index: int) -> list[Publishable]:
        taken = self._earlier.pop(str(episode.id_), Taken())
        iteration, ended_at, lineage = self.iteration, wall_now(), lineage_of(env, env_index)
        record_steps = self.settings.record_steps
        if tape := tape_of(env, env_index):
            versions = taken.versions(episode)
            return [defer_end(facts, iteration, ended_at, versions, tape, lineage, record_steps=record_steps)]
        if record := record_of(env, env_index):
            versions = taken.versions(episode)
            return [*recorded(facts, iteration, ended_at, versions, record, lineage, record_steps=record_steps)]
        taken.add(episode)
        return [*ended(facts, iteration, ended_at, taken.outcome(episode))]

    def on_sample_end(self, *, samples: Any, **kwargs: Any) -> None:
        """Publish all that this ``sample()`` brought, in one transaction, and note what unfinished episodes did.

        Now, not at their end: a learner in this process adds a step to the fragments that it is given (RLlib's
        ``AddOneTsToEpisodesAndTruncate``), and ``prev_episode_chunks`` are these same objects.
        """
        for fragment in samples:
            # Of a rollout's episodes each end tells the whole.
            if not isinstance(fragment, Rollout) and not fragment.is_done:
                self._earlier.setdefault(str(fragment.id_), Taken()).add(fragment)
        if self._failure is None:
            self._failure = _failure_of(self._flush)

    def _flush(self) -> None:
        if self._pending:
            self.publisher.publish(*self._pending)
            self._pending = []
        elif self._publisher is not None:
            self._publisher.tick()

    def _take(self, attempt: int, iteration: int) -> OutboxError | None:
        """Go on as the driver says. Returns what has gone wrong here."""
        if self._publisher is not None and attempt != self.attempt:
            return OutboxError(
                f"publisher {self._publisher.publisher_id}: told to go on as attempt {attempt}; a publisher keeps its "
                "attempt, so restart the runner"
            )
        self.attempt, self.iteration = attempt, iteration
        if self._failure is None and self._env_name:
            # Opened where an error finds its way to the driver.
            self._failure = _failure_of(self._open)
        return self._failure

    def _open(self) -> None:
        _ = self.publisher
        # On another node than the driver's the outbox is another one, and nobody else starts its forwarder.
        ensure_forwarder(self.settings.outbox.directory, self.settings.log)

    # --- in the driver ------------------------------------------------------------------------------------------------

    def on_algorithm_init(self, *, algorithm: Any, **kwargs: Any) -> None:
        """An attempt begins. A number that is taken (a checkpoint opened again) becomes the next free one."""
        settings = self.settings
        self.attempt = claim_attempt(settings.outbox.directory, settings.run_id, settings.attempt)
        # RLlib restores a checkpoint's state only after this call, and tells no callback that it has.
        resumed = resumed_from(settings.window_store) if settings.window_store is not None else None
        self.iteration = resumed or 0
        ensure_forwarder(settings.outbox.directory, settings.log)
        config = algorithm.config
        events: list[Payload] = []
        if self.attempt == 1:
            events.append(self._run_started(algorithm))
        events.append(
            AttemptStarted(
                started_at=wall_now(),
                resumed_from_iteration=resumed,
                host=socket.gethostname(),
                pid=os.getpid(),
                num_env_runners=int(config.num_env_runners or 0),
                num_envs_per_env_runner=int(config.num_envs_per_env_runner),
            )
        )
        self.publish(*events, *settings.windows)
        # A later attempt of a run without windows learns its iteration with its first result; 0 says "unknown".
        known = resumed is not None or self.attempt == 1
        self._tell_runners(algorithm.env_runner_group, self.iteration + 1 if known else 0)

    def on_checkpoint_loaded(self, *, algorithm: Any, **kwargs: Any) -> None:
        """Iterations go on from the checkpoint's: Tune restores by this way."""
        self.iteration = int(algorithm.iteration)
        self._tell_runners(algorithm.env_runner_group, self.iteration + 1)

    def on_train_result(self, *, algorithm: Any, result: dict[str, Any], **kwargs: Any) -> None:
        """An iteration has ended."""
        self.iteration = int(result["training_iteration"])
        # A dead forwarder (killed, out of memory) is replaced; starting one that runs already costs a lock attempt.
        ensure_forwarder(self.settings.outbox.directory, self.settings.log)
        runners = result.get("env_runners", {})
        mean = runners.get("episode_return_mean")
        self.publish(
            IterationEnded(
                iteration=self.iteration,
                env_steps=counted(runners, "num_env_steps_sampled"),
                env_steps_total=counted(runners, "num_env_steps_sampled_lifetime"),
                episodes=counted(runners, "num_episodes"),
                episode_return_mean=(
                    float(mean) / self.settings.reward_scale if mean is not None and np.isfinite(mean) else None
                ),
                seconds=float(result["time_this_iter_s"]),
                policy_version=counted(runners, WEIGHTS_SEQ_NO),
            )
        )
        self._tell_runners(algorithm.env_runner_group, self.iteration + 1)

    def on_evaluate_end(self, *, algorithm: Any, **kwargs: Any) -> None:
        """Learn whether the evaluation could be published."""
        self._tell_runners(algorithm.eval_env_runner_group, self.iteration)

    def on_evaluate_start(self, *, algorithm: Any, **kwargs: Any) -> None:
        """Evaluation episodes carry the iteration whose policy they show."""
        # RLlib's own comes behind the update of an iteration not yet reported; or beside it, with the weights before.
        interval = 0 if algorithm.config.evaluation_parallel_to_training else algorithm.config.evaluation_interval
        within = bool(interval) and (self.iteration + 1) % interval == 0
        self._tell_runners(algorithm.eval_env_runner_group, max(self.iteration + within, 1))

    def on_env_runners_recreated(self, *, algorithm: Any, env_runner_group: Any, **kwargs: Any) -> None:
        """A restarted runner has its constructor's settings: tell it the attempt, the iteration and the window."""
        self._tell_runners(env_runner_group, self.iteration + 1)
        # It asked for the current window when it was made; that may have moved before it could be told of the move.
        env_runner_group.foreach_env_runner(follow_window, timeout_seconds=30.0)

    def _tell_runners(self, group: Any, iteration: int) -> None:
        if group is not None:
            attempt = self.attempt
            failures = _foreach(group, lambda callbacks: callbacks._take(attempt, iteration))
            if failures:
                raise failures[0]

    def _run_started(self, algorithm: Any) -> RunStarted:
        settings = self.settings
        packages = ("millrace", "ray", "torch", "gymnasium", "numpy")
        return RunStarted(
            name=settings.name,
            started_at=wall_now(),
            # RLlib's, where ours stands for it.
            algorithm=next(
                one.__name__ for one in type(algorithm).__mro__ if not one.__module__.startswith("trainer.")
            ),
            env=str(algorithm.config.env),
            seed=settings.seed if settings.seed is not None else algorithm.config.seed,
            parameters=settings.parameters,
            versions={name: metadata.version(name) for name in packages} | {"python": platform.python_version()},
            notes=settings.notes,
        )


def counted(metrics: Mapping[str, Any], name: str) -> int:
    """A counter among RLlib's metrics; 0 where it says NaN, as in an iteration without a living runner."""
    value = metrics.get(name, 0)
    return int(value) if np.isfinite(value) else 0


def add_callbacks(config: Any, *more: Callable[[], RLlibCallback]) -> None:
    """Add callbacks to an ``AlgorithmConfig`` beside those that it has; ``config.callbacks()`` would replace them."""
    before = config.callbacks_class
    config.callbacks([*(before if isinstance(before, (list, tuple)) else [before]), *more])


def driver_callbacks(algorithm: Any) -> EventCallbacks:
    """The driver's ``EventCallbacks`` of an algorithm.

    Raises:
        OutboxError: its config has none.
    """
    for callbacks in algorithm.callbacks:
        if isinstance(callbacks, EventCallbacks):
            return callbacks
    raise OutboxError(
        "algorithm: expected EventCallbacks among its callbacks, got none; set them by config.callbacks()"
    )


def finish_run(algorithm: Any, status: RunStatus = "completed", notes: str = "", *, timeout_s: float = 30.0) -> None:
    """End the run in order: publish its end and close every publisher. Call it before ``algorithm.stop()``.

    A runner that does not answer within ``timeout_s`` seconds is left to its forwarder, as a killed one would be.

    RLlib has no hook for the end of a runner. Without this call nothing is lost: the forwarder sends what the
    outboxes hold and marks their publishers as closed for them, but the run shows no end.

    Raises:
        OutboxError: the algorithm has no ``EventCallbacks``, or a runner could not publish its last events; the run
            is then recorded as failed.
    """
    driver = driver_callbacks(algorithm)
    failures: list[OutboxError] = []
    for group in (algorithm.env_runner_group, algorithm.eval_env_runner_group):
        if group is not None:
            failures += _foreach(group, lambda callbacks: _failure_of(callbacks.close), timeout_s)
    steps = algorithm.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime"), default=0)
    driver.publish(
        RunEnded(
            status="failed" if failures else status,
            ended_at=wall_now(),
            iterations=driver.iteration,
            env_steps=int(steps),
            notes=notes,
        )
    )
    driver.close()
    if failures:
        raise failures[0]


def _failure_of(action: Callable[[], object]) -> OutboxError | None:
    try:
        action()
    except OutboxError as error:
        return error
    return None


def _foreach(
    group: Any, action: Callable[[EventCallbacks], OutboxError | None], timeout_s: float = 30.0
) -> list[OutboxError]:
    """Act on the callbacks of each runner of the group. Returns what has gone wrong in them."""

    def apply(env_runner: Any) -> list[OutboxError | None]:
        return [
            action(callbacks) for callbacks in runner_callbacks(env_runner) if isinstance(callbacks, EventCallbacks)
        ]

    # A runner that does not answer is being replaced; it learns the same in on_env_runners_recreated.
    answers = group.foreach_env_runner(apply, timeout_seconds=timeout_s)
    return [failure for answer in answers for failure in answer if failure is not None]
