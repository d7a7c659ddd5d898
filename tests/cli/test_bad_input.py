"""Whatever the input: one ``error:`` line, one ``hint:`` line, exit code 2, no output file."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest

from ckptool.writers.files.partial import PARTIAL
from helpers.paths import FIXTURES, unprivileged

EXPORTED = FIXTURES / "ema" / "emacallback" / "exported.ckpt"
WHOLE = {
    "torch-zip": EXPORTED,
    "torch-legacy": FIXTURES / "formats" / "torch_legacy" / "plain.pt",
    "torch-tar": FIXTURES / "formats" / "torch_tar" / "plain.pt",
    "pickle": FIXTURES / "formats" / "pickle" / "module_snapshot_proto4.pkl",
    "safetensors": FIXTURES / "ema" / "emacallback" / "exported.online.safetensors",
}
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 2941129401\n"
)
CONTENTS = {
    "empty": b"",
    "one byte": b"P",
    "text": b"epoch 1 loss 0.5\nepoch 2 loss 0.25\n",
    "HTML": b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n",
    "a Git LFS pointer": LFS_POINTER,
    "JSON": b'{"hidden_size": 64, "layers": [1, 2]}',
    "zeros": bytes(4096),
    "noise": bytes(range(255, -1, -1)) * 4,
    "gzip": gzip.compress(EXPORTED.read_bytes(), mtime=0),
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "a zip of text": None,  # made below
    "half a zip header": b"PK\x03\x04",
    "half a pickle": b"\x80\x02}q\x00(X\x05\x00",
    "a header without end": (1 << 40).to_bytes(8, "little") + b'{"a":',
}


def _zip_of_text() -> bytes:
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return buffer.getvalue()


CONTENTS["a zip of text"] = _zip_of_text()

COMMANDS = {
    "inspect": lambda path, out: ("inspect", path),
    "extract-ema": lambda path, out: ("extract-ema", path, "-o", out),
    "promote-ema": lambda path, out: ("promote-ema", path, "-o", out),
}


@pytest.fixture(params=COMMANDS)
def refuse(request, ckptool, tmp_path):
    """Run a command on a path, as text and as JSON; it must refuse. Gives the error."""
    written: set[Path] = set()

    def run(path) -> dict:
        out = tmp_path / "out.pt"
        args = COMMANDS[request.param](path, out)
        as_text, as_json = ckptool(*args), ckptool(*args, "--json")
        assert_two_lines(as_text)
        assert_document(as_json)
        written.update({out, out.with_name(out.name + PARTIAL)})
        return as_json.json["error"]

    run.command = request.param
    yield run
    assert not any(map(os.path.lexists, written))


def assert_two_lines(output) -> None:
    assert (output.exit_code, output) == (2, "")
    error, hint = output.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert len(hint) > len("hint: ")
    assert (error + hint).isprintable()
    assert "Traceback" not in output.stderr


def assert_document(output) -> None:
    assert (output.exit_code, output.stderr) == (2, "")
    assert output.isascii()
    assert list(output.json) == ["schema", "error"]
    assert output.json["schema"] == "ckptool/error/1"
    assert list(output.json["error"]) == ["code", "message", "path", "address", "hint"]
    assert output.json["error"]["hint"]


# ------------------------------------------------------------------------------------- no such file


def test_missing(refuse, tmp_path):
    error = refuse(tmp_path / "lats.ckpt")
    assert (error["code"], error["message"]) == ("unreadable", "no such file")
    assert error["path"] == str(tmp_path / "lats.ckpt")


def test_missing_inside_a_file(refuse):
    assert refuse(EXPORTED / "inside")["code"] == "unreadable"


def test_a_loop_of_links(refuse, tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "loop" in refuse(tmp_path / "a")["message"]


def test_a_name_too_long(refuse, tmp_path):
    assert "too long" in refuse(tmp_path / ("x" * 300))["message"]


@pytest.mark.parametrize(
    "args",
    [("inspect", ""), ("verify", ""), ("extract-ema", ""), ("diff", EXPORTED, "")],
    ids=lambda args: f"{args[0]} {len(args) - 1}",
)
def test_no_name_at_all_is_not_the_working_directory(args, ckptool, monkeypatch):
    """An unset variable of a shell, in a directory where there is a checkpoint."""
    monkeypatch.chdir(EXPORTED.parent)
    error = ckptool(*args, "--json").json["error"]
    assert error["code"] == "usage"
    assert "empty" in error["message"]


@pytest.mark.parametrize("url", ["ftp://a.example/b.pt", "git+ssh://owner/repo"])
def test_a_url_is_told_to_be_one(url, refuse):
    error = refuse(url)
    assert error["message"].startswith(f"{url}: ckptool reads no URLs that begin with")
    assert "download" in error["hint"]


@pytest.mark.parametrize("name", ["a\nb.ckpt", "\x1b[31mred.ckpt", "[bold]b.ckpt", "\u202egpj.exe"])
def test_a_name_that_would_steer_the_terminal_is_escaped(name, refuse, tmp_path):
    assert refuse(tmp_path / name)["path"] == str(tmp_path / name)
    (tmp_path / name).write_bytes(b"text")
    assert refuse(tmp_path / name)["path"] == str(tmp_path / name)


def test_a_name_that_is_no_text(refuse, tmp_path):
    refuse(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.ckpt"))


# ----------------------------------------------------------------------------------- no such a file


def test_a_directory_without_checkpoints(refuse, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("epoch 1")
    assert "a directory" in refuse(tmp_path / "run")["message"]


@pytest.mark.parametrize("command", ["extract-ema", "promote-ema"])
def test_a_directory_is_no_file_to_take_from(command, ckptool, tmp_path):
    output = ckptool(command, EXPORTED.parent, "-o", tmp_path / "out.pt")
    assert_two_lines(output)
    assert "hint: ckptool inspect shows the checkpoints in it" in output.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def impatient():
    """Waiting for ten seconds is a failure."""

    def give_up(_signum, _frame):
        pytest.fail("still waiting")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_pipe_is_refused_and_not_waited_for(refuse, tmp_path, impatient):
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe" in refuse(tmp_path / "pipe")["message"]


def test_a_socket_is_refused(refuse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the names of sockets must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        assert refuse("socket")["code"] == "unreadable"


def test_a_device_is_refused(refuse):
    assert "a device" in refuse("/dev/zero")["message"]


def test_no_permission(refuse, ckptool, tmp_path):
    path = tmp_path / "secret.ckpt"
    shutil.copy(EXPORTED, path)
    out = tmp_path / "warm.pt"
    ckptool(*COMMANDS[refuse.command](path, out))  # whatever it imports, it has imported now
    out.unlink(missing_ok=True)
    path.chmod(0)
    with unprivileged():
        error = refuse(path)
    assert (error["code"], error["message"]) == ("unreadable", "permission denied")


def test_no_permission_for_a_directory(ckptool, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.ckpt").write_bytes(EXPORTED.read_bytes())
    tmp_path.chmod(0)
    try:
        with unprivileged():
            assert_two_lines(ckptool("inspect", tmp_path))
            assert_two_lines(ckptool("inspect", tmp_path / "run"))
    finally:
        tmp_path.chmod(0o700)


# ------------------------------------------------------------------------------------ no checkpoint


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_file_that_is_no_checkpoint(kind, refuse, tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(CONTENTS[kind])
    assert refuse(path)["code"] in {"unknown-format", "damaged"}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "the file is empty"),
        ("text", "plain text"),
        ("HTML", "a web page"),
        ("a Git LFS pointer", "a Git LFS pointer"),
        ("JSON", "JSON"),
        ("gzip", "compressed with gzip"),
        ("a zip of text", "readme.txt"),
    ],
)
def test_known_accidents_are_called_by_their_name(kind, said, refuse, tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(CONTENTS[kind])
    assert said in refuse(path)["message"]


def test_a_pointer_says_how_to_fetch_the_file(refuse, tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(LFS_POINTER)
    assert "git lfs pull" in refuse(path)["hint"]


# ------------------------------------------------------------------------------------------ cut off


def lengths(content: bytes) -> list[int]:
    """Both ends, the middle, and a spread of places between; a tar may lose its padding."""
    size = len(content.rstrip(b"\0"))
    ends = {16, 17, 30, 63, 64, 65, 128, 512, size // 2, size - 1}
    return sorted(n for n in ends | set(range(100, size, 4_001)) if n < size)


@pytest.mark.parametrize("kind", WHOLE)
def test_truncated_anywhere(kind, refuse, tmp_path):
    whole, path = WHOLE[kind].read_bytes(), tmp_path / "cut.ckpt"
    for length in lengths(whole):
        path.write_bytes(whole[:length])
        known = length >= 512 or kind != "torch-tar"  # a tar's signature comes late
        assert refuse(path)["code"] == ("damaged" if known else "unknown-format")


@pytest.mark.parametrize("missing", [1, 4, 21, 22, 100])
def test_a_zip_without_its_end_is_truncated(missing, refuse, tmp_path):
    whole, path = EXPORTED.read_bytes(), tmp_path / "cut.ckpt"
    path.write_bytes(whole[:-missing])
    error = refuse(path)
    assert "truncated" in error["message"]
    assert "get it again" in error["hint"]


def test_truncated_record_names_the_record(refuse, tmp_path):
    """The directory is whole, and the bytes that it speaks of are gone."""
    from ckptool.formats.zips.records import ZipArchive
    from ckptool.sources.local import LocalFile

    path = tmp_path / "hole.ckpt"
    with LocalFile(EXPORTED) as file:
        archive = ZipArchive(file)
        record = next(r for r in archive.records if "/data/" in r.name)
    data = bytearray(EXPORTED.read_bytes())
    size = (record.size - 1).to_bytes(4, "little")
    data[record.entry_offset + 20 : record.entry_offset + 28] = size * 2  # both of the sizes
    path.write_bytes(data)
    message = refuse(path)["message"]
    assert record.name.partition("/")[2] in message
    assert f"{record.size - 1} of {record.size} bytes" in message


# ------------------------------------------------------------------------------------------ several


def test_one_bad_path_of_several_is_an_error_behind_the_answers(ckptool, tmp_path):
    done = ckptool("inspect", EXPORTED, tmp_path / "missing")
    assert done.exit_code == 2
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    first, second, told = done.stdout.splitlines()[2:]
    assert first.startswith(str(EXPORTED))
    assert second.split() == [str(tmp_path / "missing"), "not", "read"]
    assert told.startswith(f"{tmp_path / 'missing'}: no such file")


def test_one_bad_path_of_several_is_the_document(ckptool, tmp_path):
    done = ckptool("inspect", EXPORTED, tmp_path / "missing", "--json")
    assert (done.exit_code, done.json["schema"]) == (2, "ckptool/error/1")


def test_a_folder_shows_its_bad_files_beside_the_good_ones(ckptool, tmp_path):
    shutil.copy(EXPORTED, tmp_path / "good.ckpt")
    (tmp_path / "bad.ckpt").write_bytes(LFS_POINTER)
    report = ckptool("inspect", tmp_path, "--json").json
    errors = {Path(entry["path"]).name: entry.get("error") for entry in report["checkpoints"]}
    assert errors["good.ckpt"] is None
    assert "a Git LFS pointer" in errors["bad.ckpt"]


@pytest.mark.parametrize(("typed", "meant"), [("epoch_02.pt", "epoch_002.pt"), ("other.pt", None)])
def test_a_mistyped_name_is_answered_by_the_file_beside_it(typed, meant, ckptool, tmp_path):
    for name in ("epoch_002.pt", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    for command in ("inspect", "verify", "extract-ema"):
        told = ckptool(command, tmp_path / typed).stderr
        assert "no such file" in told
        if meant:
            assert f"hint: did you mean {tmp_path / meant}?" in told
        else:
            assert "hint: check the spelling" in told


# -------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    "args",
    [
        ("inspect",),
        ("inspect", "--no-such-option", EXPORTED),
        ("extract-ema",),
        ("extract-ema", EXPORTED, "--names", "wrong"),
        ("extract-ema", EXPORTED, EXPORTED),
        ("promote-ema", EXPORTED),
        ("no-such-command",),
    ],
    ids=lambda args: " ".join(str(arg)[-20:] for arg in args),
)
def test_wrong_usage(args, ckptool):
    assert_two_lines(ckptool(*args))
    assert_document(ckptool(*args, "--json"))


@pytest.mark.parametrize(
    "args",
    [
        ("verify", EXPORTED, "--require", ""), ("verify", EXPORTED, "--require="),
        ("verify", EXPORTED, "--like", ""), ("verify", EXPORTED, "--against", ""),
        ("verify", EXPORTED, "--ignore-rules", ""), ("verify", "", EXPORTED),
        ("average", EXPORTED, EXPORTED, "--into", "", "-o", "out.pt"),
    ],
    ids=lambda args: f"{args[0]} {args[-1] or args[-2]}"[-24:],
)  # fmt: skip
def test_a_variable_that_is_not_set_is_no_value(args, ckptool):
    """What it was to ask for would go unasked without a word."""
    output = ckptool(*args)
    assert_two_lines(output)
    assert "empty; a variable in the command may not be set" in output.stderr


@pytest.mark.parametrize("more", [("--atol", "-1"), ("--tolerance", "x"), ("--no-such-option",)])
def test_wrong_usage_names_the_help_of_the_command(more, ckptool):
    output = ckptool("diff", EXPORTED, EXPORTED, *more)
    assert_two_lines(output)
    assert output.stderr.endswith("hint: ckptool diff --help\n")


# --------------------------------------------------------------------------------------------- bugs


def test_a_bug_is_one_line_too(ckptool, monkeypatch):
    monkeypatch.delenv("CKPTOOL_DEBUG")
    monkeypatch.setattr("ckptool.commands.inspect.locate_ema", lambda *_, **__: 1 // 0)
    output = ckptool("inspect", EXPORTED)
    assert_two_lines(output)
    assert "a bug in ckptool: ZeroDivisionError" in output.stderr
