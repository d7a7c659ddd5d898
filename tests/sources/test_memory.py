"""A checkpoint in memory is the same checkpoint: only the disk is left out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ckptool.commands.inspect import inspect_checkpoint
from ckptool.commands.listing import Listing
from ckptool.errors import CkptError
from ckptool.formats import open_checkpoint
from ckptool.sources.memory import Memory
from ckptool.tensors.as_torch import as_torch
from ckptool.tree.nodes import TensorRef
from ckptool.writers.files.whole_file import whole_file
from helpers.paths import FIXTURES
from helpers.thinned import one_in

SUFFIXES = {".pt", ".ckpt", ".pth", ".safetensors", ".pkl", ".bin", ".tar", ".th"}
FILES = sorted(p for p in FIXTURES.rglob("*") if p.suffix in SUFFIXES and p.is_file())
PLAIN = FIXTURES / "formats" / "torch_zip" / "plain.pt"
WHOLE = Listing(every=True, stats=True, digests=True)


def in_memory(path: Path) -> Memory:
    return Memory(path.read_bytes(), str(path))


@pytest.mark.parametrize("fixture", one_in(5, FILES), ids=lambda p: str(p.relative_to(FIXTURES)))
def test_inspect_says_the_same(fixture, tmp_path):
    """The file is copied to a directory of its own: beside a checkpoint in memory lies nothing."""
    path = Path(shutil.copy(fixture, tmp_path))
    assert told(in_memory(path)) == told(path)


def told(path: Path | Memory) -> object:
    """Return the report of a checkpoint, or the document of the error."""
    try:
        with open_checkpoint(path) as checkpoint:
            return inspect_checkpoint(checkpoint, WHOLE)
    except CkptError as error:
        return error.document


def test_nothing_is_looked_for_beside_it(tmp_path):
    shutil.copy(PLAIN, tmp_path / "last.pt")
    shutil.copy(PLAIN, tmp_path / "last_ema.pt")
    with open_checkpoint(in_memory(tmp_path / "last.pt")) as checkpoint:
        assert inspect_checkpoint(checkpoint).ema.candidates == ()


def test_an_index_of_shards_needs_its_files():
    with pytest.raises(CkptError, match="beside it"):
        open_checkpoint(Memory(b'{"metadata": {}, "weight_map": {"a": "model.bin"}}'))


def test_writers_copy_it(tmp_path):
    with whole_file(tmp_path / "copy.pt", force=False) as output:
        output.copy_file(in_memory(PLAIN))
    assert (tmp_path / "copy.pt").read_bytes() == PLAIN.read_bytes()


def test_its_tensors_are_tensors_of_torch():
    with open_checkpoint(in_memory(PLAIN)) as held, open_checkpoint(PLAIN) as mapped:
        for name, ref in held.tree.items():
            if isinstance(ref, TensorRef):
                ours = as_torch({name: ref}, held.reader)[name]
                theirs = as_torch({name: mapped.tree[name]}, mapped.reader)[name]
                assert ours.equal(theirs)
