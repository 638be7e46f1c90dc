"""From ClickHouse to people: a read-only connection, named queries, the integrity check. Writes nothing."""
