"""Pickles of classes of Python's or torch's under a name of the user's, or derived from one.

Their methods are Python's or torch's, and read what the state holds. Others make a value whose
parts are not those that ckptool reads. Each value is the body of a pickle that calls
``quietlib.touch``, as in ``test_grammar.py``.
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
    listed,
    name,
    namespace,
    new,
    number,
    pairs,
    row,
    storage,
    text,
    torch_zip,
)

X, ZERO, ONE, T = text("x"), number(0), number(1), name("quietlib.touch")
MEMO = b"\x94"
MODULE = dict.fromkeys(("_parameters", "_buffers", "_modules"), EMPTY_DICT)
FACTORY = call("collections.defaultdict", T)
# They call the factory: the first when it is iterated, the second when it is asked for its length.
SUBSET = instance("torch.utils.data.dataset.Subset", dataset=FACTORY, indices=listed(ZERO))
CONCAT = instance("torch.utils.data.dataset.ConcatDataset", cumulative_sizes=FACTORY)
LOADER = "torch.utils.data.dataloader.DataLoader"
ANY_SET = b"\x8f"
CALLER = instance("quietlib.Caller", held=T)  # its class calls what it holds, whatever is asked
TESTER = instance("quietlib.Tester", module_name=X)  # it can be called
PARTIAL = call("functools.partial", T)


def got(index: int) -> bytes:
    return b"h" + bytes([index])


def new_by_keywords(cls: str, **given: bytes) -> bytes:
    return name(cls) + EMPTY_TUPLE + fields(**given) + b"\x92"


def date(zone: bytes) -> bytes:
    return call("datetime.datetime", data(bytes([7, 230, 1, 1, 0, 0, 0, 0, 0, 0])), zone)


def prepared(zone: bytes) -> bytes:
    """The time zone, which is memo entry 0, gets a function after its date was used."""
    return build(zone, fields(utcoffset=T)) + b"0"


REAL = new("quietlib.RealZone")


def compared(made: bytes, *more: bytes) -> bytes:
    """A container made by a call with a date as its key, which is compared with a later one."""
    first = REAL + MEMO + b"0" + made + MEMO + b"0" + prepared(got(0))
    return first + got(1) + b"".join(more)


ADDED = b"(", date(REAL), b"\x90"
KEY = date(got(0))


def optimizer(**state: bytes) -> bytes:
    plain = {"param_groups": EMPTY_LIST, "defaults": EMPTY_DICT, "state": EMPTY_DICT}
    return instance("quietlib.Optimizes", **{**plain, **state})


def asked(attribute: bytes) -> bytes:
    """An optimizer asks its defaults for ``setdefault``."""
    return optimizer(defaults=build(new("argparse.Namespace"), pairs((attribute, T))))


def recurrent(cls: str, **state: bytes) -> bytes:
    plain = {"_all_weights": listed(listed(ONE)), "num_layers": ONE, "bidirectional": FALSE,
             "bias": FALSE}  # fmt: skip
    return instance(cls, **{**MODULE, **plain, **state})


def dtype(code: str, size: int, order: str) -> bytes:
    state = number(3), text(order), NONE, NONE, NONE, number(size), ONE, ZERO
    return build(call("numpy.dtype", text(code), FALSE, TRUE), row(*state))


def scalar(kind: bytes, value: bytes) -> bytes:
    return call("numpy._core.multiarray.scalar", kind, data(value))


def cut(word: str, size: int, *, by_state: bool = False) -> bytes:
    """A text of numpy of which only the first characters are the name that numpy makes of it."""
    code = f"U{len(word) if by_state else size}"
    return scalar(dtype(code, 4 * size, "<"), word.encode("utf-32-le"))


def two_streams() -> tuple[int, bytes]:
    """A zip that calls, with a harmless one behind it, and the length of the first."""
    acts = torch_zip(call("quietlib.touch"))[:-2] + b"\1\0x"  # numpy drops zeros at the end
    quiet = bytearray(torch_zip(NONE))
    end = quiet.rfind(b"PK\5\6")
    entry = directory = int.from_bytes(quiet[end + 16 : end + 20], "little")
    for at in [end + 16]:
        quiet[at : at + 4] = (directory + len(acts)).to_bytes(4, "little")
    while quiet[entry : entry + 4] == b"PK\1\2":
        place = slice(entry + 42, entry + 46)
        moved = int.from_bytes(quiet[place], "little") + len(acts)
        quiet[place] = moved.to_bytes(4, "little")
        entry += 46 + sum(
            int.from_bytes(quiet[entry + at : entry + at + 2], "little") for at in (28, 30, 32)
        )
    return len(acts), acts + bytes(quiet)


LENGTH, STREAMS = two_streams()


def archive(file: bytes) -> bytes:
    """A ZipFile of the user's, which closes its file."""
    return instance(
        "quietlib.Archive", fp=build(file, fields(close=T)), mode=text("r"), _writing=FALSE,
        _fileRefCnt=ONE, _filePassed=ZERO,
    )  # fmt: skip


def hashed_later(*, is_module: bool) -> bytes:
    """A key that holds a date, whose time zone gets a function after the date was made."""
    parts = REAL + MEMO + b"0" + date(got(0)) + MEMO + b"0" + prepared(got(0))
    state = MODULE if is_module else {}
    return parts + pairs((instance("quietlib.Key", **state, when=got(1)), ONE))


# What a module needs to be called, and a hook that is called before.
HOOKS = {
    "_forward_pre_hooks": pairs((ONE, T)), "_forward_hooks": EMPTY_DICT,
    "_backward_hooks": EMPTY_DICT, "_backward_pre_hooks": EMPTY_DICT,
    "_forward_hooks_with_kwargs": EMPTY_DICT, "_forward_pre_hooks_with_kwargs": EMPTY_DICT,
    "_forward_hooks_always_called": EMPTY_DICT,
}  # fmt: skip


def promise(loop: bytes) -> bytes:
    """A future of the user's that tells its loop of an exception that nobody asked for."""
    return instance(
        "quietlib.Promise", _Future__log_traceback=TRUE, _exception=NONE, _source_traceback=NONE,
        _loop=loop,
    )  # fmt: skip


SLICE = call("builtins.slice", NONE, NONE)


def handed_on(proxy: bytes, **slots: bytes) -> bytes:
    """A dict of the user's, memo entry 0, that another object gives the attributes in its slots."""
    given = build(proxy, row(NONE, fields(**slots)))
    return listed(new("quietlib.Sorted") + MEMO, given, got(0) + X + ONE + b"s")


DERIVED = {
    # ----------------------------------------------- methods that pickle calls to fill a class
    "class-that-is-appended-to": new(
        "quietlib.Meta", X, EMPTY_TUPLE, fields(append=T)
    ) + X + b"a",
    "class-that-is-extended": new(
        "quietlib.Meta", X, EMPTY_TUPLE, fields(extend=T)
    ) + b"(" + X + b"e",
    "class-that-is-added-to": new(
        "quietlib.Meta", X, EMPTY_TUPLE, fields(add=PARTIAL)
    ) + b"(" + X + b"\x90",
    "class-by-newobj-of-copyreg": call(
        "copyreg.__newobj__", name("quietlib.Meta"), X, EMPTY_TUPLE, fields(append=T)
    ) + X + b"a",
    # ------------------------------------------------------------ items that are not only kept
    "slice-of-a-list": new("quietlib.Items") + SLICE + SUBSET + b"s",
    "slice-by-a-name": new("quietlib.Items") + name("quietlib.ALL") + SUBSET + b"s",
    "slice-of-imported-groups": new("quietlib.Items") + SLICE + new(
        "quietlib.groupby", listed(X), T
    ) + b"s",
    "item-of-an-array-by-keywords": new_by_keywords("quietlib.Rows", shape=row(ONE))
    + ZERO + CALLER + b"s",
    # --------------------------------------------------- attributes that get to another object
    "attribute-of-another-object": handed_on(new("quietlib.Proxy", got(0)), _list_add=T),
    "attribute-of-an-object-in-slots": handed_on(
        new("quietlib.Proxy"), other=got(0), _list_add=T
    ),
    "attribute-of-an-alias": handed_on(call("quietlib.Proxy", got(0)), _list_add=T),
    "comparison-of-what-looks-like-a-module": pairs(*(
        (instance("quietlib.Same", **MODULE, held=build(
            new("quietlib.Default"), row(NONE, fields(default_factory=T)))), each)
        for each in (ZERO, ONE)
    )),
    # -------------------------------------------------------------- files that are dropped
    "imported-response": instance("quietlib.HTTPResponse", fp=ONE, _close_conn=T),
    "response-of-the-users": instance("quietlib.Response", fp=ONE, _close_conn=PARTIAL),
    # ----------------------------------------------- what a derived class reads in a state
    "arguments-of-the-users-error": build(new("quietlib.Error"), fields(args=SUBSET)),
    "groups-of-the-users-optimizer": optimizer(
        param_groups=listed(call("collections.defaultdict", T) + X + ONE + b"s")
    ),
    "defaults-of-the-users-optimizer": optimizer(
        defaults=instance("quietlib.Plain", setdefault=T)
    ),
    "defaults-that-are-a-module": optimizer(defaults=instance(
        "torch.nn.modules.linear.Identity", **{**MODULE, "_modules": fields(setdefault=T)}
    )),
    "state-of-the-users-optimizer": optimizer(
        param_groups=listed(fields(params=listed(X))), state=instance("quietlib.Plain", get=T)
    ),
    "imported-optimizer": instance(
        "quietlib.Adam", defaults=EMPTY_DICT, state=EMPTY_DICT, param_groups=listed(FACTORY)
    ),
    "weights-of-the-users-module": recurrent("quietlib.Recurrent", _all_weights=FACTORY),
    "weights-of-an-imported-module": recurrent("quietlib.LSTM", _all_weights=FACTORY),
    "modules-of-the-users-module": recurrent("quietlib.Recurrent", _modules=SUBSET),
    "truth-of-the-users-module": recurrent("quietlib.Recurrent", bias=CONCAT),
    "state-of-an-imported-generator": build(
        new("quietlib.Random"), row(number(2), SUBSET, NONE)
    ),
    # ----------------------------------------------- classes of Python that many modules import
    "imported-reference": new("quietlib.ref", ANY_SET, T),
    "imported-product": new("quietlib.product", SUBSET),
    "imported-archive": instance(
        "quietlib.ZipFile", fp=namespace(close=T), mode=text("r"), _writing=FALSE,
        _fileRefCnt=ONE, _filePassed=ZERO,
    ),
    "imported-arrays": instance(
        "quietlib.NpzFile", zip=instance("quietlib.Plain", close=T), fid=NONE
    ),
    "imported-process": instance(
        "quietlib.Popen", _child_created=TRUE, returncode=NONE, pid=ONE, _internal_poll=T
    ),
    "imported-barrier": build(
        new("quietlib.Barrier"), row(ONE, ONE, ONE, ONE, namespace(create_memoryview=T))
    ),
    "imported-opener": instance(
        "quietlib.URLopener", _URLopener__tempfiles=listed(X), _URLopener__unlink=T
    ),
    # ------------------------------------------- derived classes that act when they are dropped
    "process-of-the-user": instance(
        "quietlib.Program", _child_created=TRUE, returncode=NONE, pid=ONE, _internal_poll=T
    ),
    "archive-of-the-user": archive(new("argparse.Namespace")),
    "archive-of-an-object-of-the-user": archive(new("quietlib.Plain")),
    # ------------------------------------------------- what a derived class is made of
    "number-of-the-user": new("quietlib.Float", CALLER),
    "array-of-the-user": new("quietlib.Matrix", listed(CALLER)),
    "text-of-the-user": new("quietlib.Text", CALLER),
    "text-of-a-row": new("quietlib.Text", row(ONE, listed(CALLER))),
    "product-of-the-user": new("quietlib.Product", CALLER),
    "product-by-keywords": name("quietlib.Product") + row(CALLER) + EMPTY_DICT + b"\x92",
    "reference-of-the-user": new("quietlib.Reference", ANY_SET, T),
    "reference-that-calls-a-module": new("quietlib.Reference", ANY_SET, instance(
        "torch.nn.modules.linear.Identity", **MODULE, **HOOKS
    )),
    # -------------------------------------------------- what is read when an object is dropped
    "number-of-a-process": instance(
        "quietlib.Program", _child_created=TRUE, returncode=NONE, pid=CALLER
    ),
    "truth-of-a-transport": instance("quietlib.Transport", _sock=ONE, _closing=CALLER),
    "loop-of-a-promise": promise(namespace(call_exception_handler=T)),
    "loop-that-is-a-prepared-call": promise(build(
        PARTIAL, row(T, EMPTY_TUPLE, EMPTY_DICT, fields(call_exception_handler=T))
    )),
    "end-of-a-file": instance("quietlib.Wrapper", detach=T),
    # ------------------------------------------------- what is found among a module's parts
    "function-among-modules": instance(
        "quietlib.Closing", **{**MODULE, "_modules": fields(close=T)}
    ),
    "prepared-call-among-parameters": instance(
        "quietlib.Closing", **{**MODULE, "_parameters": fields(close=PARTIAL)}
    ),
    "module-with-a-hook": instance("quietlib.Closing", **{**MODULE, "_modules": fields(
        close=instance("torch.nn.modules.linear.Identity", **MODULE, **HOOKS)
    )}),
    "number-among-modules": build(new("quietlib.Recurrent"), fields(
        _parameters=EMPTY_DICT, _buffers=EMPTY_DICT, _modules=fields(num_layers=CALLER),
        _all_weights=listed(listed(ONE)), bidirectional=FALSE, bias=FALSE,
    )),
    # ------------------------------------------------------------- what setters and errors read
    "number-in-slots": build(new("quietlib.Pickles"), row(NONE, fields(fast=CALLER))),
    "version-of-a-generator": build(new("quietlib.Dice"), row(CALLER, ONE, NONE)),
    "row-for-a-tensor": call(
        "torch._tensor._rebuild_from_type_v2", name("torch._utils._rebuild_tensor_v2"),
        name("quietlib.Named"),
        row(storage(), ZERO, row(number(4)), row(ONE), FALSE, call("collections.OrderedDict")),
        row(CALLER, ONE, ONE, ONE),
    ),
    "state-that-an-error-shows": build(new("packaging.version.Version"), fields(x=CALLER)),
    # ------------------------------------------------------------- elements of a derived class
    "number-of-an-array": new("quietlib.Numbers", text("d")) + CALLER + b"a",
    "numbers-of-an-array": new("quietlib.Numbers", text("d")) + b"(" + CALLER + b"e",
    "element-of-a-set": new("quietlib.Set") + b"(" + CALLER + b"\x90",
    "item-of-an-array": new("quietlib.Rows", row(ONE)) + ZERO + CALLER + b"s",
    # ---------------------------------------------------------- objects that can be called
    "state-for-a-tester": build(namespace(__setstate__=TESTER), X),
    "element-for-a-tester": instance("quietlib.Plain", append=TESTER) + X + b"a",
    "process-with-a-tester": instance(
        "quietlib.Program", _child_created=TRUE, returncode=NONE, pid=ONE, _internal_poll=TESTER
    ),
    # ------------------------------------------------------- methods that run for an attribute
    "attribute-in-slots": build(
        new(LOADER), row(fields(_DataLoader__initialized=CONCAT), fields(x=ONE))
    ),
    "lock-of-a-tensordict": call(
        "tensordict._reductions._make_td", name("quietlib.Plain"), fields(_is_locked=TRUE, lock_=T)
    ),
    "locked-tensordict": call(
        "tensordict._reductions._make_td", name("quietlib.Plain"), fields(_is_locked=CONCAT)
    ),
    # -------------------------------------------------------------------------------- storages
    "bytes-of-a-row": call("torch.UntypedStorage", SUBSET),
    "bytes-of-a-row-by-another-name": call("torch.storage.UntypedStorage", SUBSET),
    # ----------------------------------------------------------------------------- comparisons
    "comparison-in-a-called-set": compared(call("builtins.set", listed(KEY)), *ADDED),
    "comparison-in-a-called-base": compared(
        call("copyreg._reconstructor", name("quietlib.Set"), name("builtins.set"), listed(KEY)),
        *ADDED,
    ),
    # ------------------------------------------------------------------------------------ hashes
    "hash-of-a-date-in-a-key": hashed_later(is_module=False),
    "hash-of-a-date-in-what-looks-like-a-module": hashed_later(is_module=True),
    "name-that-a-module-has": asked(name("quietlib.SETDEFAULT")),
}  # fmt: skip

# Values of numpy that are cut where their types end: these bodies are refused.
CUT = {
    "name-by-the-code": asked(cut("setdefaults", 10)),
    "name-by-the-state": asked(cut("setdefaults", 10, by_state=True)),
    "stream": call(
        "torch.storage._load_from_bytes", scalar(dtype(f"S{LENGTH}", LENGTH, "|"), STREAMS)
    ),
}  # fmt: skip
