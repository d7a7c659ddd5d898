"""The search for tensors in everything that a container holds."""

from __future__ import annotations

import pytest
import torch

from ckptool import open_checkpoint
from ckptool.contents.finder import Finder, is_aside, tensors_in
from ckptool.errors import DamagedError
from ckptool.tree.nodes import TensorRef


@pytest.fixture
def tree(tmp_path):
    def read(content):
        torch.save(content, tmp_path / "a.pt")
        with open_checkpoint(tmp_path / "a.pt") as checkpoint:
            return checkpoint.tree

    return read


def test_tensors_are_found_wherever_they_are(tree):
    one, other = torch.ones(2), torch.ones(3)
    found = tensors_in(tree({"a": [(one,)], "b": {"c": {"d": other}}, "e": 1, "again": [one]}))
    assert all(isinstance(ref, TensorRef) for ref in found)
    assert sorted(ref.shape for ref in found) == [(2,), (2,), (3,)]
    assert tensors_in(tree({"a": [1, "b"]})) == []


def test_a_container_in_many_places_is_searched_once(tree):
    shared = [torch.ones(2)]
    assert len(tensors_in(tree({"a": shared, "b": [shared, shared]}))) == 1


def test_the_room_of_all_searches_is_limited(monkeypatch):
    finder = Finder()
    finder.spend(5)
    with pytest.raises(DamagedError, match="unfold without end"):
        finder.spend(1 << 40)


def test_states_of_generators_and_optimizers_are_aside(tree):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], momentum=0.9)
    content = tree({
        "rng": torch.get_rng_state(), "optim": optimizer.state_dict(), "optim_head": torch.ones(2),
    })  # fmt: skip
    aside = {name: is_aside(name, node, Finder()) for name, node in content.items()}
    assert aside == {"rng": True, "optim": True, "optim_head": False}
