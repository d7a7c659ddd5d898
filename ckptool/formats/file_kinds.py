"""The files of a checkpoint of several files: how many there are of each kind, and what they hold.

The names are those of the trainers and libraries; a new one is a row of ``KINDS``.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from ckptool.formats.base import Checkpoint

# A pattern for names, without the directories before them -> what such a file holds.
KINDS: tuple[tuple[str, str], ...] = (
    # DeepSpeed
    (
        r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt",
        "each rank's buffers, frozen parameters, steps, client state",
    ),
    (
        r"mp_rank_\d+_model_states\.pt",
        "the weights in their training dtype, steps, client state",
    ),
    (
        r"((bf16|fp16)_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt",
        "each rank's part of the float32 weights and of the optimizer state",
    ),
    (r"fp32\.pt", "the float32 weight of each parameter"),
    (r"(exp_avg|exp_avg_sq|step)\.pt", "a state of the optimizer for each parameter"),
    (r"optimizer_state\.pt", "settings of the optimizer"),
    # torch.distributed.checkpoint, FSDP
    (r"\.metadata", "the plan: where each part of a tensor is"),
    (r"__\d+_\d+\.distcp", "parts of tensors, and values"),
    (r"shard-\d+-model-\d+-of-\d+\.safetensors", "each rank's parts of the weights"),
    (r"(.*[_.-])?optim.*(rank|shard)[_-]?\d+\.\w+", "each rank's part of the optimizer state"),
    (r"extra_state.*rank_\d+\.\w+", "each rank's scheduler and random states"),
    (r"(.*[_.-])?ema.*(rank|shard)[_-]?\d+\.\w+", "each rank's EMA weights"),
    (r"(.*[_.-])?(rank|shard)[_-]?\d+\.\w+", "each rank's part of the weights"),
    # Trainer, accelerate and scripts on it, Lightning, SpeechBrain
    (r"(random_states_\d+\.pkl|rng_state(_\d+)?\.pth)", "each rank's random states"),
    (r"optimizer(_\d+)?\.(pt|bin|ckpt)", "optimizer state"),
    (r"(lr_)?scheduler(_\d+)?\.(pt|bin|ckpt)", "scheduler"),
    (r"scaler\.(pt|bin|ckpt)", "gradient scaler"),
    (r"(sampler|dl_state_dict).*\.\w+", "the place in the data"),
    (r"training_args\.bin", "arguments of the run"),
    (r"(trainer_state|train_state|training_state)\.json", "progress of the run"),
    (r"(meta\.pt|counter\.ckpt|brain\.ckpt|CKPT\.yaml)", "progress of the run"),
    (r"custom_checkpoint_\d+\.pkl", "an object that was registered"),
    (r"adapter_model\.(bin|safetensors)", "weights of an adapter"),
    (r".+\.index(\.\w+)?\.json", "which shard holds which weights"),
    (r"(.+-)?\d+-of-\d+(\.\w+)?", "a shard of the weights"),
    (r"(.*[_./-])?ema[_./-].*\.(bin|ckpt|pt|pth|safetensors)", "EMA weights"),
    (r"(.*model.*|.*weights.*|unet.*)\.(bin|ckpt|pt|pth|safetensors)", "weights"),
)
NUMBER = re.compile(r"\d+")


class FileKind(NamedTuple):
    """Files of one kind."""

    name: str  # of the file; of several, with * for the numbers that differ
    number: int
    holds: str | None  # None: the name does not tell


def file_kinds(checkpoint: Checkpoint) -> tuple[FileKind, ...]:
    """Return the files of a checkpoint that is a directory, in the order of their names."""
    files = (path for path in checkpoint.files if path != checkpoint.path)
    groups: dict[tuple[str, str | None], list[str]] = {}
    for path in dict.fromkeys(files):
        inside = path.parent != checkpoint.path and path.is_relative_to(checkpoint.path)
        below = f"{path.relative_to(checkpoint.path).parts[0]}/" if inside else ""
        name = below + path.name
        groups.setdefault((NUMBER.sub("*", name), _holds(name)), []).append(name)
    rows = [
        FileKind(names[0] if len(names) == 1 else _common(names), len(names), holds)
        for (_, holds), names in groups.items()
    ]
    return tuple(sorted(rows))


def _holds(name: str) -> str | None:
    return next((holds for pattern, holds in KINDS if re.fullmatch(f"(.*/)?{pattern}", name)), None)


def _common(names: list[str]) -> str:
    """Return the name that files have in common, with * for the numbers in which they differ."""
    rows = [NUMBER.findall(name) for name in names]
    between = NUMBER.split(names[0])
    kept = [column[0] if len(Counter(column)) == 1 else "*" for column in zip(*rows, strict=True)]
    return between[0] + "".join(a + b for a, b in zip(kept, between[1:], strict=True))
