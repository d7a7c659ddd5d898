"""Averages in a file or a folder beside: found by name, believed by names, shapes and values."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from ckptool.ema import sidecars
from helpers.tensors import assert_same_tensors, load
from helpers.twins import drawn, near, save

MODEL = drawn()
EMA = near(MODEL)


@pytest.fixture
def located(ckptool):
    """``located(path)``: (status, names of the files of the candidates)."""

    def run(path) -> tuple[str, list[str]]:
        found = ckptool("inspect", path, "--json").json["ema"]
        return found["status"], [c["file"].rpartition("/")[2] for c in found["candidates"]]

    return run


@pytest.mark.parametrize(
    ("model", "average"),
    [
        ("last.pt", "last_ema.pt"),
        ("last.pt", "last-EMA.pt"),
        ("last.pt", "ema_last.pt"),
        ("epoch=2.ckpt", "epoch=2-EMA.ckpt"),
        ("model000005.pt", "ema_0.9999_000005.pt"),
        ("model_5.pt", "ema_5.pt"),
        ("G.pth", "G_ema.pth"),
        ("generator.safetensors", "generator_ema.safetensors"),
        ("net_g_12.pth", "net_g_ema_12.pth"),
        ("checkpoint5.pt", "checkpointema5.pt"),  # glued to another word
        ("epoch_24.pth", "epoch_24_ema.pth"),
        ("nnet.pth", "nnet_ema.pth"),
    ],
)
def test_twin_file(model, average, located, ckptool, tmp_path):
    for name, weights in ((model, MODEL), (average, EMA)):
        (save_file if name.endswith("safetensors") else _torch)(weights, tmp_path / name)
    assert located(tmp_path / model) == ("found", [average])
    assert ckptool("extract-ema", tmp_path / model, "-o", tmp_path / "out.bin").exit_code == 0
    assert_same_tensors(load(tmp_path / "out.bin"), EMA)


def _torch(weights, path) -> None:
    save(path, weights)


@pytest.mark.parametrize(
    ("model", "other"),
    [
        ("last.pt", "last_ema.ckpt"),  # another suffix: another writer
        ("last.pt", "best_ema.pt"),
        ("model000005.pt", "ema_0.9999_000010.pt"),
        ("last.pt", "last2.pt"),
        ("last.pt", "last_semantic.pt"),
        ("resnet_5.pt", "ema_5.pt"),
        ("last_ema.pt", "last_ema_ema.pt"),
        ("checkpoint5.pt", "checkpointema6.pt"),
        ("checkpoint5.pt", "checkpointlast5.pt"),
    ],
)
def test_other_files_are_no_twins(model, other, located, tmp_path):
    save(tmp_path / model, MODEL)
    save(tmp_path / other, EMA)
    assert located(tmp_path / model) == ("none", [])


def test_the_average_itself_is_told_so_when_its_twin_is_there(ckptool, tmp_path):
    save(tmp_path / "last.pt", MODEL)
    save(tmp_path / "last_ema.pt", EMA)
    found = ckptool("inspect", tmp_path / "last_ema.pt", "--json").json["ema"]
    assert (found["main_slot"], found["candidates"]) == ("averaged", [])
    done = ckptool("extract-ema", tmp_path / "last_ema.pt", "-o", tmp_path / "out.pt")
    assert done.exit_code == 0
    assert_same_tensors(load(tmp_path / "out.pt"), EMA)


def test_several_rates_are_ambiguous(located, ckptool, tmp_path):
    save(tmp_path / "model000005.pt", MODEL)
    save(tmp_path / "ema_0.9_000005.pt", EMA)
    save(tmp_path / "ema_0.99_000005.pt", near(MODEL, 2))
    twins = ["ema_0.99_000005.pt", "ema_0.9_000005.pt"]
    assert located(tmp_path / "model000005.pt") == ("ambiguous", twins)
    done = ckptool("extract-ema", tmp_path / "model000005.pt", "-o", tmp_path / "out.pt")
    assert done.exit_code == 2
    assert all(name in done.stderr for name in twins)


def test_only_the_twin_of_the_same_step(located, tmp_path):
    for step in (5, 10):
        save(tmp_path / f"model{step:06}.pt", MODEL)
        save(tmp_path / f"ema_0.9_{step:06}.pt", EMA)
    assert located(tmp_path / "model000010.pt") == ("found", ["ema_0.9_000010.pt"])


@pytest.mark.parametrize("folder", ["ema", "EMA"])
def test_folder_below(folder, located, tmp_path):
    save(tmp_path / "last.pt", MODEL)
    save(tmp_path / folder / "last.pt", EMA)
    assert located(tmp_path / "last.pt") == ("found", ["last.pt"])


@pytest.mark.parametrize("folder", ["unet_ema", "unet-ema", "ema_unet"])
def test_folder_beside(folder, located, ckptool, tmp_path):
    save(tmp_path / "unet" / "model.bin", MODEL)
    save(tmp_path / folder / "model.bin", EMA)
    (tmp_path / folder / "config.json").write_text('{"decay": 0.9, "width": 3}')
    assert located(tmp_path / "unet" / "model.bin") == ("found", ["model.bin"])
    (candidate,) = ckptool("inspect", tmp_path / "unet" / "model.bin", "--json").json["ema"][
        "candidates"
    ]
    assert candidate["meta"] == {"decay": 0.9}


@pytest.mark.parametrize("home", ["model", "models", "weights", "checkpoints", "raw"])
def test_folder_of_averages_beside_one_of_models(home, located, ckptool, tmp_path):
    save(tmp_path / home / "epoch5.pt", MODEL)
    save(tmp_path / home / "epoch6.pt", MODEL)
    save(tmp_path / "ema" / "epoch5.pt", EMA)
    save(tmp_path / "ema" / "ema_epoch6.pt", near(MODEL, 2))
    assert located(tmp_path / home / "epoch5.pt") == ("found", ["epoch5.pt"])
    assert located(tmp_path / home / "epoch6.pt") == ("found", ["ema_epoch6.pt"])
    found = ckptool("inspect", tmp_path / "ema" / "epoch5.pt", "--json").json["ema"]
    assert found["main_slot"] == "averaged"


@pytest.mark.parametrize("home", ["data", "encoder", "runs"])
def test_folder_of_averages_beside_any_other(home, located, tmp_path):
    save(tmp_path / home / "epoch5.pt", MODEL)
    save(tmp_path / "ema" / "epoch5.pt", EMA)
    assert located(tmp_path / home / "epoch5.pt") == ("none", [])


def test_only_file_of_a_folder_is_the_twin_of_the_only_one(located, tmp_path):
    save(tmp_path / "last.pt", MODEL)
    save(tmp_path / "ema" / "ema.pt", EMA)
    assert located(tmp_path / "last.pt") == ("found", ["ema.pt"])
    save(tmp_path / "best.pt", MODEL)
    assert located(tmp_path / "last.pt") == ("none", [])


@pytest.mark.parametrize("pair", [("model", "model_ema"), ("model", "ema"), ("unet", "unet_ema")])
def test_folder_of_both_is_a_checkpoint(pair, ckptool, tmp_path):
    for folder, weights in zip(pair, (MODEL, EMA), strict=True):
        save(tmp_path / "step" / folder / "weights.bin", weights)
    output = tmp_path / "out.pt"
    assert ckptool("extract-ema", tmp_path / "step", "-o", output).exit_code == 0
    assert_same_tensors(load(output), EMA)


def test_folders_of_a_run_are_no_checkpoint(ckptool, tmp_path):
    for folder, weights in (("model", MODEL), ("ema", EMA)):
        for epoch in (1, 2):
            save(tmp_path / "run" / folder / f"epoch{epoch}.bin", weights)
    refused = ckptool("extract-ema", tmp_path / "run", "-o", tmp_path / "out.pt")
    assert refused.exit_code == 2


def test_relative_path(located, tmp_path, monkeypatch):
    save(tmp_path / "unet" / "model.bin", MODEL)
    save(tmp_path / "unet_ema" / "model.bin", EMA)
    monkeypatch.chdir(tmp_path / "unet")
    assert located("model.bin") == ("found", ["model.bin"])


def test_twin_under_another_key(located, tmp_path):
    save(tmp_path / "last.pt", {"model": MODEL, "epoch": 3})
    save(tmp_path / "last_ema.pt", {"state_dict": EMA})
    assert located(tmp_path / "last.pt") == ("found", ["last_ema.pt"])


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", b"PK\x03\x04 broken", b"\x80\x02broken"]
)
def test_neighbour_that_cannot_be_read_is_left(content, located, tmp_path):
    save(tmp_path / "last.pt", MODEL)
    (tmp_path / "last_ema.pt").write_bytes(content)
    assert located(tmp_path / "last.pt") == ("none", [])


def test_folder_called_like_a_twin_is_left(located, tmp_path):
    save(tmp_path / "last.pt", MODEL)
    (tmp_path / "last_ema.pt").mkdir()
    assert located(tmp_path / "last.pt") == ("none", [])


@pytest.mark.parametrize(
    "other",
    [
        {**EMA, "more": EMA["stem.bias"]},
        {k: v for k, v in EMA.items() if k != "head.bias"},
        EMA | {"head.bias": EMA["stem.bias"]},
        {"x": EMA["stem.bias"]},
        {},
    ],
    ids=["more", "fewer", "shapes", "names", "empty"],
)
def test_twin_with_other_names_or_shapes_is_left(other, located, tmp_path):
    save(tmp_path / "last.pt", MODEL)
    save(tmp_path / "last_ema.pt", other)
    assert located(tmp_path / "last.pt") == ("none", [])


def test_average_inside_comes_before_a_twin(ckptool, tmp_path):
    save(tmp_path / "last.pt", {"model": MODEL, "ema": EMA})
    save(tmp_path / "last_ema.pt", near(MODEL, 2))
    found = ckptool("inspect", tmp_path / "last.pt", "--json").json["ema"]
    assert [(c["address"], c["file"]) for c in found["candidates"]] == [("ema", None)]


def test_file_in_a_folder_for_averages_has_no_twin(located, tmp_path):
    save(tmp_path / "run_ema" / "last.pt", MODEL)
    save(tmp_path / "run" / "last.pt", EMA)
    assert located(tmp_path / "run_ema" / "last.pt") == ("none", [])


def test_a_folder_is_not_beside_itself(ckptool, tmp_path):
    folder = tmp_path / "without_averages0"
    folder.mkdir()
    path = save(folder / "last.pt", {"state_dict": drawn()})
    ema = ckptool("inspect", path, "--json").json["ema"]
    assert (ema["status"], ema["main_slot"]) == ("none", "unknown")


# ------------------------------------------------------------------------- files that cost too much


def crowded(path):
    """A file with more names than the EMA of a small model can have: 2 MB of them."""
    return save(path, {"state_dict": drawn(), **{f"{'x' * 100}{i}": i for i in range(20_000)}})


@pytest.fixture
def clean(tmp_path):
    return save(tmp_path / "last.ckpt", {"state_dict": MODEL})


def told(done) -> list[str]:
    return [found["message"] for found in done.json["findings"] if found["rule"] == "CK420"]


def test_a_neighbour_with_too_many_names_is_told_and_not_read(clean, ckptool):
    """The budget is in bytes that are read, not in seconds: the same on every machine."""
    crowded(clean.with_name("last-EMA.ckpt"))
    for command in ("inspect", "verify"):
        done = ckptool(command, clean, "--json")
        (message,) = told(done)
        assert message.startswith("not read: last-EMA.ckpt: more than ")
        assert done.exit_code == 0
    refused = ckptool("extract-ema", clean, "-o", clean.with_name("out.pt"))
    assert refused.exit_code == 2
    assert "not read beside it: last-EMA.ckpt" in refused.stderr


def test_a_sound_neighbour_is_found_among_others(clean, located, ckptool):
    crowded(clean.with_name("last-EMA.ckpt"))
    clean.with_name("last_EMA.ckpt").write_bytes(b"a log")
    save(clean.with_name("last_ema.ckpt"), {"state_dict": EMA})
    assert located(clean) == ("found", ["last_ema.ckpt"])
    (message,) = told(ckptool("inspect", clean, "--json"))
    assert "last-EMA.ckpt: more than" in message
    assert "last_EMA.ckpt: " in message


def test_many_neighbours_cost_no_more_than_a_few(clean, ckptool, monkeypatch):
    """Together they may need as much as eight of them alone."""
    hostile = crowded(clean.with_name("last-EMA.ckpt")).read_bytes()
    for i in range(30):
        clean.with_name(f"last-EMA{'-' * i}.ckpt").write_bytes(hostile)
    taken, bounded = [], sidecars.BoundedFile

    class Counted(bounded):
        def close(self) -> None:
            taken.append(self.taken)
            super().close()

    monkeypatch.setattr(sidecars, "BoundedFile", Counted)
    (message,) = told(ckptool("inspect", clean, "--json"))
    assert "too many files have such names" in message or "more" in message
    most = sidecars.FILES_IN_FULL * (sidecars.BYTES_EACH + sidecars.BYTES_PER_TENSOR * len(MODEL))
    assert 0 < sum(taken) < most + 3 * len(hostile)


def test_values_are_read_however_many_there_are(clean, tmp_path, ckptool):
    """Only names are bounded: the EMA itself may be of any size."""
    model = {"w": torch.randn(1 << 20, generator=torch.Generator().manual_seed(1))}
    save(clean, {"state_dict": model})
    save(clean.with_name("last-EMA.ckpt"), {"state_dict": {"w": model["w"] * 0.99}})
    output = tmp_path / "out.pt"
    assert ckptool("extract-ema", clean, "-o", output).exit_code == 0
    assert_same_tensors(load(output), {"w": model["w"] * 0.99})
