"""Bytes of a file as a stream of bounded pieces: plain, gzip or zstandard, one member or several."""

from __future__ import annotations

import io
import zlib
from typing import Any, BinaryIO, Final

import zstandard

GZIP_MAGIC: Final = b"\x1f\x8b"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
MAGIC_SIZE: Final = 4
READ_SIZE: Final = 32 * 1024
ZSTD_READ_SIZE: Final = 1024  # one byte can stand for 32 KiB, and its decoder has no limit on output


class StreamError(Exception):
    """The stream cannot be decompressed any further; the text is one line without the file's name."""


def is_compressed(head: bytes) -> bool:
    """Say whether the first bytes of a file are those of gzip or zstandard."""
    return head.startswith(GZIP_MAGIC) or _is_zstd(head)


def _is_zstd(head: bytes) -> bool:
    skippable = len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5
    return head.startswith(ZSTD_MAGIC) or skippable


class ByteStream:
    """Read a file's decompressed bytes in order.

    truncated: the file ended inside a member; trailing: bytes behind the last member that belong to none.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._input = file.read(READ_SIZE)
        self._read_at = len(self._input)
        self._output = memoryview(b"")
        self._member: Any = None
        self.name = "plain"
        if self._input.startswith(GZIP_MAGIC):
            self.name = "gzip"
        elif _is_zstd(self._input):
            self.name = "zstandard"
        self.truncated = False
        self.trailing = 0

    def read_into(self, target: memoryview) -> int:
        """Fill as much of target as is at hand; return the bytes written, 0 = end of the stream."""
        while not self._output:
            if not self._more():
                return 0
        size = min(len(target), len(self._output))
        target[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def _read(self) -> None:
        fresh = self._file.read(READ_SIZE)
        self._read_at += len(fresh)
        self._input += fresh

    def _more(self) -> bool:
        """Bring output nearer by one step; return False at the end."""
        if len(self._input) < MAGIC_SIZE:
            self._read()
        if not self._input:
            self.truncated = self._member is not None
            return False
        if self.name == "plain":
            self._output, self._input = memoryview(self._input), b""
            return True
        if self._member is None and not self._begin_member():
            return False
        self._decompress()
        return True

    def _begin_member(self) -> bool:
        """Start on the member at the input; what is no member is counted and ends the stream."""
        if self.name == "gzip" and self._input.startswith(GZIP_MAGIC):
            self._member = zlib.decompressobj(wbits=31)
        elif self.name == "zstandard" and _is_zstd(self._input):
            self._member = zstandard.ZstdDecompressor().decompressobj()
        else:
            self.trailing = len(self._input.rstrip(b"\0"))  # zeros are a usual padding
            self._input, self._file = b"", io.BytesIO()
            return False
        return True

    def _decompress(self) -> None:
        try:
            if self.name == "gzip":
                self._output = memoryview(self._member.decompress(self._input, READ_SIZE))
                self._input = self._member.unconsumed_tail or self._member.unused_data
            else:
                piece, rest = self._input[:ZSTD_READ_SIZE], self._input[ZSTD_READ_SIZE:]
                self._output = memoryview(self._member.decompress(piece))
                self._input = self._member.unused_data + rest
        except (zlib.error, zstandard.ZstdError) as error:
            msg = f"damaged {self.name} data before byte {self._read_at}: {error}"
            raise StreamError(msg.replace("\n", " ")) from error
        if self._member.eof:
            self._member = None
