"""The beginning of an array of numpy, as numpy itself writes it."""

from __future__ import annotations

import io

import numpy as np
import pytest

from ckptool.formats.npy import HEAD_BYTES, values_at


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_values_begin_behind_the_header(version):
    stream, values = io.BytesIO(), np.arange(3, dtype="<i2")
    np.lib.format.write_array(stream, values, version)
    data = stream.getvalue()
    assert data[values_at(data[:HEAD_BYTES]) :] == values.tobytes()


@pytest.mark.parametrize("head", [b"", b"\x93NUMPY", b"\x93NUMPX" + bytes(20), bytes(20)])
def test_other_bytes_are_no_array(head):
    assert values_at(head) is None
