"""CK6: whether a model takes these weights, told from the names and shapes of its own.

The model is described by another file (``--like``): a checkpoint of it, its safetensors release, or
the document of ``ckptool inspect --tensors --json``, which can be kept in a repository. The words
are those of ``load_state_dict``. What a rename would mend is found by the rules that pair averages
with models (``alignment.py``).
"""

from __future__ import annotations

from collections.abc import Mapping

from ckptool.alignment import align_names, paired_prefixes
from ckptool.checks.base import Check, NotChecked, Subject, Verdicts
from ckptool.checks.container import named
from ckptool.inventory import Leaf, Table
from ckptool.rules import finding

RULES = ("CK601", "CK602", "CK603", "CK604")
LITTLE = 0.5  # of the model's names, below which strict=False would hide a mistake


def weights_of(subject: Subject) -> Table | None:
    """The table that a loader would take: the model's, or the largest."""
    tables = subject.inventory.weights
    return subject.location.model or max(tables, key=lambda t: len(t.entries), default=None)


def _loads(subject: Subject) -> Verdicts:
    table, model = weights_of(subject), subject.like
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
    """What to do to the names, where that pairs more of them than they pair as they are."""
    alignment = align_names(model, ours)
    if len(alignment.pairs) <= plain:
        return None
    would = f"then {len(alignment.pairs)} of {len(model)} fit"
    if alignment.naming == "wrapped":
        return f"drop the wrappers' parts of names (module., _orig_mod.): {would}"
    to, found = paired_prefixes(alignment)
    if alignment.naming == "prefixed" and found != to:
        return f"rename {found or ''}* to {to}*: {would}"
    return f"the names pair when dots are {alignment.naming}: {would}"


CHECKS = (Check(RULES, _loads),)
