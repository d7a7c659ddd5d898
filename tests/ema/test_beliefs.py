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
    assert "the model's state dict" in output.stderr


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
    assert "swaps the two state dicts on saving" in output.stderr


def test_flattened_names_without_the_writers_mark_are_refused(ckptool, tmp_path, model, average):
    """mmcv 1 keeps the raw weights so; a loop of one's own may not."""
    flat = {"ema_" + name.replace(".", "_"): tensor for name, tensor in average.items()}
    torch.save({"state_dict": {**model, **flat}, "epoch": 1}, tmp_path / "a.pth")
    output = ckptool("extract-ema", tmp_path / "a.pth", "-o", tmp_path / "out.pt")
    assert output.exit_code == 2
    assert "does not tell which wrote it" in output.stderr


def test_row_for_a_slot_that_is_not_there_says_nothing(
    ckptool, tmp_path, monkeypatch, model, average
):
    row = '[[layouts]]\nname = "x"\nlibrary = "x"\nema_at = "net"\nmodel_at = "net"\n'
    (tmp_path / "ckptool.toml").write_text(row)
    monkeypatch.chdir(tmp_path)
    torch.save({"model": model, "ema": average}, tmp_path / "a.pt")
    assert ckptool("inspect", "a.pt", "--json").json["ema"]["main_slot"] == "raw"


def test_row_of_a_house_style_finds_a_place_without_a_marker(
    ckptool, tmp_path, monkeypatch, model, average
):
    row = '[[layouts]]\nname = "x"\nlibrary = "x"\nema_at = "slow"\nmodel_at = "net"\n'
    (tmp_path / "ckptool.toml").write_text(row)
    monkeypatch.chdir(tmp_path)
    torch.save({"net": model, "slow": average}, tmp_path / "a.pt")
    assert (
        ckptool("inspect", "a.pt", "--config", "ckptool.toml", "--json").json["ema"]["selected"]
        == "slow"
    )


def test_what_an_extraction_left_is_not_the_next_runs_average(ckptool, tmp_path, model, average):
    from safetensors.torch import save_file

    save_file(model, tmp_path / "last.safetensors")
    torch.save({"state_dict": model, "ema": average}, tmp_path / "last.ckpt")
    assert ckptool("extract-ema", tmp_path / "last.ckpt").exit_code == 0
    assert (tmp_path / "last.ema.safetensors").exists()
    output = ckptool("extract-ema", tmp_path / "last.safetensors", "-o", tmp_path / "out.pt")
    assert output.exit_code == 2


def test_twins_of_one_layout_keep_sound_checksums(ckptool, tmp_path, model, average):
    """Equal offsets in two files are no reason to take one's checksums for the other's."""
    import zipfile

    torch.save(model, tmp_path / "last.pt")
    torch.save(average, tmp_path / "last_ema.pt")
    out = tmp_path / "promoted.pt"
    report = ckptool("promote-ema", tmp_path / "last.pt", "-o", out, "--json")
    assert report.exit_code == 0
    assert report.json["file"] == str(tmp_path / "last_ema.pt")
    assert zipfile.ZipFile(out).testzip() is None
    promoted = torch.load(out)
    assert all(torch.equal(promoted[name], average[name]) for name in average)


@pytest.mark.parametrize("slot", ["expanded", "negated"])
def test_slots_without_values_of_their_own_are_refused(ckptool, tmp_path, model, average, slot):
    made = {
        "expanded": torch.ones(1).expand(6),
        "negated": torch._neg_view(torch.ones(6)),
    }
    saved = {"state_dict": model | {"x": made[slot]}, "ema": average | {"x": torch.arange(6.0)}}
    torch.save(saved, tmp_path / "a.pt")
    output = ckptool("promote-ema", tmp_path / "a.pt", "-o", tmp_path / "out.pt")
    assert output.exit_code == 2


def test_the_model_is_no_average_of_itself(ckptool, tmp_path, model, average):
    torch.save({"net": model, "ema": average}, tmp_path / "a.pt")
    args = ("--ema", "net", "--model", "net", "-o", tmp_path / "out.pt")
    assert ckptool("promote-ema", tmp_path / "a.pt", *args).exit_code == 2
