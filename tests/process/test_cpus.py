"""The number of CPUs, where systems tell it in different ways."""

from __future__ import annotations

import os

import pytest

from ckptool.process.limits import usable_cpus


def test_the_cpus_of_this_process_count_not_those_of_the_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert usable_cpus() == 3


@pytest.mark.parametrize(("count", "usable"), [(8, 8), (None, 1)])
def test_systems_without_affinity_tell_those_of_the_machine(count, usable, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert usable_cpus() == usable
