"""Values moved inside a copy of a torch zip are those that torch's ``copy_`` gives."""

from __future__ import annotations

import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.commands.promote_ema import promote_ema
from ckptool.errors import CkptError, DamagedError, UnsupportedError
from ckptool.formats import open_checkpoint
from ckptool.sources.local import LocalFile
from ckptool.writers import patched_copy, zip_patch
from ckptool.writers.files.whole_file import whole_file
from helpers.judge import tensor_bytes
from helpers.making import average_of, floats_to, save, weights
from helpers.samples import NEW_DTYPES, OLD_DTYPES, filled
from helpers.strategies import strided_views
from helpers.tensors import assert_same_tensor, load
from helpers.thinned import examples

FLOATS = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
)  # fmt: skip


def promoted(path):
    """Promote by address, whatever the values are; gives what torch makes of it."""
    output = path.with_suffix(".promoted")
    promote_ema(path, output, ema="ema", model="model", force=True)
    with zipfile.ZipFile(output) as archive:
        assert archive.testzip() is None
    return load(output)["model"]


def saved(folder, model, ema):
    path = folder / "in.pt"
    torch.save({"model": model, "ema": ema}, path)
    return path


# ------------------------------------------------------------------------------------------- moving


def has_own_elements(tensor) -> bool:
    """Whether it could come from slicing and permuting: then no two elements share memory."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return False
        reach += stride * max(size - 1, 0)
    return True


@st.composite
def slots_and_sources(draw):
    """A tensor of any type as a view of a storage, and another of the same shape and type."""
    dtype = draw(st.sampled_from(OLD_DTYPES + NEW_DTYPES))
    target = draw(strided_views(filled(dtype, draw(st.integers(1, 60)))).filter(has_own_elements))
    flat = filled(dtype, target.numel() + 1)[1:]
    if draw(st.booleans()):
        return target, flat.view(target.shape)
    order = draw(st.permutations(range(target.ndim)))
    turned = flat.view([target.shape[i] for i in order])
    return target, turned.permute([order.index(i) for i in range(target.ndim)])


@examples(150)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch has second thoughts about complex32
@given(pairs=st.lists(slots_and_sources(), min_size=1, max_size=3))
def test_any_slot_takes_any_source_of_its_type(pairs, tmp_path_factory):
    model = {str(i): target for i, (target, _) in enumerate(pairs)}
    ema = {str(i): source for i, (_, source) in enumerate(pairs)}
    found = promoted(saved(tmp_path_factory.mktemp("any"), model, ema))
    for name, target in model.items():
        assert tensor_bytes(found[name]) == tensor_bytes(ema[name])
        assert found[name].stride() == target.stride()
        rest = whole_storage(found[name]), whole_storage(model[name])
        assert bytes_beside(rest[0], found[name]) == bytes_beside(rest[1], model[name])


def whole_storage(tensor) -> bytes:
    return bytes(tensor.untyped_storage())


def bytes_beside(storage: bytes, tensor) -> bytes:
    """The bytes of a storage that the tensor does not show."""
    width = tensor.element_size()
    places = torch.arange(len(storage) // width).as_strided(
        tensor.shape, tensor.stride(), tensor.storage_offset()
    )
    shown = set(places.reshape(-1).tolist())
    return b"".join(
        storage[i * width : (i + 1) * width] for i in range(len(storage) // width) if i not in shown
    )


# ------------------------------------------------------------------------------------------ casting


def every_float(kind) -> torch.Tensor:
    """All magnitudes, ties between neighbours of narrower types, zeros, NaN, infinities."""
    exponents = torch.arange(-40, 40, dtype=torch.float64)
    steps = torch.tensor([1.0, 1.5, 1 + 2**-3, 1 + 2**-4, 1 + 2**-8, 1 + 2**-9, 1 + 2**-11])
    nearly = torch.cat([steps.double(), steps.double() + 2**-40, steps.double() - 2**-40])
    values = (2 ** exponents[:, None] * nearly).reshape(-1)
    odd = torch.tensor([0.0, float("inf"), float("nan"), 448.0, 464.0, 465.0, 57344.0, 65504.0])
    positive = torch.cat([values, odd.double()])
    return torch.cat([positive, -positive]).to(kind)


@pytest.mark.parametrize("slot", FLOATS, ids=str)
@pytest.mark.parametrize("source", FLOATS, ids=str)
def test_casts_are_those_of_torch(slot, source, tmp_path):
    values = every_float(source)
    wanted = torch.empty(values.shape, dtype=slot).copy_(values)
    model = {"w": torch.zeros(values.shape, dtype=slot)}
    found = promoted(saved(tmp_path, model, {"w": values}))["w"]
    assert found.dtype is slot
    ours, theirs = (tensor.double().nan_to_num(nan=1e99) for tensor in (found, wanted))
    assert torch.equal(ours, theirs)
    assert torch.equal(ours.signbit(), theirs.signbit())


@given(data=st.data())
def test_casts_go_into_any_strides(data, tmp_path_factory):
    slot, source = (data.draw(st.sampled_from(FLOATS)) for _ in range(2))
    target = data.draw(strided_views(torch.zeros(60, dtype=slot)).filter(has_own_elements))
    values = torch.linspace(-3, 3, max(target.numel(), 1)).to(source)[: target.numel()]
    values = values.view(target.shape)
    wanted = torch.empty(target.shape, dtype=slot).copy_(values)
    found = promoted(saved(tmp_path_factory.mktemp("cast"), {"w": target}, {"w": values}))["w"]
    assert_same_tensor(found, wanted)


REFUSED = [
    (torch.float32, torch.int64),
    (torch.int64, torch.complex64),
    (torch.bool, torch.uint8),
    (torch.complex64, torch.float32),
    (torch.complex64, torch.complex128),
    (torch.float8_e8m0fnu, torch.float32),
    (torch.float4_e2m1fn_x2, torch.float32),
]


@pytest.mark.parametrize(("slot", "source"), REFUSED, ids=str)
def test_what_is_no_cast_of_real_numbers_is_refused(slot, source, tmp_path):
    path = saved(tmp_path, {"w": filled(slot, 4)}, {"w": filled(source, 4)})
    with pytest.raises(CkptError, match=r"\bw\b"):
        promoted(path)
    assert list(tmp_path.iterdir()) == [path]


SLOTS = {
    "expanded": torch.ones(3).expand(2, 3),
    "overlapping": torch.ones(6).as_strided((2, 3), (1, 1)),
    "conjugated": torch.view_as_complex(torch.ones(2, 2)).conj(),
}


@pytest.mark.parametrize("kind", SLOTS)
def test_a_slot_without_values_of_its_own_is_refused(kind, tmp_path):
    path = saved(tmp_path, {"w": SLOTS[kind]}, {"w": SLOTS[kind].resolve_conj() * 2})
    with pytest.raises(UnsupportedError) as caught:
        promoted(path)
    assert caught.value.address == "w"
    assert "extract-ema" in caught.value.hint
    assert list(tmp_path.iterdir()) == [path]


# ----------------------------------------------------------------------------------------- checking


MADE = {
    "moved": lambda state: state,
    "cast": lambda state: floats_to(state, torch.bfloat16),
    "rearranged": lambda state: {n: t.t() if t.ndim == 2 else t for n, t in state.items()},
}


def of_kind(kind, path):
    """A checkpoint whose slot is in another form than its average, as the kind says."""
    averaged = average_of(weights())
    model = MADE[kind](weights())
    shaped = {n: t.t().contiguous() if kind == "rearranged" and t.ndim == 2 else t
              for n, t in averaged.items()}  # fmt: skip
    return save(path, model, shaped)


@pytest.mark.parametrize("kind", MADE)
def test_what_does_not_read_back_is_not_put_in_place(kind, tmp_path, monkeypatch):
    path = of_kind(kind, tmp_path / "last.pt")
    real = patched_copy.put

    def flawed(output, *args):
        real(output, *args)
        with open_checkpoint(path) as checkpoint:
            at = checkpoint.tree["state_dict"]["head.weight"].chunks[0].span.offset
        output.patch(b"\xff", at + 5)

    monkeypatch.setattr(patched_copy, "put", flawed)
    with pytest.raises(DamagedError, match=r"head\.weight"):
        promote_ema(path, tmp_path / "out.pt")
    assert list(tmp_path.iterdir()) == [path]


def test_a_descriptor_that_disagrees_is_noticed(tmp_path):
    path = save(tmp_path / "last.pt", weights())
    data = bytearray(path.read_bytes())
    with open_checkpoint(path) as checkpoint:
        span = checkpoint.tree["state_dict"]["stem.weight"].chunks[0].span
    at = data.index(b"PK\x07\x08", span.offset)
    data[at + 4] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="descriptor"):
        promote_ema(path, tmp_path / "out.pt")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", MADE)
def test_a_whole_storage_is_not_summed_again(kind, tmp_path, monkeypatch):
    """The checksum of what was moved stands in the file, that of what was made is known."""
    path = of_kind(kind, tmp_path / "last.pt")
    summed = []
    real = zip_patch.checksum
    monkeypatch.setattr(zip_patch, "checksum", lambda *args: summed.append(args) or real(*args))
    promote_ema(path, tmp_path / "out.pt")
    assert summed == []
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("dry_run", [True, False])
def test_each_value_is_cast_once(dry_run, tmp_path, monkeypatch):
    """For the write, for what it costs and for the check together."""
    path = of_kind("cast", tmp_path / "last.pt")
    casts = []
    real = patched_copy.converted
    monkeypatch.setattr(patched_copy, "converted", lambda *a: casts.append(a[0].size) or real(*a))
    promote_ema(path, tmp_path / "out.pt", dry_run=dry_run)
    assert sum(casts) == sum(t.numel() for t in weights().values() if t.is_floating_point())


def test_copying_needs_one_pass(tmp_path):
    """Progress counts each byte of the file once: what is overwritten is not copied before."""
    path = save(tmp_path / "last.pt", weights())
    told: list[int] = []
    promote_ema(path, tmp_path / "out.pt", progress=told.append)
    assert sum(told) == path.stat().st_size


@pytest.mark.parametrize("later", [[(0, 3)], [(2, 2), (6, 4)], [(0, 10)], []])
def test_a_copy_has_room_for_what_is_written_later(later, tmp_path):
    """Of the same length, also when it is at the end; a file system with clones may fill it."""
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")
    told: list[int] = []
    with LocalFile(source) as file, whole_file(tmp_path / "copy", force=False) as output:
        output.copy_file(file, told.append, [file.span(*run) for run in later])
        room = {at for start, count in later for at in range(start, start + count)}
        found = output.read(0, 20)
    assert sum(told) == 10 - len(room)
    assert len(found) == 10
    assert all(found[i] == b"0123456789"[i] for i in set(range(10)) - room)
