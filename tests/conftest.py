"""What all tests share: the fixtures, the command line, and Hypothesis without chance."""

from __future__ import annotations

import gc
import os
import signal
import ssl
import sys
from functools import cache
from types import SimpleNamespace

import pytest

from ckptool.cli import config
from helpers.fresh import running_torch
from helpers.output import STEERING, run_inside, run_process
from helpers.paths import FIXTURES, ZOO
from helpers.thinned import choose_examples

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def pytest_configure(config):
    """Examples for a quick run or a whole one, no garbage yet, and signals as at a terminal.

    Who runs this under nohup, or with ``&``, has some signals ignored. Children inherit that, and
    those that are to be interrupted would go on to the end.
    """
    choose_examples(config.option.markexpr)
    gc.disable()  # what is imported and collected stays
    for name in ("SIGINT", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, signal.SIGINT)
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def pytest_collection_finish():
    """One thread for torch in this process: on small tensors threads mostly wait for each other.

    Children keep their own number, since some are measured.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # what was imported and collected is not looked at in each collection
    gc.set_threshold(100_000)  # otherwise each command is followed by one
    gc.enable()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in (*STEERING, *PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CKPTOOL_DEBUG", "1")  # a bug is a traceback, not a refusal


@pytest.fixture(scope="session", autouse=True)
def _unsynced():
    """No waiting for the disk: what is read here is read before any power fails.

    Processes of their own sync, and the tests of syncing put calls of their own in its place.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _fd: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _parsed_once():
    """One parse of each configuration: most commands here find that of this repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "load_toml", cache(config.load_toml))
        yield


@pytest.fixture
def tmp_path(tmp_path):
    """Pytest's, without its links to folders that are gone: ckptool looks at all that is beside."""
    for path in tmp_path.parent.glob("*current"):
        if path.is_symlink():
            path.unlink()
    return tmp_path


@pytest.fixture
def fixtures():
    """The folder of files that other programs wrote."""
    return FIXTURES


@pytest.fixture
def zoo():
    """The folder of samples with their truth, where there is one."""
    if ZOO is None:
        pytest.skip("the zoo of samples is not beside this repository")
    return ZOO


@pytest.fixture
def ckptool():
    """``ckptool("inspect", path)`` in this process; the result is the output."""
    return run_inside


@pytest.fixture
def ckptool_process():
    """``ckptool_process("inspect", path)`` in a fresh process; the result is the output."""
    return run_process


@pytest.fixture(scope="session")
def fresh_torch():
    """``fresh_torch(code)`` in a process that has imported torch and nothing of ours."""
    with running_torch() as run:
        yield run


@pytest.fixture(scope="session")
def certificates() -> SimpleNamespace:
    """Settings of TLS: a server called localhost, another host's, and a client that trusts both."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    elsewhere = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("elsewhere.example").configure_cert(elsewhere)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return SimpleNamespace(server=server, elsewhere=elsewhere, client=client, authority=authority)
