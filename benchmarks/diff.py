"""Is a comparison of two checkpoints as fast as the disk cache gives them?

Against the script that everybody writes for two that differ, and against ``cmp`` for two that are
equal. The types of two bytes and of one are held against float32, on as many bytes.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness import Contender, Question, answer, arguments, ckptool, make, python, workplace

USUAL = """
import sys, torch
one, other = (torch.load(path, map_location="cpu", mmap=True) for path in sys.argv[1:])
for name, tensor in one.items():
    distance = (tensor - other[name]).abs()
    print(name, distance.max(), distance.mean(), torch.allclose(tensor, other[name]))
"""
DIFFER = ("sh", "-c", '"$@"; test $? -eq 1', "differ")  # 1 is the answer, not a failure
TYPES = ("float32", "bfloat16", "float8")


def main() -> int:
    """Make the pairs, measure both kinds of question."""
    options = arguments(__doc__, runs=5)
    with workplace(options.dir) as folder:
        ours = {kind: _ours(kind, make(f"pair-{kind}", folder / f"{kind}.a")) for kind in TYPES}
        pair = ours["float32"].reads
        usual = Contender("script", python(USUAL, *pair), pair)
        whole = make("training", folder / "training.a")
        copy = whole.with_suffix(".b")
        subprocess.run(["cp", "--reflink=never", str(whole), str(copy)], check=True)
        equal = Contender("diff of equal files", ckptool("diff", whole, copy), (whole, copy))
        compare = Contender("cmp", ("cmp", str(whole), str(copy)), (whole, copy))
        questions = (
            Question(
                "diff of 2 x 0.73 GB of float32 : the usual script", ours["float32"], usual,
                limit=0.25, peak_limit=256,
                predicted="0.22: 0.6 s in two processes, against 2.7 s of torch and five passes",
            ),
            Question(
                "diff of as much bfloat16 : of float32", ours["bfloat16"], ours["float32"],
                limit=2.0, peak_limit=256,
                predicted="1.7: twice the elements, half the reading",
            ),
            Question(
                "diff of as much float8 : of float32", ours["float8"], ours["float32"],
                limit=2.0, peak_limit=256,
                predicted="2: four times the elements, whose pairs are counted",
            ),
            Question(
                "diff of equal 2.9 GB : cmp", equal, compare, limit=1.5, peak_limit=128,
                predicted="0.8: two threads against one, less the start",
            ),
        )  # fmt: skip
        return answer(questions, options)


def _ours(kind: str, path: Path) -> Contender:
    pair = (path, path.with_suffix(".b"))
    return Contender(f"diff of {kind}", (*DIFFER, *ckptool("diff", *pair)), pair)


if __name__ == "__main__":
    raise SystemExit(main())
