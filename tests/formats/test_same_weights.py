"""One file, one set of weights: the tensors are those that ``torch.load`` makes, or are refused.

Each row is a checkpoint ``{"ema": {…}}`` that torch loads, and a part of the refusal; no refusal
means that the weights read as torch's do, bit for bit.
"""

from __future__ import annotations

import struct
import warnings

import pytest
import torch

import ckptool
from ckptool.errors import CkptError
from helpers.opcodes import (
    FALSE,
    FLOATS,
    HOOKS,
    NONE,
    TRUE,
    attributes,
    build,
    call,
    dct,
    integer,
    items,
    name,
    new,
    numbers,
    raw,
    real,
    row,
    storage,
    stream,
    tarred,
    tensor,
    text,
    tup,
    view,
    zipped,
)

DATA = {str(i): struct.pack("<4f", *(i + n / 8 for n in range(4))) for i in range(6)}
REPLACED = "a state that may replace its values"
ALIKE = "written alike"
ONE_KEY = "may take for one"
FUNCTIONAL = "torch._subclasses.functional_tensor.FunctionalTensor"
UNTYPED = "torch.storage.UntypedStorage"


def w(key: int = 0, *more: bytes) -> bytes:
    return tensor(str(key), 4, FLOATS, *more)


def weights(first: bytes, *more: tuple[bytes, bytes]) -> bytes:
    return dct((text("w1"), first), (text("w2"), w(1)), *more)


def zip_of(first: bytes, *more: tuple[bytes, bytes], top=(), byteorder: bytes = b"little") -> bytes:
    records = {**DATA, "9": DATA["4"], "True": DATA["5"], "b'2'": DATA["3"]}
    body = dct(*top, (text("ema"), weights(first, *more)))
    return zipped(body, records, byteorder)


PARTS = tup(storage(text("0"), 4), integer(0), numbers(4), numbers(1), FALSE, HOOKS)


def by_type(
    state: bytes,
    cls: str = "torch.Tensor",
    function: str = "torch._utils._rebuild_tensor_v2",
    args: bytes = PARTS,
) -> bytes:
    return call("torch._tensor._rebuild_from_type_v2", name(function), name(cls), args, state)


def by_type_of_wrapper() -> bytes:
    """A distributed tensor whose local part is the whole, as another class than it is made of."""
    of = name("torch.distributed.tensor.DTensor")
    layout = call("torch.serialization._get_layout", text("torch.strided"))
    device = call("torch.device", text("cpu"))
    args = tup(of, name("torch.float32"), numbers(4), numbers(1), integer(0), layout, device, FALSE)
    placed = build(new("torch.distributed.tensor.placement_types.Replicate", tup()), dct())
    spec = build(
        new("torch.distributed.tensor._dtensor_spec.DTensorSpec", tup()),
        attributes(placements=tup(placed)),
    )
    state = attributes(_local_tensor=w(), _spec=spec, elem=w(3))
    return by_type(state, FUNCTIONAL, "torch._utils._rebuild_wrapper_subclass", args)


def v3(of: bytes, dtype: str, numel: int = 4) -> bytes:
    args = (of, integer(0), numbers(numel), numbers(1), FALSE, HOOKS, name(f"torch.{dtype}"))
    return call("torch._utils._rebuild_tensor_v3", *args)


def from_cpu(first: bytes, dtype: str, device: str = "cpu") -> bytes:
    function = "torch._utils._rebuild_device_tensor_from_cpu_tensor"
    return call(function, first, name(f"torch.{dtype}"), text(device), FALSE)


def parameter(state: bytes, first: bytes | None = None) -> bytes:
    function = "torch._utils._rebuild_parameter_with_state"
    return call(function, w() if first is None else first, FALSE, HOOKS, state)


# An object that torch builds before it fills it: its storage, offset, sizes and strides.
SET = tup(storage(text("3"), 4), integer(0), numbers(4), numbers(1))
LATER = b"q\xc8"  # BINPUT 200
AGAIN = b"h\xc8"

ROWS: dict[str, tuple[bytes, str]] = {
    # ---------------------------------------------------------------------- states of tensors
    "plain": (zip_of(w()), ""),
    "set_": (zip_of(build(w(), SET)), REPLACED),
    "set_ to a storage": (zip_of(build(w(), tup(storage(text("3"), 4)))), REPLACED),
    "set_ to a tensor": (zip_of(build(w(), tup(w(3)))), REPLACED),
    "set_ without strides": (
        zip_of(build(w(), tup(storage(text("3"), 4), integer(0), numbers(4)))), REPLACED
    ),
    "set_ by a list": (
        zip_of(build(w(), row(storage(text("3"), 4), integer(0), numbers(4), numbers(1)))), REPLACED
    ),
    "set_ to nothing": (zip_of(build(w(), b")")), REPLACED),
    "set_ from the memo": (
        zipped(dct((text("ema"), weights(w() + LATER)), (text("x"), build(AGAIN, SET))), DATA),
        REPLACED,
    ),
    "a Variable with data": (zip_of(build(w(), tup(w(3), NONE, NONE, FALSE, NONE))), REPLACED),
    "the flags of a Variable": (zip_of(build(w(), tup(TRUE, FALSE, HOOKS))), ""),
    "an OrderedDict filled as a plain dict": (
        zipped(
            dct((
                text("ema"),
                call("copyreg._reconstructor", name("collections.OrderedDict"),
                     name("builtins.dict"), weights(w())),
            )),
            DATA,
        ),
        "no loop finds them",
    ),
    "a parameter's data": (zip_of(parameter(attributes(data=w(3)))), "attribute 'data'"),
    "a parameter's real part": (zip_of(parameter(attributes(real=w(3)))), "attribute 'real'"),
    "a parameter's slot": (zip_of(parameter(tup(NONE, attributes(data=w(3))))), "attribute 'data'"),
    "a parameter's attribute": (zip_of(parameter(attributes(tag=text("x")))), ""),
    "a tensor's data": (zip_of(by_type(attributes(data=w(3)))), "attribute 'data'"),
    "a tensor's attribute": (zip_of(by_type(attributes(tag=text("x")))), ""),
    **{
        f"the wrapped tensor of {cls.rpartition('.')[2]}": (
            zip_of(by_type(attributes(**{held: w(3)}), cls)), said
        )
        for cls, held, said in (
            (FUNCTIONAL, "elem", "FunctionalTensor: elem"),
            ("torch.distributed._functional_collectives.AsyncCollectiveTensor", "elem",
             "AsyncCollectiveTensor: elem"),
            ("torch.masked.maskedtensor.core.MaskedTensor", "_masked_data",
             "MaskedTensor: _masked_data"),
            ("torch.distributed.tensor.DTensor", "_local_tensor", "partial sums"),
        )
    },
    "a wrapped tensor in a list": (
        zip_of(by_type(attributes(held=row(w(3))), "torch.nn.attention.bias.CausalBias")),
        "CausalBias",
    ),
    "a storage's dtype": (
        zip_of(view(build(storage(text("0"), 4), attributes(dtype=name("torch.int32"))), 4)),
        "a storage is given a state",
    ),
    "the flag neg as bytes": (zip_of(w(0, dct((raw(b"neg"), TRUE)))), "flags by name"),
    "the flag neg": (zip_of(w(0, attributes(neg=TRUE))), ""),
    "the flag neg as False, which sets it": (zip_of(w(0, attributes(neg=FALSE))), ""),
    "the flag neg as a number": (zip_of(w(0, attributes(neg=integer(1)))), "flags by name"),
    # ------------------------------------------------------------------ tensors that are computed
    "another dtype": (zip_of(from_cpu(w(), "int8")), "casts to another dtype"),
    "the same dtype": (zip_of(from_cpu(w(), "float32")), ""),
    "on the meta device": (zip_of(from_cpu(w(), "float32", "meta")), "no values"),
    "a meta storage": (zip_of(view(storage(text("0"), 4, location=text("meta")), 4)), "no values"),
    "a tensor of a list": (zip_of(call("torch.Tensor", row(*[real(7.0)] * 4))), "torch.Tensor"),
    "a tensor class of a list": (zip_of(call("torch.LongTensor", row(integer(7)))), "LongTensor"),
    "a new tensor of a list": (zip_of(new("torch.Tensor", row(real(7.0)))), "torch.Tensor"),
    "a tensor of a function": (zip_of(call("torch.tensor", row(real(7.0)))), "torch.tensor"),
    # ---------------------------------------------------------------------------------- storages
    "a number as the key of a storage": (zip_of(view(storage(integer(9), 4), 4)), ""),
    "a number and text as keys of storages": (
        zip_of(
            view(storage(integer(9), 4, "torch.IntStorage"), 4),
            top=((text("x"), view(storage(text("9"), 4), 4)),),
        ),
        "",
    ),
    "bytes as the key of a storage": (zip_of(view(storage(raw(b"2"), 4), 4)), ""),
    "a flag as the key of a storage": (zip_of(view(storage(TRUE, 4), 4)), "key of a storage"),
    "an empty storage with two dtypes": (
        zipped(
            dct(
                (text("x"), view(storage(text("e"), 0), 0)),
                (text("ema"), weights(view(storage(text("e"), 0, "torch.LongStorage"), 0))),
            ),
            {**DATA, "e": b""},
        ),
        "",
    ),
    "a storage with two dtypes": (
        zip_of(w(), top=((text("x"), tensor("0", 4, "torch.IntStorage")),)), ""
    ),
    "big-endian floats": (zip_of(w(), byteorder=b"big"), ""),
    "big-endian bytes as floats": (
        zip_of(v3(storage(text("0"), 16, UNTYPED), "float32"), byteorder=b"big"), ""
    ),
    "big-endian uint8 as floats": (
        zip_of(v3(storage(text("0"), 16, "torch.ByteStorage"), "float32"), byteorder=b"big"), ""
    ),
    "big-endian halves as floats": (
        zip_of(v3(storage(text("0"), 8, "torch.HalfStorage"), "float32"), byteorder=b"big"),
        "big-endian float16",
    ),
    "big-endian complex numbers as floats": (
        zip_of(v3(storage(text("0"), 2, "torch.ComplexFloatStorage"), "float32"), byteorder=b"big"),
        "",
    ),
    # -------------------------------------------------------------------------------- containers
    "new dicts are empty": (
        zip_of(w(), top=((text("x"), new("collections.OrderedDict", dct((text("a"), w())))),)), ""
    ),
    "arguments in a list": (
        zipped(
            dct((text("ema"), name("collections.OrderedDict") + row(weights(w())) + b"R")), DATA
        ),
        "",
    ),
    "a Counter of a list": (
        zip_of(w(), top=((text("x"), call("collections.Counter", row(tup(text("a"), TRUE)))),)),
        "a Counter is built from",
    ),
    "a key set again": (zip_of(w(3), (text("w1"), w(0))), ""),
    "the dict filled again from the memo": (
        zipped(
            dct(
                (text("ema"), weights(w()) + LATER),
                (text("x"), AGAIN + items((text("w1"), w(3)))),
            ),
            DATA,
        ),
        "",
    ),
    # -------------------------------------------------------------------------------------- keys
    "1, True and 1.0": (
        zipped(
            dct((text("ema"), dct((integer(1), w(0)), (TRUE, w(1)), (real(1.0), w(2))))), DATA
        ),
        "",
    ),
    "a number and text": (zip_of(w(), (text("7"), w(2)), (integer(7), w(3))), ALIKE),
    "bytes and text": (zip_of(w(), (raw(b"w1"), w(3))), ALIKE),
    "None and text": (zip_of(w(), (text("None"), w(2)), (NONE, w(3))), ALIKE),
    "a flag and text": (zip_of(w(), (text("True"), w(2)), (TRUE, w(3))), ALIKE),
    "a float and text": (zip_of(w(), (text("0.5"), w(2)), (real(0.5), w(3))), ALIKE),
    "a tuple and text": (zip_of(w(), (text("(1)"), w(2)), (numbers(1), w(3))), ALIKE),
    "a path and text": (zip_of(w(), (call("pathlib.PurePosixPath", text("w1")), w(3))), ALIKE),
    "a computed text": (zip_of(w(), (call("builtins.str", text("w1")), w(3))), ONE_KEY),
    "text of numpy": (zip_of(w(), (call("numpy.str_", text("w1")), w(3))), ONE_KEY),
    "a joined text": (zip_of(w(), (call("operator.concat", text("w"), text("1")), w(3))), ONE_KEY),
    "a version of torch": (
        zip_of(w(), (call("torch.torch_version.TorchVersion", text("w1")), w(3))), ONE_KEY
    ),
    "one device twice": (
        zip_of(
            w(),
            (call("torch.device", text("cpu")), w(2)),
            (call("torch.device", text("cpu")), w(3)),
        ),
        ONE_KEY,
    ),
    "a key that is an object": (zip_of(w(), (call("builtins.str", text("w3")), w(3))), "objects"),
    "a flag and a computed number": (
        zip_of(w(), (TRUE, w(2)), (call("builtins.int", text("1")), w(3))), ONE_KEY
    ),
    "an object as a key of a copied dict": (
        zipped(
            dct((
                text("ema"),
                call("builtins.dict", dct((call("builtins.str", text("w1")), w(3))))
                + items((text("w1"), w())),
            )),
            DATA,
        ),
        ONE_KEY,
    ),
    "one tensor under two keys": (zip_of(w() + LATER, (raw(b"w1"), AGAIN)), ALIKE),
    "a tensor of a taken one": (
        zip_of(w() + LATER, (text("w3"), call("torch.Tensor", AGAIN))), "torch.Tensor"
    ),
    "a place named twice": (zip_of(w(), top=((raw(b"ema"), weights(w(3))),)), ALIKE),
    "a place named by a computed text": (
        zip_of(w(), top=((call("builtins.str", text("ema")), weights(w(3))),)), ONE_KEY
    ),
}  # fmt: skip


def legacy_views(key: str, offset: int) -> bytes:
    """Two views of a storage of 8 floats: ``w1`` at an offset, under a key that may be known."""

    def of(start: int, called: str) -> bytes:
        part = tup(text(called), integer(start), integer(4))
        return view(storage(text("0"), 8, FLOATS, part), 4)

    body = dct(
        (text("x"), of(0, "v")),
        (text("ema"), dct((text("w1"), of(offset, key)))),
    )
    return stream(body, [("0", DATA["0"] + DATA["1"])])


def legacy(key: bytes, *keys: object) -> bytes:
    tensors = (
        (text("w1"), view(storage(key, 4, FLOATS, NONE), 4)),
        (text("w2"), view(storage(text("1"), 4, FLOATS, NONE), 4)),
    )
    rows = zip(keys, DATA.values(), strict=False)
    return stream(dct((text("ema"), dct(*tensors))), rows)


def tar(saved_id: bytes, *more: tuple[bytes, bytes, int], views: bytes = b"]") -> bytes:
    body = dct((text("ema"), dct((text("w1"), saved_id + b"Q"), (text("w2"), text("11") + b"Q"))))
    held = [(integer(1), DATA["0"]), (integer(2), DATA["1"])]
    made = [(integer(11), integer(1), 4), (integer(12), integer(2), 4), *more]
    return tarred(body, held, made, views)


def legacy_meta() -> bytes:
    """A storage that is first mentioned on the meta device."""

    def of(location: str) -> bytes:
        return view(storage(text("0"), 4, FLOATS, NONE, location=text(location)), 4)

    body = dct((text("x"), of("meta")), (text("ema"), dct((text("w1"), of("cpu")))))
    return stream(body, [("0", DATA["0"])])


ROWS |= {
    "a meta storage, older": (legacy_meta(), "no values"),
    "a view": (legacy_views("other", 4), ""),
    "the key of a view again": (legacy_views("v", 4), ""),
    "the key of a storage as a view's": (legacy_views("0", 4), ""),
    "bytes as a key, older": (legacy(raw(b"0"), b"0", "1"), ""),
    "bytes and text, older": (legacy(raw(b"1"), b"1", "1"), ""),
    "a number and text, older": (legacy(integer(1), "1", 1), ""),
    "a tensor by number": (tar(text("12")), ""),
    "a tensor by number and sign": (tar(text("+12"), (text("+12"), integer(1), 4)), "no number"),
    "a tensor by number and space": (tar(text(" 12"), (text(" 12"), integer(1), 4)), "no number"),
    "a tensor given twice": (tar(text("12"), (integer(12), integer(1), 4)), ""),
    "a tensor of that text": (tar(text("12"), (text("12"), integer(1), 4)), ""),
    "a view that replaces a storage": (
        tar(text("12"), views=row(tup(integer(2), integer(1), integer(0), integer(4)))), ""
    ),
}  # fmt: skip


# Of these torch may have no values without a mode that is set by its compiler.
WRAPPED: dict[str, bytes] = {
    "a wrapper of another class": zip_of(by_type_of_wrapper()),
    "a wrapper that is a tensor again": zip_of(by_type(
        attributes(tag=text("x")), "torch.Tensor",
        "torch._tensor._rebuild_from_type_v2", tup(
            name("torch._utils._rebuild_tensor_v2"),
            name(FUNCTIONAL), PARTS,
            attributes(elem=w(3)),
        ),
    )),
}  # fmt: skip


@pytest.mark.parametrize("case", WRAPPED)
def test_a_wrapper_stays_one_whatever_wraps_it(case, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(WRAPPED[case])
    with pytest.raises(CkptError, match="a subclass that is made of several"):
        ckptool.load_state_dict(path, "model", model="ema")


@pytest.mark.parametrize("case", ROWS)
def test_the_weights_are_those_of_torch_or_are_refused(case, tmp_path):
    data, refusal = ROWS[case]
    path = tmp_path / "model.pt"
    path.write_bytes(data)
    wanted = loaded(path)["ema"]
    if refusal:
        with pytest.raises(CkptError) as error:
            ckptool.load_state_dict(path, "model", model="ema")
        assert refusal in str(error.value)
        return
    found = ckptool.load_state_dict(path, "model", model="ema")
    assert list(found) == [str(key) for key in wanted]
    for key, tensor_ in wanted.items():
        ours = found[str(key)]
        assert (ours.dtype, ours.shape) == (tensor_.dtype, tensor_.shape)
        assert ours.numpy().tobytes() == tensor_.detach().resolve_neg().numpy().tobytes(), key


def loaded(path):
    """What torch makes of a file, by its safe loader if that takes it; the rows are harmless."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, weights_only=True)
        except Exception:  # noqa: BLE001 - whatever it refuses
            return torch.load(path, weights_only=False)
