"""Where frameworks keep averaged weights: the table ``LAYOUTS``.

A row gives a found candidate its name and library, says where its metadata stands and what the
model's own slot then holds, and links the code that writes such files. A row never replaces the
evidence (names and shapes must align, see ``ema.py``), and a layout without a row is found all the
same.

Addresses are patterns: ``callbacks/*/ema`` has one component that may be anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ckptool.inventory import is_optimizer
from ckptool.tree import Address, Tree, is_container, resolve


@dataclass(frozen=True, slots=True)
class EmaLayout:
    """One way of keeping averaged weights."""

    name: str
    library: str
    ema_at: str  # pattern of the table's address
    model_at: str  # address of the weights that it averages
    written_by: str  # the code that writes it, or who is known to write so
    beside: tuple[str, ...] = ()  # top-level keys that must be there too
    meta_at: tuple[str, ...] = ()  # patterns of the dicts that hold decay, updates and the like
    holds: str = (
        "averaged"  # what stands at ema_at: averaged, or raw where the writer swaps on saving
    )
    promoted_flag: str | None = (
        None  # top-level key: True may mean the model's slot was overwritten
    )


# fmt: off
LAYOUTS = (
    EmaLayout("callback-export", "Lightning EMACallback", "ema_state_dict", "state_dict",
              "an EMACallback with export_to_checkpoint=True, in on_save_checkpoint",
              beside=("ema_meta",), meta_at=("ema_meta", "callbacks/*EMA*")),
    EmaLayout("callback-state", "Lightning EMACallback", "callbacks/*/ema", "state_dict",
              "an EMACallback's state_dict(), kept by Lightning under callbacks",
              meta_at=("callbacks/*EMA*",)),
    EmaLayout("has-ema", "plain training loop", "ema_state_dict", "model_state_dict",
              "loops that save model_state_dict, ema_state_dict and has_ema",
              beside=("has_ema",)),
    EmaLayout("ema-shadow", "plain training loop", "ema_shadow", "state_dict",
              "loops that save state_dict, ema_shadow and using_ema",
              promoted_flag="using_ema"),
    EmaLayout("timm", "timm CheckpointSaver", "state_dict_ema", "state_dict",
              "https://github.com/huggingface/pytorch-image-models/blob/main/timm/utils/checkpoint_saver.py"),
    EmaLayout("basicsr", "BasicSR, Real-ESRGAN", "params_ema", "params",
              "https://github.com/XPixelGroup/BasicSR/blob/master/basicsr/models/base_model.py"),
    EmaLayout("rtdetr", "RT-DETR, D-FINE, DEIM", "ema/module", "model",
              "https://github.com/lyuwenyu/RT-DETR/blob/main/rtdetrv2_pytorch/src/optim/ema.py",
              meta_at=("ema",)),
    EmaLayout("dit", "DiT, SiT and their likes", "ema", "model",
              "https://github.com/facebookresearch/DiT/blob/main/train.py"),
    EmaLayout("mmengine-swapped", "mmengine EMAHook", "ema_state_dict", "state_dict",
              "https://github.com/open-mmlab/mmengine/blob/main/mmengine/hooks/ema_hook.py",
              beside=("message_hub", "meta"), holds="raw"),
)
# fmt: on


def match_layout(tree: Tree, addresses: Iterable[Address]) -> EmaLayout | None:
    """The first row that fits one of the addresses and whose neighbours are there."""
    spelled = [tuple(map(str, address)) for address in addresses]
    return next(
        (
            row
            for row in LAYOUTS
            if any(_fits(row.ema_at, address) for address in spelled) and _has(tree, row.beside)
        ),
        None,
    )


def nodes_at(tree: Tree, pattern: str) -> list[Tree]:
    """The containers at a pattern; optimizers are never entered."""
    level = [tree]
    for part in pattern.split("/"):
        level = [
            child
            for node in level
            for key, child in _named_parts(node).items()
            if fnmatchcase(str(key), part)
        ]
    return [node for node in level if not is_optimizer(node)]


def _named_parts(node: Tree) -> dict[str, Tree]:
    return node if isinstance(node, dict) else {}


def _fits(pattern: str, address: tuple[str, ...]) -> bool:
    parts = pattern.split("/")
    return len(parts) == len(address) and all(map(fnmatchcase, address, parts))


def _has(tree: Tree, keys: tuple[str, ...]) -> bool:
    if not is_container(tree):
        return not keys
    try:
        for key in keys:
            resolve(tree, (key,))
    except KeyError:
        return False
    return True
