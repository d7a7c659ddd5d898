"""A look before an average: distances, checkpoints that do not belong, and those named twice."""

from __future__ import annotations

import pytest
import torch

from ckptool import open_checkpoint
from ckptool.plans.averaging import Member
from ckptool.plans.belonging import ALL_PAIRS, distances, strangers

LAYERS = 6


def net(seed: int, *, near: dict[str, torch.Tensor] | None = None, by: float = 1.0):
    """Weights as an initialization leaves them, or such at a distance from others."""
    generator = torch.Generator().manual_seed(seed)
    noise = {
        f"{at}.weight": torch.randn(20, 30, generator=generator) / 6 for at in range(LAYERS)
    } | {f"{at}.norm": torch.ones(30) for at in range(LAYERS)}
    if near is None:
        return noise
    return {
        name: near[name] + by * noise[name] if name.endswith("weight") else near[name]
        for name in near
    }


def run_of(count: int, *, seed: int = 0, by: float = 0.05) -> list[dict[str, torch.Tensor]]:
    states = [net(seed)]
    for step in range(1, count):
        states.append(net(seed + 100 * step + 1, near=states[-1], by=by))
    return states


@pytest.fixture
def looked(tmp_path):
    """Return the distances of state dicts, and the names of those that do not belong."""

    def look(*states):
        members = []
        for at, state in enumerate(states):
            torch.save(state, tmp_path / f"{at}.pt")
            checkpoint = open_checkpoint(tmp_path / f"{at}.pt")
            members.append(Member(str(at), checkpoint.reader, checkpoint.tree))
        apart = distances(members)
        found = [
            (each.message.partition(" ")[0], each.message) for each in strangers(members, apart)
        ]
        for member in members:
            member.reader.close()
        return apart, dict(found)

    return look


@pytest.mark.parametrize("count", [2, 3, 8, ALL_PAIRS + 6])
def test_checkpoints_of_a_run_belong(looked, count):
    apart, found = looked(*run_of(count))
    assert not found
    assert all(0.01 < each < 0.1 for each in apart)


@pytest.mark.parametrize("count", [2, 5, ALL_PAIRS + 6])
def test_weights_of_another_beginning_are_strangers(looked, count):
    apart, found = looked(*run_of(count), net(9))
    assert [*found] == [str(count)]
    assert "little to do with those of any other" in found[str(count)]
    assert apart[-1] == pytest.approx(1, abs=0.1)


def test_two_that_have_nothing_in_common(looked):
    _, found = looked(net(1), net(2))
    assert [*found] == ["0", "1"]


def test_a_checkpoint_that_left_the_others_is_one(looked):
    states = run_of(6, by=0.02)
    _, found = looked(*states, net(7, near=states[-1], by=0.8))
    assert [*found] == ["6"]
    assert "the others are 0.0" in found["6"]


def test_equal_parts_do_not_hide_a_stranger(looked):
    """Norms of ones are near each other in all networks."""
    one, other = net(1), net(2)
    for name in other:
        if name.startswith(("0", "1")):
            other[name] = one[name]
    _, found = looked(*run_of(3, seed=1), other)
    assert "3" in found


def test_copies_are_at_no_distance(looked):
    one = net(1)
    assert looked(one, one)[0] == [0, 0]


def test_what_cannot_be_sampled_is_not_judged(looked):
    nothing = {"w": torch.zeros(3, 3), "nan": torch.full((2, 2), float("nan"))}
    assert looked(nothing, nothing) == ([None, None], {})
    counts = {"n": torch.tensor([1, 2])}
    assert looked(counts, counts) == ([None, None], {})


# -------------------------------------------------------------------------------- at the command


def saved(folder, states):
    for at, state in enumerate(states):
        torch.save({"model": state, "global_step": at + 1}, folder / f"{at + 1}.pt")
    return [folder / f"{at + 1}.pt" for at in range(len(states))]


def test_a_stranger_is_told_and_averaged_all_the_same(tmp_path, ckptool):
    files = saved(tmp_path, [*run_of(3), net(9)])
    done = ckptool("average", *files, "-o", tmp_path / "out.pt", "--json")
    assert done.exit_code == 0
    (found,) = done.json["findings"]
    assert (found["rule"], found["severity"]) == ("CK802", "warning")
    assert "4.pt is 1" in found["message"] or "4.pt is 0.9" in found["message"]
    assert [round(source["distance"]) for source in done.json["sources"]] == [0, 0, 0, 1]
    shown = ckptool("average", *files, "-o", tmp_path / "out.pt", "--force")
    assert "CK802" in shown
    assert "from the nearest other" in shown


def test_a_file_that_is_named_twice_is_told(tmp_path, ckptool):
    files = saved(tmp_path, run_of(3))
    done = ckptool("average", *files, files[1], "-o", tmp_path / "out.pt", "--json")
    assert [found["rule"] for found in done.json["findings"]] == ["CK803"]
    assert "2.pt is named twice, and counts twice" in done.json["findings"][0]["message"]
    (tmp_path / "same.pt").write_bytes(files[1].read_bytes())
    more = ("-o", tmp_path / "out.pt", "--force", "--json")
    done = ckptool("average", *files, tmp_path / "same.pt", *more)
    assert "same.pt holds the weights of " in done.json["findings"][0]["message"]
    assert not ckptool("average", *files, "-o", tmp_path / "o.pt", "--json").json["findings"]
