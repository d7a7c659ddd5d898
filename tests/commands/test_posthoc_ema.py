"""Post-hoc EMA: genuine snapshots of ema-pytorch, and EDM2's by its own rule of updating."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ckptool.plans.posthoc import gamma_of
from helpers.paths import FIXTURES, contents
from helpers.tensors import load

POSTHOC = FIXTURES / "posthoc"
SERIES = POSTHOC / "series"
WIDTHS = ("--widths", "0.05,0.28")


@pytest.fixture
def made(ckptool, tmp_path):
    """Make an EMA of a width, and return its weights and the report."""

    def make(*args, width: float, suffix: str = "pt"):
        output = tmp_path / f"out.{suffix}"
        done = ckptool("average", *args, "--sigma-rel", width, "--force", "-o", output, "--json")
        assert done.exit_code == 0, done.stderr
        return load(output) if suffix == "pt" else load_file(output), done.json

    return make


@pytest.fixture
def refusal(ckptool, tmp_path):
    def refused(*args) -> str:
        before = contents(tmp_path)
        done = ckptool("average", *args, "-o", tmp_path / "out.pt")
        assert done.exit_code == 2
        assert contents(tmp_path) == before
        return done.stderr

    return refused


# -------------------------------------------------------------------------------------- ema-pytorch


@pytest.mark.parametrize("width", [0.05, 0.15, 0.2])
def test_what_ema_pytorch_synthesizes(made, width):
    """Its weights are not scaled to a sum of 1."""
    path = POSTHOC / f"{width}.safetensors"
    with safe_open(path, "pt") as file:
        total = float(file.metadata()["sum"])
    found, report = made(SERIES, *WIDTHS, "--dtype", "float32", width=width)
    for name, tensor in load_file(path).items():
        torch.testing.assert_close(found[name] * total, tensor, rtol=0, atol=1e-6)
    assert report["posthoc"]["sigma_rel"] == width
    assert len(report["sources"]) == 16
    assert {source["sigma_rel"] for source in report["sources"]} == {0.05, 0.28}


def test_the_ema_that_was_tracked(made):
    """The residual says how far it is; a snapshot of another width is much further."""
    tracked = load_file(POSTHOC / "tracked.safetensors")
    found, report = made(SERIES, *WIDTHS, "--dtype", "float32", width=0.15)
    flat = {
        "made": torch.cat([found[name].ravel() for name in tracked]),
        "wide": torch.cat([load(SERIES / "1.80.pt")[f"ema_model.{n}"].ravel() for n in tracked]),
        "true": torch.cat([tensor.ravel() for tensor in tracked.values()]),
    }
    off = {name: (each.float() - flat["true"]).norm().item() for name, each in flat.items()}
    assert off["made"] < off["wide"] / 8
    assert report["posthoc"]["residual"] == pytest.approx(0.034, abs=0.001)


def test_widths_are_asked_for(refusal):
    assert "does not state its sigma_rel, and --widths gives none for track 0" in refusal(
        SERIES, "--sigma-rel", 0.1
    )
    assert "none for track 1" in refusal(SERIES, "--sigma-rel", 0.1, "--widths", "0.05")
    assert "are no numbers" in refusal(SERIES, "--sigma-rel", 0.1, "--widths", "x")


def test_other_files_of_the_directory_do_not_count(made, tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    for path in SERIES.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    torch.save({"model": {"w": torch.ones(3)}}, folder / "model.pt")
    found, report = made(folder, *WIDTHS, width=0.1)
    assert len(report["sources"]) == 16
    assert "w" not in found


# --------------------------------------------------------------------------------------------- EDM2


def updated(average: torch.Tensor, live: torch.Tensor, gamma: float, images: int) -> torch.Tensor:
    """As ``PowerFunctionEMA.update`` does it, with a batch of 1024 images."""
    kept = (1 - 1024 / images) ** (gamma + 1)
    return average * kept + live * (1 - kept)


@pytest.fixture(scope="module")
def edm2(tmp_path_factory) -> tuple[Path, dict[float, torch.Tensor]]:
    """Training states of a run, and the EMAs of it at its end by width."""
    folder = tmp_path_factory.mktemp("edm2") / "run"
    folder.mkdir()
    generator = torch.Generator().manual_seed(5)
    live = torch.randn(7, 5, dtype=torch.float64, generator=generator)
    gammas = {width: gamma_of(width) for width in (0.05, 0.07, 0.1, 0.15)}
    averages = dict.fromkeys(gammas, live)
    for step in range(1, 513):
        live = live + torch.randn(7, 5, dtype=torch.float64, generator=generator) / 8
        averages = {w: updated(each, live, gammas[w], 1024 * step) for w, each in averages.items()}
        if step % 8 == 0:
            content = {
                "state": {"cur_nimg": 1024 * step},
                "net": {"w": live, "count": torch.tensor(step)},
                "ema": {
                    "stds": [0.05, 0.1],
                    "emas": [{"w": averages[w], "count": torch.tensor(step)} for w in (0.05, 0.1)],
                },
            }
            torch.save(content, folder / f"training-state-{1024 * step // 1000:07d}.pt")
    return folder, averages


@pytest.mark.parametrize("width", [0.07, 0.15])
def test_edm2_s_states_make_what_was_tracked(edm2, made, width):
    folder, averages = edm2
    found, report = made(folder, width=width)
    assert found["count"] == 512
    off = (found["w"] - averages[width]).norm() / averages[width].norm()
    assert report["posthoc"]["residual"] < 1e-3
    assert off < 1e-3
    assert report["newest"] == ["count"]
    assert report["sources"][-1]["address"] == "ema/emas/1"


def test_a_width_that_is_stored_is_exact(edm2, made):
    folder, averages = edm2
    found, _ = made(folder, width=0.1)
    torch.testing.assert_close(found["w"], averages[0.1], rtol=1e-9, atol=1e-9)


def test_networks_beside_the_states_count_once(edm2, made, tmp_path):
    folder, averages = edm2
    run = tmp_path / "run"
    run.mkdir()
    for path in sorted(folder.iterdir())[-3:]:
        (run / path.name).write_bytes(path.read_bytes())
    half = {"ema": {"w": averages[0.1].half(), "count": torch.tensor(512)}}
    torch.save(
        half, run / "network-snapshot-0000524-0.100.pkl", _use_new_zipfile_serialization=False
    )
    found, report = made(run, width=0.1)
    assert len(report["sources"]) == 6
    assert [Path(path).name for path in report["copies"]] == ["network-snapshot-0000524-0.100.pkl"]
    assert found["w"].dtype == torch.float64


def test_the_network_s_name_states_time_and_width(made, tmp_path):
    times = [1024 * n for n in (100, 200, 300)]
    for images in times:
        for width in (0.05, 0.1):
            content = {"ema": {"w": torch.full((3,), images * width)}}
            torch.save(content, tmp_path / f"net-{images // 1000:07d}-{width:.3f}.pkl")
    files = sorted(tmp_path.glob("net-*"))
    _, report = made(*files, width=0.07)
    assert sorted({source["step"] for source in report["sources"]}) == times


# ----------------------------------------------------------------------------------------- refusals


def test_a_width_out_of_reach_is_refused(edm2, refusal, made):
    files = sorted(edm2[0].iterdir())[-2:]
    message = refusal(*files, "--sigma-rel", 0.25)
    assert "these 4 snapshots cannot make sigma_rel 0.25: its profile would be " in message
    low, high = map(float, re.search(r"EMAs from ([\d.]+) to ([\d.]+)", message).groups())
    assert low < 0.05
    assert 0.1 < high < 0.25
    _, report = made(*files, width=0.25)  # with --force
    assert report["posthoc"]["residual"] > 0.1
    assert report["posthoc"]["reach"] == pytest.approx([low, high], rel=0.01)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--sigma-rel", "0.5"), "a relative width is between 0 and"),
        (("--sigma-rel", "0.1", "--last", "2"), "--sigma-rel and --last exclude each other"),
        (("--sigma-rel", "0.1", "--only", "ema"), "--sigma-rel and --only exclude each other"),
        (("--sigma-rel", "0.1", "--ema-decay", "0.5"), "exclude each other"),
        (("--widths", "0.1,0.2", "--only", "model"), "--widths are those of snapshots"),
    ],
)
def test_options_that_do_not_fit(edm2, refusal, more, message):
    assert message in refusal(edm2[0], *more)


def test_files_without_snapshots(refusal, tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "b.pt")
    assert "takes at least two snapshots, and there are 0" in refusal(tmp_path, "--sigma-rel", 0.1)
    assert "a.pt: it holds no snapshot of a power-function EMA" in refusal(
        tmp_path / "a.pt", "--sigma-rel", 0.1
    )


# ------------------------------------------------------------------------------------------ inspect


def test_inspect_names_the_widths_and_the_command(edm2, ckptool):
    folder, _ = edm2
    newest = max(folder.iterdir())
    told = f"sigma_rel 0.05, 0.1; other widths: ckptool average {folder} --sigma-rel X -o OUT"
    assert told in ckptool("inspect", newest)
    assert f"128 EMA snapshots of {told}" in ckptool("inspect", folder)
    found = ckptool("inspect", newest, "--json").json["snapshots"]
    assert [each["sigma_rel"] for each in found] == [0.05, 0.1]
    assert {each["time"] for each in found} == {524288}


def test_inspect_says_where_the_width_is_not_stored(ckptool):
    told = "2 tracks whose sigma_rel is not stored; other widths: ckptool average "
    assert told in ckptool("inspect", SERIES)
    assert "--widths W,W --sigma-rel X" in ckptool("inspect", SERIES)
    assert "snapshots" not in ckptool("inspect", POSTHOC / "0.15.safetensors", "--json").json


def edm2_state(path: Path, time: float, value: float) -> Path:
    tables = [{"w": torch.full((3,), value + width)} for width in (0.05, 0.1)]
    content = {"state": {"cur_nimg": time}, "ema": {"stds": [0.05, 0.1], "emas": tables}}
    torch.save(content, path)
    return path


@pytest.mark.parametrize("time", [10**400, float("inf"), float("nan")], ids=["1e400", "inf", "nan"])
def test_a_time_that_is_no_number_is_refused(refusal, tmp_path, time):
    files = edm2_state(tmp_path / "a.pt", time, 0.0), edm2_state(tmp_path / "b.pt", 9, 1.0)
    assert "a.pt: it holds no snapshot of a power-function EMA" in refusal(
        *files, "--sigma-rel", 0.07, "--force"
    )


def test_snapshots_of_two_runs_are_no_copies(refusal, tmp_path):
    files = edm2_state(tmp_path / "a.pt", 9, 0.0), edm2_state(tmp_path / "b.pt", 9, 1.0)
    message = refusal(*files, "--sigma-rel", 0.07, "--force")
    assert "hold different snapshots of one time, 9, and one sigma_rel, 0.05" in message
    assert all(str(path) in message for path in files)


def test_typed_widths_that_the_files_contradict_are_refused(edm2, refusal, made):
    message = refusal(edm2[0], "--sigma-rel", 0.1, "--widths", "0.3,0.4")
    assert "states the sigma_rel 0.05, which --widths does not name" in message
    made(edm2[0], "--widths", "0.05,0.1", width=0.1)
