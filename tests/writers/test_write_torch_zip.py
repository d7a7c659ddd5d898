"""What is written as a torch file without torch, with torch and ``zipfile`` as the judges."""

from __future__ import annotations

import pickletools
import zipfile

import pytest
import torch
from hypothesis import given

from ckptool.dtypes import UINT8
from ckptool.errors import UnsupportedError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import TensorReader
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from ckptool.tree.nodes import Chunk, TensorRef
from ckptool.writers import torch_zip, zip_archive
from ckptool.writers.files.whole_file import whole_file
from ckptool.writers.transfer import Transfer
from helpers import strategies
from helpers.likeness import assert_same_objects
from helpers.samples import NEW_DTYPES, OLD_DTYPES, filled
from helpers.tensors import assert_same_tensor, assert_same_tensors, storage_of


def written(tensors, folder, wrap=None):
    """Save with torch, write without."""
    source, target = folder / "in.pt", folder / "out.pt"
    torch.save(tensors, source)
    with open_checkpoint(source) as checkpoint, whole_file(target, force=True) as output:
        torch_zip.write(output, checkpoint.tree, Transfer(checkpoint.reader), wrap)
    return target


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch has second thoughts about complex32
@pytest.mark.parametrize("dtype", OLD_DTYPES + NEW_DTYPES, ids=str)
def test_every_type(dtype, tmp_path):
    tensors = {
        "matrix": filled(dtype, 6).view(2, 3),
        "strided": filled(dtype, 12).view(3, 4).t(),
        "scalar": filled(dtype, 1).view(()),
        "empty": filled(dtype, 0).view(0, 2),
    }
    assert_same_tensors(load(written(tensors, tmp_path)), tensors)


def test_strides_are_kept(tmp_path):
    base = torch.arange(60.0)
    tensors = {
        "transposed": base.view(6, 10).t(),
        "slice": base.view(3, 4, 5)[1:, ::2, 1:4],
        "expanded": base[7:10].expand(4, 3),
        "far": torch.ones(1).as_strided((1,), (2**40,)),
        "wide": torch.ones(1).as_strided((1, 1), (300, 70_000)),
    }
    found = load(written(tensors, tmp_path))
    assert_same_tensors(found, tensors)
    assert {n: t.stride() for n, t in found.items()} == {n: t.stride() for n, t in tensors.items()}


def test_ties_survive(tmp_path):
    shared = torch.arange(12.0).view(3, 4)
    tensors = {
        "a": shared,
        "b": shared.detach(),
        "turned": shared.t(),
        "row": shared[2],
        "apart": shared.clone(),
    }
    found = load(written(tensors, tmp_path))
    assert_same_tensors(found, tensors)
    homes = {name: storage_of(tensor) for name, tensor in found.items()}
    assert homes["a"] == homes["b"] == homes["turned"] == homes["row"] != homes["apart"]
    found["a"][2, 0] = -1
    assert found["row"][0] == found["turned"][0, 2] == -1


def test_only_used_bytes_are_written(tmp_path):
    """A view of a large storage takes what it shows, unlike with ``torch.save``."""
    path = written({"part": torch.zeros(1_000_000)[10:20]}, tmp_path)
    assert path.stat().st_size < 10_000


def test_lazy_operations_are_done(tmp_path):
    waves = [torch.view_as_complex(torch.arange(8.0).view(4, 2)) for _ in range(2)]
    lazy = {"conj": waves[0].conj(), "neg": waves[1].conj().imag}
    found = load(written(lazy, tmp_path))
    assert_same_tensor(found["conj"], lazy["conj"].resolve_conj())
    assert_same_tensor(found["neg"], lazy["neg"].resolve_neg())


def test_wrap_is_one_dict_around(tmp_path):
    tensors = {"a": torch.ones(2)}
    assert_same_objects(
        {k: dict(v) for k, v in load(written(tensors, tmp_path, "params")).items()},
        {"params": tensors},
    )


@pytest.mark.parametrize("name", ["", "größe.µ", "🎲", "new\nline", "\ud800", "x" * 70_000])
def test_names_are_written_as_they_are(name, tmp_path):
    assert list(load(written({name: torch.ones(1)}, tmp_path, name))[name]) == [name]


def test_the_order_of_names_is_kept(tmp_path):
    tensors = {name: torch.ones(2) for name in ("z", "a", "m")}
    assert list(load(written(tensors, tmp_path))) == ["z", "a", "m"]


def test_nothing_at_all_is_a_file_too(tmp_path):
    assert load(written({}, tmp_path)) == {}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch deprecates quantized tensors
def test_what_has_no_plain_values_is_named_and_refused(tmp_path):
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    for tensor in (quantized, torch.empty(2, device="meta")):
        with pytest.raises(UnsupportedError) as caught:
            written({"odd": tensor}, tmp_path)
        assert caught.value.address == "odd"


# -------------------------------------------------------------------------------------- the archive


@pytest.fixture
def path(tmp_path):
    shared = torch.arange(100.0)
    return written({"a": shared, "b": shared[3:7], "c": torch.ones(3).bool()}, tmp_path)


def test_the_archive_is_sound(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = [record.filename for record in archive.infolist()]
        assert archive.read("archive/byteorder") == b"little"
        assert archive.read("archive/version") == b"3\n"
        assert all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())
    data = [f"archive/data/{key}" for key in range(2)]
    assert names == ["archive/data.pkl", "archive/byteorder", *data, "archive/version"]


@pytest.mark.parametrize("legacy", [False, True])
def test_large_storages_have_their_checksums(legacy, tmp_path):
    """Those that the source's records have, and of those that are no record of a zip."""
    whole = torch.arange(300_000.0)
    tensors = {"whole": whole, "part": torch.arange(200_000.0)[:150_000], "small": torch.ones(3)}
    source, target = tmp_path / "in.pt", tmp_path / "out.pt"
    torch.save(tensors, source, _use_new_zipfile_serialization=not legacy)
    with open_checkpoint(source) as checkpoint, whole_file(target, force=True) as output:
        torch_zip.write(output, checkpoint.tree, Transfer(checkpoint.reader))
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
    assert_same_tensors(load(target), tensors)


def test_storages_are_aligned_as_torch_aligns_them(path):
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            at = record.header_offset
            name, extra = (int.from_bytes(content[at + i : at + i + 2], "little") for i in (26, 28))
            assert (at + 30 + name + extra) % 64 == 0
    assert torch.load(path, mmap=True)["a"].data_ptr() % 64 == 0


def test_the_pickle_names_only_what_torch_trusts(path):
    with zipfile.ZipFile(path) as archive:
        pickle = archive.read("archive/data.pkl")
    named = {arg for op, arg, _ in pickletools.genops(pickle) if op.name == "GLOBAL"}
    assert named == {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch FloatStorage",
        "torch BoolStorage",
    }


@pytest.mark.parametrize("limit", [200, 3000, 10_000])
def test_large_files_have_64_bit_sizes_and_offsets(limit, tmp_path, monkeypatch):
    """With the limit lowered: what is beyond it stands in 64-bit fields."""
    tensors = {f"t{i}": torch.full((100 * i,), float(i)) for i in range(5)}
    monkeypatch.setattr(zip_archive, "ZIP64_FROM", limit)
    path = written(tensors, tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        records, entry = archive.infolist(), archive.start_dir
    assert_same_tensors(load(path), tensors)
    content = path.read_bytes()
    for record in records:
        fields = (content[entry + i : entry + i + 4] for i in (24, 42))
        size, offset = (int.from_bytes(field, "little") for field in fields)
        is_large = max(record.file_size, record.header_offset) >= limit
        small = (record.file_size, record.header_offset)
        assert (size, offset) == ((0xFFFFFFFF, 0xFFFFFFFF) if is_large else small)
        lengths = (content[entry + i] + 256 * content[entry + i + 1] for i in (28, 30, 32))
        entry += 46 + sum(lengths)


@pytest.mark.slow
def test_more_records_than_16_bits_can_count(tmp_path):
    count = 0x10000
    source = Memory(bytes(count))
    tensors = {str(i): one_byte(source, i) for i in range(count)}
    with whole_file(tmp_path / "out.pt", force=False) as output:
        torch_zip.write(output, tensors, Transfer(TensorReader()))
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert len(archive.infolist()) == count + 3
    with open_checkpoint(tmp_path / "out.pt") as checkpoint:
        assert len(checkpoint.tree) == count


def one_byte(source, at) -> TensorRef:
    return TensorRef(UINT8, (1,), (Chunk(ByteSpan(source, at, 1), (0,), (1,), (1,)),))


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(pool=strategies.tensor_pools())
def test_whatever_torch_saves_is_written_alike(pool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    tensors = {str(i): tensor for i, tensor in enumerate(pool)}
    found = load(written(tensors, folder))
    assert_same_tensors(found, tensors)
    for name, tensor in tensors.items():
        assert found[name].stride() == tensor.stride()
