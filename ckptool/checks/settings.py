"""The settings of a run, in the file and in sidecar files, and the precision that they state.

Training in float16 scales the loss, and the scale is a state of its own (``GradScaler``,
DeepSpeed's and apex's loss scalers). Training in bfloat16 needs none. Scripts keep their settings
as ``args``, ``hyper_parameters`` or ``config``, the Hugging Face Trainer in ``training_args.bin``,
Lightning in ``hparams.yaml``, others in a JSON file beside the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ckptool.checks.base import Subject
from ckptool.checks.parts import is_scaler
from ckptool.contents.inventory import is_optimizer, is_state_dict
from ckptool.contents.walks import ByLevel
from ckptool.errors import CkptError
from ckptool.formats import open_checkpoint
from ckptool.formats.texts import load_json
from ckptool.regex import regex
from ckptool.sources.local import LocalFile
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import Address, GlobalRef, TensorRef, Tree, fields_of, is_container
from ckptool.tree.walking import children

SETTINGS = regex(
    r"(^|_)(args?|hparams|hyper_?parameters|hyperparams|config|cfg|conf|opts?|options|settings)"
    r"(_|\.|$)",
    re.IGNORECASE,
)
MAX_DEPTH = 4  # levels of settings; the search for a scaler goes one deeper
MAX_CHILDREN = 1_000  # visited in a container
MAX_TEXT = 1 << 20  # bytes that are read of a sidecar file

Fields = dict[str, Any]


# ---------------------------------------------------------------------------------- in the file


def settings_in(tree: Tree) -> Iterator[tuple[str, Fields]]:
    """Yield (key path, plain values) of the top level and of each dict or object of settings."""
    if isinstance(tree, dict):
        yield "", _plain(tree)
    for key, node in children(tree)[:MAX_CHILDREN] if isinstance(tree, dict) else ():
        if SETTINGS.search(str(key)) and not is_optimizer(node):
            yield from _within((key,), node)


def _within(address: Address, node: Tree) -> Iterator[tuple[str, Fields]]:
    walk = ByLevel[tuple[Address, Tree]](MAX_DEPTH, (address, node))
    for at, part in walk:
        fields = fields_of(part)
        if fields and not is_state_dict(part):
            yield format_address(at), _plain(fields)
            for key, value in islice(fields.items(), MAX_CHILDREN):
                if is_container(value):
                    walk.enter((*at, str(key)), value)


def _plain(fields: dict[Any, Any]) -> Fields:
    """Return the plain values, and classes and dtypes, which a pickle names, as their names."""
    pairs = islice(fields.items(), MAX_CHILDREN)
    named = ((str(k), v.qualname if isinstance(v, GlobalRef) else v) for k, v in pairs)
    return {key: value for key, value in named if isinstance(value, (bool, int, float, str))}


# --------------------------------------------------------------------------------- sidecar files

OBJECTS = ("training_args.bin",)
TEXTS = (
    "hparams.yaml", "config.yaml", "args.yaml", "args.json", "config.json", "training_args.json",
    "hparams.json",
)  # fmt: skip
LINE = regex(
    r"^\s*[\"']?(?P<key>[\w.]+)[\"']?\s*:\s*[\"']?(?P<value>[\w.+-]+)[\"']?\s*,?\s*(#.*)?$",
    re.MULTILINE,
)


def settings_beside(path: Path) -> Iterator[tuple[str, Fields]]:
    """Yield (place, plain values) of settings files in the checkpoint's directory or its parent."""
    folder = path if path.is_dir() else path.parent
    for name in OBJECTS:
        yield from ((f"{name}{at and '#'}{at}", fields) for at, fields in _of_object(folder / name))
    for home in (folder, folder.parent):
        for name in TEXTS:
            yield from ((name, fields) for fields in _of_text(home / name))


def _of_object(path: Path) -> Iterator[tuple[str, Fields]]:
    if not path.is_file():
        return
    try:
        with open_checkpoint(path) as checkpoint:
            yield from _within((), checkpoint.tree)
    except (CkptError, OSError):
        return


def _of_text(path: Path) -> Iterator[Fields]:
    try:
        with LocalFile(path) as file:
            text = file.head(MAX_TEXT).decode("utf-8", "replace")
    except CkptError:
        return
    try:
        parsed = load_json(text)
    except ValueError:
        yield {match["key"]: _value(match["value"]) for match in LINE.finditer(text)}
    else:
        yield from (fields for _, fields in _within((), parsed))


def _value(text: str) -> Any:
    words: dict[str, Any] = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    return int(text) if text.isdecimal() and len(text) < 10 else text


# -------------------------------------------------------------------------------------- precision

SWITCHES = frozenset({"fp16", "use_fp16", "amp", "use_amp", "enable_amp", "half_precision",
                      "mixed_precision", "use_mixed_precision", "fp16_enabled"})  # fmt: skip
DTYPES = frozenset({"amp_dtype", "autocast_dtype", "mixed_precision_dtype", "dtype"})
PRECISIONS = frozenset({"precision", "mixed_precision", "amp", "amp_dtype", "autocast_dtype",
                        "mixed_precision_dtype", "fp16"})  # fmt: skip
FLOAT16 = frozenset({"16", "16-mixed", "fp16", "float16", "fp16-mixed", "amp_fp16", "mixed_fp16",
                     "torch.float16", "f16"})  # fmt: skip
BFLOAT16 = regex(r"bf16|bfloat16", re.IGNORECASE)


def float16_setting(subject: Subject) -> str | None:
    """Return the setting that states a run in mixed float16; None if no setting does."""
    singles = any(
        ref.dtype.name == "float32" and len(ref.shape) > 1
        for ref in subject.weight_tensors.values()
    )
    beside = settings_beside(subject.path) if subject.checkpoint.is_local else ()
    found = (*settings_in(subject.checkpoint.tree), *beside)
    for where, fields in found:
        key = _float16_key(where, fields, singles=singles)
        if key is not None and not _is_deepspeed(fields):
            place = f"{where}/{key}" if where else key
            return f"{place} = {str(fields[key])[:20]}"
    return None


def _float16_key(where: str, fields: Fields, *, singles: bool) -> str | None:
    lowered = {key.lower(): key for key in fields}
    if any(_says_bfloat16(name, fields[key]) for name, key in lowered.items()):
        return None
    for name, key in lowered.items():
        value = fields[key]
        if name in SWITCHES and value is True and (where or name != "half_precision"):
            return key
        if name in PRECISIONS and _is_float16(value):
            return key
        # This may be the dtype of the weights, which says nothing of the run if they are float16.
        if name in DTYPES and _is_float16(value) and singles and where and "json" not in where:
            return key
        if name == "enabled" and value is True and where.lower().rpartition("/")[2] in SWITCHES:
            return key
    return None


def _says_bfloat16(name: str, value: Any) -> bool:
    if isinstance(value, str):
        return name in DTYPES | PRECISIONS and BFLOAT16.search(value) is not None
    return value is True and BFLOAT16.search(name) is not None and "full_eval" not in name


def _is_float16(value: Any) -> bool:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return (is_number and value == 16) or (isinstance(value, str) and value.lower() in FLOAT16)


def _is_deepspeed(fields: Fields) -> bool:
    """Return whether the run uses DeepSpeed, which keeps the scale in files of its own."""
    return isinstance(fields.get("deepspeed"), str) and bool(fields["deepspeed"])


# ----------------------------------------------------------------------------------------- scaler

SCALER = regex(
    r"(^|_|\.)(grad_?|amp_?|loss_?)?scaler\d*($|_|\.)|loss_scale|cur_scale|^amp$|amp_state"
    r"|amp_scaling"
    r"|^MixedPrecision",
    re.IGNORECASE,
)
BESIDE = ("scaler.pt", "scaler.bin", "*optim_states.pt", "global_step*")  # Trainer, DeepSpeed


def has_scaler(subject: Subject) -> bool:
    """Return whether the state of a gradient scaler is in the file or in a sidecar file."""
    if any(True for _ in _scalers(subject.checkpoint.tree)):
        return True
    return subject.checkpoint.is_local and _is_beside(subject.path)


def _is_beside(path: Path) -> bool:
    folder = path if path.is_dir() else path.parent
    try:
        return any(next(folder.glob(pattern), None) is not None for pattern in BESIDE)
    except OSError:
        return False


def _scalers(tree: Tree) -> Iterator[Tree]:
    """Yield gradient scalers by form or by name, also those in an optimizer beside its states."""
    walk = ByLevel[tuple[Address, Tree]](MAX_DEPTH + 1, ((), tree))
    for address, node in walk:
        if is_scaler(node):
            yield node
        for key, child in () if is_state_dict(node) else children(node)[:MAX_CHILDREN]:
            if isinstance(key, str) and SCALER.search(key) and _may_be_scaler(child):
                yield child
            is_inside = is_optimizer(node) and key in {"state", "param_groups"}
            if is_container(child) and not is_inside and not SETTINGS.search(str(key)):
                walk.enter((*address, key), child)


def _may_be_scaler(node: Tree) -> bool:
    """Return whether it is no setting and no scaler of data, which keeps a mean for each column."""
    if node is None or isinstance(node, (bool, str)):
        return False
    return not any(isinstance(v, TensorRef) and v.numel > 1 for _, v in children(node))
