"""Verifications made by hand, and any that Hypothesis can think of."""

from __future__ import annotations

import os
from dataclasses import replace

from hypothesis import strategies as st

from ckptool.reports.base import Finding
from ckptool.reports.requirements import REQUIREMENTS
from ckptool.reports.verify import CheckResult, VerifyReport
from helpers import strategies

BYTES = "reads every byte: ask with --bytes"

CHECKS = (
    CheckResult("CK101", "The file breaks the rules of its format.", "passed", name="damaged"),
    CheckResult("CK102", "The file ends before its values do.", "failed", name="truncated"),
    CheckResult("CK103", "Bytes do not fit their checksum.", "not-checked", BYTES, name="checksum"),
    CheckResult(
        "CK404", "The averages are the model's own values.", "failed", "", "warning", "same"
    ),
    CheckResult("CK409", "Weights of the model have no average.", "failed", "", "info", "partial"),
)
FINDINGS = (
    Finding("CK102", "error", "state_dict/a.weight", "64 bytes are missing", "get the file again"),
    Finding("CK404", "warning", "ema", "the averages are the model's own values"),
    Finding("CK409", "info", "ema", "1 of 4 weights has no average"),
)


def good(path: str = "runs/good.ckpt") -> VerifyReport:
    """Nothing failed, and not all was checked."""
    return VerifyReport(path, True, "torch-zip", 2048, (), CHECKS[:1] + CHECKS[2:3])


def bad(path: str = "runs/bad.ckpt") -> VerifyReport:
    """All three states, and findings of all three severities."""
    return VerifyReport(path, False, "torch-zip", 2048, FINDINGS, CHECKS, ("intact", "resume"))


def unreadable(path: str = "runs/none.ckpt") -> VerifyReport:
    """What cannot be opened is a finding, and nothing else was checked."""
    finding = Finding("CK101", "error", "", "not a checkpoint")
    checks = (
        replace(CHECKS[0], state="failed"),
        replace(CHECKS[1], state="not-checked", reason="the file could not be opened"),
    )
    return VerifyReport(path, False, None, 3, (finding,), checks)


def unmet(path: str = "runs/unmet.ckpt") -> VerifyReport:
    """What was required and not checked is an error, and not checked."""
    finding = Finding("CK103", "error", "", f"required, but not checked: {BYTES}")
    return VerifyReport(path, False, "torch-zip", 2048, (finding,), CHECKS[2:3], ("intact",))


def required(name: str, findings: tuple[Finding, ...], *, ignored="", form="torch-zip"):
    """What was required, with all rules for it but one."""
    checks = tuple(
        CheckResult(rule, "A fault.", "passed", name="fault")
        for rule in REQUIREMENTS[name].rules
        if rule != ignored
    )
    return VerifyReport("a.ckpt", not findings, form, 2048, findings, checks, (name,))


# What media would obey, between what they would not.
HOSTILE = (
    "|", "`", "\n", "\r\n", "<b>", "<!--", "-->", "]]>", "&amp;", "@somebody", "#1", "[a](b)",
    "![a](b)", "http://a.b", "www.a.b", "**", "~~", "$a$", "\\", "\\|", "%0A", "%", "::error::",
    ":", ",", "##[error]", "{0}", "\x00", "\x1b[31m", "\ufffe", "\ud800", "\u202e", "_", "1.", " ",
)  # fmt: skip


def names() -> st.SearchStrategy[str]:
    """Whatever a file may call something, and more than that."""
    pieces = st.sampled_from(HOSTILE) | strategies.texts()
    return st.lists(pieces, max_size=4).map("".join)


def paths() -> st.SearchStrategy[str]:
    """Whatever the system may call a file."""
    return st.one_of(st.binary(min_size=1, max_size=8).map(os.fsdecode), names()).map(
        lambda path: path.encode("utf-8", "replace").decode() or "a"
    )


@st.composite
def verify_reports(draw: st.DrawFn) -> VerifyReport:
    """A report whose texts may be anything."""
    findings = tuple(
        replace(
            found, address=draw(names()), message=draw(names()), remedy=draw(names() | st.none())
        )
        for found in draw(st.lists(st.sampled_from(FINDINGS), max_size=3))
    )
    found = {finding.rule for finding in findings}
    checks = tuple(
        replace(
            check,
            title=draw(names()),
            name=draw(names()),
            reason=check.reason and draw(names()) + "!",
            state="failed" if check.rule in found else check.state.replace("failed", "passed"),
        )
        for check in CHECKS
    )
    required = tuple(draw(st.lists(st.sampled_from([*REQUIREMENTS]), max_size=2)))
    return VerifyReport(draw(paths()), not findings, "torch-zip", 1, findings, checks, required)


def report_lists() -> st.SearchStrategy[list[VerifyReport]]:
    """What one run says of several files."""
    return st.lists(verify_reports(), min_size=1, max_size=3)
