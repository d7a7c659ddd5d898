"""A fault for every rule: what is done to a sound checkpoint, and how the rule is asked."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from helpers.paths import FIXTURES
from helpers.runs import State


class Case(NamedTuple):
    """A row: the fault, in the state before it is saved or in the file after it was."""

    state: Callable[[State], Any] | None = None  # changes it, or returns another object to save
    file: Callable[[Path], Any] | None = None  # changes it, or returns another path
    options: tuple[str, ...] = ()  # for the sound file too
    sound: Callable[[State], Any] | None = None  # what makes the sound state another than the run's
    both: Callable[[State], Any] | None = None  # done to both first
    sound_file: Callable[[Path], Any] | None = None  # what ``file`` does, without the fault
    name: str | None = None  # of the faulty file
    says: str = ""  # in the message, or in the remedy


class Settings:
    """A class of ours, which nobody has vetted."""


class Schedule(Enum):
    """An enum of ours: its members are pickled as calls of it."""

    COSINE = "cosine"


class Evil:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


# ---------------------------------------------------------------------------------- in the file


def data_of(path: Path, record: str) -> tuple[int, int]:
    """(offset, bytes) of a record of a zip."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith(record))
    raw = path.read_bytes()
    name, extra = struct.unpack_from("<2H", raw, info.header_offset + 26)
    return info.header_offset + 30 + name + extra, info.file_size


def hostile(name: str) -> Callable[[Path], Path]:
    """A file that readers would see differently."""
    return lambda _path: FIXTURES / "hostile" / name


def flip(path: Path) -> None:
    """One bit of the first storage."""
    offset, _ = data_of(path, "/data/0")
    raw = bytearray(path.read_bytes())
    raw[offset + 2] ^= 0x10
    path.write_bytes(raw)


def cut(path: Path) -> None:
    """Half of the file."""
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


def spoil_pickle(path: Path) -> None:
    """Bytes in the pickle that are no opcode, written so."""
    offset, size = data_of(path, "data.pkl")
    raw = bytearray(path.read_bytes())
    before = zlib.crc32(raw[offset : offset + size]).to_bytes(4, "little")
    raw[offset + 2 : offset + 6] = b"\xff\xff\xff\xff"
    after = zlib.crc32(raw[offset : offset + size]).to_bytes(4, "little")
    path.write_bytes(raw.replace(before, after))


def drop_record(path: Path) -> None:
    """A zip written again without the record of one storage."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        kept = {n: archive.read(n) for n in archive.namelist() if not n.endswith("/data/1")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in kept.items():
            archive.writestr(name, data)


def repack(path: Path, change: Callable[[dict[str, bytes]], Any]) -> None:
    """The zip written again with other records, every checksum being right."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)


def without_version(records: dict[str, bytes]) -> None:
    """Without the record in which torch looks for the version."""
    del records[next(name for name in records if name.endswith("/version"))]


def with_program(records: dict[str, bytes]) -> None:
    """With the records of TorchScript, in whose code loading runs a function."""
    folder = next(iter(records)).partition("/")[0]
    records[f"{folder}/constants.pkl"] = b"\x80\x02)."
    records[f"{folder}/code/__torch__.py"] = b"class M(Module):\n  def __setstate__(self): pass\n"


def in_pickle(old: bytes, new: bytes) -> Callable[[dict[str, bytes]], None]:
    """Some bytes of the pickle exchanged."""

    def change(records: dict[str, bytes]) -> None:
        name = next(name for name in records if name.endswith("/data.pkl"))
        assert old in records[name]
        records[name] = records[name].replace(old, new)

    return change


def append(path: Path) -> None:
    """What a longer, older file leaves behind."""
    path.write_bytes(path.read_bytes() + b"left over")


def neighbour(path: Path) -> None:
    """A file called like the EMA of this one, which is none."""
    path.with_name(f"{path.stem}-EMA{path.suffix}").write_bytes(b"a log, or anything else")


def one_of_two(path: Path) -> Path:
    """The first of two shards, alone."""
    return path.rename(path.with_name("model-00001-of-00002.pt"))


def as_folder_with_notes(path: Path) -> Path:
    """The folder of the file, with an index that names it, and a file that nothing names."""
    weight_map = {"weight_map": {"model": path.name}}
    path.with_name("all.index.json").write_text(json.dumps(weight_map))
    path.with_name("notes.txt").write_text("a second run with a smaller step")
    return path.parent


def stray_shard(path: Path) -> Path:
    """A folder of shards in which a file of another save was left."""
    weights = {
        name: value.clone() for name, value in torch.load(path, weights_only=False)["model"].items()
    }
    shard = "model-00001-of-00001.safetensors"
    for name in (shard, "model.safetensors"):
        save_file(weights, path.with_name(name))
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}
    path.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    path.unlink()
    return path.parent


def second_save(path: Path, *, is_whole: bool) -> Path:
    """A save of accelerate beside an earlier one, whole or without its last file."""
    folder = path.with_name("checkpoints")
    for number in (0, 1):
        source = FIXTURES / "genuine" / "accelerate" / "checkpoints" / "checkpoint_0"
        shutil.copytree(source, folder / f"checkpoint_{number}")
    if not is_whole:
        (folder / "checkpoint_1" / "custom_checkpoint_0.pkl").unlink()
    return folder / "checkpoint_1"


def trainers_save(path: Path, *, older: tuple[str, ...]) -> Path:
    """A save of the Trainer, with some files of an older one that it was written over."""
    run = FIXTURES / "genuine" / "hf_trainer" / "run"
    folder = path.with_name("checkpoint-4")
    shutil.copytree(run / "checkpoint-4", folder)
    for name in older:
        shutil.copy(run / "checkpoint-2" / name, folder / name)
    return folder


def shards(path: Path, *, hours: float) -> Path:
    """A save in two shards, of which the second was written some hours after the first."""
    folder = path.with_name("checkpoint-4")
    shutil.copytree(FIXTURES / "sharded" / "folders" / "shards" / "checkpoint-4", folder)
    for number in (1, 2):
        os.utime(
            folder / f"model-{number:05}-of-00002.safetensors",
            (1_704_067_200 + hours * 3600 * number,) * 2,
        )
    return folder


# --------------------------------------------------------------------------------- in the state


def put(*keys: Any, value: Any) -> Callable[[State], None]:
    """Put a value at a place."""

    def fault(state: State) -> None:
        for key in keys[:-1]:
            state = state[key]
        is_change = isinstance(value, (FunctionType, BuiltinFunctionType))
        state[keys[-1]] = value(state[keys[-1]]) if is_change else value

    return fault


def take(node: Any, key: Any) -> None:
    del node[key]


def drop(*keys: str) -> Callable[[State], None]:
    """Leave fields out."""

    def fault(state: State) -> None:
        for key in keys:
            del state[key]

    return fault


def each_moment(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], None]:
    """Change every moment of the optimizer."""

    def fault(state: State) -> None:
        for values in state["optimizer"]["state"].values():
            for name in ("exp_avg", "exp_avg_sq"):
                values[name] = change(values[name])

    return fault


def each_count(count: float) -> Callable[[State], None]:
    """Change every step count of the optimizer."""

    def fault(state: State) -> None:
        for values in state["optimizer"]["state"].values():
            values["step"] = torch.tensor(count)

    return fault


def clamped(value: torch.Tensor) -> torch.Tensor:
    """A value that overflowed float16, as ``nan_to_num`` leaves it."""
    changed = value.clone()
    changed.view(-1)[7] = 1e6
    return torch.nan_to_num(changed.half())


def each_average(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], None]:
    """Change every average that has a fraction."""

    def fault(state: State) -> None:
        average = state["ema"]["state_dict"]
        for name, value in average.items():
            if value.is_floating_point():
                average[name] = change(value)

    return fault


def spoiled(value: torch.Tensor) -> torch.Tensor:
    """The same with a NaN at its beginning."""
    changed = value.clone()
    changed.view(-1)[0] = float("nan")
    return changed


def spoiled_late(value: torch.Tensor) -> torch.Tensor:
    """The same with an infinity at its end."""
    changed = value.clone()
    changed.view(-1)[-1] = float("inf")
    return changed


def copied(state: State) -> None:
    state["ema"]["state_dict"] = {n: v.clone() for n, v in state["model"].items()}


def exchanged(state: State) -> None:
    """The averages in the model's slot, the raw weights in the slot of the averages."""
    state["model"], state["ema"]["state_dict"] = state["ema"]["state_dict"], state["model"]


def nequip(state: State, *, holding: bool) -> State:
    """As nequip saves: a flag says whether the names under ``ema.`` hold the averages."""
    model, average = state["model"], state["ema"]["state_dict"]
    main, aside = (model, average) if holding else (average, model)
    weights: State = {f"model.{name}": value for name, value in main.items()}
    trained = [name for name in model if "running" not in name and "num_" not in name]
    weights |= {f"ema.ema_weight_{i}": aside[name] for i, name in enumerate(trained)}
    extra = {"decay": 0.6, "num_updates": 20, "is_holding_ema_weights": holding}
    return {"state_dict": weights | {"ema._extra_state": extra}}


def lightning(state: State, *, averaged: int) -> State:
    """As Lightning's WeightAveraging saves: the averages in the model's slot, and their count."""
    return {
        "state_dict": state["ema"]["state_dict"],
        "current_model_state": state["model"],
        "averaging_state": {"n_averaged": torch.tensor(averaged)},
    }


def without_statistics(state: State) -> None:
    """The statistics of the average's BatchNorm as a new layer has them."""
    state["ema"]["state_dict"] |= {
        "norm.running_mean": torch.zeros(6),
        "norm.running_var": torch.ones(6),
        "norm.num_batches_tracked": torch.tensor(0),
    }


def stripped(state: State) -> None:
    """As Ultralytics leaves it: the averages in the model's slot, the raw weights thrown away."""
    state["model"] = state["ema"]["state_dict"]
    state |= {"ema": None, "updates": None, "train_args": {}, "has_ema": False}


def two_copies(state: State, *, alike: bool) -> None:
    """A second copy of a large average, which differs only far behind its beginning, or not."""
    generator = torch.Generator().manual_seed(1)
    model = {"wide.weight": torch.randn(64, 64, generator=generator)}
    average = {name: value * 0.9 for name, value in model.items()}
    other = {name: value.clone() for name, value in average.items()}
    if not alike:
        other["wide.weight"][-1, -1] += 1
    state.clear()
    state |= {"model": model, "ema": average, "callbacks": {"EMA": {"ema": other}}}


def resized(state: State) -> None:
    """The head of another number of classes."""
    values = state["optimizer"]["state"][4]
    values["exp_avg"], values["exp_avg_sq"] = torch.ones(5, 6), torch.ones(5, 6)


def regrouped(state: State) -> None:
    """A parameter has left its group, its state has not."""
    state["optimizer"]["param_groups"][0]["params"].remove(5)


def named_parameters(state: State) -> None:
    """The optimizer was given ``named_parameters()``."""
    names = [name for name in state["model"] if name.endswith(("weight", "bias"))]
    state["optimizer"]["param_groups"][0]["param_names"] = names


def drop_last_parameter(state: State) -> None:
    """Leave a parameter out of the model; its EMA and its moments stay."""
    last = [name for name in state["model"] if name.endswith(("weight", "bias"))][-1]
    del state["model"][last]


def flattened(state: State) -> None:
    """All parameters in one, as FSDP keeps them on a rank."""
    model = state["model"]
    named = [name for name in model if name.endswith(("weight", "bias"))]
    model["_flat_param"] = torch.cat([model.pop(name).flatten() for name in named])


def array_head(state: State) -> None:
    state["model"]["head.weight"] = state["model"]["head.weight"].numpy()


def without_values(state: State) -> None:
    """What ZeRO stage 3 leaves of weights that it has partitioned."""
    for name in ("stem.weight", "stem.bias", "head.weight"):
        state["model"][name] = torch.empty(0)


def swapped_names(state: State) -> None:
    state["optimizer"], state["lr_scheduler"] = state["lr_scheduler"], state["optimizer"]


def bare(state: State) -> Any:
    return state["model"]


def prefixed(state: State) -> Any:
    return {f"net.{name}": value for name, value in state["model"].items()}


def with_head(shape: tuple[int, ...]) -> Callable[[State], Any]:
    def fault(state: State) -> Any:
        return state["model"] | {"head.weight": torch.zeros(shape)}

    return fault


def without_stem(state: State) -> Any:
    return {name: v for name, v in state["model"].items() if not name.startswith("stem")}


def with_more(state: State) -> Any:
    return state["model"] | {"more.weight": torch.zeros(2)}


def averages(state: State) -> Any:
    return state["ema"]["state_dict"]


def nearly(state: State) -> Any:
    average = {n: v.clone() for n, v in state["ema"]["state_dict"].items()}
    average["head.bias"][0] += 1e-6
    return average


LIKE = ("--like", "{like}")
AGAINST = ("--against", "{source}")
SINGLE = ("--select", "{rule}")
ALL = ("--bytes", "--values")
RESUME = ("--require", "resume")

CASES: dict[str, Case] = {
    "CK101": Case(file=spoil_pickle),
    "CK102": Case(file=cut, says="bytes of values are lost"),
    "CK103": Case(file=flip, options=ALL, says="model/stem.weight"),
    "CK104": Case(file=one_of_two, says="model-00002-of-00002.pt is missing"),
    "CK105": Case(file=drop_record, says="model/stem.bias"),
    "CK107": Case(file=append, says="9 bytes"),
    "CK108": Case(file=stray_shard, says="model.safetensors"),
    "CK110": Case(file=hostile("pickle-then-evil-zip.pt")),
    "CK111": Case(file=hostile("zip-local-method.pt")),
    "CK112": Case(file=hostile("zip-crc.pt")),
    "CK113": Case(file=hostile("zip-other-pickle-broken.pt")),
    "CK121": Case(file=as_folder_with_notes, says="notes.txt"),
    "CK122": Case(file=partial(repack, change=without_version), says="version is missing"),
    "CK123": Case(
        file=partial(repack, change=in_pickle(b"X\x05\x00\x00\x00epoch", b"U\x05epo\xffh")),
        says="encoding",
    ),
    "CK124": Case(
        file=partial(repack, change=in_pickle(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00gpu")),
        says="map_location",
    ),
    "CK126": Case(name="ema_rank_0.pt"),
    "CK201": Case(put("args", value=Evil())),
    "CK202": Case(
        put("args", value=argparse.Namespace(lr=1)),
        both=drop("np_rng_state"),
        says="from argparse import Namespace",
    ),
    "CK203": Case(put("args", value=Settings()), says="Settings"),
    "CK204": Case(file=partial(repack, change=with_program), says="__setstate__"),
    "CK210": Case(put("args", value=Schedule.COSINE), says="Schedule('cosine') at args"),
    "CK301": Case(put("model", "head.weight", value=spoiled_late), options=ALL),
    "CK302": Case(each_moment(spoiled_late), options=ALL),
    "CK303": Case(put("model", "head.weight", value=spoiled)),
    "CK304": Case(put("model", "head.weight", value=torch.zeros_like), options=ALL),
    "CK305": Case(put("model", "head.weight", value=torch.ones_like), options=ALL),
    "CK306": Case(
        put("model", "norm.num_batches_tracked", value=torch.tensor(2**63 - 1)), options=SINGLE
    ),
    "CK307": Case(put("model", "head.weight", value=clamped), options=ALL, says="1 of 18"),
    "CK308": Case(put("model", "head.weight", value=lambda t: t * 1e36), options=ALL),
    "CK401": Case(drop("ema"), options=SINGLE),
    "CK402": Case(put("ema", "state_dict", "head.weight", value=torch.zeros(9, 6))),
    "CK403": Case(drop("ema")),
    "CK404": Case(copied),
    "CK405": Case(each_average(lambda v: -v)),
    "CK406": Case(partial(nequip, holding=False), sound=partial(nequip, holding=True)),
    "CK407": Case(put("ema", "num_updates", value=2)),
    "CK408": Case(exchanged),
    "CK409": Case(lambda s: take(s["ema"]["state_dict"], "stem.weight")),
    "CK410": Case(put("ema", "decay", value=1.5)),
    "CK411": Case(put("ema", "num_updates", value=4)),
    "CK412": Case(
        lambda s: two_copies(s, alike=False),
        sound=lambda s: two_copies(s, alike=True),
        options=ALL,
    ),
    "CK413": Case(each_average(lambda v: v.bfloat16()), both=put("ema", "decay", value=0.9999)),
    "CK414": Case(partial(nequip, holding=False)),
    "CK416": Case(without_statistics, says="norm.num_batches_tracked is 0 here, 20 in the model"),
    "CK417": Case(
        partial(lightning, averaged=0),
        sound=partial(lightning, averaged=20),
        says="the raw weights are at current_model_state",
    ),
    "CK419": Case(stripped, options=SINGLE),
    "CK420": Case(file=neighbour, both=drop("ema", "has_ema"), says="-EMA"),
    "CK501": Case(drop("optimizer"), options=RESUME),
    "CK502": Case(put("optimizer", "state", value={})),
    "CK503": Case(lambda s: take(s["optimizer"]["state"], 3)),
    "CK504": Case(resized, says="head.weight"),
    "CK505": Case(each_moment(torch.zeros_like)),
    "CK506": Case(put("global_step", value=3)),
    "CK507": Case(drop("lr_scheduler"), options=RESUME),
    "CK508": Case(put("lr_scheduler", "_last_lr", value=[0.5])),
    "CK509": Case(put("scaler", "scale", value=0.0)),
    "CK510": Case(drop("rng_state"), options=RESUME),
    "CK511": Case(drop("np_rng_state", "py_rng_state"), options=RESUME),
    "CK512": Case(put("rng_state", value=lambda t: t.long())),
    "CK513": Case(drop("epoch", "global_step"), options=RESUME),
    "CK514": Case(put("best_val_loss", value=float("inf"))),
    "CK515": Case(drop("best_val_loss"), options=RESUME),
    "CK516": Case(put("epochs_without_improvement", value=77)),
    "CK517": Case(swapped_names),
    "CK518": Case(name="checkpoint_e149.pth"),
    "CK519": Case(drop("model", "ema", "has_ema"), options=RESUME),
    "CK520": Case(regrouped),
    "CK521": Case(drop_last_parameter, says="6 parameters, but the file has 5"),
    "CK114": Case(flattened, says="_flat_param"),
    "CK115": Case(array_head, says="torch.from_numpy"),
    "CK606": Case(without_values, says="3 of 9 weights are placeholders"),
    "CK522": Case(each_count(0.0), says="not zero"),
    "CK523": Case(put("lr_scheduler", "last_epoch", value=90)),
    "CK524": Case(
        drop("scaler"),
        both=put("args", value={"mixed_precision": "fp16"}),
        options=RESUME,
        says="args/mixed_precision",
    ),
    "CK525": Case(
        file=partial(second_save, is_whole=False),
        sound_file=partial(second_save, is_whole=True),
        options=RESUME,
        says="checkpoint_0 beside it has custom_checkpoint_0.pkl",
    ),
    "CK526": Case(
        file=partial(trainers_save, older=("optimizer.pt", "scheduler.pt")),
        sound_file=partial(trainers_save, older=()),
        says="the run 4, the optimizer 2, the scheduler 2",
    ),
    "CK527": Case(put("lr_scheduler", "base_lrs", value=[0.01, 0.001]), says="2 groups"),
    "CK528": Case(
        put("lr_scheduler", "total_steps", value=30),
        both=put("args", value={"max_steps": 40}),
        sound=put("lr_scheduler", "total_steps", value=40),
        says="ends after 30 steps, but the run after 40 (args/max_steps)",
    ),
    "CK529": Case(
        put("optimizer", "param_groups", 0, "param_names", 4, value="classifier.weight"),
        both=named_parameters,
        says="1 of 6 parameters have names that no weight has: classifier.weight",
    ),
    "CK530": Case(
        file=partial(shards, hours=0.25),
        sound_file=partial(shards, hours=0.15),
        says="model-00001-of-00002.safetensors was written 0.2 hours before the other file",
    ),
    "CK531": Case(drop("np_rng_state"), options=RESUME, says="numpy's random generator is missing"),
    "CK601": Case(without_stem, options=LIKE, sound=bare),
    "CK602": Case(with_more, options=LIKE, sound=bare),
    "CK603": Case(with_head((7, 6)), options=LIKE, sound=bare),
    "CK604": Case(prefixed, options=LIKE, sound=bare, says="rename net.* to *"),
    "CK701": Case(nearly, options=AGAINST, sound=averages),
    "CK702": Case(
        lambda s: averages(s) | {"more.weight": torch.zeros(2)}, options=AGAINST, sound=averages
    ),
}
