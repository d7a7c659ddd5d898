"""The table of element types, held against the libraries that it describes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from ckptool.dtypes import BY_NAME, BY_SAFETENSORS_TAG, BY_STORAGE_CLASS, DTYPES

BY_ROW = pytest.mark.parametrize("row", DTYPES, ids=str)


@BY_ROW
def test_torch_has_it_in_that_size(row):
    assert getattr(torch, row.name).itemsize == row.itemsize


@BY_ROW
def test_kind(row):
    dtype = getattr(torch, row.name)
    kinds = {"float": dtype.is_floating_point, "complex": dtype.is_complex}
    assert kinds.get(row.kind, not (dtype.is_floating_point or dtype.is_complex))
    if row.kind in {"int", "uint"}:
        assert dtype.is_signed == (row.kind == "int")


@BY_ROW
def test_numpy_type_has_that_size(row):
    if row.numpy:
        kind = getattr(ml_dtypes, row.numpy, None) or np.dtype(row.numpy)
        assert np.dtype(kind).itemsize == row.itemsize


def test_nothing_that_torch_saves_is_missing():
    saved = {str(dtype) for dtype in torch.storage._dtype_to_storage_type_map()}
    saved |= {str(dtype) for dtype in torch.storage._new_dtypes()}
    assert saved == {f"torch.{name}" for name in BY_NAME}


def test_storage_classes():
    known = torch.storage._dtype_to_storage_type_map()
    assert {f"torch.{row.name}": name for name, row in BY_STORAGE_CLASS.items()} == {
        str(dtype): name for dtype, name in known.items()
    }


def test_safetensors_tags():
    known = {tag: str(dtype) for tag, dtype in safetensors.torch._TYPES.items()}
    ours = {tag: f"torch.{row.name}" for tag, row in BY_SAFETENSORS_TAG.items()}
    assert known.items() <= ours.items()
    assert ours.keys() - known.keys() <= {"F4", "F8_E8M0"}  # written, and not read yet


def test_names_and_tags_are_unique():
    assert len(BY_NAME) == len(DTYPES)
    assert len({row.storage_class for row in DTYPES if row.storage_class}) == len(BY_STORAGE_CLASS)
    assert len({row.safetensors for row in DTYPES if row.safetensors}) == len(BY_SAFETENSORS_TAG)
