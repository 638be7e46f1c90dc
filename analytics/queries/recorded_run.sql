-- Settings of a run, and each training window that it has opened; times are UTC microseconds.
SELECT
    r.parameters AS parameters, w.window_id AS window_id, w.data_hash AS data_hash, w.split AS split, w.feed AS feed,
    w.symbols AS symbols, w.interval AS interval, w.cluster_id AS cluster_id, w.topic AS topic, w.topic_id AS topic_id,
    w.partitions AS partitions, w.start_offsets AS start_offsets, w.end_offsets AS end_offsets,
    toUnixTimestamp64Micro(w.first_ts) AS first_ts, toUnixTimestamp64Micro(w.last_ts) AS last_ts, w.bars AS bars,
    w.refused_bars AS refused_bars, w.feature_recipe AS feature_recipe, w.bar_policy AS bar_policy,
    w.scaler_version AS scaler_version
FROM windows AS w
INNER JOIN runs AS r ON r.run_id = w.run_id
WHERE w.run_id = {run_id:String} AND w.split = 'train'
ORDER BY w.attempt, w.number
