"""The only shared vocabulary of Millrace: times, identities, topics and the events on the log. No I/O."""
