"""Rating of checkpoints by a metric, on lines of a table."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from ckptool import open_checkpoint
from ckptool.commands.into import open_slot
from ckptool.commands.promoting import check_place
from ckptool.commands.rating import rank
from ckptool.errors import OutputError, UsageError
from ckptool.reports.run import RunEntry
from helpers.making import weights

LOWER = {"val_loss": {"is": "lower", "because": "its name"}}


def entry(name: str, value: float) -> RunEntry:
    metrics = {"val_loss": value, "score": value}
    return RunEntry(name, 0, "torch-zip", None, None, metrics, None, better=LOWER)


RUN = [entry("a", 3.0), entry("b", 1.0), entry("c", float("nan")), entry("d", 2.0)]


@pytest.mark.parametrize(
    ("metric", "ranked"),
    [("val_loss", "bda"), ("val_loss:max", "adb"), ("score:max", "adb"), ("score:min", "bda")],
)
def test_the_best_is_first_and_nan_is_no_result(metric, ranked):
    name, found = rank(metric, RUN)
    assert name == metric.partition(":")[0]
    assert [each.path for each in found] == [*ranked]


def test_a_direction_that_nothing_states():
    with pytest.raises(UsageError, match="whether a lower or a higher 'score' is better"):
        rank("score", RUN)


def test_a_copy_goes_to_no_file_that_is_read(tmp_path):
    torch.save({"model": weights()}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        with pytest.raises(OutputError):
            check_place(checkpoint, tmp_path / "a.pt", force=True)
        with pytest.raises(UsageError, match="writes the format that it read"):
            check_place(checkpoint, tmp_path / "b.safetensors", force=True)
        assert check_place(checkpoint, tmp_path / "b.pt", force=False) == tmp_path / "b.pt"


def test_names_of_a_wrapper_fit_the_slot(tmp_path):
    wrapped = {f"module.{name}": tensor for name, tensor in weights().items()}
    torch.save({"model": wrapped}, tmp_path / "a.pt")
    torch.save(weights(), tmp_path / "b.pt")
    with ExitStack() as stack, open_checkpoint(tmp_path / "b.pt") as other:
        slot = open_slot(stack, tmp_path / "a.pt", other.tree, ())
        assert slot.alignment.pairs == dict(zip(wrapped, weights(), strict=True))


def nested(name: str, **metrics: float) -> RunEntry:
    named = {at.replace("_", "/"): value for at, value in metrics.items()}
    return RunEntry(name, 0, "torch-zip", None, None, named, None)


def test_different_metrics_whose_names_end_alike_are_not_compared():
    run = [nested("a", val_loss=2.0), nested("b", train_loss=0.1), nested("c", val_loss=1.0)]
    with pytest.raises(UsageError, match=r"train/loss \(in b\), val/loss \(in a\)"):
        rank("loss:min", run)
    assert [each.path for each in rank("val/loss:min", [run[0], run[2]])[1]] == ["c", "a"]


def test_the_last_entry_of_a_log_has_another_number_in_each_checkpoint():
    run = [nested("a", **{"log_history/3/loss": 2.0}), nested("b", **{"log_history/7/loss": 1.0})]
    assert [each.path for each in rank("loss:min", run)[1]] == ["b", "a"]
