"""Does promoting an EMA run like a copy of the file, also where it is cast?

Against ``cp`` of the whole file. Both end with an ``fsync`` of what they wrote: ckptool does it by
itself, ``cp`` is followed by ``sync FILE``. ckptool writes every byte once as well, but a quarter
of them from elsewhere in the file; these it reads back, and it sums the averages and looks for
values that are not finite. Where the model is bfloat16 and its EMA float32 it casts every value,
once, sums what it made, and counts what the cast loses. To a tmpfs it copies with two threads.
"""

from __future__ import annotations

from pathlib import Path

from harness import Contender, Question, answer, arguments, ckptool, make, workplace

COPY = ("sh", "-c", 'cp "$1" "$2" && sync "$2"', "copy")


def main() -> int:
    """Make the files, measure two contenders for each."""
    options = arguments(__doc__, runs=7)
    with workplace(options.dir) as folder:
        output = folder / "out.pt"
        training = make("training", folder / "training.pt")
        half = make("half-training", folder / "half-training.pt")
        questions = (
            Question(
                "promote-ema in 2.9 GB : cp",
                promotion("promote-ema", training, output),
                copy("cp", training, output),
                limit=1.25,
                peak_limit=64,
                predicted="1.1: a quarter of the bytes is summed, and read once more",
            ),
            Question(
                "promote-ema with casts in 1.8 GB : cp",
                promotion("promote-ema with casts", half, output),
                copy("cp of that", half, output),
                limit=2,
                peak_limit=64,
                predicted="1.5: 183 million values are cast, and looked at twice",
            ),
        )
        return answer(questions, options)


def promotion(name: str, path: Path, output: Path) -> Contender:
    """The contender that promotes."""
    return Contender(name, ckptool("promote-ema", path, "-o", output), (path,), output)


def copy(name: str, path: Path, output: Path) -> Contender:
    """The contender that only copies."""
    return Contender(name, (*COPY, str(path), str(output)), (path,), output)


if __name__ == "__main__":
    raise SystemExit(main())
