"""Files of ``torch.save`` before 1.6, and of later versions without the zip container.

Such a file is one stream of pickles and values, whose layout ``legacy_stream.py`` describes. Torch
ignores the bytes behind the stream; their number is kept in the metadata.
"""

from __future__ import annotations

from ckptool.formats.base import Checkpoint, FileFormat
from ckptool.formats.behind import listen_behind
from ckptool.formats.legacy_stream import is_legacy, literal_stream, read_stream
from ckptool.formats.nested import checkpoint_of, pickles_of
from ckptool.formats.pickles.literal import Literal
from ckptool.sources.base import Source


class TorchLegacy(FileFormat):
    """See the module's docstring."""

    name = "torch-legacy"
    title = "torch.save (before 1.6)"
    written_by = "`torch.save` before 1.6, and since with `_use_new_zipfile_serialization=False`"
    is_patchable = is_rewritable = is_weights_only = keeps_order = begins_as_pickle = True

    def matches(self, head: bytes) -> bool:
        """Return whether ``head`` begins with a pickle of the magic number, at any protocol."""
        return is_legacy(head)

    def literal(self, file: Source) -> Literal:
        """Return the object in the stream, and the places of its storages."""
        return literal_stream(file, pickles_of("the object"))

    def open(self, file: Source) -> Checkpoint:
        """Return the checkpoint in a stream; read only the pickles and the element counts."""
        pickles = pickles_of("the object")
        with pickles.telling():
            stream = read_stream(file, pickles)
            listen_behind(file, stream.end, pickles)
        trailing = file.size - stream.end
        metadata = {"trailing_bytes": trailing} if trailing else {}
        return checkpoint_of(
            self, file, stream.tree, pickles, pickles=pickles.extents, metadata=metadata
        )
