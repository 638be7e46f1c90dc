"""Bodies arrive whole or not at all, however they are framed and packed."""

import gzip
import io
import sys
import zlib
from email.message import Message
from pathlib import Path

import lz4.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local.engine import EngineError
from local.request_body import MEMORY_LIMIT, BodyTornError, read_form, receive_body

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACKERS = {
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "lz4": lz4.frame.compress,
    "zstd": zstd.compress,
}


def headers(**values: str) -> Message:
    message = Message()
    for name, value in values.items():
        message[name.replace("_", "-")] = value
    return message


def chunked(pieces: list[bytes]) -> bytes:
    return (
        b"".join(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\nTrailer: x\r\n\r\n"
    )


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spool")


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=300), max_size=4), st.sampled_from(sorted(PACKERS)), st.integers(1, 50), st.booleans()
)
def test_a_body_survives_any_framing_and_packing(
    spool: Path, blocks: list[bytes], encoding: str, cut: int, in_chunks: bool
) -> None:
    packed = b"".join(PACKERS[encoding](block) for block in blocks)
    if in_chunks:
        wire = chunked([packed[i : i + cut] for i in range(0, len(packed), cut)])
        given = headers(Transfer_Encoding="chunked", Content_Encoding=encoding)
    else:
        wire = packed
        given = headers(Content_Length=str(len(packed)), Content_Encoding=encoding)
    source = io.BytesIO(wire + b"NEXT REQUEST")

    with receive_body(source, given, spool) as body:
        assert body.read() == b"".join(blocks)
    assert source.read() == b"NEXT REQUEST"


@pytest.mark.parametrize("wire", [b"5\r\nab", b"5\r\nabcde\r\n", b"5"])
def test_a_chunked_body_that_breaks_off_is_torn(spool: Path, wire: bytes) -> None:
    with pytest.raises(BodyTornError):
        receive_body(io.BytesIO(wire), headers(Transfer_Encoding="chunked"), spool)


def test_a_body_shorter_than_its_length_is_torn(spool: Path) -> None:
    with pytest.raises(BodyTornError, match="3 bytes early"):
        receive_body(io.BytesIO(b"ab"), headers(Content_Length="5"), spool)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "lz4", "zstd"])
def test_a_frame_that_breaks_off_is_refused(spool: Path, encoding: str) -> None:
    half = PACKERS[encoding](b"row" * 100)[:-3]
    with pytest.raises(EngineError, match=f"{encoding}.*(frame|valid)") as refused:
        receive_body(io.BytesIO(half), headers(Content_Length=str(len(half)), Content_Encoding=encoding), spool)
    assert refused.value.code == 271


@pytest.mark.parametrize(
    ("given", "wire", "code", "words"),
    [
        (headers(Content_Length="x"), b"", 36, "Content-Length must be a number"),
        (headers(Transfer_Encoding="chunked"), b"zz\r\n", 36, "hexadecimal"),
        (headers(Content_Length="1", Content_Encoding="br"), b"x", 89, "must be one of gzip"),
        (headers(Content_Length="3", Content_Encoding="zstd"), b"abc", 271, "not valid zstd"),
    ],
)
def test_bad_framing_is_named(spool: Path, given: Message, wire: bytes, code: int, words: str) -> None:
    with pytest.raises(EngineError, match=words) as refused:
        receive_body(io.BytesIO(wire), given, spool)
    assert refused.value.code == code


def test_a_large_body_waits_in_a_file_without_a_name(spool: Path) -> None:
    size = MEMORY_LIMIT + 1
    with receive_body(io.BytesIO(bytes(size)), headers(Content_Length=str(size)), spool) as body:
        assert len(body.read()) == size
        assert list(spool.iterdir()) == []


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_a_form_gives_its_parts_byte_for_byte(first: bytes, second: bytes) -> None:
    boundary = "b0undary"
    if boundary.encode() in first + second:
        return
    part = b'--b0undary\r\nContent-Disposition: form-data; name="%b"\r\nContent-Type: x/y\r\n\r\n%b\r\n'
    body = part % (b"one", first) + part % (b"two", second) + b"--b0undary--\r\n"

    assert read_form(f"multipart/form-data; boundary={boundary}", body) == {"one": first, "two": second}


def test_a_form_without_its_end_is_refused() -> None:
    with pytest.raises(EngineError, match="does not end with its boundary"):
        read_form("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="q"\r\n\r\n1')
