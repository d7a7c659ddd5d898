"""Every folder of many ranks in the fixtures: without a file, with one too many or of another step.

A save is a directory below ``fixtures/sharded`` with the numbered files of ranks or shards, so that
fixtures which are added later are tested too. A file of another step, with all its values and
counters changed, is refused or told wherever the files count steps or hold copies of each other;
``SILENT`` has the others.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from ckptool.checks.saves import File, _apart
from ckptool.formats import open_checkpoint
from helpers.aged import age
from helpers.output import Output, run_inside
from helpers.paths import FIXTURES
from helpers.thinned import one_in

SHARDED = FIXTURES / "sharded"
# The number of a rank or shard in a file's name. Random states say nothing about weights.
NUMBER = re.compile(
    r"(?<=rank_)\d+|(?<=-shard)\d+|(?<=__)\d+(?=_\d+\.distcp)|(?<=shard-)\d+|\d+(?=-of-\d+\.)"
)
YEAR_2024, HOUR = 1_704_067_200, 3600  # seconds
PLAIN = re.compile(r"(random_states|rng_state)_.*")


def numbered(folder: Path) -> list[str]:
    """The names of the files of ranks or shards in a directory."""
    names = (path.name for path in folder.iterdir() if path.is_file())
    return sorted(n for n in names if NUMBER.search(n) and not PLAIN.fullmatch(n))


def saves() -> list[Path]:
    """The directories that are one checkpoint, by the innermost that has numbered files."""
    below = (path for path in SHARDED.rglob("*") if path.is_dir())
    return sorted(path for path in below if len(numbered(path)) > 1)


SAVES = saves()
FILES = [(str(save.relative_to(SHARDED)), name) for save in SAVES for name in numbered(save)]


def copied(save: str, tmp_path: Path) -> Path:
    return shutil.copytree(SHARDED / save, tmp_path / Path(save).name)


def verdict_of(folder: Path, *options: str) -> Output:
    return run_inside("verify", folder, *options, "--json")


def is_refused(verdict: Output) -> bool:
    """Whether it does not open, so that nothing can be taken from it, and ``verify`` fails."""
    answer = verdict.json
    is_open = isinstance(answer, dict) and answer.get("format")  # a list is of files without a save
    return not is_open and verdict.exit_code in {1, 2}


def findings(verdict: Output) -> set[tuple[str, str]]:
    """Rules and messages; CK125 only where it fails what asks for a whole save."""
    found = {(each["rule"], each["message"]) for each in verdict.json["findings"]}
    return {each for each in found if each[0] != "CK125" or verdict.exit_code == 1}


def warnings(verdict: Output) -> set[tuple[str, str]]:
    """Rules and messages of what is more than a remark."""
    found = verdict.json["findings"]
    return {(each["rule"], each["message"]) for each in found if each["severity"] != "info"}


@cache
def usual(save: str, *options: str) -> Output:
    """What is said of the whole save, which is asked once."""
    return verdict_of(SHARDED / save, *options)


def is_harmless(folder: Path, save: str) -> bool:
    """Whether nothing changed: the files of the ranks hold the same."""
    return run_inside("diff", SHARDED / save, folder).exit_code == 0


def is_refused_or_told(folder: Path, save: str) -> bool:
    """Whether ``verify`` says what it does not say of the whole save, or that nobody knows it."""
    verdict = verdict_of(folder, "--require", "intact")
    if is_refused(verdict):
        return True
    found = findings(verdict)
    rules = {rule for rule, _ in found}
    new = {rule for rule, _ in found - findings(usual(save, "--require", "intact"))}
    return bool(new & {"CK108", "CK121"} or rules & {"CK114", "CK125"})


def is_told_of_step(folder: Path, save: str) -> bool:
    """Whether it is refused, or ``verify`` warns of what it does not say of the whole save."""
    verdict = verdict_of(folder)
    return is_refused(verdict) or bool(warnings(verdict) - warnings(usual(save)))


def test_there_are_enough_saves():
    """All kinds, and none is opened that is not whole."""
    assert len(SAVES) >= 30
    for save in SAVES:
        open_checkpoint(save).close()


@pytest.mark.parametrize(("save", "name"), one_in(2, FILES))
def test_without_a_file_it_is_refused_or_told(save, name, tmp_path):
    folder = copied(save, tmp_path)
    (folder / name).unlink()
    assert is_refused_or_told(folder, save) or is_harmless(folder, save)


@pytest.mark.parametrize(("save", "name"), one_in(2, FILES))
def test_a_file_that_breaks_off_is_refused(save, name, tmp_path):
    folder = copied(save, tmp_path)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    assert is_refused(verdict_of(folder))


@pytest.mark.parametrize(("save", "name"), one_in(2, FILES, 1))
def test_a_copy_under_the_next_number_is_refused_or_told(save, name, tmp_path):
    """In the place of the next rank's file, or as one more."""
    folder = copied(save, tmp_path)
    number = NUMBER.search(name)
    after = f"{int(number[0]) + 1:0{len(number[0])}d}"
    other = name[: number.start()] + after + name[number.end() :]
    shutil.copy(folder / name, folder / other)
    assert is_refused_or_told(folder, save) or is_harmless(folder, save)


def alike(save: Path) -> Iterator[list[str]]:
    """The names that differ in their numbers alone, of two files or more."""
    groups: dict[str, list[str]] = {}
    for name in numbered(save):
        groups.setdefault(NUMBER.sub("#", name), []).append(name)
    return (names for names in groups.values() if len(names) > 1)


PAIRS = [(str(save.relative_to(SHARDED)), *names[:2]) for save in SAVES for names in alike(save)]


@pytest.mark.parametrize(("save", "one", "other"), one_in(2, PAIRS))
def test_two_files_that_have_each_others_names_are_refused_or_told(save, one, other, tmp_path):
    folder = copied(save, tmp_path)
    data = (folder / one).read_bytes()
    (folder / one).write_bytes((folder / other).read_bytes())
    (folder / other).write_bytes(data)
    assert is_refused_or_told(folder, save) or is_harmless(folder, save)


# Files that neither count a step nor hold a copy of what another file has, by save.
SILENT = {
    "dcp_safetensors/*": "parts of weights and their offsets",
    "engines/accelerate_fsdp/checkpoint_0/pytorch_model_fsdp_0": "chunks of weights",
    "engines/lightning/epoch=1-step=4.ckpt/__0_0.distcp": "the rank without the optimizer's steps",
    "folders/shards/*": "an index has names and sizes",
    "rank_ema/dcp": "chunks of weights",
    "rank_ema/files/model_ema_rank_*": "parts of EMA weights",
    "rank_ema/local": "slices, which are refused whatever they are",
    "ranks/columns": "parts of weights",
    "ranks/mesh": "parts of weights",
    "zero/stage3_one": "one rank, whose weights are in the optimizer's file alone",
}


def is_silent(save: str, name: str) -> bool:
    return any(fnmatch(f"{save}/{name}", f"{pattern}*") for pattern in SILENT)


@pytest.mark.parametrize(("save", "name"), one_in(2, FILES))
def test_a_file_of_another_step_is_refused_or_told(save, name, tmp_path):
    folder = copied(save, tmp_path)
    age(folder / name, folder)
    if not is_told_of_step(folder, save) and not is_harmless(folder, save):
        assert is_silent(save, name)


LONE = ("rank_ema/local/*",)  # refused whatever it is
MIXED = [
    (save, name)
    for save, name in FILES
    if is_silent(save, name) and not any(fnmatch(f"{save}/{name}", lone) for lone in LONE)
]


@pytest.mark.parametrize(("save", "name"), MIXED)
def test_what_is_silent_is_told_by_the_time_of_the_file(save, name, tmp_path):
    folder = copied(save, tmp_path)
    age(folder / name, folder)
    for path in folder.iterdir():
        os.utime(path, (YEAR_2024,) * 2)
    found = findings(verdict_of(folder, "--require", "intact"))
    assert "CK530" not in {rule for rule, _ in found}
    os.utime(folder / name, (YEAR_2024 - HOUR,) * 2)
    assert is_told_of_step(folder, save) or is_harmless(folder, save)


def test_a_pause_before_a_small_file_counts_as_well_as_one_before_a_large_file():
    small, large = File(4000, 10, "other"), File(9010, 5_000_000_000, "large")
    parts = _apart([File(0, 10, "a"), small, File(4010, 10, "b"), large])
    assert [[file.name for file in part] for part in parts] == [["a"], ["other", "b", "large"]]


@pytest.mark.parametrize("pattern", SILENT)
def test_what_is_silent_is_so(pattern, tmp_path):
    """So that no row stays when its files are told one day."""
    rows = [(s, n) for s, n in FILES if fnmatch(f"{s}/{n}", f"{pattern}*")]
    for number, (save, name) in enumerate(rows):
        folder = shutil.copytree(SHARDED / save, tmp_path / str(number) / Path(save).name)
        age(folder / name, folder)
        if not is_told_of_step(folder, save):
            return
    pytest.fail("every file is refused or told")
