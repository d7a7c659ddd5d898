"""torch's modules as objects of a pickle."""

from __future__ import annotations

from ckptool.formats.pickles.modules import is_module, modules_below
from ckptool.tree.nodes import Opaque


def module(**modules: object) -> Opaque:
    state = {"_parameters": {}, "_buffers": {}, "_modules": modules}
    return Opaque("torch.nn.modules.container.Sequential", state=state)


def test_a_module_has_three_attributes():
    assert is_module(module())
    assert not is_module(Opaque("somelib.Thing", state={"_modules": {}}))
    assert not is_module({"_parameters": {}, "_buffers": {}, "_modules": {}})


def test_all_modules_below_are_met_once():
    inner = module()
    outer = module(a=inner, b=module(c=inner, d=None))
    outer.state["_modules"]["itself"] = outer
    assert len(list(modules_below(outer.state))) == 3
