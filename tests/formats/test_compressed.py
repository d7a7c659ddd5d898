"""Compressed streams by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib

import pytest

from ckptool.formats.compressed import compression

STREAMS = {
    "gzip": gzip.compress(b"values"),
    "zlib": zlib.compress(b"values"),
    "lzma": lzma.compress(b"values", lzma.FORMAT_ALONE),
    "xz": lzma.compress(b"values"),
    "bzip2": bz2.compress(b"values"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_known_by_its_beginning(name):
    assert compression(STREAMS[name]) == name


@pytest.mark.parametrize("length", range(0x78, 0x10000, 0x100))
def test_no_length_of_safetensors_is_a_stream_of_zlib(length):
    """One header in 32 has such a length: they are padded to a multiple of eight."""
    assert compression(length.to_bytes(8, "little") + b'{"w":{"dtype":"F32"') is None


def test_the_lengths_that_begin_like_gzip_and_lzma_are_no_streams():
    for begin in (b"\x1f\x8b", b"\x5d\0"):
        assert compression(begin + bytes(6) + b'{"w":{"dtype":"F32"') is None
