-- Results on the test split: the agent beside the baselines, under the same costs, per symbol and over all of them.
SELECT symbol, policy, episodes, return, pnl, sharpe, max_drawdown, trades, win_rate, costs
FROM test_results
WHERE run_id = {run_id:String}
ORDER BY symbol = 'all symbols', symbol, policy != 'agent', policy
