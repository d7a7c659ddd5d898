"""Pickles that name a class by another module than its own, or replace a method that torch calls.

The module of a name does not say what the class is: torch's modules hand out others' classes, and
so do the user's. Each value is the body of a pickle that calls ``quietlib.touch``, as in
``test_grammar.py``.
"""

from __future__ import annotations

import pickle

from helpers.assembling import (
    EMPTY_DICT,
    FALSE,
    NONE,
    build,
    call,
    data,
    fields,
    instance,
    name,
    namespace,
    new,
    number,
    program,
    row,
    text,
)

X, TOUCH = text("x"), name("quietlib.touch")
STREAM = data(program(call("quietlib.touch")))
MODULE = {"_parameters": EMPTY_DICT, "_buffers": EMPTY_DICT, "_modules": EMPTY_DICT}
DDP = "torch.nn.parallel.distributed.DistributedDataParallel"


def _function() -> bytes:
    """Return a function made of its code, as ``types.FunctionType`` of the user's module makes it.

    The code is that of this version of Python.
    """
    source = "def run(*args):\n    import quietlib\n    quietlib.touch()\n"
    code = next(c for c in compile(source, "", "exec").co_consts if hasattr(c, "co_code"))
    parts = ["argcount", "posonlyargcount", "kwonlyargcount", "nlocals", "stacksize", "flags",
             "code", "consts", "names", "varnames", "filename", "name", "qualname", "firstlineno",
             "linetable", "exceptiontable", "freevars", "cellvars"]  # fmt: skip
    args = tuple(getattr(code, f"co_{part}") for part in parts)
    made = name("quietlib.CodeType") + pickle.dumps(args, 3)[2:-1] + b"\x81"
    return new("quietlib.FunctionType", made, EMPTY_DICT)


def _called_hook(with_module: bytes) -> bytes:
    return instance("torch.nn.modules.module._WrappedHook", hook=NONE, with_module=with_module,
                    module=NONE)  # fmt: skip


def _number(module: str) -> bytes:
    return instance(f"{module}.SymInt", node=namespace(int_=TOUCH))


HANDED = {
    # --------------------------------------------------------------------- a class by another name
    "unpickler-of-iterables": build(
        new("torch.utils.data.dataloader._IterDataPipeSerializationWrapper"), row(STREAM, FALSE)
    ),
    "unpickler-of-maps": build(
        new("torch.utils.data.dataloader._MapDataPipeSerializationWrapper"), row(STREAM, FALSE)
    ),
    "unpickler-of-the-users": build(
        new("quietlib._IterDataPipeSerializationWrapper"), row(STREAM, FALSE)
    ),
    "optimizer-of-schedulers": instance(
        "torch.optim.lr_scheduler.Optimizer", defaults=EMPTY_DICT, _patch_step_function=TOUCH
    ),
    "optimizer-of-the-users": instance(
        "quietlib.Optimizer", defaults=EMPTY_DICT, _patch_step_function=TOUCH
    ),
    "symbol-of-distributions": call(
        "builtins.OSError", number(11), X, _number("torch.distributions.utils")
    ),
    "symbol-of-the-users": call("builtins.OSError", number(11), X, _number("quietlib")),
    "symbol-as-bytes-written": instance(
        "builtins.OSError", characters_written=_number("quietlib")
    ),
    "symbol-in-a-unicode-error": call(
        "builtins.UnicodeDecodeError", X, data(b"x"), _number("quietlib"), number(1), X
    ),
    "code-of-the-users": build(namespace(__setstate__=_function()), X),
    # -------------------------------------------------------- a method is replaced by an attribute
    "parameters-of-a-reducer": instance(DDP, **MODULE, _build_params_for_reducer=TOUCH),
    "modules-of-a-reducer": instance(DDP, **{
        **MODULE, "_modules": fields(module=namespace(named_modules=TOUCH)), "training": FALSE,
    }),
    "modules-below-a-reducer": instance(DDP, **{
        **MODULE, "_modules": fields(module=instance("torch.nn.modules.container.Sequential", **{
            **MODULE, "_modules": fields(a=namespace(named_modules=TOUCH)),
        })),
    }),
    # --------------------------------------------------------------------------- asked for a truth
    "length-of-a-set-of-data": _called_hook(instance(
        "torch.utils.data.dataset.ConcatDataset",
        cumulative_sizes=call("collections.defaultdict", TOUCH),
    )),
}  # fmt: skip
