"""The helpers of these tests, and one run for all of them."""

from __future__ import annotations

import copy

import pytest

from helpers import runs


@pytest.fixture(scope="session")
def _trained():
    return runs.trained()


@pytest.fixture
def state(_trained):
    """What a trainer saves, to be changed at will."""
    return copy.deepcopy(_trained)


@pytest.fixture
def sound(state, tmp_path):
    """The checkpoint of the run as it is."""
    return runs.save(state, tmp_path / "run")
