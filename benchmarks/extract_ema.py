"""Does taking 0.7 GB of EMA out of 2.9 GB run like a copy of 0.7 GB?

Against the script that everybody writes, and against ``cp`` of a file as large as the output. All
end with an ``fsync`` of what they wrote: ckptool does it by itself, the script calls it, and ``cp``
is followed by ``sync FILE``. ckptool also looks for values that are not finite, which the others do
not.
"""

from __future__ import annotations

import subprocess

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
COPY = ("sh", "-c", 'cp "$1" "$2" && sync "$2"', "copy")


def main() -> int:
    """Make the file and a first output for cp to copy, measure three contenders."""
    options = arguments(__doc__, runs=9)
    with workplace(options.dir) as folder:
        training = make("training", folder / "training.pt")
        output, like = folder / "out.safetensors", folder / "like.safetensors"
        extract = ckptool("extract-ema", training, "-o", output)
        subprocess.run(ckptool("extract-ema", training, "-o", like), check=True, env=ENVIRONMENT)
        ours = Contender("extract-ema", extract, (training,), output)
        usual = Contender("script", python(USUAL, training, output), (training,), output)
        copy = Contender("cp", (*COPY, str(like), str(output)), (like,), output)
        questions = (
            Question(
                "extract-ema of 0.73 GB : the usual script", ours, usual, limit=0.4, peak_limit=64,
                predicted="0.4: the script copies through memory and imports torch",
            ),
            Question(
                "extract-ema of 0.73 GB : cp of as much", ours, copy, limit=1.35, peak_limit=64,
                predicted="1.3: the disk decides; start-up and the look at the values come on top",
            ),
        )  # fmt: skip
        return answer(questions, options)


if __name__ == "__main__":
    raise SystemExit(main())
