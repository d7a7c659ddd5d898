"""The checkpoints that ``average`` combines: copies, their order, and which of them count."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.commands.members import ordered_by_name
from helpers.making import weights
from helpers.paths import contents
from helpers.thinned import examples

STEPS = (100, 200, 300, 500)


def saved(path, value: float, **facts) -> None:
    torch.save({"state_dict": weights(w=torch.full((3,), value)), **facts}, path)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for step in STEPS:
        saved(folder / f"at-{step}.ckpt", step, global_step=step)
    return folder


@pytest.fixture
def sources(ckptool, tmp_path):
    """Average, and return the steps that counted, and the report."""

    def average(*args):
        done = ckptool("average", *args, "--force", "-o", tmp_path / "out.pt", "--json")
        assert done.exit_code == 0, done.stderr
        return [source["step"] for source in done.json["sources"]], done.json

    return average


# ------------------------------------------------------------------------------------------ copies


@pytest.mark.parametrize("more", [(), ("--last", "2"), ("--ema-decay", "0.9")])
def test_a_copy_of_the_last_checkpoint_counts_once(run, sources, ckptool, tmp_path, more):
    """Trainers write last.ckpt beside the same step."""
    (run / "last.ckpt").write_bytes((run / "at-500.ckpt").read_bytes())
    steps, report = sources(run, *more)
    assert steps == list(STEPS[-2:] if "--last" in more else STEPS)
    assert report["copies"] == {str(run / "last.ckpt"): str(run / "at-500.ckpt")}
    shown = ckptool("average", run, *more, "--dry-run", "-o", tmp_path / "x.pt")
    assert "last.ckpt holds the weights of " in shown
    assert "which count once" in shown


def test_a_copy_in_another_format_counts_once(tmp_path, ckptool, sources):
    folder = tmp_path / "bare"
    folder.mkdir()
    for name, value in (("epoch_1.pt", 1.0), ("epoch_2.pt", 2.0)):
        torch.save(weights(w=torch.full((3,), value)), folder / name)
    torch.save(
        weights(w=torch.full((3,), 2.0)), folder / "final.pt", _use_new_zipfile_serialization=False
    )
    _, report = sources(folder)
    assert report["copies"] == {str(folder / "final.pt"): str(folder / "epoch_2.pt")}
    assert [each["weight"] for each in report["sources"]] == [0.5, 0.5]


def test_other_weights_of_the_same_step_are_refused(run, ckptool, tmp_path):
    saved(run / "other.ckpt", 7.0, global_step=500)
    before = contents(tmp_path)
    done = ckptool("average", run, "-o", tmp_path / "out.pt")
    assert done.exit_code == 2
    assert "other.ckpt state the same step, 500, and hold different weights" in done.stderr
    assert contents(tmp_path) == before


def test_named_checkpoints_count_as_often_as_they_are_named(run, sources):
    steps, _ = sources(run / "at-100.ckpt", run / "at-500.ckpt", run / "at-500.ckpt")
    assert steps == [100, 500, 500]


def test_two_runs_may_have_the_same_steps(run, tmp_path, sources):
    other = tmp_path / "other"
    other.mkdir()
    for step in STEPS:
        saved(other / f"at-{step}.ckpt", 2 * step, global_step=step)
    steps, report = sources(run, other)
    assert steps == [*STEPS, *STEPS]
    assert report["order"] == "operands"


# ------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("form", ["epoch_{}.pt", "{}epoch.pth", "checkpoint_{0}_{0}000.pt"])
def test_bare_weights_are_ordered_by_the_numbers_in_their_names(tmp_path, ckptool, form):
    folder = tmp_path / "bare"
    folder.mkdir()
    for number in (2, 9, 10, 11):
        torch.save({"n": torch.tensor(number), "w": torch.full((2,), float(number))},
                   folder / form.format(number))  # fmt: skip
    done = ckptool("average", folder, "--last", "3", "-o", tmp_path / "out.pt", "--json")
    found = torch.load(tmp_path / "out.pt")
    assert (done.json["order"], found["n"], found["w"].tolist()) == ("name", 11, [10, 10])
    shown = ckptool("average", folder, "-o", tmp_path / "x.pt", "--dry-run")
    assert "by the numbers in the names" in shown


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["e10.pt", "e9.pt"], [1, 0]),
        (["e1-s30.pt", "e2-s20.pt"], None),  # one number says so, the other not
        (["e1-s30.pt", "e1-s40.pt"], [0, 1]),
        (["a1.pt", "b2.pt"], None),
        (["a1.pt", "a01.pt"], None),
        (["a.pt", "a.pt"], None),
        (["a1.pt"], None),
    ],
)
def test_order_by_names(names, order):
    assert ordered_by_name(names) == order


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=8, unique=True))
@examples(40)
def test_any_numbers_order_names(numbers):
    order = ordered_by_name([f"model-{number}-{2 * number:09}.pt" for number in numbers])
    assert [numbers[at] for at in order] == sorted(numbers)


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        (("--every", "1"), [100, 200, 300, 500]),
        (("--every", "2"), [200, 500]),
        (("--every", "3"), [100, 500]),
        (("--every", "2", "--last", "2"), [200, 500]),
        (("--last", "3"), [200, 300, 500]),
    ],
)
def test_the_newest_of_each_few_counts(run, sources, more, steps):
    assert sources(run, *more)[0] == steps


def test_one_that_is_left_is_no_average(run, ckptool, tmp_path):
    done = ckptool("average", run, "--every", "4", "-o", tmp_path / "out.pt")
    assert done.exit_code == 2
    assert "at least two" in done.stderr


# ----------------------------------------------------------------------------- names and counters


def ordered(ckptool, tmp_path, facts, *more):
    """Average files u0.pt, u1.pt, ... that state these facts."""
    for at, each in enumerate(facts):
        saved(tmp_path / f"u{at}.pt", float(at), **each)
    files = [tmp_path / f"u{at}.pt" for at in range(len(facts))]
    return ckptool("average", *files, *more, "--dry-run", "-o", tmp_path / "out.pt", "--json")


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ([{"epoch": 2}, {"epoch": 1}, {"epoch": 1}], "u1.pt and .* state the same epoch, 1"),
        ([{"global_step": 9}, {"global_step": 5}, {"global_step": 5}], "the same step, 5"),
        ([{"global_step": 9}, {"global_step": 5}, {}], "u2.pt states no step"),
        ([{"global_step": 9}, {"epoch": 5}, {"global_step": 3}], "some checkpoints state a step"),
    ],
)
def test_names_give_no_order_that_the_files_contradict(ckptool, tmp_path, facts, told):
    done = ordered(ckptool, tmp_path, facts, "--last", "2")
    assert done.exit_code == 2
    assert re.search(told, done.json["error"]["message"])
    assert ordered(ckptool, tmp_path, facts).json["order"] == "operands"


@pytest.mark.parametrize(
    ("facts", "order"),
    [
        ([{"epoch": 1}, {"epoch": 1}, {"epoch": 2}], "name"),
        ([{"global_step": 5, "epoch": 1}, {"global_step": 5, "epoch": 2}], "epoch"),
        ([{"global_step": 7}, {"global_step": 9}], "global_step"),
    ],
)
def test_names_order_what_the_files_leave_open(ckptool, tmp_path, facts, order):
    done = ordered(ckptool, tmp_path, facts, "--last", "2")
    assert done.json["order"] == order
    newest = [each["path"] for each in done.json["sources"]]
    assert newest == [str(tmp_path / f"u{at}.pt") for at in range(len(facts))[-2:]]


def test_names_order_those_of_one_epoch(ckptool, tmp_path):
    for name, epoch in (("b1", 2), ("b2", 2), ("z", 1)):
        saved(tmp_path / f"{name}.pt", float(epoch), epoch=epoch)
    files = [tmp_path / f"{name}.pt" for name in ("b2", "z", "b1")]
    done = ckptool("average", *files, "--last", "2", "--dry-run", "-o", tmp_path / "x.pt", "--json")
    assert [each["path"] for each in done.json["sources"]] == [str(files[2]), str(files[0])]


def test_an_epoch_is_told_where_a_step_is_missing(ckptool, tmp_path):
    done = ordered(ckptool, tmp_path, [{"epoch": 1}, {"epoch": 2}], "--ema-decay", "0.9")
    assert "u0.pt states no step, only the epoch 1" in done.json["error"]["message"]


def test_one_that_is_named_twice_is_told_so(ckptool, tmp_path):
    saved(tmp_path / "a.pt", 1.0)
    files = [tmp_path / "a.pt"] * 2
    done = ckptool("average", *files, "--dry-run", "-o", tmp_path / "x.pt", "--json")
    (found,) = done.json["findings"]
    assert found["message"] == f"{files[0]} is named twice, and counts twice"
