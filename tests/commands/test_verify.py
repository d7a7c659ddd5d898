"""``ckptool verify`` at the command line: exit codes, text, JSON, folders, configuration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.making import average_of, resumable, save, weights
from helpers.output import environment


@pytest.fixture
def path(tmp_path):
    model = weights()
    return save(tmp_path / "last.pt", model, **resumable(model))


@pytest.fixture
def broken(tmp_path):
    model = weights()
    model["head.weight"][0, 0] = float("nan")
    return save(tmp_path / "broken.pt", model, average_of(weights()))


# --------------------------------------------------------------------------------------- exit codes


def test_zero_when_it_passes(path, ckptool):
    output = ckptool("verify", path)
    assert output.exit_code == 0
    assert "passed" in output.splitlines()[-1]


def test_one_when_it_fails(broken, ckptool):
    output = ckptool("verify", broken)
    assert output.exit_code == 1
    assert "failed" in output.splitlines()[-1]


def test_one_when_one_of_several_fails(path, broken, ckptool):
    output = ckptool("verify", path, broken, "--json")
    assert output.exit_code == 1
    assert [report["ok"] for report in output.json] == [True, False]


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--require", "everything"), "one of: intact, safe"),
        (("--select", "CK9"), "ckptool rule lists them"),
        (("--ignore", "C"), "ckptool rule lists them"),
        (("--latest-valid", "--best", "loss"), "give one"),
        (("--like", "nothing.pt"), "check the spelling"),
        (("--against", "nothing.pt"), "check the spelling"),
        (("--format", "xml"), "it has: text, json"),
    ],
)
def test_two_when_it_could_not_be_done(options, hint, path, ckptool):
    output = ckptool("verify", path, *options)
    assert output.exit_code == 2
    assert hint in output.stderr


def test_an_element_type_that_cannot_be_represented_is_no_verdict(tmp_path, ckptool):
    header = b'{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}'
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(3))
    assert ckptool("verify", path).exit_code == 2


# ------------------------------------------------------------------------------------------- output


def test_findings_stand_by_severity_with_tensor_and_remedy(broken, ckptool):
    lines = ckptool("verify", broken, "--values").splitlines()
    assert "Errors" in lines
    found = next(line for line in lines if "CK301" in line)
    assert "state_dict/head.weight" in found
    assert lines[lines.index(found) + 1].strip().startswith("→ take an earlier checkpoint")


def test_what_was_not_checked_is_said_with_the_option(path, ckptool):
    assert "not checked (--verbose lists them)" in ckptool("verify", path)
    unchecked = ckptool("verify", path, "--verbose").partition("Not checked")[2]
    assert "reads all bytes: --bytes  CK103" in unchecked
    assert "--values" in unchecked


def test_names_from_the_file_are_harmless(tmp_path, ckptool):
    model = {"evil\x1b[31m\n": torch.tensor([1.0, float("nan")]), "b": torch.ones(3)}
    torch.save({"model": model}, tmp_path / "m.pt")
    output = ckptool("verify", tmp_path / "m.pt", "--color", "always")
    assert "model/evil\\x1b[31m\\x0a: " in output
    assert "evil\x1b" not in output


def test_json_keys(path, ckptool):
    report = ckptool("verify", path, "--require", "ema", "--json").json
    assert list(report) == [
        "schema", "path", "ok", "format", "size_bytes", "findings", "checks", "required", "strict",
    ]  # fmt: skip
    assert report["schema"] == "ckptool/verify/1"
    assert report["required"] == ["ema"]
    assert {check["state"] for check in report["checks"]} <= {"passed", "failed", "not-checked"}
    assert ckptool("verify", path, "--require", "ema", "--format", "json").json == report


# ----------------------------------------------------------------------------- comparing with files


@pytest.fixture
def model_json(path, tmp_path, ckptool):
    document = tmp_path / "model.json"
    document.write_text(ckptool("inspect", path, "--tensors", "--json"))
    return document


def test_like_takes_a_checkpoint_a_release_and_a_document(path, model_json, tmp_path, ckptool):
    release = tmp_path / "model.safetensors"
    save_file(weights(), release)
    for other in (path, release, model_json, f"{path}#ema_state_dict"):
        assert ckptool("verify", release, "--like", other).exit_code == 0


def test_like_takes_the_operands_of_diff(path, tmp_path, ckptool):
    release, digests = tmp_path / "model.safetensors", tmp_path / "a#b.json"
    save_file(weights(), release)
    digests.write_text(ckptool("inspect", path, "--digests", "--json"))
    for other in (digests, f"{digests}#ema_state_dict", f"{path}#@ema", f"{path}#@model"):
        output = ckptool("verify", release, "--like", other)
        assert output.exit_code == 0, output


def test_like_tells_the_rename(model_json, tmp_path, ckptool):
    renamed = {f"backbone.{name}": value for name, value in weights().items()}
    torch.save({"state_dict": renamed}, tmp_path / "renamed.pt")
    output = ckptool("verify", tmp_path / "renamed.pt", "--like", model_json, "--json")
    found = {f["rule"]: f for f in output.json["findings"]}
    assert output.exit_code == 1
    assert {"CK601", "CK602", "CK604"} <= found.keys()
    assert found["CK604"]["remedy"] == "rename backbone.* to *: then 5 of 5 fit"


SCHEMA = '{"schema": "ckptool/inspect/1"'


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[",
        "[1]",
        SCHEMA + "}",
        SCHEMA + ', "entries": 3}',
        SCHEMA + ', "entries": [3]}',
        SCHEMA + ', "entries": [{}]}',
        SCHEMA + ', "entries": []}',
        SCHEMA + ', "entries": [{"address": "a", "dtype": "float99", "shape": [1]}]}',
        SCHEMA + ', "entries": [{"address": "a", "dtype": "float32", "shape": [[]]}]}',
        SCHEMA + ', "entries": [{"address": 3, "dtype": "float32", "shape": 3}]}',
    ],
)
def test_like_refuses_other_documents(content, path, tmp_path, ckptool):
    other = tmp_path / "other.json"
    other.write_text(content)
    assert ckptool("verify", path, "--like", other).exit_code == 2


@pytest.mark.parametrize("names", ["model", "bare", "ema"])
def test_what_extract_writes_is_the_sources_average(names, path, tmp_path, ckptool):
    release = tmp_path / "ema.safetensors"
    assert ckptool("extract-ema", path, "-o", release, "--names", names).exit_code == 0
    assert ckptool("verify", release, "--against", path).exit_code == 0


def test_what_promote_writes_in_another_type_is_the_sources_average(tmp_path, ckptool):
    model = {name: v.bfloat16() if v.is_floating_point() else v for name, v in weights().items()}
    source = save(tmp_path / "source.pt", model, average_of(weights()))
    promoted = tmp_path / "promoted.pt"
    assert ckptool("promote-ema", source, "-o", promoted).exit_code == 0
    assert ckptool("verify", promoted, "--against", source).exit_code == 0


def test_the_raw_weights_are_told_by_name(path, tmp_path, ckptool):
    release = tmp_path / "raw.safetensors"
    save_file(weights(), release)
    output = ckptool("verify", release, "--against", path, "--json")
    (found,) = [f for f in output.json["findings"] if f["rule"] == "CK701"]
    assert "they are its raw weights" in found["message"]
    assert found["remedy"].startswith("--against SOURCE#@model compares with those")
    assert output.exit_code == 1


@pytest.mark.parametrize("place", ["#@ema", "#ema_state_dict"])
def test_a_place_in_the_source_can_be_named(place, path, tmp_path, ckptool):
    release = tmp_path / "ema.safetensors"
    assert ckptool("extract-ema", path, "-o", release).exit_code == 0
    assert ckptool("verify", release, "--against", f"{path}{place}").exit_code == 0
    raw = ckptool("verify", release, "--against", f"{path}#@model", "--json")
    assert raw.exit_code == 1
    errors = {f["rule"] for f in raw.json["findings"] if f["severity"] == "error"}
    assert errors == {"CK701"}


@pytest.mark.parametrize("place", ["#@model", "#state_dict"])
def test_a_release_of_the_raw_weights_is_held_against_them(place, path, tmp_path, ckptool):
    release = tmp_path / "raw.safetensors"
    save_file(weights(), release)
    assert ckptool("verify", release, "--against", f"{path}{place}").exit_code == 0
    assert ckptool("verify", release, "--against", f"{path}#@ema").exit_code == 1


PROVEN = {
    "the EMA": ((), "", "equal: 5 of 5 tensors are bit for bit the EMA at ema_state_dict of {}"),
    "raw weights": (
        ("--ema", "state_dict"), "#@model",
        "equal: 5 of 5 tensors are bit for bit the raw weights at state_dict of {}",
    ),
    "a cast": (
        ("--dtype", "float16"), "",
        "equal after a cast to float16: 5 of 5 tensors are the EMA at ema_state_dict of {}",
    ),
    "a place": (
        ("--ema", "ema_state_dict"), "#ema_state_dict",
        "equal: 5 of 5 tensors are bit for bit the weights at ema_state_dict of {}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PROVEN)
@pytest.mark.parametrize("form", ["text", "html"])
def test_what_was_proven_is_told_in_a_line(case, form, path, tmp_path, ckptool):
    options, place, told = PROVEN[case]
    release = tmp_path / "out.safetensors"
    assert ckptool("extract-ema", path, *options, "-o", release).exit_code == 0
    against = ("--against", f"{path}{place}")
    shown = ckptool("verify", release, *against, "--format", form)
    if form == "html":
        shown = re.sub(r"<[^>]*>", "", shown)
    assert told.format(path) in shown
    proof = ckptool("verify", release, *against, "--json").json["proof"]
    assert (proof["path"], proof["tensors"]) == (str(path), 5)
    assert proof["casts"] == (["float16"] if case == "a cast" else [])


def test_nothing_is_proven_of_a_file_with_more_tensors(path, tmp_path, ckptool):
    release = tmp_path / "more.safetensors"
    save_file(average_of(weights()) | {"extra.w": torch.zeros(2)}, release)
    done = ckptool("verify", release, "--against", path, "--json")
    (found,) = (f for f in done.json["findings"] if f["rule"] == "CK702")
    assert found["message"] == "1 tensor is in the file but not in the source: extra.w"
    assert "proof" not in done.json
    assert "proof" not in ckptool("verify", path, "--json").json


@pytest.mark.parametrize(
    ("place", "code"), [("#nowhere", "no-such-address"), ("#model", "no-such-address")]
)
def test_a_source_without_that_place_is_an_error(place, code, tmp_path, ckptool):
    release, source = tmp_path / "raw.safetensors", tmp_path / "source.pt"
    save_file(weights(), release)
    torch.save({"epoch": 1, "state_dict": weights()}, source)
    output = ckptool("verify", release, "--against", f"{source}{place}", "--json")
    assert (output.exit_code, output.json["error"]["code"]) == (2, code)
    assert output.json["error"]["path"] == str(source)


def test_a_source_without_averages_is_an_error(tmp_path, ckptool):
    release, source = tmp_path / "raw.safetensors", tmp_path / "source.pt"
    save_file(weights(), release)
    torch.save({"epoch": 1, "state_dict": weights()}, source)
    output = ckptool("verify", release, "--against", source, "--json")
    assert (output.exit_code, output.json["error"]["code"]) == (2, "ema-not-found")


@pytest.mark.parametrize("name", ["loads", "provenance"])
def test_requiring_a_comparison_without_the_other_side_fails(name, path, ckptool):
    assert ckptool("verify", path, "--require", name).exit_code == 1


# ------------------------------------------------------------------------------------------ folders


@pytest.fixture
def run(tmp_path):
    """Five checkpoints; the newest was cut off, the newest by the clock is the oldest."""
    folder = tmp_path / "run"
    folder.mkdir()
    for step, loss in ((100, 0.5), (200, 0.2), (300, 0.3), (1000, 0.4)):
        model = weights()
        more = {**resumable(model), "global_step": step, "val_stats": {"loss": loss}}
        save(folder / f"step{step}.pt", model, **more)
    newest = folder / "step2000.pt"
    raw = (folder / "step1000.pt").read_bytes()
    newest.write_bytes(raw[: len(raw) // 2])
    os.utime(folder / "step100.pt")
    return folder


def test_a_folder_is_all_its_checkpoints(run, ckptool):
    output = ckptool("verify", run, "--json")
    assert output.exit_code == 1
    assert {Path(report["path"]).name: report["ok"] for report in output.json} == {
        "step100.pt": True, "step200.pt": True, "step300.pt": True, "step1000.pt": True,
        "step2000.pt": False,
    }  # fmt: skip


def test_the_latest_valid_is_printed_alone(run, ckptool):
    output = ckptool("verify", "--latest-valid", run)
    assert (output.exit_code, output) == (0, f"{run / 'step1000.pt'}\n")


def test_the_latest_that_meets_what_is_required(run, ckptool):
    (run / "step1000.pt").unlink()
    model = weights()
    save(run / "step900.pt", model, {}, epoch=9, global_step=900)
    output = ckptool("verify", "--latest-valid", run, "--require", "ema")
    assert output.strip() == str(run / "step300.pt")


def test_without_a_valid_one_the_code_is_one_and_the_reasons_are_shown(run, ckptool):
    for path in run.glob("step[13]0*.pt"):
        path.unlink()
    (run / "step200.pt").unlink()
    output = ckptool("verify", "--latest-valid", run)
    assert output.exit_code == 1
    assert output.stdout == ""  # which a script takes for a path
    path = run / "step2000.pt"
    assert output.stderr.splitlines()[0] == "none passes"
    assert f"skipped {path}: " in output.stderr
    assert output.stderr.endswith(f"hint: to see everything that is wrong: ckptool verify {path}\n")


def test_the_hint_has_the_options_that_were_typed(run, ckptool):
    typed = ("--require", "resume,ema", "--ignore-rules", "CK511", "--strict", "--no-values")
    output = ckptool("verify", "--latest-valid", run, *typed)
    assert output.exit_code == 1
    assert output.stderr.endswith(f"/step1000.pt {' '.join(typed)}\n")


@pytest.mark.parametrize("count", [9, 14])
def test_the_reasons_take_a_line_each_and_are_folded(count, run, ckptool):
    for path in run.iterdir():
        path.unlink()
    for step in range(count):
        save(run / f"step{step:02}.pt", weights(), epoch=1, global_step=step)
    output = ckptool("verify", "--latest-valid", run, "--require", "resume,ema")
    first, *lines, hint = output.stderr.splitlines()
    assert (output.exit_code, first) == (1, "none passes")
    folded = count - 10
    assert lines[-1] == f"skipped {folded} more: --json has them all" or folded < 0
    told = lines[:-1] if folded > 0 else lines
    newest = [f"skipped {run / f'step{step:02}.pt'}: CK" for step in reversed(range(count))]
    assert [line[: len(start)] for line, start in zip(told, newest, strict=False)] == newest[:10]
    shows = f"to see everything that is wrong: ckptool verify {newest_of(run)} --require resume,ema"
    assert hint == f"hint: {shows}"
    report = ckptool("verify", "--latest-valid", run, "--require", "resume,ema", "--json").json
    assert len(report["passed_over"]) == count


def newest_of(run):
    return max(run.iterdir())


@pytest.mark.parametrize("below", ["checkpoints", "version_0/checkpoints"])
def test_a_folder_above_the_checkpoints_says_where_they_are(below, run, tmp_path, ckptool):
    outer = tmp_path / "outer"
    place = outer / below
    place.parent.mkdir(parents=True)
    run.rename(place)
    output = ckptool("verify", "--latest-valid", outer)
    assert output.exit_code == 2
    assert f"hint: there are some in {place}" in output.stderr.replace("\n", " ")


def test_the_best_by_a_metric(run, ckptool):
    assert ckptool("verify", run, "--best", "loss").strip() == str(run / "step200.pt")
    chosen = ckptool("verify", run, "--best", "val_stats/loss", "--json").json
    assert chosen["schema"] == "ckptool/verify-choice/1"
    assert chosen["path"] == str(run / "step200.pt")
    assert len(chosen["reports"]) == 1


def test_the_best_is_not_by_the_results_of_training(run, ckptool):
    """Both dicts of results have a loss: that of training is never meant."""
    for path in sorted(run.glob("*.pt"))[:3]:
        if path.stem != "cut":
            try:
                state = torch.load(path, weights_only=False)
            except RuntimeError:
                continue
            state = {"train_stats": {"loss": -state["val_stats"]["loss"]}, **state}
            torch.save(state, path)
    assert ckptool("verify", run, "--best", "loss").strip() == str(run / "step200.pt")


def test_a_metric_at_two_places_is_not_guessed(tmp_path, ckptool):
    stats = {"val_stats": {"loss": 0.1}, "test_stats": {"loss": 0.2}}
    save(tmp_path / "a.pt", weights(), epoch=1, **stats)
    output = ckptool("verify", tmp_path, "--best", "loss")
    assert output.exit_code == 2
    assert "name one: val_stats/loss, test_stats/loss" in output.stderr
    assert ckptool("verify", tmp_path, "--best", "test_stats/loss").exit_code == 0


def test_the_best_must_pass_too(run, ckptool):
    path = run / "step200.pt"
    state = torch.load(path, weights_only=False)
    state["state_dict"]["head.weight"].fill_(float("nan"))
    torch.save(state, path)
    assert ckptool("verify", run, "--best", "loss").strip() == str(run / "step300.pt")


@pytest.mark.parametrize("metric", ["accuracy", "nothing"])
def test_a_metric_that_nobody_has(metric, run, ckptool):
    output = ckptool("verify", run, "--best", metric)
    assert output.exit_code == 2
    assert "val_stats/loss" in output.stderr


# ------------------------------------------------------------------------------------ configuration


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_options_stand_in_the_configuration(project, path, ckptool):
    plain = ckptool("verify", path, "--json").json
    (project / "pyproject.toml").write_text('[tool.ckptool.verify]\nrequire = ["resume"]\n')
    required = ckptool("verify", path, "--json")
    assert plain["ok"]
    assert (required.exit_code, required.json["required"]) == (1, ["resume"])


def test_the_command_line_overrides_it(project, path, ckptool):
    (project / "ckptool.toml").write_text('[verify]\nrequire = ["resume"]\nselect = ["CK5"]\n')
    output = ckptool("verify", path, "--require", "ema", "--select", "CK4", "--json")
    assert output.json["required"] == ["ema"]
    assert {check["rule"][:3] for check in output.json["checks"]} == {"CK4", "CK3"}


@pytest.mark.parametrize(
    "text",
    [
        "verify = 3", "[verify]\nreqire = ['ema']", "[verify]\nstrict = 'yes'",
        "[verify]\nselect = 'CK4'", "[verify]\nrequire = ['nothing']", "[verify]\nignore = ['CK9']",
    ],
)  # fmt: skip
def test_a_configuration_that_nobody_understands_is_an_error(text, project, path, ckptool):
    (project / "ckptool.toml").write_text(text)
    assert ckptool("verify", path, "--config", "ckptool.toml").exit_code == 2


def test_an_option_of_another_kind_is_told_with_its_form(project, path, ckptool):
    (project / "ckptool.toml").write_text("[verify]\nrequire = 'ema'")
    output = ckptool("verify", path)
    assert 'ckptool verify --help tells what it takes; names are a list: require = ["…"]' in (
        output.stderr
    )


# ---------------------------------------------------------------------------------------- the rules


def test_rule_says_what_to_do(ckptool):
    output = ckptool("rule", "CK404")
    assert output.startswith("CK404  ema-identical, warning")
    assert "check that the EMA's update runs" in output


def test_rule_lists_all_or_a_family(ckptool):
    assert len(ckptool("rule", "--json").json["rules"]) > 50
    family = ckptool("rule", "ck4", "--json").json["rules"]
    assert {rule["id"][:3] for rule in family} == {"CK4"}
    assert ckptool("rule", "CK9").exit_code == 2


# ---------------------------------------------------------------------------------- fresh processes

DRIVER = """
import sys
from ckptool.cli import main
code = main(sys.argv[1:])
print(code, *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("options", "absent"),
    [((), {"torch", "numpy", "rich"}), (("--bytes", "--values"), {"torch", "rich"})],
)
def test_a_run_imports_no_torch_and_by_default_no_numpy(options, absent, path):
    command = [sys.executable, "-c", DRIVER, "verify", str(path), *options]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    code, *modules = done.stderr.split()
    assert code == "0"
    assert not absent & set(modules)


def test_tensors_without_values_are_not_called_finite(tmp_path, ckptool):
    model = {"w": torch.empty(4, 4, device="meta"), "v": torch.ones(4)}
    torch.save({"model": model}, tmp_path / "meta.pt")
    output = ckptool("verify", tmp_path / "meta.pt", "--require", "finite", "--json")
    (check,) = [check for check in output.json["checks"] if check["rule"] == "CK301"]
    assert (output.exit_code, check["state"]) == (1, "not-checked")


def test_the_best_by_a_metric_beyond_all_floats_is_another(tmp_path, ckptool):
    for epoch, loss in ((1, 10**400), (2, 0.5)):
        tree = {"model": {"w": torch.ones(4, 4)}, "epoch": epoch, "val_loss": loss}
        torch.save(tree, tmp_path / f"{epoch}.pt")
    output = ckptool("verify", tmp_path, "--best", "val_loss")
    assert (output.exit_code, output.strip()) == (0, str(tmp_path / "2.pt"))
