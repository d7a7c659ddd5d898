"""Layouts in which frameworks store EMA weights: the table ``LAYOUTS``.

A row gives a candidate its name and library, and states where its metadata is and whether the
writer keeps the EMA weights in the model's own state dict. It links the code that writes such
files. A row never replaces the evidence: names and shapes must pair (see ``locate.py``). EMA
weights are also found in a layout without a row.

Key paths are patterns: ``callbacks/*/ema`` has one component that may be anything. A row whose
``ema_at`` is its ``model_at`` is a writer that puts the EMA weights into the model's state dict.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ckptool.contents.inventory import scalars_in
from ckptool.records import NamedTuple
from ckptool.tree.nodes import Address, Tree
from ckptool.tree.patterns import fits, nodes_at


class EmaLayout(NamedTuple):
    """One way of storing EMA weights."""

    name: str
    library: str
    ema_at: str  # pattern of the key path
    model_at: str  # key path of the weights that it averages
    written_by: str  # the code that writes it, or the programs that are known to
    beside: tuple[str, ...] = ()  # patterns of key paths that must be there too
    when: tuple[str, Any] | None = None  # (pattern of a key path, value that it must have)
    naming: str | None = None  # of the alignment, where it distinguishes the writer
    kind: str | None = None  # where the key path does not state the kind
    swapped: bool = False  # the raw weights are at ema_at, the EMA weights at model_at
    doubt: str | None = None  # reason for ambiguity: either state dict may be the EMA
    meta_at: tuple[str, ...] = ()  # patterns of key paths that hold decay, updates and the like
    promoted_flag: str | None = None  # top-level key; if True, the model may have been overwritten
    decay_varies: bool = False  # with the count of updates; the stated decay is its limit
    raw_at: str | None = None  # key path of the raw weights, where the EMA is at model_at

    @property
    def in_main_slot(self) -> bool:
        """Return whether the writer keeps the EMA weights where a naive loader reads."""
        return self.ema_at == self.model_at


Layouts = tuple[EmaLayout, ...]

# fmt: off
LAYOUTS: Layouts = (
    EmaLayout("callback-export", "Lightning EMACallback", "ema_state_dict", "state_dict",
              "an EMACallback with export_to_checkpoint=True, in on_save_checkpoint",
              beside=("ema_meta",), meta_at=("ema_meta", "callbacks/*EMA*")),
    EmaLayout("callback-state", "Lightning EMACallback", "callbacks/*/ema", "state_dict",
              "an EMACallback's state_dict(), kept by Lightning under callbacks",
              meta_at=("callbacks/*EMA*",)),
    EmaLayout("lightning-weight-averaging", "Lightning WeightAveraging", "state_dict", "state_dict",
              "https://github.com/Lightning-AI/pytorch-lightning/blob/master/src/lightning/pytorch/callbacks/weight_averaging.py",
              beside=("current_model_state", "averaging_state"),
              meta_at=("averaging_state", "callbacks/*WeightAveraging*"),
              raw_at="current_model_state"),
    EmaLayout("lightning-swa", "Lightning StochasticWeightAveraging",
              "callbacks/*/average_model_state", "state_dict",
              "https://github.com/Lightning-AI/pytorch-lightning/blob/master/src/lightning/pytorch/callbacks/stochastic_weight_avg.py",
              kind="swa"),
    EmaLayout("nemo-optimizer", "NeMo EMAOptimizer", "optimizer_states/*/ema", "state_dict",
              "https://github.com/NVIDIA/NeMo/blob/main/nemo/collections/common/callbacks/ema.py"),
    EmaLayout("boltz", "Boltz EMA callback", "ema/ema_weights", "state_dict",
              "https://github.com/jwohlwend/boltz/blob/main/src/boltz/model/optim/ema.py"),
    EmaLayout("has-ema", "plain training loop", "ema_state_dict", "model_state_dict",
              "loops that save model_state_dict, ema_state_dict and has_ema",
              beside=("has_ema",)),
    EmaLayout("ema-shadow", "plain training loop", "ema_shadow", "state_dict",
              "loops that save state_dict, ema_shadow and using_ema",
              promoted_flag="using_ema"),
    EmaLayout("timm", "timm CheckpointSaver", "state_dict_ema", "state_dict",
              "https://github.com/huggingface/pytorch-image-models/blob/main/timm/utils/checkpoint_saver.py"),
    EmaLayout("torchvision", "torchvision references, ConvNeXt, DeiT", "model_ema", "model",
              "https://github.com/pytorch/vision/blob/main/references/classification/train.py"),
    EmaLayout("basicsr", "BasicSR, Real-ESRGAN", "params_ema", "params",
              "https://github.com/XPixelGroup/BasicSR/blob/master/basicsr/models/base_model.py"),
    EmaLayout("rtdetr", "RT-DETR, D-FINE, DEIM", "ema/module", "model",
              "https://github.com/lyuwenyu/RT-DETR/blob/main/rtdetrv2_pytorch/src/optim/ema.py",
              meta_at=("ema",), decay_varies=True),
    EmaLayout("openfold", "OpenFold", "ema/params", "state_dict",
              "https://github.com/aqlaboratory/openfold/blob/main/openfold/utils/exponential_moving_average.py"),
    EmaLayout("shadow-list", "torch_ema, diffusers EMAModel, score_sde",
              "ema/shadow_params", "model",
              "https://github.com/fadel/pytorch_ema/blob/master/torch_ema/ema.py",
              decay_varies=True),
    EmaLayout("fairseq", "fairseq", "extra_state/ema", "model",
              "https://github.com/facebookresearch/fairseq/blob/v0.12.2/fairseq/trainer.py",
              meta_at=("cfg/ema",)),
    EmaLayout("edm2", "EDM2 training state", "ema/emas/*", "net",
              "https://github.com/NVlabs/edm2/blob/main/training/phema.py"),
    EmaLayout("ema-pytorch", "ema-pytorch", "*ema_model.*", "model",
              "https://github.com/lucidrains/ema-pytorch/blob/main/ema_pytorch/ema_pytorch.py",
              decay_varies=True),
    EmaLayout("ema-pytorch", "ema-pytorch in a trainer", "ema/ema_model.*", "model",
              "https://github.com/lucidrains/denoising-diffusion-pytorch", decay_varies=True),
    EmaLayout("litema", "latent-diffusion LitEma", "state_dict/model_ema.*", "state_dict",
              "https://github.com/CompVis/stable-diffusion/blob/main/ldm/modules/ema.py",
              naming="dots-removed", decay_varies=True),
    EmaLayout("nequip-swapped", "nequip EMALightningModule", "state_dict/ema.*", "state_dict",
              "https://github.com/mir-group/nequip/blob/main/nequip/train/ema.py",
              when=("state_dict/ema._extra_state/is_holding_ema_weights", False), swapped=True,
              decay_varies=True),
    EmaLayout("nequip", "nequip EMALightningModule", "state_dict/ema.*", "state_dict",
              "https://github.com/mir-group/nequip/blob/main/nequip/train/ema.py",
              beside=("state_dict/ema._extra_state",), decay_varies=True),
    EmaLayout("mmengine-swapped", "mmengine EMAHook", "ema_state_dict", "state_dict",
              "https://github.com/open-mmlab/mmengine/blob/main/mmengine/hooks/ema_hook.py",
              beside=("ema_state_dict/steps", "meta"), swapped=True),
    EmaLayout("mmengine-stripped", "mmengine EMAHook, metadata removed",
              "ema_state_dict", "state_dict",
              "https://github.com/open-mmlab/mmengine/blob/main/mmengine/hooks/ema_hook.py",
              beside=("ema_state_dict/steps", "ema_state_dict/module.*"),
              doubt="mmengine wrote it, which swaps the two state dicts on saving, and what tells "
                    "whether it did so here was removed"),
    EmaLayout("mmcv1-swapped", "mmcv 1 EMAHook, mmdet 2", "state_dict/ema_*", "state_dict",
              "https://github.com/open-mmlab/mmcv/blob/1.x/mmcv/runner/hooks/ema.py",
              naming="underscores", beside=("meta",), swapped=True),
    EmaLayout("underscored", "mmcv 1 EMAHook without its metadata, or a loop of one's own",
              "state_dict/ema_*", "state_dict",
              "https://github.com/open-mmlab/mmcv/blob/1.x/mmcv/runner/hooks/ema.py",
              naming="underscores",
              doubt="mmcv 1 names buffers so and swaps the two state dicts on saving, others may "
                    "not, and the file does not tell which wrote it"),
    EmaLayout("composer-swapped", "MosaicML Composer",
              "state/algorithms/*/1/ema_model/named_parameters_dict", "state/model",
              "https://github.com/mosaicml/composer/blob/main/composer/algorithms/ema/ema.py",
              when=("state/algorithms/*/1/ema_weights_active", True), swapped=True),
    EmaLayout("ultralytics-stripped", "Ultralytics strip_optimizer", "model", "model",
              "https://github.com/ultralytics/ultralytics/blob/main/ultralytics/utils/torch_utils.py",
              beside=("train_args", "ema", "updates"), when=("ema", None)),
    EmaLayout("stylegan", "StyleGAN2-ada, StyleGAN3, EDM", "G_ema", "G",
              "https://github.com/NVlabs/stylegan3/blob/main/training/training_loop.py"),
    EmaLayout("dit", "DiT, SiT and their likes", "ema", "model",
              "https://github.com/facebookresearch/DiT/blob/main/train.py",
              beside=("opt", "args")),
    EmaLayout("model-ema", "plain training loop", "ema", "model", "loops that save model and ema",
              beside=("model",)),
    EmaLayout("dino", "DINO, iBOT", "teacher", "student",
              "https://github.com/facebookresearch/dino/blob/main/main_dino.py"),
    EmaLayout("moco", "MoCo", "state_dict/*encoder_k.*", "state_dict",
              "https://github.com/facebookresearch/moco/blob/main/moco/builder.py"),
    EmaLayout("stable-baselines3", "Stable-Baselines3 TD3, SAC, DQN", "*_target.*", "",
              "https://github.com/DLR-RM/stable-baselines3/blob/master/stable_baselines3/td3/policies.py"),
)
# fmt: on


def match_layout(
    tree: Tree, written: Iterable[str], naming: str | None, more: Layouts = ()
) -> EmaLayout | None:
    """Return the first row that fits one of the key paths and whose conditions hold.

    ``more`` are custom layouts of the configuration; they come first.
    """
    addresses = list(written)
    return next(
        (
            row
            for row in (*more, *LAYOUTS)
            if any(fits(row.ema_at, address) for address in addresses)
            and row.naming in {None, naming}
            and _holds(row, tree)
        ),
        None,
    )


def main_slot_layout(tree: Tree, model_at: str, more: Layouts = ()) -> EmaLayout | None:
    """Return the row of a writer that keeps the EMA weights at ``model_at``; or None."""
    rows = (row for row in (*more, *LAYOUTS) if row.in_main_slot and row.model_at == model_at)
    return next((row for row in rows if _holds(row, tree)), None)


def _holds(row: EmaLayout, tree: Tree) -> bool:
    if not all(nodes_at(tree, pattern) for pattern in row.beside):
        return False
    if row.when is None:
        return True
    pattern, wanted = row.when
    return any(node is wanted for node in nodes_at(tree, pattern))


def metadata_at(tree: Tree, layout: EmaLayout | None) -> list[dict[str, Any]]:
    """Return the scalars at the key paths where a layout keeps its metadata."""
    patterns = layout.meta_at if layout else ()
    return [scalars_in(node) for pattern in patterns for node in nodes_at(tree, pattern)]


def spelled(address: Address) -> str:
    """Return a key path as text for matching only, its components as they are."""
    return "/".join(str(key).replace("/", "~1") for key in address)
