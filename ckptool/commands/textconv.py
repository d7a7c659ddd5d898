"""Stable text of a checkpoint, for ``git diff`` with a textconv setting.

Each tensor or value has one line, in the order of the tree. A line changes only when its tensor or
value does. Container, strides and sharing do not change it.
"""

from __future__ import annotations

from ckptool.commands.operands import open_part
from ckptool.comparison.digests import tensor_digests
from ckptool.comparison.leaves import Leaf, ListLeaf, TensorLeaf, flatten
from ckptool.comparison.spelling import text_digest
from ckptool.contents.selection import parse_operand
from ckptool.formats.base import Checkpoint
from ckptool.reports.diff import TextLine, TextReport

SHOWN = 200  # characters of a value


def textconv(operand: str) -> TextReport:
    """Return every tensor with its dtype, shape and digest, and every value.

    Raises:
        CkptError: the file cannot be read.
    """
    with open_part(parse_operand(operand)) as checkpoint:
        return TextReport(tuple(_lines(checkpoint)))


def _lines(checkpoint: Checkpoint) -> list[TextLine]:
    leaves = flatten(checkpoint.tree, checkpoint.reader)
    held = [leaf.ref for leaf in leaves.values() if isinstance(leaf, TensorLeaf)]
    digests = iter(tensor_digests(checkpoint.reader, held))
    return [
        TextLine(
            address,
            _tensor(leaf, next(digests)) if isinstance(leaf, TensorLeaf) else value_text(leaf),
        )
        for address, leaf in leaves.items()
    ]


def _tensor(held: TensorLeaf, digest: str) -> str:
    shape = ", ".join(map(str, held.ref.shape))
    return f"{held.ref.dtype} [{shape}] sha256:{digest}"


def value_text(leaf: Leaf) -> str:
    """Return a value as text; the digest stands for the rest of one that is cut or folded."""
    if isinstance(leaf, ListLeaf):
        return f"{leaf} sha256:{text_digest(repr(leaf.items))}"
    if isinstance(leaf, int) and leaf.bit_length() > SHOWN:
        return hex(leaf)
    text = ascii(leaf) if isinstance(leaf, (str, int, float, complex, type(None))) else str(leaf)
    if len(text) <= SHOWN:
        return text
    return f"{text[:SHOWN]}… ({len(text)} characters, sha256:{text_digest(text)})"
