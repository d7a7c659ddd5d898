"""What a new user tripped over."""

from __future__ import annotations

import torch
from safetensors.torch import save_model

from ckptool import load_state_dict
from helpers.making import average_of, save, weights
from helpers.tensors import assert_same_tensors, load


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_ties_that_safetensors_notes_are_read(tmp_path):
    model = Tied()
    save_model(model, tmp_path / "tied.safetensors")
    assert_same_tensors(load_state_dict(tmp_path / "tied.safetensors", "model"), model.state_dict())


def test_an_extracted_file_with_ties_is_its_sources_average(ckptool, tmp_path):
    state = Tied().state_dict()
    average = {name: tensor * 0.9 for name, tensor in state.items()}
    average["head.weight"] = average["embed.weight"]
    torch.save({"model": state, "model_ema": average}, tmp_path / "last.pt")
    output = tmp_path / "ema.safetensors"
    assert ckptool("extract-ema", tmp_path / "last.pt", "-o", output).exit_code == 0
    assert ckptool("verify", output, "--against", tmp_path / "last.pt").exit_code == 0
    assert ckptool("verify", output, "--like", tmp_path / "last.pt").exit_code == 0
    assert ckptool("diff", output, f"{tmp_path / 'last.pt'}#@ema").exit_code == 0


def test_a_missing_path_does_not_hide_the_others(ckptool, tmp_path):
    path = save(tmp_path / "a.pt", weights())
    done = ckptool("inspect", path, tmp_path / "missing.pt", path)
    assert done.exit_code == 2
    *rows, last = done.stdout.splitlines()[2:]
    assert [line.split()[0] for line in rows] == [
        str(path), str(path), str(tmp_path / "missing.pt")
    ]  # fmt: skip
    assert last.endswith("missing.pt: no such file")
    assert "missing.pt: no such file" in done.stderr


def test_an_average_that_shares_buffers_with_the_model_is_promoted(ckptool, tmp_path):
    model = weights()
    average = average_of(model) | {"scale": model["scale"]}
    done = ckptool("promote-ema", save(tmp_path / "a.pt", model, average), "-o", tmp_path / "b.pt")
    assert done.exit_code == 0, done
    assert_same_tensors(load(tmp_path / "b.pt")["state_dict"], model | average)


def test_an_average_that_was_never_updated_is_told_when_it_is_taken(ckptool, tmp_path):
    copied = {name: tensor.clone() for name, tensor in weights().items()}
    path = save(tmp_path / "a.pt", weights(), copied)
    for command in ("extract-ema", "promote-ema"):
        done = ckptool(command, path, "-o", tmp_path / f"{command}.pt", "--json")
        assert [finding["rule"] for finding in done.json["findings"]] == ["CK404"]


def test_a_glob_that_fits_nothing_says_so(ckptool, tmp_path):
    done = ckptool("inspect", save(tmp_path / "a.pt", weights()), "--match", "nothing*")
    assert done.exit_code == 2
    assert "'nothing*' fits no tensor" in done.stderr


def test_an_address_is_taken_where_a_path_is(ckptool, tmp_path):
    path = save(tmp_path / "a.pt", weights())
    assert "state_dict" in ckptool("inspect", f"{path}#state_dict")


def test_an_average_from_a_neighbour_is_named_with_its_file(ckptool, tmp_path):
    torch.save(weights(), tmp_path / "model.pt")
    torch.save(average_of(weights()) | {"steps": weights()["steps"]}, tmp_path / "model_ema.pt")
    done = ckptool("promote-ema", tmp_path / "model.pt", "-o", tmp_path / "out.pt")
    assert done.exit_code == 0, done
    origin = ckptool("inspect", tmp_path / "out.pt", "--json").json["provenance"]
    assert (origin["source"], origin["ema"]) == ("model.pt", "model_ema.pt#")
