"""The headline of inspect: the answers that people came for, each told by a small checkpoint."""

from argparse import Namespace

import numpy as np
import pytest
import torch

from helpers.paths import FIXTURES

EMA = FIXTURES / "ema"


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def training(tmp_path, **changes):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save({**state, **changes}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def top(output) -> str:
    """Return the headline: the lines before the first block."""
    return output.stdout.partition("\n\n")[0]


def test_parameters_are_counted_without_buffers(ckptool, tmp_path):
    count = sum(p.numel() for p in net().parameters())
    assert f"{count} parameters, float32" in top(ckptool("inspect", training(tmp_path)))


def test_tied_weights_are_counted_once(ckptool, tmp_path):
    weight = torch.ones(5, 2)
    torch.save({"embed.weight": weight, "head.weight": weight}, tmp_path / "a.pt")
    output = ckptool("inspect", tmp_path / "a.pt", "--json").json
    assert output["model"]["parameters"] == 10


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("emacallback/exported.ckpt",
         "raw weights in state_dict, EMA in ema_state_dict (11 updates, decay 0.8)"),
        ("mmengine/epoch_3.pth", "EMA in state_dict, raw weights in ema_state_dict"),
        ("edm2/training-state-0000012.pt",
         "raw weights in net, 2 EMA candidates; choose one with extract-ema --ema"),
    ],
)  # fmt: skip
def test_it_says_which_weights_are_raw_and_where_the_ema_is(file, said, ckptool):
    assert f"\n  {said}\n" in top(ckptool("inspect", EMA / file)) + "\n"


def test_an_ema_in_another_file_has_the_same_key_path(ckptool, tmp_path):
    """The weights in the file itself are the raw ones all the same."""
    path = training(tmp_path)
    average = {n: t * 0.9 if t.is_floating_point() else t for n, t in net().state_dict().items()}
    torch.save({"model": average}, tmp_path / "a_ema.pt")
    assert "raw weights in model, EMA in model of " in top(ckptool("inspect", path))


def test_it_says_that_there_is_no_ema(ckptool, tmp_path):
    said = top(ckptool("inspect", training(tmp_path)))
    assert "weights in model, no EMA in this file; these may be raw or averaged weights" in said


def without(path, key):
    state = torch.load(path, weights_only=True)
    del state[key]
    torch.save(state, path)
    return path


def test_what_is_missing_for_a_resume_is_told(ckptool, tmp_path):
    path = training(tmp_path)
    assert "epoch 3. Resume: optimizer state and progress are there" in top(
        ckptool("inspect", path)
    )
    assert ", RNG states are not (verify --require resume decides)." in top(
        ckptool("inspect", path)
    )
    kept = training(tmp_path, rng=torch.get_rng_state())
    assert "progress are there (verify" in top(ckptool("inspect", kept))
    no_epoch = without(path, "epoch")
    assert "Resume: optimizer state, but no epoch or step" in top(ckptool("inspect", no_epoch))
    weights = without(path, "optimizer")
    assert "Resume: no, there is no optimizer state." in top(ckptool("inspect", weights))


@pytest.mark.parametrize(
    ("momentum", "said", "is_stateless"),
    [(0, "keeps no state", True), (0.9, "no state yet", False)],
)
def test_an_optimizer_without_a_state_may_need_none(
    momentum, said, is_stateless, ckptool, tmp_path
):
    """SGD without momentum keeps none, however long it trained."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    path = training(tmp_path, optimizer=optimizer.state_dict())
    output = ckptool("inspect", path)
    assert said in output.stdout
    assert ("optimizer state and progress are there" in top(output)) is is_stateless
    assert ("the optimizer has no state yet" in top(output)) is not is_stateless
    report = ckptool("inspect", path, "--json").json["optimizers"]
    assert [each["stateless"] for each in report] == [is_stateless]


def test_promoted_weights_are_not_resumable(ckptool, tmp_path):
    out = tmp_path / "good.pt"
    ckptool("promote-ema", EMA / "has_ema" / "late.pt", "-o", out)
    said = top(ckptool("inspect", out))
    assert "Resume: the raw weights are gone" in said
    assert "promoted by ckptool" in said


def test_names_of_the_pickle_are_summed_up(ckptool, tmp_path):
    assert "unknown names in its pickles." in top(ckptool("inspect", EMA / "mmengine/epoch_3.pth"))
    assert "Pickle" not in ckptool("inspect", training(tmp_path))
    (tmp_path / "bad.pt").write_bytes(b"cos\nsystem\n(S'id'\ntR.")
    assert "DANGEROUS: loading runs 1 function." in top(ckptool("inspect", tmp_path / "bad.pt"))


def is_taken(path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except Exception:  # noqa: BLE001 - whatever it refuses
        return False
    return True


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "takes it."),
        ({"args": Namespace(lr=0.1)}, "refuses 1 name: argparse.Namespace."),
        ({"rng": np.random.default_rng(0).random(3)}, "refuses 3 names: numpy."),
        ({"net": net()}, "refuses 3 names: torch.nn.modules.container.Sequential, "),
    ],
)  # fmt: skip
def test_it_says_whether_the_default_of_torch_load_takes_the_file(ckptool, tmp_path, changes, said):
    path = training(tmp_path, **changes)
    output = ckptool("inspect", path)
    answer = next(row for row in top(output).splitlines() if "weights_only" in row)
    assert said in answer
    assert ("takes it" in answer) is is_taken(path)
    load = ckptool("inspect", path, "--json").json["weights_only"]["load"]
    assert (load == "taken") is is_taken(path)


def test_a_pickle_that_torch_writes_no_more_is_refused_by_its_protocol(ckptool, tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt", pickle_protocol=4)
    assert not is_taken(tmp_path / "a.pt")
    assert "does not know the opcodes of protocol 4" in top(ckptool("inspect", tmp_path / "a.pt"))


def test_a_file_without_a_pickle_is_plain_data(ckptool):
    said = top(ckptool("inspect", EMA / "emacallback" / "exported.averaged.safetensors"))
    assert "Plain data, no pickle." in said
    assert "weights_only" not in said


# ------------------------------------------------------------------------------- values of one part


def test_a_part_shows_its_values(ckptool, tmp_path):
    path = training(tmp_path, args={"lr": 0.01, "name": "exp\x1b[31m", "layers": [1, 2]})
    shown = ckptool("inspect", f"{path}#args")
    assert [row.split() for row in shown.splitlines() if row.startswith("  ")] == [
        ["lr", "0.01"], ["name", r"exp\x1b[31m"], ["layers/0", "1"], ["layers/1", "2"],
    ]  # fmt: skip
    values = ckptool("inspect", f"{path}#args", "--json").json["values"]
    assert values == {"lr": 0.01, "name": "exp\x1b[31m", "layers/0": 1, "layers/1": 2}
    assert "values" not in ckptool("inspect", path, "--json").json


def test_a_tensor_shows_its_first_values(ckptool, tmp_path):
    bias = torch.arange(100) / 4
    path = training(tmp_path, model={"w": torch.ones(2, 2), "bias": bias, "n": torch.tensor(7)})
    told = ckptool("inspect", f"{path}#model/bias", "--json").json["values"][""]
    assert told.startswith("[0, 0.25, 0.5, ")
    assert told.endswith("15.75, …]")
    assert ckptool("inspect", f"{path}#model/n", "--json").json["values"] == {"": 7}


def test_results_are_named_by_their_last_keys_where_these_differ(ckptool, tmp_path):
    said = top(ckptool("inspect", FIXTURES / "genuine/lightning/last.ckpt"))
    assert "epoch 2, step 12, best_score 0.655155, best_model_score 0.655155. " in said
    both = {"train": {"loss": 0.5}, "val": {"loss": 0.25}}
    said = top(ckptool("inspect", training(tmp_path, metrics=both)))
    assert "metrics/train/loss 0.5, metrics/val/loss 0.25. " in said
