"""What all tests share: the fixtures, the command line, and Hypothesis without chance."""

from __future__ import annotations

import gc
import signal
import sys

import pytest
from hypothesis import HealthCheck, settings

from output import STEERING, run_inside, run_process
from paths import FIXTURES, ZOO

settings.register_profile(
    "ckptool",
    derandomize=True,  # the same examples in every run, on every machine
    database=None,  # nothing left behind
    deadline=None,  # machines are shared
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("ckptool")


def pytest_configure():
    """Signals as at a terminal: who runs this under nohup, or with ``&``, has some ignored.

    Children inherit that, and those that are to be interrupted would go on to the end.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
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


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in STEERING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CKPTOOL_DEBUG", "1")  # a bug is a traceback, not a refusal


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
