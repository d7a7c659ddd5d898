"""Reads from each format which check passed, which failed and which was not made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from xml.etree import ElementTree as ET

from ckptool.reports.verify import VerifyReport

States = dict[str, str]  # rule -> passed, failed, not-checked


def states(reports: list[VerifyReport]) -> States:
    return {check.rule: check.state for report in reports for check in report.checks}


def in_json(text: str) -> States:
    return {check["rule"]: check["state"] for check in json.loads(text)["checks"]}


def in_markdown(text: str) -> States:
    """Rows are failures; the two folded parts are named by their state."""
    found = dict.fromkeys(re.findall(r"^\| \S+ \w+ \| `(CK\d+)`", text, re.MULTILINE), "failed")
    for summary, inside in re.findall(r"<summary>(.*?)</summary>(.*?)</details>", text, re.DOTALL):
        state = re.sub(r"^\S+ \d+ ", "", summary).replace(" ", "-")
        found |= dict.fromkeys(re.findall(r"`(CK\d+)`", inside), state)
    return found


def in_log(text: str) -> States:
    lines = re.findall(r"^(passed|failed|not checked) +(CK\d+)", text, re.MULTILINE)
    return {rule: state.replace(" ", "-") for state, rule in lines}


def in_sarif(text: str) -> States:
    (run,) = json.loads(text)["runs"]
    return {result["ruleId"]: _kind(result) for result in run["results"]}


def _kind(result: dict) -> str:
    """What was required and not checked is a failure that says so."""
    if result["message"]["text"].startswith("required, but not checked"):
        return "not-checked"
    return {"pass": "passed", "fail": "failed", "open": "not-checked"}[result["kind"]]


def in_junit(text: str) -> States:
    cases = ET.fromstring(text.encode()).iter("testcase")
    return {case.get("name").split()[0]: _outcome(case) for case in cases}


def _outcome(case: ET.Element) -> str:
    """What the file does not fail for is told in a case that did not fail."""
    if not len(case):
        return "passed"
    if case[0].get("type") == "not-checked":
        return "not-checked"
    return {"failure": "failed", "skipped": "not-checked", "system-out": "failed"}[case[0].tag]


def in_html(text: str) -> States:
    """The rows of the part with all checks."""
    rows = re.findall(r"<tr><td>(CK\d+) [\w-]+</td><td[^>]*><span[^>]*>(.*?)</span>", text)
    found = {"warning": "failed", "note": "failed"}
    return {rule: found.get(state, state.replace(" ", "-")) for rule, state in rows}


READERS: dict[str, Callable[[str], States]] = {
    "json": in_json,
    "md": in_markdown,
    "github": in_log,
    "sarif": in_sarif,
    "junit": in_junit,
    "html": in_html,
}
