"""``ckptool inspect``: the document, the listed tensors, several paths, folders."""

from __future__ import annotations

import math
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.making import average_of, resumable, save, weights
from helpers.paths import FIXTURES
from helpers.tensors import load
from helpers.terminals import on_terminal, plain

EXPORTED = FIXTURES / "ema" / "emacallback" / "exported.ckpt"
LATE = FIXTURES / "ema" / "has_ema" / "late.pt"

# The keys of the contract, in its order.
DOCUMENT = [
    "schema", "path", "format", "size_bytes", "tensors", "sections", "ema", "training", "pickle",
]  # fmt: skip
CANDIDATE = [
    "address", "file", "kind", "layout", "library", "why", "tensors", "bytes", "aliases", "model",
    "naming", "matched", "missing", "unexpected", "meta",
]  # fmt: skip


@pytest.fixture
def report(ckptool):
    return ckptool("inspect", EXPORTED, "--json").json


# ------------------------------------------------------------------------------------- the document


def test_document_has_the_keys_of_the_contract(report):
    assert report["schema"] == "ckptool/inspect/1"
    assert list(report)[: len(DOCUMENT)] == DOCUMENT
    assert "findings" in report
    assert list(report["tensors"]) == [
        "count", "elements", "bytes", "stored_bytes", "dtypes", "storage_bytes"
    ]  # fmt: skip
    assert list(report["ema"]) == ["status", "main_slot", "selected", "candidates"]
    assert list(report["ema"]["candidates"][0])[: len(CANDIDATE)] == CANDIDATE
    assert list(report["sections"][0]) == [
        "address",
        "role",
        "tensors",
        "elements",
        "bytes",
        "object",
    ]
    assert list(report["pickle"]["globals"][0])[:2] == ["name", "trust"]


def test_totals_count_what_torch_loads(report):
    assert report["size_bytes"] == EXPORTED.stat().st_size
    assert (report["path"], report["format"]) == (str(EXPORTED), "torch-zip")
    found = list(tensors_in(load(EXPORTED)))
    unique = {id(tensor): tensor for tensor in found}.values()  # the EMA is there twice
    assert report["tensors"]["count"] == len(unique)
    assert report["tensors"]["elements"] == sum(t.numel() for t in unique)
    assert report["tensors"]["bytes"] == sum(t.nbytes for t in unique)
    by_dtype = report["tensors"]["dtypes"]
    floats = [t for t in unique if t.dtype is torch.float32]
    assert by_dtype["float32"] == {"count": len(floats), "bytes": sum(t.nbytes for t in floats)}


def tensors_in(node):
    if isinstance(node, torch.Tensor):
        yield node
    elif isinstance(node, (dict, list, tuple)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from tensors_in(child)


def test_shared_bytes_are_stored_once(ckptool, tmp_path):
    tied = torch.ones(100)
    path = save(tmp_path / "tied.pt", weights(a=tied, b=tied))
    totals = ckptool("inspect", path, "--json").json["tensors"]
    assert totals["bytes"] - totals["stored_bytes"] == tied.nbytes


def test_sections_have_their_roles(report):
    roles = {section["address"]: section["role"] for section in report["sections"]}
    assert roles == {
        "state_dict": "model",
        "loops": "progress",
        "callbacks": "callbacks",
        "optimizer_states": "optimizer",
        "lr_schedulers": "scheduler",
        "hyper_parameters": "config",
        "ema_state_dict": "ema",
        "ema_meta": "config",
    }


@pytest.mark.parametrize(
    ("key", "role"),
    [
        ("opt", "optimizer"),  # by its form, whatever its name
        ("trainer_thing", "optimizer"),
        ("scaler", "scaler"),
        ("random_states", "rng"),
        ("lr_scheduler", "scheduler"),
        ("cfg", "config"),
        ("whatever", "other"),
    ],
)
def test_a_section_is_told_by_form_or_name(key, role, ckptool, tmp_path):
    content = resumable(weights())["optimizer"] if role == "optimizer" else {"a": [1, 2]}
    path = save(tmp_path / "run.pt", weights(), **{key: content})
    sections = ckptool("inspect", path, "--json").json["sections"]
    assert {s["address"]: s["role"] for s in sections}[key] == role


def test_safetensors_show_their_metadata(ckptool, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(weights(), path, metadata={"format": "pt", "step": "100"})
    report = ckptool("inspect", path, "--json").json
    assert (report["format"], report["metadata"]) == (
        "safetensors",
        {"format": "pt", "step": "100"},
    )
    assert report["pickle"]["globals"] == []


# -------------------------------------------------------------------------------------- the tensors


def test_no_tensors_are_listed_unasked(report):
    assert "entries" not in report


def test_tensors_lists_every_address_once(ckptool):
    entries = ckptool("inspect", LATE, "--tensors", "--json").json["entries"]
    stored = load(LATE)
    for part in ("model_state_dict", "ema_state_dict"):
        listed = {
            e["address"].partition("/")[2]: (e["dtype"], e["shape"], e["bytes"])
            for e in entries
            if e["address"].startswith(f"{part}/")
        }
        wanted = {
            name: (str(t.dtype).removeprefix("torch."), list(t.shape), t.nbytes)
            for name, t in stored[part].items()
        }
        assert listed == wanted
    assert all(entry["device"] == "cpu" for entry in entries)


def test_match_takes_the_addresses_that_fit(ckptool):
    entries = ckptool("inspect", LATE, "--match", "*_state_dict/head.*", "--json").json["entries"]
    assert [entry["address"] for entry in entries] == [
        "model_state_dict/head.weight",
        "model_state_dict/head.bias",
        "ema_state_dict/head.weight",
        "ema_state_dict/head.bias",
    ]


@pytest.mark.parametrize(
    ("glob", "hint"),
    [
        ("ead*", "a glob fits whole key paths: try '*ead*'"),
        ("model_state_dict/haed.bias", "key paths nearby: model_state_dict/head.bias"),
    ],
)
@pytest.mark.parametrize("paths", [(LATE,), (EXPORTED, LATE), (LATE.parent,)], ids=len)
def test_match_that_fits_nothing_is_refused_and_says_what_to_type(glob, hint, paths, ckptool):
    output = ckptool("inspect", *paths, "--match", "*.weight", "--match", glob)
    assert (output.exit_code, output.stdout) == (2, "")
    assert f"--match '{glob}' fits no tensor" in output.stderr
    if paths[0] == LATE or "nearby" not in hint:
        assert hint in output.stderr


def test_every_match_counts(ckptool):
    globs = ("--match", "model_state_dict/head.bias", "--match", "ema_state_dict/scale")
    entries = ckptool("inspect", LATE, *globs, "--json").json["entries"]
    assert [e["address"] for e in entries] == ["model_state_dict/head.bias", "ema_state_dict/scale"]


def test_a_match_may_fit_one_of_several_files_only(ckptool):
    reports = ckptool("inspect", EXPORTED, LATE, "--match", "model_state_dict/*", "--json").json
    assert [len(report["entries"]) > 0 for report in reports] == [False, True]


def test_addresses_are_escaped_as_the_contract_says(ckptool, tmp_path):
    path = save(tmp_path / "a.pt", weights(**{"a/b": torch.ones(1), "c~d": torch.ones(1)}))
    entries = ckptool("inspect", path, "--match", "state_dict/*~*", "--json").json["entries"]
    assert [e["address"] for e in entries] == ["state_dict/a~1b", "state_dict/c~0d"]


def test_repeated_layers_are_folded_on_a_terminal(tmp_path):
    layers = {f"blocks.{i}.weight": torch.ones(2, 2) for i in range(12)}
    shown = plain(on_terminal("inspect", save(tmp_path / "deep.pt", layers), "--tensors"))
    assert "blocks\n" in shown
    assert "0…11.weight" in shown
    assert "×12" in shown
    assert "5.weight" not in shown


def test_a_layer_that_differs_is_not_folded_away(tmp_path):
    layers = {f"blocks.{i}.weight": torch.ones(2, 3 if i == 5 else 2) for i in range(12)}
    shown = plain(on_terminal("inspect", save(tmp_path / "deep.pt", layers), "--tensors"))
    assert "0…4.weight" in shown
    assert "5.weight" in shown
    assert "6…11.weight" in shown


LONG = "x0_very_long_parameter_name_without_any_dot_" * 5


@pytest.mark.parametrize(
    "options", [("--tensors",), ("--stats",), ("--match", "*"), ("--digests",)]
)
def test_a_pipe_gets_every_key_path_whole_on_a_line_of_its_own(options, ckptool, tmp_path):
    layers = {f"blocks.{i}.weight": torch.ones(2, 2) for i in range(12)} | {LONG: torch.ones(1)}
    shown = ckptool("inspect", save(tmp_path / "deep.pt", layers), *options)
    listed = [line.split()[0] for line in re.split(r"\nTensors.*\n", shown)[1].splitlines()]
    assert listed == [f"{part}/{n}" for part in ("state_dict", "ema_state_dict") for n in layers]


# ------------------------------------------------------------------------------------------- values

VALUES = {
    "normal": torch.randn(1000, generator=torch.Generator().manual_seed(0)),
    "large": torch.randn(600_000, generator=torch.Generator().manual_seed(1)) + 100,
    "double": torch.linspace(-1e300, 1e300, 11, dtype=torch.float64) / 1e200,
    "bfloat16": torch.randn(33, generator=torch.Generator().manual_seed(2)).bfloat16(),
    "half": torch.tensor([6e4, -6e4, 0.5], dtype=torch.float16),
    "float8": torch.linspace(-3, 3, 7).to(torch.float8_e4m3fn),
    "integers": torch.arange(-50, 100).view(15, 10),
    "unsigned": torch.arange(250, 256).to(torch.uint8),
    "flags": torch.tensor([True, False, True]),
    "transposed": torch.arange(12.0).view(3, 4).t(),
    "sliced": torch.arange(40.0).view(5, 8)[::2, 1:3],
    "scalar": torch.tensor(-2.5),
}


@pytest.fixture(scope="module")
def stats(tmp_path_factory):
    from helpers.output import run_inside

    path = tmp_path_factory.mktemp("values") / "values.pt"
    torch.save(VALUES, path)
    entries = run_inside("inspect", path, "--stats", "--json").json["entries"]
    return {entry["address"]: entry["stats"] for entry in entries}


@pytest.mark.parametrize("name", VALUES)
def test_stats_are_those_of_torch_in_float64(name, stats):
    values = VALUES[name].to(torch.float64)
    wanted = {
        "min": values.min(),
        "max": values.max(),
        "mean": values.mean(),
        "std": values.std(correction=0),
        "norm": values.norm(),
    }
    found, size = stats[name], values.abs().max().item()
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value.item(), rel=1e-9, abs=1e-12 * size), key
    assert found["nonfinite"] == 0


def test_stats_count_what_is_not_finite_and_leave_it_out(ckptool, tmp_path):
    values = torch.tensor([1.0, math.nan, 3.0, math.inf, -math.inf])
    torch.save({"bad": values, "worse": values[1:2], "none": torch.empty(0)}, tmp_path / "bad.pt")
    entries = ckptool("inspect", tmp_path / "bad.pt", "--stats", "--json").json["entries"]
    bad, worse, none = (entry["stats"] for entry in entries)
    assert (bad["min"], bad["max"], bad["mean"], bad["nonfinite"]) == (1.0, 3.0, 2.0, 3)
    assert (worse["min"], worse["mean"], worse["nonfinite"]) == (None, None, 1)
    assert (none["min"], none["nonfinite"]) == (None, 0)


def test_stats_of_huge_values_say_nothing_on_stderr(ckptool, tmp_path):
    values = {"huge": torch.full((4,), 1.7e308, dtype=torch.float64), "long": torch.tensor([2**62])}
    torch.save(values, tmp_path / "huge.pt")
    output = ckptool("inspect", tmp_path / "huge.pt", "--stats", "--json")
    assert (output.exit_code, output.stderr) == (0, "")
    assert [e["stats"]["max"] for e in output.json["entries"]] == [1.7e308, 2**62]


@pytest.mark.parametrize("name", VALUES)
def test_histograms_are_those_of_numpy(name, tmp_path, ckptool):
    torch.save({name: VALUES[name]}, tmp_path / "a.pt")
    (entry,) = ckptool("inspect", tmp_path / "a.pt", "--histogram", "--json").json["entries"]
    values = VALUES[name].to(torch.float64).flatten().numpy()
    if values.min() == values.max():
        assert "histogram" not in entry["stats"]
    else:
        assert entry["stats"]["histogram"] == np.histogram(values, 20)[0].tolist()


def test_a_histogram_leaves_out_what_is_not_finite_and_spans_all_floats(tmp_path, ckptool):
    wide = torch.tensor([-1.7e308, math.nan, 0.0, 1.7e308, math.inf], dtype=torch.float64)
    near = torch.tensor([0.0, 5e-324], dtype=torch.float64)
    torch.save({"wide": wide, "near": near}, tmp_path / "a.pt")
    done = ckptool("inspect", tmp_path / "a.pt", "--histogram", "--json")
    told, close = (entry["stats"] for entry in done.json["entries"])
    assert done.stderr == ""
    assert [i for i, n in enumerate(told["histogram"]) if n] == [0, 10, 19]
    assert "histogram" not in close
    assert "▇▁▁▁▁▁▁▁▁▁▇▁▁▁▁▁▁▁▁▇" in ckptool("inspect", tmp_path / "a.pt", "--histogram")
    (entry, _) = ckptool("inspect", tmp_path / "a.pt", "--stats", "--json").json["entries"]
    assert "histogram" not in entry["stats"]


def test_values_too_close_for_intervals_have_no_histogram(tmp_path, ckptool):
    next_to_one = torch.tensor([1.0, np.nextafter(1.0, 2.0)], dtype=torch.float64)
    states = {"near": next_to_one, "tiny": torch.tensor([0.0, 1e-323], dtype=torch.float64),
              "long": torch.tensor([2**60, 2**60 + 256])}  # fmt: skip
    torch.save(states, tmp_path / "a.pt")
    done = ckptool("inspect", tmp_path / "a.pt", "--histogram", "--json")
    assert done.exit_code == 0, done
    assert all("histogram" not in entry["stats"] for entry in done.json["entries"])


def test_stats_of_a_match_read_only_that(ckptool):
    entries = ckptool("inspect", LATE, "--stats", "--match", "*/scale", "--json").json["entries"]
    assert [e["address"] for e in entries] == ["model_state_dict/scale", "ema_state_dict/scale"]
    assert all(entry["stats"] for entry in entries)


def test_values_without_an_order_have_no_stats(ckptool, tmp_path):
    torch.save({"wave": torch.ones(2, dtype=torch.complex64)}, tmp_path / "wave.pt")
    entries = ckptool("inspect", tmp_path / "wave.pt", "--stats", "--json").json["entries"]
    assert [entry.get("stats") for entry in entries] == [None]


def test_big_endian_values_are_read_as_such(ckptool):
    path = FIXTURES / "formats" / "torch_zip"
    found = [
        ckptool("inspect", path / name, "--stats", "--json").json["entries"]
        for name in ("plain.pt", "big_endian.pt")
    ]
    assert found[0] == found[1]
    assert any(entry.get("stats") for entry in found[0])


# ------------------------------------------------------------------------------------ several paths


def test_several_paths_give_an_array(ckptool):
    reports = ckptool("inspect", EXPORTED, LATE, "--json").json
    assert [report["path"] for report in reports] == [str(EXPORTED), str(LATE)]
    assert all(next(iter(report)) == "schema" for report in reports)


def test_several_paths_are_a_table(ckptool):
    title, heads, *rows = ckptool("inspect", EXPORTED, LATE).splitlines()
    assert title.startswith("2 checkpoints, ")
    assert heads.split()[:2] == ["file", "epoch"]
    assert [row.split()[0] for row in rows[:2]] == [str(EXPORTED), str(LATE)]


def test_several_paths_are_shown_one_after_the_other_where_tensors_are_asked_for(ckptool):
    shown = ckptool("inspect", EXPORTED, LATE, "--tensors")
    assert shown.count("\nTensors") == 2
    assert shown.index("exported.ckpt") < shown.index("late.pt")


def test_a_path_that_cannot_be_read_is_a_row_and_an_error(ckptool, tmp_path):
    output = ckptool("inspect", EXPORTED, LATE, tmp_path / "missing.pt")
    assert output.exit_code == 2
    row, told = (line for line in output.splitlines() if "missing.pt" in line)
    assert row.endswith("not read")
    assert "missing.pt: no such file" in told
    assert "missing.pt" in output.stderr
    assert str(LATE) in output


@pytest.mark.parametrize("option", ["--tensors", "--stats", "--digests", "--match=*"])
def test_the_tensors_of_a_folder_are_listed_file_by_file(option, run, ckptool):
    assert ckptool("inspect", run, option).count("\nTensors") == 3
    reports = ckptool("inspect", run, option, "--json").json
    assert [report["path"] for report in reports] == [str(path) for path in sorted(run.iterdir())]
    assert all(len(report["entries"]) == 10 for report in reports)


# ------------------------------------------------------------------------------------------ folders


@pytest.fixture
def run(tmp_path):
    """A folder with three checkpoints of a run, the second the best."""
    folder = tmp_path / "run"
    folder.mkdir()
    for epoch, loss, accuracy in ((1, 0.5, 0.7), (2, 0.2, 0.9), (10, 0.4, 0.8)):
        stats = {"loss": loss, "acc": accuracy}
        save(
            folder / f"e{epoch}.pt", weights(), epoch=epoch, global_step=10 * epoch, val_stats=stats
        )
    return folder


def test_a_folder_is_a_table_in_the_order_of_steps(run, ckptool):
    report = ckptool("inspect", run, "--json").json
    assert report["schema"] == "ckptool/inspect-run/1"
    rows = report["checkpoints"]
    assert [row["path"] for row in rows] == [str(run / f"e{n}.pt") for n in (1, 2, 10)]
    assert [(row["epoch"], row["global_step"]) for row in rows] == [(1, 10), (2, 20), (10, 100)]
    assert [row["ema"] for row in rows] == ["ema_state_dict"] * 3
    assert [row["size_bytes"] for row in rows] == [
        (run / f"e{n}.pt").stat().st_size for n in (1, 2, 10)
    ]


def test_the_best_is_the_lowest_loss_and_the_highest_accuracy(run, ckptool):
    best = ckptool("inspect", run, "--json").json["best"]
    assert best == {"val_stats/loss": str(run / "e2.pt"), "val_stats/acc": str(run / "e2.pt")}


def test_nan_is_no_best(run, ckptool):
    for epoch in (0, 11):
        nan = {"loss": math.nan}
        save(run / f"e{epoch}.pt", weights(), epoch=epoch, global_step=10 * epoch, val_stats=nan)
    output = ckptool("inspect", run, "--json")
    assert output.json["best"]["val_stats/loss"] == str(run / "e2.pt")
    assert output.json["checkpoints"][-1]["metrics"] == {"val_stats/loss": "nan"}


def test_other_files_of_a_folder_are_left_alone(run, ckptool):
    (run / "log.txt").write_text("epoch 1")
    (run / "inner").mkdir()
    shutil.copy(run / "e1.pt", run / "inner" / "e1.pt")
    assert len(ckptool("inspect", run, "--json").json["checkpoints"]) == 3


def test_a_folder_is_shown_as_a_table(run, ckptool):
    shown = ckptool("inspect", run)
    (header,) = (line for line in shown.splitlines() if line.startswith("file"))
    for column in ("epoch", "step", "val_stats/loss", "val_stats/acc", "size", "EMA"):
        assert column in header
    assert "best val_stats/acc: 0.9 in e2.pt  (higher is better, by its name)" in shown


# ------------------------------------------------------------------------------------- what is said


def test_an_average_equal_to_the_model_is_a_finding(ckptool, tmp_path):
    model = weights()
    path = save(tmp_path / "same.pt", model, {name: t.clone() for name, t in model.items()})
    report = ckptool("inspect", path, "--json").json
    assert [(f["rule"], f["severity"]) for f in report["findings"]] == [("CK404", "warning")]
    assert report["ema"]["main_slot"] == "unknown"


def test_an_average_that_is_declared_and_missing_is_a_finding(ckptool, tmp_path):
    path = tmp_path / "lost.pt"
    torch.save({"model_state_dict": weights(), "has_ema": True}, path)
    findings = ckptool("inspect", path, "--json").json["findings"]
    assert [finding["rule"] for finding in findings] == ["CK403"]


def test_nothing_is_written_by_looking(ckptool, tmp_path):
    path = save(tmp_path / "a.pt", weights(), average_of(weights()))
    before = path.read_bytes(), path.stat().st_mtime_ns
    for options in ((), ("--tensors",), ("--stats",), ("--json",)):
        ckptool("inspect", path, *options)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_best_model_is_weights_and_no_metric(tmp_path, ckptool):
    layers = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    best = {"best_model": dict(layers), "best_wer": torch.tensor(0.1)}
    torch.save({"model": layers, **best}, tmp_path / "a.pt")
    sections = ckptool("inspect", tmp_path / "a.pt", "--json").json["sections"]
    roles = {section["address"]: section["role"] for section in sections}
    assert roles == {"model": "model", "best_model": "model", "best_wer": "metrics"}


@pytest.mark.parametrize(
    ("prefixes", "told"),
    [
        (("module.", "module."), "under the prefix module."),
        (("_orig_mod.module.", "_orig_mod.module."), "under the prefix _orig_mod.module."),
        (("module.", ""), "under a wrapper's prefix"),
    ],
)
def test_the_prefix_of_all_names_is_told(prefixes, told, tmp_path, ckptool):
    model = weights()
    half = len(model) // 2
    ema = {
        f"{prefixes[i > half]}{name}": tensor
        for i, (name, tensor) in enumerate(average_of(model).items())
    }
    path = save(tmp_path / "a.pt", model, ema)
    assert f"5 of the 5 tensors of state_dict, {told}" in ckptool("inspect", path)
    (candidate,) = ckptool("inspect", path, "--json").json["ema"]["candidates"]
    assert candidate.get("prefix") == (prefixes[0] if all(prefixes) else None)
