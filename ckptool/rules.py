"""Every rule by which ckptool judges a checkpoint: the one table behind findings and docs.

An id is for good; its first digit is the family, and it never changes its meaning. The severity
is that of a finding when nobody required the rule; ``--require`` makes its findings errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ckptool.reports import Finding

TREE, BYTES, VALUES = "tree", "bytes", "values"  # what a rule reads, the cheapest first

FAMILIES: Mapping[str, str] = {
    "CK1": "container",
    "CK2": "safety",
    "CK3": "values",
    "CK4": "averages",
    "CK5": "resume",
    "CK6": "loading",
    "CK7": "provenance",
    "CK8": "writing",
}


class Rule(NamedTuple):
    """A row: what is wrong when it speaks, how bad that is, and what to do."""

    id: str
    name: str
    severity: str  # error | warning | info
    meaning: str
    remedy: str
    cost: str = TREE  # tree: headers and pickles, a sample of values; bytes, values: all of them
    default: bool = True  # else only when it is required or selected

    @property
    def family(self) -> str:
        """By the first digit of the id."""
        return FAMILIES[self.id[:3]]


_ERROR, _WARNING, _INFO = "error", "warning", "info"

_AGAIN = "get the file again from where it was written, or take an earlier checkpoint"

RULES: tuple[Rule, ...] = (
    # ------------------------------------------------------------------------------- container
    Rule("CK101", "container-damaged", _ERROR, "The file breaks the rules of its format.", _AGAIN),
    Rule("CK102", "truncated", _ERROR, "The file ends before its values do.", _AGAIN),
    Rule(
        "CK103", "checksum", _ERROR,
        "A record's bytes do not fit the checksum written beside them.",
        _AGAIN + "; the named tensors have wrong values", BYTES,
    ),
    Rule(
        "CK104", "shard-missing", _ERROR, "A file that an index names is not there.",
        "fetch the missing file into the same folder",
    ),
    Rule(
        "CK105", "storage-missing", _ERROR,
        "The values of a tensor are missing from the file, or there are too few.", _AGAIN,
    ),
    Rule(
        "CK106", "changed-while-read", _ERROR, "The file was written to while it was read.",
        "verify it when the job that writes it has finished",
    ),
    Rule(
        "CK107", "leftovers", _WARNING, "Bytes follow the end of the checkpoint.",
        "an older, longer file may have been overwritten in place: save it again under a new name",
    ),
    Rule(
        "CK110", "two-containers", _WARNING,
        "A zip archive ends in a file that begins as something else: readers see two files.",
        "get the file from its author again; torch and ckptool read the beginning",
    ),
    Rule(
        "CK111", "two-readings", _WARNING,
        "The archive's headers and its directory disagree: readers could see two files.",
        "get the file from its author again; torch and ckptool go by the directory",
    ),
    Rule(
        "CK112", "pickle-checksum", _ERROR,
        "The pickle does not fit its checksum: names, shapes or numbers in it have changed.",
        _AGAIN,
    ),
    Rule(
        "CK113", "other-pickle", _WARNING,
        "The archive holds another pickle, which cannot be read to its end.",
        "find out what put it there; torch.load does not read it",
    ),
    # ---------------------------------------------------------------------------------- safety
    Rule(
        "CK201", "dangerous-call", _ERROR,
        "Unpickling would run code that reaches the system, or call an unknown function.",
        "do not load it with weights_only=False; ckptool extract-ema takes the weights unexecuted",
    ),
    Rule(
        "CK202", "not-weights-only", _INFO,
        "torch.load(weights_only=True), the default since torch 2.6, refuses the file.",
        "allow the named classes, or save plain values instead of them",
    ),
    Rule(
        "CK203", "unknown-class", _INFO, "Unpickling would import classes that nobody has vetted.",
        "save plain dicts, lists and numbers instead of objects",
    ),
    # ---------------------------------------------------------------------------------- values
    Rule(
        "CK301", "not-finite", _ERROR, "Weights hold NaN or infinities.",
        "take an earlier checkpoint: training had diverged when this one was saved", VALUES,
    ),
    Rule(
        "CK302", "optimizer-not-finite", _ERROR, "The optimizer's state holds NaN or infinities.",
        "resume from an earlier checkpoint; the weights may still be good for inference", VALUES,
    ),
    Rule(
        "CK303", "sample-not-finite", _ERROR, "A sample of the values holds NaN or infinities.",
        "ckptool verify --values says which tensors and how many values",
    ),
    Rule(
        "CK304", "all-zero", _WARNING, "A weight matrix is zero throughout.",
        "a layer that was never initialised or never trained: look at how it was made", VALUES,
    ),
    Rule(
        "CK305", "constant", _WARNING, "All values of a weight matrix are the same.",
        "a layer that was never initialised or never trained: look at how it was made", VALUES,
    ),
    Rule(
        "CK306", "integer-limit", _WARNING,
        "An integer tensor holds its type's smallest or largest value: it may have overflowed.",
        "count in a wider type", VALUES, default=False,
    ),
    # -------------------------------------------------------------------------------- averages
    Rule(
        "CK401", "ema-absent", _ERROR, "There are no averaged weights, or it is not clear which.",
        "ckptool inspect shows what was looked at; --ema of extract-ema names a place", TREE,
        default=False,
    ),
    Rule(
        "CK402", "ema-shapes", _ERROR,
        "Averaged weights do not fit the model: other shapes, types or names.",
        "they are of another model, or of another version of it: save both in one step",
    ),
    Rule(
        "CK403", "ema-flag", _WARNING, "What the file declares of its EMA is not so.",
        "the EMA was lost on saving, or the flag is stale: look at the code that saves",
    ),
    Rule(
        "CK404", "ema-identical", _WARNING, "The averages are the model's own values.",
        "check that the EMA's update runs after each optimizer step",
    ),
    Rule(
        "CK405", "ema-unrelated", _WARNING, "The averages have nothing to do with the model.",
        "check which model the EMA was made from, and that it is restored on a resume",
    ),
    Rule(
        "CK406", "ema-swapped", _WARNING,
        "The slot called ema holds the raw weights, and the model's slot the averages.",
        "ckptool extract-ema takes the right ones",
    ),
    Rule(
        "CK407", "ema-immature", _WARNING, "Over 5 % of the average are still the initial weights.",
        "average for longer, with a warm-up of the decay, or with a smaller one",
    ),
    Rule(
        "CK408", "ema-reversed", _WARNING,
        "The optimizer's last step leads to the slot of the averages: the slots may be exchanged.",
        "check in which order the trainer swaps and saves",
    ),
    Rule(
        "CK409", "ema-partial", _INFO, "Weights of the model have no average.",
        "what is missing comes from the model: fine where it is frozen or a buffer",
    ),
    Rule(
        "CK410", "decay-range", _WARNING, "The decay of the EMA is not between 0 and 1.",
        "1 never learns, 0 never averages: usual are 0.99 to 0.9999",
    ),
    Rule(
        "CK411", "ema-updates", _WARNING, "The EMA's count of updates does not fit the run.",
        "restore the EMA and its counter on a resume; update it once a step",
    ),
    Rule(
        "CK412", "ema-copies", _WARNING, "Two copies of the averaged weights differ.",
        "load neither before you know which one the trainer restores", VALUES,
    ),
    Rule(
        "CK413", "ema-precision", _WARNING,
        "The average is kept in a type too coarse for its decay: small updates are lost.",
        "keep the EMA in float32",
    ),
    Rule(
        "CK414", "main-slot-averaged", _INFO, "The model's own slot holds the averaged weights.",
        "load it as it is for inference; a resume must restore the raw weights",
    ),
    # ---------------------------------------------------------------------------------- resume
    Rule(
        "CK501", "no-optimizer", _ERROR, "There is no optimizer state.",
        "save optimizer.state_dict() too", TREE, default=False,
    ),
    Rule(
        "CK502", "optimizer-empty", _ERROR, "The optimizer has no state although training began.",
        "save after optimizer.step(); a resume would begin with empty moments",
    ),
    Rule(
        "CK503", "optimizer-partial", _INFO, "Some parameters of the optimizer have no state.",
        "fine for parameters that never got a gradient: frozen or unused ones",
    ),
    Rule(
        "CK504", "optimizer-shapes", _ERROR, "The optimizer's state does not fit the weights.",
        "it is the optimizer of another model, or the parameters were in another order",
    ),
    Rule(
        "CK505", "moments-zero", _WARNING, "All moments of the optimizer are zero.",
        "it was made anew before it was saved: restore it before training goes on",
    ),
    Rule(
        "CK506", "optimizer-step", _WARNING, "The optimizer has made more steps than the run.",
        "optimizer and counter are of different moments: save them together",
    ),
    Rule(
        "CK507", "no-scheduler", _ERROR, "There is no learning-rate scheduler state.",
        "save scheduler.state_dict() too; --ignore CK507 when there is none", TREE, default=False,
    ),
    Rule(
        "CK508", "scheduler-lr", _WARNING,
        "The scheduler's last learning rate is not the optimizer's.",
        "save both after scheduler.step(), and restore both",
    ),
    Rule(
        "CK509", "scaler", _WARNING, "The state of the gradient scaler is not usable.",
        "a scale that is 0 or infinite never recovers: make a new GradScaler",
    ),
    Rule(
        "CK510", "no-torch-rng", _ERROR, "The states of torch's random generators are missing.",
        "save torch.get_rng_state() and torch.cuda.get_rng_state_all()", TREE, default=False,
    ),
    Rule(
        "CK511", "no-other-rng", _ERROR,
        "The states of numpy's and Python's random generators are missing.",
        "save numpy.random.get_state() and random.getstate(); --ignore CK511 if nothing uses them",
        TREE, default=False,
    ),
    Rule(
        "CK512", "rng-form", _ERROR, "The state of a random generator could not be restored.",
        "save what get_rng_state() returns, on the CPU and as it is",
    ),
    Rule(
        "CK513", "no-progress", _ERROR, "Neither epoch nor step says how far training was.",
        "save the epoch and the global step", TREE, default=False,
    ),
    Rule(
        "CK514", "best-reset", _WARNING, "A best metric is not finite, or worse than the last one.",
        "restore it on a resume: otherwise the next epoch overwrites the best checkpoint",
    ),
    Rule(
        "CK515", "no-best", _ERROR,
        "Validation results are there, but not the best one so far.",
        "save it: a resume that begins from inf overwrites the best checkpoint", TREE,
        default=False,
    ),
    Rule(
        "CK516", "early-stopping", _WARNING, "The early-stopping counter cannot be right.",
        "save and restore it together with the best metric",
    ),
    Rule(
        "CK517", "sections-exchanged", _ERROR, "Parts stand under each other's names.",
        "exchange the keys, in the file's loader or where it is saved",
    ),
    Rule(
        "CK518", "file-name", _WARNING, "The file's name says something else than its content.",
        "trust the content; look at who renamed or copied the file",
    ),
    Rule(
        "CK519", "no-model", _ERROR, "There are no weights of a model.",
        "save model.state_dict() too", TREE, default=False,
    ),
    Rule(
        "CK520", "optimizer-orphans", _ERROR,
        "States of the optimizer belong to no parameter of its groups.",
        "the groups were changed after the state was loaded: a resume would drop the moments",
    ),
    Rule(
        "CK521", "optimizer-extra", _INFO,
        "The optimizer has more parameters than the file has weights.",
        "save everything that is trained: the rest of the model begins anew on a resume",
    ),
    # --------------------------------------------------------------------------------- loading
    Rule(
        "CK601", "missing-keys", _ERROR, "The model that is to be loaded has names the file lacks.",
        "rename the file's weights, or build the model that they are of",
    ),
    Rule(
        "CK602", "unexpected-keys", _ERROR, "The file has names that the model does not.",
        "rename the file's weights, or build the model that they are of",
    ),
    Rule(
        "CK603", "shape-mismatch", _ERROR, "Tensors of one name have other shapes.",
        "build the model with the sizes of the file; strict=False does not help here",
    ),
    Rule(
        "CK604", "loads-nothing", _ERROR,
        "load_state_dict(strict=False) would load nothing, or little, and say nothing.",
        "rename the file's weights before loading",
    ),
    # ------------------------------------------------------------------------------ provenance
    Rule(
        "CK701", "not-that-average", _ERROR,
        "The weights are not the averages in the source, or not those at the place named in it.",
        "make the file again: ckptool extract-ema SOURCE",
    ),
    Rule(
        "CK702", "not-those-names", _ERROR,
        "The weights have other names or shapes than the source's.",
        "make the file again: ckptool extract-ema SOURCE",
    ),
)  # fmt: skip

# Of what extract-ema and promote-ema write; verify has nothing to hold it against.
WRITING: tuple[Rule, ...] = (
    Rule(
        "CK801", "lossy-cast", _WARNING,
        "Values overflow in the type that they are cast to, or become 0 in it.",
        "keep the type of the averages, or choose one with more range: --dtype bfloat16",
    ),
)  # fmt: skip

BY_ID: Mapping[str, Rule] = {rule.id: rule for rule in (*RULES, *WRITING)}


def finding(rule: str, address: str, message: str, remedy: str | None = None) -> Finding:
    """A finding with the rule's severity, and its remedy unless there is a better one."""
    row = BY_ID[rule]
    return Finding(rule, row.severity, address, message, remedy or row.remedy)


def is_rule(text: str) -> bool:
    """Whether a text is the id of a rule, or begins those of a family: CK4, CK404."""
    return len(text) > 2 and any(rule.id.startswith(text) for rule in RULES)
