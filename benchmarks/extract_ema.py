"""Does taking 0.7 GB of EMA out of 2.9 GB run like a copy of 0.7 GB?

Against the script that everybody writes, and against ``cp`` of a file as large as the output. All
end with an ``fsync`` of what they wrote: ckptool does it by itself, the script calls it, and ``cp``
is followed by ``sync FILE``. ckptool also looks for values that are not finite, which the others do
not.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness import (
    ENVIRONMENT,
    Contender,
    Question,
    answer,
    arguments,
    ckptool,
    make,
    python,
    workplace,
)

USUAL = """
import os, sys, torch
from safetensors.torch import save_file
checkpoint = torch.load(sys.argv[1], map_location="cpu", mmap=True)
save_file(checkpoint["ema_state_dict"], sys.argv[2])
os.fsync(os.open(sys.argv[2], os.O_RDONLY))
"""
CASTS = {
    "bfloat16": "1.3: half the bytes to write, all of them to read and to cast",
    "float16": "1.8: numpy casts one value after the other",
    "float8_e4m3fn": "1.6: a look into a table for each value, and a quarter of the bytes to write",
}
COPY = ("sh", "-c", 'cp "$1" "$2" && sync "$2"', "copy")


def main() -> int:
    """Make the file and a first output for cp to copy, measure the contenders."""
    options = arguments(__doc__, runs=9)
    with workplace(options.dir) as folder:
        training, like = make("training", folder / "training.pt"), folder / "like.safetensors"
        subprocess.run(ckptool("extract-ema", training, "-o", like), check=True, env=ENVIRONMENT)
        output = folder / "out.safetensors"
        copy = Contender("cp", (*COPY, str(like), str(output)), (like,), output)

        def ours(name: str, *extra: str, output: Path = output) -> Contender:
            command = ckptool("extract-ema", training, "-o", output, *extra)
            return Contender(name, command, (training,), output)

        hub = folder / "hub"
        hub.mkdir()

        plain = ours("extract-ema")
        usual = Contender("script", python(USUAL, training, output), (training,), output)
        shards = ours("shards", "--max-shard-size", "200MB", output=hub)
        torch_file = ours("torch file", output=folder / "out.pt")
        return answer(
            (
                Question(
                    "extract-ema of 0.73 GB : the usual script", plain, usual,
                    limit=0.4, peak_limit=64,
                    predicted="0.4: the script copies through memory and imports torch",
                ),
                Question(
                    "extract-ema of 0.73 GB : cp of as much", plain, copy,
                    limit=1.35, peak_limit=64,
                    predicted="1.3: start-up and numpy on top of a copy by two threads",
                ),
                Question(
                    "in 4 shards : cp of as much", shards, copy, limit=1.35, peak_limit=64,
                    predicted="1.3: the same bytes in other files",
                ),
                Question(
                    "to a torch file : cp of as much", torch_file, copy, limit=1.5, peak_limit=64,
                    predicted="1.3: the checksums are those of what was looked at",
                ),
                *(
                    Question(
                        f"--dtype {dtype} : cp of what is read", ours(dtype, "--dtype", dtype),
                        copy, limit=2, peak_limit=64, predicted=predicted,
                    )
                    for dtype, predicted in CASTS.items()
                ),
            ),
            options,
        )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
