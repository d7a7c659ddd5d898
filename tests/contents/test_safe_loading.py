"""The answer of torch's safe loader is predicted without torch; torch is the judge."""

import pytest
import torch

from ckptool.contents.safe_loading import safe_load
from ckptool.formats import open_checkpoint
from ckptool.reports.inspect import Load
from helpers.paths import FIXTURES

FILES = [*(FIXTURES / "genuine/lightning").glob("*.ckpt"), *(FIXTURES / "ema").rglob("*.pt")]


def is_taken(path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except Exception:  # noqa: BLE001 - whatever it refuses
        return False
    return True


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FIXTURES).as_posix())
def test_the_answer_is_that_of_torch(path):
    with open_checkpoint(path) as checkpoint:
        assert safe_load(checkpoint).is_refused is not is_taken(path)


def test_there_are_files_of_both_kinds():
    assert {is_taken(path) for path in FILES} == {True, False}


def test_a_pickle_that_is_too_large_has_no_answer(tmp_path):
    """A state that is set on a dict is allowed by its names, and refused as a step."""
    pickle = b"\x80\x02}}b."
    path = tmp_path / "a.pt"
    torch.save({}, path)
    path.write_bytes(path.read_bytes().replace(b"\x80\x02}q\x00.", pickle))
    with open_checkpoint(path) as checkpoint:
        assert safe_load(checkpoint).load is Load.STEP
        assert safe_load(checkpoint, limit=4).load is Load.UNKNOWN
