r"""Pickles without a container: snapshots of StyleGAN and EDM, ``pickle.dump`` of anything.

Layout: one pickle, of any protocol. Storages in it are ``torch.save`` streams in the legacy
layout, as bytes (see ``nested``).

Rules, each with its reason:

* Since protocol 2 a pickle begins with ``\x80`` and the protocol's number, and ends with a ``.``.
* Protocols 0 and 1 have no signature, and protocol 0 is text. They are recognised by the first
  instructions of a pickled dict, list or object, memo instruction included; no prose begins so.
* Instructions written by hand may lack the signature, and loaders accept them. So the first bytes
  are followed as instructions too. A file is a pickle if they result in a container or contain a
  name, or break off behind the name of a dangerous function.
* The bytes behind the pickle are ignored, as in ``pickle.load``; their number is kept in the
  metadata. (Some programs write several pickles into one file, ``joblib`` arrays between them.)
"""

from __future__ import annotations

from contextlib import suppress

from ckptool.errors import CkptError
from ckptool.formats.base import DANGEROUS, Checkpoint, FileFormat, NamedGlobal
from ckptool.formats.behind import listen_behind
from ckptool.formats.nested import checkpoint_of, pickles_of
from ckptool.formats.pickles.following import Follower
from ckptool.formats.pickles.machine import PickleMachine
from ckptool.formats.pickles.plain_names import trust_of
from ckptool.formats.pickles.reader import no_storage
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.regex import regex
from ckptool.sources.base import Source
from ckptool.sources.memory import Memory
from ckptool.tree.nodes import GlobalRef

_NAME = rb"[A-Za-z_][\w.]*\n"
_MEMO = rb"(p[01]\n|q[\0\1])"  # the first entry: cPickle of Python 2 counts from 1

# Protocols 0 and 1: a dict, a list or a class, with its memo instruction.
_EARLY = regex(
    rb"\([dl]" + _MEMO  # (dp0
    + rb"|[}\]]" + _MEMO  # }q
    + rb"|\(?c" + _NAME + _NAME + _MEMO  # ccopy_reg _reconstructor p0
    + rb"|\(i" + _NAME + _NAME + _MEMO  # (iargparse Namespace p0
)  # fmt: skip
_SAID = regex(rb"\x80[\0-\x05]")


class PlainPickle(FileFormat):
    """See the module's docstring."""

    name = "pickle"
    written_by = "plain pickles of modules: StyleGAN and EDM snapshots"
    is_patchable = keeps_order = begins_as_pickle = True

    def matches(self, head: bytes) -> bool:
        """Return whether ``head`` begins a pickle of any protocol, with or without a signature."""
        return bool(_SAID.match(head) or _EARLY.match(head)) or _can_be_followed(head)

    def open(self, file: Source) -> Checkpoint:
        """Return the checkpoint in a pickle; the runs of bytes in it are left unread."""
        pickles = pickles_of("the pickle")
        with pickles.telling():
            builder = TorchBuilder(no_storage, pickles.open_nested)
            tree, end = pickles.read(file, builder)
            listen_behind(file, end, pickles)
        trailing = file.size - end
        metadata = {"trailing_bytes": trailing} if trailing else {}
        return checkpoint_of(self, file, tree, pickles, metadata=metadata)


def _can_be_followed(head: bytes) -> bool:
    """Return whether instructions without a signature make a container or name a global."""
    machine = PickleMachine(Memory(head))
    try:
        made = machine.run()
    except CkptError:  # it is no pickle, or goes on behind the head
        machine = PickleMachine(Memory(head), builder=Follower())
        with suppress(CkptError):
            machine.run()
        return any(map(_is_danger, machine.globals))
    is_filled = isinstance(made, (dict, list)) and bool(made)
    return is_filled or any(map(_is_name, machine.globals))


def _is_name(ref: GlobalRef) -> bool:
    """Return whether both parts are identifiers, which lines of prose seldom are."""
    return ref.module.replace(".", "_").isidentifier() and ref.name.isidentifier()


def _is_danger(ref: GlobalRef) -> bool:
    return _is_name(ref) and trust_of(NamedGlobal(ref, called=False, pickle="")) == DANGEROUS
