-- Runs, the latest first, with their state.
SELECT run_id, name, status, started_at, ended_at, algorithm, env, seed, attempts, iterations, env_steps
FROM runs
ORDER BY started_at DESC
