"""The event log: one interface with Kafka's semantics, its engines, and the outbox that feeds it."""
