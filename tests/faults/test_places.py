"""Odd places: what stands around the output, whose it is, what it is called."""

from __future__ import annotations

import os
import shutil
import stat
import struct
from pathlib import Path

import pytest

from helpers.making import average_of, save, weights
from helpers.paths import contents
from helpers.tensors import assert_same_tensors, load

NOBODY = 65534
IS_ROOT = os.geteuid() == 0


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "last.ckpt", weights())


@pytest.fixture
def raw(path):
    return path.read_bytes()


@pytest.fixture
def promote(ckptool):
    """Promote in place."""

    def run(path, *args):
        return ckptool("promote-ema", path, "--in-place", *args)

    return run


def assert_promoted(path):
    assert_same_tensors(load(path)["state_dict"], average_of(weights()))


def assert_refused(done, said):
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr


# -------------------------------------------------------------------------------- without the right


@pytest.fixture
def commons(stage):
    """A folder that everybody may look into, with a checkpoint of root's."""
    if not IS_ROOT:
        pytest.skip("only root can become somebody without rights")
    folder = stage.folder / "commons"
    folder.mkdir()
    folder.joinpath("last.ckpt").write_bytes(stage.inputs["last.ckpt"])
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def as_nobody(stage, commons):
    """Run a command in that folder without any rights, and with those of a group."""

    def run(*args, group=NOBODY):
        return stage.driver(commons, args, user=[NOBODY, group])

    return run


@pytest.mark.parametrize(
    "args",
    [
        ("promote-ema", "last.ckpt", "--in-place"),
        ("promote-ema", "last.ckpt", "--in-place", "--backup", "--force"),
        ("promote-ema", "last.ckpt", "-o", "out.ckpt"),
        ("extract-ema", "last.ckpt"),
    ],
)
def test_a_folder_in_which_nothing_may_be_written_stays_as_it_is(args, commons, as_nobody):
    (commons / "last.ckpt").chmod(0o666)
    commons.chmod(0o555)
    before = contents(commons)
    done = as_nobody(*args)
    assert done.code == 2
    assert "permission denied" in done.stderr
    assert contents(commons) == before


def test_a_file_of_somebody_else_is_not_replaced(commons, as_nobody):
    (commons / "last.ckpt").chmod(0o644)
    commons.chmod(0o777)
    before = contents(commons)
    done = as_nobody("promote-ema", "last.ckpt", "--in-place")
    assert done.code == 2
    assert "read-only" in done.stderr
    assert contents(commons) == before


@pytest.mark.parametrize(
    "args",
    [
        ("promote-ema", "last.ckpt", "--in-place"),
        ("promote-ema", "last.ckpt", "-o", "out.pt", "--force"),
        ("extract-ema", "last.ckpt", "-o", "out.pt", "--force"),
    ],
)
def test_what_a_sticky_folder_protects_is_kept(args, commons, as_nobody):
    """As in /tmp: files of others may be written to, but not replaced."""
    (commons / "out.pt").write_bytes(b"theirs")
    for path in commons.iterdir():
        path.chmod(0o666)
    commons.chmod(0o1777)
    before = contents(commons)
    done = as_nobody(*args)
    assert done.code == 2
    assert "Operation not permitted" in done.stderr
    assert contents(commons) == before


def test_a_read_only_file_is_replaced_only_with_force(path, raw, promote):
    path.chmod(0o444)
    assert_refused(promote(path), "read-only")
    assert path.read_bytes() == raw
    assert promote(path, "--force").exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert_promoted(path)


# -------------------------------------------------------------------------------------- other names


@pytest.fixture
def link(path, tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    link = folder / "latest.ckpt"
    link.symlink_to("../last.ckpt")
    return link


def test_a_link_is_written_through_and_stays(link, path, promote):
    assert promote(link).exit_code == 0
    assert str(link.readlink()) == "../last.ckpt"
    assert not path.is_symlink()
    assert_promoted(path)


def test_the_backup_of_a_link_is_the_file_behind_it(link, path, raw, promote):
    assert promote(link, "--backup").exit_code == 0
    backup = link.with_name("latest.ckpt.bak")
    assert not backup.is_symlink()
    assert backup.read_bytes() == raw
    assert_promoted(path)


def test_a_link_to_nothing_is_created_where_it_points(path, tmp_path, ckptool):
    (tmp_path / "real").mkdir()
    link = tmp_path / "out.ckpt"
    link.symlink_to("real/out.ckpt")
    assert ckptool("promote-ema", path, "-o", link).exit_code == 0
    assert link.is_symlink()
    assert_promoted(tmp_path / "real" / "out.ckpt")
    assert list((tmp_path / "real").iterdir()) == [tmp_path / "real" / "out.ckpt"]


def test_a_link_to_nothing_has_nothing_to_promote(tmp_path, promote):
    link = tmp_path / "last.ckpt"
    link.symlink_to("gone.ckpt")
    assert_refused(promote(link), "no such file")
    assert list(tmp_path.iterdir()) == [link]


def test_other_names_of_a_file_are_told_and_kept(path, raw, promote, tmp_path):
    other = tmp_path / "epoch=7.ckpt"
    other.hardlink_to(path)
    before = contents(tmp_path)
    assert_refused(promote(path), "1 other names (hard links)")
    assert contents(tmp_path) == before
    assert promote(path, "--force").exit_code == 0
    assert other.read_bytes() == raw
    assert_promoted(path)


def test_an_output_that_is_replaced_is_so_under_its_own_name_alone(path, tmp_path, ckptool):
    output, other = tmp_path / "out.ckpt", tmp_path / "other.ckpt"
    output.write_bytes(b"old")
    other.hardlink_to(output)
    assert ckptool("promote-ema", path, "-o", output, "--force").exit_code == 0
    assert other.read_bytes() == b"old"
    assert_promoted(output)


def test_an_input_is_not_the_output_under_another_name(path, raw, tmp_path, ckptool):
    other = tmp_path / "other.ckpt"
    other.hardlink_to(path)
    done = ckptool("promote-ema", path, "-o", other, "--force")
    assert_refused(done, "the input itself")
    assert path.read_bytes() == raw


# ------------------------------------------------------------------------------------ other systems


@pytest.fixture
def elsewhere(tmp_path):
    """A folder on another file system."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    folder = memory / f"ckptool-elsewhere-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("command", "name"),
    [("promote-ema", "out.ckpt"), ("extract-ema", "out.pt"), ("extract-ema", "out.safetensors")],
)
def test_an_output_on_another_file_system_is_the_same(command, name, path, elsewhere, ckptool,
                                                      monkeypatch):  # fmt: skip
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    for folder in (path.parent, elsewhere):
        assert ckptool(command, path, "-o", folder / name).exit_code == 0
    assert (elsewhere / name).read_bytes() == (path.parent / name).read_bytes()
    assert list(elsewhere.iterdir()) == [elsewhere / name]


def test_a_file_behind_a_link_to_another_file_system_is_replaced_there(
    tmp_path, elsewhere, promote
):
    path = save(elsewhere / "last.ckpt", weights())
    link = tmp_path / "last.ckpt"
    link.symlink_to(path)
    assert promote(link).exit_code == 0
    assert_promoted(path)
    assert list(elsewhere.iterdir()) == [path]


def test_no_backup_on_another_file_system_is_told_beforehand(tmp_path, elsewhere, promote):
    path = save(elsewhere / "last.ckpt", weights())
    link = tmp_path / "last.ckpt"
    link.symlink_to(path)
    before = contents(elsewhere)
    assert_refused(promote(link, "--backup", "--dry-run"), "no backup can be made there")
    assert contents(elsewhere) == before
    assert list(tmp_path.iterdir()) == [link]


# -------------------------------------------------------------------------------- what it is called


NAMES = {
    "the longest": "n" * 250 + ".ckpt",
    "the longest, of wide characters": "\N{GREEK SMALL LETTER OMEGA}" * 125 + ".ckpt",
    "not UTF-8": "\udcff\udcfe.ckpt",
    "a line break": "a\nb.ckpt",
    "an option": "--in-place.ckpt",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_file_of_any_name_is_replaced(name, path, promote, tmp_path):
    odd = path.rename(tmp_path / name)
    done = promote(odd, "--json")
    assert done.exit_code == 0, done
    assert done.json["in_place"]
    assert list(tmp_path.iterdir()) == [odd]
    assert_promoted(odd)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_an_output_of_any_name_is_written(name, path, ckptool, tmp_path):
    done = ckptool("promote-ema", path, "-o", tmp_path / name)
    assert done.exit_code == 0, done
    assert set(tmp_path.iterdir()) == {tmp_path / name, path}


def test_a_name_without_room_for_its_backup_is_refused(path, raw, promote, tmp_path):
    odd = path.rename(tmp_path / NAMES["the longest"])
    assert_refused(promote(odd, "--backup", "--dry-run"), "too long")
    assert odd.read_bytes() == raw
    assert list(tmp_path.iterdir()) == [odd]


# -------------------------------------------------------------------------------------- whose it is


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o664, 0o2664, 0o4755])
def test_the_mode_stays(bits, path, promote):
    path.chmod(bits)
    before = os.umask(0o077)
    try:
        assert promote(path).exit_code == 0
    finally:
        os.umask(before)
    assert mode(path) == bits
    assert_promoted(path)


@pytest.mark.skipif(not IS_ROOT, reason="only root can give files away")
def test_owner_and_group_stay(path, promote):
    os.chown(path, 1234, 5678)
    path.chmod(0o2640)
    assert promote(path).exit_code == 0
    after = path.stat()
    assert (after.st_uid, after.st_gid, mode(path)) == (1234, 5678, 0o2640)


def test_the_group_stays_where_the_owner_cannot(commons, as_nobody):
    """A file of a colleague, in the folder of a group."""
    path = commons / "last.ckpt"
    os.chown(path, 1234, 5678)
    path.chmod(0o664)
    commons.chmod(0o777)
    assert as_nobody("promote-ema", "last.ckpt", "--in-place", group=5678).code == 0
    after = path.stat()
    assert (after.st_uid, after.st_gid, mode(path)) == (NOBODY, 5678, 0o664)


@pytest.mark.skipif(not IS_ROOT, reason="only root can give files away")
def test_a_new_file_has_the_group_of_a_folder_that_sets_it(path, tmp_path, ckptool):
    folder = tmp_path / "shared"
    folder.mkdir()
    os.chown(folder, -1, 5678)
    folder.chmod(0o2775)
    assert ckptool("promote-ema", path, "-o", folder / "out.ckpt").exit_code == 0
    assert (folder / "out.ckpt").stat().st_gid == 5678


def set_attribute(path, name, value):
    try:
        os.setxattr(path, name, value)
    except (OSError, AttributeError):
        pytest.skip(f"there is no {name} here")


def test_attributes_stay(path, promote):
    set_attribute(path, "user.run", b"7 of the third series")
    assert promote(path).exit_code == 0
    assert os.getxattr(path, "user.run") == b"7 of the third series"


def test_an_access_list_stays(path, promote):
    """What setfacl -m u:1234:r sets; linux/posix_acl_xattr.h."""
    entries = [(1, 6, -1), (2, 4, 1234), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
    packed = b"".join(struct.pack("<HHi", *entry) for entry in entries)
    value = struct.pack("<I", 2) + packed
    set_attribute(path, "system.posix_acl_access", value)
    before = mode(path)
    assert promote(path).exit_code == 0
    assert os.getxattr(path, "system.posix_acl_access") == value
    assert mode(path) == before
