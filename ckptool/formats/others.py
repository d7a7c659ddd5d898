"""The formats of files that are neither a torch zip nor safetensors, as nearly all others are."""

from __future__ import annotations

from collections.abc import Callable

from ckptool.formats.archives import TarArchive, ZipOfCheckpoints
from ckptool.formats.base import Checkpoint, FileFormat
from ckptool.formats.plain_pickle import PlainPickle
from ckptool.formats.torch_legacy import TorchLegacy
from ckptool.formats.torch_tar import TorchTar
from ckptool.sources.base import Source

# Formats with a signature of their own come first, the vaguest last.
FILES: tuple[FileFormat, ...] = (TorchTar(), TorchLegacy(), PlainPickle())


def archives(open_member: Callable[[Source], Checkpoint]) -> tuple[FileFormat, ...]:
    """Return the formats of archives that hold checkpoints; ``open_member`` opens one of them."""
    return ZipOfCheckpoints(open_member), TarArchive(open_member)
