"""Writes ``docs/rules.md`` from the table: ``python tests/rules_page.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ckptool.reports.requirements import REQUIREMENTS
from ckptool.reports.rules import BY_ID, FAMILIES, Rule

PAGE = Path(__file__).parent.parent / "docs/rules.md"

HEAD = """\
# The rules of verify

[`ckptool verify`](commands/verify.md) decides these rules; `ckptool rule CK404` explains one in a terminal.

A rule has **passed**, has **failed**, or was **not checked**, with the reason. By default everything
runs that reads headers, pickles and a sample of the values. Rules that read every byte or value run
with `--bytes` and `--values`, when they are selected by their id, or when they are required. Rules
*on request* run when they are selected or required. Findings of severity *error* fail, warnings do
with `--strict`; what is required and fails is an error whatever its severity, and so is what is
required and could not be checked.

`--require` takes the names in this table. A rule about something that the file does not have cannot
fail; whether it has to be there is a rule of its own (CK401, CK501, …).

A directory of `torch.distributed.checkpoint` (DCP) never passes `--require intact`: the checksums inside its shards are not read
(CK103), nor where its files end (CK107). `--require intact --ignore-rules CK103,CK107` requires the rest: the plan, the files and
their sizes. A changed byte in a tensor is not noticed then.
"""


def page() -> str:
    """All of it."""
    return "\n".join([HEAD, *_requirements(), *_families()])


def _requirements() -> Iterator[str]:
    yield "| `--require` | Rules that must pass |"
    yield "|--|--|"
    for name, requirement in REQUIREMENTS.items():
        yield f"| `{name}` | {', '.join(requirement.rules)} |"


def _families() -> Iterator[str]:
    for prefix, name in FAMILIES.items():
        yield f"\n## {prefix}: {name}\n"
        yield "| Rule | Severity | It means | What to do | Runs |"
        yield "|--|--|--|--|--|"
        yield from (_row(rule) for rule in BY_ID.values() if rule.id.startswith(prefix))
    yield ""


def _row(rule: Rule) -> str:
    when = "" if rule.default else "on request"
    reads = "" if rule.cost == "tree" else f"`--{rule.cost}`"
    runs = ", ".join(filter(None, (reads, when))) or "always"
    is_command = rule.remedy.startswith("ckptool ")  # which is typed as it is
    remedy = rule.remedy if is_command else rule.remedy[0].upper() + rule.remedy[1:]
    return f"| {rule.id} {rule.name} | {rule.severity} | {rule.meaning} | {remedy}. | {runs} |"


if __name__ == "__main__":
    PAGE.write_text(page())
