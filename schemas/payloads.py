"""What each event says: one model per event type, by topic.

A payload with ``COLUMNS`` is columnar: the named lists have one entry a row and may be split over several records;
its ``first_row`` is the number of its first row within the episode. Money is in the account's currency; fees,
slippage and borrow costs are amounts ≥ 0; quantities are units of the symbol, signed where direction matters.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Split = Literal["train", "test", "live"]
RunStatus = Literal["completed", "stopped", "failed"]


class Payload(BaseModel):
    """Base of all payloads. Fields unknown to this version (a newer minor) are kept, not refused."""

    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="null")

    EVENT_TYPE: ClassVar[str]
    TOPIC: ClassVar[str]
    COLUMNS: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _columns_have_one_length(self) -> Self:
        lengths = {name: len(getattr(self, name)) for name in self.COLUMNS}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.EVENT_TYPE}: columns of different lengths {lengths}")
        return self

    @property
    def rows(self) -> int:
        """Rows that this payload declares; 0 where it has no columns."""
        return len(getattr(self, self.COLUMNS[0])) if self.COLUMNS else 0


# --- runs -------------------------------------------------------------------------------------------------------------


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


# --- episodes ---------------------------------------------------------------------------------------------------------


class EpisodeStarted(Payload):
    """An episode has been reset. One without an end is shown as abandoned, with no metrics invented for it."""

    EVENT_TYPE = "episode.started"
    TOPIC = "episodes"

    episode_id: str
    rllib_episode_id: str
    role: str
    worker_index: int
    env_index: int
    episode_no: int
    env: str
    policy: str
    split: Split
    iteration: int
    started_at: int
    symbol: str | None = None
    window_id: str | None = None
    start_row: int | None = None
    initial_value: float | None = None


class EpisodeEnded(Payload):
    """An episode has ended. With start row, seed, settings and data hash it can be run again without the policy."""

    EVENT_TYPE = "episode.ended"
    TOPIC = "episodes"

    episode_id: str
    rllib_episode_id: str
    role: str
    worker_index: int
    env_index: int
    episode_no: int
    env: str
    policy: str = Field(description="agent, or the name of a baseline")
    split: Split
    iteration: int = Field(description="Training iteration in which the episode ended, from 1; 0 where unknown")
    started_at: int
    ended_at: int
    terminated: bool
    truncated: bool
    reason: str = Field(description="end_of_data, length, ruin; terminated or truncated for an environment not ours")
    steps: int
    total_reward: float = Field(description="Unscaled; for TradingEnv the sum of log returns")
    first_policy_version: int | None
    last_policy_version: int | None
    action_counts: dict[str, int]

    # Only environments with an episode record have the following.
    symbol: str | None = None
    window_id: str | None = None
    data_hash: str | None = None
    settings_hash: str | None = None
    scaler_version: str | None = None
    env_seed: str | None = None
    start_row: int | None = None
    first_ts: int | None = None
    last_ts: int | None = None
    initial_value: float | None = None
    final_value: float | None = None
    pnl: float | None = None
    sharpe: float | None = Field(default=None, description="Per step, simple returns, ddof 1, not annualised")
    max_drawdown: float | None = None
    win_rate: float | None = None
    gross_pnl: float | None = None
    fee: float | None = None
    slippage: float | None = None
    borrow: float | None = None
    open_quantity: float | None = None
    open_entry_price: float | None = None
    open_pnl: float | None = Field(default=None, description="Realised + unrealised - costs of the open trade")
    stale_steps: int | None = None
    trade_count: int | None = None
    fill_count: int | None = None


class ActionsTaken(Payload):
    """The actions of an ended episode, in order."""

    EVENT_TYPE = "episode.actions"
    TOPIC = "episodes"
    COLUMNS = ("actions",)

    episode_id: str
    first_row: int = 0
    actions: list[int] | list[float] | list[list[float]]


class Trades(Payload):
    """Closed trades of one episode: from flat to flat, or to the flip, at average cost."""

    EVENT_TYPE = "trades"
    TOPIC = "trades"
    COLUMNS = (
        "side",
        "quantity",
        "entry_ts",
        "exit_ts",
        "entry_row",
        "exit_row",
        "entry_price",
        "exit_price",
        "gross_pnl",
        "fee",
        "slippage",
        "borrow",
        "net_pnl",
        "bars",
        "exit_kind",
        "entry_policy_version",
        "exit_policy_version",
    )

    episode_id: str
    symbol: str
    split: Split
    policy: str
    iteration: int
    window_id: str | None
    first_row: int = 0
    side: list[int] = Field(description="+1 long, -1 short")
    quantity: list[float] = Field(description="Largest absolute position of the trade")
    entry_ts: list[int]
    exit_ts: list[int]
    entry_row: list[int]
    exit_row: list[int]
    entry_price: list[float]
    exit_price: list[float]
    gross_pnl: list[float] = Field(description="Slippage is inside the prices, so inside this figure")
    fee: list[float]
    slippage: list[float] = Field(description="Shown apart; already inside gross_pnl")
    borrow: list[float]
    net_pnl: list[float] = Field(description="gross_pnl - fee - borrow")
    bars: list[int]
    exit_kind: list[str]
    entry_policy_version: list[int | None]
    exit_policy_version: list[int | None]


class Fills(Payload):
    """Executions of one episode."""

    EVENT_TYPE = "fills"
    TOPIC = "fills"
    COLUMNS = (
        "trade_no",
        "step",
        "decided_ts",
        "ts",
        "row",
        "quantity",
        "price",
        "reference_price",
        "fee",
        "slippage",
        "kind",
        "operations",
        "position_after",
        "policy_version",
    )

    episode_id: str
    symbol: str
    split: Split
    policy: str
    iteration: int
    window_id: str | None
    first_row: int = 0
    trade_no: list[int] = Field(description="Row number of the trade that the fill opens, changes or closes")
    step: list[int] = Field(description="Step whose action decided it, from 0")
    decided_ts: list[int] = Field(description="ts_close of the bar after which it was decided")
    ts: list[int] = Field(description="ts_open of the bar in which it filled")
    row: list[int]
    quantity: list[float]
    price: list[float]
    reference_price: list[float]
    fee: list[float]
    slippage: list[float]
    kind: list[str]
    operations: list[str] = Field(description="ENTRY_LONG, EXIT_LONG, ENTRY_SHORT, EXIT_SHORT; two joined by +")
    position_after: list[float]
    policy_version: list[int | None]


class Steps(Payload):
    """Every step of one episode, on request (``record_steps``)."""

    EVENT_TYPE = "steps"
    TOPIC = "steps"
    COLUMNS = ("ts", "row", "value", "reward", "price", "action", "position", "cash", "stale", "policy_version")

    episode_id: str
    symbol: str
    split: Split
    policy: str
    iteration: int
    window_id: str | None
    first_row: int = 0
    ts: list[int]
    row: list[int]
    value: list[float]
    reward: list[float]
    price: list[float]
    action: list[int]
    position: list[float]
    cash: list[float]
    stale: list[bool]
    policy_version: list[int | None]


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
    )
}
"""Event type to payload model: every event that a publisher may emit."""
