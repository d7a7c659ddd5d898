"""``ckptool diff``: the answer, the exit code, and the evidence for every kind of difference."""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ckptool.tree import walking
from ckptool.tree.addresses import format_address
from helpers.making import average_of, resumable, save, weights
from helpers.output import environment
from helpers.paths import FIXTURES
from helpers.samples import EVERYWHERE
from helpers.thinned import one_in

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch, of its own types

FILES = sorted(
    path
    for path in FIXTURES.rglob("*")
    if path.suffix in {".pt", ".pth", ".ckpt", ".pkl", ".tar", ".safetensors"}
)
HOSTILE = [path for path in FILES if path.parent.name in {"hostile", "malformed"}]
PACKAGES = FIXTURES / "genuine" / "torch_package"  # named as what they are, and not read
TEXTS = {"brain.ckpt", "counter.ckpt"}  # of SpeechBrain: parts of a folder, no checkpoints
CHECKPOINTS = [
    p for p in FILES if p not in HOSTILE and p.parent != PACKAGES and p.name not in TEXTS
]
DCP = [path.parent for path in FIXTURES.rglob(".metadata")]


def pair(tmp_path, one, other):
    paths = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(one, paths[0])
    torch.save(other, paths[1])
    return paths


@pytest.fixture
def compare(ckptool, tmp_path):
    """``compare(one, other, *options)``: the document for two trees that torch saved."""

    def run(one, other, *options):
        done = ckptool("diff", *pair(tmp_path, one, other), "--json", *options)
        assert done.exit_code == (0 if done.json["equal"] else 1), done
        return done.json

    return run


def kinds(document, part="tensors"):
    return {row["address"]: row["kind"] for row in document[part]}


# ----------------------------------------------------------------------------------------- the same


@pytest.mark.parametrize(
    "path", one_in(4, CHECKPOINTS) + DCP, ids=lambda p: str(p.relative_to(FIXTURES))
)
def test_every_fixture_equals_itself(path, ckptool):
    done = ckptool("diff", path, path, "--strict", "--json")
    assert (done.exit_code, done.json["equal"]) == (0, True)
    assert (done.json["tensors"], done.json["values"]) == ([], [])


@pytest.mark.parametrize("path", one_in(4, HOSTILE), ids=lambda p: p.name)
def test_hostile_files_are_equal_to_themselves_or_an_error(path, ckptool):
    done = ckptool("diff", path, path, "--json")
    assert done.exit_code in {0, 2}, done
    assert done.exit_code == 2 or done.json["equal"]


@pytest.mark.parametrize("make", EVERYWHERE, ids=lambda make: make.__name__)
def test_whatever_torch_saves_equals_a_copy(make, ckptool, tmp_path):
    torch.save(make(), tmp_path / "a.pt")
    shutil.copy(tmp_path / "a.pt", tmp_path / "b.pt")
    done = ckptool("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--strict")
    assert (done.exit_code, done.split()[0]) == (0, "equal")


def test_the_keys_of_the_document_come_in_the_order_that_is_promised(compare):
    document = compare({"w": torch.ones(2)}, {"w": torch.zeros(2)})
    assert list(document)[:5] == ["schema", "equal", "summary", "tensors", "values"]
    assert document["schema"] == "ckptool/diff/1"


def test_the_same_weights_in_another_format_are_equal(ckptool, tmp_path):
    torch.save(weights(), tmp_path / "a.pt")
    torch.save(weights(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(weights(), tmp_path / "b.safetensors")
    for other in ("old.pt", "b.safetensors"):
        assert ckptool("diff", tmp_path / "a.pt", tmp_path / other).exit_code == 0


def test_strides_sharing_and_order_do_not_count_unless_asked(compare):
    grid = torch.arange(12.0).reshape(3, 4)
    one = {"grid": grid, "tied": grid, "last": torch.ones(1)}
    other = {"last": torch.ones(1), "tied": grid.clone(), "grid": grid.t().contiguous().t()}
    assert compare(one, other)["equal"]
    strict = compare(one, other, "--strict")
    assert kinds(strict) == {"grid": "layout", "tied": "layout"}


def test_a_container_reachable_twice_equals_two_copies(compare):
    inner = {"w": torch.ones(2), "n": 1}
    assert compare({"a": inner, "b": inner}, {"a": inner, "b": dict(inner)})["equal"]


def test_sharing_that_unfolds_without_end_is_refused(ckptool, tmp_path):
    tree = [1]
    for _ in range(60):
        tree = [tree, tree]
    torch.save(tree, tmp_path / "a.pt")
    done = ckptool("diff", tmp_path / "a.pt", tmp_path / "a.pt")
    assert (done.exit_code, "unfold" in done.stderr) == (2, True)


def test_what_contains_itself_equals_itself(ckptool, tmp_path):
    tree = {"w": torch.ones(2)}
    tree["self"] = tree
    for name in ("a.pt", "b.pt"):
        torch.save(tree, tmp_path / name)
    assert ckptool("diff", tmp_path / "a.pt", tmp_path / "b.pt").exit_code == 0


# ---------------------------------------------------------------------------------------- different


def test_each_kind_of_difference_is_named(compare):
    one = {"gone": torch.ones(2), "shape": torch.ones(2), "dtype": torch.ones(2),
           "value": torch.ones(2), "same": torch.ones(3)}  # fmt: skip
    other = {"new": torch.zeros(5), "shape": torch.ones(3), "dtype": torch.ones(2).half(),
             "value": torch.ones(2) + 1, "same": torch.ones(3)}  # fmt: skip
    document = compare(one, other)
    assert kinds(document) == {"gone": "removed", "new": "added", "shape": "shape",
                               "dtype": "dtype", "value": "value"}  # fmt: skip
    assert document["summary"]["tensors"] == {
        "compared": 4, "equal": 1, "removed": 1, "added": 1, "shape": 1, "dtype": 1, "value": 1,
    }  # fmt: skip


def test_another_type_is_a_difference_and_is_measured(compare):
    (row,) = compare({"w": torch.tensor([1.0, 0.1])}, {"w": torch.tensor([1.0, 0.1]).half()})[
        "tensors"
    ]
    assert row["dtype"] == ["float32", "float16"]
    assert row["distance"]["differing"] == 1
    assert 0 < row["distance"]["max_abs"] < 1e-4


def test_tensors_with_another_name_are_found_again(compare):
    torch.manual_seed(0)
    w = {name: torch.randn(3, 4) for name in ("a.weight", "b.weight", "c.weight")}
    wrapped = {f"module.{name}": tensor + 1 for name, tensor in w.items()}
    assert set(kinds(compare(w, wrapped)).values()) == {"value"}
    moved = {"a.weight": w["a.weight"], "x.weight": w["b.weight"], "c.weight": w["c.weight"]}
    (row,) = compare(w, moved)["tensors"]
    assert (row["kind"], row["address"], row["other"]) == ("renamed", "b.weight", "x.weight")
    prefixed = {f"net.body.{name}": tensor for name, tensor in w.items()}
    assert set(kinds(compare(w, prefixed)).values()) == {"renamed"}
    changed = {f"net.body.{name}": tensor + 1 for name, tensor in w.items()}
    rows = compare(w, changed)["tensors"]
    assert {row["other"] for row in rows} == set(changed)
    assert all(row["distance"]["differing"] == 12 for row in rows)


def test_equal_contents_under_several_names_are_not_guessed(compare):
    one = {"left": torch.zeros(4), "right": torch.zeros(4)}
    other = {"x": torch.zeros(4), "y": torch.zeros(4)}
    assert sorted(kinds(compare(one, other)).values()) == ["added", "added", "removed", "removed"]


def test_maps_rename_either_side(compare):
    one = {"module.w": torch.ones(2), "b": torch.ones(3)}
    other = {"w": torch.ones(2), "net.b": torch.ones(3)}
    assert not compare(one, other)["equal"]
    assert compare(one, other, "--map", r"^module\.=", "--map", r"^net\.(.*)=\1")["equal"]


def test_plain_values_are_compared(compare):
    one = {"epoch": 3, "lr": 0.1, "name": "x", "flag": True, "none": None, "gone": 1, "type": 1,
           "nan": math.nan, "wave": 1j, "deep": [{"a": (1, 2)}], "raw": b"x" * 99}  # fmt: skip
    other = one | {"epoch": 4, "lr": 0.2, "name": "y", "flag": False, "none": 0, "type": 1.0,
                   "deep": [{"a": (1, 3)}], "raw": b"y" * 99}  # fmt: skip
    del other["gone"]
    assert kinds(compare(one, other), "values") == {
        "epoch": "value", "lr": "value", "name": "value", "flag": "value", "none": "type",
        "gone": "removed", "type": "type", "deep/0/a/1": "value", "raw": "value",
    }  # fmt: skip


def test_objects_are_compared_by_class_arguments_and_state(compare):
    space = argparse.Namespace
    base = space(lr=1e-3, layers=(2, 3), dtype=torch.float32)
    assert compare({"args": base}, {"args": space(**vars(base))})["equal"]
    changed = space(**{**vars(base), "lr": 1e-4, "dtype": torch.float16})
    assert set(kinds(compare({"args": base}, {"args": changed}), "values")) == {
        "args/lr",
        "args/dtype",
    }


def test_a_module_is_compared_by_its_settings_too(compare):
    def net(p, training):
        return torch.nn.Sequential(torch.nn.Dropout(p)).train(training)

    found = compare({"net": net(0.1, True)}, {"net": net(0.2, True)})
    assert kinds(found, "values") == {"net/0.p": "value"}


def test_random_states_are_compared(compare):
    def states(seed):
        return {"torch": torch.Generator().manual_seed(seed).get_state(),
                "numpy": np.random.RandomState(seed).get_state(),
                "python": (3, tuple(range(seed, seed + 625)), None)}  # fmt: skip

    assert compare({"rng": states(1)}, {"rng": states(1)})["equal"]
    document = compare({"rng": states(1)}, {"rng": states(2)})
    assert kinds(document) == {"rng/torch": "value", "rng/numpy/1": "value"}
    (row,) = document["values"]
    assert (row["address"], row["note"]) == ("rng/python/1", "625 of 625 items differ")


def test_quantized_tensors_are_compared_by_what_they_stand_for(compare):
    values = torch.linspace(-1, 1, 12).reshape(3, 4)

    def tensor(scale, zero=3):
        return torch.quantize_per_tensor(values, scale, zero, torch.qint8)

    def channel(scales):
        return torch.quantize_per_channel(
            values, torch.tensor(scales), torch.zeros(3), 0, torch.qint8
        )

    assert compare({"q": tensor(0.1)}, {"q": tensor(0.1)})["equal"]
    for one, other in ((tensor(0.1), tensor(0.11)), (tensor(0.5), tensor(0.5, 4)),
                       (channel([0.1, 0.2, 0.3]), channel([0.1, 0.2, 0.4]))):  # fmt: skip
        wanted = (one.dequantize().double() - other.dequantize().double()).abs().max()
        if not wanted:
            assert compare({"q": one}, {"q": other})["equal"]
            continue
        (row,) = compare({"q": one}, {"q": other})["tensors"]
        assert row["distance"]["max_abs"] == pytest.approx(float(wanted), rel=1e-6)
    assert compare({"q": one}, {"q": other}, "--atol", "1")["equal"]


def test_types_without_arithmetic_are_compared_by_their_codes(compare):
    codes = torch.arange(6, dtype=torch.uint8)
    one, other = (t.view(torch.float4_e2m1fn_x2) for t in (codes, codes.clone().index_fill_(
        0, torch.tensor([2]), 99)))  # fmt: skip
    assert compare({"w": one}, {"w": one.clone()})["equal"]
    (row,) = compare({"w": one}, {"w": other}, "--atol", "1e9")["tensors"]
    assert (row["kind"], row["distance"]) == ("value", None)
    assert "1 codes differ" in row["note"]


def test_sparse_tensors_are_compared_by_their_parts(compare):
    def sparse(value):
        return torch.tensor([[0.0, value], [2.0, 0.0]]).to_sparse()

    assert compare({"s": sparse(1.0)}, {"s": sparse(1.0)})["equal"]
    assert kinds(compare({"s": sparse(1.0)}, {"s": sparse(1.5)})) == {"s/values": "value"}


def test_tensors_without_values_are_said_to_be_unread(compare):
    meta = {"w": torch.empty(3, device="meta")}
    document = compare(meta, meta)
    assert document["equal"]
    assert "no stored values" in document["summary"]["not_compared"][0]
    assert kinds(compare(meta, {"w": torch.empty(3)})) == {"w": "value"}


def test_conjugated_and_big_endian_values_are_what_they_mean(compare, ckptool, fixtures):
    waves = torch.arange(8.0).view(torch.complex64)
    assert compare({"w": waves.conj()}, {"w": waves.conj().resolve_conj()})["equal"]
    big, plain = (fixtures / "formats" / "torch_zip" / f"{n}.pt" for n in ("big_endian", "plain"))
    done = ckptool("diff", big, plain, "--json")
    assert not [row for row in done.json["tensors"] if row["kind"] == "value"]


# --------------------------------------------------------------------------------- the first, order


def trained(change=None):
    model = weights()
    tree = {"state_dict": model, **resumable(model)}
    if change:
        change(tree)
    return tree


@pytest.mark.parametrize(
    ("change", "section", "role"),
    [
        (lambda t: t["state_dict"]["stem.weight"].add_(1e-3), "state_dict", "model"),
        (lambda t: t["optimizer"]["state"][1]["exp_avg"].add_(1), "optimizer", "optimizer"),
        (lambda t: t["rng_state"].add_(1), "rng_state", "rng"),
        (lambda t: t.update(epoch=8), "epoch", ""),
    ],
)
def test_the_first_section_that_diverges_is_named(compare, change, section, role, ckptool):
    def also_later(tree):
        change(tree)
        tree["rng_state"].add_(3)

    first = compare(trained(), trained(also_later))["summary"]["first"]
    assert (first["section"], first["role"]) == (section, role)


def test_the_first_is_by_the_order_of_the_tree_not_by_size(compare):
    one = {"a": torch.ones(2), "b": torch.ones(2)}
    other = {"b": torch.ones(2) * 100, "a": torch.ones(2) + 1e-6}
    assert compare(one, other)["summary"]["first"]["address"] == "a"


# ---------------------------------------------------------------------------- tolerances, selection


def test_the_most_specific_tolerance_wins(compare):
    one = {"net.delta_A": torch.zeros(2), "net.w": torch.zeros(2), "loss": 1.0}
    other = {"net.delta_A": torch.full((2,), 1e-9), "net.w": torch.full((2,), 1e-13), "loss": 1.001}
    asked = ("--atol", "1e-12", "--tolerance", "*.delta_*=1e-8", "--tolerance", "loss=0,0.01")
    document = compare(one, other, *asked)
    assert document["equal"]
    assert kinds(document) == {"net.delta_A": "within", "net.w": "within"}
    assert kinds(document, "values") == {"loss": "within"}
    strictly = compare(one, other, *asked, "--tolerance", "net.delta_A=0")
    assert kinds(strictly) == {"net.delta_A": "value", "net.w": "within"}


def test_of_equally_specific_tolerances_the_later_wins(compare):
    one, other = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    for first, second, equal in (("w=0", "w=2", True), ("w=2", "w=0", False)):
        found = compare(one, other, "--tolerance", first, "--tolerance", second)
        assert found["equal"] is equal


def test_no_tolerance_covers_integers_or_what_is_not_finite(compare):
    found = compare(
        {"n": torch.tensor(5), "x": torch.tensor([1.0]), "k": 5, "f": torch.tensor([True])},
        {"n": torch.tensor(6), "x": torch.tensor([math.nan]), "k": 6, "f": torch.tensor([False])},
        "--atol", "100", "--rtol", "100",
    )  # fmt: skip
    assert kinds(found) == {"n": "value", "x": "value", "f": "value"}
    assert kinds(found, "values") == {"k": "value"}
    assert next(r for r in found["tensors"] if r["address"] == "x")["distance"]["nonfinite"] == 1


def test_ulp_counts_steps(compare):
    one = {"w": torch.tensor([1.0])}
    other = {"w": torch.nextafter(torch.tensor([1.0]), torch.tensor([2.0]))}
    assert not compare(one, other)["equal"]
    assert compare(one, other, "--ulp", "1")["equal"]


def test_globs_choose_what_is_compared(compare):
    one = {"a.w": torch.ones(1), "b.w": torch.ones(1), "time": 1}
    other = {"a.w": torch.ones(1), "b.w": torch.zeros(1), "time": 2}
    assert compare(one, other, "--match", "a.*")["equal"]
    assert compare(one, other, "--ignore", "b.*", "--ignore", "time")["equal"]
    assert kinds(compare(one, other, "--ignore", "b.*"), "values") == {"time": "value"}


def parted(factor):
    model = {"net.w": torch.full((2, 2), factor), "net.b": torch.full((2,), factor)}
    state = {index: {"exp_avg": tensor} for index, tensor in enumerate(model.values())}
    adam = {"state": state, "param_groups": [{"lr": factor, "params": [0, 1]}]}
    return {"student": model, "adam": adam, "epoch": factor}


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (("--ignore", "optimizer"), {"student/net.w", "student/net.b", "epoch"}),
        (("--ignore", "adam"), {"student/net.w", "student/net.b", "epoch"}),
        (("--match", "model"), {"student/net.w", "student/net.b"}),
        (("--match", "model", "--match", "epoch"), {"student/net.w", "student/net.b", "epoch"}),
        (("--match", "student", "--ignore", "*.w"), {"student/net.b"}),
        (("--match", "model", "--map", "^student/=teacher/"), {"teacher/net.w", "teacher/net.b"}),
    ],
    ids=lambda words: " ".join(sorted(words)),
)
def test_a_role_or_a_top_level_key_stands_for_all_of_it(words, left, compare):
    document = compare(parted(1.0), parted(2.0), *words)
    assert kinds(document).keys() | kinds(document, "values").keys() == left
    assert document["unused"] == []


def test_a_role_that_only_one_side_has_stands_for_the_key_on_both(compare):
    one, other = parted(1.0), parted(2.0)
    other["adam"] = {"note": 1}  # no longer of the form of an optimizer
    assert kinds(compare(one, other, "--ignore", "optimizer"), "values").keys() == {"epoch"}


def test_weights_at_the_top_have_a_role_too(ckptool, tmp_path):
    one = {"net.w": torch.ones(2, 2), "net.b": torch.ones(2)}
    done = ckptool("diff", *pair(tmp_path, one, parted(2.0)), "--match", "model", "--json")
    assert kinds(done.json).keys() == {"net.w", "net.b"}
    assert kinds(done.json, "values") == {}


def test_the_configuration_gives_the_options(compare, tmp_path, monkeypatch):
    (tmp_path / "ckptool.toml").write_text(
        "[diff]\natol = 1e-3\nignore = [\"time\"]\nmap = ['^module\\.=']\n"
        '[diff.tolerance]\n"*.loose" = [1.0, 0.0]\n"tight" = 0\n'
    )
    monkeypatch.chdir(tmp_path)
    one = {"w": torch.zeros(1), "x.loose": torch.zeros(1), "tight": torch.zeros(1), "time": 1}
    other = {"module.w": torch.full((1,), 1e-4), "x.loose": torch.full((1,), 0.9),
             "tight": torch.zeros(1), "time": 2}  # fmt: skip
    ours = ("--config", tmp_path / "ckptool.toml")
    assert compare(one, other, *ours)["equal"]
    other["tight"] = torch.full((1,), 1e-4)
    assert kinds(compare(one, other, *ours))["tight"] == "value"
    assert kinds(compare(one, other, *ours, "--atol", "0"))["w"] == "value"


@pytest.mark.parametrize("text", ["atoll = 1", "atol = 'x'", "strict = 1", "match = 'x'"])
def test_a_configuration_that_means_nothing_is_refused(ckptool, tmp_path, monkeypatch, text):
    (tmp_path / "ckptool.toml").write_text(f"[diff]\n{text}\n")
    monkeypatch.chdir(tmp_path)
    paths = pair(tmp_path, {"w": torch.ones(1)}, {"w": torch.ones(1)})
    done = ckptool("diff", *paths)
    assert (done.exit_code, "ckptool.toml" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "options",
    [("--tolerance", "x"), ("--tolerance", "x=-1"), ("--tolerance", "x=1,2,3"), ("--map", "(=x"),
     ("--map", r"x=\1"), ("--atol", "-1"), ("--atol", "nan"), ("--stat", "--name-only"),
     ("--device", "tpu"), ("--map", ".*=one")],
    ids=" ".join,
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(ckptool, tmp_path, options):
    paths = pair(tmp_path, {"w": torch.ones(1), "v": torch.ones(2)}, {"w": torch.ones(1)})
    done = ckptool("diff", *paths, *options)
    assert (done.exit_code, done.stdout) == (2, ""), done
    assert done.stderr.startswith("error: ")


# ----------------------------------------------------------------------------------------- operands


def test_roles_name_the_averaged_and_the_raw_weights(ckptool, tmp_path):
    model = weights()
    path = save(tmp_path / "last.ckpt", model, **resumable(model))
    save_file(average_of(model), tmp_path / "ema.safetensors")
    save_file(model, tmp_path / "raw.safetensors")
    assert ckptool("diff", f"{path}#@ema", tmp_path / "ema.safetensors").exit_code == 0
    assert ckptool("diff", f"{path}#@model", tmp_path / "raw.safetensors").exit_code == 0
    assert ckptool("diff", f"{path}#@model", f"{path}#@ema").exit_code == 1


@pytest.mark.parametrize(
    "path", sorted((FIXTURES / "ema").rglob("*.averaged.safetensors")), ids=lambda p: p.stem
)
def test_the_averages_of_every_layout_are_those_of_the_library(ckptool, path, tmp_path):
    stem = path.name.removesuffix(".averaged.safetensors")
    source = next((p for p in path.parent.iterdir()
                   if p.stem == stem and not p.name.endswith(".safetensors")), None)  # fmt: skip
    if source is None:
        pytest.skip("the checkpoint has another name")
    extracted = tmp_path / "ema.safetensors"
    if ckptool("extract-ema", source, "-o", extracted, "--ties", "each").exit_code:
        assert ckptool("diff", f"{source}#@ema", extracted).exit_code == 2
    else:
        assert ckptool("diff", f"{source}#@ema", extracted).exit_code == 0


def test_a_whole_checkpoint_beside_bare_weights_gets_a_hint(ckptool, tmp_path):
    path = save(tmp_path / "last.ckpt", weights(), epoch=3)
    save_file(weights(), tmp_path / "raw.safetensors")
    done = ckptool("diff", tmp_path / "raw.safetensors", path)
    assert f"compare it with {path}#@model" in done
    assert ckptool("diff", path, path, "--json").json["hint"] is None


def test_addresses_name_parts(ckptool, tmp_path):
    tree = {"a/b": {"x*": torch.ones(2)}, "state": {"ema.w": torch.ones(2), "w": torch.ones(2)}}
    torch.save(tree, tmp_path / "a#1.pt")
    path = tmp_path / "a#1.pt"
    key = format_address(("a/b", "x*"))
    assert ckptool("diff", f"{path}#{key}", f"{path}#state/w").exit_code == 0
    assert ckptool("diff", f"{path}#state/ema.*", f"{path}#state/w*").exit_code == 1
    assert ckptool("diff", path, path).exit_code == 0


@pytest.mark.parametrize(
    ("tree", "hint"),
    [
        (
            {
                "model": weights(),
                "ema_1": average_of(weights()),
                "ema_2": average_of(average_of(weights())),
            },
            "#ema_1",
        ),
        ({"model": weights()}, "#ADDRESS"),
    ],
)
def test_hints_name_operands_and_no_options_that_diff_lacks(tree, hint, ckptool, tmp_path):
    path = tmp_path / "a.pt"
    torch.save(tree, path)
    done = ckptool("diff", f"{path}#@ema", path)
    assert done.exit_code == 2
    assert f"{path}{hint}" in done.stderr
    assert "--ema" not in done.stderr
    assert "extract-ema" not in done.stderr


@pytest.mark.parametrize("address", ["nowhere", "epoch/x", "nope*", "@ema", "@teacher"])
def test_an_address_that_is_not_there_cannot_be_compared(ckptool, tmp_path, address):
    torch.save({"state_dict": weights(), "epoch": 1}, tmp_path / "a.pt")
    done = ckptool("diff", f"{tmp_path}/a.pt#{address}", tmp_path / "a.pt")
    assert (done.exit_code, done.stdout) == (2, "")


def test_damage_is_an_error_and_no_difference(ckptool, tmp_path):
    torch.save(weights(), tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    for name, data in {"short": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}.items():
        (tmp_path / name).write_bytes(data)
        for operands in ((name, "a.pt"), ("a.pt", name)):
            done = ckptool("diff", *(tmp_path / operand for operand in operands), "--json")
            assert (done.exit_code, done.json["schema"]) == (2, "ckptool/error/1")
    assert ckptool("diff", tmp_path / "a.pt", tmp_path / "missing").exit_code == 2


def test_a_safetensors_file_cut_short_is_an_error(ckptool, tmp_path):
    save_file(weights(), tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(data[:-4])
    assert ckptool("diff", *sorted(tmp_path.iterdir())).exit_code == 2


def flipped(path, needle):
    """The file with one bit of what follows ``needle`` changed."""
    data = bytearray(path.read_bytes())
    assert data.count(needle) == 1
    data[data.index(needle)] ^= 1
    path.with_name("flipped.pt").write_bytes(data)
    return path.with_name("flipped.pt")


def test_a_bit_that_flipped_is_damage_and_no_difference(ckptool, tmp_path):
    tensor = torch.randn(300, 300)
    torch.save({"w": tensor, "note": "a remark"}, tmp_path / "a.pt")
    for needle in (tensor.numpy().tobytes()[2000:2040], b"a remark"):
        damaged = flipped(tmp_path / "a.pt", needle)
        for operands in ((tmp_path / "a.pt", damaged), (damaged, tmp_path / "a.pt")):
            done = ckptool("diff", *operands)
            assert (done.exit_code, "checksum" in done.stderr) == (2, True), done
            assert "flipped.pt" in done.stderr


# -------------------------------------------------------------------------------- symmetry, display

SWAPPED = {"added": "removed", "removed": "added"}


def test_swapping_the_sides_swaps_the_report(compare):
    torch.manual_seed(0)
    one = {"w": torch.randn(50), "gone": torch.ones(1), "epoch": 3, "n": torch.arange(9)}
    other = {"w": torch.randn(50), "new": torch.ones(2), "epoch": 4, "n": torch.arange(9).flip(0)}
    there = compare(one, other, "--rtol", "0.5")
    back = compare(other, one, "--rtol", "0.5")
    for row in there["tensors"]:
        twin = next(r for r in back["tensors"] if r["address"] == row["address"])
        assert twin["kind"] == SWAPPED.get(row["kind"], row["kind"])
        assert twin["distance"] == row["distance"]
        assert twin["dtype"] == row["dtype"][::-1]
    for row in there["values"]:
        twin = next(r for r in back["values"] if r["address"] == row["address"])
        assert (twin["a"], twin["b"]) == (row["b"], row["a"])


def test_the_answer_comes_first(ckptool, tmp_path):
    done = ckptool("diff", *pair(tmp_path, trained(), trained(lambda t: t.update(epoch=8))))
    assert done.startswith("different  ")
    assert done.splitlines()[1] == "first difference: epoch has another value"
    assert done.splitlines()[-1].split() == ["epoch", "7", "→", "8"]


def test_the_training_state_comes_before_the_settings(ckptool, tmp_path):
    """A directory of outputs differs between any two runs; it stands first in many files."""
    state = {"args": {"out": "a", "lr": 0.1}, "w": torch.ones(2), "epoch": 3}
    changed = {"args": {"out": "b", "lr": 0.1}, "w": torch.ones(2) * 2, "epoch": 3}
    done = ckptool("diff", *pair(tmp_path, state, changed))
    assert done.splitlines()[1] == "first difference: w has another value"
    assert "\nsettings that differ: args/out\n" in done.stdout
    alone = pair(tmp_path, state, {**state, "args": {"out": "b", "lr": 0.1}})
    done = ckptool("diff", *alone)
    assert done.splitlines()[1] == "only settings differ; --ignore config leaves them out"
    assert "\nsettings that differ: args/out\n" in done.stdout
    assert ckptool("diff", *alone, "--ignore", "config").exit_code == 0
    assert ckptool("diff", *alone, "--json").json["summary"]["first"]["address"] == "args/out"


def test_names_only_and_stat(ckptool, tmp_path):
    def change(tree):
        tree["state_dict"]["stem.bias"].add_(1)
        tree["epoch"] = 8

    paths = pair(tmp_path, trained(), trained(change))
    assert ckptool("diff", *paths, "--name-only").split() == ["state_dict/stem.bias", "epoch"]
    stat = ckptool("diff", *paths, "--stat")
    assert "Sections" in stat
    assert "largest at" not in stat


def test_where_long_texts_differ_is_shown(ckptool, tmp_path):
    start = "x" * 500
    done = ckptool(
        "diff", *pair(tmp_path, {"t": f"{start}one", "n": 3}, {"t": f"{start}two", "n": "3"})
    )
    assert "xxone'" in done
    assert "xxtwo'" in done
    assert "3 → '3'" in done


def test_sections_come_in_the_order_of_the_tree(compare):
    one = {"epoch": 1, "model": weights(), "note": "x"}
    other = {"epoch": 2, "model": average_of(weights()), "note": "y"}
    rows = compare(one, other)["sections"]
    assert [row["address"] for row in rows] == ["epoch", "model", "note"]


def test_shards_are_read_one_after_the_other():
    from ckptool.comparison.values import Values
    from ckptool.dtypes import UINT8
    from ckptool.formats.base import TensorReader
    from ckptool.sources.base import ByteSpan
    from ckptool.sources.memory import Memory
    from ckptool.tree.nodes import TensorRef

    data = bytes(range(100))
    spans = tuple(ByteSpan(Memory(data), start, 25) for start in (0, 25, 50, 75))
    values = Values(TensorRef(UINT8, (100,), ()), TensorReader(), UINT8, 100, spans)
    for start in range(100):
        for stop in (start + 1, min(start + 30, 100), 100):
            assert values.read(start, stop - start) == data[start:stop]


def test_names_from_files_are_escaped(ckptool, tmp_path):
    done = ckptool("diff", *pair(tmp_path, {"a\x1b[31m": torch.ones(1)}, {"\nb": "\x1b[32m"}))
    assert "\x1b" not in done
    assert "\\x1b[31m" in done


def test_many_layers_take_few_lines(ckptool, tmp_path):
    one = {f"blocks.{i}.w": torch.ones(2) for i in range(96)}
    other = {name: tensor * 1.01 for name, tensor in one.items()}
    done = ckptool("diff", *pair(tmp_path, one, other), "--stat")
    assert "blocks.0…7" in done
    assert len(done.splitlines()) < 24


def test_without_torch_or_a_gpu_a_device_is_refused(ckptool, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    paths = pair(tmp_path, {"w": torch.ones(1)}, {"w": torch.ones(1)})
    done = ckptool("diff", *paths, "--device", "cuda")
    assert (done.exit_code, "CUDA" in done.stderr) == (2, True)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:²", "cuda:-1", "cpu:x"])
def test_what_is_no_device_is_told(device, ckptool, tmp_path):
    paths = pair(tmp_path, {"w": torch.ones(1)}, {"w": torch.zeros(1)})
    done = ckptool("diff", *paths, "--device", device)
    assert (done.exit_code, "a device is cpu, cuda or cuda:N" in done.stderr) == (2, True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_gives_the_numbers_of_the_processor(ckptool, tmp_path):
    torch.manual_seed(0)
    kinds = (torch.float32, torch.bfloat16, torch.float8_e5m2, torch.int64, torch.complex64)
    drawn = {(kind, n): torch.randn(n) * 9 for kind in kinds for n in (5000, 300_000)}
    one, other = (
        {f"{kind}.{n}": (values + step).to(kind) for (kind, n), values in drawn.items()}
        for step in (0, 1)
    )
    paths = pair(tmp_path, one, other)
    here = ckptool("diff", *paths, "--json").json["tensors"]
    there = ckptool("diff", *paths, "--json", "--device", "cuda").json["tensors"]
    assert len(here) == len(one)
    for ours, theirs in zip(here, there, strict=True):
        assert theirs["distance"] == pytest.approx(ours["distance"], rel=1e-12)
    copy = shutil.copy(paths[0], tmp_path / "copy")
    assert ckptool("diff", paths[0], copy, "--device", "cuda").exit_code == 0


def test_equal_files_need_neither_numpy_nor_torch(ckptool_process, tmp_path):
    code = (
        "import sys; from ckptool.cli import main; assert main(sys.argv[1:]) == 0;"
        "assert not {'numpy', 'torch'} & set(sys.modules)"
    )
    paths = pair(tmp_path, trained(), trained())
    subprocess.run([sys.executable, "-c", code, "diff", *paths], env=environment(), check=True,
                   capture_output=True)  # fmt: skip


FAULTS = """
import gc, resource, sys
gc.disable()
from ckptool.commands.diff import DiffOptions, diff
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
diff(*sys.argv[1:], DiffOptions(threads=2))
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about how glibc keeps memory")
def test_the_memory_of_runs_is_not_asked_for_anew(tmp_path):
    """Each of the 64 runs, of a MiB a side, would take more than 200 page faults."""
    one = {f"w.{i}": torch.full((4 << 20,), float(i)) for i in range(4)}
    paths = pair(tmp_path, one, {name: tensor + 1 for name, tensor in one.items()})
    command = [sys.executable, "-c", FAULTS, *paths]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert int(done.stdout) < 15_000


# ------------------------------------------------------------------------------ nothing passed over


def test_a_dict_of_more_plain_values_than_get_addresses_is_compared(compare, monkeypatch):
    """Each of its values would have taken an address; it is one value instead."""
    monkeypatch.setattr(walking, "LONG", 1 << 10)
    table = {step: float(step) for step in range(1 << 11)} | {"nan": math.nan}
    assert compare({"losses": table}, {"losses": dict(reversed(table.items()))})["equal"]
    document = compare({"losses": table}, {"losses": table | {7: 7.5}})
    assert kinds(document, "values") == {"losses": "value"}
    assert compare({"losses": table}, {"losses": table | {7: 7.5}}, "--atol", "1")["equal"]


@pytest.mark.parametrize("make", [float, lambda value: torch.full((2,), value)])
def test_keys_that_are_written_alike_are_two_places(make, compare):
    one, other = {1: make(1), "1": make(2)}, {1: make(1), "1": make(3)}
    assert compare(one, one)["equal"]
    assert not compare(one, other)["equal"]


def test_nan_in_one_part_of_a_complex_number_says_nothing_of_the_other(compare):
    one, other = complex(math.nan, 1), complex(math.nan, 2)
    assert compare({"z": one}, {"z": one})["equal"]
    assert not compare({"z": one}, {"z": other})["equal"]


def test_the_padding_of_a_pickled_convolution_counts(compare):
    one, other = (torch.nn.Conv2d(1, 1, 3, padding=p) for p in (1, 2))
    other.load_state_dict(one.state_dict())
    document = compare({"net": one}, {"net": other})
    assert {"net/padding/0", "net/padding/1"} <= kinds(document, "values").keys()


@pytest.mark.parametrize("options", [("--match", "modle/*"), ("--ignore", "*")])
def test_globs_that_leave_nothing_to_compare_are_an_error(options, ckptool, tmp_path):
    one, other = pair(tmp_path, {"model": {"w": torch.ones(2)}}, {"model": {"w": torch.zeros(2)}})
    done = ckptool("diff", one, other, *options)
    assert done.exit_code == 2
    assert "left to compare" in done.stderr


def test_types_in_a_document_of_digests_are_made_harmless(ckptool, tmp_path):
    row = {"address": "w", "dtype": "\x1b[31mfloat32", "shape": [2], "bytes": 8, "sha256": "0"}
    document = tmp_path / "digests.json"
    document.write_text(json.dumps({"schema": "ckptool/inspect/1", "entries": [row]}))
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    for form in ("text", "md", "html", "github", "junit"):
        done = ckptool("diff", tmp_path / "a.pt", document, "--format", form)
        assert done.exit_code == 1
        assert "\x1b" not in done


# -------------------------------------------------------------------------------------- other types


def test_what_is_not_finite_is_in_every_total(compare):
    one = {"blocks.0.w": torch.ones(4), "blocks.1.w": torch.ones(4)}
    other = {"blocks.0.w": torch.ones(4), "blocks.1.w": torch.tensor([1, math.nan, math.inf, 1])}
    report = compare(one, other)
    assert report["summary"]["nonfinite"] == 2
    assert [group["nonfinite"] for group in report["layers"]] == [0, 2]


def test_totals_are_of_floats_where_some_differ(compare):
    one = {"rng": torch.zeros(9, dtype=torch.uint8), "w": torch.ones(2)}
    other = {"rng": torch.full((9,), 200, dtype=torch.uint8), "w": torch.ones(2) + 0.5}
    assert compare(one, other)["summary"]["max_abs"] == 0.5
    alone = compare(one, other, "--ignore", "w")["summary"]
    assert (alone["max_abs"], alone["relative_l2"]) == (200, None)


def test_totals_pass_over_floats_that_are_the_same_number_and_codes(compare):
    zeros = torch.zeros(2)
    one = {"w": zeros, "n": torch.tensor([1]), "q": torch.zeros(4, dtype=torch.uint8)}
    other = {"w": -zeros, "n": torch.tensor([1000]), "q": torch.full((4,), 0xF0).byte()}
    for state in (one, other):
        state["q"] = state["q"].view(torch.float4_e2m1fn_x2)
    assert compare(one, other)["summary"]["max_abs"] == 999
    assert compare(one, other, "--ignore", "n")["summary"]["max_abs"] == 0


def test_what_is_too_far_for_a_relative_number_is_the_worst(ckptool, tmp_path):
    one = {"far": torch.full((2,), 1e300, dtype=torch.float64), "near": torch.ones(2)}
    other = {"far": torch.full((2,), -1e300, dtype=torch.float64), "near": torch.zeros(2)}
    said = ckptool("diff", *pair(tmp_path, one, other))
    assert said.index("far  ") < said.index("near  ")


def test_types_count_unless_any_will_do(compare):
    values = torch.tensor([1.0, 0.1, -3.0])
    one = {"w": values, "step": torch.tensor(5.0), "n": 1, "flag": True, "big": 2**70}
    other = {"w": values.bfloat16(), "step": 5, "n": 1.0, "flag": 1, "big": 2.0**70}
    assert not compare(one, other, "--rtol", "0.004")["equal"]
    loosely = compare(one, other, "--any-dtype", "--rtol", "0.004")
    assert loosely["equal"]
    assert kinds(loosely) == {"w": "within"}  # 5 in another type is 5
    assert kinds(loosely, "values") == {}
    assert loosely["tensors"][0]["dtype"] == ["float32", "bfloat16"]
    assert kinds(compare(one, other, "--any-dtype")) == {"w": "value"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor([2**53 + 1]), torch.tensor([2.0**53], dtype=torch.float64)),
        (torch.tensor([2**63 - 1]), torch.tensor([2.0**63])),
        (torch.tensor([2**64 - 1], dtype=torch.uint64), torch.tensor([2.0**64])),
        (torch.tensor([2**62 + 1]), torch.tensor([2**62], dtype=torch.uint64)),
        (torch.tensor([2**53 + 1]), torch.tensor([2.0**53 + 0j], dtype=torch.complex128)),
        (2**53 + 1, 2.0**53),
        (2**2000, 1.0),
        (2**70, torch.tensor(2.0**70)),
        (torch.tensor([1, 0]), torch.tensor([True, True])),
        ("1", 1),
    ],
    ids=str,
)
def test_no_wider_type_makes_two_numbers_one(one, other, compare):
    for x, y in ((one, other), (other, one)):
        assert not compare({"x": x}, {"x": y}, "--any-dtype")["equal"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64, torch.uint64])
def test_long_integers_equal_themselves_in_other_types(dtype, compare):
    numbers = torch.tensor([0, 1, 2**53, 2**62, 3 * 2**40])
    assert compare({"x": numbers}, {"x": numbers.to(dtype)}, "--any-dtype")["equal"]


def test_types_that_cannot_be_held_against_each_other_stay_a_difference(compare):
    codes = torch.arange(6, dtype=torch.uint8)
    one, other = {"w": codes.view(torch.float4_e2m1fn_x2)}, {"w": codes}
    assert kinds(compare(one, other, "--any-dtype")) == {"w": "dtype"}
    absent = {"w": torch.empty(2, device="meta")}
    other = {"w": torch.empty(2, device="meta", dtype=torch.float16)}
    assert kinds(compare(absent, other, "--any-dtype")) == {"w": "dtype"}


@pytest.mark.parametrize("plain", [{"lr": 0.5, "b": 2}, [0.5, 2]])
@pytest.mark.parametrize("is_first", [True, False])
def test_an_object_and_a_container_in_its_place_differ_in_type(plain, is_first, ckptool, tmp_path):
    space = argparse.Namespace(lr=0.5, b=2)
    sides = (space, plain) if is_first else (plain, space)
    paths = [tmp_path / name for name in ("a.pt", "b.pt")]
    for path, value in zip(paths, sides, strict=True):
        torch.save({"w": torch.ones(2), "args": value}, path)
    done = ckptool("diff", *paths)
    assert done.exit_code == 1
    is_dict = isinstance(plain, dict)  # the parts of a list have other names, and differ too
    assert not is_dict or done.splitlines()[1].startswith("only settings differ; --ignore config")
    rows = {row["address"]: row for row in ckptool("diff", *paths, "--json").json["values"]}
    shown = {rows["args"]["a"], rows["args"]["b"]}
    assert shown == {"argparse.Namespace()", "<dict or list>"}
    assert rows["args"]["kind"] == "type"
    assert ({*rows} == {"args"}) is is_dict


def test_an_object_that_the_other_side_lacks_is_only_in_one(ckptool, tmp_path):
    torch.save({"w": 1, "args": argparse.Namespace(lr=0.5), "argsx": {"lr": 1}}, tmp_path / "a.pt")
    torch.save({"w": 1, "argsx": {"lr": 1}}, tmp_path / "b.pt")
    rows = ckptool("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--json").json["values"]
    assert {row["kind"] for row in rows} == {"removed"}
