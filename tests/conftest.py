"""What all tests share: where the fixtures are, and Hypothesis without chance."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from paths import FIXTURES

settings.register_profile(
    "ckptool",
    derandomize=True,  # the same examples in every run, on every machine
    database=None,  # nothing left behind
    deadline=None,  # machines are shared
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("ckptool")


@pytest.fixture
def fixtures():
    """The folder of files that other programs wrote."""
    return FIXTURES
