"""pickle: a bare pickle at any protocol, with ``torch.save`` streams nested in it."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import types

import pytest
import torch
from hypothesis import given

from ckptool.errors import CkptError, DamagedError, UnknownFormatError
from ckptool.formats import open_checkpoint
from ckptool.formats.pickles.reader import MAX_NESTING
from ckptool.sources.memory import Memory
from ckptool.tree.nodes import StorageRef, TensorRef
from ckptool.tree.walking import tensors
from helpers import samples, strategies
from helpers.conformance import FormatTests
from helpers.judge import assert_reads_like
from helpers.paths import FIXTURES
from helpers.thinned import examples

FOLDER = FIXTURES / "formats" / "pickle"


class PlainPickleTests(FormatTests):
    format_name = "pickle"
    samples = (*samples.EVERYWHERE, samples.every_new_dtype)
    beyond_judge = frozenset({"every_new_dtype"})  # _load_from_bytes wants a type of their storages
    protocol: int

    def write(self, path, obj):
        path.write_bytes(pickle.dumps(obj, self.protocol))

    def load(self, path):
        return pickle.loads(path.read_bytes())


class AsText:
    """Protocols that spell bytes as text: what is large in a file is larger in the pickle."""

    def test_opening_reads_no_values(self):
        pytest.skip("bytes are spelled as text, so they must be read")


class TestProtocol0(AsText, PlainPickleTests):
    protocol = 0


class TestProtocol1(AsText, PlainPickleTests):
    protocol = 1


class TestProtocol2(AsText, PlainPickleTests):
    protocol = 2


class TestProtocol3(PlainPickleTests):
    protocol = 3


class TestProtocol4(PlainPickleTests):
    protocol = 4


class TestProtocol5(PlainPickleTests):
    protocol = 5


@examples(60)
@given(obj=strategies.checkpoints(new=False))
def test_what_pickle_writes_reads_as_pickle_loads_it(obj, tmp_path):
    path = tmp_path / "any.pkl"
    path.write_bytes(pickle.dumps(obj, protocol=len(str(obj)) % 6))
    try:
        assert_reads_like(path, pickle.loads(path.read_bytes()))
    except UnknownFormatError:  # a bare scalar or tuple of protocols 0 and 1 has no signature
        assert path.read_bytes()[:1] != b"\x80"
        assert not isinstance(obj, (dict, list))


@pytest.mark.parametrize("protocol", [2, 4])
def test_snapshots_of_modules(protocol):
    path = FOLDER / f"module_snapshot_proto{protocol}.pkl"
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format_name == "pickle"
        assert {address[0] for address, _ in tensors(checkpoint.tree)} == {"G", "G_ema"}


# ----------------------------------------------------------------------------------- what is nested


def load_from_bytes(data: bytes, protocol=4):
    """A pickle of one call of ``torch.storage._load_from_bytes``."""

    class Call:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (data,)

    return pickle.dumps({"inner": Call()}, protocol)


def saved(obj, **more) -> bytes:
    stream = io.BytesIO()
    torch.save(obj, stream, **more)
    return stream.getvalue()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("zipped", [False, True])
def test_whole_streams_in_a_pickle(zipped, protocol, tmp_path):
    path = tmp_path / "nested.pkl"
    stream = saved(samples.ties(), _use_new_zipfile_serialization=zipped)
    path.write_bytes(load_from_bytes(stream, protocol))
    assert_reads_like(path, pickle.loads(path.read_bytes()))


@pytest.mark.parametrize("numel", [10, 100_000])
def test_nested_values_stay_in_the_file(numel, tmp_path):
    path = tmp_path / "nested.pkl"
    path.write_bytes(pickle.dumps([torch.arange(float(numel))], protocol=4))
    with open_checkpoint(path) as checkpoint:
        (chunk,) = checkpoint.tree[0].chunks
        assert chunk.span.source is checkpoint.source
        stored = path.read_bytes()[chunk.span.offset :][: chunk.span.nbytes]
    assert stored == torch.arange(float(numel)).numpy().tobytes()


def test_values_spelled_as_text_are_kept_in_memory(tmp_path):
    path = tmp_path / "nested.pkl"
    path.write_bytes(pickle.dumps([torch.arange(10.0)], protocol=2))
    with open_checkpoint(path) as checkpoint:
        assert isinstance(checkpoint.tree[0].chunks[0].span.source, Memory)


@pytest.mark.parametrize("zipped", [False, True])
def test_streams_nested_in_containers(zipped, tmp_path):
    path = tmp_path / "nested.pt"

    class Call:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (saved(samples.ties()),)

    torch.save({"inner": Call()}, path, _use_new_zipfile_serialization=zipped)
    assert_reads_like(path, torch.load(path, weights_only=False))


def test_names_in_nested_pickles_are_told(tmp_path):
    path = tmp_path / "nested.pkl"
    path.write_bytes(load_from_bytes(saved(samples.Settings())))
    with open_checkpoint(path) as checkpoint:
        named = {row.ref.qualname: row for row in checkpoint.globals_named}
    assert named["torch.storage._load_from_bytes"].called
    assert named["torch.storage._load_from_bytes"].pickle == "the pickle"
    assert named["helpers.samples.Settings"].pickle == "bytes inside the pickle"


def nested(levels: int) -> bytes:
    data = saved({"weight": torch.ones(2)})
    for _ in range(levels):
        data = saved(Nested(data))
    return data


class Nested:
    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.data,)


def test_nesting_has_an_end(tmp_path):
    path = tmp_path / "nested.pt"
    path.write_bytes(nested(MAX_NESTING))
    assert_reads_like(path, torch.load(path, weights_only=False))
    path.write_bytes(nested(MAX_NESTING + 1))
    with pytest.raises(DamagedError, match="nested in one another without end"):
        open_checkpoint(path)


def bomb(levels: int, protocol: int) -> bytes:
    """Each level opens the one below fifty times."""
    data = saved({"weight": torch.ones(2)})
    for _ in range(levels):
        calls = [Nested(data) for _ in range(50)]
        data = saved(calls, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    return data


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_same_bytes_are_opened_once(protocol, tmp_path):
    path = tmp_path / "bomb.pt"
    path.write_bytes(bomb(MAX_NESTING, protocol))
    with open_checkpoint(path) as checkpoint:
        assert len(checkpoint.tree) == 50


def test_bytes_that_are_spelled_anew_each_time_run_out(tmp_path):
    stream = saved({"padding": "x" * 1000}, _use_new_zipfile_serialization=False)
    text = stream.decode("latin-1").encode()
    spell = (
        b"c_codecs\nencode\nX"
        + struct.pack("<I", len(text))
        + text
        + b"q\x01X\6\0\0\0latin1\x86q\2"
    )
    again = b"ctorch.storage\n_load_from_bytes\nc_codecs\nencode\nh\2R\x85R"
    path = tmp_path / "bomb.pkl"
    path.write_bytes(b"\x80\2" + spell + b"00(" + again * 1000 + b"l.")
    with pytest.raises(DamagedError, match="without end"):
        open_checkpoint(path)


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"\x80\x02K\x01.", b"text"])
def test_bytes_that_are_no_stream(data, tmp_path):
    path = tmp_path / "nested.pkl"
    path.write_bytes(load_from_bytes(data))
    with pytest.raises(DamagedError):
        open_checkpoint(path)


def test_storage_as_a_value(tmp_path):
    path = tmp_path / "storage.pkl"
    storage = torch.arange(4.0)._typed_storage()
    path.write_bytes(pickle.dumps({"storage": storage}, 4))
    with open_checkpoint(path) as checkpoint:
        assert isinstance(checkpoint.tree["storage"], StorageRef)
    assert_reads_like(path, {"storage": storage})


# -------------------------------------------------------------------------------- what is not there


def test_instances_of_classes_that_nobody_has(tmp_path):
    module = types.ModuleType("private_lab")
    code = "class Config:\n    pass\nclass Names(list):\n    pass\n"
    exec(compile(code, "<test>", "exec"), vars(module))
    sys.modules["private_lab"] = module
    try:
        config, names = module.Config(), module.Names(["a"])
        config.width, config.weight = 3, torch.ones(2)
        data = [pickle.dumps([config, names], protocol) for protocol in range(6)]
    finally:
        del sys.modules["private_lab"]
    for protocol, raw in enumerate(data):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(raw)
        with open_checkpoint(path) as checkpoint:
            config, names = checkpoint.tree
            assert config.qualname == "private_lab.Config"
            assert config.attributes["width"] == 3
            assert isinstance(config.attributes["weight"], TensorRef)
            assert (names.qualname, names.elements) == ("private_lab.Names", ["a"])


def test_data_pkl_of_an_unpacked_archive(tmp_path):
    torch.save(samples.ties(), tmp_path / "model.pt")
    reader = torch._C.PyTorchFileReader(str(tmp_path / "model.pt"))
    path = tmp_path / "data.pkl"
    path.write_bytes(reader.get_record("data.pkl"))
    with pytest.raises(DamagedError, match="refers to the storage 0 outside itself") as caught:
        open_checkpoint(path)
    assert "zip" in caught.value.hint


def test_what_follows_is_counted(tmp_path):
    path = tmp_path / "several.pkl"
    second = pickle.dumps({"b": 2})
    path.write_bytes(pickle.dumps({"a": 1}) + second)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tree == {"a": 1}
        assert checkpoint.metadata == {"trailing_bytes": len(second)}


# ----------------------------------------------------------------------------- how it is recognised


@pytest.mark.parametrize("protocol", [0, 1])
@pytest.mark.parametrize(
    "obj",
    [{}, [], {"a": 1}, [1, "b"], samples.Settings(), samples.namespace(), samples.Tracker()],
    ids=["dict", "list", "items", "elements", "dataclass", "namespace", "dict subclass"],
)
def test_early_protocols_are_recognised(obj, protocol, tmp_path):
    path = tmp_path / "early.pkl"
    path.write_bytes(pickle.dumps(obj, protocol))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format_name == "pickle"


@pytest.mark.parametrize(
    "head",
    [
        b"(dp1\nS'epoch'\np2\nI3\nsS'lr'\np3\nF0.1\ns.",  # cPickle, protocol 0
        b"(lp1\nI1\na.",
        b"}q\x01(U\x05epochq\x02K\x03u.",  # cPickle, protocol 1
        b"ccopy_reg\n_reconstructor\np1\n(cargparse\nNamespace\np2\nc__builtin__\nobject\np3\nNtRp4\n.",
        b"(iargparse\nNamespace\np1\n(dp2\nb.",  # an old-style instance
        b"(cargparse\nNamespace\nq\x01oq\x02}q\x03b.",
    ],
)
def test_pickles_of_python_2_are_recognised(head, tmp_path):
    path = tmp_path / "python2.pkl"
    path.write_bytes(head)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format_name == "pickle"


@pytest.mark.parametrize(
    "text",
    [
        b"(dp\n", b"(listen)\n", b"(see below)\n", b"[1, 2, 3]\n", b"{}\n", b"}quit\n", b"]q\n",
        b"config\nsettings\n", b"cat\ndog\n(a pair)", b"checkpoints\nin\nhere\n", b"(i\nj\n)",
        b"I1\n.", b"N.", b".", b"K\x01.", b"import torch\nprint(1)\n", b"epoch,loss\n1,0.5\n",
    ],
)  # fmt: skip
def test_text_is_no_pickle(text, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(text)
    with pytest.raises(UnknownFormatError):
        open_checkpoint(path)


def test_later_protocols_than_5(tmp_path):
    path = tmp_path / "future.pkl"
    path.write_bytes(b"\x80\x06N.")
    with pytest.raises(CkptError):
        open_checkpoint(path)
