"""What share of the rate at which a GPU is given bytes does ``diff --device cuda`` reach?

In one process and after a round that is not counted, so that neither the interpreter nor CUDA's
start nor its first taking of memory counts: the bytes of both sides by the time of a whole
``diff``, from opening the files to the report, against copies from pinned memory of as many bytes
that do nothing else. Files in the page cache. Beside them the time of numpy on the processors.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import make, workplace

from ckptool.commands.diff import DiffOptions, diff

PAIRS = ("pair-float32", "pair-bfloat16", "pair-float8", "large-pair-float32")
STAGED = 64 << 20  # bytes of a copy


def main() -> int:
    """Print the rates, a line a pair of files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, help="folder for the files (9 GB at a time)")
    parser.add_argument("--runs", type=int, default=5, help="rounds (default %(default)s)")
    parser.add_argument("--device", default="cuda", help="or cuda:N (default %(default)s)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU here: nothing was measured")
        return 0
    name = torch.cuda.get_device_name(options.device)
    print(f"on {name}, torch {torch.__version__}, medians of {options.runs} rounds")
    for kind in PAIRS:
        with workplace(options.dir) as folder:
            one = make(kind, folder / "one.a")
            pair = (one, one.with_suffix(".b"))
            nbytes = sum(path.stat().st_size for path in pair)
            for path in pair:
                path.read_bytes()
            ours = _median(lambda pair=pair: _diff(pair, options.device), options.runs)
            cpu = _median(lambda pair=pair: _diff(pair, "cpu"), min(options.runs, 2))
            copies = _median(lambda n=nbytes: _copies(n, options.device), options.runs)
        rates = [f"{nbytes / seconds / 1e9:6.2f} GB/s" for seconds in (ours, copies, cpu)]
        print(
            f"{kind:18} diff {rates[0]}, copies {rates[1]}: share {copies / ours:.3f}; "
            f"numpy on {os.cpu_count()} processors {rates[2]}",
            flush=True,
        )
    return 0


def _diff(pair: tuple[Path, Path], device: str) -> None:
    report = diff(str(pair[0]), str(pair[1]), DiffOptions(device=device))
    assert not report.equal


def _copies(nbytes: int, device: str) -> None:
    source = torch.empty(STAGED, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(STAGED, dtype=torch.uint8, device=device)
    for _ in range(0, nbytes, STAGED):
        target.copy_(source, non_blocking=True)
    torch.cuda.synchronize(device)


def _median(work: Callable[[], None], runs: int) -> float:
    """Seconds, after a round that is not counted."""
    taken = []
    for _ in range(runs + 1):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[1:])


if __name__ == "__main__":
    raise SystemExit(main())
