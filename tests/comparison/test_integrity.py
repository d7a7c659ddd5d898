"""Whether a difference is damage: the records of suspects are compared with their checksums."""

from __future__ import annotations

import pytest
import torch

from ckptool.comparison.integrity import refuse_damaged
from ckptool.errors import DamagedError
from ckptool.formats import open_checkpoint


@pytest.fixture
def path(tmp_path):
    torch.save({"w": torch.arange(100.0), "v": torch.ones(100)}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def damage(path, content):
    data = bytearray(path.read_bytes())
    data[data.index(content) + 1] ^= 4
    path.write_bytes(data)


def judge(path, *names, values_differ=False):
    with open_checkpoint(path) as checkpoint:
        suspects = [checkpoint.tree[name] for name in names]
        refuse_damaged(checkpoint, suspects, values_differ=values_differ)


def test_a_sound_file_is_not_refused(path):
    judge(path, "w", "v", values_differ=True)


def test_a_damaged_record_of_a_suspect_is_refused(path):
    damage(path, torch.arange(100.0).numpy().tobytes())
    with pytest.raises(DamagedError, match="data/0"):
        judge(path, "w")


def test_a_damaged_record_of_no_suspect_is_not_read(path):
    damage(path, torch.arange(100.0).numpy().tobytes())
    judge(path, "v", values_differ=True)
    judge(path)


def test_the_pickle_is_a_suspect_where_plain_values_differ(path):
    damage(path, b"cpu")
    judge(path, "w")
    with pytest.raises(DamagedError, match=r"data\.pkl"):
        judge(path, values_differ=True)


def test_formats_without_checksums_are_not_asked(path):
    torch.save({"w": torch.ones(9)}, path, _use_new_zipfile_serialization=False)
    judge(path, "w", values_differ=True)
