"""The soft limit of open files, which the command line raises for its own process."""

from __future__ import annotations

import pytest

from ckptool.process.limits import MANY_FILES, allow_many_files

resource = pytest.importorskip("resource")
UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        ((1024, 4096), [(4096, 4096)]),
        ((1024, 1 << 20), [(MANY_FILES, 1 << 20)]),
        ((1024, UNLIMITED), [(MANY_FILES, UNLIMITED)]),
        ((1 << 18, UNLIMITED), [(1 << 18, UNLIMITED)]),
        ((4096, 4096), []),
        ((UNLIMITED, UNLIMITED), []),
    ],
)
def test_the_soft_limit_is_raised_and_never_lowered(limits, asked, monkeypatch):
    calls = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: calls.append(wanted))
    allow_many_files()
    assert calls == asked


def test_a_system_that_refuses_is_left_alone(monkeypatch):
    def refuse(*_):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, 20))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    allow_many_files()
