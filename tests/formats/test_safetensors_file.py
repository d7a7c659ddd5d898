"""safetensors: every rule of the format, and never a file that the library refuses."""

from __future__ import annotations

import json
import re

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.dtypes import BY_SAFETENSORS_TAG, DTYPES
from ckptool.errors import CkptError, DamagedError, UnknownFormatError, UnsupportedError
from ckptool.formats import base, open_checkpoint
from helpers import samples, strategies
from helpers.conformance import FormatTests
from helpers.judge import assert_reads_like
from helpers.thinned import examples

TAGGED = [getattr(torch, row.name) for row in DTYPES if row.safetensors]


def every_dtype():
    return {str(dtype): samples.filled(dtype, 6).view(2, 3) for dtype in TAGGED}


def every_shape():
    shapes = ((), (0,), (1,), (3, 0, 2), (2, 3), (1, 1, 1, 1), (2, 1, 3, 1, 2))
    return {str(shape): torch.ones(shape) for shape in shapes}


def odd_names():
    names = ("", "a/b~*", "größe 🎲", '"quoted"\\', "\n\t\0", " __metadata__", "a" * 300)
    return {name: torch.ones(1) for name in names}


def mixed_widths():
    """The library sorts by width, so that the order of names and of values differ."""
    dtypes = (torch.bool, torch.float64, torch.uint8, torch.bfloat16, torch.float32)
    return {f"{i}": samples.filled(dtype, 3) for i, dtype in enumerate(dtypes)}


class TestSafetensors(FormatTests):
    format_name = "safetensors"
    samples = (every_dtype, every_shape, odd_names, mixed_widths, samples.nothing)
    ties = False

    def write(self, path, obj):
        safetensors.torch.save_file(obj, path)

    def load(self, path):
        loaded = safetensors.torch.load_file(path)
        with open_checkpoint(path) as checkpoint:  # the library keeps no order of names
            assert checkpoint.tree.keys() == loaded.keys()
            return {name: loaded[name] for name in checkpoint.tree}


def can_be_saved(tensor) -> bool:
    """The library has no bytes for one float4 alone."""
    return tensor.dtype is not torch.float4_e2m1fn_x2 or tensor.dim() > 0


@examples(100)
@given(tensors=st.dictionaries(st.text(max_size=8), strategies.contiguous_tensors(), max_size=5))
def test_what_the_library_saves_reads_as_it_loads(tensors, tmp_path):
    path = tmp_path / "any.safetensors"
    known = {name: t for name, t in tensors.items() if t.dtype in TAGGED and can_be_saved(t)}
    safetensors.torch.save_file(known, path)
    assert_reads_like(path, TestSafetensors().load(path), ties=False)


def test_metadata(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, path, metadata={"format": "pt", "größe": "3"})
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.metadata == {"format": "pt", "größe": "3"}
        assert list(checkpoint.tree) == ["a"]


def test_the_format_of_a_file_is_no_shared_tensor(tmp_path):
    """``format: pt`` is in nearly every file, and a tensor may be called ``pt``."""
    path = tmp_path / "model.safetensors"
    metadata = {"format": "pt", "tied": "pt"}
    safetensors.torch.save_file({"pt": torch.ones(1)}, path, metadata=metadata)
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tree) == ["pt", "tied"]


def test_names_keep_the_order_of_the_header(tmp_path):
    path = write(tmp_path, {"z": entry([2], 0), "a": entry([2], 8)}, size=16)
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tree) == ["z", "a"]


def test_float4_counts_pairs_as_torch_does(tmp_path):
    path = tmp_path / "model.safetensors"
    packed = samples.filled(torch.float4_e2m1fn_x2, 8).view(2, 4)
    safetensors.torch.save_file({"weight": packed}, path)
    assert b'"shape":[2,8]' in path.read_bytes()
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tree["weight"].shape == (2, 4)
        assert checkpoint.tree["weight"].nbytes == 8


# --------------------------------------------------------------------------- one test for each rule


def entry(shape, begin, end=None, dtype="F32"):
    """A tensor in a header; by default of float32 and just as long as its shape says."""
    count = 1
    for size in shape:
        count *= size
    return {
        "dtype": dtype,
        "shape": shape,
        "data_offsets": [begin, begin + 4 * count if end is None else end],
    }


def write(folder, header, *, size=0, length=None):
    """A file with any header; JSON unless it is bytes already."""
    path = folder / "made.safetensors"
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    claimed = len(raw) if length is None else length
    path.write_bytes(claimed.to_bytes(8, "little") + raw + bytes(size))
    return path


def library_accepts(path) -> bool:
    try:
        safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError:
        return False
    return True


W = entry([2], 0)
BROKEN = {
    "header beyond 100 MB": (
        (b"{}", {"length": 100_000_001}),
        "refuses to read headers above 100,000,000 bytes",
    ),
    "header beyond the file": ((b"{}", {"length": 3}), "truncated"),
    "no brace": ((b" {}", {}), None),
    "no JSON": ((b'{"a"', {}), "cannot be read as JSON"),
    "no UTF-8": ((b'{"\xff": 1}', {}), "cannot be read as JSON"),
    "not a number": ((b'{"a": NaN}', {}), "NaN is no JSON"),
    "half a character": ((b'{"\\ud800": 1}', {}), "cannot be read as JSON"),
    "nested without end": ((b'{"a":' * 100_000, {}), "nested without end"),
    "text behind": ((b"{} x", {}), "cannot be read as JSON"),
    "key twice": ((b'{"a": 1, "a": 1}', {}), "the key 'a' twice"),
    "metadata twice": ((b'{"__metadata__":{"a":"1","a":"2"}}', {}), "the key 'a' twice"),
    "metadata of numbers": (({"__metadata__": {"a": 1}}, {}), "must map text to text"),
    "metadata list": (({"__metadata__": ["a"]}, {}), "must map text to text"),
    "no object": (({"a": [1]}, {}), "described by no JSON object"),
    "no dtype": (({"a": {"shape": [], "data_offsets": [0, 4]}}, {"size": 4}), "lacks its dtype"),
    "more fields": (({"a": W | {"strides": [1]}}, {"size": 8}), "has no field 'strides'"),
    "unknown dtype": (({"a": entry([2], 0, dtype="F128")}, {"size": 8}), "'F128' is not known"),
    "dtype in lower case": (({"a": entry([2], 0, dtype="f32")}, {"size": 8}), "'f32' is not known"),
    "dtype a number": (({"a": entry([2], 0, dtype=32)}, {"size": 8}), "32 is not known"),
    "shape a number": (({"a": W | {"shape": 2}}, {"size": 8}), "shape must be a list"),
    "shape of floats": (({"a": W | {"shape": [2.0]}}, {"size": 8}), "shape must be a list"),
    "shape of booleans": (({"a": W | {"shape": [True, 2]}}, {"size": 8}), "shape must be a list"),
    "negative size": (({"a": W | {"shape": [-2, -1]}}, {"size": 8}), "shape must be a list"),
    "size beyond 64 bits": (({"a": entry([0, 2**64], 0)}, {}), "shape must be a list"),
    "overflow": (({"a": entry([2**40, 2**40, 0], 0, 0)}, {}), r"more than 2\^64 bits"),
    "minus zero": ((b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', {}), "-0 is no"),
    "one offset": (({"a": W | {"data_offsets": [0]}}, {"size": 8}), "two integers"),
    "three offsets": (({"a": W | {"data_offsets": [0, 8, 8]}}, {"size": 8}), "two integers"),
    "end before begin": (({"a": entry([2], 8, 0)}, {"size": 8}), "span -8 bytes"),
    "span too long": (({"a": entry([2], 0, 12)}, {"size": 12}), r"span 12 bytes.*\[2\].*takes 8"),
    "span too short": (({"a": entry([2], 0, 4)}, {"size": 4}), "span 4 bytes"),
    "half a byte": (({"a": entry([3], 0, 1, "F4")}, {"size": 1}), "does not fill whole bytes"),
    "hole": (({"a": W, "b": entry([2], 12)}, {"size": 20}), "end at 8: a hole"),
    "hole in front": (({"a": entry([2], 4)}, {"size": 12}), "end at 0: a hole"),
    "overlap": (({"a": W, "b": entry([2], 4)}, {"size": 12}), "end at 8: an overlap"),
    "same place twice": (({"a": W, "b": W}, {"size": 8}), "an overlap"),
    "file too short": (({"a": W}, {"size": 5}), r"only 5 \(3 bytes short\)"),
    "file too long": (({"a": W}, {"size": 9}), "1 bytes behind the last tensor"),
}  # fmt: skip


@pytest.mark.parametrize("rule", BROKEN)
def test_broken_rule_is_named(rule, tmp_path):
    (header, how), message = BROKEN[rule]
    path = write(tmp_path, header, **how)
    with pytest.raises(UnknownFormatError if message is None else DamagedError) as caught:
        open_checkpoint(path)
    assert message is None or re.search(message, str(caught.value))


STRICTER = {"key twice", "metadata twice", "more fields", "no brace"}


@pytest.mark.parametrize("rule", sorted(set(BROKEN) - STRICTER))
def test_the_library_refuses_it_too(rule, tmp_path):
    (header, how), _ = BROKEN[rule]
    assert not library_accepts(write(tmp_path, header, **how))


def test_errors_name_the_tensor(tmp_path):
    path = write(tmp_path, {"blocks.0.weight": entry([2], 0, 12)}, size=12)
    with pytest.raises(DamagedError) as caught:
        open_checkpoint(path)
    assert (caught.value.path, caught.value.address) == (path, "blocks.0.weight")


@pytest.mark.parametrize("tag", ["F6_E2M3", "F6_E3M2"])
def test_types_that_torch_does_not_have(tag, tmp_path):
    path = write(tmp_path, {"a": entry([4], 0, 3, tag)}, size=3)
    assert library_accepts(path)
    with pytest.raises(UnsupportedError, match=f"{tag} does not exist in torch"):
        open_checkpoint(path)


@pytest.mark.parametrize("shape", [[2, 3, 1], [2, 1]])
def test_float4_in_odd_rows(shape, tmp_path):
    size = shape[0] * shape[1] // 2
    path = write(tmp_path, {"a": entry(shape, 0, size, "F4")}, size=size)
    assert library_accepts(path)
    with pytest.raises(UnsupportedError, match="must be even"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (b"{}", 0),
        (b'{"__metadata__":null}', 0),
        (b'{"__metadata__":{}}', 0),
        (b'{ "a" :\n{"dtype":"F32","shape":[],"data_offsets":[0,4]} }   \t\r\n', 4),
        ({"b": entry([1], 1, dtype="U8", end=2), "a": entry([1], 0, dtype="U8", end=1)}, 2),
        ({"e": entry([0], 4), "a": entry([4], 0, dtype="U8", end=4)}, 4),
    ],
    ids=["empty", "null metadata", "empty metadata", "white space", "not in order", "empty tensor"],
)  # fmt: skip
def test_unusual_headers_in_order(header, size, tmp_path):
    path = write(tmp_path, header, size=size)
    assert library_accepts(path)
    open_checkpoint(path).close()


# ------------------------------------------------------------------------- the library is the judge

numbers = st.sampled_from(
    ["0", "1", "2", "3", "4", "8", "16", "-0", "-1", "1.0", "1e0", "01", "+1", "0x1", "NaN", "null",
     "true", '"1"', "[]", "18446744073709551615", "18446744073709551616", "9" * 30, "9" * 5000]
)  # fmt: skip
texts = st.sampled_from(
    ['"a"', '"b"', '"__metadata__"', '""', '"\\u0000"', '"\\ud800"', '"\\ud83c\\udfb2"', '"é"',
     '"\\x"', '"\t"', "a", "'a'", '"a', "1", "null"]
)  # fmt: skip
tags = st.sampled_from([f'"{tag}"' for tag in (*BY_SAFETENSORS_TAG, "F6_E2M3", "f32", "")] + ["1"])
lists = st.lists(numbers, max_size=3).map(lambda row: f"[{','.join(row)}]")


WIDTHS = {"U8": 8, "F32": 32, "BF16": 16, "F4": 4, "C64": 64}  # bits


def mostly(draw, usual, unusual):
    """``usual``, or now and then something drawn from ``unusual``."""
    return draw(unusual) if draw(st.integers(0, 24)) == 13 else usual


@st.composite
def plausible_entries(draw, begin: int) -> tuple[str, int]:
    """A tensor in a header, mostly true, and where it ends."""
    tag, count = draw(st.sampled_from(sorted(WIDTHS))), draw(st.sampled_from([0, 1, 2, 4, 4]))
    end = begin + count * WIDTHS[tag] // 8
    shape = draw(st.sampled_from([f"[{count}]", f"[1, {count}]", f"[{count},1,1]"]))
    fields = [
        f'"dtype":{mostly(draw, json.dumps(tag), tags)}',
        f'"shape":{mostly(draw, shape, lists)}',
        f'"data_offsets":[{mostly(draw, begin, numbers)},{mostly(draw, end, numbers)}]',
    ]
    fields = mostly(draw, fields, st.lists(st.sampled_from(fields), max_size=4))
    more = st.sampled_from([',"more":1', ',"more":1e999', ',"dtype":"U8"', ",", "]"])
    return "{" + ",".join(draw(st.permutations(fields))) + mostly(draw, "", more) + "}", end


@st.composite
def plausible_files(draw) -> bytes:
    """A file that is in order, or nearly."""
    entries, end = [], 0
    for name in draw(st.permutations(['"a"', '"b/c"', '"é"']))[draw(st.integers(0, 3)) :]:
        text, end = draw(plausible_entries(end))
        entries.append(f"{mostly(draw, name, texts)}:{text}")
    unusual = st.sampled_from(['{"a":1}', "null", "[]", '{"a":"b","a":"c"}', '{"a":"\\ud800"}'])
    if draw(st.booleans()):
        metadata = mostly(draw, '{"k": "v"}', unusual)
        entries.append(f'"__metadata__":{metadata}')
    space = st.sampled_from([" ", "\n", "\v", "\0", "\ufeff"])
    header = ",".join(draw(st.permutations(entries)))
    front, back = mostly(draw, "", space), mostly(draw, "", space)
    raw = f"{front}{{{header}}}{back}".encode()
    length = len(raw) + mostly(draw, 0, st.sampled_from([-1, 1]))
    size = mostly(draw, end, st.integers(0, 12))
    return max(length, 0).to_bytes(8, "little") + raw + bytes(size)


def never_more_lenient(path, data: bytes) -> bool:
    """Whether we accept ``data``, which then the library must too."""
    path.write_bytes(data)
    try:
        open_checkpoint(path).close()
    except CkptError:
        return False
    assert library_accepts(path), data
    return True


@examples(400)  # .ci/fuzz tries thousands
@given(data=plausible_files())
def test_never_accepts_what_the_library_refuses(data, tmp_path):
    never_more_lenient(tmp_path / "any.safetensors", data)


@examples(500)
@given(at=st.integers(0, 10_000), new=st.binary(max_size=3), gone=st.integers(0, 3), data=st.data())
def test_never_accepts_a_mutation_that_the_library_refuses(at, new, gone, data, tmp_path):
    tensors = {"a": torch.ones(2, 2), "b": torch.ones(3, dtype=torch.uint8), "e": torch.ones(0)}
    sound = safetensors.torch.save(tensors, metadata={"k": "v"})
    at %= len(sound)
    never_more_lenient(tmp_path / "any.safetensors", sound[:at] + new + sound[at + gone :])


def test_does_not_need_the_library(tmp_path):
    """``safe_open`` imports numpy; looking into a file must not take that long."""
    import subprocess
    import sys

    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, path)
    code = (
        "import sys; from ckptool.formats import open_checkpoint; "
        f"open_checkpoint({str(path)!r}).close(); "
        "print(sorted({'numpy', 'torch', 'safetensors'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_header_of_very_many_tensors_without_values_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "MAX_TENSORS", 10)
    few, many = ({str(i): torch.zeros(1) for i in range(count)} for count in (10, 11))
    safetensors.torch.save_file(few, tmp_path / "few.safetensors")
    safetensors.torch.save_file(many, tmp_path / "many.safetensors")
    with open_checkpoint(tmp_path / "few.safetensors") as checkpoint:
        assert len(checkpoint.tree) == 10
    with pytest.raises(DamagedError, match="11 tensors of next to no values"):
        open_checkpoint(tmp_path / "many.safetensors")
