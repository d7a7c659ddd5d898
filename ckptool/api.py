"""The functions for users of the library."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ckptool.errors import CkptError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.plans.extraction import complete, plan_extraction
from ckptool.plans.weights import Which, take_weights
from ckptool.tensors.as_torch import as_torch

if TYPE_CHECKING:
    import torch


def load_state_dict(
    path: str | Path,
    which: Which = "auto",
    *,
    names: Literal["model", "bare", "ema"] = "model",
    buffers: Literal["ema", "model"] = "ema",
    ema: str | None = None,
    model: str | None = None,
) -> dict[str, torch.Tensor]:
    """Return the weights in a checkpoint as torch tensors, without running code from the file.

    Tensors are memory-mapped where the stored bytes can be used as they are. They are not read
    before they are used, and writing to them changes memory only. So this function does not notice
    non-finite values, as ``ckptool extract-ema`` does. It needs torch.

    Args:
        path: the checkpoint.
        which: ``ema`` for the EMA weights; ``model`` for the raw (non-EMA) weights, wherever the
            file keeps them; ``auto`` for the EMA weights if the file has any, else the raw weights.
        names: ``model`` for the names in the model's state dict; ``bare`` for these names without
            wrapper prefixes (``module.``); ``ema`` for the stored names of the EMA weights.
        buffers: ``model`` takes batch statistics and counters from the model instead of the EMA
            weights, where they may never have been updated.
        ema: key path of the EMA weights, instead of a search.
        model: key path of the model's state dict, instead of a search; with ``which="model"`` this
            state dict is returned as it is.

    Returns:
        Name to tensor. Tensors that the EMA weights lack (buffers, frozen layers) come from the
        model.

    Raises:
        EmaNotFoundError: ``which="ema"``, and the file has no EMA weights.
        EmaAmbiguousError: several places may hold the EMA weights; name one with ``ema``.
        UnsupportedError: a part of the weights is no plain tensor (a shard, a quantized tensor).
        CkptError: the file cannot be read.

    Example:
        >>> import ckptool
        >>> weights = ckptool.load_state_dict("fixtures/ema/has_ema/late.pt", "ema")
        >>> sorted(weights)[:2]
        ['backbone.bn1.bias', 'backbone.bn1.num_batches_tracked']
    """
    if which not in {"ema", "model", "auto"}:
        raise UsageError(f"which is 'ema', 'model' or 'auto', not {which!r}")
    try:
        with open_checkpoint(path) as checkpoint:
            weights = take_weights(checkpoint, which, ema=ema, model=model, buffers=buffers)
            plan = plan_extraction(*weights, names)
            return as_torch(complete(plan, checkpoint.path).tensors, checkpoint.reader)
    except CkptError as error:
        error.hint = error.hint and in_python(error.hint)
        raise


# As ``shlex.quote`` writes it, without the mark behind it.
_WORD = r"""('[^']*'(?:"'"'[^']*')*|(?:[,:]*[^\s;,:)'"])+)"""
# What a hint types -> the argument of :func:`load_state_dict` that does the same.
_ARGUMENTS: Sequence[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = (
    (re.compile(rf"ckptool extract-ema ({_WORD} )?(?=--(ema|model) )"), lambda _: ""),
    (re.compile(rf"ckptool extract-ema {_WORD}"), lambda m: _loaded(m[1])),
    (
        re.compile(rf"--(ema|model|names|buffers) {_WORD}"),
        lambda m: f"{m[1]}={_string(m[2])}",
    ),
    (re.compile(rf"(?<![^\s(]){_WORD}"), lambda m: _placed(m[1])),
)


def in_python(hint: str) -> str:
    """Return a hint with arguments of :func:`load_state_dict` for the options of commands.

    Example:
        >>> in_python("if you know where they are: --ema ADDRESS")
        'if you know where they are: ema="ADDRESS"'
    """
    for typed, argument in _ARGUMENTS:
        hint = typed.sub(argument, hint)
    return hint


def _loaded(word: str) -> str:
    is_model = _unquoted(word).endswith("#@model")
    return 'which="model"' if is_model else f"load_state_dict({_string(word)})"


def _placed(word: str) -> str:
    return 'model="ADDRESS"' if word.rstrip("'").endswith("#ADDRESS") else word


def _string(word: str) -> str:
    return f'"{_unquoted(word)}"'


def _unquoted(word: str) -> str:
    return "".join(shlex.split(word))
