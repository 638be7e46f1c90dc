"""The body of one HTTP request: received whole and unpacked before anything is done with it.

A body that breaks off is therefore never inserted in part. Bodies past ``MEMORY_LIMIT`` wait in a file under the
state directory, without a name, so that nothing is left behind by a kill.
"""

from __future__ import annotations

import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from email.message import Message
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, Protocol

import lz4.frame  # type: ignore[import-untyped]

from local.engine import EngineError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MEMORY_LIMIT: Final = 8 << 20
CHUNK: Final = 1 << 20


class BodyTornError(ConnectionError):
    """The client went away in the middle of its body."""


class _Decompressor(Protocol):
    eof: bool
    unused_data: bytes | None

    def decompress(self, data: bytes, /) -> bytes: ...


_DECOMPRESSORS: Final[Mapping[str, Callable[[], Any]]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "deflate": zlib.decompressobj,
    "lz4": lz4.frame.LZ4FrameDecompressor,
    "zstd": zstd.ZstdDecompressor,
}


def receive_body(source: BinaryIO, headers: Message, spool_dir: Path) -> IO[bytes]:
    """Receive the whole body and unpack it by its Content-Encoding.

    Args:
        source: Buffered read end of the connection.
        headers: The request's headers.
        spool_dir: Directory for large bodies.

    Returns:
        The body as a file open at its start; closing it frees it.

    Raises:
        BodyTornError: It ended early.
        EngineError: Its framing, encoding or size is not right.
    """
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    framed = _framed(source, headers)
    chunks = framed if encoding in {"", "identity"} else _unpacked(framed, encoding)
    spool: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=MEMORY_LIMIT, dir=str(spool_dir))  # noqa: SIM115
    try:
        for chunk in chunks:
            spool.write(chunk)
    except (EngineError, OSError) as error:
        spool.close()
        if isinstance(error, ConnectionError):
            raise
        for _ in framed:  # a client that is still sending would not see the answer
            pass
        if isinstance(error, OSError):
            raise EngineError.of(243, "NOT_ENOUGH_SPACE", f"The request body cannot be kept: {error}.") from error
        raise
    spool.seek(0)
    return spool


def discard_body(source: BinaryIO, headers: Message) -> None:
    """Read the body away, so that the answer reaches a client that is still sending."""
    for _ in _framed(source, headers):
        pass


def _framed(source: BinaryIO, headers: Message) -> Iterator[bytes]:
    if headers.get("Transfer-Encoding", "").lower() == "chunked":
        while size := _chunk_size(source):
            yield from _exactly(source, size)
            source.readline(8)
        while source.readline(65536).strip():  # trailers, up to the empty line
            pass
        return
    length = headers.get("Content-Length", "0")
    if not (length.isascii() and length.isdigit()):
        raise EngineError.of(36, "BAD_ARGUMENTS", f"Content-Length must be a number of bytes, got {length!r}.")
    yield from _exactly(source, int(length))


def _chunk_size(source: BinaryIO) -> int:
    line = source.readline(1024)
    if not line.endswith(b"\n"):
        raise BodyTornError("the body ended inside a chunk header")
    try:
        return int(line.split(b";")[0], 16)
    except ValueError as error:
        raise EngineError.of(36, "BAD_ARGUMENTS", f"Chunk size must be hexadecimal, got {line[:40]!r}.") from error


def _exactly(source: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0:
        chunk = source.read(min(size, CHUNK))
        if not chunk:
            raise BodyTornError(f"the body ended {size} bytes early")
        size -= len(chunk)
        yield chunk


def _unpacked(chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Unpack a series of frames: clients send one per block."""
    make = _DECOMPRESSORS.get(encoding)
    if make is None:
        known = ", ".join(_DECOMPRESSORS)
        raise EngineError.of(
            89, "UNKNOWN_COMPRESSION_METHOD", f"Content-Encoding must be one of {known}, got {encoding}."
        )
    frame: _Decompressor | None = None
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                if frame is None:
                    frame = make()
                yield frame.decompress(rest)
                rest = b""
                if frame.eof:
                    rest, frame = frame.unused_data or b"", None
    except (zlib.error, RuntimeError, zstd.ZstdError) as error:
        raise EngineError.of(271, "CANNOT_DECOMPRESS", f"The body is not valid {encoding}: {error}.") from error
    if frame is not None:
        raise EngineError.of(
            271, "CANNOT_DECOMPRESS", f"The {encoding} body ends inside a frame; nothing was done with it."
        )


def read_form(content_type: str, body: bytes) -> dict[str, bytes]:
    """Fields and files of a multipart/form-data body, by name, byte for byte.

    Raises:
        EngineError: The body is not what its boundary promises.
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    delimiter = b"\r\n--" + (boundary or "").encode()
    parts = (b"\r\n" + body).split(delimiter)
    if not boundary or len(parts) < 2 or not parts[-1].startswith(b"--"):
        raise EngineError.of(36, "BAD_ARGUMENTS", "The multipart body does not end with its boundary.")
    fields: dict[str, bytes] = {}
    for part in parts[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = BytesHeaderParser().parsebytes(head).get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise EngineError.of(36, "BAD_ARGUMENTS", "A part of the multipart body has no name.")
        fields[name] = content
    return fields
