-- One table per event type, each in the ReplacingMergeTree family: a record that comes again writes the same row.
--
-- * The sort key is what the row is (readable), so a second sending, a replay or a zombie cannot add a row.
-- * The partition is the month of wall_time, which the publisher stamped once and which is part of the record: a row
--   can never lie in two partitions, so FINAL need not merge across them. Never now() (another month on redelivery),
--   never bar time (30 years of daily bars would be 360 partitions).
-- * Every integer of an event is Int64: what the log can carry fits the column. The codecs take the space back.
-- * Tables end in _rows and are the consumer's; people read the views of 0002, which apply FINAL.
-- * Columns carry the names of the payload's fields (schemas/payloads.py). Times are UTC, in microseconds.

CREATE TABLE IF NOT EXISTS runs_started_rows
(
    run_id String, attempt Int64, publisher_id String, number Int64, wall_time DateTime64(6, 'UTC'),
    name String,
    started_at DateTime64(6, 'UTC'),
    algorithm LowCardinality(String),
    env LowCardinality(String),
    seed Nullable(Int64),
    parameters String COMMENT 'Resolved settings as JSON, secrets masked' CODEC(ZSTD(3)),
    versions Map(String, String),
    notes String
)
ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(wall_time) ORDER BY (run_id, attempt);

CREATE TABLE IF NOT EXISTS runs_ended_rows
(
    run_id String, attempt Int64, publisher_id String, number Int64, wall_time DateTime64(6, 'UTC'),
    status LowCardinality(String),
    ended_at DateTime64(6, 'UTC'),
    iterations Int64,
    env_steps Int64,
    notes String
)
ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(wall_time) ORDER BY (run_id, attempt);

CREATE TABLE IF NOT EXISTS attempts_rows
(
    run_id String, attempt Int64, publisher_id String, number Int64, wall_time DateTime64(6, 'UTC'),
    started_at DateTime64(6, 'UTC'),
    resumed_from_iteration Nullable(Int64),
    host String,
    pid Int64,
    num_env_runners Int64,
    num_envs_per_env_runner Int64
)
ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(wall_time) ORDER BY (run_id, attempt);

-- The same window may be opened again by a later attempt or another process: each opening is an event of its own.
CREATE TABLE IF NOT EXISTS windows_rows
(
    run_id String, attempt Int64, publisher_id String, number Int64, wall_time DateTime64(6, 'UTC'),
    window_id String,
    data_hash String,
    split LowCardinality(String),
    feed LowCardinality(String),
    symbols Array(String),
    interval LowCardinality(String),
    cluster_id String,
    topic LowCardinality(String),
    topic_id String,
    partitions Array(Int64),
    start_offsets Array(Int64),
    end_offsets Array(Int64),
    first_ts DateTime64(6, 'UTC'),
    last_ts DateTime64(6, 'UTC'),
    bars Int64,
    refused_bars Int64,
    feature_recipe String,
    bar_policy LowCardinality(String),
    scaler_version String
)
ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(wall_time) ORDER BY (run_id, window_id, publisher_id, number);

CREATE TABLE IF NOT EXISTS iterations_rows
(
    run_id String, attempt Int64, publisher_id String, number Int64, wall_time DateTime64(6, 'UTC'),
    iteration Int64,
    env_steps Int64,
    env_steps_total Int64,
    episodes Int64,
    episode_return_mean Nullable(Float64),
    seconds Float64,
    policy_version Int64
)
ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(wall_time) ORDER BY (run_id, attempt, iteration);

CREATE TABLE IF NOT EXISTS publisher_reports_rows
(
    run_id String, attempt Int64, publisher_id String, number Int64, wall_time DateTime64(6, 'UTC'),
    role LowCardinality(String),
    worker_index Int64,
    restart Int64,
    node LowCardinality(String),
    host LowCardinality(String),
    pid Int64,
    emitted Map(String, Int64),
    acknowledged Map(String, Int64),
    closing Bool,
    closed_by LowCardinality(String)
)
ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(wall_time) ORDER BY (run_id, publisher_id, number);

CREATE TABLE IF NOT EXISTS episodes_started_rows
(
    run_id String, attempt Int64, publisher_id String, number Int64,
    wall_time DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    episode_id String CODEC(ZSTD(1)),
    rllib_episode_id String,
    role LowCardinality(String),
    worker_index Int64 CODEC(T64, ZSTD(1)),
    env_index Int64 CODEC(T64, ZSTD(1)),
    episode_no Int64 CODEC(T64, ZSTD(1)),
    env LowCardinality(String),
    policy LowCardinality(String),
    split LowCardinality(String),
    iteration Int64 CODEC(T64, ZSTD(1)),
    started_at DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    symbol LowCardinality(Nullable(String)),
    window_id LowCardinality(Nullable(String)),
    start_row Nullable(Int64),
    initial_value Nullable(Float64)
)
ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(wall_time) ORDER BY (run_id, episode_id);

CREATE TABLE IF NOT EXISTS episodes_ended_rows
(
    run_id String, attempt Int64, publisher_id String, number Int64,
    wall_time DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    episode_id String CODEC(ZSTD(1)),
    rllib_episode_id String,
    role LowCardinality(String),
    worker_index Int64 CODEC(T64, ZSTD(1)),
    env_index Int64 CODEC(T64, ZSTD(1)),
    episode_no Int64 CODEC(T64, ZSTD(1)),
    env LowCardinality(String),
    policy LowCardinality(String),
    split LowCardinality(String),
    iteration Int64 CODEC(T64, ZSTD(1)),
    started_at DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    ended_at DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    terminated Bool,
    truncated Bool,
    reason LowCardinality(String),
    steps Int64 CODEC(T64, ZSTD(1)),
    total_reward Float64,
    first_policy_version Nullable(Int64),
    last_policy_version Nullable(Int64),
    action_counts Map(String, Int64),
    symbol LowCardinality(Nullable(String)),
    symbols Array(LowCardinality(String)),
    window_id LowCardinality(Nullable(String)),
    data_hash LowCardinality(Nullable(String)),
    settings_hash LowCardinality(Nullable(String)),
    scaler_version LowCardinality(Nullable(String)),
    env_seed Nullable(String),
    start_row Nullable(Int64),
    first_ts Nullable(DateTime64(6, 'UTC')),
    last_ts Nullable(DateTime64(6, 'UTC')),
    bars_per_year Nullable(Float64),
    initial_value Nullable(Float64),
    final_value Nullable(Float64),
    pnl Nullable(Float64),
    gross_pnl Nullable(Float64),
    bad_debt Nullable(Float64),
    open_quantity Nullable(Float64),
    open_entry_price Nullable(Float64),
    open_pnl Nullable(Float64),
    stale_steps Nullable(Int64),
    cancelled_orders Nullable(Int64),
    trade_count Nullable(Int64),
    fill_count Nullable(Int64),
    -- The metrics of env/metrics.py; the view episode_metrics computes the same from steps, fills and trades.
    total_return Nullable(Float64),
    annual_return Nullable(Float64),
    volatility Nullable(Float64),
    sharpe Nullable(Float64),
    annual_sharpe Nullable(Float64),
    sortino Nullable(Float64),
    annual_sortino Nullable(Float64),
    calmar Nullable(Float64),
    max_drawdown Nullable(Float64),
    max_drawdown_bars Nullable(Int64),
    var_95 Nullable(Float64),
    cvar_95 Nullable(Float64),
    profit_factor Nullable(Float64),
    expectancy Nullable(Float64),
    win_rate Nullable(Float64),
    win_rate_long Nullable(Float64),
    win_rate_short Nullable(Float64),
    exposure Nullable(Float64),
    turnover Nullable(Float64),
    mean_trade_bars Nullable(Float64),
    median_trade_bars Nullable(Float64),
    action_change_rate Nullable(Float64),
    fee Nullable(Float64),
    slippage Nullable(Float64),
    borrow Nullable(Float64),
    funding Nullable(Float64),
    interest Nullable(Float64)
)
ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(wall_time) ORDER BY (run_id, episode_id);

-- One row a record: the actions of consecutive steps, from first_row on. Vectors are laid out one after the other.
CREATE TABLE IF NOT EXISTS episode_actions_rows
(
    run_id String, attempt Int64, publisher_id String, number Int64,
    wall_time DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    episode_id String CODEC(ZSTD(1)),
    first_row Int64,
    action_kind LowCardinality(String) COMMENT 'discrete: whole numbers; box: reals',
    action_size Int64 COMMENT 'Numbers per step: 1, or the length of the action vector',
    steps Int64 COMMENT 'Steps in this record',
    actions Array(Float64) CODEC(Gorilla, ZSTD(1))
)
ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(wall_time) ORDER BY (run_id, episode_id, first_row);

CREATE TABLE IF NOT EXISTS trades_rows
(
    run_id String CODEC(ZSTD(1)), attempt Int64 CODEC(T64, ZSTD(1)), publisher_id LowCardinality(String),
    number Int64 CODEC(Delta, ZSTD(1)), wall_time DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    episode_id String CODEC(ZSTD(1)),
    row_no Int64 COMMENT 'Number of the trade within its episode, from 0' CODEC(Delta, ZSTD(1)),
    symbol LowCardinality(String),
    split LowCardinality(String),
    policy LowCardinality(String),
    iteration Int64 CODEC(T64, ZSTD(1)),
    window_id LowCardinality(Nullable(String)),
    side Int64 COMMENT '+1 long, -1 short' CODEC(T64, ZSTD(1)),
    quantity Float64 CODEC(Gorilla, ZSTD(1)),
    entry_ts DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    exit_ts DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    entry_row Int64 CODEC(Delta, ZSTD(1)),
    exit_row Int64 CODEC(Delta, ZSTD(1)),
    entry_price Float64 CODEC(Gorilla, ZSTD(1)),
    exit_price Float64 CODEC(Gorilla, ZSTD(1)),
    gross_pnl Float64 COMMENT 'Slippage is inside the prices, so inside this figure' CODEC(ZSTD(1)),
    fee Float64 CODEC(ZSTD(1)),
    slippage Float64 COMMENT 'Shown apart; already inside gross_pnl' CODEC(ZSTD(1)),
    borrow Float64 CODEC(ZSTD(1)),
    funding Float64 COMMENT 'Paid; received where below 0' CODEC(ZSTD(1)),
    net_pnl Float64 COMMENT 'gross_pnl - fee - borrow - funding' CODEC(ZSTD(1)),
    bars Int64 CODEC(T64, ZSTD(1)),
    exit_kind LowCardinality(String),
    entry_policy_version Nullable(Int64) CODEC(T64, ZSTD(1)),
    exit_policy_version Nullable(Int64) CODEC(T64, ZSTD(1))
)
ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(wall_time) ORDER BY (run_id, episode_id, row_no);

CREATE TABLE IF NOT EXISTS fills_rows
(
    run_id String CODEC(ZSTD(1)), attempt Int64 CODEC(T64, ZSTD(1)), publisher_id LowCardinality(String),
    number Int64 CODEC(Delta, ZSTD(1)), wall_time DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    episode_id String CODEC(ZSTD(1)),
    row_no Int64 COMMENT 'Number of the fill within its episode, from 0' CODEC(Delta, ZSTD(1)),
    symbol LowCardinality(String),
    split LowCardinality(String),
    policy LowCardinality(String),
    iteration Int64 CODEC(T64, ZSTD(1)),
    window_id LowCardinality(Nullable(String)),
    trade_no Int64 COMMENT 'row_no of the trade that the fill opens, changes or closes' CODEC(Delta, ZSTD(1)),
    step Int64 CODEC(Delta, ZSTD(1)),
    decided_ts DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    ts DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    row Int64 CODEC(Delta, ZSTD(1)),
    quantity Float64 CODEC(Gorilla, ZSTD(1)),
    price Float64 CODEC(Gorilla, ZSTD(1)),
    reference_price Float64 CODEC(Gorilla, ZSTD(1)),
    fee Float64 CODEC(ZSTD(1)),
    slippage Float64 CODEC(ZSTD(1)),
    kind LowCardinality(String),
    operations LowCardinality(String) COMMENT 'ENTRY_LONG, EXIT_LONG, ENTRY_SHORT, EXIT_SHORT; two joined by +',
    position_after Float64 CODEC(Gorilla, ZSTD(1)),
    policy_version Nullable(Int64) CODEC(T64, ZSTD(1))
)
ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(wall_time) ORDER BY (run_id, episode_id, row_no);

CREATE TABLE IF NOT EXISTS steps_rows
(
    run_id String CODEC(ZSTD(1)), attempt Int64 CODEC(T64, ZSTD(1)), publisher_id LowCardinality(String),
    number Int64 CODEC(Delta, ZSTD(1)), wall_time DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    episode_id String CODEC(ZSTD(1)),
    row_no Int64 COMMENT 'Number of the step within its episode, from 0' CODEC(Delta, ZSTD(1)),
    symbol LowCardinality(String),
    split LowCardinality(String),
    policy LowCardinality(String),
    iteration Int64 CODEC(T64, ZSTD(1)),
    window_id LowCardinality(Nullable(String)),
    ts DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    row Int64 CODEC(Delta, ZSTD(1)),
    value Float64 CODEC(Gorilla, ZSTD(1)),
    reward Float64 CODEC(ZSTD(1)),
    price Nullable(Float64) COMMENT 'NULL for a portfolio: see positions' CODEC(Gorilla, ZSTD(1)),
    action Nullable(Float64) COMMENT 'NULL where it is a vector: see episode_actions' CODEC(Gorilla, ZSTD(1)),
    position Nullable(Float64) COMMENT 'NULL for a portfolio: see positions' CODEC(Gorilla, ZSTD(1)),
    cash Float64 CODEC(Gorilla, ZSTD(1)),
    exposure Float64 COMMENT 'Gross notional over equity; 0 when flat' CODEC(Gorilla, ZSTD(1)),
    borrow Float64 CODEC(ZSTD(1)),
    funding Float64 COMMENT 'Paid; received where below 0' CODEC(ZSTD(1)),
    interest Float64 COMMENT 'Received on cash; paid where below 0' CODEC(ZSTD(1)),
    stale Bool,
    policy_version Nullable(Int64) CODEC(T64, ZSTD(1))
)
ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(wall_time) ORDER BY (run_id, episode_id, row_no);

-- What a portfolio held after each step: one row a step and symbol.
CREATE TABLE IF NOT EXISTS positions_rows
(
    run_id String CODEC(ZSTD(1)), attempt Int64 CODEC(T64, ZSTD(1)), publisher_id LowCardinality(String),
    number Int64 CODEC(Delta, ZSTD(1)), wall_time DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    episode_id String CODEC(ZSTD(1)),
    row_no Int64 CODEC(Delta, ZSTD(1)),
    split LowCardinality(String),
    policy LowCardinality(String),
    iteration Int64 CODEC(T64, ZSTD(1)),
    window_id LowCardinality(Nullable(String)),
    step Int64 COMMENT 'row_no of the step' CODEC(Delta, ZSTD(1)),
    symbol LowCardinality(String),
    price Float64 CODEC(Gorilla, ZSTD(1)),
    position Float64 CODEC(Gorilla, ZSTD(1)),
    stale Bool
)
ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(wall_time) ORDER BY (run_id, episode_id, row_no);

-- The ledger: one row per record of the log, written after the record's own rows and before its offset is committed.
CREATE TABLE IF NOT EXISTS events_rows
(
    run_id String CODEC(ZSTD(1)), attempt Int64 CODEC(T64, ZSTD(1)), publisher_id LowCardinality(String),
    event_type LowCardinality(String),
    number Int64 CODEC(Delta, ZSTD(1)),
    part Int64 CODEC(T64, ZSTD(1)),
    parts Int64 CODEC(T64, ZSTD(1)),
    rows Int64 COMMENT 'Rows that the record declares; 1 for a record without columns' CODEC(T64, ZSTD(1)),
    event_id String CODEC(ZSTD(1)),
    wall_time DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    topic LowCardinality(String),
    partition Int64 CODEC(T64, ZSTD(1)),
    offset Int64 CODEC(Delta, ZSTD(1)),
    published_at DateTime64(6, 'UTC') COMMENT 'When the log took the record' CODEC(Delta, ZSTD(1)),
    stored_at DateTime64(6, 'UTC') DEFAULT now64(6) CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(wall_time) ORDER BY (run_id, publisher_id, event_type, number, part);

-- Identity: the place of the record that could not be read. No partition: such a record has no wall time to trust.
CREATE TABLE IF NOT EXISTS dead_letters_rows
(
    source_topic LowCardinality(String),
    source_partition Int64,
    source_offset Int64,
    run_id String COMMENT 'Empty where neither headers nor key name a run',
    publisher_id String,
    event_type String,
    event_id String,
    stage LowCardinality(String),
    class_name LowCardinality(String),
    exception_class LowCardinality(String),
    exception_message String,
    key String,
    value String COMMENT 'The record as it came; any bytes' CODEC(ZSTD(3)),
    headers Array(Tuple(name String, value String)),
    published_at DateTime64(6, 'UTC') COMMENT 'When the dead letter was published'
)
ENGINE = ReplacingMergeTree ORDER BY (source_topic, source_partition, source_offset);
