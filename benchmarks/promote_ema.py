"""Does promoting an EMA inside 2.9 GB run like a copy of 2.9 GB?

Against ``cp`` of the whole file. Both end with an ``fsync`` of what they wrote: ckptool does it by
itself, ``cp`` is followed by ``sync FILE``. ckptool also overwrites a quarter of the file, reads it
back, and looks for values that are not finite.
"""

from __future__ import annotations

from harness import Contender, Question, answer, arguments, ckptool, make, workplace

COPY = ("sh", "-c", 'cp "$1" "$2" && sync "$2"', "copy")


def main() -> int:
    """Make the file, measure two contenders."""
    options = arguments(__doc__, runs=7)
    with workplace(options.dir) as folder:
        training, output = make("training", folder / "training.pt"), folder / "out.pt"
        promote = ckptool("promote-ema", training, "-o", output)
        question = Question(
            "promote-ema in 2.9 GB : cp",
            Contender("promote-ema", promote, (training,), output),
            Contender("cp", (*COPY, str(training), str(output)), (training,), output),
            limit=1.35,
            peak_limit=64,
            predicted="1.25: a quarter of the bytes is written and read once more",
        )
        return answer((question,), options)


if __name__ == "__main__":
    raise SystemExit(main())
