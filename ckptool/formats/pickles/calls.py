"""``CALLS``: the pickled calls that make a tensor, a dict or an array.

``CALLS`` maps the name of a function to one of ours that turns the same arguments into inert data.
Our functions allocate nothing and read nothing: they check sizes against the storage and make
references.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptool.errors import CkptError, DamagedError
from ckptool.formats.pickles.python_calls import NDARRAY, NUMPY_CALLS, PYTHON_CALLS
from ckptool.formats.pickles.tensor_views import Call
from ckptool.formats.pickles.torch_calls import TORCH_CALLS
from ckptool.tree.nodes import GlobalRef

CALLS: Mapping[str, Call] = {**TORCH_CALLS, **PYTHON_CALLS, **NUMPY_CALLS}

# Three kinds of calls need the builder itself: they make another call or an object, or open a
# nested stream.
FROM_TYPE = {"torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2"}
FROM_TYPE |= {name.replace("_tensor", "tensor") for name in FROM_TYPE}  # before torch 1.9
NESTED = {"torch.storage._load_from_bytes"}

# Calls that copy their arguments. A pickle may give one object to a million of them.
COPYING = frozenset(PYTHON_CALLS) | frozenset(NUMPY_CALLS) | {
    "torch.Size", NDARRAY, "tensordict._reductions._make_td",
}  # fmt: skip

NEWOBJ = {
    f"{module}.{name}"
    for module in ("copyreg", "copy_reg")
    for name in ("__newobj__", "__newobj_ex__")
}

# Calls whose result we may be unable to compute, and a loader can: it could be a nested stream.
UNREAD = frozenset({"_codecs.encode"})

# Calls of which our own function refuses everything but data: no other rule has to look at it.
REFUSING = frozenset({
    "_codecs.encode", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
})  # fmt: skip

# Functions that run source code from the file: a module around a class.
RUNS_SOURCE = frozenset({
    "torch_utils.persistence._reconstruct_persistent_obj",
    "torch.fx.graph_module.reduce_graph_module",
})  # fmt: skip


def checked(call: Call, what: GlobalRef | str, args: tuple[Any, ...]) -> Any:
    """Return ``call(*args)``; refuse arguments that it cannot take (``what`` names it)."""
    try:
        return call(*args)
    except CkptError:
        raise
    except Exception as error:
        name = what if isinstance(what, str) else what.qualname
        raise DamagedError(f"{name} is given what it cannot take: {error}") from error
