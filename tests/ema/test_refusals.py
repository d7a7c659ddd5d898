"""Why there is no average to take: a case for each row, with the hint that can be typed next."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckptool.contents.alignment import align_names
from ckptool.contents.inventory import Table, take_inventory
from ckptool.dtypes import BY_NAME
from ckptool.ema.candidates import CHOSEN, RAW_KIND, Candidate, EmaLocation
from ckptool.ema.evidence import Agreement
from ckptool.ema.refusals import require_ema
from ckptool.errors import EmaAmbiguousError, EmaNotFoundError, EmaRefusedError
from ckptool.reports.base import EmaStatus, MainSlot
from ckptool.tree.nodes import TensorRef

EXTRACT = "ckptool extract-ema 'my runs/last.pt' --ema"
FAR = SimpleNamespace(agreement=Agreement(compared=3, equal=0, distance=1.4))
NEAR = SimpleNamespace(agreement=Agreement(compared=3, equal=0, distance=0.1))
ENTRIES = {name: TensorRef(BY_NAME["float32"], (2,), ()) for name in ("a.weight", "b.weight")}
MODEL = Table(("model",), ENTRIES, None)


@dataclass
class Opened:
    """What the rows ask of an open checkpoint."""

    tree: dict[str, Any] = field(default_factory=dict)
    path: Path = Path("my runs/last.pt")


def candidate(address="ema", kind="ema", *, evidence=NEAR, entries=ENTRIES, **more) -> Candidate:
    table = Table(tuple(address.split("/")), entries, None)
    alignment = align_names(MODEL.entries, entries) if entries else None
    fields = {"layout": None, "meta": {}} | more
    return Candidate(table, kind, "because", alignment, evidence=evidence, **fields)


def require(*candidates, selected=None, tree=None, command="ckptool extract-ema", given_up=False):
    """Ask for the average of a location with these candidates."""
    inventory = take_inventory({})
    status = EmaStatus.FOUND if selected else EmaStatus.AMBIGUOUS
    location = EmaLocation(
        status, MainSlot.RAW, MODEL, candidates, selected, inventory, given_up=given_up
    )
    return require_ema(location, Opened(tree or {}), command)


def refusal(error, *candidates, **more):
    with pytest.raises(error) as caught:
        require(*candidates, **more)
    return caught.value


def test_the_one_average_is_taken():
    only = candidate()
    assert require(only, selected=only) is only


def test_no_candidate():
    error = refusal(EmaNotFoundError)
    assert "no EMA weights are stored beside the model's" in error.message
    assert error.hint.startswith("if you know where they are: --ema ADDRESS")
    assert error.hint.endswith("ckptool extract-ema 'my runs/last.pt#@model'")


@pytest.mark.parametrize("flag", ["has_ema", "ema_state_dict"])
def test_what_the_file_says_of_having_none_is_repeated(flag):
    assert f"({flag} is False)" in refusal(EmaNotFoundError, tree={flag: False}).message


def test_several_averages():
    error = refusal(EmaAmbiguousError, candidate("ema/fast"), candidate("ema/slow", "swa"))
    assert error.message == "2 places could be meant: ema/fast (ema), ema/slow (swa)"
    assert error.hint == f"{EXTRACT} ema/fast"


def test_too_many_averages():
    error = refusal(EmaAmbiguousError, candidate("a"), candidate("b"), given_up=True)
    assert error.message.startswith("too many places could be meant, among others: a (ema)")


def test_a_file_beside_is_named_by_its_path():
    beside = candidate(file=Path("my runs/last_ema.pt"))
    error = refusal(EmaAmbiguousError, beside, candidate("swa"))
    assert "last_ema.pt (ema)" in error.message
    assert error.hint == "ckptool extract-ema 'my runs/last_ema.pt'"


def test_an_average_that_is_unrelated_to_the_model():
    far = candidate(evidence=FAR)
    error = refusal(EmaRefusedError, far, selected=far)
    assert error.message == "ema is called ema, but its values are unrelated to the model's"
    assert error.hint == f"if it is what you want: {EXTRACT} ema"


@pytest.mark.parametrize("kind", [CHOSEN, RAW_KIND])
def test_what_was_asked_for_may_be_unrelated(kind):
    far = candidate(kind=kind, evidence=FAR)
    assert require(far, selected=far) is far


def test_an_averaging_that_has_not_begun():
    error = refusal(EmaNotFoundError, candidate("swa", "swa", meta={"n_averaged": 0}))
    assert error.message.startswith("no EMA weights yet: n_averaged is 0")
    assert error.address == "swa"


@pytest.mark.parametrize(
    ("kind", "advice"),
    [("schedule-free", "optimizer.eval()"), ("asgd", "optimizer.state[p]['ax']")],
)
def test_an_average_in_an_optimizer(kind, advice):
    implied = candidate("optimizer/state", kind, entries={})
    error = refusal(EmaNotFoundError, implied)
    assert error.message == "no EMA weights are stored as such; because"
    assert advice in error.hint


def test_a_writer_that_may_have_swapped():
    layout = SimpleNamespace(doubt="either may be the average", swapped=False)
    error = refusal(EmaAmbiguousError, candidate(layout=layout))
    assert error.message == "ema: either may be the average"
    assert error.hint == (
        f"--ema model takes the model's state dict unchanged, and this one: {EXTRACT} ema"
    )


def test_names_that_do_not_tell_tensors_apart():
    wider = {name: TensorRef(BY_NAME["float32"], (3,), ()) for name in ENTRIES}
    error = refusal(EmaAmbiguousError, candidate(entries=wider))
    assert "it is of another model: a.weight, b.weight" in error.message
    assert "--ema 'ADDRESS/PREFIX*' or --model ADDRESS" in error.hint


def test_a_kind_that_must_be_named():
    error = refusal(EmaAmbiguousError, candidate("teacher", "teacher"))
    assert error.message == "teacher is a teacher, which is not taken unless it is named"
    assert error.hint == f"{EXTRACT} teacher"


def test_without_options_the_hint_is_an_operand():
    error = refusal(EmaAmbiguousError, candidate("teacher", "teacher"), command=None)
    assert error.hint == "'my runs/last.pt#teacher'"
    error = refusal(EmaNotFoundError, command=None)
    assert "'my runs/last.pt#ADDRESS'" in error.hint
    assert "--ema" not in error.hint


def test_the_hint_begins_with_the_command_that_asked():
    error = refusal(
        EmaAmbiguousError, candidate("t", "teacher"), command="ckptool promote-ema -o o"
    )
    assert error.hint == "ckptool promote-ema -o o 'my runs/last.pt' --ema t"
