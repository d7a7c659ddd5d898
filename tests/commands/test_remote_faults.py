"""A fault at any request of any command on a URL: the right answer or a clear error, no output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ckptool.sources.remote import connections
from helpers import web
from helpers.output import Output
from helpers.output import run_inside as run
from helpers.thinned import one_in
from helpers.web import Site, serving

# Where a server is gone before the handshake, Python's ``SSLSocket._create`` raises without closing
# the socket that it has taken over, and nobody else has it.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")


@pytest.fixture(scope="module")
def scattered(tmp_path_factory) -> Path:
    """A checkpoint whose EMA lies in several places, so that it takes many requests in parts."""
    torch.manual_seed(0)
    state: dict = {"state_dict": {}, "ema_state_dict": {}, "epoch": 1}
    kept = []
    for n in range(12):
        value = torch.randn(40, 50)
        state["state_dict"][f"layer{n}.weight"] = value
        state["ema_state_dict"][f"layer{n}.weight"] = value + 0.01 * torch.randn(40, 50)
        kept.append(torch.randn(40, 50))
    path = tmp_path_factory.mktemp("scattered") / "last.ckpt"
    torch.save(state | {"optimizer_like": kept}, path)
    return path


@pytest.fixture
def site(scattered, certificates, monkeypatch):
    """A server of the checkpoint that speaks TLS, and reads in small parts without pauses."""
    web.cut_small(monkeypatch)
    web.be_quick(monkeypatch)
    monkeypatch.setattr(connections, "verifying", lambda: certificates.client)
    with serving(Site({"/last.ckpt": scattered.read_bytes()}), certificates.server) as running:
        yield running


def changed(data: bytes) -> bytes:
    """Another version of a file, of the same size."""
    return bytes(byte ^ 1 if nth > 6000 else byte for nth, byte in enumerate(data))


def replace(handler: web.Handler, data: bytes) -> bool:
    """Replace the file before the request is answered."""
    return web.replaced(changed(data))(handler, data)


FAULTS = {
    "reset": web.reset,
    "short": web.short,
    "wrong-range": web.wrong_range,
    "longer": web.longer,
    "500": web.status(500),
    "429": web.status(429, Retry_After="2"),
    "403": web.status(403),
    "no-ranges": web.no_ranges,
    "compressed": web.packed,
    "replaced": replace,
    "no-tls": web.no_tls,
    "drip": web.drip,
}
# The URL and the same file here -> the words of a command, without its output.
COMMANDS = {
    "inspect": lambda url, _here: ("inspect", url, "--tensors"),
    "extract-ema": lambda url, _here: ("extract-ema", url),
    "verify": lambda url, _here: ("verify", url, "--bytes", "--values"),
    "diff": lambda url, here: ("diff", url, here),
}
WRITES = {"extract-ema"}
KINDS = [(command, fault) for fault in FAULTS for command in COMMANDS]


def values(data: bytes) -> bytes:
    """Return a file of safetensors without its header, which states the time."""
    return data[8 + int.from_bytes(data[:8], "little") :]


class Trial:
    """Runs of one command, and the answer of the first one, which meets no fault."""

    def __init__(self, site: Site, here: Path, command: str, folder: Path) -> None:
        self.site, self.folder = site, folder
        self.data = site.files["/last.ckpt"]
        words = COMMANDS[command](f"{site.url}/last.ckpt", here)
        self.output = folder / "out.safetensors"
        self.words = (*words, *(("-o", self.output) if command in WRITES else ()))
        self.right, self.written = self.run({})
        assert self.right.exit_code == 0, self.right.stderr
        self.requests = len(site.asked)

    def run(self, faults: dict[int, web.Fault]) -> tuple[Output, bytes | None]:
        """Run the command; return what it printed and wrote."""
        self.site.files["/last.ckpt"] = self.data
        self.site.forget()
        self.site.faults = faults
        done = run(*self.words)
        written = values(self.output.read_bytes()) if self.output.exists() else None
        self.output.unlink(missing_ok=True)
        return done, written

    def check(self, faults: dict[int, web.Fault]) -> int:
        """Run with faults: the answer is right, or an error is clear. Return the exit code."""
        done, written = self.run(faults)
        assert not list(self.folder.iterdir())
        if done.exit_code == 0:
            assert done == self.right
            assert written == self.written
        elif done.exit_code == 1:  # verify says which checks it could not finish, and why
            assert "the check broke off: " in done
        else:
            assert done.exit_code == 2, done + done.stderr
            assert done.stderr.splitlines()[-2].startswith("error:"), done.stderr
            assert done.stderr.splitlines()[-1].startswith("hint:"), done.stderr
            assert written is None
        return done.exit_code


@pytest.mark.parametrize(("command", "fault"), one_in(3, KINDS))
def test_a_fault_at_every_request(site, scattered, tmp_path, command, fault, request, monkeypatch):
    """A quick run takes a few of the requests, one with the slow tests takes each."""
    trial = Trial(site, scattered, command, tmp_path)
    assert trial.requests >= 4
    if fault == "drip":  # each takes a while
        web.be_quick(monkeypatch, silence=0.05)
    is_quick = "not slow" in request.config.option.markexpr
    step = max(1, trial.requests // 3) if is_quick else 1
    first = 1 if fault == "replaced" else 0  # before the first request it is another file
    for number in {*range(first, trial.requests, step), trial.requests - 1}:
        trial.check({number: FAULTS[fault]})


LASTING = [kind for kind in KINDS if kind[1] not in {"drip", "replaced"}]


@pytest.mark.parametrize(("command", "fault"), one_in(3, LASTING))
def test_a_fault_that_stays_is_an_error(site, scattered, tmp_path, command, fault):
    trial = Trial(site, scattered, command, tmp_path)
    for first in {0, 1, trial.requests // 2}:
        assert trial.check(dict.fromkeys(range(first, 2000), FAULTS[fault])) != 0


@pytest.mark.parametrize("has_etags", [True, False])
def test_a_file_replaced_at_any_request_is_told_and_never_mixed(
    site, tmp_path, scattered, has_etags
):
    site.has_etags = has_etags
    url = f"{site.url}/last.ckpt"
    name, data = f"/{scattered.name}", scattered.read_bytes()
    other = bytes(byte ^ 1 if nth > 6000 else byte for nth, byte in enumerate(data))
    other += b"" if has_etags else bytes(8)  # else only the size tells
    right = tmp_path / "right.safetensors"
    assert run("extract-ema", url, "-o", right).exit_code == 0
    refused = 0
    for number in range(1, len(site.asked), 3):
        site.forget()
        site.files[name] = data
        site.faults = {number: web.replaced(other)}
        output = tmp_path / "out.safetensors"
        done = run("extract-ema", url, "-o", output)
        if done.exit_code == 0:  # all that it takes was read before
            assert output.read_bytes()[-5000:] == right.read_bytes()[-5000:]
            output.unlink()
        else:
            refused += 1
            assert "replaced" in done.stderr
        assert not output.exists()
    assert refused > 5


# ---------------------------------------------------------- TLS


def said(url: str) -> str:
    """The error of a command that could not open a URL."""
    done = run("inspect", f"{url}/last.ckpt")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("hint:")
    return done.stderr


def test_a_certificate_of_an_unknown_authority(certificates, monkeypatch):
    web.be_quick(monkeypatch)
    with serving(context=certificates.server) as site:
        assert "does not verify" in said(site.url)
        assert not site.asked


@pytest.mark.parametrize("command", COMMANDS)
def test_a_certificate_that_does_not_verify_is_met_once(
    certificates, monkeypatch, scattered, command
):
    web.be_quick(monkeypatch)
    names: list[str] = []
    monkeypatch.setattr(
        certificates.server, "sni_callback", lambda _socket, name, _context: names.append(name)
    )
    with serving(context=certificates.server) as site:
        done = run(*COMMANDS[command](f"{site.url}/last.ckpt", scattered))
    assert done.exit_code == 2
    assert "does not verify" in done.stderr
    assert names == ["localhost"]


def test_a_certificate_of_another_host(certificates, monkeypatch):
    web.be_quick(monkeypatch)
    monkeypatch.setattr(connections, "verifying", lambda: certificates.client)
    with serving(context=certificates.elsewhere) as site:
        error = said(site.url)
        assert "does not verify" in error
        assert "localhost" in error
        assert not site.asked


def test_a_server_without_tls(monkeypatch):
    web.be_quick(monkeypatch)
    with serving() as site:
        error = said(site.url.replace("http://", "https://"))
        assert "127.0.0.1" in error
        assert "TLS" in error
