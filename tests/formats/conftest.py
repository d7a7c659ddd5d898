"""One test a sample: classes of format tests list the objects that their format can hold."""

from __future__ import annotations


def pytest_generate_tests(metafunc):
    """Give ``sample`` every row of the class's ``samples``."""
    if "sample" in metafunc.fixturenames and metafunc.cls is not None:
        samples = metafunc.cls.samples
        metafunc.parametrize("sample", samples, ids=[row.__name__ for row in samples])
