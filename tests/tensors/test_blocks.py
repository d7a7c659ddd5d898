"""Values of strided tensors are gathered in pieces: the pieces are the tensor, in C order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.dtypes import BY_NAME
from ckptool.errors import UnsupportedError
from ckptool.formats import open_checkpoint
from ckptool.tensors import blocks as numerics
from ckptool.tensors.blocks import numpy_dtype, value_bytes
from helpers.samples import filled
from helpers.strategies import strided_views
from helpers.thinned import examples


@pytest.fixture
def _small_pieces(monkeypatch):
    """So that a few elements are many pieces."""
    for name, nbytes in {"BLOCK": 16, "FAR": 24, "NEAR": 12}.items():
        monkeypatch.setattr(numerics, name, nbytes)


def pieces_of(path) -> list[bytes]:
    with open_checkpoint(path) as checkpoint:
        return list(value_bytes(checkpoint.reader, checkpoint.tree))


@pytest.mark.usefixtures("_small_pieces")
@examples(200)
@given(data=st.data())
def test_pieces_of_any_view_are_its_values_in_order(data, tmp_path_factory):
    dtype = data.draw(st.sampled_from([torch.float32, torch.int8, torch.complex64]))
    view = data.draw(strided_views(filled(dtype, 60)))
    path = tmp_path_factory.mktemp("view") / "view.pt"
    torch.save(view, path)
    pieces = pieces_of(path)
    assert b"".join(pieces) == view.contiguous().numpy().tobytes()
    assert max(map(len, pieces), default=0) <= max(16, view.element_size())


def test_a_transposed_tensor_comes_in_blocks(tmp_path):
    turned = torch.arange(3.0e6).view(1500, 2000).t()
    torch.save(turned, tmp_path / "turned.pt")
    pieces = pieces_of(tmp_path / "turned.pt")
    assert max(map(len, pieces)) <= numerics.BLOCK
    assert b"".join(pieces) == turned.contiguous().numpy().tobytes()


def test_a_view_that_repeats_one_value_a_billion_times_is_refused(ckptool, tmp_path):
    path = tmp_path / "expanded.pt"
    torch.save({"w": torch.ones(1).expand(10**12)}, path)
    with open_checkpoint(path) as checkpoint, pytest.raises(UnsupportedError, match="repeats"):
        list(value_bytes(checkpoint.reader, checkpoint.tree["w"]))
    done = ckptool("inspect", path, "--stats")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: a view repeats 4 bytes")


@pytest.mark.parametrize("options", [("inspect", "--stats"), ("inspect", "--digests")])
def test_more_dimensions_than_numpy_has_are_refused_as_such(options, ckptool, tmp_path):
    """Torch makes such tensors. In C order they are read, since no array of them is made."""
    path = tmp_path / "many.pt"
    turned = torch.arange(6.0).as_strided((2, *[1] * 63, 3), (1, *[1] * 63, 2))
    torch.save({"w": turned}, path)
    done = ckptool(*options, path)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: the values of a tensor of 65 dimensions cannot be read")
    torch.save({"w": turned.contiguous()}, path)
    assert ckptool(*options, path).exit_code == 0


def test_booleans_are_known_where_numpy_has_no_such_name(monkeypatch):
    """As in numpy 1.26, which warns of the name when it is asked for it."""
    monkeypatch.delattr(np, "bool")
    assert numpy_dtype.__wrapped__(BY_NAME["bool"]) == np.dtype("?")
