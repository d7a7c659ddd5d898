"""torch-legacy: what ``torch.save`` wrote before 1.6, and still writes when asked to."""

from __future__ import annotations

import pickle
import struct

import pytest
import torch
from hypothesis import given

from ckptool.errors import CkptError, DamagedError
from ckptool.formats import open_checkpoint
from helpers import samples, strategies
from helpers.conformance import FormatTests
from helpers.judge import assert_reads_like
from helpers.paths import FIXTURES
from helpers.thinned import examples

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
FACTS = {"protocol_version": VERSION, "little_endian": True}
FORMATS = FIXTURES / "formats"


def save(obj, path, **more):
    torch.save(obj, path, _use_new_zipfile_serialization=False, **more)


class TestTorchLegacy(FormatTests):
    format_name = "torch-legacy"
    samples = (*samples.EVERYWHERE, samples.every_new_dtype)
    # torch looks for the element type of untyped storages, and for sizes that it has not read yet
    beyond_judge = frozenset({"every_new_dtype", "nested_tensor"})

    def write(self, path, obj):
        save(obj, path)


@examples(100)
@given(obj=strategies.checkpoints(new=False))
def test_what_torch_saves_reads_as_torch_loads_it(obj, tmp_path):
    path = tmp_path / "any.pt"
    save(obj, path)
    assert_reads_like(path, torch.load(path, weights_only=False))


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sample", [samples.ties, samples.module, samples.collections])
def test_pickle_protocols(sample, protocol, tmp_path):
    path = tmp_path / "model.pt"
    save(sample(), path, pickle_protocol=protocol)
    assert_reads_like(path, torch.load(path, weights_only=False))


@pytest.mark.parametrize(
    "path", ["torch_legacy/plain.pt", "torch_legacy/module.pt", "pickle/python2_state_dict.pt"]
)
def test_fixtures_are_recognised(path):
    with open_checkpoint(FORMATS / path) as checkpoint:
        assert checkpoint.format_name == "torch-legacy"


@pytest.mark.parametrize("path", ["torch_legacy/plain.pt", "pickle/python2_state_dict.pt"])
def test_fixtures_read_alike(path):
    assert_reads_like(FORMATS / path, torch.load(FORMATS / path, weights_only=False))


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_devices_are_told_and_change_nothing(device, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _storage: device)
        save(samples.ties(), path)
    assert_reads_like(path, torch.load(path, map_location="cpu", weights_only=False))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tree["embed"].device == device


# ---------------------------------------------------------------- streams that torch writes no more


class Storage:
    """Stands for a storage: its persistent id."""

    def __init__(self, *saved_id):
        self.saved_id = saved_id


class StreamPickler(pickle.Pickler):
    """Writes persistent ids as they are given."""

    def persistent_id(self, obj):
        return obj.saved_id if isinstance(obj, Storage) else None


def write_stream(path, obj, data: dict, *, version=VERSION, protocol=2):
    """A stream with the given object, keys and values; floats."""
    with path.open("wb") as file:
        for header in (MAGIC, version, FACTS):
            pickle.dump(header, file, protocol=protocol)
        StreamPickler(file, protocol=protocol).dump(obj)
        pickle.dump(list(data), file, protocol=protocol)
        for values in data.values():
            file.write(struct.pack(f"<q{len(values)}f", len(values), *values))


class Rebuilt:
    """Pickles as a tensor on a storage."""

    def __init__(self, storage, offset, shape, strides):
        self.args = (storage, offset, shape, strides)

    def __reduce__(self):
        return torch._utils._rebuild_tensor, self.args


def floats(key, numel, view=None, location="cpu", kind="storage"):
    return Storage(kind, torch.FloatStorage, key, location, numel, view)


def test_views_of_storages(tmp_path):
    path = tmp_path / "views.pt"
    whole, part = floats("7", 6), floats("7", 6, view=("8", 2, 3))
    tensors = {"whole": Rebuilt(whole, 0, (2, 3), (3, 1)), "part": Rebuilt(part, 1, (2,), (1,))}
    write_stream(path, tensors, {"7": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]})
    loaded = torch.load(path, weights_only=False)
    assert loaded["part"].tolist() == [3.0, 4.0]
    assert_reads_like(
        path, loaded, ties=False
    )  # torch gives a view of a storage a pointer of its own


def test_views_must_fit_their_storage(tmp_path):
    path = tmp_path / "views.pt"
    part = floats("7", 6, view=("8", 4, 3))
    write_stream(path, Rebuilt(part, 0, (1,), (1,)), {"7": [0.0] * 6})
    with pytest.raises(DamagedError, match="a view of 12 bytes at 16 in a storage of 24"):
        open_checkpoint(path)


def test_names_that_python_2_wrote_as_bytes(tmp_path):
    path = tmp_path / "bytes.pt"
    storage = Storage(b"storage", torch.FloatStorage, b"7", b"cpu", 2, None)
    write_stream(path, [Rebuilt(storage, 0, (2,), (1,))], {b"7": [1.0, 2.0]}, protocol=3)
    assert_reads_like(path, torch.load(path, weights_only=False))


def test_storages_lie_in_the_order_of_the_keys(tmp_path):
    path = tmp_path / "order.pt"
    tensors = [Rebuilt(floats(key, 1), 0, (1,), (1,)) for key in "abc"]
    write_stream(path, tensors, {"c": [3.0], "a": [1.0], "b": [2.0]})
    assert_reads_like(path, torch.load(path, weights_only=False))


def test_what_follows_is_counted(tmp_path):
    path = tmp_path / "trailing.pt"
    save(samples.ties(), path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.metadata == {}
    path.write_bytes(path.read_bytes() + b"more")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.metadata == {"trailing_bytes": 4}


def test_missing_bytes_are_counted(tmp_path):
    path = tmp_path / "short.pt"
    save({"weight": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(DamagedError, match=r"truncated: the storages take 4008 .*1500 bytes short"):
        open_checkpoint(path)


def refused(path, match, *args, **more):
    """Both we and torch refuse the stream."""
    write_stream(path, *args, **more)
    with pytest.raises(DamagedError, match=match):
        open_checkpoint(path)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever torch raises
        torch.load(path, weights_only=False)


def test_counts_must_agree(tmp_path):
    tensor = Rebuilt(floats("7", 3), 0, (2,), (1,))
    refused(tmp_path / "a.pt", "has 4 elements instead of 3", tensor, {"7": [0.0] * 4})


def test_data_that_nothing_uses(tmp_path):
    refused(tmp_path / "a.pt", "the storage 8, which nothing uses", {}, {"8": [0.0]})


def test_other_versions(tmp_path):
    refused(tmp_path / "a.pt", "version of the stream is not 1001", {}, {}, version=1002)


def test_storage_without_data(tmp_path):
    path = tmp_path / "none.pt"
    write_stream(path, [Rebuilt(floats("7", 3), 0, (2,), (1,))], {})
    with pytest.raises(DamagedError, match="no data for the storage 7"):
        open_checkpoint(path)


@pytest.mark.parametrize("keys", [None, {"7": 1}, [("7",)], [None]])
def test_keys_must_be_a_list_of_keys(keys, tmp_path):
    path = tmp_path / "keys.pt"
    streams = (MAGIC, VERSION, FACTS, {}, keys)
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in streams))
    with pytest.raises(DamagedError, match="no list of storage keys"):
        open_checkpoint(path)


def test_count_far_beyond_the_file(tmp_path):
    path = tmp_path / "bomb.pt"
    write_stream(path, [Rebuilt(floats("7", 2**62), 0, (1,), (1,))], {"7": [0.0]})
    with pytest.raises(CkptError, match="bytes short"):
        open_checkpoint(path)


@pytest.mark.parametrize("place", range(1, 5))
def test_names_in_every_pickle_are_told(place, tmp_path):
    """torch runs them all, the facts about the machine included."""
    path = tmp_path / "hostile.pt"
    streams = [pickle.dumps(part, 2) for part in (MAGIC, VERSION, FACTS, {}, [])]
    streams[place] = b"\x80\2cos\ngetpid\n)R0" + streams[place][2:]
    path.write_bytes(b"".join(streams))
    with open_checkpoint(path) as checkpoint:
        ((name, called),) = [(row.ref.qualname, row.called) for row in checkpoint.globals_named]
    assert (name, called) == ("os.getpid", True)
