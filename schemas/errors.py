"""Every error that Millrace raises on purpose.

MillraceError
├── InputError                 what the user handed in is wrong
│   ├── FeedError              a feed file: missing, empty, a bad column, a bad row
│   ├── SettingsError          a setting: unknown, misspelt, out of range
│   ├── ActionError            an action outside the action space
│   └── WindowError            a window that cannot be made or is not open
├── SchemaError                a record on the log that cannot be read
├── LogError                   the event log
│   ├── LogUnavailableError    it does not answer
│   ├── UnknownTopicError      the topic does not exist
│   ├── RecordTooLargeError    the record passes the topic's limit
│   ├── OffsetOutOfRangeError  the offset was trimmed or is not there yet
│   └── CommitFencedError      another member owns the group by now
├── OutboxError                the outbox of a publisher
│   └── OutboxFullError        its limit is reached: the run stops
├── StoreError                 ClickHouse, or the local engine behind its interface
│   ├── StoreUnavailableError  it does not answer
│   └── StoreAuthError         it refused user or password
├── LocalError                 the embedded engines: ports, directories, processes
└── IntegrityError             the integrity check found a difference

Each message names the subject, what was expected, what was got, and what to do.
The command line prints it on one line and exits with ``exit_code``.
"""

from __future__ import annotations


class MillraceError(Exception):
    """Base of every error that Millrace raises on purpose."""

    exit_code = 1


class InputError(MillraceError):
    """What the user handed in is wrong."""

    exit_code = 2


class FeedError(InputError):
    """A feed file cannot be read as bars."""


class SettingsError(InputError):
    """A setting is unknown, misspelt or out of range."""


class ActionError(InputError):
    """An action lies outside the action space."""


class WindowError(InputError):
    """A window cannot be made from the log, or is not open in this process."""


class SchemaError(MillraceError):
    """A record on the log cannot be read as the event that it claims to be."""


class LogError(MillraceError):
    """The event log refused or failed."""

    exit_code = 3


class LogUnavailableError(LogError):
    """The event log does not answer."""


class UnknownTopicError(LogError):
    """The topic does not exist."""


class RecordTooLargeError(LogError):
    """The record is larger than its topic allows."""


class OffsetOutOfRangeError(LogError):
    """The offset was trimmed away, or lies behind the end of the partition."""


class CommitFencedError(LogError):
    """The commit came from a member that no longer owns the group."""


class OutboxError(MillraceError):
    """The outbox of a publisher cannot be opened or written."""


class OutboxFullError(OutboxError):
    """The outbox reached its limit; nothing may be dropped, so the run stops."""


class StoreError(MillraceError):
    """ClickHouse refused or failed."""

    exit_code = 3


class StoreUnavailableError(StoreError):
    """ClickHouse does not answer."""


class StoreAuthError(StoreError):
    """ClickHouse refused the user or the password."""


class LocalError(MillraceError):
    """An embedded engine cannot be started, reached or stopped."""

    exit_code = 3


class IntegrityError(MillraceError):
    """The integrity check found a difference between what was published and what is stored."""
