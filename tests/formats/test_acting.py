"""Classes of torch and numpy that act when they are made or dropped: the tables are complete."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ckptool.formats.base import DANGEROUS, NamedGlobal
from ckptool.formats.pickles.acting import DROPPED, MADE, REVIEWED, acts_when_made
from ckptool.formats.pickles.families import is_inert
from ckptool.formats.pickles.plain_names import trust_of
from ckptool.formats.pickles.trust import BROUGHT_ALONG
from ckptool.formats.pickles.vetted import VETTED
from ckptool.tree.nodes import GlobalRef
from helpers.own_classes import classes, derived, with_method


@pytest.fixture(scope="module")
def installed():
    """All classes in the sources of torch and numpy."""
    return classes()


@pytest.mark.slow  # a look at all sources of torch
@pytest.mark.parametrize(("method", "table"), [("__new__", MADE), ("__del__", DROPPED)])
def test_the_table_has_every_class_that_is_installed(method, table: Mapping[str, str], installed):
    listed = {f"{module}.{name}" for module, names in table.items() for name in names.split()}
    missing = with_method(installed, method, harmless=set(VETTED)) - listed - VETTED.keys()
    assert len(listed) > 20
    assert not missing


@pytest.mark.slow  # a look at all sources of torch
def test_a_class_with_a_base_of_another_package_is_dangerous():
    """It inherits what runs: sympy's evaluate the text that they are made of."""
    found = set(derived(BROUGHT_ALONG - {"typing_extensions"} | {"pickle", "mypy"}))
    assert "torch.utils._sympy.functions.ToFloat" in found
    for name in found:
        ref = GlobalRef(*name.rpartition(".")[::2])
        named = NamedGlobal(ref, called=False, pickle="data.pkl")
        assert trust_of(named) == DANGEROUS or not is_inert(name), name


def test_what_was_reviewed_is_in_a_table():
    listed = {f"{module}.{name}" for module, names in DROPPED.items() for name in names.split()}
    assert REVIEWED.keys() <= listed


@pytest.mark.parametrize(
    ("name", "acts"),
    [
        ("numpy.lib._datasource.DataSource", True),
        ("numpy.lib.npyio.DataSource", True),  # handed out by another module
        ("torch.cuda.streams.ExternalStream", True),
        ("torch.distributed._shard.sharded_tensor.api.ShardedTensor", True),  # it has a __new__ too
        ("torch.nn.modules.linear.Linear", False),
        ("somelib.DataSource", False),
    ],
)
def test_a_class_is_known_by_its_own_name_in_its_package(name, acts):
    assert acts_when_made(name) is acts


@pytest.mark.parametrize(
    ("name", "is_inert_class"),
    [
        ("torch.distributed.checkpoint.metadata.MetadataIndex", True),
        ("numpy.polynomial.polynomial.Polynomial", True),
        ("networkx.classes.reportviews.OutEdgeDataView", False),
        ("mpmath.ctx_mp_python._mpf", False),
        ("string.Template", True),  # listed
        ("string.Formatter", False),
        ("ConfigParser.RawConfigParser", False),  # of Python 2
        ("torch.cuda.streams.ExternalStream", False),
    ],
)
def test_only_listed_classes_and_those_of_scanned_sources_are_taken_for_inert(name, is_inert_class):
    assert is_inert(name) is is_inert_class
