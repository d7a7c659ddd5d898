"""Pickles that try to run something stay inert, whatever they use and wherever it stands."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import zipfile
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from safetensors.torch import save_file

from helpers.making import average_of, weights
from helpers.output import run_process
from helpers.tensors import assert_same_tensors
from helpers.thinned import one_in


@dataclass(frozen=True)
class Payload:
    """Instructions that leave one object on the stack; ``{}`` is a shell command, as text."""

    name: str
    code: bytes
    shows: str  # the dangerous name that must be shown
    is_live: bool = True  # a plain unpickler would run the command

    def __str__(self) -> str:
        return self.name

    def body(self, marker) -> bytes:
        command, python = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
        code = self.code.replace(b"{python}", python.encode()).replace(b"{path}", bytes(marker))
        return code.replace(b"{}", command.encode())


SYSTEM = b"cos\nsystem\n"
CALL = SYSTEM + b"(V{}\ntR"

PAYLOADS = (
    Payload("REDUCE", CALL, "os.system"),
    Payload("INST", b"(V{}\nios\nsystem\n", "os.system"),
    Payload("OBJ", b"(" + SYSTEM + b"V{}\no", "os.system"),
    Payload("posix", b"cposix\nsystem\n(V{}\ntR", "posix.system"),
    Payload("eval", b"cbuiltins\neval\n(V{python}\ntR", "builtins.eval"),
    Payload("exec", b"cbuiltins\nexec\n(V{python}\ntR", "builtins.exec"),
    Payload("exec of Python 2", b"c__builtin__\nexec\n(V{python}\ntR", "__builtin__.exec",
            is_live=False),
    Payload("run", b"csubprocess\nrun\n((lVtouch\naV{path}\natR", "subprocess.run"),
    Payload("STACK_GLOBAL", b"\x8c\x02os\x8c\x06system\x93(V{}\ntR", "os.system"),
    Payload(
        "a method by its dotted name",
        b"\x8c\x07pathlib\x8c\x0aPath.touch\x93(cpathlib\nPath\n(V{path}\ntRtR",
        "pathlib.Path.touch",
    ),
    Payload("BUILD", b"ccollections\nUserDict\n)\x81}V__setstate__\n" + SYSTEM + b"sbV{}\nb",
            "os.system"),
    Payload("partial", b"cfunctools\npartial\n(" + SYSTEM + b"V{}\ntR)R", "os.system"),
    Payload("import", b"cimportlib\nimport_module\n(Vos\ntR0" + CALL, "importlib.import_module"),
    Payload("in a list", b"(l" + CALL + b"a", "os.system"),
    Payload("in a tuple", b"(" + CALL + b"K\x01t", "os.system"),
    Payload("as a key", b"}" + CALL + b"Ns", "os.system"),
    Payload("thrown away", CALL + b"0N", "os.system"),
    Payload("in a known call", b"ccollections\nOrderedDict\n((l" + b"(V\nK\x01ta" + b"tR0" + CALL,
            "os.system"),
    Payload("as a state", b"cargparse\nNamespace\n)\x81}Vlr\n" + CALL + b"sb", "os.system"),
    Payload("as items", b"ccollections\nOrderedDict\n)RVa\n" + CALL + b"s", "os.system"),
    Payload("by way of the memo", SYSTEM + b"p900\n0g900\n(V{}\ntR", "os.system"),
    Payload("NEWOBJ", b"csubprocess\nPopen\n((lVtouch\naV{path}\nat\x81", "subprocess.Popen",
            is_live=False),
    Payload("NEWOBJ_EX", b"\x8c\x0asubprocess\x8c\x05Popen\x93)}V{path}\nNs\x92",
            "subprocess.Popen", is_live=False),
    Payload("only named", SYSTEM, "os.system", is_live=False),
    Payload("reconstructed",
            b"ccopy_reg\n_reconstructor\n(" + SYSTEM + b"c__builtin__\nobject\nNtR",
            "os.system", is_live=False),
)  # fmt: skip
LIVE = tuple(payload for payload in PAYLOADS if payload.is_live)


@pytest.fixture
def marker(tmp_path):
    """The file that a payload would make."""
    return tmp_path / "ran"


# --------------------------------------------------------------------------------------- containers

CONTENT = {"state_dict": weights(), "ema_state_dict": average_of(weights())}


def with_payload(body: bytes, pickled: bytes) -> bytes:
    """A pickle of a dict: the payload beside what was pickled; protocol 4."""
    inner = pickled[2:-1]  # without PROTO and STOP
    return b"\x80\x04(V__evil__\n" + body + b"V__good__\n" + inner + b"d."


def plain_pickle(body, path):
    path.write_bytes(with_payload(body, pickle.dumps({"epoch": 1}, protocol=2)))


def torch_zip(body, path):
    buffer = io.BytesIO()
    torch.save(CONTENT, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for record in source.infolist():
            data = source.read(record)
            is_pickle = record.filename.endswith("data.pkl")
            target.writestr(record.filename, with_payload(body, data) if is_pickle else data)


def torch_legacy(body, path):
    buffer = io.BytesIO()
    torch.save(CONTENT, buffer, _use_new_zipfile_serialization=False)
    data, parts, at = buffer.getvalue(), [], 0
    for _ in range(4):  # magic number, version, system, object
        end = next(pos for op, _, pos in pickletools.genops(data[at:]) if op.name == "STOP")
        parts.append(data[at : at + end + 1])
        at += end + 1
    path.write_bytes(b"".join([*parts[:3], with_payload(body, parts[3]), data[at:]]))


CONTAINERS = {"zip": torch_zip, "legacy": torch_legacy, "pickle": plain_pickle}


@pytest.fixture(params=CONTAINERS)
def hostile(request, tmp_path, marker):
    """Put a payload into a file of each kind."""

    def make(payload):
        path = tmp_path / "hostile.pt"
        CONTAINERS[request.param](payload.body(marker), path)
        return path

    make.kind = request.param
    return make


# Payloads and containers are told by inspect in all pairs; the other commands read no otherwise.
SOME_EVERYWHERE = pytest.mark.parametrize(
    ("payload", "hostile"), one_in(4, product(PAYLOADS, CONTAINERS)), indirect=["hostile"], ids=str
)
EMA = ("--ema", "__good__/ema_state_dict", "--model", "__good__/state_dict")


# -------------------------------------------------------------------------------------------- inert


@pytest.mark.parametrize("payload", LIVE, ids=str)
def test_the_payload_would_run(payload, marker, tmp_path):
    """Elsewhere: these tests would otherwise show nothing."""
    path = tmp_path / "hostile.pkl"
    plain_pickle(payload.body(marker), path)
    pickle.loads(path.read_bytes())
    for _ in range(500):
        if marker.exists():  # a process may take its time
            return
        torch.randn(100_000)
    raise AssertionError("nothing ran")


@pytest.mark.parametrize("payload", PAYLOADS, ids=str)
def test_inspect_runs_nothing_and_names_the_danger(payload, hostile, marker, ckptool):
    output = ckptool("inspect", hostile(payload), "--json")
    assert not marker.exists()
    assert output.exit_code == 0, output
    trusts = {entry["name"]: entry["trust"] for entry in output.json["pickle"]["globals"]}
    assert trusts[payload.shows] == "dangerous"
    said = [f["message"] for f in output.json["findings"] if f["rule"] == "CK201"]
    assert any(payload.shows in message for message in said)


@SOME_EVERYWHERE
def test_the_danger_is_shown_to_people(payload, hostile, ckptool):
    shown = ckptool("inspect", hostile(payload), "--tensors", "--stats")
    (line,) = (line for line in shown.splitlines() if line.strip().startswith("dangerous"))
    assert payload.shows in line


@SOME_EVERYWHERE
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_extract_runs_nothing_and_gives_the_weights(
    payload, suffix, hostile, marker, ckptool, tmp_path
):
    output = tmp_path / f"out{suffix}"
    done = ckptool("extract-ema", hostile(payload), "-o", output, *EMA)
    assert not marker.exists()
    assert done.exit_code == (2 if hostile.kind == "pickle" else 0)
    if suffix == ".pt" and hostile.kind != "pickle":
        assert_same_tensors(torch.load(output, weights_only=True), CONTENT["ema_state_dict"])


@SOME_EVERYWHERE
def test_promote_runs_nothing_and_keeps_the_pickle(payload, hostile, marker, ckptool, tmp_path):
    path, output = hostile(payload), tmp_path / "out.pt"
    done = ckptool("promote-ema", path, "-o", output, *EMA)
    assert not marker.exists()
    assert done.exit_code == (2 if hostile.kind == "pickle" else 0)  # its values are text
    if hostile.kind == "zip":
        assert pickle_of(output) == pickle_of(path)


def pickle_of(path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read("archive/data.pkl")


def test_the_library_runs_nothing(tmp_path, marker):
    import ckptool as library

    torch_zip(PAYLOADS[0].body(marker), tmp_path / "hostile.pt")
    found = library.load_state_dict(
        tmp_path / "hostile.pt", ema="__good__/ema_state_dict", model="__good__/state_dict"
    )
    assert_same_tensors(found, CONTENT["ema_state_dict"])
    assert not marker.exists()


@pytest.mark.parametrize("kind", CONTAINERS)
def test_fresh_processes_run_nothing(kind, tmp_path, marker):
    """With everything at once, and the real entry point."""
    body = b"(" + b"".join(payload.body(marker) for payload in PAYLOADS) + b"t"
    path = tmp_path / "hostile.pt"
    CONTAINERS[kind](body, path)
    for command in ("inspect", "extract-ema", "promote-ema"):
        out = () if command == "inspect" else ("-o", tmp_path / "out.pt", "--force", *EMA)
        output = run_process(command, path, *out)
        assert output.exit_code in {0, 2}
        assert "Traceback" not in output.stderr
        assert not marker.exists()


# ------------------------------------------------------------------------------------------- nested


def test_a_pickle_inside_a_pickle_is_read_and_not_run(marker, tmp_path, ckptool):
    """``torch.storage._load_from_bytes`` holds a whole file of its own."""
    torch_legacy(PAYLOADS[0].body(marker), tmp_path / "inner.pt")
    inner = (tmp_path / "inner.pt").read_bytes()
    size = len(inner).to_bytes(4, "little")
    body = b"ctorch.storage\n_load_from_bytes\n(B" + size + inner + b"tR"
    plain_pickle(body, tmp_path / "outer.pkl")
    output = ckptool("inspect", tmp_path / "outer.pkl", "--json")
    assert not marker.exists()
    assert output.exit_code in {0, 2}
    if output.exit_code == 0:
        trusts = {entry["name"]: entry["trust"] for entry in output.json["pickle"]["globals"]}
        assert trusts["os.system"] == "dangerous"


BROKEN = {
    "EXT1": b"\x82\x01",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "a persistent id of its own": b"(Vstorage\n" + CALL + b"V0\nVcpu\nK\x01tQ",
    "a tensor of a call": b"ctorch._utils\n_rebuild_tensor_v2\n(" + CALL + b"K\x00(t(t\x89NtR",
    "a name that is computed": CALL + b"V.system\n\x93",
    "a memo of a billion": b"Np1000000000\n",
    "a text of a billion": b"X\x00\xca\x9a;abc",
    "a stack without a mark": b"t",
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("kind", CONTAINERS)
def test_broken_instructions_run_nothing(name, kind, marker, tmp_path, ckptool):
    body = Payload(name, BROKEN[name], "").body(marker)
    CONTAINERS[kind](body, tmp_path / "hostile.pt")
    for command in ("inspect", "extract-ema", "promote-ema"):
        out = () if command == "inspect" else ("-o", tmp_path / "out.pt", "--force", *EMA)
        output = ckptool(command, tmp_path / "hostile.pt", *out)
        assert output.exit_code in {0, 2}
        assert not marker.exists()


def looped():
    outer: dict = {"inner": []}
    outer["inner"].append(outer)
    return outer


def unfolding():
    """Sixty lists that hold the one before twice: 2^60 paths."""
    inner: list = [1]
    for _ in range(60):
        inner = [inner, inner]
    return inner


@pytest.mark.parametrize("make", [looped, unfolding])
def test_what_is_reached_in_many_ways_is_walked_once(make, tmp_path, ckptool):
    torch_zip(pickle.dumps(make(), protocol=2)[2:-1], tmp_path / "hostile.pt")
    for options in ((), ("--tensors",), ("--json",)):
        assert ckptool("inspect", tmp_path / "hostile.pt", *options).exit_code == 0


@pytest.mark.parametrize(("depth", "exit_code"), [(900, 0), (100_000, 2)])
def test_what_is_nested_too_deep_is_refused(depth, exit_code, tmp_path, ckptool):
    torch_zip(b"(l" * depth + b"a" * (depth - 1), tmp_path / "hostile.pt")
    output = ckptool("inspect", tmp_path / "hostile.pt")
    assert output.exit_code == exit_code
    assert "Traceback" not in output.stderr


# --------------------------------------------------------------------------------- names that steer

STEERING = {
    "colour": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;owned\x07",
    "lines": "a\nb\rc",
    "erase": "x\b\b\by\x7f",
    "bidi": "\u202egnp.exe\u2066",
    "C1": "\x9b31m",
    "zero width": "a\u200bb\ufeff",
    "blank letters": "\u3164\u115f\u2800\u034f\ufe0f\u1160\uffa0\U000e0100",
    "command of a log": "::error::x",
    "command after blanks": "  ::set-output name=a::b",
    "old command of a log": "x##[error]y ##vso[task.setvariable]z ###",
    "markup": "[bold red]x[/bold red][link=http://x]y[/link]",
    "emoji code": ":warning:",
    "surrogate": "\ud800",
}


@pytest.fixture(params=STEERING)
def name(request):
    return STEERING[request.param]


@pytest.fixture
def steering(name, tmp_path):
    """A file in which every name and text steers the terminal."""
    content = {
        "state_dict": {name: torch.ones(2), f"{name}.2": torch.ones(3), "w": torch.ones(2, 2)},
        "ema_state_dict": {"w": torch.ones(2, 2) * 0.9, f"{name}.3": torch.ones(3)},
        name: {name: torch.ones(1)},
        f"best_{name}": 1.0,
        f"{name}_optimizer": {"state": {}, "param_groups": []},
        "val_stats": {f"{name}_loss": 0.5},
        "ema_decay": name,
    }
    torch.save(content, tmp_path / "steering.pt")
    return tmp_path / "steering.pt"


HARMLESS = {"\n"}


BLANK = set(STEERING["blank letters"])


def is_harmless(text: str) -> bool:
    commands = any(row.lstrip().startswith("::") for row in text.splitlines()) or "##" in text
    shown = all(char.isprintable() or char in HARMLESS for char in text) and not BLANK & set(text)
    return shown and not commands


def test_names_do_not_steer_the_terminal(name, steering, ckptool, tmp_path):
    out = ("-o", tmp_path / "out.pt")
    for args in (
        ("inspect", steering),
        ("inspect", steering, "--tensors", "--stats"),
        ("inspect", steering.parent),
        ("inspect", steering, "--json"),
        ("inspect", steering, "--format", "md"),
        ("verify", steering, "--values"),
        ("verify", steering, "--json"),
        ("textconv", steering),
        ("diff", f"{steering}#state_dict", f"{steering}#ema_state_dict"),
        ("diff", f"{steering}#state_dict", f"{steering}#ema_state_dict", "--name-only"),
        ("extract-ema", steering, *out, "--dry-run"),
        ("promote-ema", steering, *out, "--dry-run"),
        ("extract-ema", steering, *out, "--ema", name),
        ("extract-ema", steering, *out, "--ema", f"state_dict/{name}*"),
        ("extract-ema", steering, *out, "--ema", f"nowhere{name}"),
    ):
        output = ckptool(*args)
        assert is_harmless(output), args
        assert is_harmless(output.stderr), args
        assert "--json" not in args or output.isascii()


def test_names_of_classes_do_not_steer_either(name, ckptool, tmp_path):
    line = name.encode("utf-8", "replace").replace(b"\n", b"")
    path = tmp_path / "steering.pkl"
    path.write_bytes(b"\x80\x02(cos\nx" + line + b"\ncmy" + line + b"\nC\n)\x81t.")
    output = ckptool("inspect", path)
    assert output.exit_code == 0
    assert "dangerous" in output
    assert is_harmless(output)


def test_metadata_of_safetensors_does_not_steer(name, ckptool, tmp_path):
    text = name.encode("utf-8", "replace").decode()
    path = tmp_path / "steering.safetensors"
    save_file({"w": torch.ones(2)}, path, {text or "x": text})
    assert is_harmless(ckptool("inspect", path))


def test_markup_is_shown_as_it_is(tmp_path, ckptool):
    path = tmp_path / "markup.pt"
    torch.save({"[red]w[link=x]": torch.ones(2), ":smile:": torch.ones(2)}, path)
    for options in ((), ("--color", "always")):
        shown = ckptool("inspect", path, "--tensors", *options)
        assert "[red]w[link=x]" in shown
        assert ":smile:" in shown


def test_a_very_long_name_has_an_end(tmp_path, ckptool):
    path = tmp_path / "long.pt"
    torch.save({"n" * 1_000_000: torch.ones(1)}, path)
    shown = ckptool("inspect", path, "--tensors")
    assert max(map(len, shown.splitlines())) < 70_000  # a pipe gets names whole up to 64 Ki


@pytest.mark.parametrize("command", ["extract-ema", "promote-ema"])
def test_weights_are_taken_with_a_warning_of_what_lies_beside_them(
    command, marker, ckptool, tmp_path
):
    torch_zip(PAYLOADS[0].body(marker), tmp_path / "hostile.pt")
    done = ckptool(command, tmp_path / "hostile.pt", "-o", tmp_path / "out.pt", *EMA, "--json")
    assert done.exit_code == 0
    assert {("CK201", "warning")} == {(f["rule"], f["severity"]) for f in done.json["findings"]}
    assert not marker.exists()


# ------------------------------------------------------------------------- numbers without an end

DIGITS = "9" * 5000  # Python refuses to read a number of more than 4,300


@pytest.fixture
def numbered(tmp_path):
    """A folder in which all names, in files and of files, end in more digits than a number."""
    state = {
        f"layers.{DIGITS}": torch.ones(2, 2),
        DIGITS: torch.ones(3),
        f"w{DIGITS}": torch.ones(1),
    }
    content = {
        "model": state,
        "ema": {name: tensor * 0.9 for name, tensor in state.items()},
        f"ema_{DIGITS}": {name: tensor * 0.8 for name, tensor in state.items()},
        f"epoch{DIGITS}": 1, f"loss_{DIGITS}": 0.5, "epoch": DIGITS, "global_step": DIGITS,
        "optimizer": {"state": {DIGITS: {"step": DIGITS}}, "param_groups": [{"params": [DIGITS]}]},
    }  # fmt: skip
    torch.save(content, tmp_path / "last.pt")
    for name in (f"epoch={DIGITS[:200]}.pt", f"last-EMA-{DIGITS[:200]}.pt"):
        torch.save(content, tmp_path / name)
    shards = tmp_path / "sharded"
    shards.mkdir()
    save_file({"a": torch.ones(2)}, shards / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": f"model-{DIGITS}-of-{DIGITS}.pt"}
    index = {"metadata": {"total_size": DIGITS}, "weight_map": weight_map}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    ranks = tmp_path / "ranks"
    ranks.mkdir()
    (ranks / "latest").write_text(f"global_step{DIGITS}")
    torch.save({"module": state}, ranks / f"rank{DIGITS[:200]}.pt")
    return tmp_path


@pytest.mark.parametrize(
    "args",
    [
        ("inspect", "last.pt"), ("inspect", "."), ("inspect", "sharded"), ("inspect", "ranks"),
        ("verify", "last.pt", "--values"), ("verify", "."), ("verify", "sharded", "ranks"),
        ("verify", ".", "--latest-valid"), ("verify", ".", "--best", "loss"),
        ("extract-ema", "last.pt", "--dry-run"), ("extract-ema", "last.pt#ema", "--dry-run"),
        ("promote-ema", "last.pt", "-o", "out.pt", "--dry-run"),
        ("diff", "last.pt#model", "last.pt#ema"), ("textconv", "last.pt"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_names_that_end_in_thousands_of_digits_are_no_bug(args, numbered, ckptool, monkeypatch):
    monkeypatch.chdir(numbered)
    done = ckptool(*args)
    assert "a bug" not in done + done.stderr
    assert "Traceback" not in done + done.stderr
