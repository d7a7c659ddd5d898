"""``--require ema`` says of genuine checkpoints what extract-ema would do with them."""

from __future__ import annotations

import json

import pytest

from paths import FIXTURES

ROWS = {
    row["file"]: row
    for row in json.loads((FIXTURES / "ema" / "manifest.json").read_text())
    if row["genuine"]
}


@pytest.mark.parametrize("name", ROWS)
def test_an_ema_is_there_where_extract_takes_one(name, tmp_path, ckptool):
    path = FIXTURES / "ema" / name
    extracted = ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--dry-run")
    verified = ckptool("verify", path, "--require", "ema", "--select", "CK401", "--json")
    (check,) = [check for check in verified.json["checks"] if check["rule"] == "CK401"]
    assert check["state"] == ("passed" if extracted.exit_code == 0 else "failed")
