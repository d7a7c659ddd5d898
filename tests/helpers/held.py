"""Pickles that give a class of Python's, torch's or numpy's an object that holds a function.

Each value is the body of a pickle that calls ``quietlib.touch``, as in ``test_grammar.py``.
"""

from __future__ import annotations

from helpers.assembling import (
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    FALSE,
    NONE,
    TRUE,
    build,
    call,
    data,
    fields,
    instance,
    legacy_file,
    listed,
    name,
    new,
    number,
    pairs,
    row,
    text,
)

T = name("quietlib.touch")
X, ONE = text("x"), number(1)
HOLDER = instance("quietlib.Caller", held=T)  # its class calls what it holds, whatever is asked
MEMO = b"\x94"
PLAIN_MODULE = dict.fromkeys(("_parameters", "_buffers", "_modules"), EMPTY_DICT)
LSTM = {
    **PLAIN_MODULE, "_flat_weights_names": EMPTY_LIST, "num_layers": ONE, "bidirectional": FALSE,
    "bias": FALSE,
}  # fmt: skip
RECONSTRUCT = "copyreg._reconstructor"
EVIL = data(legacy_file(call("quietlib.touch")))
LOADB = name("torch.storage._load_from_bytes")


def got(index: int) -> bytes:
    return b"h" + bytes([index])


def date(zone: bytes) -> bytes:
    return call("datetime.datetime", data(bytes([7, 230, 1, 1, 0, 0, 0, 0, 0, 0])), zone)


# A date whose time zone gets its function only after the date was made: memo entry 1 is the date.
LATE_DATE = (
    new("quietlib.Zone") + MEMO + b"0" + date(got(0)) + MEMO + b"0"
    + build(got(0), fields(utcoffset=T)) + b"0"
)  # fmt: skip


def dtype(code: str, *state: bytes) -> bytes:
    return (
        build(call("numpy.dtype", text(code), FALSE, TRUE), row(*state))
        if state
        else call("numpy.dtype", text(code), FALSE, TRUE)
    )


def structured(element: bytes) -> bytes:
    """Return an array of one element with a number and an object."""
    number_, object_ = (dtype(code) for code in ("f8", "O8"))
    columns = row(text("a"), text("b"))
    of_columns = fields(a=row(number_, number(0)), b=row(object_, number(8)))
    kind = dtype(
        "V16", number(3), text("|"), NONE, columns, of_columns, number(16), ONE, number(63)
    )
    empty = call(
        "numpy._core.multiarray._reconstruct", name("numpy.ndarray"), row(number(0)), data(b"b")
    )
    return build(empty, row(ONE, row(ONE), kind, FALSE, listed(element)))


def parser(cls: str) -> bytes:
    """Return an object whose class calls ``keys`` of its sections when it is iterated."""
    return instance(cls, default_section=X, _sections=instance("quietlib.Plain", keys=T))


LARGE = listed(*(number(n) for n in range(1000))) + MEMO
SHARING = [build(new("quietlib.Plain"), b"}" + X + got(0) + b"s") for _ in range(2300)]

HELD = {
    # ---------------------------------------------------------- objects that hold functions
    "constructor-of-a-holder": new("itertools.product", HOLDER),
    "constructor-of-a-row-of-holders": new("itertools.zip_longest", listed(ONE), HOLDER),
    "hash-of-a-holder": pairs((date(instance("quietlib.Zone", utcoffset=T)), NONE)),
    "hash-of-a-late-holder": LATE_DATE + pairs((got(1), NONE)),
    "hash-of-a-late-holder-in-a-set": LATE_DATE + b"\x8f(" + got(1) + b"\x90",
    "hash-by-a-foreign-row": LATE_DATE + pairs((new("quietlib.Pair", got(1), ONE), NONE)),
    "state-of-a-holder": instance("torch.nn.modules.rnn.LSTM", **LSTM, _all_weights=HOLDER),
    "state-of-a-row-of-holders": build(
        new("torch.distributed.checkpoint.metadata.TensorProperties"),
        row(name("torch.float32"), X, FALSE, HOLDER, FALSE),
    ),
    "stream-of-jinja": new("itertools.product", instance(
        "jinja2.environment.TemplateStream", _next=name("quietlib.stop")
    )),
    "comparison-with-a-key-that-is-filled-later": (
        new("quietlib.RealZone") + MEMO + b"0\x8f(" + date(got(0)) + b"\x90"
        + build(got(0), fields(utcoffset=T)) + b"0(" + date(new("quietlib.RealZone")) + b"\x90"
    ),
    # ------------------------------------------------------------------ what a base is given
    "base-text-of-a-row": call(
        RECONSTRUCT, name("quietlib.Text"), name("builtins.str"), listed(HOLDER)
    ),
    "base-set-of-a-row": LATE_DATE + call(
        RECONSTRUCT, name("quietlib.Set"), name("builtins.set"), listed(got(1))
    ),
    "base-dict-of-pairs": LATE_DATE + call(
        RECONSTRUCT, name("quietlib.Dict"), name("builtins.dict"), listed(row(got(1), NONE))
    ),
    "number-of-a-structured-array": structured(row(HOLDER, NONE)),
    "element-of-a-structured-array": structured(HOLDER),
    # ------------------------------------------------------------- states of another form, later
    "module-state-of-pairs": build(
        new("torch.nn.modules.rnn.LSTM"),
        listed(*(row(text(key), value) for key, value in LSTM.items()),
               row(text("_all_weights"), HOLDER)),
    ),
    "state-filled-later": build(
        new("quietlib.Plain") + MEMO, row(NONE, fields(__dict__=EMPTY_DICT + MEMO))
    ) + b"0" + got(1) + text("append") + T + b"s0" + got(0) + X + b"a",
    # ------------------------------------------------- states that call where a key is missing
    "handle-of-hooks": build(
        new("torch.utils.hooks.RemovableHandle"), call("collections.defaultdict", T)
    ),
    "wrapped-hook": build(
        new("torch.nn.modules.module._WrappedHook"), call("collections.defaultdict", T)
    ),
    "arguments-of-an-exception": build(call("builtins.ValueError"), fields(args=instance(
        "torch.utils.data.dataset.Subset",
        dataset=call("collections.defaultdict", T), indices=listed(number(0)),
    ))),
    "arguments-of-an-exception-by-a-holder": build(
        call("builtins.ValueError"),
        fields(args=instance("quietlib.Caller", held=T)),
    ),
    # --------------------------------------------------------- classes that act by themselves
    "finalizer": instance("numpy.lib._npyio_impl.NpzFile", zip=new("quietlib.Closes"), fid=NONE),
    "constructor": new("numpy.matrixlib.defmatrix.matrix", new("quietlib.Answers")),
    # ------------------------------------------------------------------------ what is exhausted
    "armed-after-much-sharing": listed(
        LARGE, *SHARING, call(LOADB, data(legacy_file(NONE))), new("quietlib.Apply", LOADB, EVIL)
    ),
    # ---------------------------------------------------------------------------------- names
    "name-of-python-2": b"\x80\x02" + new(
        "itertools.product", parser("ConfigParser.RawConfigParser")
    ),
    "markup": new("markupsafe.Markup", instance("quietlib.Plain", __html__=T)),
    "metaclass-with-an-ordered-dict": new(
        "quietlib.Meta", text("Two"), row(new(
            "quietlib.Meta", text("One"), EMPTY_TUPLE,
            call("collections.OrderedDict") + b"(" + text("__init_subclass__") + T + b"u",
        )), EMPTY_DICT,
    ),
}  # fmt: skip
