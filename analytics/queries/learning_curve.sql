-- How training went: one row an iteration, with the episodes that ended in it.
SELECT iteration, env_steps_total, episodes, mean_reward, mean_pnl, mean_return, trades, seconds, policy_version
FROM learning_curve
WHERE run_id = {run_id:String}
ORDER BY iteration
