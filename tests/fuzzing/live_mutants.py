"""Checkpoints of real libraries with bytes of their pickles changed, and the weights in them.

``python tests/fuzzing/live_mutants.py BEGIN END`` makes that many files and gives each to ckptool
and to torch: no error of ckptool is a bug, and where ``extract-ema`` writes weights and torch loads
the file, they are equal, bit for bit. Nothing unpickles freely: torch's safe loader is the judge,
else Python's with a few harmless names (``loading.py``).
"""

from __future__ import annotations

import io
import random
import resource
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from loading import MEMORY, restricted
from safetensors.torch import load_file
from same_weights import differences

from ckptool.errors import CkptError
from ckptool.formats import open_checkpoint
from ckptool.tree.describing import as_key
from helpers.judge import tensor_bytes
from helpers.output import run_inside
from helpers.paths import FIXTURES

LARGEST = 300_000  # bytes of a file
FOLDERS = ("genuine", "ema", "formats", "resume", "sharded")
ROOM = 1 << 16  # bytes of a file that is no zip in which changes are made: values follow
OUTCOMES = ("refused", "read", "compared", "extracted", "different", "crashed")


def live_files() -> list[Path]:
    """Files with pickles, of which most are of libraries that wrote them."""
    paths = (path for name in FOLDERS for path in sorted((FIXTURES / name).rglob("*")))
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
        return changed(data[:ROOM], rng) + data[ROOM:]
    pickled = [name for name in records if name.endswith(".pkl")]
    if not pickled:
        return changed(data, rng)
    name = rng.choice(pickled)
    records[name] = changed(records[name], rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in records.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def load(path: Path) -> Any:
    """What torch makes of the file; None if it refuses it, or asks for what it does not allow."""
    loaders = (
        partial(torch.load, weights_only=True, map_location="cpu"),
        partial(torch.load, weights_only=False, map_location="cpu", pickle_module=restricted()),
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
    if not isinstance(node, dict):
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


def at(node: Any, place: str) -> Any:
    """What torch has under a key path; None where objects are on the way."""
    for part in filter(None, place.split("/")):
        key = part.replace("~1", "/").replace("~0", "~")
        table = node if isinstance(node, dict) else {}
        node = next((value for k, value in dict.items(table) if str(as_key(k)) == key), None)
    return node


def main(begin: int, end: int) -> int:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))  # a memo index of 32 bits takes it
    files, counted = live_files(), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(begin, end):
            rng = random.Random(seed)
            source = files[seed % len(files)]
            path = Path(folder) / f"model{source.suffix or '.pt'}"
            path.write_bytes(mutated(source, rng))
            result, wrong = outcome(path)
            counted[result] += 1
            if result in {"different", "crashed"}:
                sys.stdout.write("\n  ".join([f"{seed} {source.name}", *wrong[:5]]) + "\n")
                sys.stdout.flush()
    sys.stdout.write(f"{dict(counted)}\n")
    return int(counted["different"] + counted["crashed"] > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
