"""Whatever call fails: one line says so, the original is intact and nothing is left behind.

Or the run goes on without what failed (a reflink, advice, the owner) and does all that was asked.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from scenes import BY_NAME, SCENES

from helpers.output import environment

NUMBERS = (
    errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT, errno.EPERM, errno.EROFS, errno.ENOSYS,
    errno.EINTR,
)  # fmt: skip
OFTEN = 8  # calls of one name in a run, after which the rest are like those before
# Where an error means that the finished file's old name cannot be removed: the next run does it.
REMOVING = {"unlink", "fstat", "stat", "lstat"}

WRITING = ("open", "pwrite", "copy_file_range", "posix_fallocate", "fsync", "ftruncate", "rename")
HELPING = ("ioctl", "flock", "posix_fadvise", "fchmod", "fchown", "statvfs", "link", "listxattr")


def assert_error(done):
    assert done.code == 2, done
    assert done.stderr.startswith("error: "), done
    assert "Traceback" not in done.stderr
    assert "a bug" not in done.stderr, done


def assert_refused_or_done(stage, scene, done, call):
    state = stage.look(scene)
    if state == "judged":  # what could not be read is an answer of verify, which its report has
        assert done.code in {1, 2}, (call, done)
        return
    if done.code != 0:
        assert_error(done)
        # An old index has to go before the first of its shards is replaced.
        is_begun = state == "begun" and "--force" in scene.args and call in {"rename", "unlink"}
        assert state == "before" or is_begun, (call, done)
        return
    assert state == "after" or (state == "after + partial" and call in REMOVING), (call, state)
    stage.assert_next_run_works(scene)


# ---------------------------------------------------------------------------------- at chosen calls


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_an_error_at_any_call_costs_nothing(scene, stage):
    seen: Counter[str] = Counter()
    for at, name in enumerate(stage.calls(scene), 1):
        seen[name] += 1
        if seen[name] <= OFTEN:
            number = NUMBERS[at % len(NUMBERS)]
            done = stage.play(scene, at=at, errno=number)
            assert_refused_or_done(stage, scene, done, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WRITING, *HELPING])
@pytest.mark.parametrize("scene", ["in-place-backup", "promote"])
def test_an_error_that_stays_costs_nothing(scene, name, stage):
    scene = BY_NAME[scene]
    for number in NUMBERS:
        done = stage.play(scene, name=name, errno=number)
        assert_refused_or_done(stage, scene, done, name)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EFBIG], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["pwrite", "fsync", "rename"])
def test_an_error_is_told_in_a_line(name, number, stage):
    scene = BY_NAME["in-place-backup"]
    done = stage.play(scene, name=name, errno=number)
    assert_error(done)
    assert stage.look(scene) == "before"


@pytest.mark.parametrize("name", ["ioctl", "posix_fadvise", "fchmod", "fchown", "listxattr"])
def test_what_a_file_system_cannot_do_is_done_without(name, stage):
    scene = BY_NAME["promote-force"]
    for number in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
        assert stage.play(scene, name=name, errno=number).code == 0
        assert stage.look(scene) == "after"


@pytest.mark.parametrize("name", ["copy_file_range", "posix_fallocate"])
def test_a_kernel_that_cannot_copy_is_done_without(name, stage):
    scene = BY_NAME["in-place"]
    for number in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EIO, errno.EINVAL):
        assert stage.play(scene, name=name, errno=number).code == 0
        assert stage.look(scene) == "after"


# ------------------------------------------------------------------------------------ no room there


@pytest.mark.parametrize("scene", ["in-place", "in-place-safetensors", "promote"])
def test_free_space_is_looked_at_before_anything_is_written(scene, stage):
    scene = BY_NAME[scene]
    done = stage.play(scene, free=1000)
    assert_error(done)
    assert "1,000 are free there; nothing was written" in done.stderr
    assert not {"pwrite", "copy_file_range", "sendfile", "posix_fallocate"} & set(done.calls)
    assert stage.look(scene) == "before"


@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_a_limit_on_the_size_of_files_is_an_error(scene, stage):
    done = stage.play(scene, file_size=8192)
    assert_error(done)
    assert "larger than the file system or a limit allows" in done.stderr
    assert stage.look(scene) == "before"


# In a namespace of its own: a file system with room for the input and little else.
TINY = """
mount -t tmpfs -o size=$1k none "$2" 2>/dev/null || exit 77
cp "$3" "$2" && cd "$2" && shift 3
"$@"
code=$?
echo "left:" *
find . -name ".?*"
exit $code
"""


@pytest.fixture
def on_tiny_disk(stage, tmp_path):
    """Run a command on a full disk; gives its exit code and what it said."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare to mount a small file system with")
    mountpoint = tmp_path / "tiny"
    mountpoint.mkdir()

    def run(scene):
        source = tmp_path / scene.input
        source.write_bytes(stage.inputs[scene.input])
        room = source.stat().st_size // 4096 * 4 + 12  # KiB: two pages more than the input has
        command = [sys.executable, "-m", "ckptool", *scene.args]
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", TINY, "sh", str(room), mountpoint, source, *command],
            env=environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode == 77 or "unshare:" in done.stderr:
            pytest.skip("nothing may be mounted here")
        return done

    return run


@pytest.mark.parametrize("scene", ["in-place", "promote", "extract-torch", "extract-safetensors"])
def test_a_full_disk_is_told_and_left_as_it_was(scene, on_tiny_disk):
    scene = BY_NAME[scene]
    done = on_tiny_disk(scene)
    assert done.returncode == 2, done
    assert "nothing was written" in done.stderr
    assert done.stdout == f"left: {scene.input}\n"
