-- Ended training episodes of one policy with their actions: enough to run each of them again.
SELECT
    e.episode_id AS episode_id, e.symbol AS symbol, e.start_row AS start_row, e.window_id AS window_id,
    e.settings_hash AS settings_hash, e.scaler_version AS scaler_version, e.steps AS steps,
    e.total_reward AS total_reward, e.final_value AS final_value,
    a.actions AS actions
FROM episodes AS e
INNER JOIN (SELECT * FROM episode_actions WHERE run_id = {run_id:String}) AS a ON a.episode_id = e.episode_id
WHERE e.run_id = {run_id:String}
    AND e.status = 'completed'
    AND e.split = 'train'
    AND e.policy = {policy:String}
    AND e.iteration >= toUInt32OrZero({from_iteration:String})
    AND e.window_id IS NOT NULL
ORDER BY e.iteration, e.episode_id
