"""Snapshots of power-function EMAs, from which an EMA of any width can be made after the run.

Karras et al. (arXiv:2312.02696) track EMAs whose decay follows from the training time, so that the
width of each is the same share of the run: ``sigma_rel``. Two libraries save them:

    EDM2          training-state-KIMG.pt    state/cur_nimg, ema/stds, ema/emas: all widths
    EDM2          PREFIX-KIMG-WIDTH.pkl     ema, a whole network; time and width by its name
    ema-pytorch   TRACK.STEP.pt             ema_model.*; ``step`` is float16 there, too coarse from
                                            2048 on, so the name counts; no width

https://github.com/NVlabs/edm2/blob/main/training/phema.py
https://github.com/lucidrains/ema-pytorch/blob/0.8.3/ema_pytorch/post_hoc_ema.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ckptool.formats.base import TensorReader
from ckptool.regex import regex
from ckptool.reports.base import SnapshotReport
from ckptool.tensors.sample import scalar_value
from ckptool.tree.nodes import Tree, is_real
from ckptool.tree.walking import children

MAX_TIME = 1 << 53  # no run counts further, and floats are exact up to it

Found = Iterator[SnapshotReport]


def snapshots_in(name: str, tree: Tree, reader: TensorReader) -> tuple[SnapshotReport, ...]:
    """Return the snapshots in a checkpoint, whose file is called ``name``; none without updates."""
    parts = dict(children(tree))
    found = (tuple(look(name, parts, reader)) for look in LOOKS)
    return tuple(each for each in next(filter(None, found), ()) if 0 < each.time < MAX_TIME)


def _in_training_state(_name: str, parts: dict[Any, Tree], reader: TensorReader) -> Found:
    ema, state = (dict(children(parts.get(key))) for key in ("ema", "state"))
    time = scalar_value(reader, state.get("cur_nimg"))
    widths = ema.get("stds")
    tables = [table for _, table in children(ema.get("emas"))]
    if not isinstance(widths, (list, tuple)) or len(widths) != len(tables):
        return
    if not is_real(time) or not 0 < time < MAX_TIME:
        return
    for number, width in enumerate(widths):
        if is_real(width) and 0 < width < 1:
            yield SnapshotReport(f"ema/emas/{number}", float(time), float(width), number)


NETWORK = regex(r".*-(\d+)-(\d+\.\d+)\.pkl")
KIMG, GRANULARITY = 1000, 1024  # images; networks are saved after a multiple of the second


def _in_network(name: str, parts: dict[Any, Tree], _reader: TensorReader) -> Found:
    named = NETWORK.fullmatch(name) if "ema" in parts else None
    if named:
        thousands = int(named[1])
        images = (thousands * KIMG + KIMG - 1) // GRANULARITY * GRANULARITY
        is_exact = images // KIMG == thousands
        yield SnapshotReport("ema", images if is_exact else thousands * KIMG, float(named[2]), 0)


TRACK = regex(r"(\d+)\.(\d+)\.pt")
PREFIX = "ema_model."


def _in_track(name: str, parts: dict[Any, Tree], _reader: TensorReader) -> Found:
    is_track = "step" in parts and any(str(key).startswith(PREFIX) for key in parts)
    named = TRACK.fullmatch(name) if is_track else None
    if named:
        yield SnapshotReport(f"{PREFIX}*", float(named[2]), None, int(named[1]))


LOOKS: tuple[Callable[[str, dict[Any, Tree], TensorReader], Found], ...] = (
    _in_training_state,
    _in_network,
    _in_track,
)
