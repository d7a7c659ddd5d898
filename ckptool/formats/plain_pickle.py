r"""A bare pickle without a container: snapshots of StyleGAN and EDM, ``pickle.dump`` of anything.

Layout: one pickle, of any protocol. Storages in it are ``torch.save`` streams in the legacy
layout, as bytes (see ``nested``).

Rules, each with its reason:

* Since protocol 2 a pickle begins with ``\x80`` and the protocol's number, and ends with a ``.``.
* Protocols 0 and 1 have no signature, and protocol 0 is text. They are recognised by how a
  pickled dict, list or object begins, memo instruction included, which no prose does.
* Whoever writes instructions by hand leaves the signature out, and loaders do not mind. So the
  beginning is followed too: what comes to an end with a container or a name, or names a means to
  run code on the way, is a pickle.
* What follows the pickle is ignored, as ``pickle.load`` does; its size is kept in the metadata.
  (Some programs write several pickles into one file, ``joblib`` writes arrays between them.)
"""

from __future__ import annotations

import re

from ckptool.errors import CkptError
from ckptool.formats.base import Checkpoint, NamedGlobal, SourceFile, TensorReader
from ckptool.formats.byte_sources import FileWindow, MemoryBytes
from ckptool.formats.pickle_tree import PickleMachine
from ckptool.formats.pickled import Pickles, no_storage
from ckptool.formats.torch_objects import TorchBuilder
from ckptool.tree import GlobalRef
from ckptool.trust import DANGEROUS, trust_of

_NAME = rb"[A-Za-z_][\w.]*\n"
_MEMO = rb"(p[01]\n|q[\0\1])"  # the first entry: cPickle of Python 2 counts from 1

# Protocols 0 and 1: a dict, a list or a class, with its memo instruction.
_EARLY = re.compile(
    rb"\([dl]" + _MEMO  # (dp0
    + rb"|[}\]]" + _MEMO  # }q
    + rb"|\(?c" + _NAME + _NAME + _MEMO  # ccopy_reg _reconstructor p0
    + rb"|\(i" + _NAME + _NAME + _MEMO  # (iargparse Namespace p0
)  # fmt: skip
_SAID = re.compile(rb"\x80[\0-\x05]")


class PlainPickle:
    """See the module's docstring."""

    name = "pickle"

    def matches(self, head: bytes) -> bool:
        """A pickle's signature, or the unmistakable beginnings of protocols 0 and 1."""
        return bool(_SAID.match(head) or _EARLY.match(head)) or _can_be_followed(head)

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


def _can_be_followed(head: bytes) -> bool:
    """Whether instructions without a signature make something of a pickle's own."""
    machine = PickleMachine(MemoryBytes(head))
    try:
        made = machine.run()
    except CkptError:  # or it goes on behind the head
        return any(map(_is_danger, machine.globals))
    is_filled = isinstance(made, (dict, list)) and bool(made)
    return is_filled or any(map(_is_name, machine.globals))


def _is_name(ref: GlobalRef) -> bool:
    """Whether both parts could stand in a program: lines of prose seldom could."""
    return ref.module.replace(".", "_").isidentifier() and ref.name.isidentifier()


def _is_danger(ref: GlobalRef) -> bool:
    return _is_name(ref) and trust_of(NamedGlobal(ref, called=False, pickle="")) == DANGEROUS
