-- Trades by symbol: how many, what they earned, what they cost.
SELECT split, policy, symbol, trades, wins, win_rate, long_trades, short_trades, gross_pnl, fee, slippage, borrow, funding,
       net_pnl, worst, best, mean_bars
FROM trades_by_symbol
WHERE run_id = {run_id:String}
ORDER BY split, policy != 'agent', policy, symbol
