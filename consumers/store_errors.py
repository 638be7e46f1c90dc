"""ClickHouse's failures as named errors, and which of them pass by themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

from schemas.errors import StoreAuthError, StoreError, StoreUnavailableError

# Load, memory, replication, disk and network: the same statement may succeed later. Names are those of ClickHouse's
# src/Common/ErrorCodes.cpp.
_PASSING = {
    3: "UNEXPECTED_END_OF_FILE",
    74: "CANNOT_READ_FROM_FILE_DESCRIPTOR",
    75: "CANNOT_WRITE_TO_FILE_DESCRIPTOR",
    107: "FILE_DOESNT_EXIST",
    159: "TIMEOUT_EXCEEDED",
    202: "TOO_MANY_SIMULTANEOUS_QUERIES",
    203: "NO_FREE_CONNECTION",
    209: "SOCKET_TIMEOUT",
    210: "NETWORK_ERROR",
    236: "ABORTED",
    241: "MEMORY_LIMIT_EXCEEDED",
    242: "TABLE_IS_READ_ONLY",
    243: "NOT_ENOUGH_SPACE",
    252: "TOO_MANY_PARTS",
    285: "TOO_FEW_LIVE_REPLICAS",
    319: "UNKNOWN_STATUS_OF_INSERT",
    425: "SYSTEM_ERROR",
    999: "KEEPER_EXCEPTION",
}
_REFUSED = {192, 193, 194, 516}  # UNKNOWN_USER, WRONG_PASSWORD, REQUIRED_PASSWORD, AUTHENTICATION_FAILED
_NOT_OURS = {16, 47, 60, 81}  # NO_SUCH_COLUMN_IN_TABLE, UNKNOWN_IDENTIFIER, UNKNOWN_TABLE, UNKNOWN_DATABASE
_PASSING_STATUS = {429, 502, 503, 504}


@contextmanager
def named_errors(client: Client | str, doing: str) -> Iterator[None]:
    """Turn an error of clickhouse-connect into one of ours, on one line.

    Args:
        client: who was asked; its address, or the address itself, is named.
        doing: what was tried, as an infinitive.

    Raises:
        StoreUnavailableError: no answer, or an error that passes by itself: try again later.
        StoreAuthError: user or password were refused.
        StoreError: anything else; trying again would not help.
    """
    try:
        yield
    except ClickHouseError as error:
        address = client if isinstance(client, str) else client.uri
        raise store_error(error, address, doing) from error


def store_error(error: ClickHouseError, address: str, doing: str) -> StoreError:
    """The named error for an error of clickhouse-connect."""
    code, text = getattr(error, "code", None), _one_line(error)
    if code in _REFUSED:
        return StoreAuthError(
            f"ClickHouse at {address}: it refused user or password (code {code}); set "
            "MILLRACE__CLICKHOUSE__PASSWORD, or --password-file, to the password of the user in the address"
        )
    if code in _NOT_OURS or text.startswith("Unrecognized column"):
        return StoreError(
            f"ClickHouse at {address}: could not {doing}: {text}; the tables are not those that the migrations made: "
            "restore what was dropped or renamed, or use another database"
        )
    if code is None:
        status = re.search(r"HTTP status (\d+)", text)
        if status is not None and int(status[1]) not in _PASSING_STATUS:
            return StoreError(f"ClickHouse at {address}: could not {doing}: {text}")
        if status is not None or isinstance(error, OperationalError):
            return StoreUnavailableError(
                f"ClickHouse at {address}: no answer when it was asked to {doing}: {text}; check that it runs and "
                "that the address is right"
            )
        return StoreError(f"ClickHouse at {address}: could not {doing}: {text}")
    # One insert over too many months is TOO_MANY_PARTS by number, but comes again with the same rows.
    if code in _PASSING and not (code == 252 and "max_partitions_per_insert_block" in text):
        return StoreUnavailableError(f"ClickHouse at {address}: busy when it was asked to {doing}: {text}")
    return StoreError(f"ClickHouse at {address}: could not {doing}: {text}")


def _one_line(error: ClickHouseError) -> str:
    """The error's text without line breaks and URL (which carries settings), at most 500 characters."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    text = re.sub(r" \(for url .*\)$", "", text)
    text = re.sub(r"^Received ClickHouse exception, code: \d+, server response: ", "", text)
    return text if len(text) <= 500 else text[:500] + "…"
