"""Settings of a training run. ``[algorithm.*]`` tables are RLlib's own: nothing in them is renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.payloads import Split, WindowOpened


class DataSettings(BaseModel):
    """Which bars to train on, and which to keep for the test."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    feed: str = Field("", description="Name of the feed on the bars topic; none: that of the file in [feed].")
    symbols: tuple[str, ...] = Field((), description="Symbols to trade; none named: all that the feed has.")
    interval: str = Field("1d", description="Length of a bar, such as 1m, 1h, 1d.")
    adjusted: bool = Field(True, description="Use bars adjusted for splits and dividends.")
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share of the time range, at its end, that is kept for the test and never learned."
    )
    validation_fraction: float = Field(
        0.0, ge=0, lt=1, description="Share of the time range, before the test, that is traded to evaluate in training."
    )
    test_from: str = Field("", description="Where the test begins, ISO-8601 UTC; overrides test_fraction.")


class AlgorithmSettings(BaseModel):
    """An RLlib algorithm. Each table below ``[algorithm]`` is a method of its ``AlgorithmConfig``."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field("DQN", description="Name of an RLlib algorithm: DQN, PPO, APPO, IMPALA, SAC …")

    @property
    def tables(self) -> dict[str, Any]:
        """Method name to keyword arguments."""
        return dict(self.model_extra or {})


class TrainSettings(BaseModel):
    """How long to train, and what to keep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("millrace", description="A name for the run, for people.")
    notes: str = Field("", description="Anything worth remembering about the run.")
    seed: int | None = Field(None, ge=0, description="Seed of everything; none: drawn at the start and recorded.")
    iterations: int = Field(
        10, ge=1, description="Training iterations; by the defaults of each algorithm one lasts about a second."
    )
    checkpoint_every: int = Field(5, ge=0, description="Iterations between checkpoints; 0: only at the end.")
    record_steps: bool = Field(False, description="Publish every step of every episode, not only trades and fills.")
    fast_path: Literal["auto", "off"] = Field(
        "auto", description="auto: batched roll-out and lean update where they do all that is set; off: RLlib's own."
    )
    num_cpus: int | None = Field(None, ge=1, description="Logical CPUs that Ray may use; none: as many as it needs.")
    torch_threads: int = Field(
        1, ge=1, description="Threads of torch and numpy in the driver, for a local learner; small networks want one."
    )
    object_store_mb: int = Field(256, ge=80, description="Ray's shared memory for windows and samples, in MB.")


class OutboxSettings(BaseModel):
    """The outbox of the training processes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path = Field(Path(".millrace/outbox"), description="Where outboxes lie; local disk, one per node.")
    max_mb: int = Field(2_048, ge=1, description="Size of an unsent outbox at which the run stops rather than drop.")
    node: str = Field("", pattern=r"^[0-9A-Za-z_-]*$", description="Name of this machine in ids; none: from host name.")

    @model_validator(mode="after")
    def _directory_is_absolute(self) -> Self:
        # Ray's workers and Tune's trials have working directories of their own.
        object.__setattr__(self, "directory", self.directory.expanduser().absolute())
        return self


class EventSettings(BaseModel):
    """What ``EventCallbacks`` need to publish. Plain data: it travels to every runner and into checkpoints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    attempt: int = Field(ge=1)
    name: str = ""
    notes: str = ""
    seed: int | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    log: str = Field(description="Address of the event log, for the forwarder")
    topic_prefix: str = "millrace"
    outbox: OutboxSettings = Field(default_factory=OutboxSettings)
    record_steps: bool = False
    reward_scale: float = Field(1.0, description="Divides RLlib's returns, so that reported ones are unscaled")
    windows: tuple[WindowOpened, ...] = ()
    window_store: str | None = Field(None, description="Name of the actor that holds the run's windows")


class EnvConfig(BaseModel):
    """What RLlib's ``env_config`` holds for our environments: ids and settings, never bars and never an ObjectRef."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_store: str
    split: Split
    settings: dict[str, Any] = Field(description="EnvSettings as a mapping")
    scaler: dict[str, Any] = Field(description="The policy's scaler as a mapping")
    seed: int
    branch: Literal["train", "evaluation"] = "train"
    num_envs: int = Field(ge=1, description="Environments per runner, to number them through over all runners")
