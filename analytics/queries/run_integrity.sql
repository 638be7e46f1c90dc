-- What publishers of a run say they sent, against what the store holds; one row a publisher and event type.
SELECT publisher_id, event_type, emitted, acknowledged, stored, distinct_stored, declared_rows, stored_rows, ok
FROM run_integrity
WHERE run_id = {run_id:String}
ORDER BY publisher_id, event_type
