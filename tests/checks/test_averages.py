"""``--require ema`` says of genuine checkpoints what extract-ema would do with them.

``tests/ema/test_fixture_manifest.py`` shows which of them extract-ema takes.
"""

from __future__ import annotations

import json

import pytest

from helpers.manifests import is_taken
from helpers.paths import FIXTURES

ROWS = {row["file"]: row for row in json.loads((FIXTURES / "ema" / "manifest.json").read_text())}


@pytest.mark.parametrize("name", ROWS)
def test_an_ema_is_there_where_extract_takes_one(name, ckptool):
    path = FIXTURES / "ema" / name
    verified = ckptool("verify", path, "--require", "ema", "--select", "CK401", "--json")
    (check,) = [check for check in verified.json["checks"] if check["rule"] == "CK401"]
    assert check["state"] == ("passed" if is_taken(ROWS[name]) else "failed")
