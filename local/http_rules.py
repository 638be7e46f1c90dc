"""What ClickHouse's HTTP interface lays down: names in the URL, credentials, statuses, content types, refusals."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from email.message import Message
from typing import Final

from local.engine import EngineError
from local.sql_text import Statement

# Names in a URL that steer the interface itself; every other name is a setting of the engine.
INTERFACE_NAMES: Final = frozenset(
    {
        *("query", "database", "default_format", "query_id", "user", "password", "quota_key", "role"),
        *("session_id", "session_timeout", "session_check", "close_session", "wait_end_of_query", "buffer_size"),
        *("client_protocol_version", "stacktrace", "compress", "decompress"),
    }
)

# Formats without head, foot and totals: blocks that the engine formats one by one may stand one behind the other.
STREAMABLE_FORMATS: Final = frozenset({"Native", "RowBinary", "JSONEachRow"})

# Which status a server gives an error: ClickHouse, src/Server/HTTP/exceptionCodeToHTTPStatus.cpp.
_CODES: Final[Mapping[int, tuple[int, ...]]] = {
    400: (6, 8, 15, 25, 26, 27, 36, 37, 38, 41, 44, 53, 62, 72, 117, 123, 167, 168, 223, 321, 376, 427, 441, 675, 676),
    401: (194,),
    403: (192, 193, 497, 512, 516),
    404: (46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511),
    408: (159,),
    411: (381,),
    413: (229,),
    415: (779,),
    501: (48,),
    503: (76, 209, 439),
}
_STATUS: Final = {code: status for status, codes in _CODES.items() for code in codes}


def status_of(code: int) -> int:
    """HTTP status of a ClickHouse error code."""
    return _STATUS.get(code, 500)


def content_type_of(output_format: str) -> str:
    """Content-Type of an answer in ``output_format``."""
    if output_format.startswith("JSON"):
        return "application/json; charset=UTF-8"
    if output_format.startswith(("TabSeparated", "TSV")):
        return "text/tab-separated-values; charset=UTF-8"
    if output_format.startswith(("Native", "RowBinary", "Arrow", "Parquet", "ORC", "Avro")):
        return "application/octet-stream"
    return "text/plain; charset=UTF-8"


def credentials_of(headers: Message, options: Mapping[str, str]) -> tuple[str, str] | None:
    """User and password by ``X-ClickHouse-User`` and ``-Key``, basic authentication or URL; None without any."""
    if "X-ClickHouse-User" in headers or "X-ClickHouse-Key" in headers:
        return headers.get("X-ClickHouse-User", "default"), headers.get("X-ClickHouse-Key", "")
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(token, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return user, password
    if "user" in options or "password" in options:
        return options.get("user", "default"), options.get("password", "")
    return None


def refuse_unsupported(statement: Statement, options: Mapping[str, str]) -> None:
    """Refuse what a server refuses and the engine would not, and what would be lost in silence without sessions.

    Raises:
        EngineError: With the code that a server gives, or 48 (NOT_IMPLEMENTED).
    """
    if not statement.verb:
        raise EngineError.of(62, "SYNTAX_ERROR", "Empty query.")
    if statement.several:
        raise EngineError.of(62, "SYNTAX_ERROR", "Multi-statements are not allowed: send one statement a request.")
    for name in ("compress", "decompress"):
        if options.get(name, "0") not in {"0", "false"}:
            text = f"{name}=1 (ClickHouse's own blocks) is not spoken here: use Content-Encoding, or send it plain."
            raise EngineError.of(48, "NOT_IMPLEMENTED", text)
    if statement.verb in {"SET", "USE"} or statement.temporary:
        what = "a temporary table" if statement.temporary else statement.verb
        raise EngineError.of(
            48,
            "NOT_IMPLEMENTED",
            f"The local store keeps no sessions, so {what} would not last beyond this request: "
            "give settings and database with each request, and use a common table.",
        )
