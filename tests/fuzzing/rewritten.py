"""Checkpoints that ckptool wrote anew, compared object by object with those that they are made of.

A promotion may change the values of the model's slot, to those of the average, and nothing else.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from same_weights import is_unknown
from torch import Tensor

from ckptool.tree.describing import as_key
from helpers.absent import Stub
from helpers.judge import tensor_bytes
from helpers.likeness import Likeness, facts, is_plain
from helpers.output import Output, run_inside

Load = Callable[[Path], Any]
Found = tuple[str, list[str]]  # an outcome, and what is wrong


def whole(path: Path, load: Load) -> Found:
    """Compare what ``convert --whole`` writes with the file itself.

    The views of storages in a tar become views at other offsets, which is not judged.
    """
    if tarfile.is_tarfile(path):
        return "refused", []
    return _written(path, load, ("convert", path, "--whole"), _compare_all)


def promoted(path: Path, load: Load) -> Found:
    """Compare what ``promote-ema`` writes with the file itself."""
    return _written(path, load, ("promote-ema", path), _compare_but_slot)


def _written(
    path: Path, load: Load, command: tuple, compare: Callable[[Any, Any, Output], str]
) -> Found:
    out = path.with_name("out.pt")
    told = run_inside(*command, "-o", out, "--force", "--json")
    if "a bug in ckptool" in told + told.stderr:
        return "crashed", [told]
    if told.exit_code:
        return "refused", []
    wanted = load(path)
    if wanted is None:
        return "read", []
    try:
        return compare(load(out), wanted, told), []
    except AssertionError as error:
        return "different", [str(error)]


def _compare_all(found: Any, wanted: Any, _told: Output) -> str:
    _same(Likeness(), found, wanted)
    return "compared"


def _same(likeness: Likeness, found: Any, wanted: Any) -> None:
    likeness.same(found, wanted, "")
    ties = likeness.ties
    assert len(ties) == len({a for a, _ in ties}) == len({b for _, b in ties}), "other ties"


def _compare_but_slot(found: Any, wanted: Any, told: Output) -> str:
    (slot, prefix), (average, other) = (_table(wanted, told.json[key]) for key in ("model", "ema"))
    if slot is None or average is None:
        return "read"
    likeness = ButSlot(slot)
    _same(likeness, found, wanted)
    names = {str(as_key(k)): v for k, v in dict.items(average) if isinstance(v, Tensor)}
    changed = {k: new for k, (new, old) in likeness.own.items() if _bytes(new) != _bytes(old)}
    for key, new in changed.items():
        exact = names.get(other + key.removeprefix(prefix))
        fitting = [exact] if exact is not None else [*names.values()]
        assert any(_is_cast(new, each) for each in fitting), f"{key}: not the average"
    return "extracted" if changed else "compared"


class ButSlot(Likeness):
    """Asserts that all is the same but the values of the tensors in one dict."""

    def __init__(self, slot: dict[Any, Any]) -> None:
        super().__init__()
        self._slot = slot
        self.own: dict[str, tuple[Tensor, Tensor]] = {}

    def _same_parts(self, found: Any, wanted: Any, at: str) -> None:
        if wanted is not self._slot:
            super()._same_parts(found, wanted, at)
            return
        self.same(list(dict.keys(found)), list(dict.keys(wanted)), f"{at}<keys>")
        for (key, theirs), ours in zip(dict.items(wanted), dict.values(found), strict=True):
            if isinstance(theirs, Tensor) and is_plain(theirs):
                assert facts(ours) == facts(theirs), f"{at}/{key}"
                self.same(ours.__dict__, theirs.__dict__, f"{at}/{key}")
                self.tie(ours, theirs)
                self.own[str(as_key(key))] = ours, theirs
            else:
                self.same(ours, theirs, f"{at}/{key}")
        self.same(getattr(found, "__dict__", None), getattr(wanted, "__dict__", None), at)


def _table(loaded: Any, address: str) -> tuple[dict[Any, Any] | None, str]:
    """Return the dict at a key path, and the prefix of the names in it; None for an object."""
    place, _, prefix = address.rpartition("/") if "*" in address else (address, "", "")
    found = at(loaded, place)
    is_table = isinstance(found, dict) and not is_unknown(found)
    return (found if is_table else None), prefix.rstrip("*")


def at(node: Any, place: str) -> Any:
    """What torch has under a key path; None where objects are on the way."""
    for part in filter(None, place.split("/")):
        key = part.replace("~1", "/").replace("~0", "~")
        table = node if isinstance(node, dict) else {}
        node = next((value for k, value in dict.items(table) if str(as_key(k)) == key), None)
    return node


def _is_cast(new: Tensor, average: Tensor) -> bool:
    cast = average.detach().resolve_neg().resolve_conj().to(new.dtype)
    return cast.shape == new.shape and _bytes(cast) == _bytes(new)


def _bytes(tensor: Tensor) -> bytes:
    return tensor_bytes(tensor.detach().contiguous())


STUBS: dict[tuple[str, str], type] = {}


def stub(module: str, name: str) -> type:
    """Return the class that stands for a name: always the same one."""
    return STUBS.setdefault((module, name), type(name, (Stub,), {"__module__": module}))
