"""CK6, CK114, CK115: checks that a model can load these weights, by its own names and shapes.

Another file describes the model (``--like``): a checkpoint of it, its safetensors release, or the
document of ``ckptool inspect --tensors --json``, which can be kept in a repository. The words are
those of ``load_state_dict``. Helpful renames are found by the rules that pair EMA weights with
models (``contents/alignment.py``).

A state dict of one process, of a lazy layer or of ZeRO stage 3 looks like any other until it is
used. ``contents/completeness.py`` finds the weights that are no plain tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from ckptool.checks.base import Check, NotChecked, Subject, Verdicts
from ckptool.contents.alignment import align_names, paired_prefixes
from ckptool.contents.inventory import Leaf
from ckptool.ema.findings import unplain_findings
from ckptool.records import NamedTuple
from ckptool.reports.rules import finding
from ckptool.tree.describing import named

RULES = ("CK601", "CK602", "CK603", "CK604")
LITTLE = 0.5  # share of the model's names, below which strict=False would hide a mistake


def _loads(subject: Subject) -> Verdicts:
    table, model = subject.location.weights, subject.like
    if model is None or table is None:
        reason = "no model to compare with: --like" if table else "the file holds no weights"
        yield from (NotChecked(rule, reason) for rule in RULES)
        return
    ours = table.entries
    common = [name for name in model if name in ours]
    mismatched = [name for name in common if model[name].shape != ours[name].shape]
    rename = _rename(model, ours, len(common) - len(mismatched))
    missing = [name for name in model if name not in ours]
    if missing:
        message = f"{len(missing)} of {len(model)} names are missing: {named(missing)}"
        yield finding("CK601", missing[0], message, rename)
    unexpected = [name for name in ours if name not in model]
    if unexpected:
        message = f"{len(unexpected)} of {len(ours)} names are unexpected: {named(unexpected)}"
        yield finding("CK602", unexpected[0], message, rename)
    for name in mismatched:
        shapes = f"{list(ours[name].shape)} in the file, {list(model[name].shape)} in the model"
        yield finding("CK603", name, shapes)
    if len(common) < LITTLE * len(model):
        much = "nothing" if not common else f"{len(common)} of {len(model)} tensors"
        yield finding("CK604", "", f"strict=False would load {much} and report no error", rename)


def _rename(model: Mapping[str, Leaf], ours: Mapping[str, Leaf], plain: int) -> str | None:
    """Return a rename, as text, that pairs more names than pair as they are; None if none does."""
    alignment = align_names(model, ours)
    inner = _inner_rename(model, ours)
    if inner is not None and inner.pairs > max(plain, len(alignment.pairs)):
        return f"{inner.what}: then {inner.pairs + plain} of {len(model)} fit"
    if len(alignment.pairs) <= plain:
        return None
    would = f"then {len(alignment.pairs)} of {len(model)} fit"
    if alignment.naming == "wrapped":
        return f"drop the wrappers' parts of names (module., _orig_mod., …): {would}"
    to, found = paired_prefixes(alignment)
    if alignment.naming == "prefixed" and found != to:
        return f"rename {found or ''}* to {to}*: {would}"
    return f"the names pair when dots are {alignment.naming}: {would}"


class _Rename(NamedTuple):
    """A rename for a part that names have on one side only, and the number of names it pairs."""

    what: str
    pairs: int


LONGEST_PART = 3  # components
MAX_NAMES = 20_000  # names to look at
MAX_PLACES = 3  # places to name in the message


def _inner_rename(model: Mapping[str, Leaf], ours: Mapping[str, Leaf]) -> _Rename | None:
    """Find a part within names that only one side has, as ``default`` in ``lora_A.default``."""
    part, places, pairs = _inner_part(model, ours)
    if pairs:
        renames = [f"{place}. to {place}.{part}." for place in places[:MAX_PLACES]]
        return _Rename(f"rename {', '.join(renames)}", pairs)
    part, places, pairs = _inner_part(ours, model)
    if pairs:
        renames = [f"{place}.{part}. to {place}." for place in places[:MAX_PLACES]]
        return _Rename(f"rename {', '.join(renames)}", pairs)
    return None


def _inner_part(
    longer: Mapping[str, Leaf], shorter: Mapping[str, Leaf]
) -> tuple[str, list[str], int]:
    """Find the part whose removal turns the most longer names into shorter ones.

    Return it, the components that it follows, and the number of those names.
    """
    found: dict[str, dict[str, str]] = {}  # part -> longer name -> the component before it
    for name in islice(longer, MAX_NAMES):
        words = name.split(".", MAX_WORDS)
        if name in shorter or len(words) > MAX_WORDS:
            continue
        for start, stop in _runs(len(words)):
            rest = shorter.get(".".join(words[:start] + words[stop:]))
            if rest is not None and rest.shape == longer[name].shape:
                found.setdefault(".".join(words[start:stop]), {})[name] = words[start - 1]
    part, names = max(found.items(), key=lambda item: len(item[1]), default=("", {}))
    return part, sorted(set(names.values())), len(names)


MAX_WORDS = 32  # components of a name


def _runs(count: int) -> Iterator[tuple[int, int]]:
    """Yield the start and stop of each part of a name without its first and last component."""
    for start in range(1, count):
        for stop in range(start + 1, min(start + LONGEST_PART, count - 1) + 1):
            yield start, stop


def _unplain(subject: Subject) -> Verdicts:
    yield from unplain_findings(subject.location)


CHECKS = (Check(("CK114", "CK115", "CK606"), _unplain), Check(RULES, _loads))
