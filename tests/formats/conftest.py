"""One test a sample, and torch's warnings about itself left aside."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
OF_TORCH = ("UserWarning", "DeprecationWarning", "FutureWarning")


def pytest_generate_tests(metafunc):
    """Give ``sample`` every row of the class's ``samples``."""
    if "sample" in metafunc.fixturenames and metafunc.cls is not None:
        samples = metafunc.cls.samples
        metafunc.parametrize("sample", samples, ids=[row.__name__ for row in samples])


def pytest_collection_modifyitems(items):
    """The judge warns, of quantized and sparse tensors and of what is deprecated; we never."""
    for item in items:
        if item.path.is_relative_to(HERE):
            for category in OF_TORCH:
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{category}"))
