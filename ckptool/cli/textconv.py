"""The options of ``ckptool textconv``."""

from __future__ import annotations

from ckptool.cli.options import PathOperand
from ckptool.cli.output import answer
from ckptool.commands.textconv import textconv


def command(path: PathOperand) -> None:
    """Print a checkpoint as text, one line a tensor, so that git diff can show what changed.

    In .gitattributes:

        *.pt diff=ckptool

        *.ckpt diff=ckptool

        *.safetensors diff=ckptool

    and once, in each clone: git config diff.ckptool.textconv "ckptool textconv"
    """
    answer(textconv(path), json=False, color="never")
