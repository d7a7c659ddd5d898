"""Does the mean of twenty files cost more than reading them?

Against ``cat`` of the same files to /dev/null: once files of real values that are not in the page
cache, as the checkpoints of a run are not; once files of holes, 3.75 times as large, which take no
disk and are read at the speed of memory. The peak must not grow with the files or their number.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from harness import MIB, Contender, Question, answer, arguments, ckptool, workplace

COUNT, SIDE = 20, 4096  # files, and the rows and columns of their matrices of float32
SPARSE = 3.75  # times as large as the real files are those of holes
MATRIX = 4 * SIDE * SIDE


def header(matrices: int) -> bytes:
    """The beginning of a safetensors file of square matrices."""
    entries = {
        f"layers.{at}.weight": {
            "dtype": "F32", "shape": [SIDE, SIDE], "data_offsets": [at * MATRIX, (at + 1) * MATRIX],
        }
        for at in range(matrices)
    }  # fmt: skip
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def make_files(folder: Path, gb: float, noise: bytes | None) -> tuple[Path, ...]:
    """Files of ``gb`` GB each: of small numbers at other places in each, or of holes."""
    matrices = max(1, round(gb * 1e9 / MATRIX))
    paths = tuple(folder / f"{at:02}.safetensors" for at in range(COUNT))
    for at, path in enumerate(paths):
        with path.open("wb") as file:
            file.write(header(matrices))
            for nth in range(matrices if noise else 0):
                cut = (at * 977 + nth * 131) * 4 % MIB
                block = noise[cut:] + noise[:cut]
                for _ in range(MATRIX // MIB):
                    file.write(block)
            if noise is None:
                file.truncate(file.tell() + matrices * MATRIX)
    return paths


def small_numbers() -> bytes:
    """A mebibyte of float32 between 1 / 128 and 1 / 64, of either sign.

    No more, since this process must stay small: its peak would count as that of the commands.
    """
    random.seed(1)
    block = bytearray(random.randbytes(MIB))
    for at in range(3, MIB, 4):
        block[at] = 0x3C | block[at] & 0x80
    return bytes(block)


def main() -> int:
    """Make the files, measure two contenders on each kind."""
    options = arguments(__doc__, runs=3, gb=0.8)
    with workplace(options.dir) as folder:
        questions = []
        for kind, gb, noise in (
            ("real", options.gb, small_numbers()), ("holes", SPARSE * options.gb, None),
        ):  # fmt: skip
            (folder / kind).mkdir()
            paths = make_files(folder / kind, gb, noise)
            output = folder / f"{kind}.safetensors"
            ours = Contender(
                f"average {kind}", ckptool("average", *paths, "-o", output),
                cold=paths, writes=output,
            )  # fmt: skip
            theirs = Contender(f"cat {kind}", ("cat", *map(str, paths)), cold=paths)
            questions.append(
                Question(
                    f"average of {COUNT} x {gb:g} GB, {kind} : cat > /dev/null", ours, theirs,
                    limit=1 / 0.7 if noise else 8, peak_limit=64,
                    predicted="1.1: the disk is slower than the sums"
                    if noise
                    else "4: nothing is read, all is summed and one of them is written",
                )
            )  # fmt: skip
        return answer(questions, options)


if __name__ == "__main__":
    raise SystemExit(main())
