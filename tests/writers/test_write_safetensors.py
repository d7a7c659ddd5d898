"""What is written as safetensors, with the safetensors library as the judge."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ckptool.dtypes import BY_NAME
from ckptool.errors import CkptError, UnsupportedError
from ckptool.formats import open_checkpoint
from ckptool.tensors.casting import Casting
from ckptool.writers import safetensors_file
from ckptool.writers.files.whole_file import whole_file
from ckptool.writers.transfer import Transfer
from helpers.samples import NEW_DTYPES, OLD_DTYPES, filled
from helpers.tensors import assert_same_tensor, assert_same_tensors

STORED = tuple(
    dtype
    for dtype in OLD_DTYPES + NEW_DTYPES
    if dtype not in {torch.complex128, torch.complex32} and "bits" not in str(dtype)
)


def written(tensors, tmp_path, metadata=None):
    """Save with torch, write as safetensors."""
    source, target = tmp_path / "in.pt", tmp_path / "out.safetensors"
    torch.save(tensors, source)
    with open_checkpoint(source) as checkpoint, whole_file(target, force=True) as output:
        layout = safetensors_file.plan(checkpoint.tree, Casting())
        runs = safetensors_file.write(output, layout, metadata or {}, Transfer(checkpoint.reader))
        safetensors_file.check_written(output.path, checkpoint.tree, runs=runs)
    return target


def header_of(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), 8 + length


@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_every_type_of_the_format(dtype, tmp_path):
    tensors = {"matrix": filled(dtype, 6).view(2, 3), "empty": filled(dtype, 0)}
    if dtype is not torch.float4_e2m1fn_x2:  # packed: the last dimension counts two
        tensors["scalar"] = filled(dtype, 1).view(())
    assert_same_tensors(load_file(written(tensors, tmp_path)), tensors)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch has second thoughts about complex32
@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex32, torch.bits8], ids=str)
def test_other_types_are_named_and_refused(dtype, tmp_path):
    with pytest.raises(UnsupportedError) as caught:
        written({"odd": filled(dtype, 2)}, tmp_path)
    assert caught.value.address == "odd"
    assert str(dtype).removeprefix("torch.") in caught.value.message
    assert ".pt" in caught.value.hint
    assert not (tmp_path / "out.safetensors").exists()


def test_values_are_written_in_c_order(tmp_path):
    base = torch.arange(600_000.0)  # more than a block
    tensors = {
        "transposed": base.view(600, 1000).t(),
        "every_third": base[::3],
        "expanded": base[:3].expand(4, 3),
        "window": base[100:700].view(20, 30)[3:5, ::7],
    }
    assert_same_tensors(load_file(written(tensors, tmp_path)), tensors)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e5m2, torch.bfloat16, torch.bool, torch.float4_e2m1fn_x2], ids=str
)
def test_strided_values_of_every_width(dtype, tmp_path):
    tensors = {"t": filled(dtype, 12).view(3, 4).t()}
    assert_same_tensors(load_file(written(tensors, tmp_path)), tensors)


def test_lazy_operations_are_done(tmp_path):
    waves = [torch.view_as_complex(torch.arange(8.0).view(4, 2)) for _ in range(2)]
    lazy = {"conj": waves[0].conj(), "neg": waves[1].conj().imag}
    found = load_file(written(lazy, tmp_path))
    assert_same_tensor(found["conj"], lazy["conj"].resolve_conj())
    assert_same_tensor(found["neg"], lazy["neg"].resolve_neg())


def test_tied_tensors_are_written_each(tmp_path):
    shared = torch.randn(2, 3)
    tensors = {"a": shared, "b": shared, "row": shared[1]}
    assert_same_tensors(load_file(written(tensors, tmp_path)), tensors)


def test_every_tensor_is_aligned_to_its_width(tmp_path):
    kinds = (torch.bool, torch.float64, torch.bfloat16, torch.int32, torch.uint8)
    tensors = {f"{n}{i}": filled(kind, n) for i, kind in enumerate(kinds) for n in (1, 3)}
    header, start = header_of(written(tensors, tmp_path))
    assert start % 8 == 0
    widths = {name: tensor.element_size() for name, tensor in tensors.items()}
    for name, width in widths.items():
        assert (start + header[name]["data_offsets"][0]) % width == 0


def test_values_follow_each_other_without_holes(tmp_path):
    path = written({"a": torch.ones(3), "b": torch.ones(2).bool(), "c": torch.ones(1)}, tmp_path)
    header, start = header_of(path)
    header.pop("__metadata__")
    spans = sorted(entry["data_offsets"] for entry in header.values())
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert start + spans[-1][1] == path.stat().st_size


def test_metadata_is_written(tmp_path):
    path = written({"a": torch.ones(1)}, tmp_path, {"format": "pt", "naïve": "größe"})
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "naïve": "größe"}


@pytest.mark.parametrize("name", ["", "a b", "größe.µ", "🎲", 'quo"te\\', "new\nline", "x" * 3000])
def test_names_are_written_as_they_are(name, tmp_path):
    assert_same_tensors(load_file(written({name: torch.ones(1)}, tmp_path)), {name: torch.ones(1)})


@pytest.mark.parametrize("name", ["\ud800", "__metadata__"])
def test_names_that_the_format_cannot_hold_are_refused(name, tmp_path):
    with pytest.raises(UnsupportedError):
        written({name: torch.ones(1)}, tmp_path)


def test_tensors_without_values_are_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="no values"):
        written({"meta": torch.empty(2, device="meta")}, tmp_path)


def test_nothing_at_all_is_a_file_too(tmp_path):
    assert load_file(written({}, tmp_path)) == {}


def test_check_refuses_what_the_library_does_not_read(tmp_path):
    path = written({"a": torch.ones(3)}, tmp_path)
    with open_checkpoint(path) as checkpoint:
        tensors = dict(checkpoint.tree)
    for broken in (path.read_bytes()[:-1], path.read_bytes().replace(b'"a"', b'"b"')):
        path.write_bytes(broken)
        with pytest.raises(CkptError, match="does not read back"):
            safetensors_file.check_written(path, tensors)


@pytest.mark.parametrize(
    ("there", "instead", "said"),
    [(b'"F32"', b'"I32"', "type or shape"), (b"[3]", b"[1]", "does not read back")],
)
def test_check_refuses_another_type_or_shape(there, instead, said, tmp_path):
    path = written({"a": torch.ones(3)}, tmp_path)
    with open_checkpoint(path) as checkpoint:
        tensors = dict(checkpoint.tree)
    path.write_bytes(path.read_bytes().replace(there, instead))
    with pytest.raises(CkptError, match=said):
        safetensors_file.check_written(path, tensors)


def test_what_was_cast_is_read_back(tmp_path):
    source, target = tmp_path / "in.pt", tmp_path / "out.safetensors"
    torch.save({"a": torch.ones(3), "b": torch.arange(3)}, source)
    casting = Casting(BY_NAME["bfloat16"])
    with open_checkpoint(source) as checkpoint, whole_file(target, force=True) as output:
        layout = safetensors_file.plan(checkpoint.tree, casting)
        runs = safetensors_file.write(output, layout, {}, Transfer(checkpoint.reader, casting))
        (run,) = runs
        assert (run.nbytes, output.read(run.offset, 2)) == (6, b"\x80\x3f")
        output.patch(b"\x81", run.offset)
        with pytest.raises(CkptError, match="does not read back"):
            safetensors_file.check_written(output.path, checkpoint.tree, casting, runs)
