"""What the state dict of an optimizer tells of it: torch's own optimizers are the judge."""

import pytest
import torch

from ckptool.contents.inventory import take_inventory
from ckptool.contents.optimizers import MAX_PARAMETERS, kind_of, read_optimizers
from ckptool.formats import open_checkpoint

KINDS = ("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "LBFGS", "NAdam", "RMSprop",
         "Rprop", "SGD")  # fmt: skip


def kinds(path):
    with open_checkpoint(path) as checkpoint:
        inventory = take_inventory(checkpoint.tree)
        return [kind_of(o, inventory.optimizers[o.address]) for o in read_optimizers(inventory)]


@pytest.mark.parametrize("name", KINDS)
def test_settings_tell_the_kind(name, tmp_path):
    optimizer = getattr(torch.optim, name)([torch.nn.Parameter(torch.ones(2))])
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    assert kinds(tmp_path / "a.pt") == [name]


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"betas": (0.9, 0.99), "amsgrad": False}, "Adam or AdamW"),  # before torch 2.6
        ({"betas": (0.9, 0.99), "amsgrad": False, "decoupled_weight_decay": []}, "Adam or AdamW"),
        ({"betas": (0.9, 0.99)}, None),  # Lion, Adamax, RAdam and others
        ({}, None),
    ],
)
def test_settings_that_several_optimizers_have_name_none_of_them(settings, kind, tmp_path):
    state = {"state": {}, "param_groups": [{"params": [0], **settings}]}
    torch.save({"optimizer": state}, tmp_path / "a.pt")
    assert kinds(tmp_path / "a.pt") == [kind]


def test_a_pickled_optimizer_has_its_class(tmp_path):
    torch.save({"opt": torch.optim.SGD([torch.ones(2)], lr=0.1)}, tmp_path / "a.pt")
    assert kinds(tmp_path / "a.pt") == ["SGD"]


def test_a_group_that_is_listed_very_often_costs_no_memory():
    group = {"params": list(range(1000))}
    state = {"state": {0: {}}, "param_groups": [group] * 100_000}
    (optimizer,) = read_optimizers(take_inventory({"optimizer": state}))
    assert len(optimizer.parameters) == MAX_PARAMETERS


def test_a_list_with_containers_is_none_of_parameters():
    groups = [{"params": [0, {"a": 1}], "param_names": ["w", "v"]}, {"params": [1]}]
    state = {"state": {0: {}, 1: {}}, "param_groups": groups}
    (optimizer,) = read_optimizers(take_inventory({"optimizer": state}))
    assert optimizer.parameters == (1,)
    assert optimizer.names == {}
