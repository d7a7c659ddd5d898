"""Each report finds its page, and no other's modules."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ckptool.render.pages import HOMES
from ckptool.reports import SCHEMAS
from paths import FIXTURES


@pytest.mark.parametrize("name", HOMES)
def test_the_home_of_a_report_draws_it(name):
    assert name in HOMES[name]()


def test_every_document_has_a_page():
    assert SCHEMAS.keys() - HOMES.keys() == {"DiffReport"}  # its pages are in diff_formats


def test_inspect_imports_nothing_of_other_commands():
    path = FIXTURES / "ema" / "has_ema" / "late.pt"
    code = (
        "import sys; from ckptool.cli import main; main(['inspect', sys.argv[1]]); "
        "print([m for m in sys.modules if m.startswith('ckptool') and "
        "('verify' in m or 'diff' in m or 'verdicts' in m)])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, path], check=True, capture_output=True, text=True
    )
    assert told.stdout.splitlines()[-1] == "[]"
