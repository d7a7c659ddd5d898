"""The last line of a command that wrote weights: what to type next, in Python or in the shell."""

from __future__ import annotations

from shlex import quote

from ckptool.render import text as words
from ckptool.render.page import Page, line
from ckptool.reports.write import (
    AverageReport,
    ConvertReport,
    PromoteReport,
    WeightsReport,
    WriteReport,
)

QUERY = "?…"  # of a URL, which is not shown


def next_step(report: WriteReport) -> Page:
    """Yield what to type next; nothing in a dry run, or where a path cannot be typed."""
    typed = _typed(report) if report.written else ""
    if typed and words.printable(typed, len(typed)) == typed and QUERY not in typed:
        yield line("")
        yield line(("Next: ", "label"), typed, wraps=False)


def _typed(report: WriteReport) -> str:
    """Return the line that loads a state dict, or the one that checks a whole checkpoint."""
    if isinstance(report, PromoteReport):
        return _promoted(report)
    if isinstance(report, AverageReport) and report.into is not None:
        return _verified(report.output, "--require ema")
    if isinstance(report, ConvertReport) and _is_whole(report) and not report.plain:
        return f"ckptool diff {_in_shell(report.path)} {_in_shell(report.output)}"
    return _loaded(report) if isinstance(report, WeightsReport) else ""


def _promoted(report: PromoteReport) -> str:
    source = report.backup if report.in_place else report.path
    against = f"--against {_in_shell(source)}" if source else "--require ema"
    return _verified(report.output, against)


def _verified(output: str, how: str) -> str:
    return f"ckptool verify {_in_shell(output)} {how}"


def _loaded(report: WeightsReport) -> str:
    """Return the import and the call that load what was written, by the library of the format."""
    path = _literal(report.output)
    if report.shards or report.format == "dcp":
        return f"from ckptool import load_state_dict; state_dict = load_state_dict({path})"
    if report.format != "safetensors":
        name = "checkpoint" if _is_whole(report) else "state_dict"
        key = "" if report.wrap is None else f"[{_literal(report.wrap)}]"
        return f"import torch; {name} = torch.load({path}, weights_only=True){key}"
    if report.tied and report.ties == "once":
        return f"from safetensors.torch import load_model; load_model(model, {path})"
    return f"from safetensors.torch import load_file; state_dict = load_file({path})"


def _is_whole(report: WeightsReport) -> bool:
    return isinstance(report, ConvertReport) and report.kind == "checkpoint"


def _in_shell(path: str) -> str:
    """Return a path as a word of the shell; one that begins with a dash would be an option."""
    return quote(f"./{path}" if path.startswith("-") else path)


def _literal(text: str) -> str:
    """Return a text as a literal of Python, in double quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
