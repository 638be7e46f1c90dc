-- What the agents did: the questions that everybody asks first.

-- The test split, agent beside baselines, per symbol and over all of them. Where a run was evaluated more than once,
-- the last evaluation counts. return: profit by initial value. sharpe: per step, not annualised, mean over episodes.
-- max_drawdown: the worst episode. costs: fee + slippage + borrow + funding (slippage is inside
-- the prices, so inside pnl).
CREATE VIEW IF NOT EXISTS test_results AS
SELECT
    run_id, policy, scope AS symbol, max(result.iteration) AS iteration, count() AS episodes,
    sum(result.pnl) / sum(result.initial_value) AS return,
    sum(result.pnl) AS pnl, avg(result.sharpe) AS sharpe, max(result.max_drawdown) AS max_drawdown,
    avg(result.total_reward) AS mean_reward, sum(result.trade_count) AS trades, avg(result.win_rate) AS win_rate,
    sum(result.fee) AS fee, sum(result.slippage) AS slippage, sum(result.borrow) AS borrow,
    sum(result.funding) AS funding, sum(result.fee + result.slippage + result.borrow + result.funding) AS costs
FROM
(
    SELECT *, arrayJoin([ifNull(symbol, ''), 'all symbols']) AS scope
    FROM
    (
        SELECT *, max((attempt, iteration)) OVER (PARTITION BY run_id, policy) AS last_evaluation
        FROM episodes WHERE split = 'test' AND status = 'completed'
    )
    WHERE (attempt, iteration) = last_evaluation
) AS result
GROUP BY run_id, policy, scope;

-- One row an iteration. A resumed run repeats the iterations after its checkpoint: the latest attempt counts.
CREATE VIEW IF NOT EXISTS learning_curve AS
SELECT
    run_id, iteration, attempt, env_steps_total, seconds, iteration_rows.episodes AS episodes_reported,
    episode_return_mean, ifNull(ended, 0) AS episodes, mean_reward, mean_pnl, mean_return, trades, policy_version
FROM
(
    SELECT * FROM
    (
        SELECT *, max(attempt) OVER (PARTITION BY run_id, iteration) AS last_attempt FROM iterations
    )
    WHERE attempt = last_attempt
) AS iteration_rows
LEFT JOIN
(
    SELECT run_id, attempt, iteration, toNullable(count()) AS ended, avg(episode.total_reward) AS mean_reward,
           avg(episode.pnl) AS mean_pnl, sum(episode.pnl) / sum(episode.initial_value) AS mean_return,
           sum(episode.trade_count) AS trades
    FROM episodes AS episode WHERE split = 'train' AND status = 'completed' GROUP BY run_id, attempt, iteration
) AS episode_rows
USING (run_id, attempt, iteration);

-- Trades, what they earned and what they cost.
CREATE VIEW IF NOT EXISTS trades_by_symbol AS
SELECT
    run_id, split, policy, symbol, count() AS trades, countIf(trade.net_pnl > 0) AS wins, wins / trades AS win_rate,
    countIf(side > 0) AS long_trades, countIf(side < 0) AS short_trades,
    sum(trade.gross_pnl) AS gross_pnl, sum(trade.fee) AS fee, sum(trade.slippage) AS slippage,
    sum(trade.borrow) AS borrow, sum(trade.funding) AS funding,
    sum(trade.net_pnl) AS net_pnl, min(trade.net_pnl) AS worst, max(trade.net_pnl) AS best, avg(trade.bars) AS mean_bars
FROM trades AS trade GROUP BY run_id, split, policy, symbol;
