"""Does dropping the optimizer run like a copy of what is left?

Against ``cp`` of the output, which a dropping of before has made. Both end with an ``fsync``:
ckptool does it by itself, ``cp`` is followed by ``sync FILE``. ckptool reads every byte that stays
once, sums it, and writes it once; it reads the pickle three times, to find the parts, to cut them,
and to check what was cut.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness import ENVIRONMENT, Contender, Question, answer, arguments, ckptool, make, workplace

COPY = ("sh", "-c", 'cp "$1" "$2" && sync "$2"', "copy")


def main() -> int:
    """Make the files, and measure."""
    options = arguments(__doc__, runs=7)
    with workplace(options.dir) as folder:
        training, output = make("training", folder / "training.pt"), folder / "out.pt"
        left = folder / "left.pt"
        subprocess.run(dropping(training, left), check=True, env=ENVIRONMENT, stdout=-3)
        question = Question(
            "convert --drop optimizer of 2.9 GB : cp of what is left",
            Contender("convert", dropping(training, output), (training,), output),
            Contender("cp", (*COPY, str(left), str(output)), (left,), output),
            limit=1.35,
            peak_limit=64,
            predicted="1.3: start-up, and a second look at each byte",
        )
        return answer([question], options)


def dropping(path: Path, output: Path) -> tuple[str, ...]:
    """The command line of ckptool."""
    return ckptool("convert", path, "--drop", "optimizer", "-o", output)


if __name__ == "__main__":
    raise SystemExit(main())
