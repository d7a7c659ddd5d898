"""``PATH#ADDRESS`` means the same in every command, and so do outputs."""

from __future__ import annotations

import json

import pytest
import torch

from ckptool.render.outputs import RENDERERS, TEXTS
from helpers.paths import FIXTURES

LATE = FIXTURES / "ema" / "has_ema" / "late.pt"


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    model = {"a.weight": torch.randn(4, 4), "a.bias": torch.randn(4)}
    ema = {name: tensor + 0.01 for name, tensor in model.items()}
    bad = {"w": torch.full((3,), torch.nan)}
    torch.save({"state_dict": model, "ema": ema, "bad": bad, "epoch": 3}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def test_inspect_shows_a_part(path, ckptool):
    shown = ckptool("inspect", f"{path}#ema", "--tensors", "--json").json
    assert (shown["path"], shown["address"]) == (str(path), "ema")
    assert [entry["address"] for entry in shown["entries"]] == ["a.weight", "a.bias"]
    assert shown["tensors"]["count"] == 2
    assert ckptool("inspect", f"{path}#ema").startswith("a.pt#ema  torch.save (zip)")
    assert "address" not in ckptool("inspect", path, "--json").json


@pytest.mark.parametrize("address", ["@ema", "@model", "ema/a.*", "ema/a.weight", ""])
def test_inspect_takes_every_kind_of_address(address, path, ckptool):
    done = ckptool("inspect", f"{path}#{address}", "--tensors", "--json")
    assert done.exit_code == 0, done
    assert done.json["entries"]


def test_verify_checks_a_part(path, ckptool):
    done = ckptool("verify", f"{path}#ema", "--values", "--json")
    assert done.exit_code == 0, done
    assert done.json["address"] == "ema"
    checks = {check["rule"]: check for check in done.json["checks"]}
    assert checks["CK301"]["state"] == "passed"
    assert checks["CK101"]["state"] == "passed"  # of the whole file
    assert checks["CK501"]["state"] == "not-checked"
    assert checks["CK501"]["reason"] == "asked of a whole checkpoint, not of a part"
    assert ckptool("verify", f"{path}#bad", "--require", "finite").exit_code == 1
    assert ckptool("verify", f"{path}#ema", "--require", "finite").exit_code == 0


def test_what_cannot_be_asked_of_a_part_does_not_pass_when_it_is_required(path, ckptool):
    done = ckptool("verify", f"{path}#ema", "--require", "resume", "--json")
    assert done.exit_code == 1
    assert "not of a part" in done.json["findings"][0]["message"]


def test_a_part_of_a_damaged_file_does_not_pass(path, ckptool):
    data = bytearray(path.read_bytes())
    stored = torch.load(path)["ema"]["a.weight"].numpy().tobytes()
    data[data.index(stored) + 5] ^= 1
    path.write_bytes(data)
    assert ckptool("verify", f"{path}#state_dict", "--bytes").exit_code == 1
    assert ckptool("verify", f"{path}#state_dict", "--require", "intact").exit_code == 1


def test_a_part_without_tensors_passes_nothing(path, ckptool):
    done = ckptool("verify", f"{path}#epoch", "--require", "finite")
    assert (done.exit_code, "no tensors" in done.stderr) == (2, True)


def test_no_sidecar_file_belongs_to_a_part(path, ckptool):
    torch.save(torch.load(path)["ema"], path.with_name("a_ema.pt"))
    assert ckptool("inspect", f"{path}#state_dict", "--json").json["ema"]["status"] == "none"


def test_parts_of_one_file_are_told_apart(path, ckptool):
    operands = (f"{path}#bad", f"{path}#ema")
    assert [f"a.pt#{part}" in ckptool("inspect", *operands) for part in ("bad", "ema")] == [
        True
    ] * 2
    verify = ("verify", *operands, "--values", "--format")
    assert f'testsuite name="{path}#bad"' in ckptool(*verify, "junit")
    assert "#bad: w: " in ckptool(*verify, "github")
    results = json.loads(ckptool(*verify, "sarif"))["runs"][0]["results"]
    names = {
        place["logicalLocations"][0]["fullyQualifiedName"]
        for result in results
        if result["kind"] == "fail"
        for place in result["locations"]
    }
    assert names == {"bad/w"}


def test_a_choice_among_checkpoints_takes_no_address(path, ckptool):
    for choice in (["--latest-valid"], ["--best", "loss"]):
        done = ckptool("verify", f"{path}#ema", *choice)
        assert (done.exit_code, "#ADDRESS" in done.stderr) == (2, True)
    assert ckptool("verify", path.parent, "--best", "").exit_code == 2  # an unset variable


def test_a_name_that_begins_with_a_hash_is_a_path(ckptool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "#5.pt: no such file" in ckptool("verify", "#5.pt").stderr


def test_a_part_loads_into_a_model_or_not(path, ckptool):
    assert ckptool("verify", f"{path}#ema", "--like", f"{path}#state_dict").exit_code == 0
    assert ckptool("verify", f"{path}#bad", "--like", f"{path}#state_dict").exit_code == 1


def test_promote_takes_the_ema_at_the_address(path, ckptool, tmp_path):
    named = ckptool("promote-ema", f"{path}#ema", "-o", tmp_path / "b.pt", "--json")
    option = ckptool("promote-ema", path, "--ema", "ema", "-o", tmp_path / "c.pt", "--json")
    assert named.exit_code == option.exit_code == 0
    assert named.json["ema"] == option.json["ema"] == "ema"
    both = ckptool("promote-ema", f"{path}#ema", "--ema", "ema", "-o", tmp_path / "d.pt")
    assert "named twice" in both.stderr


def test_textconv_prints_a_part(path, ckptool):
    lines = ckptool("textconv", f"{path}#ema").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["a.weight", "a.bias"]


@pytest.mark.parametrize("command", [("inspect",), ("verify",), ("textconv",)])
def test_a_place_that_is_not_there_is_an_error(command, path, ckptool):
    done = ckptool(*command, f"{path}#nothing")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {path}: nothing: no such place")


@pytest.mark.parametrize("command", ["inspect", "verify", "textconv"])
def test_what_exists_as_it_stands_is_a_path(command, path, ckptool):
    path.rename(path.with_name("a#ema.pt"))
    assert ckptool(command, path.with_name("a#ema.pt")).exit_code in {0, 1}


# ------------------------------------------------------------------------------------------ outputs

ASKED = {
    "inspect": ("InspectReport", ("inspect", LATE)),
    "extract-ema": ("ExtractReport", ("extract-ema", LATE, "--dry-run")),
    "promote-ema": ("PromoteReport", ("promote-ema", LATE, "--in-place", "--dry-run")),
    "verify": ("VerifyReport", ("verify", LATE)),
    "diff": ("DiffReport", ("diff", LATE, LATE)),
    "rule": ("RulesReport", ("rule", "CK404")),
    "layouts": ("LayoutsReport", ("layouts",)),
}
OUTPUTS = [name for name in RENDERERS if name not in TEXTS[1:]]


@pytest.mark.parametrize("command", ASKED)
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_format_is_shown_or_refused_with_those_that_there_are(output, command, ckptool):
    report, args = ASKED[command]
    done = ckptool(*args, "--format", output)
    if report in RENDERERS[output]:
        assert done.exit_code == 0, done
        assert done
    else:
        assert done.exit_code == 2
        assert f"this command has no --format {output}" in done.stderr
        assert "hint: it has: text, json, md" in done.stderr
        assert done == "" or output == "github"  # which annotates the error


@pytest.mark.parametrize("command", ASKED)
def test_json_is_short_for_format_json(command, ckptool):
    _, args = ASKED[command]
    document = json.loads(ckptool(*args, "--json"))
    assert document == json.loads(ckptool(*args, "--format", "json"))


def test_markdown_of_a_text_is_a_block_that_nothing_in_it_ends(ckptool, tmp_path):
    torch.save({"```": torch.ones(2)}, tmp_path / "a.pt")
    shown = ckptool("inspect", tmp_path / "a.pt", "--tensors", "--format", "md")
    assert shown.startswith("````text\n")
    assert shown.endswith("\n````\n")


# ----------------------------------------------------------------------------------- names of rules


@pytest.mark.parametrize(
    ("old", "new"),
    [(("--select", "CK4"), ("--rules", "CK4")), (("--ignore", "CK4"), ("--ignore-rules", "CK4"))],
)
def test_the_old_options_for_rules_still_work(old, new, ckptool, tmp_path, monkeypatch):
    expected = ckptool("verify", LATE, *new, "--json").json
    assert ckptool("verify", LATE, *old, "--json").json == expected
    assert ckptool("verify", LATE, "--json").json != expected
    monkeypatch.chdir(tmp_path)
    for option in (old[0], new[0]):
        key = option.strip("-").replace("-", "_")
        (tmp_path / "ckptool.toml").write_text(f'[verify]\n{key} = ["CK4"]\n')
        found = ckptool("verify", LATE, "--json").json
        assert found.pop("config")[0]["used"] == [f"verify.{key}"]
        assert found == expected


@pytest.mark.parametrize("command", ["extract-ema", "promote-ema", "convert"])
def test_the_whole_is_no_state_dict_where_it_has_several(command, path, ckptool, tmp_path):
    done = ckptool(command, f"{path}#", "-o", tmp_path / "out.pt", "--json")
    assert done.exit_code == 2
    assert "bug" not in done.json["error"]["message"]
    assert list(tmp_path.glob("out.pt*")) == []
