"""The best checkpoint of a run by each metric."""

from __future__ import annotations

from ckptool.commands.runs import best_by_metric, run_report
from ckptool.reports.run import RunEntry

LOWER = {"val_loss": {"is": "lower", "because": "its name"}}
HIGHER = {"val_loss": {"is": "higher", "because": "mode"}}


def entry(path: str, step: int, better=LOWER, **metrics: float) -> RunEntry:
    return RunEntry(path, 1, "torch-zip", None, step, metrics, None, better=better)


def test_the_best_is_that_of_the_direction():
    entries = [entry("a", 1, val_loss=0.5), entry("b", 2, val_loss=0.25), entry("c", 3)]
    (best,) = best_by_metric(entries).values()
    assert (best.path, best.value, best.better) == ("b", 0.25, "lower")


def test_what_cannot_be_compared_is_left_out():
    nan = float("nan")
    assert best_by_metric([entry("a", 1, val_loss=0.5), entry("b", 2, val_loss=nan)]) == {}
    assert (
        best_by_metric([entry("a", 1, best_val_loss=0.5), entry("b", 2, best_val_loss=0.5)]) == {}
    )
    contradicted = [entry("a", 1, val_loss=0.5), entry("b", 2, HIGHER, val_loss=0.25)]
    assert best_by_metric(contradicted) == {}


def test_a_run_is_in_the_order_of_its_steps():
    report = run_report("runs", [entry("late", 2, psnr=1.0), entry("early", 1, psnr=2.0)])
    assert [each.path for each in report.checkpoints] == ["early", "late"]
    assert report.unrated == ("psnr",)
