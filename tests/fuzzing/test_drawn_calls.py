"""No drawn pickle makes a loader call what it prepared unless ckptool reports or refuses it."""

from __future__ import annotations

import pytest
from drawn_calls import drawn

from ckptool.errors import CkptError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import DANGEROUS
from ckptool.formats.pickles.plain_names import trust_of
from ckptool.sources.memory import Memory
from helpers.assembling import torch_zip
from helpers.quiet import loader

FEW, MANY = range(150), range(150, 1500)


def passes(file: bytes) -> bool:
    """Whether ckptool opens a file and finds nothing dangerous in it."""
    try:
        with open_checkpoint(Memory(file)) as checkpoint:
            return all(trust_of(named) != DANGEROUS for named in checkpoint.globals_named)
    except CkptError:
        return False


@pytest.mark.parametrize("seeds", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=str)
def test_what_passes_calls_nothing(seeds, tmp_path):
    passed, calling, missed = 0, 0, []
    with loader(tmp_path) as started:
        for seed in seeds:
            file = torch_zip(drawn(seed))
            is_passed = passes(file)
            calls, _ = started.load(file)
            passed += is_passed
            calling += bool(calls)
            if is_passed and calls:
                missed.append(seed)
    assert not missed
    # Otherwise the line above could not fail.
    assert passed > len(seeds) // 10
    assert calling > len(seeds) // 100
