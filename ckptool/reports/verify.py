"""Reports of ``ckptool verify`` and ``rule``; see ``base.py``."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from ckptool.records import field, record
from ckptool.reports.base import MAY_BE_ABSENT, ConfiguredReport, Finding, Severity


class State(StrEnum):
    """The outcome of a rule; with the third state, a check that was not made is no success."""

    FAILED = "failed"
    NOT_CHECKED = "not-checked"
    PASSED = "passed"


@record
class CheckResult:
    """The outcome of one rule for one file."""

    rule: str  # CK404
    title: str
    state: State
    reason: str = ""  # why it was not checked
    severity: Severity = Severity.ERROR  # of its findings
    name: str = ""  # ema-absent


# Severities for which a file fails: without ``--strict``, and with it.
COUNTING: tuple[frozenset[Severity], ...] = (
    frozenset({Severity.ERROR}),
    frozenset({Severity.ERROR, Severity.WARNING}),
)


class ResumeVerdict(StrEnum):
    """The answer to the question whether a run goes on from a checkpoint."""

    TO_THE_BIT = "to-the-bit"
    WITH_LOSSES = "with-losses"
    NO = "no"


class PartState(StrEnum):
    """The place of a part of a run when the run is resumed."""

    STORED = "stored"
    REMADE = "remade"  # the trainer makes it again from the other parts
    LOST = "lost"
    UNUSED = "unused"  # the run had no such part, as far as the checkpoint shows


@record
class ResumePart:
    """A part of a run, such as the weights, the optimizer or the random states."""

    part: str
    state: PartState
    addresses: tuple[str, ...] = ()  # key paths of its state, or the names of its facts
    note: str = ""  # what is lost, or how it is made again


@record
class ResumeReport:
    """The resume certificate of a checkpoint."""

    verdict: ResumeVerdict
    trainer: str | None  # None: it could not be opened
    processes: int | None  # of the run, where the checkpoint states their number
    parts: tuple[ResumePart, ...]
    lost: tuple[str, ...]  # what a resume loses, in plain words
    provided: tuple[str, ...]  # conditions that a checkpoint cannot show
    because: tuple[str, ...]  # errors for which a resume is refused
    # No error stops the run: it goes on, whatever it loses. Parts that it could have stored may be
    # missing, for which the verdict is "no".
    goes_on: bool = False
    without: tuple[str, ...] = ()  # the rules of these parts


@record
class ProofReport:
    """The weights of another checkpoint to which those of a file are equal."""

    path: str
    address: str  # key path of the weights
    kind: str  # ema, swa, …; raw; mean; weights: those that the address names
    tensors: int  # all of the file's weights
    casts: tuple[str, ...]  # dtypes of the file to which they were cast; (): equal bit for bit
    buffers: str  # ema; model: some are the buffers of the model beside the EMA weights


@record(kw_only=True)
class VerifyReport(ConfiguredReport):
    """The answer of ``ckptool verify`` for one file."""

    path: str
    ok: bool  # no finding has a severity for which the file fails
    format: str | None  # None: it could not be opened
    size_bytes: int
    findings: tuple[Finding, ...]
    checks: tuple[CheckResult, ...]  # every rule that was selected, in the order of the table
    required: tuple[str, ...] = ()  # --require, as given
    strict: bool = False  # the file fails for warnings, too
    # The reason why the file could not be read; None: it was read.
    error: Mapping[str, Any] | None = field(default=None, metadata=MAY_BE_ABSENT)
    # Key path of the part that was checked; all other key paths are relative to it.
    address: str | None = field(default=None, metadata=MAY_BE_ABSENT)
    # What a resume keeps and loses; None: nobody asked whether the run can be resumed.
    resume: ResumeReport | None = field(default=None, metadata=MAY_BE_ABSENT)
    # The weights that these are; None: no comparison was asked for, or they are not.
    proof: ProofReport | None = field(default=None, metadata=MAY_BE_ABSENT)


@record
class PassedOver:
    """A checkpoint of a run that was not chosen because it does not pass, and the reason."""

    path: str
    reason: str


@record(kw_only=True)
class ChoiceReport(ConfiguredReport):
    """The checkpoint of a run that ``verify --latest-valid`` or ``--best`` chose."""

    path: str | None  # None: no checkpoint passed
    why: str
    reports: tuple[VerifyReport, ...]  # of the checkpoints that were checked, in that order
    passed_over: tuple[PassedOver, ...] = ()  # also saves that were never finished


@record
class RulesReport:
    """The table of rules, or a part of it."""

    rules: tuple[Any, ...]  # rows of ``rules.py``
