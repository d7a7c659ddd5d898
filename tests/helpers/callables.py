"""Pickles that give a class of Python's, torch's or numpy's an object whose class can be called.

No function of the pickle's is in them: ``numpy._pytesttester.PytestTester`` can be called, and then
runs the tests of a package by its name. Each value is the body of a pickle that makes such a call,
as in ``test_grammar.py``, whose loader counts the calls.
"""

from __future__ import annotations

import pickle

from numpy._pytesttester import PytestTester
from torch.utils.data import DataLoader
from torch.utils.data.sampler import BatchSampler

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
    number,
    pairs,
    row,
    text,
)

X, ONE = text("x"), number(1)
CALLED = instance("numpy._pytesttester.PytestTester", module_name=text("quietlib"))


def saved(made: object) -> bytes:
    """Return the instructions by which pickle itself makes an object."""
    return pickle.dumps(made, 2)[2:-1]


# It calls the tester for each batch when it is iterated.
LOADER = saved(DataLoader([1, 2], collate_fn=PytestTester("quietlib")))
BATCHES = saved(BatchSampler(DataLoader([1, 2], collate_fn=PytestTester("quietlib")), 1, False))
STRATEGIES = "torch.distributed.tensor._op_schema"
VIEW = "networkx.classes.reportviews.OutEdgeDataView"

CALLABLE = {
    # ---------------------------------------------------------------------------- constructors
    "product-of-a-loader": new("itertools.product", LOADER),
    "product-of-batches": new("itertools.product", BATCHES),
    "permutations-of-a-loader": new("itertools.permutations", LOADER),
    "combinations-of-a-loader": new("itertools.combinations", LOADER, ONE),
    "combinations-with-replacement": new(
        "itertools.combinations_with_replacement", LOADER, ONE
    ),
    "chain-by-newobj-ex": call(
        "copyreg.__newobj_ex__", name("itertools.product"), row(LOADER), fields(repeat=ONE)
    ),
    "result-of-torch": new("torch.return_types.max", LOADER),
    "text-with-markup": new("markupsafe.Markup", namespace(__html__=CALLED)),
    # ----------------------------------------------------------------------------------- states
    "table-of-side-codes": build(
        new("torch._higher_order_ops.wrap.InductorCodeSideTable"),
        fields(id_to_callable=namespace(items=CALLED)),
    ),
    "viewed-edges": build(
        new(VIEW),
        fields(viewer=namespace(
            _adjdict=namespace(items=ONE), _graph=namespace(nbunch_iter=CALLED)
        ), nbunch=ONE),
    ),
    "names-of-a-mesh": build(
        new("torch.distributed.device_mesh.DeviceMesh"), fields(_dim_group_names=LOADER)
    ),
    "setstate-of-a-namespace": build(namespace(__setstate__=CALLED), X),
    "append-of-a-namespace": namespace(append=CALLED) + X + b"a",
    "extend-of-a-users-object": build(new("quietlib.Plain"), fields(extend=CALLED))
    + b"(" + X + b"e",
    "state-in-slots": build(
        build(new("argparse.Namespace"), row(NONE, fields(__setstate__=CALLED))), X
    ),
    # --------------------------------------------------------------------------- keys and hashes
    "key-of-strategies": pairs((
        build(new(f"{STRATEGIES}.OpStrategy"), fields(strategies=LOADER)), NONE
    )),
    "key-of-nested-strategies": pairs((
        build(new(f"{STRATEGIES}.TupleStrategy"), fields(children=BATCHES)), NONE
    )),
    "strategies-in-a-set": b"\x8f("
    + build(new(f"{STRATEGIES}.TupleStrategy"), fields(children=LOADER)) + b"\x90",
    "strategies-in-a-frozen-set": b"("
    + build(new(f"{STRATEGIES}.OpStrategy"), fields(strategies=LOADER)) + b"\x91",
    "strategies-in-a-tuple": pairs((
        row(ONE, build(new(f"{STRATEGIES}.OpStrategy"), fields(strategies=LOADER))), NONE
    )),
    "strategies-in-a-users-key": pairs((
        new("quietlib.Pair", ONE,
            build(new(f"{STRATEGIES}.OpStrategy"), fields(strategies=LOADER))), NONE
    )),
    # ------------------------------------------------------------------------------ vetted calls
    "dict-of-a-namespace": call(
        "collections.OrderedDict", namespace(keys=CALLED)
    ),
    "list-of-a-loader": call("builtins.list", LOADER),
    "list-of-a-reconstructed-row": call(
        "copyreg._reconstructor", name("quietlib.Set"), name("builtins.set"), LOADER
    ),
    "factory-asked-by-an-optimizer": instance(
        "torch.optim.adam.Adam", defaults=EMPTY_DICT, state=EMPTY_DICT, param_groups=listed(
            call("collections.defaultdict", CALLED) + b"(" + X + ONE + b"u"
        ),
    ),
}  # fmt: skip
