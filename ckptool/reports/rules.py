"""The table of the rules by which ckptool judges checkpoints, for findings and docs alike.

An id is permanent and never changes its meaning; its first digit is the family. A finding has the
severity of its rule, unless the rule is required: ``--require`` makes its findings errors.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckptool.records import NamedTuple
from ckptool.reports.base import Finding, Severity

TREE, BYTES, VALUES = "tree", "bytes", "values"  # the parts that a rule reads, the cheapest first

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
    """A row of the table: the fault that the rule finds, its severity, and its remedy."""

    id: str
    name: str
    severity: Severity
    meaning: str
    remedy: str
    cost: str = TREE  # tree: headers and pickles, a sample of values; bytes, values: all of them
    default: bool = True  # else only when it is required or selected


_ERROR, _WARNING, _INFO = Severity

_AGAIN = "get the file again from where it was written, or take an earlier checkpoint"

_SAME_AGAIN = (
    "name the checkpoint that these weights were taken from, or take them from this one: "
    "ckptool extract-ema SOURCE"
)

RULES: tuple[Rule, ...] = (
    # ------------------------------------------------------------------------------- container
    Rule("CK101", "container-damaged", _ERROR, "The file breaks the rules of its format.", _AGAIN),
    Rule("CK102", "truncated", _ERROR, "The file ends before its values do.", _AGAIN),
    Rule("CK103", "checksum", _ERROR,
         "A record's bytes do not fit the checksum written beside them.",
         _AGAIN + "; the named tensors have wrong values", BYTES),
    Rule("CK104", "shard-missing", _ERROR, "A file that an index names is not there.",
         "fetch the missing file into the same directory"),
    Rule("CK105", "storage-missing", _ERROR,
         "The values of a tensor are missing from the file, or there are too few.", _AGAIN),
    Rule("CK106", "changed-while-read", _ERROR, "The file was written to while it was read.",
         "verify it when the job that writes it has finished"),
    Rule("CK107", "leftovers", _WARNING, "Bytes follow the end of the checkpoint.",
         "an older, longer file may have been overwritten in place: save it again under a new "
         "name"),
    Rule("CK108", "not-in-index", _WARNING, "The index leaves out files that look like its shards.",
         "keep the files of one save only: some loaders follow the index, and some take every "
         "file"),
    Rule("CK110", "two-containers", _WARNING,
         "Readers see two files: a zip archive ends here, or the bytes are another format too.",
         "get the file from its author again; torch and ckptool read the beginning"),
    Rule("CK111", "two-readings", _WARNING,
         "The archive's headers and its directory disagree: other readers may see another file.",
         "get the file from its author again; torch and ckptool go by the directory"),
    Rule("CK112", "pickle-checksum", _ERROR,
         "The pickle does not fit its checksum: names, shapes or numbers in it have changed.",
         _AGAIN),
    Rule("CK113", "other-pickle", _WARNING,
         "The archive holds another pickle, which cannot be read to its end.",
         "find out what put it there; torch.load does not read it"),
    Rule("CK114", "fragment", _WARNING,
         "Weights are the shards of one process, or flattened: the file has a part of them.",
         "gather the weights before saving, or save with torch.distributed.checkpoint"),
    Rule("CK115", "not-plain", _INFO,
         "Weights are no plain tensors: quantized by a library, numpy arrays, storages.",
         "load them with the library that made them; ckptool extract-ema refuses them by name"),
    Rule("CK120", "unreadable", _ERROR, "The path could not be read, so nothing in it was checked.",
         "check the path and who may read it: ls -l shows both"),
    Rule("CK121", "not-opened", _INFO, "Files in the directory are no part of what was checked.",
         "verify them by name"),
    Rule("CK122", "loader-refuses", _ERROR,
         "torch.load refuses the file, whatever weights_only says.",
         "save it again with torch.save; ckptool can still take the weights out of it"),
    Rule("CK123", "python2-strings", _INFO, "Strings were written by Python 2 and are no UTF-8.",
         'load it with torch.load(path, encoding="latin1", weights_only=False)'),
    Rule("CK124", "unknown-device", _WARNING, "Values are tagged with a device that torch lacks.",
         'load it with torch.load(path, map_location="cpu")'),
    Rule("CK125", "shards-uncounted", _INFO,
         "No file states how many shards there are, so missing last ones would not be noticed.",
         "compare the shapes with the model's: --like"),
    Rule("CK126", "one-of-ranks", _WARNING,
         "The file is of one rank of several, so its weights may be parts.",
         "name the directory with the files of all ranks, which ckptool joins where they say how; "
         "or compare the shapes with the model's: --like"),
    Rule("CK127", "in-two-shards", _WARNING,
         "A tensor is in several shards, which have to hold the same values.",
         "write the shards again: ckptool convert INDEX -o OUT.safetensors --max-shard-size 5GB"),
    # ---------------------------------------------------------------------------------- safety
    Rule("CK201", "dangerous-call", _ERROR,
         "Unpickling would run code that reaches the system, or call an unknown function.",
         "do not load it with weights_only=False; ckptool extract-ema takes the weights "
         "unexecuted"),
    Rule("CK202", "not-weights-only", _INFO,
         "torch.load(weights_only=True), the default since torch 2.6, refuses the file.",
         "write plain data with ckptool convert --safe, or the weights alone with ckptool convert"),
    Rule("CK203", "unknown-class", _INFO, "Unpickling would import classes that were never vetted.",
         "save plain dicts, lists and numbers instead of objects"),
    Rule("CK204", "archive-code", _INFO,
         "The archive holds a program that loading runs, or that reaches the system when called.",
         "load it only from people you trust; ckptool extract-ema takes the weights unexecuted"),
    Rule("CK210", "constructed-class", _WARNING,
         "Unpickling would call unknown names with plain values, or bind them to such: enums, "
         "settings, functools.partial.",
         "load the file only from people you trust, or save the values alone (.value, a dict)"),
    # ---------------------------------------------------------------------------------- values
    Rule("CK301", "not-finite", _ERROR, "Weights hold NaN or infinities.",
         "take an earlier checkpoint: training had diverged when this one was saved", VALUES),
    Rule("CK302", "optimizer-not-finite", _ERROR, "The optimizer's state holds NaN or infinities.",
         "resume from an earlier checkpoint; the weights may still be good for inference", VALUES),
    Rule("CK303", "sample-not-finite", _ERROR, "A sample of the values holds NaN or infinities.",
         "ckptool verify --values says which tensors and how many values"),
    Rule("CK304", "all-zero", _WARNING, "A weight matrix is zero throughout.",
         "a layer that was never initialised or never trained: look at how it was made", VALUES),
    Rule("CK305", "constant", _WARNING, "All values of a weight matrix are the same.",
         "a layer that was never initialised or never trained: look at how it was made", VALUES),
    Rule("CK306", "integer-limit", _WARNING,
         "An integer tensor holds its type's smallest or largest value: it may have overflowed.",
         "count in a wider type", VALUES, default=False),
    Rule("CK307", "saturated", _WARNING,
         "Weights are at the largest value of float16, 65504: they overflowed and were clamped.",
         "save the weights in bfloat16 or float32, or take a checkpoint from before the overflow",
         VALUES),
    Rule("CK308", "huge-values", _WARNING, "Weights are larger than weights of a network can be.",
         "take an earlier checkpoint: the training has diverged, or the bytes are of another dtype",
         VALUES),
    # -------------------------------------------------------------------------------- averages
    Rule("CK401", "ema-absent", _ERROR, "There are no EMA weights, or it is not clear which.",
         "ckptool inspect shows what was looked at; --ema of extract-ema names a place", TREE,
         default=False),
    Rule("CK402", "ema-shapes", _ERROR,
         "The EMA weights do not fit the model: other shapes, types or names.",
         "they are of another model, or of another version of it: save both in one step"),
    Rule("CK403", "ema-flag", _WARNING, "The EMA flag in the file is wrong.",
         "the EMA was lost on saving, or the flag is stale: look at the code that saves"),
    Rule("CK404", "ema-identical", _WARNING, "The EMA weights are the model's own values.",
         "check that the EMA's update runs after each optimizer step"),
    Rule("CK405", "ema-unrelated", _WARNING, "The EMA weights have nothing to do with the model.",
         "check which model the EMA was made from, and that it is restored on a resume"),
    Rule("CK406", "ema-swapped", _WARNING,
         "The state dict called ema holds the raw weights, and the model's holds the EMA weights.",
         "ckptool extract-ema takes the right ones"),
    Rule("CK407", "ema-immature", _WARNING,
         "More than 5 % of the EMA is still the initial weights.",
         "average for longer, with a warm-up of the decay, or with a smaller one"),
    Rule("CK408", "ema-reversed", _WARNING,
         "The optimizer's last step fits the EMA weights, not the model's: they may be swapped.",
         "check in which order the trainer swaps and saves"),
    Rule("CK409", "ema-partial", _INFO, "Weights of the model have no average.",
         "what is missing comes from the model: fine where it is frozen or a buffer"),
    Rule("CK410", "decay-range", _WARNING, "The decay of the EMA is not between 0 and 1.",
         "with 1 the EMA never changes, with 0 it never averages; usual values are 0.99 to 0.9999"),
    Rule("CK411", "ema-updates", _WARNING, "The EMA's count of updates does not fit the run.",
         "restore the EMA and its counter on a resume; update it once a step"),
    Rule("CK412", "ema-copies", _WARNING, "Two copies of the EMA weights differ.",
         "load neither before you know which one the trainer restores", VALUES),
    Rule("CK413", "ema-precision", _WARNING,
         "The average is kept in a type too coarse for its decay: small updates are lost.",
         "keep the EMA in float32"),
    Rule("CK414", "main-slot-averaged", _INFO, "The model's state dict holds the EMA weights.",
         "load it as it is for inference; a resume must restore the raw weights"),
    Rule("CK416", "ema-buffers-initial", _WARNING,
         "The EMA holds buffers at their initial values, which the model has trained.",
         "take the model's buffers: ckptool extract-ema --buffers model; copy them on each update"),
    Rule("CK417", "ema-unstarted", _WARNING,
         "The averaged model is the copy that averaging begins from: nothing has been averaged "
         "yet.",
         "take the raw weights: ckptool extract-ema PATH#@model; or a later checkpoint"),
    Rule("CK418", "ema-note", _WARNING,
         "ckptool's note calls the weights an EMA, and the file that it names says otherwise.",
         "make the file again: ckptool extract-ema SOURCE"),
    Rule("CK419", "raw-weights-gone", _ERROR,
         "The model's state dict holds the EMA weights, and the raw ones are not in the file.",
         "resume from the original: the optimizer's state belongs to the raw weights", TREE,
         default=False),
    Rule("CK420", "sidecar-unread", _INFO,
         "A sidecar file was not read, although its name says that it holds the EMA weights.",
         "ckptool inspect FILE tells why; move it away if it does not belong to the checkpoint"),
    # ---------------------------------------------------------------------------------- resume
    Rule("CK501", "no-optimizer", _ERROR, "There is no optimizer state.",
         "save optimizer.state_dict() too", TREE, default=False),
    Rule("CK502", "optimizer-empty", _ERROR, "The optimizer has no state although training began.",
         "save after optimizer.step(); a resume would begin with empty moments"),
    Rule("CK503", "optimizer-partial", _INFO, "Some parameters of the optimizer have no state.",
         "fine for parameters that never got a gradient: frozen or unused ones"),
    Rule("CK504", "optimizer-shapes", _ERROR, "The optimizer's state does not fit the weights.",
         "it is the optimizer of another model, or the parameters were in another order"),
    Rule("CK505", "moments-zero", _WARNING, "All moments of the optimizer are zero.",
         "it was made anew before it was saved: restore it before training goes on"),
    Rule("CK506", "optimizer-step", _WARNING, "The optimizer has made more steps than the run.",
         "optimizer and counter were saved at different steps: save them together"),
    Rule("CK507", "no-scheduler", _ERROR, "There is no learning-rate scheduler state.",
         "save scheduler.state_dict() too; --ignore-rules CK507 if the run has none", TREE,
         default=False),
    Rule("CK508", "scheduler-lr", _WARNING,
         "The scheduler's last learning rate differs from the optimizer's.",
         "save both after scheduler.step(), and restore both"),
    Rule("CK509", "scaler", _WARNING, "The state of the gradient scaler is not usable.",
         "a scale that is 0 or infinite never recovers: make a new GradScaler"),
    Rule("CK510", "no-torch-rng", _ERROR, "The states of torch's random generators are missing.",
         "save torch.get_rng_state() and torch.cuda.get_rng_state_all(); --ignore-rules CK510 if "
         "other random numbers will do", TREE, default=False),
    Rule("CK511", "no-other-rng", _ERROR,
         "The states of numpy's and Python's random generators are missing.",
         "save numpy.random.get_state() and random.getstate(); --ignore-rules CK511 if nothing "
         "uses them", TREE, default=False),
    Rule("CK512", "rng-form", _ERROR, "The state of a random generator could not be restored.",
         "save what get_rng_state() returns, on the CPU and as it is"),
    Rule("CK513", "no-progress", _ERROR, "Neither epoch nor step says how far training was.",
         "save the epoch and the global step", TREE, default=False),
    Rule("CK514", "best-reset", _WARNING,
         "A best metric is non-finite, or worse than the last one.",
         "restore it on a resume: otherwise the next epoch overwrites the best checkpoint"),
    Rule("CK515", "no-best", _WARNING, "Validation results are there, but not the best one so far.",
         "save the best value too: a resume that starts from inf overwrites the best checkpoint",
         TREE, default=False),
    Rule("CK516", "early-stopping", _WARNING, "The early-stopping counter cannot be right.",
         "save and restore it together with the best metric"),
    Rule("CK517", "sections-exchanged", _ERROR,
         "Parts are swapped: each is stored under the name of another.",
         "exchange the keys, in the file's loader or where it is saved"),
    Rule("CK518", "file-name", _WARNING, "The file's name does not fit its content.",
         "trust the content; look at who renamed or copied the file"),
    Rule("CK519", "no-model", _ERROR, "There are no weights of a model.",
         "save model.state_dict() too", TREE, default=False),
    Rule("CK520", "optimizer-orphans", _ERROR,
         "States of the optimizer belong to no parameter of its groups.",
         "the groups were changed after the state was loaded: a resume would drop the moments"),
    Rule("CK521", "optimizer-extra", _INFO,
         "The optimizer has more parameters than the file has weights.",
         "save everything that is trained: the rest of the model begins anew on a resume"),
    Rule("CK522", "optimizer-reset", _WARNING,
         "The optimizer's step count does not fit its moments, or the steps of its scheduler.",
         "restore the optimizer's whole state: Adam takes far too large steps after a reset count"),
    Rule("CK523", "scheduler-ahead", _WARNING, "The scheduler has made more steps than the run.",
         "scheduler and counter were saved at different steps: save them together"),
    Rule("CK524", "no-scaler", _ERROR,
         "The run uses float16, and the state of its gradient scaler is missing.",
         "save scaler.state_dict() too: a resume begins with a scale of 65536 and skips steps",
         TREE, default=False),
    Rule("CK525", "save-unfinished", _ERROR,
         "A file with a training state is missing, which the save before this one has.",
         "the job was killed while it saved: resume from the save before; --ignore-rules CK525 if "
         "the run no longer has that part", TREE, default=False),
    Rule("CK526", "saves-mixed", _WARNING, "The files of the directory are of different steps.",
         "a save was written over an older one and not finished: resume from another save"),
    Rule("CK527", "scheduler-groups", _WARNING,
         "The scheduler has more groups of parameters than the optimizer.",
         "build the scheduler for the groups of this optimizer: torch sets the rates by position"),
    Rule("CK528", "scheduler-length", _WARNING, "The scheduler ends before the run does.",
         "build it with the run's number of steps: torch stops the run at the scheduler's last "
         "step"),
    Rule("CK529", "parameters-renamed", _WARNING,
         "The optimizer names parameters that no weight has.",
         "torch takes the moments by position, whatever the names: compare the order of "
         "parameters"),
    Rule("CK530", "shards-apart", _WARNING,
         "Files with parts of one state dict were written far apart in time.",
         "if they were not copied or downloaded one by one, a file of another save is among them: "
         "compare their checksums with the save's own"),
    Rule("CK531", "one-other-rng", _WARNING,
         "The state of numpy's or of Python's random generator is missing, the others are stored.",
         "fine if nothing in the run draws from it; else save numpy.random.get_state() and "
         "random.getstate()", TREE, default=False),
    # --------------------------------------------------------------------------------- loading
    Rule("CK601", "missing-keys", _ERROR,
         "The file lacks names that the model has.",
         "rename the file's weights, or build the model that they are of"),
    Rule("CK602", "unexpected-keys", _ERROR, "The file has names that the model lacks.",
         "rename the file's weights, or build the model that they are of"),
    Rule("CK603", "shape-mismatch", _ERROR, "Tensors of one name have other shapes.",
         "build the model with the sizes of the file; strict=False does not help here"),
    Rule("CK604", "loads-nothing", _ERROR,
         "load_state_dict(strict=False) would load little or nothing, and report no error.",
         "rename the file's weights before loading"),
    Rule("CK606", "no-values", _WARNING, "Weights have no values: placeholders, or meta tensors.",
         "gather the weights before saving: zero_to_fp32.py does so for a directory of ZeRO 3"),
    # ------------------------------------------------------------------------------ provenance
    Rule("CK701", "not-that-average", _ERROR,
         "The weights are not the EMA weights of the source, or not those at its address.",
         _SAME_AGAIN),
    Rule("CK702", "not-those-names", _ERROR,
         "The weights have other names or shapes than the source's.",
         _SAME_AGAIN),
)  # fmt: skip

# Rules for what is written from other files; verify has no input to compare it with.
WRITING: tuple[Rule, ...] = (
    Rule("CK801", "lossy-cast", _WARNING,
         "Values overflow in the type that they are cast to, or become 0 in it.",
         "keep the type of the averages, or choose one with more range: --dtype bfloat16"),
    Rule("CK802", "stranger", _WARNING,
         "A checkpoint is far from all others that it is averaged with.",
         "leave it out if it is of another run, of its beginning, or has diverged"),
    Rule("CK803", "counted-twice", _WARNING, "Two checkpoints of an average hold the same weights.",
         "name only one of them; if both are meant to count, give each a weight: --weights"),
    Rule("CK804", "written-into-the-run", _WARNING,
         "An average lies among the checkpoints that it is made of.",
         "write it to another directory: other tools take it for a checkpoint of the run"),
)  # fmt: skip

BY_ID: Mapping[str, Rule] = {rule.id: rule for rule in (*RULES, *WRITING)}


def finding(rule: str, address: str, message: str, remedy: str | None = None) -> Finding:
    """Return a finding with the rule's severity, and its remedy unless there is a better one."""
    row = BY_ID[rule]
    return Finding(rule, row.severity, address, message, remedy or row.remedy)


def is_rule(text: str) -> bool:
    """Return whether a text is the id of a rule, CK404, or begins the ids of a family, CK4."""
    return len(text) > 2 and any(rule.id.startswith(text) for rule in RULES)
