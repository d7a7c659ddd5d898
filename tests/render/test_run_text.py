"""The table of a run: what each checkpoint has, and how it goes over the run."""

from __future__ import annotations

import os
import time

import pytest
import torch

from ckptool.render.run_text import POINTS, sparkline

DATE = 1_767_225_600  # 2026-01-01 in UTC


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Four checkpoints of a model with an EMA, and its weights alone."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 4)
    average = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    for step in range(1, 5):
        net(torch.ones(2, 3)).square().mean().backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] /= 2
        state = {"model": net.state_dict(), "ema": average, "optimizer": optimizer.state_dict()}
        path = folder / f"{step}.pt"
        torch.save({**state, "step": step, "val_loss": 1 / step}, path)
        os.utime(path, (DATE, DATE))
    torch.save(net.state_dict(), folder / "0.pt")
    return folder


def test_each_checkpoint_has_its_learning_rate_distance_and_time(run, ckptool):
    rows = ckptool("inspect", run).splitlines()
    size = sum(path.stat().st_size for path in run.iterdir())
    assert rows[0] == f"{run}  5 checkpoints, {size / 1024:.3g} KiB, 16 parameters each"
    heads, first = rows[1].split("  "), rows[2].split()
    assert [head.strip() for head in heads if head] == [
        "file", "step", "val_loss", "next lr", "EMA distance", "size", "changed", "EMA",
    ]  # fmt: skip
    assert first[:4] == ["1.pt", "1", "1", "0.25"]
    assert first[-3:] == ["2026-01-01", "00:00", "ema"]
    entry = ckptool("inspect", run, "--json").json["checkpoints"][0]
    assert (entry["lr"], entry["modified"], entry["parameters"]) == (
        [0.25], "2026-01-01T00:00:00Z", 16,
    )  # fmt: skip
    assert f"{100 * entry['ema_distance']:.3g} %" in rows[2]


def test_weights_without_a_step_follow_the_checkpoints_of_the_run(run, ckptool):
    names = [entry["path"][-4:] for entry in ckptool("inspect", run, "--json").json["checkpoints"]]
    assert names == ["1.pt", "2.pt", "3.pt", "4.pt", "0.pt"]


def test_what_changes_over_the_run_is_drawn(run, ckptool):
    shown = ckptool("inspect", run).partition("Over the run")[2].splitlines()
    rows = {row.split()[0]: row.split() for row in shown[1:]}
    assert rows["val_loss"][1:] == ["1", "0.25", "▇▃▂▁"]
    assert rows["next"][1:] == ["lr", "0.25", "0.0312", "▇▄▂▁"]
    assert len(rows["EMA"][-1]) == 4


def test_files_that_were_made_of_others_are_no_part_of_the_trends_and_the_best(run, ckptool):
    before = ckptool("inspect", run)
    told = [line for line in before.splitlines() if "best val_loss" in line]
    assert len(told) == 1
    args = (run / "4.pt", "--ema", "ema", "-o", run / "0promoted.pt")
    made = ckptool("promote-ema", *args)
    assert made.exit_code == 0
    mean = ckptool("average", run / "3.pt", run / "4.pt", "--only", "model", "-o", run / "mean.pt")
    assert mean.exit_code == 0
    shown = ckptool("inspect", run)
    assert "is EMA, promoted\n" in shown
    assert "is an average\n" in shown
    assert shown.partition("Over the run")[2] == before.partition("Over the run")[2]
    assert [line for line in shown.splitlines() if "best val_loss" in line] == told
    left_out = ckptool("inspect", run, "--json").json["left_out"]
    assert left_out == {
        str(run / "0promoted.pt"): "ckptool promote-ema made it of 4.pt",
        str(run / "mean.pt"): "ckptool average made it of 3.pt, 4.pt",
    }
    named = [run / "4.pt", run / "0promoted.pt"]  # one by one: they are asked for
    assert ckptool("inspect", *named, "--json").exit_code == 0


def test_metrics_whose_names_are_shown_alike_have_a_line_each(tmp_path, ckptool):
    """Two long names are cut to the same text, and one is called as a column of the table."""
    long = "x" * 70
    for step in (1, 2, 3):
        results = {f"{long}1": 1 / step, f"{long}2": 5 - step, "next lr": step}
        state = {"model": {"w": torch.ones(2)}, "step": step, "val_stats": results}
        torch.save(state, tmp_path / f"{step}.pt")
    drawn = ckptool("inspect", tmp_path).partition("Over the run")[2]
    assert [row.split()[-1] for row in drawn.splitlines()[1:4]] == ["▇▃▁", "▇▄▁", "▁▄▇"]


def test_two_checkpoints_make_no_trend(run, ckptool):
    for name in ("3.pt", "4.pt"):
        (run / name).unlink()
    assert "Over the run" not in ckptool("inspect", run)


def test_a_long_series_keeps_its_last_value():
    drawn = sparkline([*([0.0] * 1_000), 1.0])
    assert len(drawn) == POINTS
    assert drawn == "▁" * (POINTS - 1) + "▇"


def test_numbers_that_are_not_finite_are_marked():
    assert sparkline([0.0, float("nan"), 2.0, float("inf")]) == "▁×▇×"
    assert sparkline([float("nan")] * 3) == "×××"
    assert sparkline([-1.7e308, 1.7e308, 0.0])[:2] == "▁▇"


@pytest.mark.parametrize("year", [11476, 9999, 1])
def test_a_time_that_no_file_is_written_at_is_left_out(year, tmp_path, ckptool):
    for name in ("a.pt", "b.pt"):
        torch.save({"model": {"w": torch.ones(2)}, "epoch": 1}, tmp_path / name)
    seconds = (year - 1970) * 31_556_952
    try:
        os.utime(tmp_path / "a.pt", (seconds, seconds))
    except OSError:
        pytest.skip("the file system has no such years")
    shown = ckptool("inspect", tmp_path, "--json")
    assert shown.exit_code == 0
    times = [each["modified"] for each in shown.json["checkpoints"]]
    kept = (tmp_path / "a.pt").stat().st_mtime == seconds  # ext4 takes the nearest it has
    assert times[1]
    assert times[0] is None or not kept
    assert ckptool("inspect", tmp_path).exit_code == 0


def test_a_learning_rate_larger_than_floats_is_shown(tmp_path, ckptool):
    for epoch, name in enumerate(("a.pt", "b.pt")):
        optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.1).state_dict()
        optimizer["param_groups"][0]["lr"] = 10**400
        state = {"model": {"w": torch.ones(2)}, "optimizer": optimizer, "epoch": epoch}
        torch.save(state, tmp_path / name)
    assert "inf" in ckptool("inspect", tmp_path)


def test_an_integer_larger_than_floats_is_one_of_them(tmp_path, ckptool):
    for step in range(1, 4):
        loss = 10**400 if step == 2 else step
        torch.save({"model": {"w": torch.ones(2)}, "step": step, "val_loss": loss},
                   tmp_path / f"{step}.pt")  # fmt: skip
    assert "val_loss        1     3  ▁×▇" in ckptool("inspect", tmp_path)
