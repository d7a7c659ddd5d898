"""Tiny runs of real trainers, each of which saves twice and can be told to resume.

A row of ``TRAINERS`` is a function ``run(folder, resume, saving)``. It trains a model with dropout
on shuffled data for ``STEPS`` steps in ``folder`` and saves at ``SAVES``; with ``resume``, a path,
it goes on from there as its library does. It calls ``saving(path, save)`` for each save, where
``save`` writes the checkpoint that will lie at ``path``, and returns the loss of each step.

The libraries are imported by the functions, since a machine may have only some of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

STEPS = 8
SAVES = (3, 6)  # steps after which a run saves; 3 and 6 are within an epoch of four batches
ROWS, BATCH = 16, 4

Saving = Callable[[Path, Callable[[], Any]], None]
Losses = dict[int, float]  # by step, the first being 1
Run = Callable[[Path, Path | None, Saving], Losses]


def seed() -> None:
    """Seed the generators that libraries use."""
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 - trainers use the global one
    torch.manual_seed(5)


class Net(nn.Module):
    """A layer, dropout, a layer; the loss is the output, as some trainers want it."""

    def __init__(self) -> None:
        """Make four tensors."""
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.drop = nn.Dropout(0.2)
        self.outer = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, 4] to a loss."""
        return (self.outer(self.drop(torch.tanh(self.inner(x)))) - 1).square().mean()


def rows() -> torch.Tensor:
    """Return the data, the same at each call."""
    return torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(3))


# --------------------------------------------------------------------------------- plain loops


class Loop:
    """A plain loop that keeps everything, the permutation of the epoch included."""

    def __init__(self) -> None:
        """Make model, optimizer and scheduler."""
        seed()
        self.model = Net()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3, gamma=0.5)
        self.step, self.order = 0, torch.arange(ROWS)

    def advance(self) -> float:
        """Make a step; return its loss."""
        at = self.step * BATCH % ROWS
        if at == 0:
            self.order = torch.randperm(ROWS)
        loss = self.model(rows()[self.order[at : at + BATCH]])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return loss.item()

    def state(self) -> dict[str, Any]:
        """Return all of it, with tensors alone where DCP wants them."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "global_step": self.step,
            "sampler": {"order": self.order},
            "rng_state": torch.get_rng_state(),
            "np_rng_state": np.random.get_state(),  # noqa: NPY002
            "py_rng_state": random.getstate(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore all of it."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step, self.order = state["global_step"], state["sampler"]["order"]
        torch.set_rng_state(state["rng_state"])
        np.random.set_state(state["np_rng_state"])  # noqa: NPY002
        random.setstate(state["py_rng_state"])

    def run(self, saving: Saving, place: Callable[[int], Path], save: Any) -> Losses:
        """Go on to the last step."""
        losses: Losses = {}
        while self.step < STEPS:
            loss = self.advance()
            losses[self.step] = loss
            if self.step in SAVES:
                path = place(self.step)
                saving(path, lambda path=path: save(self.state(), path))
        return losses


class WithoutNumpy(Loop):
    """A loop that does not store the state of numpy's generator, from which nothing draws."""

    def state(self) -> dict[str, Any]:
        """Return all else."""
        state = super().state()
        del state["np_rng_state"]
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Restore all else."""
        super().load({**state, "np_rng_state": np.random.get_state()})  # noqa: NPY002


def plain_overwriting(folder: Path, resume: Path | None, saving: Saving) -> Losses:
    """Save over the last file, as most scripts do."""
    loop = Loop()
    if resume is not None:
        loop.load(torch.load(resume, weights_only=False))

    def save(state: dict[str, Any], path: Path) -> None:
        with open(path, "wb") as file:  # noqa: PTH123 - the call that scripts make
            torch.save(state, file)

    return loop.run(saving, lambda _step: folder / "last.pt", save)


def plain_renaming(
    folder: Path, resume: Path | None, saving: Saving, make: type[Loop] = Loop
) -> Losses:
    """Save under another name, sync, rename."""
    import os

    loop = make()
    if resume is not None:
        loop.load(torch.load(resume, weights_only=False))

    def save(state: dict[str, Any], path: Path) -> None:
        partial = path.with_name(f"{path.name}.tmp")
        with open(partial, "wb") as file:  # noqa: PTH123
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)  # noqa: PTH105

    return loop.run(saving, lambda step: folder / f"step_{step}.pt", save)


def torch_dcp(folder: Path, resume: Path | None, saving: Saving) -> Losses:
    """Save by torch.distributed.checkpoint, a directory for each step."""
    import torch.distributed.checkpoint as dcp

    loop = Loop()
    if resume is not None:
        loop.advance()  # DCP loads in place, so the optimizer needs its moments
        state = loop.state()
        dcp.load(state, checkpoint_id=resume, no_dist=True)
        loop.load(state)
    return loop.run(
        saving,
        lambda step: folder / f"step-{step}",
        lambda state, path: dcp.save(state, checkpoint_id=path, no_dist=True),
    )


# ----------------------------------------------------------------------------------- libraries


class Rows(torch.utils.data.Dataset):
    """The data as a dataset of dicts."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return ROWS

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        """Return a row."""
        return {"x": rows()[i]}


def hf_trainer(folder: Path, resume: Path | None, saving: Saving) -> Losses:
    """Train by transformers.Trainer."""
    from transformers import Trainer, TrainingArguments

    class Tiny(Net):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
            loss = super().forward(x)
            return {"loss": loss, "logits": loss.detach()[None]}

    class Saver(Trainer):
        def _save_checkpoint(self, *args: Any, **options: Any) -> None:
            path = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            saving(path, lambda: super(Saver, self)._save_checkpoint(*args, **options))

    seed()
    trainer = Saver(
        model=Tiny(),
        args=TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=BATCH, max_steps=STEPS,
            save_steps=SAVES[0], logging_steps=1, report_to=[], use_cpu=True, seed=5,
            disable_tqdm=True, learning_rate=1e-2, remove_unused_columns=False,
            logging_nan_inf_filter=False,
        ),
        train_dataset=Rows(),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    first = int(resume.name.rpartition("-")[2]) if resume else 0
    return {
        row["step"]: row["loss"]
        for row in trainer.state.log_history
        if "loss" in row and row["step"] > first
    }


def accelerate(folder: Path, resume: Path | None, saving: Saving) -> Losses:
    """Train by accelerate, with the counter registered."""
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    set_seed(5)
    accelerator = Accelerator(cpu=True)
    loop = Loop()
    loop.model, loop.optimizer, loop.scheduler = accelerator.prepare(
        loop.model, loop.optimizer, loop.scheduler
    )

    class Counter:
        def state_dict(self) -> dict[str, Any]:
            return {"global_step": loop.step, "order": loop.order}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            loop.step, loop.order = state["global_step"], state["order"]

    accelerator.register_for_checkpointing(Counter())
    if resume is not None:
        accelerator.load_state(str(resume))
    return loop.run(
        saving,
        lambda step: folder / f"checkpoint_{step}",
        lambda _state, path: accelerator.save_state(str(path)),
    )


def lightning(folder: Path, resume: Path | None, saving: Saving) -> Losses:
    """Train by Lightning, with its ModelCheckpoint."""
    import lightning as light
    from lightning.pytorch.callbacks import ModelCheckpoint

    losses: Losses = {}

    class Module(light.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, _index: int) -> torch.Tensor:
            loss = self.net(batch["x"])
            losses[self.global_step + 1] = loss.item()
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    class Saver(ModelCheckpoint):
        def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
            saving(Path(filepath), lambda: super(Saver, self)._save_checkpoint(trainer, filepath))

    light.seed_everything(5, verbose=False)
    trainer = light.Trainer(
        max_steps=STEPS, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Saver(folder, filename="{step}", every_n_train_steps=SAVES[0], save_top_k=-1)],
    )  # fmt: skip
    data = torch.utils.data.DataLoader(Rows(), BATCH, shuffle=True)
    trainer.fit(Module(), data, ckpt_path=str(resume) if resume else None, weights_only=False)
    return losses


def ignite(folder: Path, resume: Path | None, saving: Saving) -> Losses:
    """Train by ignite's deterministic engine, with its DiskSaver."""
    from ignite.engine import Events
    from ignite.engine.deterministic import DeterministicEngine
    from ignite.handlers import Checkpoint, DiskSaver

    loop, losses = Loop(), {}
    data = torch.utils.data.DataLoader(Rows(), BATCH, shuffle=True)

    def advance(engine: Any, batch: Any) -> float:
        loss = loop.model(batch["x"])
        loop.optimizer.zero_grad()
        loss.backward()
        loop.optimizer.step()
        loop.scheduler.step()
        losses[engine.state.iteration] = loss.item()
        return loss.item()

    engine = DeterministicEngine(advance)
    kept = {
        "trainer": engine, "model": loop.model, "optimizer": loop.optimizer,
        "lr_scheduler": loop.scheduler,
    }  # fmt: skip
    handler = Checkpoint(
        kept,
        DiskSaver(folder, require_empty=False),
        n_saved=None,
        filename_pattern="step_{global_step}.pt",
        global_step_transform=lambda engine, _event: engine.state.iteration,
    )

    @engine.on(Events.ITERATION_COMPLETED(every=SAVES[0]))
    def _(engine: Any) -> None:
        saving(folder / f"step_{engine.state.iteration}.pt", lambda: handler(engine))

    if resume is not None:
        Checkpoint.load_objects(kept, checkpoint=torch.load(resume, weights_only=False))
    engine.run(data, max_epochs=STEPS * BATCH // ROWS)
    return losses


def mmengine(folder: Path, resume: Path | None, saving: Saving) -> Losses:
    """Train by mmengine's runner of iterations, with its CheckpointHook."""
    from mmengine.hooks import Hook
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    losses: Losses = {}

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: torch.Tensor, mode: str) -> dict[str, torch.Tensor]:
            assert mode == "loss"
            return {"loss": self.net(torch.stack(list(x)))}

    class Saver(Hook):
        def after_train_iter(self, runner: Any, *_: Any, outputs: Any, **_more: Any) -> None:
            step = runner.iter + 1
            losses[step] = float(outputs["loss"])
            if step in SAVES:
                path = folder / f"iter_{step}.pth"
                saving(path, lambda: runner.save_checkpoint(str(folder), path.name, by_epoch=False))

    torch.load = _trusting(torch.load)  # its loader is older than weights_only=True
    runner = Runner(
        model=Model(), work_dir=str(folder), train_cfg={"by_epoch": False, "max_iters": STEPS},
        train_dataloader={
            "batch_size": BATCH, "dataset": Rows(), "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": True},
        },
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 1e-2}},
        param_scheduler=[{"type": "StepLR", "step_size": 3, "gamma": 0.5, "by_epoch": False}],
        default_hooks={"checkpoint": None, "logger": None}, custom_hooks=[Saver()],
        randomness={"seed": 5}, log_level="ERROR", experiment_name=f"run{random.random()}",
        load_from=str(resume) if resume else None, resume=resume is not None,
    )  # fmt: skip
    runner.train()
    return losses


def _trusting(load: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **options: load(*args, **{**options, "weights_only": False})


TRAINERS: dict[str, Run] = {
    "plain": plain_overwriting,
    "plain-atomic": plain_renaming,
    "plain-no-numpy": partial(plain_renaming, make=WithoutNumpy),
    "dcp": torch_dcp,
    "trainer": hf_trainer,
    "accelerate": accelerate,
    "lightning": lightning,
    "ignite": ignite,
    "mmengine": mmengine,
}
