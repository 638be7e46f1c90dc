-- What people query. FINAL folds repeats away as they are read; a row lies in one partition for good (0001), so merging
-- across partitions is not needed. Where a view joins it sets join_use_nulls: who asks may have set it otherwise.

CREATE VIEW IF NOT EXISTS attempts AS
SELECT * FROM attempts_rows FINAL SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE VIEW IF NOT EXISTS windows AS
SELECT * FROM windows_rows FINAL SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE VIEW IF NOT EXISTS iterations AS
SELECT * FROM iterations_rows FINAL SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE VIEW IF NOT EXISTS publisher_reports AS
SELECT * FROM publisher_reports_rows FINAL SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE VIEW IF NOT EXISTS trades AS
SELECT * FROM trades_rows FINAL SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE VIEW IF NOT EXISTS fills AS
SELECT * FROM fills_rows FINAL SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE VIEW IF NOT EXISTS steps AS
SELECT * FROM steps_rows FINAL SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE VIEW IF NOT EXISTS positions AS
SELECT * FROM positions_rows FINAL SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE VIEW IF NOT EXISTS events AS
SELECT * FROM events_rows FINAL SETTINGS do_not_merge_across_partitions_select_final = 1;

-- A dead letter is resolved once its event has been stored after all: published again, or read by a newer consumer.
CREATE VIEW IF NOT EXISTS dead_letters AS
SELECT
    letters.*,
    letters.event_id IN
        (SELECT event_id FROM events_rows WHERE run_id IN (SELECT run_id FROM dead_letters_rows)) AS resolved
FROM (SELECT * FROM dead_letters_rows FINAL) AS letters;

-- One row an episode: a long one arrives as several records.
CREATE VIEW IF NOT EXISTS episode_actions AS
SELECT
    run_id, episode_id,
    any(attempt) AS attempt, any(publisher_id) AS publisher_id, any(number) AS number, any(wall_time) AS wall_time,
    any(action_kind) AS action_kind, any(action_size) AS action_size, sum(steps) AS steps,
    arrayFlatten(arrayMap(piece -> piece.2, arraySort(piece -> piece.1, groupArray((first_row, actions))))) AS actions
FROM (SELECT * FROM episode_actions_rows FINAL SETTINGS do_not_merge_across_partitions_select_final = 1)
GROUP BY run_id, episode_id;

-- One row a publisher (one life of one process): what its last report says, and whether it has closed. A publisher of
-- which events are stored but no report is open, too.
CREATE VIEW IF NOT EXISTS publishers AS
SELECT
    run_id, publisher_id,
    max(has_report) = 1 AS reported,
    argMax(role, number) AS role,
    argMax(worker_index, number) AS worker_index,
    argMax(restart, number) AS restart,
    argMax(host, number) AS host,
    argMax(pid, number) AS pid,
    max(is_closing) = 1 AS closed,
    argMax(closed_by, number) AS closed_by,
    maxOrNull(reported_at) AS last_report_at
FROM
(
    SELECT run_id, publisher_id, number, 1 AS has_report, role, worker_index, restart, host, pid,
           toUInt8(closing) AS is_closing, closed_by, toNullable(wall_time) AS reported_at
    FROM publisher_reports
    UNION ALL
    SELECT run_id, publisher_id, 0, 0, '', 0, 0, '', 0, 0, '', NULL
    FROM events_rows GROUP BY run_id, publisher_id
)
GROUP BY run_id, publisher_id;

-- One row a run. status: completed, stopped or failed as its last attempt ended; interrupted where that attempt's
-- driver died without an end; else running.
CREATE VIEW IF NOT EXISTS runs AS
SELECT
    run_id,
    argMinIf(facts.name, attempt, is_start) AS name,
    minIfOrNull(at, is_start) AS started_at,
    maxIfOrNull(at, is_end) AS ended_at,
    multiIf(
        countIf(is_end) > 0, anyIf(facts.status, is_end),
        countIf(is_dead_driver) > 0, 'interrupted',
        'running') AS status,
    max(attempt) AS attempts,
    argMinIf(facts.algorithm, attempt, is_start) AS algorithm,
    argMinIf(facts.env, attempt, is_start) AS env,
    tupleElement(argMinIf(facts.seed, attempt, is_start), 1) AS seed,
    argMinIf(facts.parameters, attempt, is_start) AS parameters,
    argMinIf(facts.versions, attempt, is_start) AS versions,
    anyIfOrNull(facts.iterations, is_end) AS iterations,
    anyIfOrNull(facts.env_steps, is_end) AS env_steps,
    argMinIf(facts.notes, attempt, is_start) AS notes,
    anyIf(facts.notes, is_end) AS end_notes
FROM
(
    -- seed travels in a tuple, since argMin passes over NULL.
    SELECT * REPLACE (
        is_end AND attempt = max(attempt) OVER (PARTITION BY run_id) AS is_end,
        is_dead_driver AND attempt = max(attempt) OVER (PARTITION BY run_id) AS is_dead_driver)
    FROM
    (
        SELECT run_id, attempt, 1 AS is_start, 0 AS is_end, 0 AS is_dead_driver, started_at AS at, name, algorithm, env,
               tuple(seed) AS seed, parameters, versions, '' AS status, 0 AS iterations, 0 AS env_steps, notes
        FROM runs_started_rows FINAL
        UNION ALL
        SELECT run_id, attempt, 0, 1, 0, ended_at, '', '', '', tuple(NULL), '', map(), status, iterations, env_steps,
               notes
        FROM runs_ended_rows FINAL
        UNION ALL
        SELECT run_id, attempt, 0, 0, 0, started_at, '', '', '', tuple(NULL), '', map(), '', 0, 0, ''
        FROM attempts_rows FINAL
        UNION ALL
        SELECT run_id, attempt, 0, 0, 1, wall_time, '', '', '', tuple(NULL), '', map(), '', 0, 0, ''
        FROM publisher_reports_rows FINAL WHERE role = 'd' AND closing
    )
) AS facts
GROUP BY run_id
SETTINGS do_not_merge_across_partitions_select_final = 1;

-- One row an episode. status: completed; abandoned, where it can no longer end (its publisher has closed, a later
-- attempt has begun, or its attempt has ended); else running. Only a completed episode has metrics.
CREATE VIEW IF NOT EXISTS episodes AS
SELECT * FROM
(
    SELECT
        run_id, episode_id, 'completed' AS status, attempt, publisher_id, number, wall_time, rllib_episode_id, role,
        worker_index, env_index, episode_no, env, policy, split, iteration, started_at,
        toNullable(ended_at) AS ended_at, toNullable(terminated) AS terminated, toNullable(truncated) AS truncated,
        toNullable(reason) AS reason, toNullable(steps) AS steps, toNullable(total_reward) AS total_reward,
        first_policy_version, last_policy_version, action_counts, symbol, symbols, window_id, data_hash, settings_hash,
        scaler_version, env_seed, start_row, first_ts, last_ts, bars_per_year, initial_value, final_value, pnl,
        gross_pnl, bad_debt, open_quantity, open_entry_price, open_pnl, stale_steps, cancelled_orders, trade_count,
        fill_count, total_return, annual_return, volatility, sharpe, annual_sharpe, sortino, annual_sortino, calmar,
        max_drawdown, max_drawdown_bars, var_95, cvar_95, profit_factor, expectancy, win_rate, win_rate_long,
        win_rate_short, exposure, turnover, mean_trade_bars, median_trade_bars, action_change_rate, fee, slippage,
        borrow, funding, interest
    FROM episodes_ended_rows FINAL
    UNION ALL
    SELECT
        run_id, episode_id, if(closed OR attempt < last_attempt OR attempt <= ended_attempt, 'abandoned', 'running'),
        attempt, publisher_id, number, wall_time, rllib_episode_id, role,
        worker_index, env_index, episode_no, env, policy, split, iteration, started_at,
        NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, map(), symbol, [], window_id, NULL, NULL, NULL, NULL, start_row,
        NULL, NULL, NULL, initial_value, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
        NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
        NULL, NULL, NULL, NULL, NULL, NULL, NULL
    FROM (SELECT * FROM episodes_started_rows FINAL) AS started
    LEFT JOIN (SELECT run_id, episode_id, 1 AS has_end FROM episodes_ended_rows) AS ended USING (run_id, episode_id)
    LEFT JOIN
    (
        SELECT run_id, publisher_id, max(closing) AS closed FROM publisher_reports_rows GROUP BY run_id, publisher_id
    ) AS publisher USING (run_id, publisher_id)
    LEFT JOIN (SELECT run_id, max(attempt) AS last_attempt FROM attempts_rows GROUP BY run_id) AS latest USING (run_id)
    LEFT JOIN (SELECT run_id, max(attempt) AS ended_attempt FROM runs_ended_rows GROUP BY run_id) AS last_end
    USING (run_id)
    WHERE NOT has_end
)
SETTINGS do_not_merge_across_partitions_select_final = 1, join_use_nulls = 0;

-- What was done when, one row an operation: a reversal is an EXIT and an ENTRY at the same time and price. HOLD: a step
-- that decided no fill; known only of episodes whose steps were recorded (record_steps).
CREATE VIEW IF NOT EXISTS trading_operations AS
SELECT * FROM
(
    SELECT
        run_id, episode_id, symbol, split, policy, iteration, ts AS time, operation,
        multiIf(startsWith(operation, 'EXIT') AND reverses, abs(position_after - quantity),
                reverses, abs(position_after), abs(quantity)) AS size,
        price, position_after, step, toNullable(trade_no) AS trade_no, policy_version
    FROM
    (
        SELECT *, position(operations, '+') > 0 AS reverses, arrayJoin(splitByChar('+', operations)) AS operation
        FROM fills_rows FINAL
    )
    UNION ALL
    SELECT
        run_id, episode_id, symbol, split, policy, iteration, ts, 'HOLD', 0., price, position, row_no, NULL,
        policy_version
    FROM (SELECT * FROM steps_rows FINAL) AS recorded
    LEFT JOIN (SELECT DISTINCT run_id, episode_id, step AS row_no, 1 AS has_fill FROM fills_rows) AS decided
    USING (run_id, episode_id, row_no)
    WHERE NOT has_fill
)
SETTINGS do_not_merge_across_partitions_select_final = 1, join_use_nulls = 0;
