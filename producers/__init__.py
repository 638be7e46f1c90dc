"""From feeds to the log: reading files as bars, checking them, and replaying them in time order."""
