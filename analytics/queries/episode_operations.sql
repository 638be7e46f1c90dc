-- What was done in one episode, in order: ENTRY_LONG, EXIT_LONG, ENTRY_SHORT, EXIT_SHORT, and HOLD where steps were recorded.
SELECT time, operation, size, price, position_after, step, trade_no, policy_version
FROM trading_operations
WHERE run_id = {run_id:String} AND episode_id = {episode_id:String}
ORDER BY time, step, startsWith(operation, 'ENTRY')
