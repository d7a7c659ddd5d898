"""A tracer notes what goes into each value, also where the tree does not show it."""

from __future__ import annotations

from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.formats.pickles.trace import Trace
from ckptool.formats.pickles.tracer import Tracer
from ckptool.tree.nodes import GlobalRef, Opaque


def test_the_arguments_of_a_call_go_into_what_it_makes():
    trace, held = Trace(), Opaque("lib.Held")
    made = Tracer(TorchBuilder(lambda _key, _nbytes: None), trace).call(
        GlobalRef("lib", "make"), (held,)
    )
    assert any(each is held for each in trace.inputs_of(made))
    assert trace.given == [made]
