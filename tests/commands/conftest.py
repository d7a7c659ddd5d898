"""What the tests of the commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.paths import contents


@pytest.fixture
def refusing(ckptool, tmp_path: Path) -> Callable[..., dict]:
    """Run a command, expect a refusal that leaves the folder as it was; gives the error."""

    def run(*args) -> dict:
        before = contents(tmp_path)
        output = ckptool(*args, "--json")
        assert output.exit_code == 2
        assert contents(tmp_path) == before
        return output.json["error"]

    return run
