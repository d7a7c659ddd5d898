"""Targets that share bytes: their averages agree there, after the cast, or promotion refuses."""

from __future__ import annotations

import pytest
import torch

from ckptool.writers import contradictions, patched_copy
from helpers.kinds import loaded, noise
from helpers.making import average_of, floats_to, save, weights
from helpers.tensors import assert_same_tensors, load

WIDTH = 5000
TABLE = noise(3 * WIDTH)
HALF = TABLE.bfloat16()

# The same storage twice in the model, and what both averages are taken from.
VIEWS = {
    "tied": lambda t: (t[:WIDTH], t[:WIDTH]),
    "tied in other shapes": lambda t: (t[:WIDTH].view(50, 100), t[:WIDTH]),
    "a part": lambda t: (t[: 2 * WIDTH], t[WIDTH:]),
    "inside": lambda t: (t, t[WIDTH : 2 * WIDTH]),
    "transposed": lambda t: (t.view(100, 150), t.view(100, 150).t()),
    "columns": lambda t: (t.view(100, 150)[:, :90], t.view(100, 150)[:, 80:]),
    "a step apart": lambda t: (t[::2], t[::3]),
}
DISJOINT = {
    "even and odd": lambda t: (t[::2], t[1::2]),
    "columns": lambda t: (t.view(100, 150)[:, :90], t.view(100, 150)[:, 90:]),
}
SLOTS = {"moved": TABLE, "cast": HALF}


@pytest.fixture(params=["one window", "many windows"], autouse=True)
def _windows(request, monkeypatch):
    if request.param == "many windows":
        monkeypatch.setattr(patched_copy, "PIECE", 6144)
        monkeypatch.setattr(contradictions, "WINDOW", 6000)


@pytest.fixture
def promote(ckptool, tmp_path):
    def run(slot, views, averaged):
        first, second = views(slot)
        model = weights(first=first, second=second)
        average = average_of(weights()) | averaged
        path = save(tmp_path / "last.pt", model, average)
        done = ckptool("promote-ema", path, "-o", tmp_path / "out.pt", "--json")
        return done, model, average

    return run


@pytest.mark.parametrize("slot", SLOTS.values(), ids=SLOTS)
@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_averages_that_agree_are_taken(slot, views, promote, tmp_path):
    first, second = views(TABLE * 0.9)
    done, model, average = promote(slot, views, {"first": first.clone(), "second": second.clone()})
    assert done.exit_code == 0, done
    assert_same_tensors(load(tmp_path / "out.pt")["state_dict"], loaded(model, average))


@pytest.mark.parametrize("slot", SLOTS.values(), ids=SLOTS)
@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("place", [0, -1])
def test_one_value_that_differs_is_refused(slot, views, place, promote, tmp_path):
    """At the first or the last place that both show."""
    numbers = views(torch.arange(float(TABLE.numel())))
    shared = sorted(set(numbers[0].reshape(-1).tolist()) & set(numbers[1].reshape(-1).tolist()))
    other = TABLE * 0.9
    other[int(shared[place])] += 1
    averaged = {"first": views(TABLE * 0.9)[0].clone(), "second": views(other)[1].clone()}
    done, *_ = promote(slot, views, averaged)
    error = done.json["error"]
    assert (done.exit_code, error["code"]) == (2, "ema-refused")
    assert error["address"] in {"first", "second"}
    assert "in the model, but their averages differ" in error["message"]
    assert "extract-ema" in error["hint"]
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("slot", SLOTS.values(), ids=SLOTS)
@pytest.mark.parametrize("views", DISJOINT.values(), ids=DISJOINT)
def test_what_interleaves_does_not_overlap(slot, views, promote, tmp_path):
    averaged = {"first": views(TABLE * 0.9)[0].clone(), "second": views(TABLE * 0.8)[1].clone()}
    done, model, average = promote(slot, views, averaged)
    assert done.exit_code == 0, done
    assert_same_tensors(load(tmp_path / "out.pt")["state_dict"], loaded(model, average))


def test_tied_averages_in_two_types_agree_after_the_cast(promote, tmp_path):
    one = floats_to({"first": TABLE[:8] * 0.9}, torch.bfloat16)
    both = one | {"second": one["first"].float()}
    done, model, average = promote(HALF, lambda table: (table[:8], table[:8]), both)
    assert done.exit_code == 0, done
    assert_same_tensors(load(tmp_path / "out.pt")["state_dict"], loaded(model, average))


def test_a_view_of_bytes_between_the_parts_of_a_flat_buffer_is_seen(ckptool, tmp_path):
    """The part begins last and ends early, while the buffer goes on behind it."""
    flat = noise(100)
    average = flat * 0.9
    model = weights(flat=flat, part=flat[10:20])
    ema = average_of(weights()) | {"flat": average, "part": average[10:20].clone()}
    path = save(tmp_path / "last.pt", model, ema, best={"snapshot": flat[50:60]})
    args = ("promote-ema", path, "-o", tmp_path / "out.pt", "--json")
    refused = ckptool(*args)
    assert refused.exit_code == 2
    assert "best/snapshot" in refused.json["error"]["message"]
    assert ckptool(*args, "--allow-shared").json["shared"] == ["best/snapshot"]


def test_what_the_average_lacks_does_not_change_unsaid(ckptool, tmp_path):
    """A tensor of the slot itself that views bytes of one that gets an average."""
    flat = noise(100)
    model = weights(flat=flat, part=flat[10:20])
    path = save(tmp_path / "last.pt", model, average_of(weights(part=noise(10, seed=2))))
    args = ("promote-ema", path, "-o", tmp_path / "out.pt", "--json")
    refused = ckptool(*args)
    assert refused.exit_code == 2
    assert "state_dict/flat" in refused.json["error"]["message"]
    done = ckptool(*args, "--allow-shared").json
    assert (done["kept"], done["shared"]) == (["flat"], ["state_dict/flat"])
