"""No gadget passes: a vetted call that is handed what the pickle prepared is told as dangerous.

The judge is torch.load in a process of its own: a payload counts if ``quietlib.touch`` was called
there (``helpers/quiet.py``).
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from ckptool.errors import DamagedError
from ckptool.formats.pickles import budget
from ckptool.formats.pickles.calls import CALLS, FROM_TYPE, NESTED, NEWOBJ, RUNS_SOURCE
from ckptool.formats.pickles.reader import Pickles
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.formats.pickles.trace import tracing
from ckptool.formats.pickles.vetted import VETTED
from ckptool.sources.memory import Memory
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
    namespace,
    new,
    number,
    pairs,
    program,
    row,
    storage,
    tensor,
    text,
    torch_zip,
)
from helpers.callables import CALLABLE
from helpers.derived import CUT, DERIVED
from helpers.handed import HANDED
from helpers.held import HELD
from helpers.paths import FIXTURES
from helpers.quiet import is_reported, loader

T = name("quietlib.touch")  # takes any arguments
P = call("functools.partial", T)
LOADB = name("torch.storage._load_from_bytes")
EVIL = data(legacy_file(call("quietlib.touch")))
ONE, X = number(1), text("x")


def computed(attribute: str) -> bytes:
    """A name of an attribute that the pickle computes."""
    return call("builtins.str", text(attribute))


def factory(made: bytes = T, *items: tuple[bytes, bytes]) -> bytes:
    """A defaultdict that calls when a key is missing."""
    filled = b"(" + b"".join(key + value for key, value in items) + b"u" if items else b""
    return call("collections.defaultdict", made) + filled


def parser() -> bytes:
    """An object whose class calls what its state holds when it is iterated."""
    sections = namespace(keys=T)
    return instance("configparser.RawConfigParser", default_section=X, _sections=sections)


def zone() -> bytes:
    asked = build(new("zoneinfo._zoneinfo.ZoneInfo", text("UTC")), fields(utcoffset=T))
    return call("datetime.datetime", data(bytes([7, 230, 1, 1, 0, 0, 0, 0, 0, 0])), asked)


def optimizer(cls: str, **state: bytes) -> bytes:
    plain = {"param_groups": EMPTY_LIST, "defaults": EMPTY_DICT, "state": EMPTY_DICT}
    return instance(f"torch.optim.{cls}", **{**plain, **state})


def lstm(**state: bytes) -> bytes:
    plain = dict.fromkeys(("_parameters", "_buffers", "_modules"), EMPTY_DICT)
    weights = listed(listed(X))
    return instance("torch.nn.modules.rnn.LSTM", **{
        **plain, "_all_weights": weights, "_flat_weights_names": EMPTY_LIST, "num_layers": ONE,
        "bidirectional": FALSE, "bias": FALSE, **state,
    })  # fmt: skip


def metaclass(cls: str, **space: bytes) -> bytes:
    """A class whose subclass, made next, calls what the pickle put into it."""
    one = new(cls, text("One"), EMPTY_TUPLE, fields(**space))
    return new(cls, text("Two"), row(one), EMPTY_DICT)


def rng(cls: str, **state: bytes) -> bytes:
    return build(call(f"numpy.random.{cls}"), fields(**state))


OD = call("collections.OrderedDict")
ARRAY = call(
    "numpy._core.multiarray._reconstruct", name("numpy.ndarray"), row(number(0)), data(b"b")
)
FLOAT = build(
    call("numpy.dtype", text("f8"), FALSE, TRUE),
    row(number(3), text("<"), NONE, NONE, NONE, number(-1), number(-1), number(0)),
)
MASKED = call(
    "numpy.ma.core._mareconstruct", name("numpy.ma.MaskedArray"), name("numpy.ndarray"),
    row(number(0)), data(b"b"),
)  # fmt: skip
GENERATOR = "numpy.random._pickle.__generator_ctor"
REBUILD = ("torch._tensor._rebuild_from_type_v2", name("torch._utils._rebuild_tensor_v2"))
PARTS = row(storage(), number(0), row(number(4)), row(ONE), FALSE, OD)

# One row for each: the body of a pickle that calls ``quietlib.touch``.
ATTACKS = {
    # -------------------------------------- a vetted function is reached by another than the pickle
    "generator-loads": call(GENERATOR, EVIL, LOADB),
    "random-state-loads": call("numpy.random._pickle.__randomstate_ctor", EVIL, LOADB),
    "generator-calls": call(GENERATOR, X, T),
    "random-state-calls": call("numpy.random._pickle.__randomstate_ctor", X, T),
    "generator-is-called-by-generator": call(
        GENERATOR, namespace(keys=P), name("builtins.dict")
    ),
    "generator-text": call(GENERATOR, namespace(_get_args=T), name("builtins.str")),
    "generator-values": call(GENERATOR, namespace(items=T), name("optparse.Values")),
    "bit-generator-class": call(
        "numpy.random._pickle.__bit_generator_ctor", name("quietlib.Made")
    ),
    "setstate-loads": build(namespace(__setstate__=LOADB), EVIL),
    "append-loads": namespace(append=LOADB) + EVIL + b"a",
    "extend-loads": namespace(extend=P) + b"(" + EVIL + b"e",
    "add-loads": namespace(add=LOADB) + b"(" + EVIL + b"\x90",
    "setstate-in-slots-loads": build(
        build(new("argparse.Namespace"), row(NONE, fields(__setstate__=LOADB))), EVIL
    ),
    "simple-namespace-loads": build(
        build(call("types.SimpleNamespace"), fields(__setstate__=LOADB)), EVIL
    ),
    "values-loads": build(call("optparse.Values", fields(__setstate__=LOADB)), EVIL),
    "exception-append-loads": build(call("builtins.ValueError"), fields(append=LOADB))
    + EVIL + b"a",
    "user-object-append-loads": build(new("quietlib.Plain"), fields(append=LOADB)) + EVIL + b"a",
    "user-object-setstate-loads": build(
        build(new("quietlib.Plain"), fields(__setstate__=LOADB)), EVIL
    ),
    "factory-loads-adam": optimizer(
        "adam.Adam", param_groups=listed(factory(call("functools.partial", LOADB, EVIL), (X, ONE)))
    ),
    "factory-loads-lstm": lstm(_all_weights=factory(call("functools.partial", LOADB, EVIL))),
    "partial-of-rebuild": build(
        namespace(__setstate__=call("functools.partial", name("torch.nn.parameter.Parameter"))),
        namespace(detach=T),
    ),
    "bytes-of-numpy": call(LOADB, call("numpy.bytes_", EVIL)),
    "bytes-of-an-array": call(LOADB, call("array.array", text("B"), EVIL)),
    "reconstructor-base": call(
        "copyreg._reconstructor", name("quietlib.Made"), name("quietlib.Made"), X
    ),
    "reconstructor-init": call(
        "copyreg._reconstructor", name("quietlib.Made"), name("quietlib.Base"), X
    ),
    "masked-class": call(
        "numpy.ma.core._mareconstruct", name("quietlib.Made"), name("numpy.ndarray"),
        row(number(0)), data(b"b"),
    ),
    # --------------------------------------------------- a vetted function that asks its argument
    "dict-keys": call("builtins.dict", namespace(keys=T)),
    "ordered-dict-keys": call("collections.OrderedDict", namespace(keys=T)),
    "default-dict-keys": call("collections.defaultdict", NONE, namespace(keys=T)),
    "dict-of-attributed-dict": call(
        "builtins.dict", build(OD, fields(keys=T))
    ),
    "values-items": call("optparse.Values", namespace(items=T)),
    "parameter-detach": call("torch.nn.parameter.Parameter", namespace(detach=T)),
    "buffer-detach": call("torch.nn.parameter.Buffer", namespace(detach=T)),
    "rebuild-parameter-detach": call(
        "torch._utils._rebuild_parameter", namespace(detach=T), TRUE, OD
    ),
    "parameter-of-attributed-tensor": call(
        "torch._utils._rebuild_parameter",
        call(REBUILD[0], REBUILD[1], name("quietlib.Named"), PARTS, fields(detach=T)), TRUE, OD,
    ),
    "parameter-state-items": call(
        "torch._utils._rebuild_parameter_with_state", tensor(), TRUE, OD, namespace(items=T)
    ),
    "subclass-state-items": call(*REBUILD, name("torch.Tensor"), PARTS, namespace(items=T)),
    "subclass-of": call(
        REBUILD[0], name("torch.jit._pickle.restore_type_tag"), name("torch.Tensor"),
        row(namespace(as_subclass=T), X), EMPTY_DICT,
    ),
    "device-tensor-to": call(
        "torch._utils._rebuild_device_tensor_from_cpu_tensor", namespace(to=T),
        name("torch.float32"), text("cpu"), FALSE,
    ),
    "text-of-namespace": call("builtins.str", namespace(_get_args=T)),
    "text-of-row": call("builtins.str", listed(namespace(_get_args=T))),
    "text-of-keywords": call("builtins.str", namespace(_get_kwargs=T)),
    "text-of-module": call(
        "builtins.str",
        instance("torch.nn.modules.module.Module", extra_repr=T, _modules=EMPTY_DICT),
    ),
    "numpy-text": call("numpy.str_", namespace(_get_args=T)),
    "version-text": call("torch.torch_version.TorchVersion", namespace(_get_args=T)),
    "numpy-float": call("numpy.float64", namespace(__array__=T)),
    "numpy-int": call("numpy.int64", namespace(__array__=T)),
    "uuid-replace": call("uuid.UUID", namespace(replace=T)),
    "address-text": call("ipaddress.IPv4Address", namespace(_get_args=T)),
    "network-text": call("ipaddress.IPv4Network", namespace(_get_args=T)),
    "random-state-squeeze": call("numpy.random.mtrand.RandomState", namespace(squeeze=T)),
    "enum-message": call("http.HTTPStatus", namespace(_get_args=T)),
    "newobj-by-copyreg": call("copyreg.__newobj__", namespace(__new__=T)),
    "iterated-list": call("builtins.list", parser()),
    "iterated-tuple": call("builtins.tuple", parser()),
    "iterated-set": call("builtins.set", parser()),
    "iterated-deque": call("collections.deque", parser()),
    "iterated-counter": call("collections.Counter", parser()),
    "iterated-ordered-dict": call("collections.OrderedDict", parser()),
    "iterated-size": call("torch.Size", parser()),
    "iterated-base": call(
        "copyreg._reconstructor", name("builtins.list"), name("builtins.list"), parser()
    ),
    "iterated-array": call("array.array", text("f"), parser()),
    "iterated-arguments": call(
        REBUILD[0], name("torch.jit._pickle.restore_type_tag"), name("torch.Tensor"), parser(),
        EMPTY_DICT,
    ),
    "iterated-by-itertools": new("itertools.chain", parser()) + b"0" + new(
        "itertools.cycle", parser()
    ),
    "key-of-a-storage": storage(
        key=call("builtins.ValueError", namespace(_get_args=T))
    ),
    # -------------------------------------------------------- a known class asks its own state
    "adam-group": optimizer("adam.Adam", param_groups=listed(factory(T, (X, ONE)))),
    "adam-group-setdefault": optimizer("adam.Adam", param_groups=listed(namespace(setdefault=T))),
    "sgd-defaults": optimizer("sgd.SGD", defaults=namespace(setdefault=T)),
    "rmsprop-state": optimizer(
        "rmsprop.RMSprop", param_groups=listed(fields(params=listed(X))), state=namespace(get=T)
    ),
    "adagrad-step": optimizer(
        "adagrad.Adagrad", state=namespace(values=T)
    ),
    "adadelta-step": optimizer(
        "adadelta.Adadelta", param_groups=listed(fields(params=listed(X))),
        state=pairs((X, factory(T, (X, ONE)))),
    ),
    "optimizer-state": build(new("torch.optim.sgd.SGD"), namespace(keys=T)),
    "module-state": build(new("torch.nn.modules.linear.Linear"), namespace(keys=T)),
    "module-parameters": instance(
        "torch.nn.modules.linear.Linear",
        _parameters=instance("configparser.SectionProxy", _name=X, _parser=namespace(has_option=T)),
    ),
    "lstm-all-weights": lstm(_all_weights=factory()),
    "lstm-later-weights": lstm(all_weights=factory()),
    "lstm-chain-map": lstm(
        _all_weights=instance("collections.ChainMap", maps=listed(factory()))
    ),
    "lstm-loader": lstm(_flat_weights_names=instance(
        "torch.utils.data.dataloader.DataLoader", dataset=listed(X), collate_fn=T,
        persistent_workers=FALSE, num_workers=number(0), _dataset_kind=number(0), batch_size=NONE,
        _DataLoader__initialized=TRUE, sampler=listed(number(0)), batch_sampler=NONE,
        drop_last=FALSE, timeout=number(0), pin_memory=FALSE, worker_init_fn=NONE, generator=NONE,
        prefetch_factor=NONE, pin_memory_device=text(""), multiprocessing_context=NONE,
        _DataLoader__multiprocessing_context=NONE, _iterator=NONE, in_order=TRUE,
        _IterableDataset_len_called=NONE,
    )),
    "lstm-subset": lstm(_all_weights=instance(
        "torch.utils.data.dataset.Subset", dataset=factory(), indices=listed(number(0))
    )),
    "lstm-subset-filled-later": lstm(_all_weights=instance(
        "torch.utils.data.dataset.Subset", dataset=EMPTY_LIST + b"\x94", indices=listed(number(0))
    ) + b"h\x00" + factory() + b"a0"),
    "mt19937-key": rng("_mt19937.MT19937", bit_generator=text("MT19937"),
                       state=fields(key=factory(), pos=number(0))),
    "mt19937-state": rng("_mt19937.MT19937", bit_generator=text("MT19937"), state=factory()),
    "pcg64-state": rng("_pcg64.PCG64", bit_generator=text("PCG64"), state=factory()),
    "philox-state": rng("_philox.Philox", bit_generator=text("Philox"), state=factory()),
    "sfc64-state": rng("_sfc64.SFC64", bit_generator=text("SFC64"), state=factory()),
    "masked-fill-value": build(MASKED, row(
        number(1), row(number(0)), FLOAT, FALSE, data(b""), data(b""), namespace(__array__=T)
    )),
    "checkpoint-properties": build(
        new("torch.distributed.checkpoint.metadata.TensorProperties"), parser()
    ),
    # -------------------------------------------------------------------- hashes and comparisons
    "hash-of-a-date": pairs((zone(), NONE)),
    "hash-in-a-set": b"\x8f(" + zone() + b"\x90",
    "hash-in-a-frozen-set": b"(" + zone() + b"\x91",
    "hash-in-a-tuple": pairs((row(zone(), ONE), NONE)),
    "hash-in-an-ordered-dict": call("collections.OrderedDict", listed(row(zone(), ONE))),
    "hash-by-a-call": call("builtins.frozenset", listed(zone())),
    "hash-in-a-counter": call("collections.Counter", listed(zone())),
    # ---------------------------------------------------- names that are computed, or planted late
    "computed-setstate": build(
        build(new("argparse.Namespace"), pairs((computed("__setstate__"), T))), X
    ),
    "computed-append": build(new("argparse.Namespace"), pairs((computed("append"), T))) + X + b"a",
    "computed-by-numpy": build(
        new("argparse.Namespace"), pairs((call("numpy.str_", text("append")), T))
    ) + X + b"a",
    "computed-by-torch": build(
        new("argparse.Namespace"),
        pairs((call("torch.torch_version.TorchVersion", text("append")), T)),
    ) + X + b"a",
    "computed-by-an-enum": build(
        new("argparse.Namespace"), pairs((call("quietlib.Word", text("append")), T))
    ) + X + b"a",
    "computed-for-a-user-object": build(
        new("quietlib.Plain"), pairs((computed("append"), T))
    ) + X + b"a",
    "values-plant-append": call("optparse.Values", fields(append=T)) + X + b"a",
    "values-plant-setstate": build(call("optparse.Values", fields(__setstate__=T)), X),
    "dict-in-slots": build(
        new("argparse.Namespace"), row(NONE, fields(__dict__=fields(append=T)))
    ) + X + b"a",
    "second-state": build(build(new("quietlib.Plain"), fields(x=ONE)), fields(append=T))
    + X + b"a",
    "user-dict-of-a-module": instance("collections.UserDict", data=name("quietlib.__dict__"))
    + text("calls") + ONE + b"s",
    # --------------------------------------------------------------------------------- metaclasses
    "abc-init-subclass": metaclass("abc.ABCMeta", __init_subclass__=T),
    "enum-init-subclass": metaclass("quietlib.Meta", __init_subclass__=T),
    "typing-init-subclass": metaclass("typing._ProtocolMeta", __init_subclass__=T),
    "copyreg-init-subclass": call(
        "copyreg.__newobj__", name("abc.ABCMeta"), text("Two"),
        row(call("copyreg.__newobj__", name("abc.ABCMeta"), text("One"), EMPTY_TUPLE,
                 fields(__init_subclass__=T))), EMPTY_DICT,
    ),
    **HELD,
    **CALLABLE,
    **HANDED,
    **DERIVED,
}  # fmt: skip


@pytest.fixture(scope="module")
def load_for_real(tmp_path_factory):
    """How often a trusting loader calls the payload in a file, and what it says."""
    with loader(tmp_path_factory.mktemp("quiet")) as started:
        yield started.load


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_prepared_call_is_told_as_dangerous(attack, ckptool, tmp_path):
    path: Path = tmp_path / "attack.pt"
    path.write_bytes(torch_zip(pairs((text("w"), tensor()), (text("extra"), ATTACKS[attack]))))
    output = ckptool("verify", path, "--json")
    assert output.exit_code == 1
    assert "CK201" in {f["rule"] for f in output.json["findings"]}


@pytest.mark.parametrize("attack", CUT)
def test_a_value_that_numpy_cuts_is_refused(attack, ckptool, tmp_path):
    (tmp_path / "cut.pt").write_bytes(torch_zip(CUT[attack]))
    output = ckptool("verify", tmp_path / "cut.pt", "--json")
    assert output.exit_code == 1
    assert "a numpy text" in output


@pytest.mark.slow
@pytest.mark.parametrize("attack", CUT)
def test_what_numpy_makes_of_a_cut_value_calls(attack, load_for_real):
    calls, said = load_for_real(torch_zip(CUT[attack]))
    assert calls, said


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_prepared_call_is_made_by_torch(attack, load_for_real):
    """Otherwise the row above would test nothing."""
    calls, said = load_for_real(torch_zip(ATTACKS[attack]))
    assert calls, said


# ------------------------------------------------------------------- each vetted call, generically

# Arguments that a vetted call takes; a name without a row is called with a text.
TAKEN = {
    "collections.OrderedDict": (listed(row(X, ONE)),),
    "collections.Counter": (pairs((X, ONE)),),
    "collections.defaultdict": (NONE, pairs((X, ONE))),
    "collections.deque": (listed(X), ONE),
    "dict": (pairs((X, ONE)),),
    "list": (listed(X),),
    "tuple": (listed(X),),
    "set": (listed(X),),
    "frozenset": (listed(X),),
    "torch.Size": (listed(ONE),),
    "bytes": (listed(ONE),),
    "bytearray": (listed(ONE),),
    "complex": (ONE, ONE),
    "int": (X, number(36)),
    "range": (ONE, ONE, ONE),
    "slice": (ONE, ONE, ONE),
    "_codecs.encode": (X, text("latin1")),
    "Path": (X, X),
    "decimal.Decimal": (text("1"), NONE),
    "fractions.Fraction": (ONE, ONE),
    "uuid.UUID": (text("0" * 32), NONE),
    "re._compile": (X, number(0)),
    "datetime.timedelta": (ONE, ONE, ONE),
    "datetime.date": (number(2026), ONE, ONE),
    "datetime.timezone": (call("datetime.timedelta", ONE), X),
    "datetime.datetime": (*(number(n) for n in (2026, 1, 1, 1, 1, 1, 1)), NONE, FALSE),
    "datetime.time": (*(number(n) for n in (1, 1, 1, 1)), NONE),
    "time.struct_time": (row(*[ONE] * 9), fields(tm_zone=X, tm_gmtoff=ONE)),
    "zoneinfo.ZoneInfo": (text("UTC"),),
    "array.array": (text("f"), listed(ONE)),
    "array._array_reconstructor": (name("array.array"), text("f"), number(14), data(bytes(4))),
    "random.Random": (ONE,),
    "itertools.count": (ONE, ONE),
    "types.SimpleNamespace": (),
    "optparse.Values": (fields(a=ONE),),
    "functools.partial": (name("builtins.dict"), ONE),
    "_reconstructor": (name("quietlib.Plain"), name("builtins.list"), listed(ONE)),
    "__newobj__": (name("quietlib.Plain"), ONE),
    "__newobj_ex__": (name("quietlib.Plain"), row(ONE), fields(a=ONE)),
    "numpy.dtype": (text("f8"), FALSE, TRUE),
    "ndarray": (row(ONE), text("f8"), NONE),
    "recarray": (row(ONE), text("f8"), NONE),
    "MaskedArray": (listed(ONE), listed(FALSE), text("f8")),
    "multiarray._reconstruct": (name("numpy.ndarray"), row(ONE), data(b"b")),
    "multiarray.scalar": (FLOAT, data(bytes(8))),
    "numeric._frombuffer": (data(bytes(8)), FLOAT, row(ONE), text("C")),
    "numpy.ma.core._mareconstruct": (
        name("numpy.ma.MaskedArray"), name("numpy.ndarray"), row(ONE), data(b"b")
    ),
    "__pyx_unpickle_SeedSequence": (
        name("numpy.random.bit_generator.SeedSequence"), number(0), NONE
    ),
    "__randomstate_ctor": (
        text("MT19937"), name("numpy.random._pickle.__bit_generator_ctor")
    ),
    "__generator_ctor": (text("MT19937"), name("numpy.random._pickle.__bit_generator_ctor")),
    "__bit_generator_ctor": (text("MT19937"),),
    "torch._utils._rebuild_tensor": (storage(), number(0), row(ONE), row(ONE)),
    "torch._utils._rebuild_tensor_v2": (
        storage(), number(0), row(ONE), row(ONE), FALSE, OD, fields(conj=FALSE)
    ),
    "torch._utils._rebuild_tensor_v3": (
        storage(), number(0), row(ONE), row(ONE), FALSE, OD, name("torch.float32"),
        fields(conj=FALSE),
    ),
    "torch._utils._rebuild_qtensor": (
        storage(), number(0), row(ONE), row(ONE), row(name("torch.per_tensor_affine"), ONE, ONE),
        FALSE, OD,
    ),
    "torch._utils._rebuild_parameter": (tensor(), TRUE, OD),
    "torch._utils._rebuild_parameter_with_state": (tensor(), TRUE, OD, fields(a=ONE)),
    "torch._utils._rebuild_sparse_tensor": (
        name("torch.sparse_coo"), row(tensor(), tensor(), row(ONE), FALSE)
    ),
    "torch._utils._rebuild_sparse_csr_tensor": (
        name("torch.sparse_csr"), row(tensor(), tensor(), tensor(), row(ONE))
    ),
    "torch._utils._rebuild_meta_tensor_no_storage": (
        name("torch.float32"), row(ONE), row(ONE), FALSE
    ),
    "torch._utils._rebuild_nested_tensor": (tensor(), tensor(), tensor(), tensor()),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": (
        tensor(), name("torch.float32"), text("cpu"), FALSE
    ),
    "torch._utils._rebuild_device_tensor_from_numpy": (
        build(call("numpy._core.multiarray._reconstruct", name("numpy.ndarray"), row(number(0)),
                   data(b"b")),
              row(ONE, row(ONE), FLOAT, FALSE, data(bytes(8)))),
        name("torch.float32"), text("cpu"), FALSE,
    ),
    "torch._utils._rebuild_xla_tensor": (tensor(), name("torch.float32"), text("cpu"), FALSE),
    "torch._utils._rebuild_wrapper_subclass": (
        name("quietlib.Named"), name("torch.float32"), row(ONE), row(ONE), number(0),
        call("torch.serialization._get_layout", text("torch.strided")),
        call("torch.device", text("cpu")), FALSE,
    ),
    "_rebuild_from_type": (
        name("torch._utils._rebuild_tensor_v2"), name("quietlib.Named"), PARTS, fields(a=ONE)
    ),
    "_rebuild_from_type_v2": (
        name("torch._utils._rebuild_tensor_v2"), name("quietlib.Named"), PARTS, fields(a=ONE)
    ),
    "torch.nn.parameter.Parameter": (tensor(), TRUE),
    "torch.nn.parameter.Buffer": (tensor(), TRUE),
    "torch.nn.parameter.UninitializedParameter": (TRUE, text("cpu"), name("torch.float32")),
    "torch.nn.parameter.UninitializedBuffer": (TRUE, text("cpu"), name("torch.float32")),
    "torch.autograd.variable.Variable": (tensor(), FALSE),
    "torch.Tensor": (listed(ONE),),
    "torch.Generator": (text("cpu"),),
    "torch._C.Generator": (text("cpu"),),
    "torch.device": (text("cpu"), number(0)),
    "torch.serialization._get_layout": (text("torch.strided"),),
    "torch.storage._load_from_bytes": (data(b"x"),),
    "restore_type_tag": (X, X),
    "_rebuild_njt": (fields(values=tensor(), offsets=tensor()),),
    "NestedTensor": (tensor(), tensor()),
    "_DimRange": (ONE, ONE, ONE),
    "ProcessGroupState": (ONE, ONE, ONE, ONE),
}  # fmt: skip
# What a pickle can prepare without saying so by an attribute that is asked.
PREPARED = {
    "a function": T,
    "a prepared call": P,
    "a class": name("quietlib.Made"),
    "a row of functions": listed(T),
    "a default factory": factory(T, (X, ONE)),
    "a dict of default factories": pairs((X, factory())),
    "an object that answers anything": new("quietlib.Answers"),
    "a row of such objects": listed(new("quietlib.Answers")),
    "a dict over a default factory": instance("collections.UserDict", data=factory()),
    "a namespace that holds a function": namespace(held=T),
    "an iterator of calls": instance(
        "torch.utils.data.dataset.Subset", dataset=factory(), indices=listed(number(0))
    ),
}


# What runs there is the code of a class of the user's own, which is reported as unknown.
OWN_CODE = {
    ("__newobj__", "a class"),
    ("__newobj_ex__", "a class"),
    ("datetime", "an object that answers anything"),
    ("time", "an object that answers anything"),
}


def taken(qualname: str) -> tuple[bytes, ...]:
    last = qualname.rpartition(".")[2]
    found = (TAKEN[key] for key in (qualname, last) if key in TAKEN)
    if (row := next(found, None)) is not None:
        return row
    return (
        TAKEN["Path"]
        if qualname.startswith("pathlib.")
        else next((args for key, args in TAKEN.items() if qualname.endswith(f".{key}")), (X,))
    )


def prepared_calls(qualname: str):
    """Yield calls with a prepared value at each position, and at one behind the last."""
    args = [*taken(qualname), X]
    for at, (what, value) in product(range(len(args)), PREPARED.items()):
        if (qualname.rpartition(".")[2], what) in OWN_CODE:
            continue
        given = [*args[:at], value, *args[at + 1 : -1 if at + 1 < len(args) else None]]
        yield call(qualname, *given)
        yield new(qualname, *given)


@pytest.mark.parametrize("attack", HELD)
def test_a_pickle_that_is_traced_for_a_promotion_is_held_to_the_same_rules(attack):
    with tracing():
        assert is_reported(HELD[attack])


def test_keys_that_may_be_one_are_refused_in_a_traced_pickle_too():
    body = pairs((X, ONE), (call("builtins.str", X), ONE))
    builder = TorchBuilder(lambda _key, _nbytes: None)
    with tracing(), pytest.raises(DamagedError, match="may take for one"):
        Pickles("data.pkl", lambda _data, _pickles: None).read(Memory(program(body)), builder)


def test_each_vetted_call_has_a_reason():
    assert not [qualname for qualname, row in VETTED.items() if not row.why]
    assert CALLS.keys() | set(NESTED) | set(FROM_TYPE) | set(NEWOBJ) <= VETTED.keys()


@pytest.mark.slow
@pytest.mark.parametrize("qualname", VETTED)
def test_a_vetted_call_runs_nothing_that_is_not_reported(qualname, load_for_real):
    missed = []
    for body in prepared_calls(qualname):
        if not is_reported(body):
            calls, said = load_for_real(torch_zip(body))
            if calls:
                missed.append((body, said))
    assert not missed


def test_vetted_calls_with_what_they_take_are_not_reported():
    """Otherwise the test above could not fail."""
    always = {*RUNS_SOURCE, "copyreg.__newobj_ex__", "copy_reg.__newobj_ex__"}
    reported = {q for q in VETTED if is_reported(call(q, *taken(q)))}
    assert reported - always == set()


def test_rows_of_names_that_many_keys_share_are_not_looked_at_without_end(monkeypatch):
    monkeypatch.setattr(budget, "MIN_LOOKS", 10_000)
    shared = row(*[name("quietlib.Plain")] * 1000) + b"\x94"
    body = listed(shared, *[call("builtins.set", listed(row(b"h\x00", ONE)))] * 20)
    pickles = Pickles("data.pkl", lambda _data, _pickles: None)
    with pytest.raises(DamagedError, match="shared and changed"):
        pickles.read(Memory(program(body)), TorchBuilder(lambda _key, _nbytes: None))


def test_objects_may_share_one_large_container():
    """Otherwise a dataset whose items share their settings would be refused, or take minutes."""
    large = listed(*(number(n) for n in range(5_000))) + b"\x94"
    shared = [build(new("quietlib.Plain"), text("x").join((b"}", b"h\x00s"))) for _ in range(4_000)]
    assert not is_reported(listed(large, *shared))


def test_a_call_that_a_damaged_file_does_not_reach_is_no_danger(ckptool):
    """The storage is too short, so ``_rebuild_tensor_v2`` is named and not called yet."""
    told = ckptool("inspect", FIXTURES / "malformed" / "tensor-storage-short.pt")
    assert "has 16 of" in told.stderr
    assert "would have met" not in told.stderr
