"""What the HTTP face must know of a SQL text before the engine sees it.

The engine takes an INSERT and its data by two ways in, so the text has to be cut where the data begins; and it runs
several statements in one text, which a server refuses. Only the outer shape is read here: the engine stays the judge
of the syntax.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    rb"""
    (?P<blank> \s+ | --[^\n]* | \#[!\ ][^\n]* | /\*.*?\*/ )
  | (?P<quoted> '(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.|"")*" | `(?:[^`\\]|\\.|``)*` | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ )
  | (?P<word> [A-Za-z_]\w* )
  | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_DATA_GAP = re.compile(rb"[ \t\f]*\r?\n?")
_QUERY_FORMAT_END = frozenset({"", "SETTINGS"})


@dataclass(frozen=True, slots=True)
class Statement:
    """The outer shape of one statement.

    Attributes:
        verb: First word in capitals, such as ``SELECT``; empty when there is none.
        insert_head: ``INSERT INTO …`` up to its FORMAT or VALUES; None when no data follows the text.
        input_format: Format of the data of such an insert.
        data_at: Where in the text its data begins (bytes).
        output_format: Format that the text itself asks for; None when it names none.
        temporary: It creates a temporary table.
        several: A second statement follows.
    """

    verb: str
    insert_head: bytes | None = None
    input_format: str = ""
    data_at: int = 0
    output_format: str | None = None
    temporary: bool = False
    several: bool = False


def read_statement(sql: bytes) -> Statement:
    """Read the outer shape of ``sql``, the data of an insert included or not."""
    tokens = _tokens(sql)
    verb = next((text for text, _, _ in tokens if text != "("), "")
    if verb == "INSERT":
        found = _insert_with_data(sql, tokens)
        if found is not None:
            return found
        tokens = _tokens(sql)
    return _plain(sql, verb, tokens)


def _tokens(sql: bytes) -> Iterator[tuple[str, int, int]]:
    """Tokens that are not blank: (word in capitals, or "'" for anything quoted, or the character; start; end)."""
    for match in _TOKEN.finditer(sql):
        kind = match.lastgroup if match.group("quoted") is None else "quoted"
        if kind == "word":
            yield match.group().decode().upper(), match.start(), match.end()
        elif kind == "quoted":
            yield "'", match.start(), match.end()
        elif kind == "other":
            yield match.group().decode("latin-1"), match.start(), match.end()


def _insert_with_data(sql: bytes, tokens: Iterator[tuple[str, int, int]]) -> Statement | None:
    depth = 0
    previous = "INSERT"
    named = False  # a table may itself be called `format` or `values`: no keyword before its name
    for text, start, end in tokens:
        if text in "([{":
            depth += 1
        elif text in ")]}":
            depth -= 1
        elif depth == 0 and named and previous != ".":
            if text in {"SELECT", "WITH", "FROM", "WATCH"}:
                return None
            if text == "VALUES":
                return Statement("INSERT", sql[:start], "Values", end)
            if text == "FORMAT":
                for _, format_start, format_end in tokens:
                    gap = _DATA_GAP.match(sql, format_end)
                    data_at = gap.end() if gap else format_end
                    return Statement("INSERT", sql[:start], sql[format_start:format_end].decode("latin-1"), data_at)
                return None
        if text not in {"INTO", "TABLE", "FUNCTION"} or previous not in {"INSERT", "INTO", "TABLE"}:
            named = True
        previous = text
    return None


def _plain(sql: bytes, verb: str, tokens: Iterator[tuple[str, int, int]]) -> Statement:
    depth = 0
    ended = several = temporary = False
    # The last `FORMAT name` counts, and only where nothing but SETTINGS follows: `format` may also be a column.
    before, output_format, after = "", None, ""
    count = 0
    for text, start, end in tokens:
        if ended:
            several = True
            break
        count += 1
        if text == ";":
            ended = True
            continue
        if text in "([{":
            depth += 1
        elif text in ")]}":
            depth -= 1
        if verb == "CREATE" and text in {"TEMPORARY", "TEMP"} and count <= 4:
            temporary = True
        if depth == 0:
            if before == "FORMAT" and text != "'":
                output_format, after = sql[start:end].decode("latin-1"), ""
            elif output_format is not None and not after:
                after = text
            before = text
    if after not in _QUERY_FORMAT_END:
        output_format = None
    return Statement(verb, output_format=output_format, temporary=temporary, several=several)
