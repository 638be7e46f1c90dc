"""A read-only connection to the store."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from schemas.errors import SettingsError, StoreAuthError, StoreError, StoreUnavailableError

# Each of its errors is raised as one of ours: its own lines on standard error would only repeat them.
logging.getLogger("clickhouse_connect").addHandler(logging.NullHandler())

_AUTH_CODES = {192, 193, 194, 516}
_UNKNOWN_DATABASE = 81


def connect(url: str, password: str, *, timeout_s: float = 10.0, max_query_s: int = 120) -> Client:
    """A connection that can read and set settings, and change nothing.

    Args:
        url: ``http://USER@HOST:PORT/DATABASE`` (or https); the database must exist.
        password: of that user.
        timeout_s: the longest wait for a connection, in seconds.
        max_query_s: the longest that one query may run, in seconds.

    Raises:
        SettingsError: the address has another form.
        StoreUnavailableError: no answer.
        StoreAuthError: user or password were refused.
        StoreError: the database does not exist, or another refusal.
    """
    split = urlsplit(url)
    if split.scheme not in ("http", "https") or not split.hostname or split.password is not None:
        raise SettingsError("ClickHouse address: expected http://USER@HOST:PORT/DATABASE with the password given apart")
    with reading(f"{split.scheme}://{split.netloc.rpartition('@')[2]}"):
        return clickhouse_connect.get_client(
            dsn=url,
            interface=split.scheme,
            password=password,
            connect_timeout=max(1, int(timeout_s)),
            send_receive_timeout=max_query_s + 10,
            autogenerate_session_id=False,
            settings={"readonly": 2, "max_execution_time": max_query_s},
        )


@contextmanager
def reading(what: Client | str) -> Iterator[None]:
    """Turn an error of clickhouse-connect into one of ours, on one line.

    Raises:
        StoreUnavailableError: no answer.
        StoreAuthError: user or password were refused.
        StoreError: any other refusal, with ClickHouse's text.
    """
    try:
        yield
    except ClickHouseError as error:
        address = what if isinstance(what, str) else what.uri
        code = getattr(error, "code", None)
        text = re.sub(r"\s+", " ", str(error)).strip()[:500]
        if code in _AUTH_CODES:
            raise StoreAuthError(
                f"ClickHouse at {address}: it refused user or password (code {code}); check both"
            ) from error
        if code == _UNKNOWN_DATABASE:
            raise StoreError(
                f"ClickHouse at {address}: the database does not exist yet; a consumer makes it when it starts"
            ) from error
        if code is None and error.__cause__ is not None:
            raise StoreUnavailableError(
                f"ClickHouse at {address}: expected an answer, got none; check that it runs and that the "
                f"address is right ({_innermost(error)})"
            ) from error
        raise StoreError(f"ClickHouse at {address}: {text}") from error


def _innermost(error: BaseException) -> str:
    """The reason below the layers of HTTP clients, such as ``Connection refused``."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {error}"
