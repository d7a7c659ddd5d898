"""Calls that are put off: a function that a pickle binds to arguments, for other code to call.

``functools.partial`` calls nothing when it is loaded. But an object of another package may call
what it holds as soon as it is given a state or dropped, and the file decides what it calls and with
what. So a call that is put off is held to the rule for the calls of unknown names: the arguments
are plain, and no text among them reaches outside the file. A call is put off by

* ``functools.partial``;
* a row of a function and a tuple of its arguments, perhaps with a dict of those by name, as states
  of partials and lists of callbacks are;
* attributes or items that are named as the parts of a call: ``func`` beside ``args`` or ``kwargs``,
  but not in a namespace: parsers of command lines keep the function of a subcommand as ``func``;
* an object of a class that is named after it (``curry``, ``Partial``), by its own arguments.

Functions that only compute may be given anything: those of layers, losses and optimizers, of
Python's harmless modules, of einops. Among the arguments there may be names of functions and
classes, as in ``partial(Block, norm_layer=nn.LayerNorm)``. Each of them may be called with the
rest, so all of them have to be such that only compute, or the rest has to be plain.

A name of a layer is no path, although it has dots: hooks are bound to ``encoder.layer.0.attn``. The
id of a model on a hub (``timm/vit_base``) is none where an unknown function is given it.

Texts are arguments in plain containers and namespaces, and where an object is made with them. The
state of another object is its own: a tokenizer or a model knows where it was loaded from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ckptool.formats.pickles.effects import LOOKUPS, may_be_decoded, part_of, reaches
from ckptool.formats.pickles.grades import SCALARS, Grades, is_function
from ckptool.formats.pickles.handed_out import is_of_others
from ckptool.formats.pickles.trust import (
    ACTING,
    ACTING_PACKAGES,
    HARMLESS_STDLIB,
    HARMLESS_TO_HOLD,
    MODULES,
    STDLIB,
    TORCH_VALUES,
    is_own,
)
from ckptool.formats.pickles.vetted import PARTIAL, TEXTS, VETTED
from ckptool.names import is_capital, says, whole
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.tree.nodes import (
    ArrayRef,
    CompositeTensor,
    GlobalRef,
    NotedDict,
    NotedList,
    Opaque,
    PathText,
    TensorRef,
)

# Families of functions and classes that only compute, by the parts of them that are not private.
_COMPUTING = (
    "einops.", "torch.functional.", "torch.nn.functional.", "torch.nn.init.", "torch.nn.modules.",
    "torch.nn.utils.", "torch.nn.parallel.", "torch.optim.", "torch.distributions.",
    "torch.special.", "torch.linalg.", "torch.fft.", "torch.amp.", "torch.utils.checkpoint.",
    "torch.ao.quantization.observer.", "torch.ao.quantization.fake_quantize.",
    "torch.quantization.", "torch.utils.data.sampler.", "torch.utils.data.distributed.",
    "torch.distributed.fsdp.wrap.", "torch.Tensor.", "torch._C.TensorBase.",
    "torch._C._VariableFunctions", "torch._C._nn.", "torch._C._special.", "torch._C._linalg.",
    "torch._C._fft.", "torch._C._sparse.", "numpy.einsum",
)  # fmt: skip
# Modules of Python's that are harmless as long as no file is named to them.
_OPENING = frozenset({"configparser", "pathlib", "xml"})
# The parts of a call, as attributes and items are named, without underscores around them.
_FUNCTION = frozenset({
    "call", "callable", "callback", "f", "fn", "func", "function", "handler", "method", "target",
})  # fmt: skip
_ARGUMENTS = frozenset({"args", "kwargs", "keywords", "kwds"})
_BINDERS = whole("bound", "curried", "curry", "partial", "partialler")
# Functions that act on any text, although others of that name are given none.
_ACTING_ON_TEXT = frozenset({
    "delete", "dump", "install", "launch", "open", "remove", "system", "write",
})  # fmt: skip
_NAMESPACES = frozenset({"argparse.Namespace", "types.SimpleNamespace"})
_DOTTED = regex(r"[A-Za-z_]\w*(\.\w+)+")
_HUB_ID = regex(r"\w[\w.-]*/\w[\w.-]*")
_MAX_ID = 100  # characters
_SUFFIXES = frozenset({
    "7z", "bash", "bat", "bin", "bz2", "cfg", "ckpt", "cmd", "com", "conf", "csv", "dat", "db",
    "dll", "doc", "docx", "dylib", "env", "exe", "gif", "gz", "h5", "hdf5", "htm", "html", "ini",
    "jar", "jpeg", "jpg", "js", "json", "jsonl", "lnk", "log", "lua", "md", "mp3", "mp4", "msi",
    "npy", "npz", "onnx", "parquet", "pdf", "pem", "php", "pkl", "pl", "png", "ps1", "pt", "pth",
    "pub", "py", "pyc", "pyd", "rar", "rb", "rc", "reg", "safetensors", "sh", "so", "sql",
    "sqlite", "sqlite3", "svg", "tar", "tgz", "toml", "torrent", "ts", "tsv", "txt", "vbs", "wav",
    "whl", "xls", "xlsx", "xml", "xz", "yaml", "yml", "zip", "zsh",
})  # fmt: skip


class PutOff(NamedTuple):
    """A call that is put off."""

    ref: GlobalRef  # the name that it would call, or give to what it calls
    call: Opaque  # with the value that puts it off as its state
    is_plain: bool  # the arguments are plain
    is_called: bool  # the name is that of the function itself


def may_be_put_off(ref: GlobalRef) -> bool:
    """Return whether a name is one of which a call may do more than compute."""
    is_class = is_capital(ref.name) and is_own(ref.qualname)  # the grammar says who makes those
    return ref.qualname == PARTIAL or not (is_class or _only_computes(ref))


def calls_put_off(values: Iterable[Any], grades: Grades) -> Iterator[PutOff]:
    """Yield each call of names that do more than compute, in values and in all that they hold.

    The last value is looked through first.
    """
    waiting, seen = list(values), set[int]()
    while waiting:
        value = waiting.pop()
        if type(value) in SCALARS or id(value) in seen:
            continue
        seen.add(id(value))
        bound = _bound(value)
        if bound is not None and (found := _judged(value, *bound, grades)) is not None:
            yield found
        if isinstance(value, Opaque):  # its state puts off the same call
            seen.add(id(value.state))
            parts = [*_made_with(value), *_parts(value.state)]
        else:
            parts = _parts(value)
        grades.count(1 + len(parts))
        waiting += parts


def _made_with(made: Opaque) -> list[Any]:
    """Return all that an object is made of and filled with, beside its state."""
    return [made.args, made.kwargs, made.items, made.elements]


def _parts(value: Any) -> list[Any]:
    """Return all that a value holds."""
    if isinstance(value, Opaque):
        return [*_made_with(value), value.state]
    if isinstance(value, (NotedDict, NotedList)):
        more = [*value.made_with.values(), value.state]
    else:
        more = []
    if isinstance(value, dict):
        return [*value, *value.values(), *more]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [*value, *more]
    if isinstance(value, TensorRef):
        return [value.state]
    if isinstance(value, CompositeTensor):
        return [value.wrapper, *value.parts.values()]
    return value.objects or [] if isinstance(value, ArrayRef) else []


# --------------------------------------------------------------------------------- what is a call


_Bound = tuple[Any, Any, Any]  # the function, its arguments, and those by name


def _bound(value: Any) -> _Bound | None:
    """Return the call that a value puts off."""
    if isinstance(value, Opaque):
        return _of_object(value)
    if isinstance(value, dict):
        return _of_record(value)
    return _of_row(value) if isinstance(value, (list, tuple)) else None


def _of_object(made: Opaque) -> _Bound | None:
    if made.qualname in _NAMESPACES:
        return None
    is_partial = made.qualname == PARTIAL
    if is_partial and isinstance(made.state, tuple) and len(made.state) == 4:
        return made.state[:3]
    is_binder = is_partial or (
        not is_own(made.qualname) and says(made.qualname.rpartition(".")[2], _BINDERS)
    )
    if is_binder and made.args:
        return made.args[0], made.args[1:], made.kwargs
    return _of_row(made.state) if isinstance(made.state, tuple) else _of_record(made.attributes)


def _of_row(row: list[Any] | tuple[Any, ...]) -> _Bound | None:
    """Return the call of a row of a function, a tuple of arguments, and perhaps a dict of more."""
    if not 2 <= len(row) <= 4 or not isinstance(row[1], (tuple, list)):
        return None
    is_call = is_function(row[0]) and all(
        part is None or isinstance(part, dict) for part in row[2:]
    )
    return (row[0], row[1], row[2] if len(row) > 2 else None) if is_call else None


def _of_record(record: dict[Any, Any]) -> _Bound | None:
    """Return the call of attributes or items that are named as the parts of one."""
    names = {name.strip("_"): name for name in record if isinstance(name, str)}
    func = next(
        (
            record[names[name]]
            for name in sorted(_FUNCTION & names.keys())
            if is_function(record[names[name]])
        ),
        None,
    )
    given = [record[names[name]] for name in sorted(_ARGUMENTS & names.keys())]
    given = [part for part in given if isinstance(part, (tuple, list, dict))]
    if func is None or not given:
        return None
    args = next((part for part in given if not isinstance(part, dict)), ())
    return func, args, next((part for part in given if isinstance(part, dict)), None)


# ---------------------------------------------------------------------------- what it may be given


def _judged(value: Any, func: Any, args: Any, kwargs: Any, grades: Grades) -> PutOff | None:
    """Return the call that a value puts off, if a name in it does more than compute."""
    acting: list[GlobalRef] = []
    is_plain, has_text, has_id = True, False, False
    called = _named(func) or _class_of(func)
    waiting, seen = [args, kwargs, func], set[int]()
    inside: list[Any] = []  # the states of objects: looked through last, and for names alone
    while waiting or inside:
        is_given = bool(waiting)
        part = (waiting or inside).pop()
        if type(part) in SCALARS:
            is_id = _is_hub_id(part)
            has_id |= is_given and is_id
            is_plain &= not is_given or is_id or not _reaches(part)
            has_text |= is_given and isinstance(part, (str, bytes, bytearray))
        elif (ref := _named(part)) is not None:
            acting += () if _only_computes(ref) else (ref,)
        elif id(part) not in seen:
            seen.add(id(part))
            is_plain &= not (is_given and isinstance(part, Opaque) and _may_be_text(part))
            given, kept = _given_and_kept(part)
            grades.count(1 + len(given) + len(kept))
            (waiting if is_given else inside).extend(given)
            inside += kept
    if called is not None and called not in acting and not _only_computes(called):
        acting.insert(0, called)
    if not acting:
        return None
    ref = called if called in acting else acting[0]
    is_plain &= not (has_text and any(each.name in _ACTING_ON_TEXT | ACTING for each in acting))
    is_plain &= not (has_id and any(map(_opens_relative, acting)))
    shown = tuple(args) if isinstance(args, (tuple, list)) else ()
    named = kwargs if isinstance(kwargs, dict) else {}
    call = Opaque(ref.qualname, shown, named, state=value, called=True)
    return PutOff(ref, call, is_plain, ref is called)


def _may_be_text(made: Opaque) -> bool:
    return made.qualname.endswith(TEXTS) or may_be_decoded(made)


def _given_and_kept(value: Any) -> tuple[list[Any], list[Any]]:
    """Return the parts of a value that are arguments, and those that are an object's own.

    All of a partial is given, and of what else Python's classes keep.
    """
    if isinstance(value, (TensorRef, CompositeTensor)):
        return [], _parts(value)
    is_whole = not isinstance(value, Opaque) or value.qualname.partition(".")[0] in STDLIB
    return (_parts(value), []) if is_whole else (_made_with(value), [value.state])


def _is_hub_id(value: Any) -> bool:
    """Return whether a text may be the id of a model on a hub: ``timm/vit_base``."""
    if type(value) is not str or len(value) > _MAX_ID or _HUB_ID.fullmatch(value) is None:
        return False
    return (
        value.rpartition(".")[2].lower() not in _SUFFIXES and value.partition(".")[0] not in MODULES
    )


def _opens_relative(ref: GlobalRef) -> bool:
    """Return whether a function may take an id of a hub for a path: it is known, and acts."""
    return is_own(ref.qualname) or ref.module.partition(".")[0] in ACTING_PACKAGES


def _named(value: Any) -> GlobalRef | None:
    """Return the name of a function or a class, or of a part of a class that was looked up."""
    if isinstance(value, GlobalRef):
        return None if value.qualname in TORCH_VALUES else value
    if isinstance(value, Opaque) and value.called and value.qualname in LOOKUPS:
        owner, part = (*value.args, "", "")[:2]
        return part_of(owner, part) if isinstance(owner, GlobalRef) else None
    return None


def _class_of(func: Any) -> GlobalRef | None:
    """Return the class of an object that is called."""
    if not isinstance(func, Opaque) or func.qualname == PARTIAL:
        return None
    module, _, name = func.qualname.rpartition(".")
    return GlobalRef(module, name)


def _only_computes(ref: GlobalRef) -> bool:
    """Return whether a function or a class computes, whatever it is given."""
    qualname, root = ref.qualname, ref.module.partition(".")[0]
    if qualname in HARMLESS_TO_HOLD or qualname in VETTED:
        return True
    if root in STDLIB:
        return root in HARMLESS_STDLIB and root not in _OPENING
    family = next((each for each in _COMPUTING if qualname.startswith(each)), None)
    return family is not None and not (
        "._" in qualname[len(family) - 1 :] or is_of_others(qualname)
    )


def _reaches(value: Any) -> bool:
    """Return whether a text may be a path, a URL, a command line or code; a name of a layer not."""
    if isinstance(value, PathText):
        return True
    if not reaches(value):
        return False
    is_name = isinstance(value, str) and _DOTTED.fullmatch(value) is not None
    first, *_, last = value.split(".") if is_name else ("", "")
    return not is_name or last.lower() in _SUFFIXES or first in MODULES
