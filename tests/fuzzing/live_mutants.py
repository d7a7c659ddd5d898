"""Checkpoints of real libraries with their pickles changed, and the weights in them.

``python tests/fuzzing/live_mutants.py BEGIN END [MODE]`` makes that many files and gives each to
ckptool and to torch: no error of ckptool is a bug, and where it writes something and torch loads
the file, both are equal, bit for bit. The mode ``extract`` compares the weights of ``extract-ema``,
``whole`` all objects of ``convert --whole``, ``promote`` those of ``promote-ema`` but for the slot.
Half of the files have bytes changed, half instructions. Nothing unpickles freely: torch's safe
loader is the judge, else Python's with a few harmless names, and stubs for all others.
"""

from __future__ import annotations

import io
import pickletools
import random
import resource
import sys
import tempfile
import warnings
import zipfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from instructions import changed_instructions
from loading import MEMORY, restricted
from rewritten import at, promoted, stub, whole
from safetensors.torch import load_file
from same_weights import differences, is_unknown

from ckptool.errors import CkptError
from ckptool.formats import open_checkpoint
from ckptool.tree.describing import as_key
from helpers.judge import tensor_bytes
from helpers.output import run_inside
from helpers.paths import FIXTURES

LARGEST = 300_000  # bytes of a file
FOLDERS = ("genuine", "ema", "formats", "resume", "sharded")
MAGIC, FACTS = b"\x80\x02\x8a\x0a", 3  # older files of torch begin with so many pickles of facts
ROOM = 1 << 16  # bytes of a file that is no zip in which changes are made: values follow
OUTCOMES = ("refused", "read", "compared", "extracted", "different", "crashed")


def promotable() -> list[Path]:
    """Files with an average and a model that it fits."""
    plan = partial(run_inside, "promote-ema", "--dry-run", "-o", "promoted.pt")
    return [path for path in live_files(("ema",)) if plan(path).exit_code == 0]


def live_files(folders: Iterable[str] = FOLDERS) -> list[Path]:
    """Files with pickles, of which most are of libraries that wrote them."""
    paths = (path for name in folders for path in sorted((FIXTURES / name).rglob("*")))
    return [
        path for path in paths
        if path.is_file() and path.suffix not in {".json", ".safetensors", ".txt", ".md", ".npz"}
        and path.stat().st_size < LARGEST
        and path.read_bytes()[:1] in {b"P", b"\x80", b".", b"s"}
    ]  # fmt: skip


def changed(data: bytes, rng: random.Random) -> bytes:
    """Letters and digits exchanged, bits flipped, bytes inserted or deleted."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(made))
        change = rng.choice((*("letter",) * 5, "flip", "set", "insert", "delete", "copy"))
        if change == "letter":
            places = [i for i, byte in enumerate(made) if chr(byte).isalnum()]
            made[rng.choice(places or [at])] = rng.choice(b"0123456789abcdefwxyzKMQ")
        elif change == "flip":
            made[at] ^= 1 << rng.randrange(8)
        elif change == "set":
            made[at] = rng.choice(b"\x00\x01\x02().0KMJXabeqhrstuR\x81\x85\x86\x87\x88\x89\x94\xff")
        elif change == "insert":
            made[at:at] = rng.randbytes(rng.randint(1, 4))
        elif change == "delete":
            del made[at : at + rng.randint(1, 4)]
        else:
            begin, length = rng.randrange(len(made)), rng.randint(1, 16)
            made[at:at] = made[begin : begin + length]
    return bytes(made)


def mutated(path: Path, rng: random.Random) -> bytes:
    """The file with a changed pickle, and checksums that fit."""
    data = path.read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            records = {info.filename: archive.read(info) for info in archive.infolist()}
    except zipfile.BadZipFile:
        return _changed_stream(data, rng)
    pickled = [name for name in records if name.endswith(".pkl")]
    if not pickled:
        return changed(data, rng)
    name = rng.choice(pickled)
    try:
        change = rng.choice((changed, changed_instructions))
        records[name] = change(records[name], rng)
    except ValueError:  # no pickle
        records[name] = changed(records[name], rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in records.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def _changed_stream(data: bytes, rng: random.Random) -> bytes:
    """Change a file that is no zip: in older ones of torch, the object is the fourth pickle."""
    if rng.random() < 0.5:
        try:
            begin = _end_of_pickles(data, FACTS) if data.startswith(MAGIC) else 0
            return data[:begin] + changed_instructions(data[begin:], rng)
        except ValueError:  # no pickle
            pass
    return changed(data[:ROOM], rng) + data[ROOM:]


def _end_of_pickles(data: bytes, count: int) -> int:
    stream = io.BytesIO(data)
    for _ in range(count):
        deque(pickletools.genops(stream), maxlen=0)
    return stream.tell()


def load(path: Path) -> Any:
    """What torch makes of the file; None if it refuses it."""
    loaders = (
        partial(torch.load, weights_only=True, map_location="cpu"),
        partial(torch.load, weights_only=False, map_location="cpu", pickle_module=restricted(stub)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for loader in loaders:
            try:
                return loader(path)
            except Exception:  # noqa: BLE001 - whatever it refuses
                continue
    return None


def outcome(path: Path) -> tuple[str, list[str]]:
    """One of ``OUTCOMES``, and what is wrong."""
    for command in (("verify",), ("inspect", "--stats")):
        told = run_inside(*command, path, "--json")
        if "a bug in ckptool" in told + told.stderr or "Traceback" in told + told.stderr:
            return "crashed", [told.stderr or told]
    out = path.with_suffix(".safetensors")
    told = run_inside("extract-ema", path, "-o", out, "--names", "ema", "--force", "--json")
    if "a bug in ckptool" in told + told.stderr:
        return "crashed", [told]
    loaded = load(path)
    wrong: list[str] = []
    try:
        with open_checkpoint(path) as opened:
            if isinstance(loaded, dict):
                wrong += differences(opened.tree, loaded, opened.reader)
    except CkptError:
        return "refused", []
    if wrong:
        return "different", wrong
    if told.exit_code != 0 or loaded is None:
        return ("read" if loaded is None else "compared"), []
    wrong += extracted(told.json, load_file(out), loaded)
    return ("different" if wrong else "extracted"), wrong


def extracted(told: dict[str, Any], found: dict[str, torch.Tensor], loaded: Any) -> Iterator[str]:
    """Yield the averaged weights that are not what torch has under their key path."""
    place, _, prefix = told["ema"].rpartition("/") if "*" in told["ema"] else (told["ema"], "", "")
    node = at(loaded, place)
    if not isinstance(node, dict) or is_unknown(node):
        return
    prefix = prefix.rstrip("*")
    theirs = {str(as_key(k)): v for k, v in dict.items(node) if isinstance(v, torch.Tensor)}
    for name, ours in found.items():
        if name in told["from_model"]:
            continue
        wanted = theirs.get(prefix + name)
        if wanted is None:
            yield f"{name}: torch has none under {told['ema']}"
        elif ours.dtype != wanted.dtype or ours.shape != wanted.shape:
            yield f"{name}: {ours.dtype} {ours.shape} is {wanted.dtype} {wanted.shape}"
        elif tensor_bytes(ours.contiguous()) != tensor_bytes(
            wanted.detach().resolve_neg().resolve_conj().contiguous()
        ):
            yield f"{name}: other values"


MODES = {
    "extract": outcome,
    "whole": partial(whole, load=load),
    "promote": partial(promoted, load=load),
}


def main(begin: int, end: int, mode: str = "extract") -> int:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))  # a memo index of 32 bits takes it
    files = promotable() if mode == "promote" else live_files()
    counted = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(begin, end):
            rng = random.Random(seed)
            source = files[seed % len(files)]
            path = Path(folder) / f"model{source.suffix or '.pt'}"
            path.write_bytes(mutated(source, rng))
            result, wrong = MODES[mode](path)
            counted[result] += 1
            if result in {"different", "crashed"}:
                sys.stdout.write("\n  ".join([f"{seed} {source.name}", *wrong[:5]]) + "\n")
                sys.stdout.flush()
    sys.stdout.write(f"{dict(counted)}\n")
    return int(counted["different"] + counted["crashed"] > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
