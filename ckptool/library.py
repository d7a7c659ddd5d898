"""The functions for users of the library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ckptool.ema import locate_ema
from ckptool.errors import EmaNotFoundError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.plans import Extraction, plan_extraction, plan_model
from ckptool.refusals import require_ema
from ckptool.soundness import prove_equalities
from ckptool.torch_bridge import as_torch

if TYPE_CHECKING:
    import torch

    from ckptool.candidates import EmaLocation
    from ckptool.formats.base import Checkpoint

Which = Literal["ema", "model", "auto"]


def load_state_dict(
    path: str | Path,
    which: Which = "auto",
    *,
    names: Literal["model", "bare", "ema"] = "model",
    ema: str | None = None,
    model: str | None = None,
) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint as torch tensors, without running anything that the file says.

    Tensors are mapped from the file where they lie ready in it: nothing is read until it is used,
    and writing to them changes memory only. So values that are not finite are not noticed here, as
    they are by ``ckptool extract-ema``. Needs torch.

    Args:
        path: the checkpoint.
        which: ``ema``: the averaged weights; ``model``: the model's own slot; ``auto``: the average
            if the file has one, else the model's.
        names: ``model``: the names of the model's slot; ``bare``: without wrappers (``module.``);
            ``ema``: the names under which the averages are stored.
        ema: address of the averaged weights, instead of searching.
        model: address of the model's slot, instead of searching.

    Returns:
        Name to tensor. What the average lacks (buffers, frozen layers) comes from the model.

    Raises:
        EmaNotFoundError: ``which="ema"``, and there is none.
        EmaAmbiguousError: several places could be meant; name one with ``ema``.
        CkptError: the file cannot be read.

    Example:
        >>> import ckptool
        >>> weights = ckptool.load_state_dict("fixtures/ema/has_ema/late.pt", "ema")
        >>> sorted(weights)[:2]
        ['backbone.bn1.bias', 'backbone.bn1.num_batches_tracked']
    """
    if which not in {"ema", "model", "auto"}:
        raise UsageError(f"which is 'ema', 'model' or 'auto', not {which!r}")
    with open_checkpoint(path) as checkpoint:
        location = locate_ema(checkpoint, ema=ema, model=model)
        plan = _plan(checkpoint, location, which, names)
        if which != "model":
            prove_equalities(checkpoint, location.selected)
        return as_torch(plan.tensors, checkpoint.reader)


def _plan(checkpoint: Checkpoint, location: EmaLocation, which: Which, names: str) -> Extraction:
    takes_model = which == "model" or (which == "auto" and location.status == "none")
    if takes_model or location.main_slot == "averaged":
        if location.model is None:
            raise EmaNotFoundError(
                "no weights were found at the places where models are kept",
                path=checkpoint.path,
                hint="name them: model='ADDRESS'; ckptool inspect --tensors lists the addresses",
            )
        return plan_model(location.model, names)
    return plan_extraction(location, require_ema(location, checkpoint), names)
