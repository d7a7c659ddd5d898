"""Every rule fires on its fault and is silent on the same file without it."""

from __future__ import annotations

import copy
import re

import pytest
import torch

import rules_page
from ckptool.checks.registry import CHECKS
from ckptool.reports.requirements import REQUIREMENTS
from ckptool.reports.rules import BY_ID, FAMILIES, RULES, WRITING
from helpers import runs
from helpers.faults import CASES, Case

TESTED_ELSEWHERE = {
    "CK106": "test_container.py: it takes somebody who writes meanwhile",
    "CK125": "test_dcp_safetensors.py: it takes a directory of shards",
    "CK127": "test_sharded.py: it takes a directory of shards",
    "CK120": "test_unreadable.py: one path alone is an error, not a finding",
    "CK418": "test_own_notes.py: it takes a file that ckptool wrote, and its source",
}


def test_every_rule_has_a_fault():
    assert {rule.id for rule in RULES} == CASES.keys() | TESTED_ELSEWHERE.keys()


def test_every_rule_is_decided_by_one_check():
    decided = [rule for check in CHECKS for rule in check.rules]
    assert sorted(decided) == sorted(rule.id for rule in RULES)


def test_the_page_is_that_of_the_table():
    assert rules_page.PAGE.read_text() == rules_page.page(), "run tests/rules_page.py"


def test_ids_are_unique_and_of_a_family():
    assert len(BY_ID) == len(RULES) + len(WRITING)
    assert {rule[:3] for rule in BY_ID} == FAMILIES.keys()
    assert all(re.fullmatch(r"CK\d{3}", rule) for rule in BY_ID)


@pytest.fixture
def verify(state, tmp_path, ckptool):
    """The rule's verdict on the state after a change."""
    like = runs.save(state["model"], tmp_path / "like", "model.pt")
    source = runs.save(state, tmp_path / "source", "source.pt")

    def run(rule: str, case: Case, *, faulty: bool):
        made = copy.deepcopy(state)
        for change in (case.both, case.state if faulty else case.sound):
            made = made if change is None else (change(made) or made)
        name = case.name if faulty and case.name else runs.NAME
        path = runs.save(made, tmp_path / "run", name)
        change_file = case.file if faulty else case.sound_file
        if change_file:
            path = change_file(path) or path
        options = [o.format(rule=rule, like=like, source=source) for o in case.options]
        return ckptool("verify", path, *options, "--json")

    return run


def verdict(output, rule: str):
    (check,) = [check for check in output.json["checks"] if check["rule"] == rule]
    return check


def summary(output, rule: str):
    return output.exit_code, verdict(output, rule), output.json["findings"]


@pytest.mark.parametrize("rule", CASES)
def test_it_fires(rule, verify):
    output = verify(rule, CASES[rule], faulty=True)
    findings = [f for f in output.json["findings"] if f["rule"] == rule]
    assert findings, summary(output, rule)
    assert verdict(output, rule)["state"] == "failed"
    named = {"--require", "--like", "--against"} & set(CASES[rule].options)
    is_required = named and any(rule in each.rules for each in REQUIREMENTS.values())
    assert findings[0]["severity"] == ("error" if is_required else BY_ID[rule].severity)
    assert (output.exit_code, output.json["ok"]) == ((0, True) if output.json["ok"] else (1, False))
    said = " ".join(f"{f['address']} {f['message']} {f['remedy']}" for f in findings)
    assert CASES[rule].says in said


@pytest.mark.parametrize("rule", CASES)
def test_it_is_silent_without_the_fault(rule, verify):
    output = verify(rule, CASES[rule], faulty=False)
    assert verdict(output, rule)["state"] == "passed", summary(output, rule)
    assert output.json["ok"], output.json["findings"]


def test_a_sound_run_has_nothing_to_say(sound, ckptool):
    output = ckptool("verify", sound, "--require", "resume,ema,finite,intact", "--strict", "--json")
    told = [f for f in output.json["findings"] if f["severity"] != "info"]
    assert (output.exit_code, told) == (0, [])
    assert torch.load(sound, weights_only=False)
