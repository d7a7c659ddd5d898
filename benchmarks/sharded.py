"""Does a model of 3 GB come out of the files of 8 ranks like a copy of 3 GB?

Against ``cp`` of a file as large as the output, and against what people run today: for the files
of ``torch.save`` the script that loads and joins them, for safetensors shards torch's own
consolidator. Then, does ``inspect`` of 1,000 shards take less than twice the time of one file?
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import (
    ENVIRONMENT,
    HERE,
    Contender,
    Question,
    answer,
    arguments,
    ckptool,
    python,
    workplace,
)

MERGE = """
import os, sys, torch
from pathlib import Path
from safetensors.torch import save_file
files = sorted(Path(sys.argv[1]).glob("*.pt"))
states = [torch.load(file, map_location="cpu", weights_only=False) for file in files]
whole = {n: torch.cat([state[n]._local_tensor for state in states]) for n in states[0]}
save_file(whole, sys.argv[2])
os.fsync(os.open(sys.argv[2], os.O_RDONLY))
"""
CONSOLIDATE = """
import os, sys, safetensors
from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files
from pathlib import Path
with safetensors.safe_open(next(Path(sys.argv[1]).glob("*.safetensors")), "pt") as one:
    names = dict.fromkeys(one.keys(), 1)
consolidate_safetensors_files(sys.argv[1], sys.argv[2], names)
os.fsync(os.open(next(Path(sys.argv[2]).iterdir()), os.O_RDONLY))
"""
COPY = ("sh", "-c", 'cp "$1" "$2" && sync "$2"', "copy")


def made(kind: str, folder: Path, gb: float) -> Path:
    """A folder of ``make_ranks.py``, made in a process of its own."""
    place = folder / kind
    place.mkdir()
    command = [sys.executable, str(HERE / "make_ranks.py"), kind, str(place), str(gb)]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    return place


def main() -> int:
    """Make the folders and a first output for cp to copy, measure the contenders."""
    options = arguments(__doc__, runs=5, gb=3)
    with workplace(options.dir) as folder:
        ranks, shards = (made(kind, folder, options.gb) for kind in ("ranks", "shards"))
        many = made("many", folder, options.gb)
        output, like, apart = (folder / n for n in ("out.safetensors", "like.safetensors", "apart"))
        apart.mkdir()
        taken = ckptool("extract-ema", f"{ranks}#@model", "-o", like)
        subprocess.run(taken, check=True, env=ENVIRONMENT)
        copy = Contender("cp", (*COPY, str(like), str(output)), (like,), output)

        def ours(place: Path) -> Contender:
            command = ckptool("extract-ema", f"{place}#@model", "-o", output)
            return Contender(place.name, command, tuple(place.iterdir()), output)

        merge = python(MERGE, ranks, output)
        consolidate = python(CONSOLIDATE, shards, apart)
        script = Contender("script", merge, tuple(ranks.iterdir()), output)
        library = Contender("library", consolidate, tuple(shards.iterdir()), apart)
        one = many.with_suffix(".safetensors")
        size = f"{options.gb:g} GB"
        return answer(
            (
                Question(
                    f"8 files of ranks, {size} : cp of as much", ours(ranks), copy,
                    limit=1.35, peak_limit=64,
                    predicted="1.3: the same bytes, read from eight files",
                ),
                Question(
                    f"8 files of ranks, {size} : torch.load and torch.cat", ours(ranks), script,
                    limit=0.3, peak_limit=64,
                    predicted="0.3: the script holds all twice, and imports torch",
                ),
                Question(
                    f"8 safetensors shards, {size} : cp of as much", ours(shards), copy,
                    limit=1.35, peak_limit=64, predicted="1.3: as the files of ranks",
                ),
                Question(
                    f"8 safetensors shards, {size} : torch's consolidator", ours(shards), library,
                    limit=0.3, peak_limit=64,
                    predicted="0.5: it writes through memory maps, and imports torch",
                ),
                Question(
                    "inspect 1,000 shards of 100 tensors : one file",
                    Contender("many", ckptool("inspect", many), tuple(many.iterdir())),
                    Contender("one", ckptool("inspect", one), (one,)),
                    limit=2, predicted="1.5: a thousand files to open, and to look at",
                ),
            ),
            options,
        )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
