"""What does it cost to look at every byte and every value, and what by default?

Against the script that people write: ``torch.load(mmap=True)`` and ``isfinite`` of each tensor,
which reads the values once and no checksum. The default is held against ``inspect``, which also
reads headers, the pickle and a few values.
"""

from __future__ import annotations

from harness import Contender, Question, answer, arguments, ckptool, make, python, workplace

SCRIPT = """
import sys, torch

def tensors(node):
    if isinstance(node, torch.Tensor):
        yield node
    elif isinstance(node, dict):
        for part in node.values():
            yield from tensors(part)
    elif isinstance(node, (list, tuple)):
        for part in node:
            yield from tensors(part)

loaded = torch.load(sys.argv[1], map_location="cpu", mmap=True)
bad = [t for t in tensors(loaded) if t.is_floating_point() and not torch.isfinite(t).all()]
print(len(bad))
"""


def main() -> int:
    """Make the file, measure six contenders."""
    options = arguments(__doc__, runs=7)
    with workplace(options.dir) as folder:
        path = make("training", folder / "training.pt")
        whole = ckptool("verify", "--bytes", "--values", path)
        reading = Contender("verify in full", whole, reads=(path,))
        script = Contender("torch.load and isfinite", python(SCRIPT, path), reads=(path,))
        from_disk = Contender("verify in full, cold", whole, cold=(path,))
        script_from_disk = Contender("the script, cold", python(SCRIPT, path), cold=(path,))
        default = Contender("verify", ckptool("verify", path))
        inspect = Contender("inspect", ckptool("inspect", path))
        return answer(
            (
                Question(
                    "verify --bytes --values : torch script", reading, script, limit=0.35,
                    peak_limit=256,
                    predicted="0.3: two threads at 2 GB/s, against an import and single passes",
                ),
                Question(
                    "the same of a file that is not in the page cache", from_disk, script_from_disk,
                    limit=0.8, peak_limit=256,
                    predicted="0.12, as seen on a busy machine; it was 0.64 on idle cores",
                ),
                Question(
                    "verify : inspect", default, inspect, limit=2, peak_limit=64,
                    predicted="1.3: a few more samples and modules",
                ),
            ),
            options,
        )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
