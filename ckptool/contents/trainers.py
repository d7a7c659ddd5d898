"""Trainers by the content of their checkpoints, and the parts of a run that each never stores.

A trainer makes some parts of a run again from the others (``remade``), and it never stores others
(``never``): no checkpoint of it can hold them, so their absence is no fault of this one. A part
that is in neither column is stored whenever the run has it. The first row whose signs are all there
wins; a checkpoint without a row is one of a plain training loop, which has to store everything.

A sign is a key path from the top; ``*`` in a key stands for any text. The signs are those that the
trainer's own loader reads or that only its writer makes, never the name of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ckptool.records import NamedTuple
from ckptool.tree.nodes import Tree
from ckptool.tree.patterns import nodes_at

# The parts of a run, in the order in which they are reported, as messages call them.
PARTS: Mapping[str, str] = {
    "weights": "the raw weights",
    "optimizer": "the optimizer",
    "scheduler": "the scheduler",
    "scaler": "the gradient scaler",
    "progress": "epoch and step",
    "rng": "random states",
    "data": "the position in the data",
    "callbacks": "the callbacks",
}

SEEDED = "the random states start again from the seed: dropout and augmentation draw other numbers"
SHUFFLED = "the shuffling of the data starts again"
NOTHING: Mapping[str, str] = MappingProxyType({})
BY_EPOCH = "the trainer computes the learning rate from the epoch"
FROM_EMA = "training goes on from the EMA weights: the raw weights of the last step are not stored"


class Trainer(NamedTuple):
    """A row: a trainer, the signs of its checkpoints, and the parts that they cannot hold."""

    name: str
    signs: tuple[str, ...]  # key paths, all of which are there
    never: Mapping[str, str] = NOTHING  # part -> what a resume loses by it
    remade: Mapping[str, str] = NOTHING  # part -> how the trainer makes it again
    own: Mapping[str, str] = NOTHING  # part -> its key path, where its form is the trainer's own
    within: str = ""  # what is lost too by a save within an epoch
    registered: str = ""  # key path of objects of which the script must register as many
    in_step: bool = False  # optimizer, scheduler and counter of the run make each step together


# fmt: off
TRAINERS: tuple[Trainer, ...] = (
    # lightning/pytorch/trainer/connectors/checkpoint_connector.py: dump_checkpoint
    Trainer("Lightning", ("pytorch-lightning_version",),
            never={"rng": SEEDED, "data": SHUFFLED}),
    # transformers/trainer.py: _save_checkpoint; a resume skips the batches that were done
    Trainer("Hugging Face Trainer", ("trainer_state.json/log_history",),
            remade={"data": "the Trainer skips the batches that were done"}, in_step=True),
    # accelerate/checkpointing.py: save_accelerator_state
    Trainer("accelerate", ("random_states_*.pkl",), registered="custom_checkpoint_*.pkl",
            never={"progress": "epoch and step: the script must know them itself",
                   "data": "the batches that were done: the script must skip them itself, by "
                           "skip_first_batches"}),
    # deepspeed/runtime/engine.py: _save_checkpoint
    Trainer("DeepSpeed", ("ds_version",),
            never={"rng": SEEDED, "data": SHUFFLED}),
    # torchtitan/components/checkpoint.py: CheckpointManager
    Trainer("torchtitan", ("train_state/step", "dataloader", "lr_scheduler"),
            never={"rng": SEEDED}),
    # ignite/engine/engine.py: state_dict; DeterministicEngine keeps rng_states beside
    Trainer("ignite", ("*/epoch_length", "*/max_epochs", "*/rng_states"),
            remade={"data": "the deterministic engine skips the batches that were done"},
            within="in the epoch that has begun, dropout and augmentation draw other numbers"),
    Trainer("ignite", ("*/epoch_length", "*/max_epochs"),
            never={"rng": SEEDED, "data": SHUFFLED}),
    # mmengine/runner/runner.py: save_checkpoint, resume
    Trainer("mmengine", ("meta/mmengine_version", "message_hub"),
            never={"rng": SEEDED, "data": SHUFFLED}),
    Trainer("mmcv", ("meta/mmcv_version", "optimizer"),
            never={"rng": SEEDED, "data": SHUFFLED},
            remade={"scheduler": "a hook computes the learning rate from epoch and step"}),
    # fastai/learner.py: save_model
    Trainer("fastai", ("opt/hypers", "model"),
            never={"progress": "the epoch: give it to fit as start_epoch", "rng": SEEDED,
                   "data": SHUFFLED},
            remade={"scheduler": "fit computes the learning rate from start_epoch"},
            own={"optimizer": "opt/state"}),
    # timm/utils/checkpoint_saver.py: _save; train.py steps the scheduler to the epoch
    Trainer("timm", ("arch", "state_dict", "version", "epoch"),
            never={"rng": SEEDED, "data": SHUFFLED}, remade={"scheduler": BY_EPOCH}),
    # ultralytics/engine/trainer.py: save_model, resume_training
    Trainer("ultralytics", ("train_args", "updates", "ema", "version"),
            never={"weights": FROM_EMA, "rng": SEEDED, "data": SHUFFLED},
            remade={"scheduler": BY_EPOCH}),
    # yolov5/train.py and its descendants
    Trainer("YOLO", ("best_fitness", "updates", "ema", "model"),
            never={"rng": SEEDED, "data": SHUFFLED}, remade={"scheduler": BY_EPOCH}),
    # YOLOX/yolox/core/trainer.py: save_ckpt, whose model is the EMA
    Trainer("YOLOX", ("start_epoch", "curr_ap", "model"),
            never={"weights": FROM_EMA, "rng": SEEDED, "data": SHUFFLED},
            remade={"scheduler": "the learning rate is computed from the iteration"}),
    # detectron2/engine/defaults.py: DefaultTrainer saves itself beside the model
    Trainer("detectron2", ("trainer/hooks", "trainer/iteration", "model"),
            never={"rng": SEEDED, "data": SHUFFLED}),
    # composer/utils/checkpoint.py: the timestamp says how many batches are skipped
    Trainer("Composer", ("state/timestamp", "rng"),
            remade={"data": "the trainer skips the batches that were done"}),
    # speechbrain/utils/checkpoints.py
    Trainer("SpeechBrain", ("CKPT.yaml",),
            never={"rng": SEEDED, "data": SHUFFLED}),
    # torchrl/trainers/trainers.py: state_dict
    Trainer("torchrl", ("loss_module", "optimizer", "state/_optim_count"),
            never={"rng": SEEDED, "data": "the environments start anew"},
            own={"progress": "state/_collected_frames"}),
    # fairseq/checkpoint_utils.py; fairseq/trainer.py seeds before each update
    Trainer("fairseq", ("optimizer_history", "extra_state/train_iterator"),
            remade={"rng": "each update seeds the generators by its number"}),
)
# fmt: on
PLAIN = Trainer("a plain training loop", ())


def trainer_of(tree: Tree) -> Trainer:
    """Return the row of the trainer that wrote a checkpoint; ``PLAIN`` if none is known."""
    return next((row for row in TRAINERS if all(is_there(tree, s) for s in row.signs)), PLAIN)


def is_there(tree: Tree, sign: str) -> bool:
    """Return whether a tree has a key path, in which ``*`` stands for any text of a key."""
    return count_of(tree, sign) > 0


def count_of(tree: Tree, sign: str) -> int:
    """Return how many nodes of a tree have such a key path."""
    return len(nodes_at(tree, sign))
