-- The metrics of an episode from its stored rows alone: env/metrics.py defines them and gives their sources, and a test
-- holds the two to each other. For completed episodes whose steps were recorded (record_steps).
--
-- Money and returns as there: NULL where a figure is not defined, never NaN or infinite.
CREATE VIEW IF NOT EXISTS episode_metrics AS
SELECT
    run_id, episode_id,
    growth - 1 AS total_return,
    if(isFinite(year_growth), year_growth - 1, NULL) AS annual_return,
    if(steps > 1, deviation * sqrt(bars_per_year), NULL) AS volatility,
    if(steps > 1 AND deviation > 1e-12 * greatest(1, arrayMax(r -> abs(r), returns)), mean / deviation, NULL) AS sharpe,
    sharpe * sqrt(bars_per_year) AS annual_sharpe,
    if(downside > 1e-12, mean / downside, NULL) AS sortino,
    sortino * sqrt(bars_per_year) AS annual_sortino,
    if(max_drawdown > 0, annual_return / max_drawdown, NULL) AS calmar,
    arrayMax(falls) AS max_drawdown,
    toInt64(if(max_drawdown > 0, if(back > 0, back + trough - 1, length(equity)) - fell_from, 0)) AS max_drawdown_bars,
    -arrayReduce('quantileExactInclusive(0.05)', returns) AS var_95,
    -(arraySum(arraySlice(worst, 1, whole)) + (inside - whole) * worst[whole + 1]) / inside AS cvar_95,
    if(losses > 0, gains / losses, NULL) AS profit_factor,
    expectancy, win_rate, win_rate_long, win_rate_short, exposure,
    if(arrayAvg(equity) > 0, ifNull(traded, 0) / arrayAvg(equity), NULL) AS turnover,
    mean_trade_bars, median_trade_bars,
    if(steps > 1, changes / (steps - 1), NULL) AS action_change_rate,
    ifNull(fees, 0) AS fee, ifNull(slipped, 0) AS slippage, borrow, funding, interest
FROM
(
    SELECT
        *,
        equity[-1] / equity[1] AS growth,
        if(growth > 0, pow(growth, bars_per_year / steps), NULL) AS year_growth,
        arrayMap((before, after) -> after / before - 1, arrayPopBack(equity), arrayPopFront(equity)) AS returns,
        arrayAvg(returns) AS mean,
        arrayReduce('stddevSampStable', returns) AS deviation,
        sqrt(arrayAvg(r -> pow(least(r, 0), 2), returns)) AS downside,
        arraySort(returns) AS worst,
        steps * 0.05 AS inside,
        toInt64(floor(inside)) AS whole,
        -- The largest fall, first in time: from the last row at its peak until the first row back at it.
        arrayMap((peak, value) -> (peak - value) / peak, peaks, equity) AS falls,
        indexOf(falls, arrayMax(falls)) AS trough,
        peaks[trough] AS top,
        arrayLastIndex(value -> value = top, arraySlice(equity, 1, trough - 1)) AS fell_from,
        arrayFirstIndex(value -> value >= top, arraySlice(equity, trough)) AS back
    FROM
    (
        SELECT
            run_id, episode_id,
            any(steps) AS steps, any(bars_per_year) AS bars_per_year,
            arraySort(groupArray((row_no, value, peak))) AS points,
            arrayMap(point -> point.2, points) AS equity,
            arrayMap(point -> point.3, points) AS peaks,
            avgIf(in_position, row_no >= 0) AS exposure,
            sum(borrow) AS borrow, sum(funding) AS funding, sum(interest) AS interest
        FROM
        (
            SELECT *, max(value) OVER (PARTITION BY run_id, episode_id ORDER BY row_no) AS peak
            FROM
            (
                SELECT run_id, episode_id, row_no, value, exposure != 0 AS in_position, borrow, funding, interest
                FROM steps_rows FINAL
                UNION ALL
                SELECT run_id, episode_id, -1, assumeNotNull(initial_value), 0, 0, 0, 0
                FROM episodes_ended_rows FINAL WHERE initial_value IS NOT NULL
            )
        ) AS point
        INNER JOIN (SELECT run_id, episode_id, steps, bars_per_year FROM episodes_ended_rows FINAL) AS ended
        USING (run_id, episode_id)
        GROUP BY run_id, episode_id
        HAVING count() = steps + 1 AND steps > 0
    ) AS curve
    LEFT JOIN
    (
        SELECT
            run_id, episode_id,
            sumIf(net_pnl, net_pnl > 0) AS gains, -sumIf(net_pnl, net_pnl < 0) AS losses, avg(net_pnl) AS expectancy,
            avg(net_pnl > 0) AS win_rate,
            avgOrNullIf(net_pnl > 0, side > 0) AS win_rate_long, avgOrNullIf(net_pnl > 0, side < 0) AS win_rate_short,
            avg(bars) AS mean_trade_bars, quantileExactInclusive(0.5)(bars) AS median_trade_bars
        FROM trades_rows FINAL GROUP BY run_id, episode_id
    ) AS closed USING (run_id, episode_id)
    LEFT JOIN
    (
        SELECT run_id, episode_id, changes FROM
        (
            SELECT
                run_id, episode_id,
                arraySlice(actions, action_size + 1) AS later,
                arraySlice(actions, 1, length(later)) AS earlier,
                arrayMap((a, b, i) -> if(a != b, toInt64(intDiv(i, action_size)), -1),
                         later, earlier, range(length(later))) AS changed,
                arrayUniq(arrayFilter(step -> step >= 0, changed)) AS changes
            FROM episode_actions
        )
    ) AS taken USING (run_id, episode_id)
    LEFT JOIN
    (
        SELECT run_id, episode_id, sum(abs(quantity) * price) AS traded, sum(fee) AS fees, sum(slippage) AS slipped
        FROM fills_rows FINAL GROUP BY run_id, episode_id
    ) AS filled USING (run_id, episode_id)
)
SETTINGS do_not_merge_across_partitions_select_final = 1, join_use_nulls = 1;
