"""States of the user's classes: what Python's and torch's code reads in them prepares no answer."""

from __future__ import annotations

import pytest

from ckptool.formats.pickles.answers import is_imported, worst_of_imported
from ckptool.formats.pickles.grades import FOREIGN, NESTED
from helpers.assembling import (
    EMPTY_DICT,
    NONE,
    build,
    call,
    fields,
    instance,
    listed,
    name,
    namespace,
    new,
    pairs,
    row,
    text,
)
from helpers.derived import FACTORY, MODULE, SUBSET, T
from helpers.quiet import is_reported

X = text("x")
RELU = instance("torch.nn.modules.activation.ReLU", **MODULE)
HONEST = {
    "settings": instance("somelib.Trainer", args=namespace(hook=T, depth=X)),
    "a function": instance("somelib.Trainer", args=row(T, X), state=T),
    "objects of the user's": instance(
        "somelib.Trainer", state=instance("somelib.State", steps=X), defaults=EMPTY_DICT
    ),
    "a factory of empty values": instance(
        "somelib.Optimizer", state=call("collections.defaultdict", name("builtins.dict"))
    ),
    "a module": instance("somelib.Trainer", state=instance(
        "torch.nn.modules.container.Sequential", **{**MODULE, "_modules": pairs((X, RELU))}
    )),
    "a model that is called as a class of Python": instance(
        "somelib.Pool", **{**MODULE, "_modules": pairs((X, RELU))}
    ),
    "a factory under another name": instance("somelib.Trainer", made_by=FACTORY),
}  # fmt: skip


@pytest.mark.parametrize("state", HONEST)
def test_what_users_keep_is_not_reported(state):
    assert not is_reported(HONEST[state])


@pytest.mark.parametrize("attribute", ["args", "state", "param_groups", "_all_weights"])
@pytest.mark.parametrize(
    "value", [FACTORY, SUBSET, listed(FACTORY), instance("somelib.Any", get=T)], ids=repr
)
def test_what_could_call_when_it_is_read_is_reported(attribute, value):
    assert is_reported(instance("somelib.Any", **{attribute: value}))


def test_a_state_that_is_a_row_may_be_iterated():
    assert is_reported(new("somelib.Any") + row(X, SUBSET, X) + b"b")
    assert not is_reported(new("somelib.Any") + row(X, T, X) + b"b")


def in_slots(made: bytes, **slots: bytes) -> bytes:
    return build(made, row(NONE, fields(**slots)))


def test_functions_in_slots_are_kept_by_objects_that_stand_for_no_other():
    trainer = new("somelib.Trainer", X)
    assert not is_reported(in_slots(trainer, steps=X, schedule=T, more=listed(T)))
    assert not is_reported(in_slots(trainer, config=instance("somelib.Config", width=X)))
    assert is_reported(in_slots(trainer, schedule=T, config=instance("somelib.Config", width=X)))
    assert is_reported(in_slots(new("somelib.Trainer", new("somelib.Any")), schedule=T))


def test_a_factory_that_is_set_in_slots_makes_an_empty_value():
    for made in (name("builtins.dict"), X):
        assert not is_reported(in_slots(new("somelib.defaultdict"), default_factory=made))
    assert is_reported(in_slots(new("somelib.defaultdict"), default_factory=T))
    assert not is_reported(instance("somelib.Dict", default_factory=T))  # an attribute


def test_items_under_keys_of_any_kind_are_kept():
    member, kept = call("somelib.Mode", X), instance("somelib.Any", get=T)
    assert not is_reported(new("somelib.Registry") + X + kept + b"s")
    assert not is_reported(new("somelib.Registry") + row(X, X) + kept + b"s")
    assert not is_reported(new("somelib.Registry") + member + T + b"s")
    assert not is_reported(new("somelib.Registry") + name("torch.float32") + T + b"s")
    assert is_reported(new("somelib.Registry") + call("builtins.slice", NONE) + kept + b"s")


def test_rows_may_have_the_form_of_the_arguments_of_a_metaclass():
    assert not is_reported(new("somelib.Point", X, row(X), fields(function=T, close=T)))
    assert not is_reported(new("somelib.Point", fields(function=T), T, row(X), X))
    assert is_reported(new("somelib.Point", X, row(X), fields(extend=T)))
    assert is_reported(new("somelib.Point", X, row(X), fields(extend=T), X))


def test_classes_are_known_by_their_own_names_in_the_packages_of_users():
    assert is_imported("somelib.archives.ZipFile")
    assert is_imported("somelib.NpzFile")  # of those that act when they are dropped
    assert not is_imported("zipfile.ZipFile")  # Python's own have stricter rules
    assert not is_imported("somelib.Model")


def test_a_module_holds_objects_whatever_its_class_is_called():
    assert worst_of_imported(dict.fromkeys(("_parameters", "_buffers", "_modules"))) == NESTED
    assert worst_of_imported({"fp": None}) == FOREIGN


def test_names_of_attributes_are_text():
    assert is_reported(instance("argparse.Namespace") + pairs((name("somelib.NAME"), T)) + b"b")
    assert not is_reported(fields(x=pairs((name("somelib.NAME"), T))))
