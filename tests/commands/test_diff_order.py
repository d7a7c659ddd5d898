"""The order of the tensors that diff lists, and the parameters of an optimizer's states."""

from __future__ import annotations

import re

import pytest
import torch

from ckptool.render.diff_order import ORDERS


@pytest.fixture
def saves(tmp_path):
    """Two checkpoints of a run: one weight changes little and one much, the optimizer most."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 5))
    optimizer = torch.optim.AdamW(model.parameters())
    paths = []
    for step in range(2):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        paths.append(tmp_path / f"step_{step}.pt")
        torch.save(state, paths[-1])
    return paths


def addresses(text):
    listed = text.split("Tensors", 1)[1].split("Settings", 1)[0]
    return re.findall(r"^  (\S+/\S+)", listed, re.MULTILINE)


def test_each_state_is_called_by_its_parameter(saves, ckptool):
    rows = ckptool("diff", *saves, "--json").json["tensors"]
    owners = {row["address"]: row.get("parameter") for row in rows}
    assert owners["optimizer/state/0/exp_avg"] == "0.weight"
    assert owners["optimizer/state/3/exp_avg_sq"] == "1.bias"
    assert "parameter" not in next(row for row in rows if row["section"] == "model")
    text = ckptool("diff", *saves)
    assert re.search(r"optimizer/state/2/exp_avg .* 1\.weight$", text, re.MULTILINE)
    for form in ("md", "html"):
        assert "parameter" in ckptool("diff", *saves, "--format", form)


def test_weights_alone_have_no_column_for_it(saves, ckptool):
    assert "parameter" not in ckptool("diff", *(f"{path}#model" for path in saves))


def test_the_order_is_that_which_is_asked_for(saves, ckptool):
    rows = ckptool("diff", *saves, "--json").json["tensors"]
    far = {row["address"]: row["distance"]["relative_l2"] for row in rows if row["distance"]}
    size = {row["address"]: row["distance"]["elements"] for row in rows if row["distance"]}
    usual = addresses(ckptool("diff", *saves))
    by_role = [address.startswith("model") for address in usual]
    assert by_role == sorted(by_role, reverse=True)
    by = {each: addresses(ckptool("diff", *saves, "--sort", each)) for each in ORDERS}
    assert all(sorted(found) == sorted(usual) for found in by.values())
    assert [far[each] for each in by["change"]] == sorted(far[each] for each in usual)[::-1]
    assert by["name"] == sorted(usual)
    assert [size[each] for each in by["size"]] == sorted(size[each] for each in usual)[::-1]
    assert ckptool("diff", *saves, "--sort", "big").exit_code == 2
