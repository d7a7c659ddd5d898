"""What passes verify loads: with torch's safe loader, or a finding names what it refuses.

A longer run by hand: ``python tests/fuzzing/test_what_passes_loads.py SECONDS [SEED]``.
"""

from __future__ import annotations

import itertools
import random
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loading import Judge
from mutants import Seeds, mutant

from ckptool.commands.verify import Request, verify_all
from helpers.paths import FIXTURES

SEED = 20
NAMING = frozenset({"CK202", "CK203", "CK123", "CK124"})  # rules that name what is refused


# What the loader has to say for a finding of the rule to have foretold it.
SAID = {
    "CK203": re.compile(r"refused: |has no attribute|No module|import"),
    "CK123": re.compile(r"UnicodeDecodeError|codec|UTF-8"),
    "CK124": re.compile(r"device|location|storage", re.IGNORECASE),
}


def is_foretold(told: dict[str, str], error: str) -> bool:
    """Whether the error is of the kind that one of the findings names."""
    return any(rule in told and said.search(error) for rule, said in SAID.items())


OF_PYTHON = frozenset({"pickle", "torch-tar"})  # formats that torch's safe loader does not read


def unforetold(path: Path, judge: Judge) -> str | None:
    """How loading failed of a file that passed, and of which nothing was said."""
    (looked,) = verify_all([path], Request())
    if not looked.report.ok:
        return None
    form = looked.report.format
    how = judge.load(path, plain=form == "pickle")
    told = {f.rule: f.message for f in looked.report.findings if f.rule in NAMING}
    if form in OF_PYTHON and (not how["free"] or "refused: " in how["free"]):
        return None  # the judge looks up fewer names than a loader of such files
    if not how["safe"] or (told and not how["free"]) or is_foretold(told, how["free"]):
        return None
    if "torch.load(weights_only=True) refuses" in told.get("CK202", ""):
        return None
    return f"{how}; told: {told}"


def run(numbers: Iterable[int], seed: int, folder: Path) -> Iterator[tuple[int, str, Path]]:
    """Mutants that pass and do not load."""
    seeds = Seeds()
    with Judge() as judge:
        for number in numbers:
            suffix, content = mutant(seeds, random.Random(seed * 1_000_003 + number))
            path = folder / f"mutant-{number}{suffix}"
            path.write_bytes(content)
            wrong = unforetold(path, judge)
            if wrong:
                yield number, wrong, path
            else:
                path.unlink()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "numbers", [range(100), pytest.param(range(100, 2000), marks=pytest.mark.slow)], ids=str
)
def test_what_passes_verify_loads(numbers, tmp_path):
    wrong = [f"{path.name}: {why}" for _, why, path in run(numbers, SEED, tmp_path)]
    assert not wrong


def small_fixtures() -> list[Path]:
    """The corpus and the fixtures of formats: every kind of file, none larger than a page."""
    folders = (FIXTURES / name for name in ("hostile", "malformed", "formats"))
    return [path for folder in folders for path in sorted(folder.rglob("*.*")) if is_file(path)]


def is_file(path: Path) -> bool:
    return path.is_file() and path.suffix != ".json" and path.stat().st_size < 1 << 20


@pytest.mark.filterwarnings("ignore")
def test_what_passes_verify_of_the_fixtures_loads():
    files = small_fixtures()
    assert len(files) > 200
    with Judge() as judge:
        wrong = {path.name: why for path in files if (why := unforetold(path, judge))}
    assert not wrong


def until(seconds: float) -> Iterator[int]:
    """Numbers, until the time is over."""
    ends = time.monotonic() + seconds
    for number in itertools.count():
        if time.monotonic() > ends:
            sys.stderr.write(f"{number} mutants\n")
            return
        yield number


if __name__ == "__main__":
    import tempfile

    given = [int(arg) for arg in sys.argv[1:]]
    place = Path(tempfile.mkdtemp(prefix="ckptool-mutants-"))
    for _, why, where in run(until(given[0]), given[1] if len(given) > 1 else SEED, place):
        sys.stdout.write(f"{where} {why}\n")
        sys.stdout.flush()
