"""The functions for Python: weights as torch tensors, mapped from the file."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import save_file

import ckptool as library
from ckptool.errors import EmaAmbiguousError, EmaNotFoundError, UnsupportedError, UsageError
from helpers.making import average_of, save, weights
from helpers.paths import FIXTURES
from helpers.samples import NEW_DTYPES, OLD_DTYPES, filled
from helpers.tensors import assert_same_tensor, assert_same_tensors, load, storage_of, truth

LATE = FIXTURES / "ema" / "has_ema" / "late.pt"
FORMATS = FIXTURES / "formats"


# ------------------------------------------------------------------------------------ which weights


def test_auto_is_the_average_where_there_is_one():
    assert_same_tensors(library.load_state_dict(LATE), truth(LATE, "averaged"))
    assert_same_tensors(library.load_state_dict(LATE, "ema"), truth(LATE, "averaged"))


def test_model_is_the_models_own_slot():
    assert_same_tensors(library.load_state_dict(LATE, "model"), truth(LATE, "online"))


def test_a_path_may_be_text():
    assert_same_tensors(library.load_state_dict(str(LATE)), truth(LATE, "averaged"))


def test_auto_does_not_choose_between_averages(tmp_path):
    path = save(tmp_path / "two.pt", weights(), ema_slow={n: t * 0.5 for n, t in weights().items()})
    with pytest.raises(EmaAmbiguousError, match="ema_slow"):
        library.load_state_dict(path)
    found = library.load_state_dict(path, ema="ema_state_dict")
    assert_same_tensors(found, average_of(weights()))
    assert_same_tensors(library.load_state_dict(path, "model"), weights())


def test_the_model_can_be_named(tmp_path):
    path = tmp_path / "own.pt"
    torch.save({"a": {"b": weights()}, "c": average_of(weights())}, path)
    assert_same_tensors(library.load_state_dict(path, "model", model="a/b"), weights())
    found = library.load_state_dict(path, "ema", ema="c", model="a/b")
    assert_same_tensors(found, average_of(weights()))


@pytest.mark.parametrize("names", ["model", "bare", "ema"])
def test_names_are_those_that_were_asked_for(names, tmp_path):
    model = {f"module.{name}": tensor for name, tensor in weights().items()}
    average = {f"net.{name}": tensor for name, tensor in average_of(weights()).items()}
    path = save(tmp_path / "names.pt", model, average)
    prefix = {"model": "module.", "bare": "", "ema": "net."}[names]
    assert set(library.load_state_dict(path, names=names)) == {prefix + n for n in weights()}


def test_a_file_without_weights_says_so(tmp_path):
    torch.save({"epoch": 1}, tmp_path / "empty.pt")
    for which in ("auto", "model", "ema"):
        with pytest.raises(EmaNotFoundError):
            library.load_state_dict(tmp_path / "empty.pt", which)


def test_a_wrong_word_is_refused():
    with pytest.raises(UsageError, match="'raw'"):
        library.load_state_dict(LATE, "raw")


# ------------------------------------------------------------------------------------------ tensors


def test_writing_to_a_tensor_leaves_the_file(tmp_path):
    path = save(tmp_path / "last.pt", weights())
    before = path.read_bytes()
    for tensor in library.load_state_dict(path).values():
        tensor.fill_(-1)
    assert path.read_bytes() == before


def test_two_loads_are_independent(tmp_path):
    path = save(tmp_path / "last.pt", weights())
    one, other = (library.load_state_dict(path) for _ in range(2))
    one["scale"].fill_(-1)
    assert_same_tensor(other["scale"], average_of(weights())["scale"])


def test_tensors_outlive_the_file(tmp_path):
    path = save(tmp_path / "last.pt", weights())
    found = library.load_state_dict(path)
    path.unlink()
    assert_same_tensors(found, average_of(weights()))


def test_tied_tensors_share_memory(tmp_path):
    shared = torch.ones(3, 2)
    path = save(tmp_path / "tied.pt", weights(a=shared, b=shared))
    found = library.load_state_dict(path, "model")
    assert storage_of(found["a"]) == storage_of(found["b"])
    found["a"].fill_(7)
    assert found["b"].eq(7).all()


def test_strides_are_kept(tmp_path):
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    model = weights(conv=images, turned=torch.ones(2, 3).t())
    found = library.load_state_dict(save(tmp_path / "s.pt", model), "model")
    assert_same_tensors(found, model)
    assert found["conv"].stride() == images.stride()


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch has second thoughts about complex32
@pytest.mark.parametrize("dtype", OLD_DTYPES + NEW_DTYPES, ids=str)
def test_every_type(dtype, tmp_path):
    model = {
        "w": filled(dtype, 6).view(2, 3),
        "s": filled(dtype, 1).view(()),
        "e": filled(dtype, 0),
    }
    torch.save({"state_dict": model}, tmp_path / "typed.pt")
    assert_same_tensors(library.load_state_dict(tmp_path / "typed.pt"), model)


CONTAINERS = ("torch_zip/plain", "torch_zip/big_endian", "torch_zip/no_crc", "torch_legacy/plain")


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same(name):
    found = library.load_state_dict(FORMATS / f"{name}.pt", "model")
    assert_same_tensors(found, load(FORMATS / "torch_zip" / "plain.pt")["state_dict"])


def test_a_pickled_module_gives_its_state_dict():
    path = FORMATS / "pickle" / "module_snapshot_proto4.pkl"
    assert_same_tensors(library.load_state_dict(path), truth(path, "averaged"))


def test_safetensors_are_read_too(tmp_path):
    save_file(weights(), tmp_path / "w.safetensors")
    assert_same_tensors(library.load_state_dict(tmp_path / "w.safetensors"), weights())


def test_lazy_operations_are_done(tmp_path):
    waves = torch.view_as_complex(torch.arange(8.0).view(4, 2))
    torch.save({"w": waves.conj(), "v": torch.ones(2)}, tmp_path / "w.pt")
    found = library.load_state_dict(tmp_path / "w.pt")
    assert_same_tensor(found["w"], waves.conj().resolve_conj())


def test_misaligned_values_are_read(tmp_path):
    """A legacy file packs storages without padding: a float may begin at an odd byte."""
    model = {"flag": torch.tensor([True]), "w": torch.arange(5.0), "d": torch.ones(3).double()}
    torch.save(model, tmp_path / "odd.pt", _use_new_zipfile_serialization=False)
    assert_same_tensors(library.load_state_dict(tmp_path / "odd.pt"), model)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_mapped_is_named(tmp_path):
    odd = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    torch.save({"state_dict": weights(odd=odd)}, tmp_path / "odd.pt")
    with pytest.raises(UnsupportedError) as caught:
        library.load_state_dict(tmp_path / "odd.pt")
    assert caught.value.address == "odd"


# -------------------------------------------------------------------------------------- the package


def test_public_names_are_there():
    for name in library.__all__:
        assert getattr(library, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        library.no_such_name  # noqa: B018


def test_a_checkpoint_can_be_opened_and_looked_into():
    with library.open_checkpoint(LATE) as checkpoint:
        assert checkpoint.format_name == "torch-zip"
        assert checkpoint.tree["epoch"] == 6
        assert checkpoint.tree["model_state_dict"]["head.weight"].shape == (2, 6)


def test_every_error_is_a_ckpt_error(tmp_path):
    with pytest.raises(library.CkptError) as caught:
        library.open_checkpoint(tmp_path / "missing.pt")
    assert str(caught.value) == f"{tmp_path / 'missing.pt'}: no such file"


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnsupportedError) as caught:
        library.load_state_dict(LATE)
    assert "ckptool[torch]" in caught.value.hint
