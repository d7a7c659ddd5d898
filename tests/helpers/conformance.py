"""What every format must do; one subclass a format.

The judge is the party that made the format: a file reads as its own loader loads it. And whatever
happens to a file, a damaged one is an error of ours and nothing else.
"""

from __future__ import annotations

import gc
import os
import random
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from ckptool.errors import CkptError, DamagedError
from ckptool.formats import open_checkpoint
from ckptool.tree.walking import tensors
from helpers.judge import assert_reads_like
from helpers.samples import EVERYWHERE
from helpers.thinned import slow

LARGE = 4 << 20  # bytes of a tensor that must not be read on opening
READ_AHEAD = 5 << 19  # bytes that may be: two windows of a pickle, and some headers


class FormatTests:
    """Tests of one format. A subclass says how a file is written and who else can read it."""

    format_name: str
    samples = EVERYWHERE
    beyond_judge: frozenset[str] = frozenset()  # samples that the judge writes but cannot load
    ties = True  # whether tensors can share storages
    padding = 0  # bytes at the end that may be missing
    signature = 16  # bytes from which on a beginning tells the format

    def write(self, path: Path, obj: object) -> None:
        """Put ``obj`` into a file."""
        raise NotImplementedError

    def load(self, path: Path) -> object:
        """What the judge makes of it."""
        return torch.load(path, weights_only=False)

    def small(self) -> object:
        """A checkpoint to be damaged in every way."""
        weight = torch.arange(6.0).view(2, 3)
        tied = {"bias": weight[0]} if self.ties else {}
        return {"weight": weight, "flag": torch.tensor([True, False]), **tied}

    def expected(self, sample, path: Path) -> object:
        """The sample as the judge loads it; where it cannot, the sample itself."""
        obj = sample()
        self.write(path, obj)
        return obj if sample.__name__ in self.beyond_judge else self.load(path)

    # -------------------------------------------------------------------------------- reading

    def test_reads_what_the_judge_loads(self, sample, tmp_path):
        path = tmp_path / "checkpoint"
        assert_reads_like(path, self.expected(sample, path), ties=self.ties)

    def test_is_recognised_whatever_its_suffix(self, tmp_path):
        for suffix in (".pt", ".ckpt", ".safetensors", ".pkl", ""):
            path = tmp_path / f"model{suffix}"
            self.write(path, self.small())
            with open_checkpoint(str(path)) as checkpoint:
                assert checkpoint.format_name == self.format_name
                assert checkpoint.path == path
                assert checkpoint.size_bytes == path.stat().st_size

    def test_opening_reads_no_values(self, tmp_path, monkeypatch):
        path = tmp_path / "large"
        self.write(path, {str(i): torch.full((LARGE // 4,), float(i)) for i in range(3)})
        taken = []
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, n, at: taken.append(n) or pread(fd, n, at))
        with open_checkpoint(path) as checkpoint:
            assert sum(taken) < READ_AHEAD
            assert len(checkpoint.tree) == 3

    def test_opens_in_a_folder_that_cannot_be_written(self, tmp_path):
        path = tmp_path / "small"
        self.write(path, self.small())
        before = sorted(tmp_path.iterdir()), path.read_bytes()
        open_checkpoint(path).close()
        assert (sorted(tmp_path.iterdir()), path.read_bytes()) == before

    # --------------------------------------------------------------------------------- damage

    @pytest.mark.parametrize("cut", [7, slow(1)])
    def test_every_truncation_is_an_error(self, cut, tmp_path):
        """One after the other, or by some bytes more each time."""
        path = tmp_path / "truncated"
        self.write(path, self.small())
        for size in reversed(range(0, path.stat().st_size - self.padding, cut)):
            os.truncate(path, size)
            with pytest.raises(CkptError) as caught:
                open_checkpoint(path)
            assert caught.value.path == path
            assert isinstance(caught.value, DamagedError) or size < self.signature

    @pytest.mark.parametrize("mutations", [150, slow(1_500)])
    def test_no_mutation_escapes(self, mutations, tmp_path):
        path = tmp_path / "mutated"
        self.write(path, self.small())
        sound = path.read_bytes()
        chance = random.Random(0)
        for _ in range(mutations):
            at = chance.randrange(len(sound))
            path.write_bytes(sound[:at] + bytes([chance.randrange(256)]) + sound[at + 1 :])
            read_everything(path)

    def test_failure_closes_the_file(self, tmp_path):
        path = tmp_path / "truncated"
        self.write(path, self.small())
        os.truncate(path, (path.stat().st_size - self.padding) // 2)
        before = open_files()
        with pytest.raises(CkptError):
            open_checkpoint(path)
        assert open_files() <= before


def open_files() -> int:
    """How many this process has; the one that lists them included.

    Another test may have left one in a circle of objects, which is closed whenever Python collects
    it. So what is there before is collected, and fewer after than before are no fault.
    """
    gc.collect()
    return len(list(Path("/dev/fd").iterdir()))


def read_everything(path: Path) -> None:
    """Opens, walks and reads a file; only errors of ours may come out, and they are swallowed."""
    with suppress(CkptError), open_checkpoint(path) as checkpoint:
        for _, ref in tensors(checkpoint.tree):
            for chunk in ref.chunks:
                checkpoint.reader.read(chunk.span)
