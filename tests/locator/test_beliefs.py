"""What a sample of values suggests is proven in full before anything is written."""

import pytest
import torch

import ckptool as library


def weights(seed):
    generator = torch.Generator().manual_seed(seed)
    return {f"layers.{i}.weight": torch.randn(64, 64, generator=generator) for i in range(12)}


@pytest.fixture
def model():
    return weights(0)


@pytest.fixture
def average(model):
    return {name: tensor + 0.01 for name, tensor in model.items()}


def differing_late(state_dict):
    """A copy that differs only behind what a sample reads."""
    copy = {name: tensor.clone() for name, tensor in state_dict.items()}
    copy["layers.11.weight"][-1, -1] += 1
    return copy


def test_equal_copies_are_one(ckptool, tmp_path, model, average):
    copy = {name: tensor.clone() for name, tensor in average.items()}
    torch.save({"state_dict": model, "ema": average, "callbacks": {"EMA": copy}}, tmp_path / "a.pt")
    assert ckptool("extract-ema", tmp_path / "a.pt", "-o", tmp_path / "out.pt").exit_code == 0


@pytest.mark.parametrize("command", ["extract-ema", "promote-ema"])
def test_copies_that_differ_late_are_refused(ckptool, tmp_path, model, average, command):
    copy = differing_late(average)
    torch.save({"state_dict": model, "ema": average, "callbacks": {"EMA": copy}}, tmp_path / "a.pt")
    output = ckptool(command, tmp_path / "a.pt", "-o", tmp_path / "out.pt")
    assert output.exit_code == 2
    assert "in a sample of the values, but not in all" in output.stderr
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("command", ["extract-ema", "promote-ema"])
def test_slot_that_was_promoted_only_in_part_is_refused(ckptool, tmp_path, average, command):
    saved = {"state_dict": differing_late(average), "ema_shadow": average, "using_ema": True}
    torch.save(saved, tmp_path / "a.pt")
    output = ckptool(command, tmp_path / "a.pt", "-o", tmp_path / "out.pt")
    assert output.exit_code == 2
    assert "the model's own slot" in output.stderr


def test_library_proves_too(tmp_path, model, average):
    copy = differing_late(average)
    torch.save({"state_dict": model, "ema": average, "callbacks": {"EMA": copy}}, tmp_path / "a.pt")
    with pytest.raises(library.CkptError, match="not in all"):
        library.load_state_dict(tmp_path / "a.pt", "ema")


def test_stripped_file_of_a_writer_that_swaps_is_refused(ckptool, tmp_path, model, average):
    stripped = {f"module.{name}": tensor for name, tensor in average.items()}
    stripped["steps"] = torch.tensor(10)
    torch.save({"state_dict": model, "ema_state_dict": stripped}, tmp_path / "a.pth")
    output = ckptool("extract-ema", tmp_path / "a.pth", "-o", tmp_path / "out.pt")
    assert output.exit_code == 2
    assert "swaps the slots on saving" in output.stderr
