-- The verdict on a run: lines that agree, open publishers, dead letters, episodes that did not end.
SELECT lines, lines_ok, publishers, open_publishers, dead_letters, dead_letters_resolved, abandoned_episodes,
       running_episodes, ok
FROM run_integrity_totals
WHERE run_id = {run_id:String}
