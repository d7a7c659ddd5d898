"""Directories of trainers, each of which is one checkpoint with a file for each part.

Layouts::

    Hugging Face Trainer   model.safetensors, or shards with an index, or an adapter; optimizer.pt,
                           scheduler.pt, rng_state.pth, training_args.bin; trainer_state.json
    accelerate             model.safetensors, optimizer.bin, scheduler.bin, custom_checkpoint_0.pkl;
                           random_states_<rank>.pkl
      of diffusers' scripts  and unet/, unet_ema/, text_encoder/, each with config.json and weights
      of kohya's scripts     and train_state.json
      of SimpleTuner         and transformer/, ema/, training_state.json
    SpeechBrain            model.ckpt, optimizer.ckpt, …; brain.ckpt and counter.ckpt are text;
                           CKPT.yaml

The key of each file in the tree is its name; the weights of an index are under ``model``, as in
other directories with shards. The values of JSON and text files (the progress of the run) are in
the tree too.

    with DeepSpeed         global_step<n>/, pytorch_model/; latest
    with FSDP              pytorch_model_fsdp_0/ and optimizer_0/, distributed checkpoints

Rules: the last file of each layout above identifies it, in accelerate's that of a rank's random
states. A subdirectory with the files of ranks is a part of the checkpoint, and its key is its name;
so is one with a model and its ``config.json``, next to accelerate's file. A directory with
checkpoints in other subdirectories is a run or another layout. Where no file states the progress,
scripts read it from the directory's name (``checkpoint-500``, ``step_500``, ``epoch_3``), and so
does this. Files that are no checkpoints (tokenizers, configurations) are not opened. A file of the
layout, by its name, must open. Any other file that does not open is skipped with a note, since it
is no reason to refuse the checkpoint next to it.
Text is read as numbers, bools and words, one ``name: value`` a line; it is never code.

Source: transformers 5.24 ``trainer.py``, accelerate 1.15 ``checkpointing.py``, speechbrain 1.1
``utils/checkpoints.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptool.errors import CkptError, DamagedError, UnknownFormatError
from ckptool.formats.base import Checkpoint, FolderFormat, Note
from ckptool.formats.folders import FolderOfFiles, OpenFile, all_or_none, joined
from ckptool.formats.model_folders import ModelFolder
from ckptool.formats.ranked.deepspeed import LATEST
from ckptool.formats.sharded import INDEX, MODEL
from ckptool.formats.texts import from_json, from_lines
from ckptool.formats.unopened import CHECKPOINT_SUFFIXES
from ckptool.records import replace
from ckptool.regex import regex
from ckptool.sources.places import entries, open_file
from ckptool.tree.nodes import Tree

SPEECHBRAIN = "CKPT.yaml"
OF_RANK = regex(r"(random_states|rng_state)(_\d+)?\.(pkl|pth)")
STATES = frozenset({"train_state.json", "trainer_state.json", "training_state.json"})
TEXTS = frozenset({SPEECHBRAIN, *STATES})  # always read as text
OF_ACCELERATE = regex(r"random_states_\d+\.pkl")
SIGNS = regex(rf"trainer_state\.json|{OF_ACCELERATE.pattern}|CKPT\.yaml")
PROGRESS = regex(r"(checkpoint-|step_)(?P<global_step>\d{1,15})|epoch_(?P<epoch>\d{1,15})")
CONFIG = "config.json"  # beside the weights of a model
WEIGHTS = CHECKPOINT_SUFFIXES - {".model"}  # a tokenizer alone makes no checkpoint
OWN = regex(  # the parts of the layouts, with a number of rank or shard
    r"(adapter_model|custom_checkpoint|dl_state_dict|model|optimizer|pytorch_model|random_states"
    r"|rng_state|sampler|scaler|scheduler)"
    r"([_-]\d+(-of-\d+)?)?\.(bin|pkl|pt|pth|safetensors)|.+\.ckpt"
)
MAX_TEXT = 64 << 20  # bytes, of a log of a million steps
SMALL = 1 << 12  # bytes of a file that may be a counter in text


class TrainerFolders(FolderOfFiles):
    """See the module's docstring."""

    name = "folder"
    title = "folder of files"
    written_by = "Hugging Face Trainer, accelerate (diffusers, kohya, SimpleTuner), SpeechBrain"
    file_kinds = (
        (r"(random_states_\d+\.pkl|rng_state(_\d+)?\.pth)", "each rank's random states"),
        (r"optimizer(_\d+)?\.(pt|bin|ckpt)", "optimizer state"),
        (r"(lr_)?scheduler(_\d+)?\.(pt|bin|ckpt)", "scheduler"),
        (r"scaler\.(pt|bin|ckpt)", "gradient scaler"),
        (r"(sampler|dl_state_dict).*\.\w+", "the place in the data"),
        (r"training_args\.bin", "arguments of the run"),
        (r"(trainer_state|train_state|training_state)\.json", "progress of the run"),
        (r"(counter\.ckpt|brain\.ckpt|CKPT\.yaml)", "progress of the run"),
        (r"custom_checkpoint_\d+\.pkl", "an object that was registered"),
        (r"adapter_model\.(bin|safetensors)", "weights of an adapter"),
    )

    def __init__(self, open_file: OpenFile, of_ranks: Sequence[FolderFormat]) -> None:
        super().__init__(open_file)
        self._of_ranks = of_ranks
        self._model = ModelFolder(open_file)

    def matches(self, folder: Path) -> bool:
        """Return whether a trainer's file is next to checkpoints, or to directories with parts."""
        files = entries(folder)
        if not any(SIGNS.fullmatch(path.name) for path in files):
            return False
        inside = {path for path, _ in self._inside(files)}
        others = (path for path in files if path not in inside)
        has_weights = bool(inside) or any(path.suffix in WEIGHTS for path in files)
        return has_weights and not any(map(_holds_checkpoints, others))

    def _inside(self, files: Sequence[Path]) -> list[tuple[Path, FolderFormat]]:
        """Return the subdirectories that are parts: checkpoints of many ranks, and models."""
        # A directory with a trainer's file, or with ``latest``, is another save of the run.
        folders = [p for p in files if p.is_dir() and not _is_save_of_its_own(p)]
        found = [(p, known) for p in folders for known in self._of_ranks if known.matches(p)]
        if any(OF_ACCELERATE.fullmatch(path.name) for path in files):
            ranked = {path for path, _ in found}
            found += [(p, self._model) for p in folders if p not in ranked and _is_model(p)]
        return found

    def open(self, folder: Path) -> Checkpoint:
        """Return one checkpoint of all in the directory and of the trainer's text files."""
        parts: dict[str, Checkpoint] = {}
        tree: dict[Any, Tree] = {}
        texts: list[Path] = []
        closed: list[Note] = []
        files = [path for path in entries(folder) if not path.is_dir()]
        indices = [path for path in files if path.name.endswith(INDEX)]
        has_texts = any(path.name == SPEECHBRAIN for path in files)
        with all_or_none() as opened:
            if len(indices) == 1:
                parts[MODEL] = opened.enter_context(self._open_file(indices[0]))
            for path, known in self._inside(entries(folder)):
                parts[path.name] = opened.enter_context(known.open(path))
            shards = {file.path for part in parts.values() for file in part.reader.opened}
            for path in files:
                if path.name in TEXTS or (has_texts and _is_text(path)):
                    tree[path.name] = _read_text(path)
                    texts.append(path)
                elif path.suffix in CHECKPOINT_SUFFIXES and path not in shards:
                    part = self._part(path)
                    if isinstance(part, Checkpoint):
                        parts[path.name] = opened.enter_context(part)
                    else:
                        closed += part
        if not STATES & tree.keys():
            tree |= _progress_by_name(folder)
        whole = joined(
            self,
            folder,
            parts,
            {name: part.tree for name, part in parts.items()} | tree,
            parts=(*texts, *(path for part in parts.values() for path in part.parts)),
            **_of_ranks(parts),
        )
        return replace(whole, notes=(*closed, *whole.notes))

    def _part(self, path: Path) -> Checkpoint | list[Note]:
        """Return the checkpoint in a file, or notes on a file that is skipped."""
        try:
            return self._open_file(path)
        except CkptError as error:
            if OWN.fullmatch(path.name):
                raise
            if isinstance(error, UnknownFormatError) and not error.rule:
                return []  # a file of another program
            return [Note("CK121", path.name, f"it was left closed: {error.message}")]


def _of_ranks(parts: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """Return the fields on the processes: those of a part, or one for each random state."""
    states = [(name,) for name in parts if OF_RANK.fullmatch(name)]
    worlds = [part.world for part in parts.values() if part.world is not None]
    inside = ((name, *at) for name, part in parts.items() for at in part.of_one_rank)
    ways = [f"{name}: {part.strategy}" for name, part in parts.items() if part.strategy]
    return {
        "world": max(worlds, default=len(states) or None),
        "of_one_rank": (*states, *inside),
        "strategy": "; ".join(ways) or None,
    }


def part_of_folder(path: Path) -> UnknownFormatError | None:
    """Return the error for a file that is a part of a SpeechBrain checkpoint; None for others."""
    if not (path.parent / SPEECHBRAIN).is_file():
        return None
    return UnknownFormatError(
        "text that belongs to a checkpoint of SpeechBrain, not a checkpoint itself",
        hint=f"name the folder, {path.parent}: it is one checkpoint",
    )


def _is_save_of_its_own(folder: Path) -> bool:
    return any(path.name == LATEST or SIGNS.fullmatch(path.name) for path in entries(folder))


def _is_model(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and _holds_checkpoints(folder)


def _progress_by_name(folder: Path) -> dict[Any, Tree]:
    match = PROGRESS.fullmatch(folder.absolute().name)
    return {what: int(n) for what, n in match.groupdict().items() if n} if match else {}


def _holds_checkpoints(path: Path) -> bool:
    return path.is_dir() and any(p.suffix in WEIGHTS for p in entries(path))


# -------------------------------------------------------------------------------------------- text


def _is_text(path: Path) -> bool:
    """Return whether a file has a checkpoint's suffix, but holds a little printable text."""
    if path.suffix not in CHECKPOINT_SUFFIXES:
        return False
    with open_file(path) as file:
        if not 0 < file.size <= SMALL:
            return False
        data = file.read(0, file.size)
    return data.isascii() and all(char.isprintable() or char in "\r\n\t" for char in data.decode())


def _read_text(path: Path) -> Tree:
    with open_file(path) as file:
        if file.size > MAX_TEXT:
            raise DamagedError(f"{file.size:,} bytes of text, more than is read", path=path)
        data = file.read(0, file.size)
    try:
        text = data.decode()
        return from_json(text) if path.suffix == ".json" else from_lines(text)
    except ValueError as error:
        raise DamagedError(f"the text cannot be read: {error}", path=path) from error
