"""``convert --drop optimizer``: the rest is for torch what it was, object by object."""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ckptool import open_checkpoint
from ckptool.commands.parts import Parts
from ckptool.errors import CkptError, UsageError
from ckptool.formats.provenance import KEY
from ckptool.writers.stripped_zip import plan_stripped
from helpers import samples, strategies
from helpers.absent import STUBS, instances, loose, present
from helpers.generated import Generated
from helpers.likeness import assert_same_objects
from helpers.making import average_of, resumable, save, weights
from helpers.paths import FIXTURES, contents
from helpers.tensors import load
from helpers.thinned import examples, one_in

OWN = pytest.mark.filterwarnings("ignore::UserWarning")  # torch has second thoughts about complex32


@pytest.fixture
def path(tmp_path):
    model = weights()
    more = {"args": samples.namespace(), "losses": [0.5, 0.25]}
    return save(tmp_path / "last.ckpt", model, average_of(model), **resumable(model), **more)


def without(path, *keys: str) -> dict:
    content = load(path)
    return {key: value for key, value in content.items() if key not in keys}


@pytest.mark.parametrize("option", [("--drop", "optimizer"), ("--whole",), ("--safe",)], ids=str)
def test_nonfinite_weights_of_a_whole_checkpoint_are_told(option, ckptool, tmp_path):
    model = weights() | {"stem.bias": torch.full((4,), math.nan)}
    path = save(tmp_path / "last.ckpt", model, average_of(weights()), **resumable(model))
    done = ckptool("convert", path, *option, "-o", tmp_path / "out.ckpt", "--json")
    told = {f["address"]: (f["rule"], f["severity"]) for f in done.json["findings"]}
    assert done.exit_code == 0
    assert told.pop("state_dict/stem.bias") == ("CK303", "warning")
    assert told.keys() == (set() if option[0] == "--drop" else OF_THE_OPTIMIZER)
    without = ckptool("convert", path, "--drop", "model", "-o", tmp_path / "less.ckpt", "--json")
    assert "state_dict/stem.bias" not in {f["address"] for f in without.json["findings"]}


OF_THE_OPTIMIZER = {"optimizer/state/1/exp_avg", "optimizer/state/1/exp_avg_sq"}


@pytest.mark.parametrize(
    ("words", "dropped"),
    [
        (("optimizer",), ("optimizer",)),
        (("rng",), ("rng_state",)),
        (("ema", "optimizer"), ("ema_state_dict", "optimizer")),
        (("*epoch*", "args"), ("epoch", "args")),
        (("model",), ("state_dict",)),
    ],
)
def test_parts_by_role_or_key(path, ckptool, tmp_path, words, dropped):
    drops = [arg for word in words for arg in ("--drop", word)]
    report = ckptool("convert", path, *drops, "-o", tmp_path / "out.ckpt", "--json").json
    assert sorted(report["beside"]) == sorted(dropped)
    assert_same_objects(load(tmp_path / "out.ckpt"), without(path, *dropped))
    assert report["tensors"] == ckptool("inspect", tmp_path / "out.ckpt", "--json").json["tensors"][
        "count"
    ]  # fmt: skip


def test_two_roles_keep_these_parts(path, ckptool, tmp_path):
    ckptool("convert", path, "--only", "model", "--only", "ema", "-o", tmp_path / "out.pt")
    assert list(load(tmp_path / "out.pt")) == ["state_dict", "ema_state_dict"]


def test_the_file_is_smaller_by_what_was_dropped(path, ckptool, tmp_path):
    ckptool("convert", path, "--drop", "optimizer", "-o", tmp_path / "out.ckpt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "out.ckpt") as new:
        assert new.testzip() is None
        gone = [info for info in old.infolist() if info.filename not in new.namelist()]
        kept = {name.partition("/")[2] for name in new.namelist()}
        assert len([info for info in gone if "/data/" in info.filename]) == 12
        assert {"data.pkl", "byteorder", "version", "ckptool.json"} <= kept
        assert new.infolist()[0].filename.endswith("/data.pkl")
        starts = [info.header_offset for info in new.infolist()]
    assert starts == sorted(starts)
    assert torch.load(tmp_path / "out.ckpt", weights_only=False, mmap=True).keys()


def test_from_then_on_it_says_where_it_comes_from(path, ckptool, tmp_path):
    ckptool("convert", path, "--drop", "optimizer", "-o", tmp_path / "one.ckpt")
    ckptool("convert", tmp_path / "one.ckpt", "--drop", "args", "-o", tmp_path / "two.ckpt")
    ckptool("promote-ema", path, "-o", tmp_path / "promoted.ckpt")
    ckptool("convert", tmp_path / "promoted.ckpt", "--drop", "optimizer", "-o", tmp_path / "p.ckpt")
    notes = {}
    for name in ("one", "two", "p"):
        with open_checkpoint(tmp_path / f"{name}.ckpt") as checkpoint:
            notes[name] = checkpoint.metadata[KEY]
    assert '"source": "last.ckpt"' in notes["one"]
    assert notes["two"] == notes["one"]  # the first one stays
    assert '"command": "promote-ema"' in notes["p"]


OTHERWISE = b"U\x09optimizerU\x05ghost"  # the key as a text of Python 2, and a value


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"}q\0(", b"}q\0(" + OTHERWISE),
        (b"}q\0(", b"(" + OTHERWISE + b"dq\0("),  # in the instruction that makes the dict
        (b"u.", OTHERWISE + b"u."),
    ],
    ids=["before", "made with", "after"],
)
def test_a_part_that_would_still_be_there(path, ckptool, tmp_path, old, new):
    with zipfile.ZipFile(path) as given, zipfile.ZipFile(tmp_path / "odd.pt", "w") as odd:
        for info in given.infolist():
            data = given.read(info)
            if info.filename.endswith("/data.pkl"):
                at = data.index(old) if old != b"u." else data.rindex(old)
                data = data[:at] + new + data[at + len(old) :]
            odd.writestr(info.filename, data)
    assert "optimizer" in load(tmp_path / "odd.pt")
    done = ckptool("convert", tmp_path / "odd.pt", "--drop", "optimizer", "-o", tmp_path / "out.pt")
    assert done.exit_code == 2
    assert "sets this key in several ways" in done.stderr
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "force"])
def test_a_damaged_pickle_gets_no_new_checksum(path, ckptool, tmp_path, force):
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack(">d", 0.25)) + 7] ^= 1  # one of the losses
    path.write_bytes(data)
    done = ckptool("convert", path, "--drop", "optimizer", "-o", tmp_path / "out.pt", *force)
    assert done.exit_code == 2
    assert "data.pkl do not fit its checksum" in done.stderr
    assert not (tmp_path / "out.pt").exists()


# --------------------------------------------------------------------------- what is lost by it


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("torch_ema/all.pt", "ema/shadow_params"),
        ("nemo/optimizer.ckpt", "optimizer_states/0/ema"),
        ("fairseq/checkpoint3.pt", "extra_state/ema"),
    ],
)  # fmt: skip
def test_an_ema_that_is_not_known_without_the_model(ckptool, tmp_path, name, address):
    """Unnamed lists, and names that nothing marks: they are found by the model that they fit."""
    path = FIXTURES / "ema" / name
    done = ckptool("convert", path, "--drop", "model", "-o", tmp_path / "out.pt", "--json")
    (found,) = [row for row in done.json["findings"] if row["rule"] == "CK401"]
    assert (found["address"], found["severity"]) == (address, "warning")
    assert ckptool("inspect", tmp_path / "out.pt", "--json").json["ema"]["selected"] is None
    done = ckptool("convert", path, "--drop", "*epoch*", "-o", tmp_path / "2.pt", "--json")
    assert "CK401" not in str(done.json.get("findings"))


def test_an_ema_with_a_name_needs_no_model(path, ckptool, tmp_path):
    done = ckptool("convert", path, "--drop", "model", "-o", tmp_path / "out.pt", "--json")
    assert done.json["findings"] == []
    assert ckptool("verify", tmp_path / "out.pt", "--require", "ema").exit_code == 0


def test_tensors_that_are_loose_beside_an_optimizer(ckptool, tmp_path, refused):
    model = weights()
    content = {**model, "optimizer": resumable(model)["optimizer"], "epoch": 3}
    torch.save(content, tmp_path / "loose.pt")
    error = refused(tmp_path / "loose.pt", "--drop", "optimiser", "-o", tmp_path / "out.pt")
    assert error["message"] == "the checkpoint has no part 'optimiser'"
    assert "optimizer" in error["hint"]
    done = ckptool("convert", tmp_path / "loose.pt", "--drop", "optimizer", "-o", tmp_path / "o.pt")
    assert done.exit_code == 0
    assert_same_objects(load(tmp_path / "o.pt"), without(tmp_path / "loose.pt", "optimizer"))


def test_a_state_dict_has_no_parts(refused, tmp_path):
    torch.save(weights(), tmp_path / "w.pt")
    error = refused(tmp_path / "w.pt", "--whole", "--drop", "optimizer", "-o", tmp_path / "out.pt")
    assert error["hint"] == "it is one state dict"


# ------------------------------------------------------------------------------ torch is the judge


def is_zip_of_a_dict(path) -> bool:
    """Whether it is a file of torch.save that holds a dict of several parts."""
    if not (path.is_file() and zipfile.is_zipfile(path)):
        return False
    try:
        with open_checkpoint(path) as checkpoint:
            tree = checkpoint.tree if checkpoint.format_name == "torch-zip" else None
    except CkptError:
        return False
    return isinstance(tree, dict) and 1 < len(tree) < 30 and all(type(key) is str for key in tree)


PLACES = (FIXTURES / "ema", FIXTURES / "genuine")
ZIPS = [
    path
    for place in PLACES
    for path in sorted(place.rglob("*"))
    if is_zip_of_a_dict(path) and "torch_fx" not in path.parts  # each load makes another class
]


def test_there_are_fixtures_of_many_libraries():
    assert len(ZIPS) >= 40
    assert len({path.relative_to(FIXTURES).parts[:2] for path in ZIPS}) >= 20


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", one_in(3, ZIPS), ids=lambda p: str(p.relative_to(FIXTURES)))
def test_each_part_of_the_fixtures_can_be_dropped(path, ckptool, tmp_path):
    """By its plan: a part called as a role stands for more of them on the command line."""
    try:
        keys = list(loose(path))
    except (AttributeError, TypeError):
        pytest.skip("torch loads it only with the classes of its library")
    for key in keys:
        with open_checkpoint(path) as checkpoint:
            plan = plan_stripped(checkpoint, [(key,)])
        made = tmp_path / "made.pt"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
            for record in plan.pieces:
                new.writestr(record.name, old.read(record.name))
            new.writestr(f"{plan.folder}data.pkl", plan.pickle)
        wanted = loose(path)
        del wanted[key]
        assert_same_objects(loose(made), wanted)


@OWN
@given(data=st.data())
@examples(60)
def test_any_checkpoint_stays_what_it_is(data, ckptool, tmp_path_factory):
    """Element types, strides, ties and views, also between what goes and what stays."""
    pool = data.draw(strategies.tensor_pools(new=True))
    leaves = st.one_of(strategies.one_of_many(pool), strategies.scalars())
    content = {f"part{i}": [data.draw(strategies.trees(leaves))] for i in range(4)}
    content["w"] = weights()
    folder = tmp_path_factory.mktemp("parts")
    torch.save(content, folder / "in.pt")
    dropped = data.draw(st.lists(st.sampled_from(list(content)), min_size=1, max_size=4))
    drops = [arg for key in dropped for arg in ("--drop", key)]
    done = ckptool("convert", folder / "in.pt", *drops, "-o", folder / "out.pt")
    assert done.exit_code == 0, done.stderr
    assert_same_objects(load(folder / "out.pt"), without(folder / "in.pt", *dropped))


@OWN
@pytest.mark.parametrize("seed", one_in(12, range(200)))
def test_what_stays_of_a_generated_checkpoint_is_what_it_was(seed, ckptool, tmp_path):
    """Real optimizers and schedulers, ties, views, random states, objects that are met twice."""
    made = Generated(seed)
    torch.save(made.content, tmp_path / "in.pt", **made.how)
    drops = [arg for key in made.drops for arg in ("--drop", key)]
    done = ckptool("convert", tmp_path / "in.pt", *drops, "-o", tmp_path / "out.pt", "--json")
    assert done.exit_code == 0, done.stdout
    gone = done.json["beside"]  # a key that is a role too means all parts of that role
    assert set(made.drops) <= set(gone)
    assert_same_objects(load(tmp_path / "out.pt"), without(tmp_path / "in.pt", *gone))


def test_classes_that_nobody_has_stay_as_they_are(ckptool, tmp_path):
    with present() as lab:
        torch.save({"lab": instances(lab), "w": weights(), "more": [lab.Config]}, tmp_path / "a.pt")
    assert ckptool("convert", tmp_path / "a.pt", "--drop", "w", "-o", tmp_path / "b.pt")
    found, wanted = (
        torch.load(tmp_path / name, weights_only=False, pickle_module=STUBS)
        for name in ("b.pt", "a.pt")
    )
    del wanted["w"]
    assert_same_objects(found, wanted)


# ----------------------------------------------------------------------------------------- refusals


@pytest.fixture
def refused(refusing):
    return partial(refusing, "convert")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--drop", "nothing"), "no part 'nothing'"),
        (("--drop", "optimiser"), "no part 'optimiser'"),
        (("--dtype", "bf16"), "--dtype is for weights"),
        (("--map", "a=b"), "--map is for weights"),
        (("--wrap", "x"), "--wrap is for weights"),
        (("--only", "model"), "no tensor's name fits 'optimizer'"),
    ],
)
def test_options_that_do_not_fit(path, refused, tmp_path, more, message):
    assert (
        message in refused(path, "--drop", "optimizer", *more, "-o", tmp_path / "o.pt")["message"]
    )


def test_a_whole_checkpoint_is_a_torch_file(path, refused, tmp_path):
    error = refused(path, "--drop", "optimizer", "-o", tmp_path / "out.safetensors")
    assert error["message"] == "only a torch file holds a whole checkpoint"
    assert "--only model" in error["hint"]


def test_nothing_is_replaced_unasked(path, refused, ckptool, tmp_path):
    (tmp_path / "out.pt").write_bytes(b"mine")
    refused(path, "--drop", "optimizer", "-o", tmp_path / "out.pt")
    refused(path, "--drop", "optimizer", "-o", path, "--force")
    done = ckptool("convert", path, "--drop", "optimizer", "-o", tmp_path / "out.pt", "--force")
    assert done.exit_code == 0


def test_a_dry_run_writes_nothing(path, ckptool, tmp_path):
    before = contents(tmp_path)
    done = ckptool("convert", path, "--drop", "optimizer", "-o", tmp_path / "o.pt", "--dry-run")
    assert "would write" in done.stdout
    assert contents(tmp_path) == before


def test_a_changed_byte_is_found_on_the_way(path, refused, ckptool, tmp_path):
    data = bytearray(path.read_bytes())
    values = weights()["stem.weight"].numpy().tobytes()
    data[data.index(values)] ^= 1
    path.write_bytes(data)
    error = refused(path, "--drop", "optimizer", "-o", tmp_path / "out.pt")
    assert "do not fit its checksum" in error["message"]
    done = ckptool("convert", path, "--drop", "optimizer", "-o", tmp_path / "out.pt", "--force")
    assert done.exit_code == 0
    assert ckptool("verify", tmp_path / "out.pt", "--bytes").exit_code == 1  # the damage shows


def test_other_containers_are_refused(path, refused, tmp_path):
    (tmp_path / "pickled.pt").write_bytes(pickle.dumps(load(path)))
    error = refused(tmp_path / "pickled.pt", "--drop", "optimizer", "-o", tmp_path / "o.pt")
    assert "this is pickle" in error["message"]
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    error = refused(tmp_path / "packed.pt", "--drop", "optimizer", "-o", tmp_path / "o.pt")
    assert "compressed" in error["message"]
    save_file(weights(), tmp_path / "w.safetensors")
    error = refused(tmp_path / "w.safetensors", "--drop", "optimizer", "-o", tmp_path / "o.pt")
    assert error["message"] == "no tensor's name fits 'optimizer'"


def test_words_for_parts():
    parts = Parts(
        ("model", "opt_g", "opt_d", "epoch"), {"opt_g": "optimizer", "opt_d": "optimizer"}
    )
    assert parts.named("optimizer") == {"opt_g", "opt_d"}
    assert parts.named("opt_g") == {"opt_g"}
    assert parts.all_named(["optimizer", "ep*"]) == {"opt_g", "opt_d", "epoch"}
    with pytest.raises(UsageError, match="no part 'x'"):
        parts.all_named(["x"])
