"""Names by which torch's modules hand out others' classes: the tables are complete."""

from __future__ import annotations

import importlib

import pytest

from ckptool.formats.pickles.asked import BY_STATES
from ckptool.formats.pickles.families import is_inert
from ckptool.formats.pickles.grammar import Grammar
from ckptool.formats.pickles.handed_out import GUESTS, OTHERS
from ckptool.formats.pickles.stateless import stateless
from ckptool.formats.pickles.trust import BROUGHT_ALONG, GADGET_MODULES, STDLIB
from ckptool.formats.pickles.vetted import HANDLES, KEEPERS, MODULES, NESTERS
from ckptool.names import is_capital
from ckptool.tree.nodes import GlobalRef
from helpers.own_classes import called_on_self, classes, imports

PACKAGES = ("torch", "numpy", "functorch", "torchgen")
FAMILIES = ((*MODULES, HANDLES), KEEPERS, NESTERS)


@pytest.fixture(scope="module")
def installed():
    """All classes in the sources of torch and numpy."""
    return classes()


@pytest.fixture(scope="module")
def imported():
    """All that modules import which are no means to run code themselves."""
    return [each for each in imports(PACKAGES) if not is_gadget(each.module)]


def is_gadget(module: str) -> bool:
    parts = module.split(".")
    families = (".".join(parts[: i + 1]) for i in range(len(parts)))
    return parts[0] in stateless() or any(family in GADGET_MODULES for family in families)


def is_class(source: str, name: str) -> bool:
    """Return whether a name is a class; where its module cannot be imported, by its capital."""
    try:
        return isinstance(getattr(importlib.import_module(source), name), type)
    except (Exception, SystemExit):  # noqa: BLE001 - whatever it says when it is imported
        return is_capital(name)


def family(module: str) -> int | None:
    """Return the family of a module that has its own rules for states."""
    for number, begins in enumerate(FAMILIES):
        modules = (begin[: begin.rindex(".") + 1] for begin in begins)
        if f"{module}.".startswith(tuple(modules)):
            return number
    return None


@pytest.mark.slow  # a look at all sources of torch
def test_the_table_has_every_class_of_others(installed, imported):
    own = {(c.module.partition(".")[0], c.name) for c in installed if not is_gadget(c.module)}
    listed = {(package, name) for package, names in OTHERS.items() for name in names.split()}
    missing = {
        (package, each.name)
        for each in imported
        if each.source.partition(".")[0] in STDLIB | BROUGHT_ALONG or is_gadget(each.source)
        if (package := each.module.partition(".")[0], each.name) not in own | listed
        if is_class(each.source, each.original)
    }
    assert len(listed) > 100
    assert not missing


@pytest.mark.slow
def test_the_table_has_every_guest_of_a_family(installed, imported):
    names = {c.name for c in installed if c.module.startswith("torch")}
    own = {c.name for c in installed if family(c.module) is not None}
    missing = {
        each.name
        for each in imported
        if (number := family(each.module)) is not None and each.source.startswith("torch")
        if family(each.source) != number and each.original in names
        if each.name not in own and each.name not in OTHERS["torch"].split()
    } - set(GUESTS.split())
    assert not missing


@pytest.mark.slow
def test_every_method_is_known_that_a_state_calls_on_its_object():
    missing = called_on_self(lambda module: not is_gadget(module), "__setstate__") - BY_STATES
    assert not missing


@pytest.mark.parametrize(
    ("name", "is_inert_class"),
    [
        ("torch.utils.data.dataloader._IterDataPipeSerializationWrapper", False),
        ("torch.fx._symbolic_trace.FunctionType", False),
        ("torch.utils._zip.ZipFile", False),
        ("numpy._core.records.Counter", False),
        ("torch.nn.modules.linear.Linear", True),
        ("torch.optim.lr_scheduler.StepLR", True),
    ],
)
def test_a_class_of_others_is_not_taken_for_inert(name, is_inert_class):
    assert is_inert(name) is is_inert_class


@pytest.mark.parametrize(
    ("cls", "is_allowed"),
    [
        ("torch.optim.lr_scheduler.LambdaLR", True),
        ("torch.optim.lr_scheduler.Optimizer", False),
        ("torch.distributions.normal.Normal", True),
        ("torch.distributions.utils.SymInt", False),
    ],
)
def test_the_rules_of_a_family_are_not_for_its_guests(cls, is_allowed):
    assert Grammar().is_set(cls, {"held": GlobalRef("somelib", "run")}) is is_allowed
