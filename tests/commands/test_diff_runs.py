"""``ckptool diff RUN_A RUN_B``: since when two runs differ, and in what."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.commands.diff_runs import pair_checkpoints
from ckptool.render.diff_runs_text import answer_lines
from ckptool.reports.diff import PairReport, PairState, RunDiffReport
from ckptool.reports.run import RunEntry
from helpers.making import weights
from helpers.paths import FIXTURES
from helpers.published import OURS, assert_ours
from helpers.thinned import examples

STEPS = (100, 200, 300, 400)


def saved(path, factor=1.0, **more):
    model = {name: t * factor if t.is_floating_point() else t for name, t in weights().items()}
    path.parent.mkdir(exist_ok=True)
    torch.save({"model": model, "optimizer_lr": 0.1, **more}, path)


@pytest.fixture
def runs(tmp_path):
    """Two runs of four checkpoints that are the same, under other names."""
    for run, name in (("one", "step-{}.pt"), ("other", "ckpt_{}.pt")):
        for step in STEPS:
            saved(tmp_path / run / name.format(step), step, global_step=step)
    return tmp_path / "one", tmp_path / "other"


@pytest.fixture
def compare(ckptool):
    """The document, which has the form of its schema, and the text."""

    def run(one, other, *options):
        done = ckptool("diff", one, other, *options, "--json")
        assert_ours(done.json)
        shown = ckptool("diff", one, other, *options)
        assert shown.exit_code == done.exit_code
        return done.json, shown.stdout, done.exit_code

    return run


def test_values_that_are_no_tensors_have_a_column_of_their_own(runs, compare):
    one, other = runs
    saved(other / "ckpt_400.pt", 400, global_step=400, optimizer_lr=0.2)
    _, shown, code = compare(one, other)
    assert code == 1
    (heads,) = (row for row in shown.splitlines() if "  other values  " in row)
    (last,) = (row for row in shown.splitlines() if "ckpt_400.pt" in row)
    assert last[: heads.index("other values") + len("other values")].split()[-2:] == [
        "different", "1",
    ]  # fmt: skip


def test_the_same_runs_are_equal_whatever_their_files_are_called(runs, compare):
    document, shown, code = compare(*runs)
    assert (document["equal"], code) == (True, 0)
    assert [row["step"] for row in document["checkpoints"]] == list(STEPS)
    assert {row["state"] for row in document["checkpoints"]} == {"equal"}
    assert "the same until step 400, in 4 checkpoints that both have" in shown


def test_since_when_they_differ_and_in_what_is_the_headline(runs, compare):
    one, other = runs
    for step in (300, 400):
        saved(other / f"ckpt_{step}.pt", step + 0.5, global_step=step)
    document, shown, code = compare(one, other)
    assert (document["equal"], code) == (False, 1)
    assert document["same_until"]["step"] == 200
    assert document["first"]["step"] == document["first_tensor"]["step"] == 300
    lines = shown.splitlines()
    assert lines[0] == f"different  {one} and {other}"
    assert lines[1] == (
        "the same until step 200; first difference at step 300: "
        "model/stem.weight (model) has another value"
    )
    row = next(line for line in lines if "step-300.pt" in line)
    assert "different" in row
    assert f"{document['first']['max_abs']:.4g}" in row
    assert f"{100 * document['first']['relative_l2']:.3g} %" in row


def test_a_difference_from_the_beginning_is_told_as_one(runs, compare):
    one, other = runs
    for step in STEPS:
        saved(other / f"ckpt_{step}.pt", step + 0.5, global_step=step)
    document, shown, _ = compare(one, other)
    assert document["same_until"] is None
    assert "different from the beginning; first difference at step 100: " in shown


def test_settings_that_differ_do_not_hide_when_tensors_begin_to(runs, compare):
    """The directory of the outputs is in the settings of most runs."""
    one, other = runs
    for step in STEPS:
        factor = step + (step == 400)
        saved(other / f"ckpt_{step}.pt", factor, global_step=step, optimizer_lr=0.2)
    document, shown, _ = compare(one, other)
    assert (document["first"]["step"], document["first_tensor"]["step"]) == (100, 400)
    assert "first difference at step 100: optimizer_lr" in shown
    assert "first tensor that differs, at step 400: model/stem.weight" in shown
    document, shown, _ = compare(one, other, "--match", "optimizer_lr")
    assert (document["first_tensor"], "no tensor differs" in shown) == (None, True)
    document, _, _ = compare(one, other, "--ignore", "optimizer_lr")
    assert document["first"]["step"] == 400


@pytest.fixture
def elsewhere(runs):
    """The same runs, whose settings name other directories of outputs."""
    for run in runs:
        for path, step in zip(sorted(run.iterdir()), STEPS, strict=True):
            saved(path, step, global_step=step, args={"out": run.name, "lr": 0.1})
    return runs


def test_settings_do_not_move_the_first_difference(elsewhere, compare):
    one, other = elsewhere
    for step in (300, 400):
        more = {"global_step": step, "args": {"out": "other", "lr": 0.1}}
        saved(other / f"ckpt_{step}.pt", step + 0.5, **more)
    document, shown, code = compare(one, other)
    _, told, *rest = shown.splitlines()
    assert told == (
        "the same until step 200; first difference at step 300: "
        "model/stem.weight (model) has another value"
    )
    assert rest[0] == "settings that differ: args/out"
    assert (document["equal"], code, document["settings"]) == (False, 1, ["args/out"])
    assert (document["first"]["step"], document["first_state"]["step"]) == (100, 300)
    assert document["state_same_until"]["step"] == 200
    assert "different, since" not in shown
    document, shown, code = compare(one, other, "--ignore", "config")
    assert (document["first"]["step"], document["settings"], code) == (300, [], 1)


def test_runs_with_other_settings_alone_differ_and_the_last_line_says_what_to_type(
    elsewhere, compare
):
    document, shown, code = compare(*elsewhere)
    lines = shown.splitlines()
    assert lines[0].startswith("different  ")
    assert lines[1:3] == [
        "the same until step 400, in 4 checkpoints that both have",
        "settings that differ: args/out",
    ]
    assert sum("other settings" in line for line in lines) == 4
    assert lines[-1] == "different, since settings differ; --ignore config leaves them out"
    assert (document["equal"], code, document["first_state"]) == (False, 1, None)
    document, _, code = compare(*elsewhere, "--ignore", "config")
    assert (document["equal"], code) == (True, 0)


def test_a_resumed_run_lacks_the_early_checkpoints(runs, compare, ckptool):
    one, other = runs
    for step in STEPS[:2]:
        (other / f"ckpt_{step}.pt").unlink()
    _, shown, code = compare(one, other)
    assert "the same until step 400, in 2 checkpoints that both have" in shown
    typed = f"ckptool diff {one / 'step-400.pt'} {other / 'ckpt_400.pt'}"
    assert shown.splitlines()[-1] == (
        f"different, since 2 checkpoints have no partner; {typed} compares the last that both have"
    )
    assert (code, ckptool(*typed.split()[1:]).exit_code) == (1, 0)


def test_a_tensor_among_the_settings_is_none(runs, compare):
    one, other = runs
    for run in runs:
        args = {"mean": torch.full((3,), float(run == one)), "out": run.name}
        saved(run / next(run.glob("*400.pt")).name, 400, global_step=400, args=args)
    document, shown, _ = compare(one, other)
    assert (document["first_state"]["step"], document["settings"]) == (400, ["args/out"])
    assert "first difference at step 400: args/mean (config) has another value" in shown


def test_options_and_tolerances_are_those_of_diff(runs, compare):
    one, other = runs
    saved(other / "ckpt_200.pt", 200.0001, global_step=200)
    assert compare(one, other)[2] == 1
    document, _, code = compare(one, other, "--rtol", "1e-3")
    assert (document["equal"], code) == (True, 0)
    assert document["tolerances"][0]["rtol"] == 1e-3
    document, shown, _ = compare(one, other, "--ignore", "nothing*", "--rtol", "1")
    assert document["unused"] == ["--ignore 'nothing*'"]
    assert "fits nothing: --ignore 'nothing*'" in shown


@pytest.mark.parametrize("longer", [0, 1])
def test_a_checkpoint_that_one_run_lacks_is_a_difference(longer, runs, compare):
    (runs[1 - longer] / ("step-400.pt", "ckpt_400.pt")[1 - longer]).unlink()
    document, shown, code = compare(*runs)
    assert (document["equal"], code, document["first"]) == (False, 1, None)
    assert document["checkpoints"][-1]["state"] == ("removed", "added")[longer]
    assert "the same until step 300, in 3 checkpoints that both have" in shown
    assert f"checkpoints: 1 only in the {('first', 'second')[longer]}" in shown


def test_one_that_cannot_be_read_leaves_the_others_compared(runs, compare):
    one, other = runs
    for path in (one / "step-200.pt", other / "ckpt_200.pt"):
        data = path.read_bytes()
        path.with_name("200.pt").write_bytes(data[: len(data) // 2] if path.parent == one else data)
        path.unlink()
    document, shown, code = compare(one, other)
    assert (document["unread"], code) == (1, 2)
    states = [row["state"] for row in document["checkpoints"]]
    assert sorted(states) == ["equal", "equal", "equal", "unread"]
    assert "not compared: " in shown


def test_a_pair_without_a_part_that_is_asked_for_leaves_the_others_compared(runs, compare):
    """EMA weights often begin later than the run."""
    for folder in runs:
        for path in sorted(folder.iterdir())[1:]:
            saved(path, global_step=torch.load(path)["global_step"], ema={"w": torch.ones(2)})
    document, shown, code = compare(*runs, "--match", "ema/*")
    first, *others = document["checkpoints"]
    assert (first["state"], code) == ("unread", 2)
    assert first["error"].endswith("no tensor or value is left to compare")
    assert {row["state"] for row in others} == {"equal"}
    assert "not all compared  " in shown
    assert "different" not in shown


def test_options_that_suit_no_pair_are_refused(runs, ckptool):
    done = ckptool("diff", *runs, "--match", "none*")
    assert done.exit_code == 2
    assert "no tensor or value is left to compare" in done.stderr


def test_runs_without_anything_in_common_are_refused(runs, ckptool, tmp_path):
    saved(tmp_path / "far" / "last.pt", global_step=7)
    done = ckptool("diff", runs[0], tmp_path / "far")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "none has the same step, epoch or name" in done.stderr


def test_a_run_and_a_checkpoint_are_not_compared(runs, ckptool):
    done = ckptool("diff", runs[0], runs[1] / "ckpt_100.pt")
    assert (done.exit_code, "directory" in done.stderr) == (2, True)


@pytest.mark.parametrize("option", ["--stat", "--name-only", "--sort=name"])
def test_options_for_one_pair_are_refused(option, runs, ckptool):
    done = ckptool("diff", *runs, option)
    assert (done.exit_code, "these are two runs" in done.stderr) == (2, True)


def test_what_ckptool_made_is_no_checkpoint_of_the_run(runs, compare, ckptool):
    one, other = runs
    made = one / "weights.safetensors"
    assert ckptool("convert", f"{one / 'step-100.pt'}#model", "-o", made).exit_code == 0
    document, shown, code = compare(one, other)
    assert (code, [*document["left_out"]]) == (0, [str(made)])
    assert f"left out: {made}: ckptool convert made it of step-100.pt" in shown


def test_a_number_sign_in_a_name_begins_no_key_path(runs, compare):
    for run in runs:
        for path in run.iterdir():
            path.rename(path.with_name(f"a#{path.name}"))
    assert compare(*runs)[2] == 0


def test_the_schema_knows_every_key_of_the_report():
    schema = json.loads((OURS / "ckptool-diff-run-1.json").read_text())
    for part, report in ((schema, RunDiffReport), (schema["definitions"]["pair"], PairReport)):
        names = {field.name for field in dataclasses.fields(report)}
        assert part["properties"].keys() - {"schema"} == names


def test_markdown_has_the_text(runs, ckptool):
    shown = ckptool("diff", *runs, "--format", "md")
    assert "the same until step 400" in shown
    assert "hint: it has: text, json, md" in ckptool("diff", *runs, "--format", "junit").stderr


def told(*rows):
    """The answer on rows of (state, epoch)."""
    pairs = tuple(PairReport(state, None, epoch, "a/x.pt", "b/x.pt") for state, epoch in rows)
    last = next((row for row in reversed(pairs) if row.state is PairState.EQUAL), None)
    return [
        *answer_lines(RunDiffReport(True, "a", "b", pairs, last, None, last, None, None, {}, 0, ()))
    ]


def test_the_answer_names_epochs_and_files_where_there_are_no_steps():
    assert told((PairState.EQUAL, 1), (PairState.EQUAL, 2)) == [
        "the same until epoch 2, in 2 checkpoints that both have"
    ]
    assert told((PairState.EQUAL, None)) == ["the same until x.pt, in 1 checkpoint that both have"]
    assert told((PairState.UNREAD, 1)) == []


# -------------------------------------------------------------------------------------------- pairs


def entry(path, step=None, epoch=None, error=None):
    return RunEntry(path, 0, None, epoch, step, {}, None, error=error)


def paired(a, b):
    return [tuple(e and e.path for e in pair) for pair in pair_checkpoints(a, b)]


def test_equal_names_of_one_step_belong_together_and_a_copy_to_the_other():
    a = [entry("a/9.pt", 9), entry("a/last.pt", 9)]
    b = [entry("b/last.pt", 9), entry("b/nine.pt", 9)]
    assert paired(a, b) == [("a/9.pt", "b/nine.pt"), ("a/last.pt", "b/last.pt")]
    assert paired(a, b[:1]) == [("a/9.pt", "b/last.pt"), ("a/last.pt", "b/last.pt")]


def test_one_name_of_two_steps_does_not_belong_together():
    assert paired([entry("a/last.pt", 9)], [entry("b/last.pt", 7)]) == [
        (None, "b/last.pt"), ("a/last.pt", None),
    ]  # fmt: skip


def test_the_epoch_counts_without_a_step_and_the_name_without_both():
    a = [entry("a/x.pt"), entry("a/1.pt", epoch=1), entry("a/2.pt", epoch=2)]
    b = [entry("b/e2.pt", epoch=2), entry("b/e1.pt", epoch=1), entry("b/x.pt")]
    assert paired(a, b) == [
        ("a/1.pt", "b/e1.pt"), ("a/2.pt", "b/e2.pt"), ("a/x.pt", "b/x.pt"),
    ]  # fmt: skip


def test_a_name_counts_where_one_side_states_no_step():
    assert paired([entry("a/1.pt", 5)], [entry("b/1.pt", epoch=1)]) == [("a/1.pt", "b/1.pt")]
    broken = entry("b/1.pt", error="cut")
    assert paired([entry("a/1.pt", 5)], [broken]) == [("a/1.pt", "b/1.pt")]


ENTRIES = st.lists(
    st.tuples(
        st.sampled_from("abcd"), st.none() | st.integers(1, 3), st.none() | st.integers(1, 2)
    ),
    unique_by=lambda row: row[0],
)


@examples(200)
@given(ENTRIES, ENTRIES)
def test_every_checkpoint_is_in_a_row_in_the_order_of_the_run(left, right):
    a = [entry(f"a/{name}", step, epoch) for name, step, epoch in left]
    b = [entry(f"b/{name}", step, epoch) for name, step, epoch in right]
    pairs = pair_checkpoints(a, b)
    for at, side in enumerate((a, b)):
        assert {pair[at].path for pair in pairs if pair[at]} == {each.path for each in side}
    for one, other in pairs:
        if one and other and None not in {one.global_step, other.global_step}:
            assert one.global_step == other.global_step
    steps = [(one or other).global_step for one, other in pairs if one is None or other is None]
    known = [step for step in steps if step is not None]
    assert known == sorted(known)


def test_two_directories_of_shards_are_no_runs(tmp_path, ckptool):
    """A directory that is one checkpoint is compared as one."""
    for name in ("one", "other"):
        shutil.copytree(FIXTURES / "genuine/hf_trainer/run/checkpoint-4", tmp_path / name)
    done = ckptool("diff", tmp_path / "one", tmp_path / "other", "--json")
    assert done.json["schema"] == "ckptool/diff/1"
