"""``--strip-prefix`` and ``--match`` on plans alone: no file is needed to rename a tensor."""

from __future__ import annotations

import pytest

from ckptool.contents.unplain import SPARSE, Unplain
from ckptool.dtypes import BY_NAME
from ckptool.errors import EmaAmbiguousError, UsageError
from ckptool.plans.extraction import Extraction
from ckptool.plans.renaming import only_matching, strip_prefix
from ckptool.tree.nodes import TensorRef

SCALAR = TensorRef(BY_NAME["float32"], (), ())


def plan_of(*names, from_model=(), refused=()) -> Extraction:
    return Extraction(
        tensors=dict.fromkeys(names, SCALAR),
        averaged=frozenset(names) - set(from_model),
        from_model=tuple(from_model),
        dropped=("gone",),
        refused={name: Unplain(SPARSE) for name in refused},
        left_out={"config": "a dict"},
    )


@pytest.mark.parametrize("prefix", ["net.", "net"])
def test_the_last_dot_of_a_prefix_may_be_left_out(prefix):
    plan = strip_prefix(plan_of("net.a", "net.b", "network"), prefix)
    assert list(plan.tensors) == ["a", "b", "network"]


def test_a_prefix_without_a_dot_is_taken_where_no_name_has_the_dot():
    assert list(strip_prefix(plan_of("model_a", "b"), "model_").tensors) == ["a", "b"]


def test_every_part_of_a_plan_is_renamed():
    plan = strip_prefix(plan_of("net.a", "net.b", from_model=["net.b"], refused=["net.c"]), "net")
    assert (plan.averaged, plan.from_model) == ({"a"}, ("b",))
    assert list(plan.refused) == ["c"]
    assert (plan.dropped, plan.left_out) == (("gone",), {"config": "a dict"})


def test_a_prefix_that_is_a_whole_name_leaves_it():
    assert list(strip_prefix(plan_of("net.", "net.a"), "net.").tensors) == ["net.", "a"]


def test_names_that_would_become_one_are_refused():
    with pytest.raises(EmaAmbiguousError, match="several tensors would be called 'a'"):
        strip_prefix(plan_of("net.a", "a"), "net")


@pytest.mark.parametrize("prefix", ["nett", ""])
def test_a_prefix_that_fits_nothing_is_refused(prefix):
    with pytest.raises(UsageError, match="no name begins with"):
        strip_prefix(plan_of("net.a"), prefix)


def test_the_hint_names_a_prefix_that_is_there():
    with pytest.raises(UsageError) as caught:
        strip_prefix(plan_of("encoder.a", "encoder.b"), "encodr")
    assert "encoder." in caught.value.hint


def test_only_what_fits_a_pattern_is_kept():
    plan = plan_of("a.weight", "a.bias", "b", from_model=["a.bias", "b"], refused=["a.c", "d"])
    kept = only_matching(plan, ["a.*"])
    assert list(kept.tensors) == ["a.weight", "a.bias"]
    assert (kept.averaged, kept.from_model) == ({"a.weight"}, ("a.bias",))
    assert list(kept.refused) == ["a.c"]


def test_each_pattern_must_fit_something():
    with pytest.raises(UsageError, match=r"no tensor's name fits 'c\*'"):
        only_matching(plan_of("a", "b"), ["a", "c*"])
