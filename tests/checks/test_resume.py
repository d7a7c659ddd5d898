"""``--require resume``: the two generations of a resumable trainer, and what breaks a resume."""

from __future__ import annotations

import copy
import random
import time

import numpy as np
import pytest
import torch
from torch import nn

from helpers import runs
from helpers.paths import FIXTURES
from helpers.tensors import load

OLD_FIELDS = (
    "model", "optimizer", "lr_scheduler", "epoch", "args", "train_stats", "val_stats",
)  # fmt: skip
FOURTEEN = sorted((FIXTURES / "resume").glob("*.pth"))


def rules_of(output, severity="error"):
    return {f["rule"] for f in output.json["findings"] if f["severity"] == severity}


@pytest.mark.parametrize("path", FOURTEEN, ids=lambda path: path.stem[:20])
def test_the_generation_of_fourteen_fields_resumes(path, ckptool):
    assert len(load(path)) == 14
    output = ckptool("verify", path, "--require", "resume", "--strict", "--json")
    assert (output.exit_code, rules_of(output)) == (0, set())


@pytest.mark.parametrize("path", FOURTEEN, ids=lambda path: path.stem[:20])
def test_the_generation_of_seven_fields_does_not(path, tmp_path, ckptool):
    """Without generators a resume goes another way; without best values it may lose the best."""
    old = {name: load(path)[name] for name in OLD_FIELDS}
    saved = runs.save(old, tmp_path, path.name)
    output = ckptool("verify", saved, "--require", "resume", "--json")
    assert (output.exit_code, rules_of(output)) == (1, {"CK510", "CK511"})
    assert rules_of(output, "warning") == {"CK515"}
    assert ckptool("verify", saved).exit_code == 0  # nobody said that it is for resuming


@pytest.mark.parametrize("field", ["model", "optimizer", "lr_scheduler", "epoch", "rng_state"])
def test_each_field_that_a_resume_needs_is_missed(field, tmp_path, ckptool):
    state = load(FOURTEEN[0])
    del state[field]
    output = ckptool("verify", runs.save(state, tmp_path), "--require", "resume", "--json")
    assert output.exit_code == 1


@pytest.mark.parametrize(
    ("unstored", "rules"),
    [
        (("np_rng_state",), {"warning": {"CK531"}}),
        (("py_rng_state",), {"warning": {"CK531"}}),
        (("np_rng_state", "py_rng_state"), {"error": {"CK511"}}),
        (("rng_state",), {"error": {"CK510"}}),
        (("rng_state", "np_rng_state"), {"error": {"CK510", "CK511"}}),
    ],
    ids=lambda case: "-".join(sorted(case)),
)
def test_one_random_state_beside_torchs_may_be_left_out_by_choice(
    unstored, rules, state, tmp_path, ckptool
):
    """A loop that never draws from numpy goes on to the bit without its state."""
    kept = {name: value for name, value in state.items() if name not in unstored}
    path = runs.save(kept, tmp_path)
    output = ckptool("verify", path, "--require", "resume", "--json")
    assert output.exit_code == int("error" in rules)
    for severity in ("error", "warning"):
        assert rules_of(output, severity) == rules.get(severity, set())
    strictly = ckptool("verify", path, "--require", "resume", "--strict")
    assert strictly.exit_code == 1


def test_a_best_value_that_nobody_kept_is_an_opinion(state, tmp_path, ckptool):
    """Many runs choose no best checkpoint: a resume needs no best value then."""
    del state["best_val_loss"]
    path = runs.save(state, tmp_path)
    assert ckptool("verify", path, "--strict").exit_code == 0
    output = ckptool("verify", path, "--require", "resume", "--json")
    assert (output.exit_code, rules_of(output, "warning")) == (0, {"CK515"})


def test_weights_alone_do_not_resume(state, tmp_path, ckptool):
    path = runs.save(state["model"], tmp_path)
    output = ckptool("verify", path, "--require", "resume", "--json")
    assert {"CK501", "CK507", "CK510", "CK511", "CK513"} <= rules_of(output)
    assert ckptool("verify", path).exit_code == 0


def test_what_is_ignored_is_not_required(state, tmp_path, ckptool):
    del state["lr_scheduler"]
    path = runs.save(state, tmp_path)
    assert ckptool("verify", path, "--require", "resume").exit_code == 1
    assert ckptool("verify", path, "--require", "resume", "--ignore", "CK507").exit_code == 0


# ----------------------------------------------------------------------------------------- sections


@pytest.mark.parametrize("one", ["optimizer", "lr_scheduler", "scaler", "model"])
@pytest.mark.parametrize("other", ["optimizer", "lr_scheduler", "scaler", "model"])
def test_sections_under_each_others_names(one, other, state, tmp_path, ckptool):
    state[one], state[other] = state[other], state[one]
    output = ckptool("verify", runs.save(state, tmp_path), "--select", "CK517", "--json")
    found = {f["address"] for f in output.json["findings"]}
    assert found == ({one, other} if one != other else set())


def test_lists_of_lightning_are_named_by_their_list(state, tmp_path, ckptool):
    lightning = {
        "state_dict": state["model"],
        "optimizer_states": [state["lr_scheduler"]],
        "lr_schedulers": [state["optimizer"]],
    }
    output = ckptool("verify", runs.save(lightning, tmp_path), "--select", "CK517", "--json")
    found = {f["address"] for f in output.json["findings"]}
    assert found == {"optimizer_states/0", "lr_schedulers/0"}


# -------------------------------------------------------------------------------- random generators


def set_python(state):
    random.setstate(state)


def set_numpy(state):
    np.random.set_state(state)  # noqa: NPY002


def set_torch(state):
    torch.set_rng_state(state)


SETTERS = {"rng_state": set_torch, "np_rng_state": set_numpy, "py_rng_state": set_python}

FORMS = {
    "as it is": ("rng_state", lambda s: s),
    "old size": ("rng_state", lambda s: s[:5048]),
    "short": ("rng_state", lambda s: s[:5000]),
    "another type": ("rng_state", lambda s: s.int()),
    "a list": ("rng_state", lambda s: s.tolist()[:4]),
    "numpy as it is": ("np_rng_state", lambda s: s),
    "numpy with a list": ("np_rng_state", lambda s: (s[0], s[1].tolist(), *s[2:])),
    "numpy with a tensor": ("np_rng_state", lambda s: (s[0], torch.from_numpy(s[1]), *s[2:])),
    "numpy cut": ("np_rng_state", lambda s: (s[0], s[1][:600], *s[2:])),
    "numpy out of range": ("np_rng_state", lambda s: (*s[:2], 700, *s[3:])),
    "another generator of numpy": ("np_rng_state", lambda s: ("PCG64", *s[1:])),
    "python as it is": ("py_rng_state", lambda s: s),
    "python as lists": ("py_rng_state", lambda s: [s[0], list(s[1]), s[2]]),
    "python, inner list": ("py_rng_state", lambda s: (s[0], list(s[1]), s[2])),
    "python, outer list": ("py_rng_state", lambda s: [s[0], s[1], s[2]]),
    "python cut": ("py_rng_state", lambda s: (s[0], s[1][:600], s[2])),
    "python negative": ("py_rng_state", lambda s: (s[0], (-1, *s[1][1:]), s[2])),
    "python of another version": ("py_rng_state", lambda s: (9, *s[1:])),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_right_when_the_setter_takes_it(form, state, tmp_path, ckptool):
    field, change = FORMS[form]
    state[field] = change(state[field])
    output = ckptool("verify", runs.save(state, tmp_path), "--select", "CK512", "--json")
    with runs.seeded(0):
        try:
            SETTERS[field](copy.deepcopy(state[field]))
            is_taken = True
        except Exception:  # noqa: BLE001 - whatever the setter says to it
            is_taken = False
    assert output.json["ok"] == is_taken


def test_cuda_is_wanted_where_weights_were_on_it(state, tmp_path, ckptool, monkeypatch):
    """Storages say where they were; no device is needed to say so."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _storage: "cuda:0")
    state["rng_state"] = state["rng_state"].numpy()  # not on the device: get_rng_state never is
    state["cuda_rng_state"] = []
    path = runs.save(state, tmp_path)
    output = ckptool("verify", path, "--select", "CK510", "--json")
    assert "CUDA, where the weights were" in output.json["findings"][0]["message"]


@pytest.mark.parametrize("nested", ["rng", "rng_states"])
def test_states_in_a_dict_of_their_own_are_found(nested, state, tmp_path, ckptool):
    names = {"torch": "rng_state", "numpy": "np_rng_state", "python": "py_rng_state"}
    state[nested] = {kind: state.pop(field) for kind, field in names.items()}
    output = ckptool("verify", runs.save(state, tmp_path), "--require", "resume", "--json")
    assert rules_of(output) == set()


def on_cuda(monkeypatch, state):
    """Make torch write that the state of its CPU generator lies on the GPU."""
    real = torch.serialization.location_tag
    nbytes = state["rng_state"].numel()
    monkeypatch.setattr(
        torch.serialization,
        "location_tag",
        lambda storage: "cuda:0" if storage.nbytes() == nbytes else real(storage),
    )


def listed(state):
    """As ignite's deterministic engine keeps them."""
    return [state.pop("py_rng_state"), state.pop("rng_state"), state.pop("np_rng_state")]


def by_rank(state):
    names = ("py_rng_state", "rng_state", "np_rng_state")
    kinds = ("random_rng_state", "torch_rng_state", "np_rng_state")
    one = {kind: state.pop(name) for kind, name in zip(kinds, names, strict=True)}
    device = {"cuda_rng_state": torch.zeros(16, dtype=torch.uint8)}
    return [
        one | device | {"rng_tracker_states": {"model-parallel-rng": device["cuda_rng_state"]}}
    ] * 2


ARRANGED = {
    "ignite": lambda s: s | {"trainer": {"iteration": 20, "rng_states": listed(s)}},
    "Megatron, for each rank": lambda s: s | {"rng_state": by_rank(s)},
    "Hugging Face": lambda s: s | {
        "python": s.pop("py_rng_state"), "numpy": s.pop("np_rng_state"),
        "cpu": s.pop("rng_state"), "cuda": [torch.zeros(16, dtype=torch.uint8)],
    },
    "accelerate": lambda s: s | {
        "random_state": s.pop("py_rng_state"), "numpy_random_seed": s.pop("np_rng_state"),
        "torch_manual_seed": s.pop("rng_state"), "torch_cuda_manual_seed": [],
    },
    "Composer": lambda s: s | {"rng": [
        {"python": s.pop("py_rng_state"), "numpy": s.pop("np_rng_state"),
         "torch": s.pop("rng_state"), "cuda": torch.zeros(16, dtype=torch.uint8)}
    ]},
    "tensors for each rank": lambda s: s | {"rng_states": [s["rng_state"], s["rng_state"]]},
    "settings beside": lambda s: s | {
        "rng_backend": "philox", "rng_seeds": [1, 2, 3], "rng_scale": 0.5, "fork_rng": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ARRANGED)
def test_states_are_found_as_libraries_arrange_them(name, state, tmp_path, ckptool):
    path = runs.save(ARRANGED[name](state), tmp_path)
    output = ckptool("verify", path, "--require", "resume", "--json")
    assert rules_of(output) == set()


@pytest.mark.parametrize("name", ["ignite", "Hugging Face", "Megatron, for each rank"])
def test_a_state_of_the_cpu_that_was_moved_to_the_gpu_is_told(
    name, state, tmp_path, ckptool, monkeypatch
):
    on_cuda(monkeypatch, state)
    state = ARRANGED[name](state)
    if name == "Hugging Face":
        state["cpu_rng_state"] = state.pop("cpu")
    output = ckptool("verify", runs.save(state, tmp_path), "--require", "resume", "--json")
    assert rules_of(output) == {"CK512"}
    assert "it lies on cuda:0" in output.json["findings"][0]["message"]


def test_a_malformed_state_in_a_list_is_told(state, tmp_path, ckptool):
    state["trainer"] = {"rng_states": [state["py_rng_state"], state["rng_state"].long()]}
    output = ckptool("verify", runs.save(state, tmp_path), "--json")
    assert said_by("CK512", output)[0].startswith("trainer/rng_states/1: a int64 tensor")


# ------------------------------------------------------------------------------------- best metrics

BEST = {
    "reset": ({"best_val_loss": float("inf")}, False),
    "not a number": ({"best_val_loss": float("nan")}, False),
    "worse than the last": ({"best_val_loss": 9.0}, False),
    "better than the last": ({"best_val_loss": 1e-6}, True),
    "higher is better, reset": ({"best_acc": 0.0, "val_stats": {"acc": 0.7}}, False),
    "higher is better": ({"best_acc": 0.9, "val_stats": {"acc": 0.7}}, True),
    "at the start": (
        {"best_val_loss": float("inf"), "epoch": 0, "global_step": 0, "val_stats": {}}, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BEST)
def test_best_values(case, state, tmp_path, ckptool):
    changes, is_right = BEST[case]
    if "val_stats" in changes:
        del state["best_val_loss"]
    path = runs.save(state | changes, tmp_path)
    output = ckptool("verify", path, "--select", "CK514", "--strict", "--json")
    assert output.json["ok"] == is_right


# ---------------------------------------------------------------------------------------- file name

NAMES = {
    "checkpoint_e004.pth": True,
    "checkpoint_e005.pth": True,  # counted from 1
    "checkpoint_e150_lr1e-4_bs2.pth": False,
    "epoch=4-step=20.ckpt": True,
    "epoch=4-step=2000.ckpt": False,
    "best_valloss{loss:.4f}.pth": True,
    "best_valloss0.0987.pth": False,
    "best_loss={loss:.2f}.pth": True,
    "last.ckpt": None,
    "model-e6.pth": None,  # the size of a network
    "model_s2.0.pth": None,  # ends like a metric's name
    "model_v1.5.pth": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_file_names(name, state, tmp_path, ckptool):
    path = runs.save(state, tmp_path, name.format(loss=state["best_val_loss"]))
    output = ckptool("verify", path, "--select", "CK518", "--json")
    (check,) = output.json["checks"]
    assert check["state"] == {True: "passed", False: "failed", None: "not-checked"}[NAMES[name]]


def test_the_last_iteration_counted_from_zero_is_no_fault(tmp_path, ckptool):
    """fvcore's PeriodicCheckpointer: model_0000029.pth after 30 steps."""
    net = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20])
    for _ in range(30):
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 29}
    path = runs.save(state | {"scheduler": scheduler.state_dict()}, tmp_path, "model_0000029.pth")
    options = ("--require", "resume", "--ignore", "CK510,CK511", "--strict")
    assert ckptool("verify", path, *options).exit_code == 0


def test_a_file_named_after_updates_that_counts_batches_is_no_fault(state, tmp_path, ckptool):
    """20 updates of 4 batches each."""
    state["global_step"] = 80
    path = runs.save(state, tmp_path, "model-step20.pth")
    assert ckptool("verify", path, "--select", "CK518", "--strict").exit_code == 0


# --------------------------------------------------------------------------------------- optimizers


def test_several_groups_in_any_order(tmp_path, ckptool):
    """Decay and no decay: the states follow the groups, not the model."""
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1]},
        {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
    output = ckptool("verify", runs.save(state, tmp_path, "last.pt"), "--select", "CK5", "--json")
    assert not [f for f in output.json["findings"] if f["severity"] != "info"]


def test_the_optimizer_of_another_model(state, tmp_path, ckptool):
    other = nn.Linear(11, 13)
    optimizer = torch.optim.AdamW(other.parameters())
    other(torch.ones(1, 11)).sum().backward()
    optimizer.step()
    state["optimizer"] = optimizer.state_dict()
    output = ckptool("verify", runs.save(state, tmp_path), "--select", "CK504", "--json")
    assert output.exit_code == 1


def test_plain_sgd_keeps_nothing_and_lacks_nothing(state, tmp_path, ckptool):
    net = runs.Net()
    state["optimizer"] = torch.optim.SGD(net.parameters(), lr=0.0025).state_dict()
    output = ckptool("verify", runs.save(state, tmp_path), "--require", "resume", "--json")
    assert rules_of(output) == set()


def test_rates_of_schedulers_that_took_turns_are_no_fault(tmp_path, ckptool):
    """Those within a SequentialLR state the rates of the last time that they were on."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    schedulers = torch.optim.lr_scheduler
    turns = [schedulers.LinearLR(optimizer), schedulers.CosineAnnealingLR(optimizer, 20)]
    scheduler = schedulers.SequentialLR(optimizer, turns, [5])
    for _ in range(9):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    path = tmp_path / "last.pt"
    torch.save(state | {"scheduler": scheduler.state_dict()}, path)
    assert "CK508" not in rules_of(ckptool("verify", path, "--json"), "warning")
    optimizer.param_groups[0]["lr"] = 0.5
    state["optimizer"] = optimizer.state_dict()
    torch.save(state | {"scheduler": scheduler.state_dict()}, path)
    assert "CK508" in rules_of(ckptool("verify", path, "--json"), "warning")


def test_the_key_of_jax_is_a_state_of_its_generator(tmp_path, ckptool):
    path = tmp_path / "state.pt"
    for key, is_fault in ((np.array([0, 42], "u4"), False), (np.zeros(3), True)):
        torch.save({"params": {"w": torch.ones(3, 3)}, "rng": key}, path)
        found = rules_of(ckptool("verify", path, "--json"))
        assert ("CK512" in found) == is_fault


def test_a_name_without_end_takes_no_time(tmp_path, ckptool):
    path = tmp_path / "last.pt"
    torch.save(
        {"model": {"w": torch.ones(3, 3)}, "best_" * 20_000 + "loss": 1.0, "loss": 2.0}, path
    )
    begun = time.process_time()
    assert ckptool("verify", path).exit_code == 0
    assert time.process_time() - begun < 5


# ------------------------------------------------------------------ what a real damage left unseen


@pytest.fixture
def in_groups(state):
    """The usual two groups: weights that decay, and those that do not."""
    (group,) = state["optimizer"]["param_groups"]
    halves = [i for i in group["params"] if i % 2 == 0], [i for i in group["params"] if i % 2]
    groups = [{**group, "params": half, "weight_decay": 0.1 * n} for n, half in enumerate(halves)]
    state["optimizer"]["param_groups"] = groups
    state["lr_scheduler"]["_last_lr"] *= 2
    return state


def said_by(rule, output):
    return [f"{f['address']}: {f['message']}" for f in output.json["findings"] if f["rule"] == rule]


def test_an_optimizer_in_groups_of_a_model_with_another_head_does_not_fit(
    in_groups, tmp_path, ckptool
):
    assert ckptool("verify", runs.save(in_groups, tmp_path), "--strict").exit_code == 0
    state = copy.deepcopy(in_groups)
    state["model"]["head.weight"], state["model"]["head.bias"] = torch.randn(7, 6), torch.randn(7)
    output = ckptool("verify", runs.save(state, tmp_path), "--select", "CK5", "--json")
    assert output.exit_code == 1
    (message,) = said_by("CK504", output)
    assert message.startswith("optimizer: 2 of 6 moments have shapes that no weight has: [3, 6]")


def test_moments_of_one_parameter_have_one_shape(in_groups, tmp_path, ckptool):
    in_groups["optimizer"]["state"][1]["exp_avg_sq"] = torch.rand(5)
    output = ckptool("verify", runs.save(in_groups, tmp_path), "--json")
    assert output.exit_code == 1
    assert said_by("CK504", output) == ["optimizer/state/1: exp_avg is [6], exp_avg_sq [5]"]


@pytest.mark.parametrize("shape", [(), (1, 1, 1)])
def test_a_number_for_a_moment_fits(shape, in_groups, tmp_path, ckptool):
    """NovoGrad keeps one second moment for a layer."""
    for moments in in_groups["optimizer"]["state"].values():
        moments["exp_avg_sq"] = torch.ones(shape[: moments["exp_avg"].ndim])
    assert ckptool("verify", runs.save(in_groups, tmp_path), "--strict").exit_code == 0


CALLBACK = "EarlyStopping{'monitor': 'val_loss', 'mode': 'min'}"


def test_a_callback_that_forgot_the_best_result_is_told(state, tmp_path, ckptool):
    """Another number shows that there was a result; before the first, infinity is right."""
    stopping = {"wait_count": 0, "best_score": torch.tensor(float("inf")), "patience": 5}
    state["callbacks"] = {CALLBACK: stopping}
    output = ckptool("verify", runs.save(state, tmp_path), "--json")
    (message,) = said_by("CK514", output)
    assert message == (f"callbacks/{CALLBACK}/best_score: it is inf although training has begun")
    del state["val_stats"], state["best_val_loss"]
    output = ckptool("verify", runs.save(state, tmp_path), "--json")
    assert not said_by("CK514", output)


# ------------------------------------------------------------------- what has the names of others

ROWS_OF_DATA = {"mean": torch.zeros(4), "std": torch.ones(4)}
HOMONYMS = {
    "a scaler of data": {"scaler": ROWS_OF_DATA},
    "the schedule of noise": {"noise_scheduler": {"betas": torch.rand(9), "alphas": torch.rand(9)}},
    "statistics of an optimizer": {"optim_stats": ROWS_OF_DATA},
}


@pytest.mark.parametrize("name", HOMONYMS)
def test_tensors_under_the_name_of_a_part_are_no_exchange(name, state, tmp_path, ckptool):
    path = runs.save(state | HOMONYMS[name], tmp_path)
    assert not said_by("CK517", ckptool("verify", path, "--json"))


QUIET = {
    "a loss of the last batch": {"loss": 0.001, "best_loss": 0.5, "val_stats": {}},
    "before the first validation": {"best_val_loss": float("inf"), "val_stats": {}},
    "better by less than a min_delta": {"best_val_loss": 0.5, "val_stats": {"loss": 0.499}},
    "several validations an epoch": {"wait_count": 15},
    "an epoch that has just begun": {"epoch": 1, "global_step": 0},
}


@pytest.mark.parametrize("name", QUIET)
def test_what_sound_runs_say_of_their_results(name, state, tmp_path, ckptool):
    if name == "an epoch that has just begun":
        state["optimizer"]["state"] = {}
        state["lr_scheduler"]["last_epoch"] = 0
    path = runs.save(state | QUIET[name], tmp_path, "last.pt")
    output = ckptool("verify", path, "--select", "CK502,CK514,CK516", "--strict", "--json")
    assert output.json["findings"] == []


@pytest.mark.parametrize(("updates", "is_told"), [(0, False), (3, True)])
def test_an_agent_that_has_only_collected_experience_has_no_moments_yet(
    updates, is_told, state, tmp_path, ckptool
):
    """stable-baselines3 counts steps in the environment, and the updates of the weights apart."""
    state["optimizer"]["state"] = {}
    more = {"global_step": 20, "data": {"_n_updates": updates, "learning_starts": 100}}
    path = runs.save(state | more, tmp_path, "last.pt")
    output = ckptool("verify", path, "--rules", "CK502", "--json")
    assert bool(output.json["findings"]) == is_told
