"""Snapshots of power-function EMAs, known by the content and the names of files."""

from __future__ import annotations

import pytest

from ckptool.commands.snapshots import parse_widths
from ckptool.contents.snapshots import snapshots_in
from ckptool.errors import UsageError
from ckptool.formats.base import TensorReader
from ckptool.render.facts import folder_of, post_hoc
from ckptool.reports.base import SnapshotReport
from ckptool.tree.nodes import Opaque

READER = TensorReader()
STATE = {"state": {"cur_nimg": 192}, "ema": {"stds": [0.05, 0.1], "emas": [{}, {}]}}
BOTH = [("ema/emas/0", 192, 0.05, 0), ("ema/emas/1", 192, 0.1, 1)]
EASY = Opaque("dnnlib.util.EasyDict", items={"cur_nimg": 192})
TRACK = {"step": 0, "ema_model.w": 0}


@pytest.mark.parametrize(
    ("name", "tree", "found"),
    [
        ("any.pt", STATE, BOTH),
        ("any.pt", STATE | {"state": EASY}, BOTH),
        ("1.8000.pt", TRACK, [("ema_model.*", 8000, None, 1)]),
        ("model.pt", TRACK, []),
        ("1.8000.pt", {"step": 0, "w": 0}, []),
        ("a-b-0000262-0.050.pkl", {"ema": 0}, [("ema", 262144, 0.05, 0)]),
        ("a-0000001-0.050.pkl", {"ema": 0}, [("ema", 1024, 0.05, 0)]),
        ("a-0000262-0.050.pkl", {"net": 0}, []),
        ("any.pt", {**STATE, "state": {}}, []),
        ("any.pt", {**STATE, "ema": {"stds": [0.05], "emas": [{}, {}]}}, []),
        ("any.pt", {**STATE, "ema": {"stds": "ab", "emas": [{}, {}]}}, []),
        ("any.pt", {"ema": [0], "state": 3}, []),
        ("any.pt", 7, []),
        ("any.pt", STATE | {"state": {"cur_nimg": 10**400}}, []),
        ("any.pt", STATE | {"state": {"cur_nimg": float("nan")}}, []),
        ("any.pt", STATE | {"ema": {"stds": [10**400, float("inf")], "emas": [{}, {}]}}, []),
        (f"1.{'9' * 400}.pt", TRACK, []),
        (f"a-{'9' * 400}-0.1.pkl", {"ema": 0}, []),
    ],
)  # fmt: skip
def test_snapshots_of_a_file(name, tree, found):
    assert snapshots_in(name, tree, READER) == tuple(SnapshotReport(*each) for each in found)


def test_time_zero_is_no_snapshot():
    """The profile of an EMA that was never updated is none."""
    assert snapshots_in("0.0.pt", TRACK, READER) == ()
    assert snapshots_in("a.pt", STATE | {"state": {"cur_nimg": 0}}, READER) == ()


def test_widths_that_are_typed():
    assert parse_widths(None) == ()
    assert parse_widths("0.05,0.28") == (0.05, 0.28)
    with pytest.raises(UsageError, match="are no numbers"):
        parse_widths("0.05;0.28")


def test_the_command_is_one_to_type():
    found = [SnapshotReport("ema", 5, 0.05, 0), SnapshotReport("ema_model.*", 5, None, 1)]
    assert post_hoc(found, "my run") == (
        "sigma_rel 0.05 and 1 track whose sigma_rel is not stored; other widths: "
        "ckptool average 'my run' --widths W,W --sigma-rel X -o OUT"
    )


@pytest.mark.parametrize(
    ("path", "folder"),
    [("a/b.pt", "a"), ("b.pt", "."), ("s3://bucket/run/b.pt", "s3://bucket/run")],
)
def test_the_directory_of_a_url_keeps_its_slashes(path, folder):
    assert folder_of(path) == folder
