"""Options that do nothing are told: what fits nothing, and what goes unused beside another."""

from __future__ import annotations

import re

import pytest
import torch

from helpers.making import average_of, resumable, save, weights


@pytest.fixture
def pair(tmp_path):
    """Two checkpoints that differ in everything that floats."""
    for name, factor in (("a", 1.0), ("b", 1.5)):
        state = {n: t * factor if t.is_floating_point() else t for n, t in weights().items()}
        save(tmp_path / f"{name}.pt", state)
    return tmp_path / "a.pt", tmp_path / "b.pt"


UNUSED = [
    ("--ignore", "head"),
    ("--ignore", "*/nothing*"),
    ("--match", "nothing/*"),
    ("--map", "^nothing="),
    ("--tolerance", "nothing*=1e-3"),
    ("--tolerance", "head.weight=1,0.1"),
]


@pytest.mark.parametrize(("option", "text"), UNUSED)
@pytest.mark.parametrize("form", ["text", "md", "html", "json"])
def test_what_fits_nothing_is_told_in_every_form(option, text, form, pair, ckptool):
    more = ("--match", "*.bias") if option == "--match" else ()
    output = ckptool("diff", *pair, option, text, *more, "--format", form)
    assert output.exit_code == 1
    if form == "json":
        assert output.json["unused"] == [f"{option} '{text}'"]
    else:
        assert "fits nothing" in output
        assert option in output


USED = [
    ("--ignore", "*head*"),
    ("--match", "*/stem.*"),
    ("--match", "model"),
    ("--match", "state_dict"),
    ("--map", "^state_dict/=model/"),
    ("--tolerance", "state_dict/head.weight=1"),
]


@pytest.mark.parametrize(("option", "text"), USED)
def test_what_fits_something_is_not(option, text, pair, ckptool):
    output = ckptool("diff", *pair, option, text)
    assert "fits nothing" not in output
    assert ckptool("diff", *pair, option, text, "--json").json["unused"] == []


def test_globs_are_asked_of_the_names_that_maps_leave(pair, ckptool):
    options = (
        "--map",
        "^state_dict/=model/",
        "--ignore",
        "model/head*",
        "--map",
        "^model/h=model/g",
    )
    unused = ckptool("diff", *pair, *options, "--json").json["unused"]
    assert unused == ["--ignore 'model/head*'"]


def test_what_a_configuration_says_is_for_many_checkpoints(pair, ckptool, tmp_path, monkeypatch):
    (tmp_path / "ckptool.toml").write_text('[diff]\nignore = ["nothing*"]\nmap = ["^nothing="]\n')
    monkeypatch.chdir(tmp_path)
    assert "fits nothing" not in ckptool("diff", *pair)


def test_a_match_that_leaves_nothing_says_what_to_type(pair, ckptool):
    output = ckptool("diff", *pair, "--match", "head")
    assert output.exit_code == 2
    assert "a glob fits whole key paths: try '*head*'" in output.stderr


def test_a_match_of_extraction_says_what_to_type(pair, ckptool):
    output = ckptool("extract-ema", pair[0], "--match", "head", "--dry-run")
    assert output.exit_code == 2
    assert "a glob fits whole names: try '*head*'" in output.stderr


@pytest.mark.parametrize("option", ["--stat", "--name-only"])
@pytest.mark.parametrize("form", ["json", "md", "html", "junit", "github"])
def test_what_shortens_the_text_is_refused_of_documents(option, form, pair, ckptool):
    output = ckptool("diff", *pair, option, "--format", form)
    assert output.exit_code == 2
    assert option in output.stderr + output.stdout


@pytest.mark.parametrize("command", ["verify", "diff"])
def test_two_forms_of_one_answer_are_refused(command, pair, ckptool):
    paths = pair if command == "diff" else pair[:1]
    output = ckptool(command, *paths, "--json", "--format", "md")
    assert output.exit_code == 2
    assert "--json and --format md" in output
    assert ckptool(command, *paths, "--json", "--format", "json").exit_code < 2


def test_bare_names_of_a_table_are_without_wrappers_too(ckptool, tmp_path):
    wrapped = {f"_forward_module.{name}": tensor for name, tensor in weights().items()}
    torch.save({"state_dict": wrapped}, tmp_path / "last.ckpt")
    output = tmp_path / "out.pt"
    taken = (f"{tmp_path / 'last.ckpt'}#@model", "-o", output, "--names", "bare")
    assert "names without wrappers" in ckptool("extract-ema", *taken)
    assert torch.load(output).keys() == weights().keys()


def test_numbers_and_digests_are_shown_together(pair, ckptool):
    (entry,) = ckptool(
        "inspect", pair[0], "--stats", "--digests", "--match", "state_dict/scale", "--json"
    ).json["entries"]
    shown = ckptool("inspect", pair[0], "--stats", "--digests", "--match", "state_dict/scale")
    assert entry["sha256"] in shown
    assert " 1.5 " in shown


# ---------------------------------------------------------------------------------------- counters


@pytest.fixture
def runs(tmp_path):
    """One run at two steps: Adam's counters went on by 20, the weights by a little."""
    paths = []
    for steps, factor in ((100, 1.0), (120, 1.01)):
        model = {n: t * factor if t.is_floating_point() else t for n, t in weights().items()}
        model["bn.num_batches_tracked"] = torch.tensor(steps)
        optimizer = resumable(model)["optimizer"]
        for state in optimizer["state"].values():
            state["step"] = torch.tensor(float(steps))
        path = tmp_path / f"step{steps}.pt"
        tree = {"model": model, "ema": average_of(model), "optimizer": optimizer, "epoch": steps}
        torch.save(tree, path)
        paths.append(path)
    return paths


def test_step_counters_are_settings_and_in_no_norm(runs, ckptool):
    report = ckptool("diff", *runs, "--json").json
    assert report["counters"] == [
        {"address": "model/bn.num_batches_tracked", "kind": "value", "section": "model",
         "a": 100, "b": 120, "tensors": 1},
        {"address": "ema/bn.num_batches_tracked", "kind": "value", "section": "ema",
         "a": 100, "b": 120, "tensors": 1},
        {"address": "optimizer/state/*/step", "kind": "value", "section": "optimizer",
         "a": 100, "b": 120, "tensors": 4},
    ]  # fmt: skip
    rows = {row["address"]: row for row in report["tensors"]}
    assert rows["optimizer/state/0/step"]["is_counter"]
    assert rows["optimizer/state/0/step"]["distance"]["max_abs"] == 20
    assert not rows["optimizer/state/0/exp_avg"]["is_counter"]
    for group in (*report["sections"], *report["layers"], report["summary"]):
        assert group["max_abs"] < 1
        assert group["relative_l2"] is None or group["relative_l2"] < 0.03
    assert report["summary"]["tensors"]["value"] == len(rows)


def test_the_headline_has_a_number_a_role(runs, ckptool):
    report = ckptool("diff", *runs, "--json").json
    roles = {row["role"]: row for row in report["summary"]["roles"]}
    assert list(roles) == ["model", "ema", "optimizer"]
    a, b = (torch.load(path) for path in runs)
    floats = [n for n, t in a["model"].items() if t.is_floating_point()]
    one, other = (torch.cat([s["model"][n].flatten().double() for n in floats]) for s in (a, b))
    wanted = (one - other).norm() / max(one.norm(), other.norm())
    assert roles["model"]["relative_l2"] == pytest.approx(wanted.item(), rel=1e-6)
    assert roles["model"]["max_abs"] == pytest.approx((one - other).abs().max().item())
    shown = ckptool("diff", *runs)
    lines = [line for line in shown.splitlines() if "(relative L2), max abs" in line]
    assert [line.partition(":")[0] for line in lines] == ["model", "ema", "optimizer"]
    assert re.search(r"optimizer/state/\*/step +100 → 120  in 4 tensors", shown)
    assert "optimizer/state/0/step" not in shown


@pytest.mark.parametrize("form", ["md", "html", "github", "junit"])
def test_every_form_tells_what_counters_went_from_and_to(form, runs, ckptool):
    only = ("--match", "*step", "--format", form)
    shown = ckptool("diff", *runs, *only).replace("\\", "")
    assert "100 → 120" in shown


def test_a_weight_of_one_element_is_no_counter(tmp_path, ckptool):
    for name, value in (("a", 1.0), ("b", 2.0)):
        state = {"logit_scale": torch.tensor(value), "stepper.weight": torch.tensor([value])}
        torch.save(state, tmp_path / f"{name}.pt")
    report = ckptool("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--json").json
    assert report["counters"] == []
    assert report["summary"]["max_abs"] == 1.0


def test_counters_that_went_different_ways_are_told_apart(tmp_path, ckptool):
    for name, plus in (("a", 0), ("b", 1)):
        state = {i: {"step": torch.tensor(float(i + plus * (i + 1)))} for i in range(3)}
        torch.save({"state": state, "param_groups": []}, tmp_path / f"{name}.pt")
    report = ckptool("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--json").json
    assert [(row["address"], row["a"], row["b"]) for row in report["counters"]] == [
        ("state/0/step", 0, 1), ("state/1/step", 1, 3), ("state/2/step", 2, 5),
    ]  # fmt: skip


def test_a_pipe_lists_every_tensor_that_differs(tmp_path, ckptool):
    names = [f"{'long_name_' * 20}{i}.weight" for i in range(50)]
    for name, value in (("a", 1.0), ("b", 2.0)):
        torch.save({n: torch.full((2,), value) for n in names}, tmp_path / f"{name}.pt")
    shown = ckptool("diff", tmp_path / "a.pt", tmp_path / "b.pt")
    listed = {line.split()[0] for line in shown.splitlines() if line.startswith("  ")}
    assert set(names) <= listed
