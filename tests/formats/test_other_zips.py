"""Names in a zip that say whose it is."""

from __future__ import annotations

import pytest

from ckptool.errors import DamagedError
from ckptool.formats.other_zips import refuse_checkpoints


@pytest.mark.parametrize("name", ["data", "policy.pth", "a/b.ckpt", "model.safetensors"])
def test_a_checkpoint_among_the_records_is_refused(name):
    with pytest.raises(DamagedError, match="two files in one"):
        refuse_checkpoints(["archive/version", name])


def test_the_records_of_torch_are_no_checkpoints():
    refuse_checkpoints(
        [
            "archive/version",
            "archive/byteorder",
            "archive/code/m.py",
            "archive/extra/a.json",
            "a/data",
        ]
    )
