r"""A bare pickle without a container: snapshots of StyleGAN and EDM, ``pickle.dump`` of anything.

Layout: one pickle, of any protocol. Storages in it are ``torch.save`` streams in the legacy
layout, as bytes (see ``nested``).

Rules, each with its reason:

* Since protocol 2 a pickle begins with ``\x80`` and the protocol's number, and ends with a ``.``.
* Protocols 0 and 1 have no signature, and protocol 0 is text. They are recognised by how a
  pickled dict, list or object begins, memo instruction included, which no prose does; anything
  vaguer is left alone.
* What follows the pickle is ignored, as ``pickle.load`` does; its size is kept in the metadata.
  (Some programs write several pickles into one file, ``joblib`` writes arrays between them.)
"""

from __future__ import annotations

import re

from ckptool.formats.base import Checkpoint, SourceFile, TensorReader
from ckptool.formats.byte_sources import FileWindow
from ckptool.formats.pickled import Pickles, no_storage
from ckptool.formats.torch_objects import TorchBuilder

_NAME = rb"[A-Za-z_][\w.]*\n"
_MEMO = rb"(p[01]\n|q[\0\1])"  # the first entry: cPickle of Python 2 counts from 1

# Protocols 0 and 1: a dict, a list or a class, with its memo instruction.
_EARLY = re.compile(
    rb"\([dl]" + _MEMO  # (dp0
    + rb"|[}\]]" + _MEMO  # }q
    + rb"|\(?c" + _NAME + _NAME + _MEMO  # ccopy_reg _reconstructor p0
    + rb"|\(i" + _NAME + _NAME + _MEMO  # (iargparse Namespace p0
)  # fmt: skip
_SINCE_2 = re.compile(rb"\x80[\x02-\x05]")


class PlainPickle:
    """See the module's docstring."""

    name = "pickle"

    def matches(self, head: bytes) -> bool:
        """A pickle's signature, or the unmistakable beginnings of protocols 0 and 1."""
        return bool(_SINCE_2.match(head) or _EARLY.match(head))

    def open(self, file: SourceFile) -> Checkpoint:
        """The checkpoint in a pickle; reads it, but not the runs of bytes in it."""
        pickles = Pickles(file, "the pickle")
        with pickles.telling():
            builder = TorchBuilder(no_storage, pickles.open_nested)
            tree, end = pickles.read(FileWindow(file), builder)
        note = pickles.listen_behind(FileWindow(file), end)
        trailing = file.size - end
        return Checkpoint(
            path=file.path,
            format_name=self.name,
            size_bytes=file.size,
            tree=tree,
            reader=TensorReader(file),
            globals_named=pickles.globals_named,
            metadata={"trailing_bytes": trailing} if trailing else {},
            notes=(note,) if note else (),
        )
