"""The tensors that inspect lists: by word, role and size, and the states of optimizers by name."""

from __future__ import annotations

import pytest
import torch

from ckptool.render.folding import fold
from helpers.terminals import on_terminal, plain


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 4), torch.nn.Linear(4, 2)
    )


def saved(path, groups=lambda model: model.parameters(), **changes):
    model = net()
    optimizer = torch.optim.AdamW(groups(model), lr=0.01)
    model(torch.randn(16, 3)).square().mean().backward()
    optimizer.step()
    states = {"model": model.state_dict(), "ema": net().state_dict()}
    torch.save({**states, "optimizer": optimizer.state_dict(), "epoch": 1} | changes, path)
    return path


@pytest.fixture
def file(tmp_path):
    return saved(tmp_path / "a.pt")


def entries(ckptool, *args):
    return ckptool("inspect", *args, "--json").json["entries"]


def test_states_of_an_optimizer_have_the_names_of_the_parameters(file, ckptool):
    names = [name for name, _ in net().named_parameters()]
    told = [e["parameter"] for e in entries(ckptool, file, "--match", "exp_avg_sq")]
    assert told == names
    assert "parameter" not in entries(ckptool, file, "--match", "model/0.weight")[0]


def test_a_role_matches_all_of_its_sections(tmp_path, ckptool):
    """As in diff: the key of the optimizer need not hold the word."""
    content = torch.load(saved(tmp_path / "a.pt"), weights_only=True)
    content["opt"] = content.pop("optimizer")
    torch.save(content, tmp_path / "a.pt")
    told = entries(ckptool, tmp_path / "a.pt", "--match", "optimizer")
    assert {entry["address"].split("/")[0] for entry in told} == {"opt"}
    assert told == entries(ckptool, tmp_path / "a.pt", "--only", "optimizer")
    assert ckptool("inspect", tmp_path / "a.pt", "--match", "scheduler").exit_code == 2


def test_names_that_the_optimizer_stores_count(tmp_path, ckptool):
    path = saved(tmp_path / "a.pt", lambda model: list(model.named_parameters())[::-1])
    told = [e["parameter"] for e in entries(ckptool, path, "--match", "*/exp_avg")]
    assert told == [name for name, _ in net().named_parameters()][::-1]


@pytest.mark.parametrize(
    "groups",
    [
        lambda model: [{"params": [p]} for p in model.parameters()],  # several: their order is free
        lambda model: list(model.parameters())[1:],  # fewer
        lambda model: list(model.parameters())[::-1],  # other shapes
    ],
)
def test_in_doubt_a_state_has_no_name(groups, tmp_path, ckptool):
    path = saved(tmp_path / "a.pt", groups)
    assert not any("parameter" in e for e in entries(ckptool, path, "--only", "optimizer"))


def test_states_share_a_line_of_the_tree(file, ckptool):
    shown = plain(on_terminal("inspect", file, "--tensors", width=140))
    (row,) = (row for row in shown.splitlines() if "0…7" in row)
    assert row.split()[:2] == ["0…7", "×8"]
    assert row.endswith("step, exp_avg, exp_avg_sq: 8 parameters")
    assert "optimizer/state/0/exp_avg" in ckptool("inspect", file, "--tensors")  # not in a pipe


def test_a_match_shows_its_tensors_and_no_overview(file, ckptool):
    shown = ckptool("inspect", file, "--match", "model/0.*")
    assert "Sections" not in shown
    assert shown.count("model/0.") == 2
    assert shown.startswith("a.pt  torch.save (zip)")


def test_a_bare_word_fits_a_part_of_a_key_path_and_a_glob_the_whole(file, ckptool):
    def found(glob):
        return len(entries(ckptool, file, "--match", glob))

    assert found("running") == found("*running*") == 4
    assert found("model/1.bias") == 1
    assert ckptool("inspect", file, "--match", "odel/*").exit_code == 2


def test_only_takes_roles_and_a_wrong_one_is_refused_with_those_that_there_are(file, ckptool):
    found = entries(ckptool, file, "--only", "ema", "--only", "model")
    assert {e["address"].partition("/")[0] for e in found} == {"model", "ema"}
    refused = ckptool("inspect", file, "--only", "emma")
    assert refused.exit_code == 2
    assert "hint: roles: model, ema, optimizer" in refused.stderr


def test_tensors_are_sorted_and_the_first_are_taken(file, ckptool):
    sizes = [e["bytes"] for e in entries(ckptool, file, "--sort", "size")]
    assert sizes == sorted(sizes, reverse=True)
    assert [e["bytes"] for e in entries(ckptool, file, "--top", 3)] == sizes[:3]
    names = [e["address"] for e in entries(ckptool, file, "--sort", "name", "--top", 3)]
    assert names == ["ema/0.bias", "ema/0.weight", "ema/1.bias"]
    assert ckptool("inspect", file, "--top", 0).exit_code == 2


def test_flat_lists_whole_key_paths_on_a_terminal(file):
    shown = plain(on_terminal("inspect", file, "--flat"))
    assert "  optimizer/state/7/exp_avg_sq  float32" in shown


def test_values_are_read_of_the_chosen_tensors_only(file, ckptool):
    found = entries(ckptool, file, "--top", 2, "--stats")
    assert [e["stats"] is not None for e in found] == [True, True]
    assert "1 NOT FINITE" in ckptool("inspect", saved(
        file, ema={"w": torch.tensor([1.0, torch.inf])}), "--stats", "--only", "ema")  # fmt: skip


def test_other_numbered_parts_are_no_states():
    assert not any(row.slots for row in fold(()))
