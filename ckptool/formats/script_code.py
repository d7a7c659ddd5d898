r"""The code in a TorchScript archive: what it does to the system, and whether loading runs it.

``torch.load`` hands such an archive to ``torch.jit.load``, which runs one kind of function in it:
``__setstate__`` of each object in the pickles, with all that it calls. The language has no import
and no files but for a few operators, so that the code is looked at as text for their names.

Rules, each with its reason:

* Any ``__setstate__`` counts as run, and all code as called by it: what calls what is not followed.
* An operator is found by its name behind a dot, wherever it stands and whatever is before the dot
  (``torch.save(x, f)``, ``x.save(f)``, ``f = torch.save``), also in ``getattr`` with text. Other
  forms of ``getattr`` than torch writes could spell anything.
* What prints is looked for in ``__setstate__`` alone, since many models print or warn when called.
* Operators and classes of namespaces that are not vetted come from libraries, or talk to other
  processes.
* Names of records are compared whatever their case, since torch finds them so.
* ``bytecode.pkl`` is the program for torch's lite interpreter
  (``torch.jit.mobile._load_for_lite_interpreter``), which reads it in place of the code and runs
  each ``__setstate__`` in it. ``torch.load`` does not. Its operators are texts: ``aten::save``.

Source: torch 2.13 ``torch/csrc/jit/serialization/import.cpp``, ``import_source.cpp``,
``torch/csrc/jit/mobile/import.cpp``; the list of operators is
``torch._C._jit_get_all_schemas()``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ckptool.errors import DamagedError
from ckptool.formats.base import NamedGlobal, Note
from ckptool.formats.zips.directory import ZipRecord
from ckptool.formats.zips.records import ZipArchive, folded
from ckptool.records import NamedTuple
from ckptool.tree.nodes import GlobalRef

CONSTANTS = "constants.pkl"
CODE = "code/"
BYTECODE = "bytecode.pkl"
MAX_CODE = 16 << 20  # bytes of all sources together
SHOWN = 4  # operators in a message

_RUN_ON_LOAD = "__setstate__"
# Operators that write or map files, or run code elsewhere.
_ACTING = "save|from_file|rpc_async|rpc_sync|rpc_remote|PythonOp|IgnoredPythonOp"
_VETTED = frozenset({
    "prim", "prims", "aten", "quantized", "_quantized", "quantization", "sparse", "mkldnn",
    "mkldnn_prepacked", "onednn", "profiler", "rnn", "xnnpack", "vulkan", "metal", "prepacked",
    "vulkan_prepack", "metal_prepack", "upgrader",
})  # fmt: skip
# Patterns, which re compiles and keeps when there is code: few files have any.
_WORD = rf"\b({_ACTING})\b"
# A function that loading runs, up to the next line that is indented no deeper than its head.
_BODY = r"(?ms)^([ \t]*)def\b[^\n]*__setstate__.*?(?=^\1?[^\s]|\Z)"
_PRINTS = r"\b_?[pP]rint\b"
_NAMESPACE = r"(?:(?<![\w.])ops|\btorch\.classes)\b(?:\.(\w+)\.(\w+))?"
_GETATTR = r"\bgetattr\b(?:\s*\(\s*[\w.]+\s*,\s*\"([\w.]*)\"\s*\))?"
# In bytecode, where the next instruction follows the name, and may be a letter.
_OPERATOR = rf"\b([A-Za-z_]\w*)::(?:({_ACTING})|(\w+))"
_ACTS = frozenset(_ACTING.split("|"))


class ScriptCode(NamedTuple):
    """The effects of the code in an archive."""

    is_run: bool  # by loading the archive
    calls: tuple[NamedGlobal, ...]  # of what acts on the system
    by_lite: ScriptCode | None = None  # the program for the lite interpreter

    @property
    def all_run(self) -> tuple[NamedGlobal, ...]:
        """The calls that act on the system and that a loader makes."""
        by_lite = self.by_lite.all_run if self.by_lite else ()
        return (*(self.calls if self.is_run else ()), *by_lite)

    @property
    def notes(self) -> Iterator[Note]:
        """Notes on code that loading runs, or that acts when the module is called."""
        if self.is_run:
            what = "loading it runs code that is in the archive: a __setstate__ of TorchScript"
            yield Note("CK204", CODE, what)
        elif self.calls:
            what = f"its program calls {_named(self.calls)}, though not when it is loaded"
            yield Note("CK204", CODE, what)
        if self.by_lite is not None and self.by_lite.is_run:
            what = "torch's lite interpreter runs a __setstate__ in it when it loads the archive"
            yield Note("CK204", BYTECODE, what)
        elif self.by_lite is not None and self.by_lite.calls:
            what = f"its program for the lite interpreter calls {_named(self.by_lite.calls)}"
            yield Note("CK204", BYTECODE, f"{what}, though not when it is loaded")


def _named(calls: tuple[NamedGlobal, ...]) -> str:
    return ", ".join(call.ref.qualname for call in calls[:SHOWN])


NO_CODE = ScriptCode(is_run=False, calls=())


def is_torchscript(archive: ZipArchive, folder: str) -> bool:
    """Return whether the archive has the record by which ``torch.load`` detects TorchScript."""
    return archive.get(folder + CONSTANTS) is not None


def read_code(archive: ZipArchive, folder: str) -> ScriptCode:
    """Return what the programs in an archive would do.

    Raises:
        DamagedError: there is more code than any model has.
    """
    by_lite = _read_bytecode(archive, folder)
    if not is_torchscript(archive, folder):
        return NO_CODE._replace(by_lite=by_lite)
    is_run = False
    calls: dict[GlobalRef, NamedGlobal] = {}
    for record, text in sources(archive, folder):
        is_run |= _RUN_ON_LOAD in text
        for ref in _acting(text):
            calls.setdefault(ref, NamedGlobal(ref, called=True, pickle=record.name))
    return ScriptCode(is_run, tuple(calls.values()), by_lite)


def _read_bytecode(archive: ZipArchive, folder: str) -> ScriptCode | None:
    """Return what the program for the lite interpreter would do; None if there is none."""
    record = archive.get(folder + BYTECODE)
    if record is None:
        return None
    if max(record.size, record.compressed_size) > MAX_CODE:
        raise DamagedError(f"more than {MAX_CODE} bytes of code")
    text = archive.read(record).decode("utf-8", "replace")
    found = {
        GlobalRef("torch" if of in _VETTED else f"torch.ops.{of}", acting or other)
        for of, acting, other in re.findall(_OPERATOR, text)
        if acting or of not in _VETTED
    }
    refs = sorted(found, key=lambda ref: ref.qualname)
    calls = tuple(NamedGlobal(ref, called=True, pickle=record.name) for ref in refs)
    return ScriptCode(_RUN_ON_LOAD in text, calls)


def sources(archive: ZipArchive, folder: str) -> Iterator[tuple[ZipRecord, str]]:
    """Yield each record of code with its text.

    Raises:
        DamagedError: there is more code than any model has.
    """
    room = MAX_CODE
    start = folded(folder + CODE)
    for record in archive.records:
        name = folded(record.name)
        if name.startswith(start) and name.endswith(".py"):
            room -= max(record.size, record.compressed_size)
            if room < 0:
                raise DamagedError(f"more than {MAX_CODE} bytes of code")
            yield record, archive.read(record).decode("utf-8", "replace")


def _acting(text: str) -> Iterator[GlobalRef]:
    """Yield the operators in a source that act on the system."""
    for match in re.finditer(_WORD, text):
        if _is_behind_dot(text, match.start()) or match[1].startswith("rpc_"):
            yield GlobalRef("torch", match[1])
    if any(re.search(_PRINTS, body[0]) for body in re.finditer(_BODY, text)):
        yield GlobalRef("builtins", "print")
    for match in re.finditer(_NAMESPACE, text):
        if match[1] not in _VETTED:
            yield GlobalRef(f"torch.ops.{match[1] or '?'}", match[2] or "?")
    for match in re.finditer(_GETATTR, text):
        if match[1] is None or match[1] in _ACTS:
            yield GlobalRef("torch.jit", f"getattr {match[1] or '?'}")


def _is_behind_dot(text: str, at: int) -> bool:
    """Return whether a word follows a dot, which white space and comments may separate from it."""
    begin = at
    while begin and text[begin - 1] in " \t\r\n\f\v\\":
        begin -= 1
    if text[begin - 1 : begin] == "." or "\n" not in text[begin:at]:
        return text[begin - 1 : begin] == "."
    return "#" in text[text.rfind("\n", 0, begin) + 1 : begin]
