"""Events of runs: attempts, windows, iterations, and what each publisher says that it sent."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from schemas.payload import Payload, Split

RunStatus = Literal["completed", "stopped", "failed"]


class RunStarted(Payload):
    """A run begins (its first attempt)."""

    EVENT_TYPE = "run.started"
    TOPIC = "runs"

    name: str
    started_at: int
    algorithm: str
    env: str
    seed: int | None
    parameters: dict[str, Any] = Field(description="Resolved settings, secrets masked")
    versions: dict[str, str] = Field(description="Package name to version")
    notes: str = ""


class RunEnded(Payload):
    """A run ends in an orderly way. A run without it was killed or is still going."""

    EVENT_TYPE = "run.ended"
    TOPIC = "runs"

    status: RunStatus
    ended_at: int
    iterations: int
    env_steps: int
    notes: str = ""


class AttemptStarted(Payload):
    """A driver starts for the run."""

    EVENT_TYPE = "attempt.started"
    TOPIC = "runs"

    started_at: int
    resumed_from_iteration: int | None
    host: str
    pid: int
    num_env_runners: int
    num_envs_per_env_runner: int


class WindowOpened(Payload):
    """A window of bars that episodes of this run trade, with its exact place on the log."""

    EVENT_TYPE = "window.opened"
    TOPIC = "runs"

    window_id: str
    data_hash: str
    split: Split
    feed: str
    symbols: list[str]
    interval: str
    cluster_id: str
    topic: str
    topic_id: str
    partitions: list[int]
    start_offsets: list[int] = Field(description="First offset read, per entry of partitions")
    end_offsets: list[int] = Field(description="Offset after the last one read, per entry of partitions")
    first_ts: int
    last_ts: int
    bars: int
    refused_bars: int = Field(description="Repeats with other values: refused, not used")
    feature_recipe: str
    bar_policy: str
    scaler_version: str


class IterationEnded(Payload):
    """One ``Algorithm.train()`` has returned."""

    EVENT_TYPE = "iteration.ended"
    TOPIC = "runs"

    iteration: int
    env_steps: int = Field(description="Environment steps sampled in this iteration")
    env_steps_total: int
    episodes: int = Field(description="Episodes that ended in this iteration")
    episode_return_mean: float | None = Field(description="None where no episode has ended yet")
    seconds: float = Field(description="Wall time of the iteration by a monotonic clock")
    policy_version: int = Field(description="weights_seq_no of the env runners after the iteration")


class PublisherReport(Payload):
    """Cumulative counts of one publisher, per event type: the ground truth of the integrity check.

    The closing report is written by the forwarder, once everything before it was acknowledged by the log.
    """

    EVENT_TYPE = "publisher.report"
    TOPIC = "runs"

    role: str
    worker_index: int
    restart: int
    node: str
    host: str
    pid: int
    emitted: dict[str, int] = Field(description="Event type to highest number, this report included")
    acknowledged: dict[str, int] = Field(description="Event type to numbers that the log has acknowledged")
    closing: bool
    closed_by: Literal["", "publisher", "forwarder"] = Field(
        description="publisher: closed in order; forwarder: the process died and its outbox was flushed for it"
    )
