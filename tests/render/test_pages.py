"""The table of outputs: each report finds its renderers, and no other's modules."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import is_dataclass
from importlib import import_module

import pytest

from ckptool.render.outputs import RENDERERS
from ckptool.reports.base import SCHEMAS
from helpers.paths import FIXTURES

REPORTS = ("base", "diff", "help", "inspect", "run", "verify", "write")


ROWS = [(output, *row) for output, rows in RENDERERS.items() for row in rows.items()]


@pytest.mark.parametrize(("output", "report", "function"), ROWS)
def test_a_renderer_is_there_and_its_report_too(output, report, function):
    module, _, name = function.partition(".")
    assert callable(getattr(import_module(f"ckptool.render.{module}"), name))
    homes = (import_module(f"ckptool.reports.{home}") for home in REPORTS)
    assert [home for home in homes if is_dataclass(getattr(home, report, None))]


def test_every_document_has_a_page_and_is_json():
    assert SCHEMAS.keys() <= RENDERERS["text"].keys()
    assert SCHEMAS.keys() == RENDERERS["json"].keys()


def test_inspect_imports_nothing_of_other_commands():
    path = FIXTURES / "ema" / "has_ema" / "late.pt"
    code = (
        "import sys; from ckptool.cli import main; main(['inspect', sys.argv[1]]); "
        "print([m for m in sys.modules if m.startswith('ckptool') and "
        "('verify' in m or 'diff' in m or m.endswith(('.run', '.runs')))])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, path], check=True, capture_output=True, text=True
    )
    assert told.stdout.splitlines()[-1] == "[]"
