"""Calls in a pickle that are given the weights: what they do to them, the file does not show.

A loader that runs such a call may find other values than the file stores: ``fill_`` of a tensor,
``update`` of a state dict, ``append`` of a module. So weights that are given to a dangerous call
are refused, by whatever way they get there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ckptool.contents.inventory import Table
from ckptool.contents.uses import Runs, find_call
from ckptool.errors import UnsupportedError
from ckptool.formats.base import DANGEROUS, Checkpoint
from ckptool.formats.pickles.calls import RUNS_SOURCE
from ckptool.formats.pickles.effects import LOOKUPS
from ckptool.formats.pickles.plain_names import trust_of
from ckptool.formats.pickles.trace import Trace
from ckptool.tree.addresses import nodes_on
from ckptool.tree.nodes import Opaque, TensorRef, Tree, is_container
from ckptool.tree.walking import children


def refuse_given(
    checkpoint: Checkpoint, tables: Iterable[Table | None], trace: Trace | None = None
) -> None:
    """Refuse state dicts that a loader would give to calls that may change them.

    Refuse tensors of several files too, if they have other values there.

    Args:
        checkpoint: the file with the state dicts.
        tables: the state dicts.
        trace: that of the file's pickles, if there is one: it has the values that no node shows.

    Raises:
        UnsupportedError: there is such a call.
        DamagedError: a tensor has other values in another file.
    """
    checkpoint.refuse_different_copies()
    calls = _changing_calls(checkpoint)
    if trace is not None:
        calls += [call for call in trace.given if call.qualname.startswith("<")]
    for table in filter(None, tables) if calls else ():
        around = (*nodes_on(checkpoint.tree, table.address), *table.entries.values())
        _refuse(checkpoint, calls, (checkpoint.tree, *around), trace)


def refuse_any_given(checkpoint: Checkpoint, tree: Tree) -> None:
    """Refuse a part of a checkpoint with tensors that a loader would give to such calls.

    Tensors in the arguments of these calls alone do not count: they are no part's that is shown.

    Raises:
        UnsupportedError: there is such a call.
        DamagedError: a tensor has other values in another file.
    """
    checkpoint.refuse_different_copies()
    calls = _changing_calls(checkpoint)
    if calls:
        _refuse(checkpoint, calls, _outside(tree, calls), None)


def _changing_calls(checkpoint: Checkpoint) -> list[Opaque]:
    """Return the dangerous calls, without those of ``_KEEPING``."""
    return [
        call
        for named in checkpoint.globals_named
        if named.given and trust_of(named) == DANGEROUS and named.ref.qualname not in _KEEPING
        for call in named.given
    ]


# Functions that look up a method, and those that make a module by the source code of its class,
# which torch and StyleGAN write: their results are what the file shows of them.
_KEEPING = LOOKUPS | RUNS_SOURCE


def _outside(tree: Tree, calls: Iterable[Opaque]) -> Iterator[Any]:
    """Yield the tensors of a tree and the containers of tensors, without what calls alone hold.

    An object that ``cls.__new__`` made is in the tree, and beside it in ``calls``: with one tuple
    of arguments.
    """
    seen: set[int] = set()
    arguments: set[int] = set()
    for call in calls:
        seen.add(id(call))
        if call.args:  # all empty tuples are one
            arguments.add(id(call.args))
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, TensorRef):
            yield node
        elif is_container(node) and id(node) not in seen:
            seen.add(id(node))
            held = [child for _, child in children(node)]
            if isinstance(node, Opaque) and id(node.args) in arguments:
                own = {id(value) for value in node.args} - {id(node.state)}
                held = [child for child in held if id(child) not in own]
            if any(isinstance(child, TensorRef) for child in held):
                yield node
            waiting += held


def _refuse(
    checkpoint: Checkpoint, calls: Iterable[Opaque], values: Iterable[Any], trace: Trace | None
) -> None:
    held = tuple(values)
    spans = [chunk.span for value in held if isinstance(value, TensorRef) for chunk in value.chunks]
    call = find_call(trace or Trace(), calls, {id(value) for value in held}, Runs(spans))
    if call:
        raise UnsupportedError(
            f"loading the file gives the weights to {call:.80}, which may change them",
            path=checkpoint.path,
            hint="ckptool verify lists what a loader would call; take the weights from a file "
            "that torch.load(weights_only=True) reads",
        )
