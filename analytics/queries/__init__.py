"""Named queries, one file each: ``NAME.sql``, its first comment says what it answers (:mod:`analytics.names`)."""
