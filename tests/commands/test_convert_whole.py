"""``convert --whole`` and ``--safe``: all of a checkpoint in a zip, judged by torch's loaders."""

from __future__ import annotations

import argparse
import pathlib
import types
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool import open_checkpoint
from ckptool.errors import CkptError
from ckptool.formats.pickles.literal import Made, literal_of
from ckptool.writers.pickle_tree import pickled
from helpers import samples, strategies
from helpers.absent import instances, loose, present
from helpers.likeness import assert_same_objects
from helpers.making import average_of, resumable, save, weights
from helpers.paths import FIXTURES, contents
from helpers.tensors import load
from helpers.thinned import examples, one_in

OWN = pytest.mark.filterwarnings("ignore")


class Named(OrderedDict):
    """A subclass that holds nothing but its items."""


class Tagged(OrderedDict):
    """A subclass with an attribute besides."""


def safely(path) -> object:
    return torch.load(path, weights_only=True)


@pytest.fixture
def converted(ckptool, tmp_path):
    def run(content, *args, **how) -> object:
        torch.save(content, tmp_path / "in.pt", **how)
        done = ckptool("convert", tmp_path / "in.pt", *args, "-o", tmp_path / "out.pt", "--json")
        assert done.exit_code == 0, done.stdout
        return done.json

    return run


# --------------------------------------------------------------------------------------- plain data


def plain(value: object) -> object:
    """What ``--safe`` is to make of a value that torch has loaded."""
    if isinstance(value, (argparse.Namespace, types.SimpleNamespace)):
        return plain(vars(value))
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value) if value.size else torch.zeros(value.shape).double()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (defaultdict, Named)) or type(value) is dict:
        return {plain(key): plain(part) for key, part in value.items()}
    if isinstance(value, (set, frozenset)):
        return {plain(part) for part in value}
    if isinstance(value, (list, deque)):
        return [plain(part) for part in value]
    return tuple(map(plain, value)) if type(value) is tuple else value


OF_A_KIND = {
    "namespace": argparse.Namespace(lr=1e-3, more=argparse.Namespace(layers=[1, 2])),
    "empty": argparse.Namespace(),
    "simple": types.SimpleNamespace(a=1),
    "path": pathlib.PosixPath("/data/run 1"),
    "relative": pathlib.PurePosixPath("a"),
    "windows": pathlib.PureWindowsPath("C:\\data\\run"),
    "dot": pathlib.PurePosixPath("."),
    "ordered": Named(b=1, a=Named(c=2)),
    "default": defaultdict(list, {"a": [1]}),
    "frozen": frozenset({"a", "b"}),
    "deque": deque([1, 2]),
    "rng": np.random.RandomState(3).get_state(),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "no values": np.zeros((0, 3)),
    "number": np.array(3.5),
    "text": np.str_("abc"),
    **{code: np.arange(3).astype(code) for code in
       ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")},
    **{f"scalar {code}": np.arange(3).astype(code)[2] for code in
       ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")},
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", OF_A_KIND)
def test_what_plain_data_can_hold(kind, protocol, converted, tmp_path):
    content = {"value": OF_A_KIND[kind], "w": weights()}
    report = converted(content, "--safe", pickle_protocol=protocol)
    found = safely(tmp_path / "out.pt")
    assert_same_objects(found, plain(content))
    assert report["plain"][0]["address"].partition("/")[0] == "value"


def test_each_class_is_named_with_what_became_of_it(converted):
    content = {"args": argparse.Namespace(out=pathlib.PosixPath("/a"), n=np.float32(0.5))}
    assert converted({**content, "w": weights()}, "--safe")["plain"] == [
        {"address": "args", "was": "argparse.Namespace", "became": "dict"},
        {"address": "args/out", "was": "pathlib.PosixPath", "became": "str"},
        {"address": "args/n", "was": "numpy.generic", "became": "float"},
    ]


def test_what_is_plain_already_stays_as_it_is(converted, tmp_path):
    shared = [1, 2.5, None, True, "text", b"\xff\x00", -(2**70), (), (1,), {3, 4}]
    content = {
        "w": weights(), "shared": shared, "again": shared, "counter": Counter("aab"),
        "size": torch.Size([2, 3]), "device": torch.device("cpu"), "dtype": torch.float16,
        "complex": 1 + 2j, "parameter": torch.nn.Parameter(torch.ones(2)), "epoch": 3,
    }  # fmt: skip
    content["itself"] = content["shared"]
    shared.append(shared)
    report = converted(content, "--safe")
    assert report["plain"] == []
    found = safely(tmp_path / "out.pt")
    assert found["again"] is found["shared"] is found["shared"][-1]
    found["shared"].pop()
    shared.pop()
    assert_same_objects(found, content)


def test_keys_that_become_plain(converted, tmp_path):
    content = {"by": {pathlib.PosixPath("/a"): 1, np.int64(3): 2}, "w": weights()}
    converted(content, "--safe")
    assert safely(tmp_path / "out.pt")["by"] == {"/a": 1, 3: 2}


class Other:
    """A class of which nothing is known."""

    def __init__(self) -> None:
        self.a = 1


TAGGED = Tagged(a=1)
TAGGED.tag = "x"
LOSSY = {
    "object": Other(),
    "attribute": TAGGED,
    "class": Other,
    "module": torch.nn.Linear(2, 2),
    "deque": deque([1], maxlen=3),
    "objects": np.array([None, 1]),
    "structure": np.zeros(2, dtype=[("a", "f4")]),
    "date": np.datetime64("2020-01-01"),
    "big-endian": np.arange(3, dtype=">i4"),
    "masked": np.ma.array([1.0]),
    "key": {(Other, 1): 1},
    "clash": {np.int64(3): 1, 3.5: 2, pathlib.PosixPath("a"): 1, "a": 2},
}


@pytest.mark.parametrize("kind", LOSSY)
def test_what_plain_data_cannot_hold_is_refused_by_name(kind, ckptool, tmp_path):
    torch.save({"w": weights(), "deep": [{"value": LOSSY[kind]}]}, tmp_path / "in.pt")
    before = contents(tmp_path)
    done = ckptool("convert", tmp_path / "in.pt", "--safe", "-o", tmp_path / "out.pt", "--json")
    assert (done.exit_code, contents(tmp_path)) == (2, before)
    error = done.json["error"]
    assert "no plain data can hold all of it: deep/0/value" in error["message"]
    assert "--drop deep" in error["hint"]
    done = ckptool("convert", tmp_path / "in.pt", "--safe", "--drop", "deep", "-o",
                   tmp_path / "out.pt")  # fmt: skip
    assert done.exit_code == 0
    assert_same_objects(safely(tmp_path / "out.pt"), {"w": weights()})


@pytest.mark.parametrize("whole", ["--safe", "--whole"])
def test_values_in_too_many_levels(whole, ckptool, tmp_path):
    deep = []
    for _ in range(300):
        deep = [deep]
    torch.save({"w": weights(), "deep": deep}, tmp_path / "in.pt",
               _use_new_zipfile_serialization=False)  # fmt: skip
    done = ckptool("convert", tmp_path / "in.pt", whole, "-o", tmp_path / "out.pt", "--json")
    assert "100 levels" in done.json["error"]["message"]


def test_a_state_dict_alone_is_plain_in_any_form(ckptool, tmp_path):
    torch.save({"w": weights(), "args": Other()}, tmp_path / "in.pt")
    done = ckptool("convert", f"{tmp_path / 'in.pt'}#w", "--safe", "-o", tmp_path / "out.pt")
    assert done.exit_code == 0
    assert_same_objects(dict(safely(tmp_path / "out.pt")), weights())


def _is_of_torch(path) -> bool:
    try:
        with open_checkpoint(path) as checkpoint:
            return checkpoint.format.is_rewritable
    except CkptError:
        return False


PLACES = (FIXTURES / "ema", FIXTURES / "genuine", FIXTURES / "formats")
TORCH_FILES = [
    path
    for place in PLACES
    for path in sorted(place.rglob("*"))
    if path.is_file() and _is_of_torch(path) and "torch_fx" not in path.parts
]


def test_there_are_files_of_many_libraries():
    assert len(TORCH_FILES) >= 60


@OWN
@pytest.mark.parametrize("path", one_in(3, TORCH_FILES), ids=lambda p: str(p.relative_to(FIXTURES)))
def test_a_fixture_becomes_plain_or_is_refused(path, ckptool, tmp_path):
    """Nothing between: the safe loader takes the output, which holds the same tensors."""
    done = ckptool("convert", path, "--safe", "-o", tmp_path / "out.pt", "--json")
    if done.exit_code:
        assert done.json["error"]["code"] in {"unsupported", "damaged"}
        assert not (tmp_path / "out.pt").exists()
        return
    safely(tmp_path / "out.pt")
    again = ckptool("convert", tmp_path / "out.pt", "--safe", "-o", tmp_path / "2.pt", "--json")
    assert again.json["plain"] == []
    rows = [ckptool("inspect", each, "--digests", "--json").json["entries"]
            for each in (path, tmp_path / "out.pt")]  # fmt: skip
    old, new = ({row["address"]: row["sha256"] for row in side} for side in rows)
    assert old.items() <= new.items()


# ----------------------------------------------------------------------------------------- upgrades


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_legacy_file_becomes_a_zip(converted, tmp_path, protocol):
    base = torch.arange(60.0).view(6, 10)
    content = {
        "w": weights(), "view": base[1:, ::2], "base": base, "t": base.t(),
        "args": samples.namespace(),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]},
    }  # fmt: skip
    content["again"] = content["w"]
    report = converted(content, "--whole", _use_new_zipfile_serialization=False,
                       pickle_protocol=protocol)  # fmt: skip
    assert report["format"] == "torch-zip"
    assert_same_objects(load(tmp_path / "out.pt"), content)
    assert torch.load(tmp_path / "out.pt", weights_only=False, mmap=True).keys() == content.keys()


def test_parts_of_a_legacy_file_can_be_dropped(converted, tmp_path):
    content = {"w": weights(), "optimizer": {"state": {}, "param_groups": []}, "epoch": 3}
    report = converted(content, "--drop", "epoch", _use_new_zipfile_serialization=False)
    assert report["beside"] == ["epoch"]
    del content["epoch"]
    assert_same_objects(load(tmp_path / "out.pt"), content)


def test_classes_that_nobody_has_stay_as_they_are(ckptool, tmp_path):
    with present() as lab:
        content = {"lab": instances(lab), "w": weights(), "more": [lab.Config]}
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert ckptool("convert", tmp_path / "a.pt", "--whole", "-o", tmp_path / "b.pt").exit_code == 0
    assert_same_objects(loose(tmp_path / "b.pt"), loose(tmp_path / "a.pt"))


@OWN
@pytest.mark.parametrize("path", [FIXTURES / "formats" / name for name in (
    "torch_legacy/plain.pt", "torch_legacy/module.pt", "torch_zip/plain.pt",
    "torch_zip/proto4.pt", "torch_zip/big_endian.pt",
)], ids=lambda p: f"{p.parent.name}/{p.name}")  # fmt: skip
def test_every_container_becomes_a_zip(path, ckptool, tmp_path):
    done = ckptool("convert", path, "--whole", "-o", tmp_path / "out.pt")
    assert done.exit_code == 0, done.stderr
    assert_same_objects(loose(tmp_path / "out.pt"), loose(path))
    assert ckptool("inspect", tmp_path / "out.pt", "--json").json["format"] == "torch-zip"


@OWN
def test_a_tar_becomes_a_zip(ckptool, tmp_path):
    """Its storages are whole there: tensors that shared bytes share them, at other offsets."""
    path = FIXTURES / "formats" / "torch_tar" / "plain.pt"
    assert ckptool("convert", path, "--whole", "-o", tmp_path / "out.pt").exit_code == 0
    assert ckptool("diff", path, tmp_path / "out.pt").exit_code == 0
    old, new = (torch.load(each, weights_only=False) for each in (path, tmp_path / "out.pt"))
    assert _shared(new["state_dict"]) == _shared(old["state_dict"])
    assert list(new) == list(old)


def _shared(tensors: dict) -> list[tuple[str, str, int]]:
    """Pairs that share a storage, with the distance of their beginnings in bytes."""
    names = list(tensors)
    ends = {n: t.untyped_storage().data_ptr() + t.untyped_storage().nbytes()
            for n, t in tensors.items()}  # fmt: skip
    pairs = ((a, b) for at, a in enumerate(names) for b in names[at + 1 :])
    return [
        (a, b, tensors[b].data_ptr() - tensors[a].data_ptr())
        for a, b in pairs
        if tensors[a].data_ptr() <= tensors[b].data_ptr() < ends[a]
    ]


@OWN
@given(data=st.data())
@examples(40)
def test_any_object_stays_what_it_is(data, ckptool, tmp_path_factory):
    pool = data.draw(strategies.tensor_pools(new=False))
    leaves = st.one_of(strategies.one_of_many(pool), strategies.scalars())
    content = {"a": [data.draw(strategies.trees(leaves))], "w": weights()}
    folder = tmp_path_factory.mktemp("whole")
    torch.save(content, folder / "in.pt", _use_new_zipfile_serialization=False)
    done = ckptool("convert", folder / "in.pt", "--whole", "-o", folder / "out.pt")
    assert done.exit_code == 0, done.stderr
    assert_same_objects(load(folder / "out.pt"), content)


def test_a_whole_checkpoint_is_written_once(ckptool, tmp_path):
    model = weights()
    path = save(tmp_path / "a.ckpt", model, average_of(model), **resumable(model))
    done = ckptool("convert", path, "--whole", "-o", tmp_path / "b.ckpt", "--json")
    assert (done.exit_code, done.json["beside"]) == (0, [])
    assert_same_objects(load(tmp_path / "b.ckpt"), load(path))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--whole", "--only", "model"), "--whole writes all parts"),
        (("--whole", "--dtype", "bf16"), "--dtype is for weights"),
        (("--safe", "--map", "a=b"), "--map is for weights"),
        (("--whole", "--drop", "encoder.*"), "no part 'encoder.*'"),
        (("--safe", "--only", "encoder.*"), "no part 'encoder.*'"),
    ],
)
def test_options_that_do_not_fit(args, message, ckptool, tmp_path):
    model = weights()
    path = save(tmp_path / "a.ckpt", model, average_of(model), **resumable(model))
    done = ckptool("convert", path, *args, "-o", tmp_path / "b.ckpt", "--json")
    assert message in done.json["error"]["message"]
    assert not (tmp_path / "b.ckpt").exists()


def test_an_ema_that_is_the_whole_file(ckptool, tmp_path):
    path = FIXTURES / "ema" / "torch" / "swa_bare.pt"
    for how in ("--whole", "--safe"):
        done = ckptool("convert", path, how, "-o", tmp_path / "out.pt", "--force")
        assert done.exit_code == 0, done.stderr


def test_a_folder_is_not_one_object(ckptool, tmp_path):
    torch.save(weights(), tmp_path / "in.pt")
    ckptool("convert", tmp_path / "in.pt", "-o", tmp_path / "in.dcp")
    done = ckptool("convert", tmp_path / "in.dcp", "--whole", "-o", tmp_path / "b.pt", "--json")
    assert "this is dcp" in done.json["error"]["message"]


# --------------------------------------------------------------------------------- the pickles


def test_a_pickle_is_read_as_its_calls():
    tree = literal_of(pickled({"a": [1, 2.5], "b": (None, True), "c": {3}}))
    assert (tree["a"], tree["b"]) == ([1, 2.5], (None, True))
    assert isinstance(tree["c"], Made)
    assert (tree["c"].name, tree["c"].args) == ("builtins.set", ([3],))
