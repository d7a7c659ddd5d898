"""``average --into``: a copy of a checkpoint with the average in its model's state dict."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from helpers.making import average_of, resumable, save, weights
from helpers.paths import contents
from helpers.tensors import assert_same_tensors, load


def model_of(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        name: (tensor + torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor + step
        for name, tensor in weights().items()
    }


def mean(*steps: int) -> dict[str, torch.Tensor]:
    models = list(map(model_of, steps))
    return {
        name: torch.stack([each[name].double() for each in models]).mean(0).to(newest.dtype)
        if newest.is_floating_point()
        else newest
        for name, newest in models[-1].items()
    }


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (1, 2, 4):
        content = resumable(model_of(step)) | {"global_step": step, "val_loss": 8.0 / step}
        save(folder / f"{step}.ckpt", model_of(step), average_of(model_of(step)), **content)
    return folder


@pytest.fixture
def average(ckptool, tmp_path):
    def run(*args):
        return ckptool("average", *args, "--only", "model", "-o", tmp_path / "out.ckpt", "--json")

    return run


def test_the_model_is_replaced_and_all_else_stays(run, average, tmp_path):
    done = average(run, "--into", run / "4.ckpt")
    assert done.exit_code == 0, done.stderr
    found, before = load(tmp_path / "out.ckpt"), load(run / "4.ckpt")
    assert_same_tensors(found.pop("state_dict"), mean(1, 2, 4))
    before.pop("state_dict")
    assert found.keys() == before.keys()
    assert str(found) == str(before)
    report = done.json["into"]
    assert (report["path"], report["model"]) == (str(run / "4.ckpt"), "state_dict")
    assert report["replaced"] == len(weights())
    assert report["optimizers"]


def test_no_run_goes_on_from_it(run, average, tmp_path, ckptool):
    """The state of the optimizer belongs to the weights that were replaced."""
    average(run, "--into", run / "4.ckpt")
    asked = ("--require", "resume", "--json")
    before = ckptool("verify", run / "4.ckpt", *asked).json["findings"]
    after = ckptool("verify", tmp_path / "out.ckpt", *asked).json["findings"]
    assert "CK419" not in {found["rule"] for found in before}
    (told,) = (found["message"] for found in after if found["rule"] == "CK419")
    assert "a mean of several checkpoints" in told
    shown = ckptool("inspect", tmp_path / "out.ckpt")
    assert "mean of several checkpoints in state_dict" in shown
    assert "raw weights in" not in shown
    assert "holds the raw weights" not in shown


def test_a_checkpoint_outside_the_mean_takes_it_in_its_own_dtypes(run, average, tmp_path, ckptool):
    """The mean is rounded to the dtype of the slot once, not by way of its own."""
    other = tmp_path / "other.pt"
    halves = {name: t.half() if t.is_floating_point() else t for name, t in model_of(9).items()}
    torch.save({"model": halves, "note": "kept"}, other)
    done = average(run, "--into", other)
    assert done.exit_code == 0, done.stderr
    found = load(tmp_path / "out.ckpt")
    models = list(map(model_of, (1, 2, 4)))
    wanted = {
        name: torch.stack([each[name].double() for each in models]).mean(0).half()
        if half.is_floating_point()
        else models[-1][name]
        for name, half in halves.items()
    }
    assert_same_tensors(found["model"], wanted)
    assert found["note"] == "kept"
    assert done.json["into"]["casts"] == {"float64 to float16": 4}
    assert "do not resume" not in ckptool(
        "average", run, "--only", "model", "--into", other, "-o", tmp_path / "x.pt", "--dry-run"
    )


def test_the_report_shows_what_is_written(run, ckptool, tmp_path):
    shown = ckptool(
        "average", run, "--only", "model", "--into", run / "4.ckpt", "-o", tmp_path / "o.ckpt"
    )
    assert "a copy of " in shown
    assert "do not resume from this file" in shown
    assert ckptool("verify", tmp_path / "o.ckpt", "--rules", "CK1,CK2").exit_code == 0


def test_safetensors_keep_their_container(run, average, tmp_path, ckptool):
    from safetensors.torch import save_file

    save_file(model_of(4), tmp_path / "m.safetensors", {"format": "pt", "mine": "yes"})
    out = tmp_path / "o.safetensors"
    done = ckptool(
        "average", run, "--only", "model", "--into", tmp_path / "m.safetensors", "-o", out
    )
    assert done.exit_code == 0, done.stderr
    assert_same_tensors(load_file(out), mean(1, 2, 4))


def test_a_dry_run_writes_nothing(run, average, tmp_path):
    before = contents(tmp_path)
    done = average(run, "--into", run / "4.ckpt", "--dry-run")
    assert done.exit_code == 0
    assert done.json["written"] is False
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--dtype", "float16"), "--into and --dtype exclude each other"),
        (("--wrap", "x"), "--into and --wrap exclude each other"),
        (("--max-shard-size", "5GB"), "--into and --max-shard-size exclude each other"),
    ],
)
def test_options_of_a_file_of_its_own(run, average, tmp_path, more, message):
    done = average(run, "--into", run / "4.ckpt", *more)
    assert done.exit_code == 2
    assert message in done.json["error"]["message"]


def test_another_model_is_refused(run, average, tmp_path):
    torch.save({"model": weights(more=torch.ones(2)) | {"scale": torch.ones(3)}}, tmp_path / "a.pt")
    before = contents(tmp_path)
    done = average(run, "--into", tmp_path / "a.pt")
    assert done.exit_code == 2
    assert "does not fit the model's state dict, model: scale" in done.json["error"]["message"]
    assert contents(tmp_path) == before


def test_no_source_is_written_over(run, ckptool):
    before = contents(run)
    for name in ("1.ckpt", "4.ckpt"):
        done = ckptool(
            "average", run, "--only", "model", "--into", run / "4.ckpt", "-o", run / name, "--force"
        )
        assert done.exit_code == 2
        assert contents(run) == before


# ---------------------------------------------------------------------------------------- the best


def test_the_best_by_a_metric(run, average, tmp_path):
    done = average(run, "--best", "val_loss:2", "--into", run / "4.ckpt")
    assert [source["step"] for source in done.json["sources"]] == [2, 4]
    assert_same_tensors(load(tmp_path / "out.ckpt")["state_dict"], mean(2, 4))


@pytest.mark.parametrize(
    ("best", "steps"), [("val_loss:max:2", [1, 2]), ("global_step:min:2", [1, 2])]
)
def test_the_direction_can_be_typed(run, average, best, steps):
    assert [source["step"] for source in average(run, "--best", best).json["sources"]] == steps


@pytest.mark.parametrize(
    ("best", "message"),
    [
        ("val_loss", "is not METRIC:N"),
        ("val_loss:1", "is not METRIC:N"),
        ("val_loss:x", "is not METRIC:N"),
        (":2", "is not METRIC:N"),
        ("val_loss:4", "3 of the checkpoints have val_loss, and --best asks for 4"),
        ("val_acc:2", "no checkpoint has the metric 'val_acc'"),
        ("global_step:2", "whether a lower or a higher 'global_step' is better"),
    ],
)
def test_metrics_that_do_not_choose(run, average, best, message):
    done = average(run, "--best", best)
    assert done.exit_code == 2
    assert message in done.json["error"]["message"]


@pytest.mark.parametrize(
    ("best", "hint"),
    [
        ("val_loss:mim", "did you mean val_loss:min:5?"),
        ("val_loss:mim:2", "did you mean val_loss:min?"),
        ("val_loss:Max:2", "did you mean val_loss:max?"),
        ("val_loss:x", "like val_loss:5"),
        ("step:val_los:2", "there are: val_loss"),
    ],
)
def test_mistyped_directions(run, average, best, hint):
    assert average(run, "--best", best).json["error"]["hint"].startswith(hint)


def test_best_and_last_exclude_each_other(run, average):
    message = average(run, "--best", "val_loss:2", "--last", "2").json["error"]["message"]
    assert message == "--best and --last exclude each other"


def test_the_slot_states_the_dtype_of_a_mean_of_several(tmp_path, ckptool):
    for name, value, dtype in (("a", 1.0, torch.float64), ("b", 2.0, torch.float16)):
        model = {"w": torch.full((3,), value, dtype=dtype), "v": torch.ones(2)}
        torch.save({"state_dict": model, **resumable(model)}, tmp_path / f"{name}.pt")
    files = tmp_path / "a.pt", tmp_path / "b.pt"
    output = tmp_path / "out.pt"
    done = ckptool("average", *files, "--only", "model", "--into", files[1], "-o", output)
    assert done.exit_code == 0, done.stderr
    assert load(output)["state_dict"]["w"].equal(torch.full((3,), 1.5, dtype=torch.float16))
