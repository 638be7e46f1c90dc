"""From the log to ClickHouse: migrations, rows, batches, dead letters. Writes only; the room ``analytics`` reads."""
