"""Several files that appear together, split and indexed as Hugging Face's library does it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.errors import OutputError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.tensors.casting import Casting
from ckptool.writers import shards
from ckptool.writers.shards import index_of, parse_size, plan_shards, tidy, whole_files
from helpers.output import environment
from helpers.paths import contents

OUTPUT = Path("model.safetensors")


def planned(tensors, folder, limit):
    """The shards of ``tensors``, and their index."""
    torch.save(tensors, folder / "in.pt")
    with open_checkpoint(folder / "in.pt") as checkpoint:
        found = plan_shards(OUTPUT, checkpoint.tree, Casting(), limit)
    return found, json.loads(index_of(found, Casting(), {}))


def names_of(found):
    return [list(shard.tensors) for shard in found]


@pytest.mark.parametrize(
    ("sizes", "limit", "groups"),
    [
        ([6, 6, 2, 6, 2, 2], 10, [[0], [1, 2], [3, 4, 5]]),  # the example in the library
        ([5, 5], 10, [[0, 1]]),
        ([5, 6], 10, [[0], [1]]),
        ([1, 20, 1], 10, [[1], [0, 2]]),  # one that is too large stands alone, and comes first
        ([20, 30], 10, [[0], [1]]),
        ([0, 0], 10, [[0, 1]]),
    ],
)
def test_tensors_are_split_in_their_order(sizes, limit, groups, tmp_path):
    tensors = {str(i): torch.ones(size, dtype=torch.uint8) for i, size in enumerate(sizes)}
    found, _ = planned(tensors, tmp_path, limit)
    assert names_of(found) == [[str(i) for i in group] for group in groups]


def test_nothing_at_all_is_one_file(tmp_path):
    found, _ = planned({}, tmp_path, 10)
    assert [shard.path for shard in found] == [OUTPUT]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 40))
def test_split_and_index_are_those_of_hugging_face(tmp_path_factory, sizes, limit):
    hub = pytest.importorskip("huggingface_hub")
    folder = tmp_path_factory.mktemp("hub")
    tensors = {f"t{i}": torch.ones(size, dtype=torch.uint8) for i, size in enumerate(sizes)}
    found, index = planned(tensors, folder, limit)
    theirs = hub.split_torch_state_dict_into_shards(tensors, max_shard_size=limit)
    assert {s.path.name: list(s.tensors) for s in found} == theirs.filename_to_tensors
    assert index["metadata"] == theirs.metadata
    assert index["weight_map"] == theirs.tensor_to_filename


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("1.5KB", 1500), ("2GiB", 2**31), ("7", 7)],
)
def test_sizes_are_decimal_unless_they_say_otherwise(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "GB", "-5GB", "0GB", "5XB", "5 G B", "1e3GB", "0.1B", "9" * 400]
)
def test_other_texts_are_no_sizes(text):
    with pytest.raises(UsageError):
        parse_size(text)


# -------------------------------------------------------------------------------------- whole files


@pytest.fixture
def targets(tmp_path):
    return [tmp_path / name for name in ("one", "two", "index")]


def write_all(targets, *, force=False):
    with whole_files(targets, force=force) as files:
        for file, target in zip(files, targets, strict=True):
            file.write(f"new {target.name}".encode())


def test_all_appear_under_their_names(targets):
    write_all(targets)
    assert [target.read_text() for target in targets] == ["new one", "new two", "new index"]


def test_the_last_is_put_in_place_last(targets, monkeypatch):
    seen = []
    link = os.link
    monkeypatch.setattr(os, "link", lambda a, b: (seen.append(Path(b).name), link(a, b)))
    write_all(targets)
    assert seen == ["one", "two", "index"]


def test_nothing_is_left_when_the_block_fails(targets, tmp_path):
    with pytest.raises(ZeroDivisionError), whole_files(targets, force=False) as files:
        files[0].write(bytes(1 // 0))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("failing", range(3))
def test_nothing_is_left_when_one_cannot_be_put_in_place(failing, targets, tmp_path, monkeypatch):
    calls = iter(range(9))
    link = os.link

    def fails(a, b):
        if next(calls) == failing:
            raise OSError(errno.EIO, "Input/output error")
        link(a, b)

    def cannot(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", fails)
    monkeypatch.setattr(Path, "rename", cannot)  # the way out on file systems without links
    with pytest.raises(OutputError):
        write_all(targets)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("failing", range(3))
def test_nothing_is_put_in_place_before_all_is_on_the_disk(failing, targets, tmp_path, monkeypatch):
    calls, fsync = iter(range(99)), os.fsync

    def fails(fd):
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(fd)

    for target in targets:
        target.write_text("old")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OutputError):
        write_all(targets, force=True)
    assert {target.read_text() for target in targets} == {"old"}


def test_one_that_appears_meanwhile_is_kept_and_the_others_go(targets, tmp_path):
    with pytest.raises(OutputError), whole_files(targets, force=False):
        targets[1].write_text("mine")
    assert list(tmp_path.iterdir()) == [targets[1]]
    assert targets[1].read_text() == "mine"


# Replaces a set by a new one; what comes between is done before the n-th rename or link.
REPLACING = """
import os, pathlib, signal, sys
from ckptool.process.signals import end_cleanly
from ckptool.writers.shards import whole_files

folder, force = pathlib.Path(sys.argv[1]), sys.argv[2] == "force"
at, blow = int(sys.argv[3]), sys.argv[4]
end_cleanly()
steps = iter(range(99))


def disturbed(step):
    def taken(*args):
        if next(steps) == at:
            os._exit(9) if blow == "kill" else os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    return taken


os.link, pathlib.Path.rename = disturbed(os.link), disturbed(pathlib.Path.rename)
with whole_files([folder / name for name in ("one", "two", "index")], force=force) as files:
    for file in files:
        file.write(b"new")
    if at < 0:
        os.kill(os.getpid(), signal.SIGTERM)
"""


def replace_in_a_process(folder, force, at, blow) -> int:
    command = [sys.executable, "-c", REPLACING, str(folder), force, str(at), blow]
    return subprocess.run(command, env=environment(), check=False, timeout=60).returncode


@pytest.mark.parametrize("at", range(3))
def test_a_killed_replacement_leaves_no_index_beside_a_mixture(at, targets, tmp_path):
    for target in targets:
        target.write_text("old")
    assert replace_in_a_process(tmp_path, "force", at, "kill") == 9
    assert not targets[2].exists()
    assert replace_in_a_process(tmp_path, "force", 99, "kill") == 0  # the next run needs no repair
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("one", "two", "index"), "new"
    )


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("force", ["force", "careful"])
def test_a_signal_waits_until_the_set_is_whole(force, at, targets, tmp_path):
    assert replace_in_a_process(tmp_path, force, at, "signal") == 130
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("one", "two", "index"), "new"
    )


@pytest.mark.parametrize("force", ["force", "careful"])
def test_a_signal_before_leaves_nothing(force, tmp_path):
    assert replace_in_a_process(tmp_path, force, -1, "signal") == 130
    assert contents(tmp_path) == {}


def test_a_set_is_replaced(targets):
    for target in targets:
        target.write_text("old")
    write_all(targets, force=True)
    assert [target.read_text() for target in targets] == ["new one", "new two", "new index"]


def test_one_file_alone_keeps_its_old_content_until_the_end(targets):
    targets[0].write_text("old")
    with whole_files(targets[:1], force=True) as (file,):
        file.write(b"new")
        assert targets[0].read_text() == "old"
    assert targets[0].read_text() == "new"


def test_the_folder_name_is_what_hugging_face_looks_for():
    constants = pytest.importorskip("huggingface_hub.constants")
    assert constants.SAFETENSORS_SINGLE_FILE == shards.FOLDER_NAME
    assert constants.SAFETENSORS_INDEX_FILE == shards.FOLDER_NAME + shards.INDEX


# --------------------------------------------------------------------------------------- begun sets


@pytest.fixture
def begun(targets, tmp_path):
    """As a run leaves it that is killed before the index is put in place."""
    assert replace_in_a_process(tmp_path, "careful", 2, "kill") == 9
    assert not targets[2].exists()
    assert all(target.read_text() == "new" for target in targets[:2])
    return targets


def test_shards_of_a_killed_run_stay_until_they_are_replaced_by_force(begun, tmp_path):
    """Nothing proves whose they are."""
    with pytest.raises(OutputError, match="exists"):
        write_all(begun)
    assert [target.read_text() for target in begun[:2]] == ["new", "new"]
    tidy(begun[2], begun)
    write_all(begun, force=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        name: f"new {name}" for name in ("one", "two", "index")
    }


def test_one_that_is_replaced_meanwhile_is_not_taken_back(targets, tmp_path, monkeypatch):
    """A set that fails takes back its own files alone."""
    link = os.link

    def meddling(a, b):
        if Path(b) == targets[2]:
            targets[0].unlink()
            targets[0].write_text("mine")
            raise FileExistsError(errno.EEXIST, "File exists")
        link(a, b)

    monkeypatch.setattr(os, "link", meddling)
    with pytest.raises(OutputError):
        write_all(targets)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "mine"}


def test_a_replaced_set_keeps_its_modes(targets):
    """The index too, although the old one is removed before the new one is put in place."""
    for target in targets:
        target.write_text("old")
        target.chmod(0o600)
    write_all(targets, force=True)
    assert {target.stat().st_mode & 0o777 for target in targets} == {0o600}


OLD_JOURNALS = {
    "no journal": "null", "no names": '{"begun": 3}',
    "a name that no file can have": '{"begun": {"a\\u0000": [1, 2, 3, 4]}}',
    "a file of the user": '{"begun": {"mine.txt": IDENTITY}}',
}  # fmt: skip


@pytest.mark.parametrize("content", OLD_JOURNALS.values(), ids=OLD_JOURNALS)
def test_a_file_that_lists_others_has_none_of_them_removed(content, ckptool, fixtures, tmp_path):
    """Version 0.1.0 kept such a journal; anybody can put one into a download."""
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    status = mine.stat()
    identity = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]
    journal = tmp_path / ".out.safetensors.index.json.begun.ckptool.partial"
    journal.write_text(content.replace("IDENTITY", json.dumps(identity)))
    source, output = fixtures / "ema" / "has_ema" / "late.pt", tmp_path / "out.safetensors"
    done = ckptool("extract-ema", source, "-o", output, "--max-shard-size", "100B")
    assert (done.exit_code, done.stderr) == (0, "")
    assert mine.read_text() == "precious"


@pytest.mark.parametrize("link", [None, "hard", "symbolic"])
def test_an_input_that_is_called_like_a_partial_file_stays(link, ckptool, fixtures, tmp_path):
    """Also one of shards that this run does not write."""
    source = tmp_path / ".out-00001-of-00099.safetensors.ckptool.partial"
    source.write_bytes((fixtures / "ema" / "has_ema" / "late.pt").read_bytes())
    operand = source if link is None else tmp_path / "link.pt"
    if link == "hard":
        operand.hardlink_to(source)
    elif link:
        operand.symlink_to(source)
    output = tmp_path / "out.safetensors"
    done = ckptool("extract-ema", operand, "-o", output, "--max-shard-size", "100B")
    assert done.exit_code == 0
    assert source.exists()


@pytest.mark.parametrize("more", [(), ("--max-shard-size", "1KB")])
def test_links_in_a_circle_are_an_error(more, ckptool, fixtures, tmp_path):
    circle = tmp_path / "out.safetensors"
    circle.symlink_to(circle)
    done = ckptool("extract-ema", fixtures / "ema" / "has_ema" / "late.pt", "-o", circle, *more)
    assert done.exit_code == 2
    assert "a bug" not in done.stderr


def test_what_is_on_its_way_to_shards_of_another_size_goes(tmp_path):
    index = tmp_path / "m.safetensors.index.json"
    gone = [".m-00003-of-00007.safetensors", ".m.safetensors.index.json"]
    kept = [".n-00003-of-00007.safetensors", ".m-00003.safetensors", ".m.safetensors"]
    for name in (*gone, *kept):
        (tmp_path / f"{name}.ckptool.partial").write_text("")
    with (tmp_path / ".m-00004-of-00007.safetensors.ckptool.partial").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        tidy(index, [])
    left = sorted(path.name.removesuffix(".ckptool.partial") for path in tmp_path.iterdir())
    assert left == sorted([*kept, ".m-00004-of-00007.safetensors"])
