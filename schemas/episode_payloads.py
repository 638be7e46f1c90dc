"""Events of episodes: start, end, actions, and the trades, fills, steps and positions of a trading environment.

Money is in the account's currency; fees, slippage and borrow costs are amounts ≥ 0; quantities are units of the
symbol, signed where direction matters. An episode of a portfolio has the symbol "portfolio", and its trades, fills and
positions name their own.
"""

from __future__ import annotations

from pydantic import Field

from schemas.payload import Payload, Split


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
    symbol: str | None = Field(default=None, description='Name of the instrument, or "portfolio"')
    symbols: list[str] = Field(default=[], description="Instruments that the episode could trade")
    window_id: str | None = None
    data_hash: str | None = None
    settings_hash: str | None = None
    scaler_version: str | None = None
    env_seed: str | None = None
    start_row: int | None = None
    first_ts: int | None = None
    last_ts: int | None = None
    bars_per_year: float | None = None
    initial_value: float | None = None
    final_value: float | None = None
    pnl: float | None = None
    gross_pnl: float | None = Field(default=None, description="Before fee, borrow, funding and interest")
    bad_debt: float | None = Field(default=None, description="What equity fell short of 0 by")
    open_quantity: float | None = Field(default=None, description="None for a portfolio")
    open_entry_price: float | None = None
    open_pnl: float | None = Field(default=None, description="Realised + unrealised - costs of the open trades")
    stale_steps: int | None = None
    cancelled_orders: int | None = None
    trade_count: int | None = None
    fill_count: int | None = None

    # The metrics: env/metrics.py has their definitions and sources.
    total_return: float | None = Field(default=None, description="Final over initial equity, minus 1")
    annual_return: float | None = None
    volatility: float | None = Field(default=None, description="Annual, ddof 1")
    sharpe: float | None = Field(default=None, description="Per step, simple returns, ddof 1")
    annual_sharpe: float | None = None
    sortino: float | None = Field(default=None, description="Per step, target 0")
    annual_sortino: float | None = None
    calmar: float | None = None
    max_drawdown: float | None = None
    max_drawdown_bars: int | None = Field(default=None, description="From its peak until back at it, or to the end")
    var_95: float | None = Field(default=None, description="Per step; a loss is positive")
    cvar_95: float | None = Field(default=None, description="Per step; a loss is positive")
    profit_factor: float | None = None
    expectancy: float | None = Field(default=None, description="Mean net pnl of closed trades, in money")
    win_rate: float | None = None
    win_rate_long: float | None = None
    win_rate_short: float | None = None
    exposure: float | None = Field(default=None, description="Share of steps at whose close a position was open")
    turnover: float | None = Field(default=None, description="Traded notional over mean equity")
    mean_trade_bars: float | None = None
    median_trade_bars: float | None = None
    action_change_rate: float | None = None
    fee: float | None = None
    slippage: float | None = None
    borrow: float | None = None
    funding: float | None = Field(default=None, description="Paid; received where below 0")
    interest: float | None = Field(default=None, description="Received on cash; paid where below 0")


class ActionsTaken(Payload):
    """The actions of an ended episode, in order."""

    EVENT_TYPE = "episode.actions"
    TOPIC = "episodes"
    COLUMNS = ("actions",)

    episode_id: str
    first_row: int = 0
    actions: list[int] | list[float] | list[list[float]]


class Trades(Payload):
    """Closed trades of one episode: from flat to flat, or to the flip, per symbol, at average cost."""

    EVENT_TYPE = "trades"
    TOPIC = "trades"
    COLUMNS = (
        "symbol",
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
        "funding",
        "net_pnl",
        "bars",
        "exit_kind",
        "entry_policy_version",
        "exit_policy_version",
    )

    episode_id: str
    split: Split
    policy: str
    iteration: int
    window_id: str | None
    first_row: int = 0
    symbol: list[str]
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
    funding: list[float] = Field(description="Paid; received where below 0")
    net_pnl: list[float] = Field(description="gross_pnl - fee - borrow - funding")
    bars: list[int]
    exit_kind: list[str] = Field(description="Kind of the fill that closed it")
    entry_policy_version: list[int | None]
    exit_policy_version: list[int | None]


class Fills(Payload):
    """Executions of one episode."""

    EVENT_TYPE = "fills"
    TOPIC = "fills"
    COLUMNS = (
        "symbol",
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
    split: Split
    policy: str
    iteration: int
    window_id: str | None
    first_row: int = 0
    symbol: list[str]
    trade_no: list[int] = Field(description="Row number of the trade that the fill opens, changes or closes")
    step: list[int] = Field(description="Step whose action decided it, from 0")
    decided_ts: list[int] = Field(description="ts_close of the bar after which it was decided")
    ts: list[int] = Field(description="When it filled: ts_open of its bar; ts_close where it closed at the end of data")
    row: list[int]
    quantity: list[float]
    price: list[float]
    reference_price: list[float]
    fee: list[float]
    slippage: list[float]
    kind: list[str] = Field(
        description="entry, increase, reduce, exit, reversal, stop_loss, trailing_stop, take_profit, liquidation, "
        "end_of_data"
    )
    operations: list[str] = Field(description="ENTRY_LONG, EXIT_LONG, ENTRY_SHORT, EXIT_SHORT; two joined by +")
    position_after: list[float]
    policy_version: list[int | None]


class Steps(Payload):
    """Every step of one episode, on request (``record_steps``)."""

    EVENT_TYPE = "steps"
    TOPIC = "steps"
    COLUMNS = (
        "ts",
        "row",
        "value",
        "reward",
        "price",
        "action",
        "position",
        "cash",
        "exposure",
        "borrow",
        "funding",
        "interest",
        "stale",
        "policy_version",
    )

    episode_id: str
    symbol: str
    split: Split
    policy: str
    iteration: int
    window_id: str | None
    first_row: int = 0
    ts: list[int]
    row: list[int]
    value: list[float] = Field(description="Equity at the close")
    reward: list[float] = Field(description="Unscaled")
    price: list[float | None] = Field(description="None for a portfolio, see positions")
    action: list[float | None] = Field(description="None where it is a vector, see episode.actions")
    position: list[float | None] = Field(description="None for a portfolio, see positions")
    cash: list[float]
    exposure: list[float] = Field(description="Gross notional over equity; 0 when flat")
    borrow: list[float]
    funding: list[float]
    interest: list[float]
    stale: list[bool]
    policy_version: list[int | None]


class Positions(Payload):
    """What a portfolio held after each step, one row a step and symbol, where steps are recorded."""

    EVENT_TYPE = "positions"
    TOPIC = "steps"
    COLUMNS = ("step", "symbol", "price", "position", "stale")

    episode_id: str
    split: Split
    policy: str
    iteration: int
    window_id: str | None
    first_row: int = 0
    step: list[int] = Field(description="Number of the step, from 0: the row of steps")
    symbol: list[str]
    price: list[float] = Field(description="The mark: the close, or on a missing bar the last price")
    position: list[float]
    stale: list[bool]
