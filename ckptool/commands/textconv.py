"""A checkpoint as stable text: what ``git diff`` compares when it is told how.

One line a tensor or value, in the order of the tree; a line changes when what it stands for does,
and for nothing else: not for the container, the strides or the sharing.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from ckptool.comparison.digests import tensor_digests
from ckptool.comparison.leaves import Held, Leaf, Series, flatten
from ckptool.diff_reports import TextLine, TextReport
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint

SHOWN = 200  # characters of a text


def textconv(path: Path) -> TextReport:
    """Every tensor with its type, shape and digest, and every value.

    Raises:
        CkptError: the file cannot be read.
    """
    with open_checkpoint(path) as checkpoint:
        return TextReport(tuple(_lines(checkpoint)))


def _lines(checkpoint: Checkpoint) -> list[TextLine]:
    leaves = flatten(checkpoint.tree, checkpoint.reader)
    held = [leaf.ref for leaf in leaves.values() if isinstance(leaf, Held)]
    digests = iter(tensor_digests(checkpoint.reader, held))
    return [
        TextLine(address, _tensor(leaf, next(digests)) if isinstance(leaf, Held) else _value(leaf))
        for address, leaf in leaves.items()
    ]


def _tensor(held: Held, digest: str) -> str:
    shape = ", ".join(map(str, held.ref.shape))
    return f"{held.ref.dtype} [{shape}] sha256:{digest}"


def _value(leaf: Leaf) -> str:
    """A value as text; of one that is cut or folded the digest stands in for the rest."""
    if isinstance(leaf, Series):
        return f"{leaf} sha256:{_digest(repr(leaf.items))}"
    if isinstance(leaf, int) and leaf.bit_length() > SHOWN:
        return hex(leaf)
    text = ascii(leaf) if isinstance(leaf, (str, int, float, complex, type(None))) else str(leaf)
    if len(text) <= SHOWN:
        return text
    return f"{text[:SHOWN]}… ({len(text)} characters, sha256:{_digest(text)})"


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
