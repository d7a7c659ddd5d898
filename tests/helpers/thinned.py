"""Large numbers of cases: a part in every run, all of them where the slow tests run too.

A table is thinned where its rows take the same way through the code, and another test takes each
row, or each way, in every run. Of the examples that Hypothesis draws every run takes a fifth.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

PROFILE = settings(
    max_examples=50,
    derandomize=True,  # the same examples in every run, on every machine
    database=None,  # nothing left behind
    deadline=None,  # machines are shared
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def choose_examples(marks: str) -> None:
    """Load the profile of Hypothesis for a run with these marks (pytest's ``-m``)."""
    _draw_no_constants_of_imported_modules()
    is_quick = "not slow" in marks
    settings.register_profile("whole", PROFILE)
    settings.register_profile("quick", PROFILE, max_examples=PROFILE.max_examples // 5)
    settings.load_profile("quick" if is_quick else "whole")


def _draw_no_constants_of_imported_modules() -> None:
    """Make examples independent of the tests that ran before in the same process.

    Hypothesis also draws what it finds in the sources of all modules imported by then, and has no
    setting against it (``_get_local_constants`` of 6.170).
    """
    assert callable(providers._get_local_constants)
    none = providers.Constants()
    providers._get_local_constants = lambda: none


def examples(number: int) -> settings:
    """Return the settings for this many examples, of which a quick run takes a fifth."""
    return settings(max_examples=number * settings().max_examples // PROFILE.max_examples)


def slow(*values: Any, id: str | None = None) -> Any:  # noqa: A002 - pytest's name
    """Return a case for slow runs only."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)


def one_in(step: int, rows: Iterable[Any], begin: int = 0) -> list[Any]:
    """Return all rows, of which every run takes one in ``step``, from ``begin`` on.

    A row that is a tuple has a value for each of several names.
    """
    return [
        row if i % step == begin % step else slow(*row) if isinstance(row, tuple) else slow(row)
        for i, row in enumerate(rows)
    ]
