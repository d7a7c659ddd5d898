"""A file stands whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest
import torch

from ckptool.errors import OutputError
from ckptool.writers.files import beside
from ckptool.writers.files import partial as partial_files
from ckptool.writers.files import whole_file as whole_files
from ckptool.writers.files.destination import check_output
from ckptool.writers.files.whole_file import whole_file
from helpers.conformance import open_files
from helpers.making import average_of, save, weights
from helpers.output import environment
from helpers.paths import FIXTURES, contents
from helpers.tensors import assert_same_tensors, load

DIFFUSERS = FIXTURES / "ema" / "diffusers" / "checkpoint-12"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out.pt"


@pytest.fixture
def partial(target):
    return target.with_name(".out.pt.ckptool.partial")


def write(target, data=b"new", *, force=False):
    with whole_file(target, force=force) as output:
        output.write(data)


# ---------------------------------------------------------------------------------------- it stands


def test_what_is_written_stands_when_the_block_ends(target, tmp_path):
    write(target, b"whole")
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]


@pytest.fixture
def reserved(monkeypatch):
    """The calls that reserve space in memory, in small steps."""
    calls = []
    monkeypatch.setattr(whole_files, "is_in_memory", lambda _fd: True)
    monkeypatch.setattr(whole_files, "STEP", 8)
    monkeypatch.setattr(whole_files, "MEANWHILE", 10)
    monkeypatch.setattr(os, "posix_fallocate", lambda *call: calls.append(call), raising=False)
    return calls


def wait_for_end(output):
    output._reserver.finish()


def test_space_in_memory_is_reserved_before_the_first_value(target, reserved):
    with whole_file(target, force=False) as output:
        output.write(b"head")
        output.skip(25)
        output.reserve_meanwhile(4, 29)
        wait_for_end(output)
        assert reserved == [(output.fd, 4, 10), (output.fd, 14, 10), (output.fd, 24, 5)]
        output.patch(b"v" * 25, 4)
    assert target.read_bytes() == b"head" + b"v" * 25


def test_no_more_space_is_reserved_once_values_are_written(target, reserved, monkeypatch):
    is_reserving, is_written = threading.Event(), threading.Event()

    def slow(*call):
        reserved.append(call)
        is_reserving.set()
        assert is_written.wait(60)

    monkeypatch.setattr(os, "posix_fallocate", slow)
    with whole_file(target, force=False) as output:
        output.reserve_meanwhile(0, 25)
        assert is_reserving.wait(60)
        output.patch(b"v" * 25, 0)
        is_written.set()
    assert len(reserved) == 1
    assert target.read_bytes() == b"v" * 25


def test_space_that_cannot_be_reserved_is_left_to_the_writing(target, reserved, monkeypatch):
    def full(*_call):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with whole_file(target, force=False) as output:
        output.reserve_meanwhile(0, 25)
        wait_for_end(output)
        output.patch(b"v" * 25, 0)
    assert target.read_bytes() == b"v" * 25


def fails_while_space_is_reserved(target, started):
    with whole_file(target, force=False) as output:
        output.reserve_meanwhile(0, 25)
        assert started.wait(60)
        raise OSError(errno.ENOSPC, "full")


def test_a_file_is_closed_after_space_was_reserved_in_it(target, reserved, monkeypatch):
    started, ended = threading.Event(), []

    def slow(fd, *_call):
        started.set()
        time.sleep(0.01)
        ended.append(os.fstat(fd).st_ino)  # fails if it is closed

    monkeypatch.setattr(os, "posix_fallocate", slow)
    with pytest.raises(OutputError):
        fails_while_space_is_reserved(target, started)
    assert len(ended) == 1
    assert not target.exists()


def interrupted_in_the_wait(target, monkeypatch, naps):
    may_end = threading.Event()
    monkeypatch.setattr(os, "posix_fallocate", lambda *_call: may_end.wait(60))
    with whole_file(target, force=False) as output:

        def nap(_seconds):
            naps.append(output.fd)
            may_end.set()
            if len(naps) == 1:
                output.close()  # as the handler of a signal does

        output.reserve_meanwhile(0, 25)
        monkeypatch.setattr(beside.time, "sleep", nap)
        raise OSError(errno.ENOSPC, "full")


def test_a_signal_during_the_wait_for_the_thread_waits_too(target, reserved, monkeypatch):
    """A lock that the interrupted wait held would be held forever."""
    naps = []
    with pytest.raises(OutputError):
        interrupted_in_the_wait(target, monkeypatch, naps)
    assert naps
    assert not target.exists()


def test_nobody_sees_it_before(target, partial):
    with whole_file(target, force=False) as output:
        output.write(b"half")
        assert not target.exists()
        assert partial.exists()
        output.write(b" and half")
    assert target.read_bytes() == b"half and half"


def test_nobody_else_may_read_it_before(target, partial):
    with whole_file(target, force=False):
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600


def test_the_old_file_stays_until_the_new_one_is_whole(target):
    target.write_bytes(b"old")
    with whole_file(target, force=True) as output:
        output.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"


def test_contents_are_on_disk_before_the_name_is(target, monkeypatch):
    order = []
    for module, name in ((os, "fsync"), (os, "link")):
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, real=real, name=name: (order.append(name), real(*a))
        )
    write(target)
    assert order == ["fsync", "link", "fsync"]  # the file, its name, the folder


def test_patches_go_where_they_belong(target):
    with whole_file(target, force=False) as output:
        output.write(b"0123456789")
        output.patch(b"ab", 3)
        output.write(b"!")
        assert output.read(2, 4) == b"2ab5"
    assert target.read_bytes() == b"012ab56789!"


# -------------------------------------------------------------------------------- it does not stand


def break_off(target, error, *, force=False):
    with whole_file(target, force=force) as output:
        output.write(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_an_error_leaves_nothing(error, target, tmp_path):
    with pytest.raises(error):
        break_off(target, error)
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_old_file(target, tmp_path):
    target.write_bytes(b"old")
    with pytest.raises(ValueError, match="broken"):
        break_off(target, ValueError("broken"), force=True)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "no space left on the device; nothing was written"),
        (errno.EDQUOT, "the disk quota is exhausted; nothing was written"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_an_error_of_the_disk_says_which(call, number, said, target, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OutputError) as caught:
        write(target)
    assert caught.value.message == said
    assert caught.value.path == target
    assert list(tmp_path.iterdir()) == []


def test_files_are_closed_after_an_error(target):
    before = open_files()
    with pytest.raises(ValueError, match="broken"):
        break_off(target, ValueError("broken"))
    assert open_files() <= before


# ------------------------------------------------------------------------------------ other writers


def test_an_abandoned_partial_file_is_replaced(target, partial, tmp_path):
    partial.write_bytes(b"of a run that was killed, and longer than what comes now")
    write(target, b"short")
    assert target.read_bytes() == b"short"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_another_run_is_writing_is_left_to_it(target, partial):
    partial.write_bytes(b"theirs")
    with partial.open("rb") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another run"):
            write(target)
    assert partial.read_bytes() == b"theirs"
    assert not target.exists()


def meddled(monkeypatch, module, name, meddle):
    """Let something happen just before the first call of a function."""
    real, first = getattr(module, name), iter([meddle])

    def call(*args, **kwargs):
        next(first, lambda: None)()
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, call)


def test_a_file_taken_for_abandoned_before_it_is_locked_is_made_anew(
    target, partial, tmp_path, monkeypatch
):
    meddled(monkeypatch, fcntl, "flock", partial.unlink)
    write(target)
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_another_run_locks_first_is_left_to_it(target, partial, monkeypatch):
    real, held = fcntl.flock, []

    def lock():
        held.append(os.open(partial, os.O_RDWR))
        real(held[0], fcntl.LOCK_EX)

    meddled(monkeypatch, fcntl, "flock", lock)
    with pytest.raises(OutputError, match="another run"):
        write(target)
    os.close(held[0])
    assert partial.exists()


def test_a_new_file_in_place_of_an_abandoned_one_is_not_removed(target, partial, monkeypatch):
    partial.write_bytes(b"abandoned")
    held = []

    def replace():
        partial.unlink()
        held.append(partial.open("xb"))
        fcntl.flock(held[0], fcntl.LOCK_EX)

    meddled(monkeypatch, fcntl, "flock", replace)
    with pytest.raises(OutputError, match="another run"):
        write(target)
    assert os.path.samestat(os.fstat(held[0].fileno()), partial.stat())
    held[0].close()


def test_an_abandoned_file_that_is_gone_meanwhile_does_not_matter(target, partial, monkeypatch):
    real = os.open

    def is_there(path, flags, *mode):
        monkeypatch.setattr(os, "open", real)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "open", is_there)
    write(target)
    assert target.read_bytes() == b"new"
    assert not partial.exists()


def test_somebody_who_removes_it_again_and_again_is_given_way(target, tmp_path, monkeypatch):
    monkeypatch.setattr(partial_files, "is_at", lambda path, _: path.unlink())
    before = open_files()
    with pytest.raises(OutputError, match="another run"):
        write(target)
    assert open_files() <= before
    assert list(tmp_path.iterdir()) == []


def replaced(target, partial, *, force, error=None):
    with whole_file(target, force=force) as output:
        output.write(b"ours")
        partial.unlink()
        partial.write_bytes(b"theirs")
        if error:
            raise error


@pytest.mark.parametrize("force", [False, True])
def test_the_file_of_another_run_is_not_put_in_place(force, target, partial):
    with pytest.raises(OutputError, match="another run"):
        replaced(target, partial, force=force)
    assert partial.read_bytes() == b"theirs"
    assert not target.exists()


def test_the_file_of_another_run_is_not_discarded(target, partial):
    with pytest.raises(ValueError, match="broken"):
        replaced(target, partial, force=False, error=ValueError("broken"))
    assert partial.read_bytes() == b"theirs"


def test_a_file_of_the_user_that_is_called_partial_is_kept(target):
    mine = target.with_name("out.pt.partial")
    mine.write_bytes(b"precious")
    write(target)
    assert mine.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["n" * 255, "\N{GREEK SMALL LETTER OMEGA}" * 127, "\udcff" * 255])
def test_the_longest_names_are_written(name, tmp_path):
    write(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def failing_locks(monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)


NO_LOCKS = [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK]


@pytest.mark.parametrize("number", NO_LOCKS)
def test_it_works_without_locks(number, target, partial, tmp_path, monkeypatch):
    failing_locks(monkeypatch, number)
    write(target)
    assert list(tmp_path.iterdir()) == [target]
    partial.write_bytes(b"whose?")
    with pytest.raises(OutputError, match="another run") as caught:
        write(target, force=True)
    assert str(partial) in caught.value.hint
    assert partial.read_bytes() == b"whose?"
    assert target.read_bytes() == b"new"


def test_a_lock_that_fails_leaves_nothing(target, tmp_path, monkeypatch):
    failing_locks(monkeypatch, errno.EIO)
    before = open_files()
    with pytest.raises(OutputError, match="Input/output error"):
        write(target)
    assert open_files() <= before
    assert list(tmp_path.iterdir()) == []


def test_two_runs_in_one_process_exclude_each_other(target):
    with whole_file(target, force=False) as output:
        output.write(b"first")
        with pytest.raises(OutputError, match="another run"):
            write(target, b"second")
    assert target.read_bytes() == b"first"


def overtaken(target, *, force):
    with whole_file(target, force=force) as output:
        output.write(b"ours")
        target.write_bytes(b"theirs")


def test_a_file_that_appears_meanwhile_is_kept(target, tmp_path):
    with pytest.raises(OutputError):
        overtaken(target, force=False)
    assert target.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_appears_meanwhile_is_replaced_with_force(target):
    overtaken(target, force=True)
    assert target.read_bytes() == b"ours"


@pytest.mark.parametrize("force", [False, True])
def test_it_works_without_hard_links(force, target, tmp_path, monkeypatch):
    def none(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    write(target, force=force)
    assert target.read_bytes() == b"new"
    if not force:
        with pytest.raises(OutputError, match="exists"):
            write(target, b"newer")
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_in_place_of_the_partial_file_is_not_followed(target, partial, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    partial.symlink_to(victim)
    with pytest.raises(OutputError):
        write(target)
    assert victim.read_bytes() == b"precious"
    assert not target.exists()


def test_a_pipe_in_place_of_the_partial_file_is_neither_waited_for_nor_removed(target, partial):
    os.mkfifo(partial)
    with pytest.raises(OutputError, match="no run of this user has made it"):
        write(target)
    assert partial.is_fifo()
    assert not target.exists()


def test_a_partial_file_of_another_user_is_told_and_left(target, partial, monkeypatch):
    partial.write_bytes(b"theirs")
    monkeypatch.setattr(os, "geteuid", lambda: partial.stat().st_uid + 1)
    with pytest.raises(OutputError, match="no run of this user has made it"):
        write(target, force=True)
    assert partial.read_bytes() == b"theirs"
    assert not target.exists()


# ----------------------------------------------------------------------------------------- refusals


def test_checks_say_where_to_write(target, tmp_path):
    source = tmp_path / "in.pt"
    source.write_bytes(b"in")
    link = tmp_path / "link.pt"
    link.symlink_to("out.pt")
    assert check_output(target, [source], force=False) == target
    assert check_output(link, [source], force=False) == target


@pytest.mark.parametrize("part", ["unet", "unet_ema"])
def test_no_file_of_a_folder_that_is_read_is_replaced(part, tmp_path, ckptool):
    folder = shutil.copytree(DIFFUSERS, tmp_path / "checkpoint-12")
    output = folder / part / "diffusion_pytorch_model.safetensors"
    before = contents(folder)
    refused = ckptool("extract-ema", folder, "-o", output, "--force", "--json")
    assert refused.exit_code == 2
    assert "the input itself" in refused.json["error"]["message"]
    assert contents(folder) == before


@pytest.mark.parametrize("operand", [".", "../checkpoint-1.2", "unet/..", None])
def test_the_output_of_a_folder_stands_beside_it(operand, tmp_path, ckptool, monkeypatch):
    folder = shutil.copytree(DIFFUSERS, tmp_path / "checkpoint-1.2")
    monkeypatch.chdir(folder)
    before = contents(folder)
    assert ckptool("extract-ema", operand or folder).exit_code == 0
    assert contents(folder) == before
    beside = tmp_path / "checkpoint-1.2.ema.safetensors"
    assert sorted(tmp_path.iterdir()) == [folder, beside]


def test_a_neighbour_that_is_read_is_not_replaced(tmp_path, ckptool):
    folder = shutil.copytree(DIFFUSERS, tmp_path / "checkpoint-12")
    name = "diffusion_pytorch_model.safetensors"
    before = contents(folder)
    output = ("-o", folder / "unet_ema" / name, "--force", "--json")
    refused = ckptool("extract-ema", folder / "unet" / name, *output)
    assert refused.exit_code == 2
    assert "the input itself" in refused.json["error"]["message"]
    assert contents(folder) == before


@pytest.mark.parametrize("link", [False, True])
def test_what_a_killed_run_left_can_be_read_and_stays(link, partial, target, tmp_path, ckptool):
    """Its name is that of the file in which the output is prepared, which would replace it."""
    path = save(partial, weights())
    if link:
        path = tmp_path / "link.pt"
        path.symlink_to(partial)
    before = partial.read_bytes()
    for command in ("extract-ema", "promote-ema"):
        refused = ckptool(command, path, "-o", target, "--ema", "ema_state_dict", "--json")
        assert refused.json["error"]["code"] == "output"
    assert partial.read_bytes() == before
    assert not target.exists()


def test_a_dangling_chain_of_links_without_a_folder_is_refused(tmp_path):
    (tmp_path / "link.pt").symlink_to("no/such/out.pt")
    with pytest.raises(OutputError, match="directory does not exist"):
        check_output(tmp_path / "link.pt", [tmp_path / "in.pt"], force=False)


# --------------------------------------------------------------------------------- killed meanwhile

# The real command, which stops before its file is put in place and says so. It sleeps in short
# steps: between two of them Python handles a signal that came just before a step began.
DRIVER = """
import os, sys, time
from ckptool import cli

def stop(fd):
    print("written", flush=True)
    while True:
        time.sleep(0.01)

os.fsync = stop
cli.run()
"""


@pytest.fixture(params=["extract-ema", "promote-ema"])
def killed(request, target, tmp_path):
    """Kill a run by a signal while its file is partial; gives its exit code."""
    source = save(tmp_path / "last.ckpt", weights())

    def run(number, *options):
        command = [sys.executable, "-c", DRIVER, request.param, source, "-o", target, *options]
        with subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, env=environment(), text=True
        ) as process:
            assert process.stdout.readline() == "written\n"
            process.send_signal(number)
            return process.wait(timeout=30)

    run.command, run.source = request.param, source
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_nothing(number, killed, tmp_path):
    assert killed(number) == 130
    assert list(tmp_path.iterdir()) == [killed.source]


def test_a_signal_leaves_the_old_file(killed, target, tmp_path):
    target.write_bytes(b"old")
    assert killed(signal.SIGTERM, "--force") == 130
    assert target.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [killed.source, target]


def test_a_kill_leaves_the_old_file_and_the_next_run_clears_up(killed, target, tmp_path, ckptool):
    target.write_bytes(b"old")
    assert killed(signal.SIGKILL, "--force") == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    assert ckptool(killed.command, killed.source, "-o", target, "--force").exit_code == 0
    assert sorted(tmp_path.iterdir()) == [killed.source, target]
    found = load(target)
    found = found["state_dict"] if killed.command == "promote-ema" else found
    assert_same_tensors(found, average_of(weights()))
    assert torch.load(target, mmap=True)
