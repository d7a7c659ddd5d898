"""Does inspecting a large checkpoint cost its structure, or its size?

Against ``torch.load(mmap=True)`` in a fresh interpreter, which also leaves the values on the disk;
and a file of holes with the same names, 73 times as large, against the first: whoever reads the
values, or anything else that grows with the file, fails there.
"""

from __future__ import annotations

from harness import Contender, Question, answer, arguments, ckptool, make, python, workplace

LOAD = "import sys, torch; torch.load(sys.argv[1], map_location='cpu', mmap=True)"


def main() -> int:
    """Make the two files, measure three contenders."""
    options = arguments(__doc__, runs=15)
    with workplace(options.dir) as folder:
        training = make("training", folder / "training.pt")
        holes = make("holes", folder / "holes.pt")
        small = Contender("inspect", ckptool("inspect", training))
        large = Contender("inspect holes", ckptool("inspect", holes))
        plain = Contender("torch.load", python(LOAD, training))
        return answer(
            (
                Question(
                    "inspect 2.9 GB : torch.load(mmap)", small, plain, limit=0.1, peak_limit=45,
                    predicted="0.1: the import of torch takes over 1 s, all of inspect 0.13 s",
                ),
                Question(
                    "inspect 200 GiB of holes : 2.9 GB", large, small, limit=1.1, peak_limit=45,
                    predicted="1.02: the same names; longer numbers, and zip64 fields to read",
                ),
            ),
            options,
        )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
