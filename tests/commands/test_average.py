"""``ckptool average``: the judge is float64 arithmetic of torch, rounded once."""

from __future__ import annotations

import shlex
from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ckptool import open_checkpoint
from ckptool.commands.average import average
from ckptool.commands.mixture import AverageOptions
from ckptool.commands.state_dicts import only_state_dict
from ckptool.contents.selection import Operand
from ckptool.dtypes import BY_NAME
from ckptool.ema.locate import locate_ema
from ckptool.errors import AddressError, UsageError
from ckptool.formats.base import TensorReader
from ckptool.formats.provenance import read_provenance
from ckptool.plans.weighing import Shares, ema_shares, given_shares
from ckptool.sources.memory import Memory
from ckptool.tensors.mean import Mean, Weighted
from ckptool.tree.nodes import Chunk, TensorRef
from helpers.making import average_of, resumable, save, weights
from helpers.paths import contents
from helpers.tensors import assert_same_tensors, load
from helpers.thinned import examples

FLOATS = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2,
)  # fmt: skip


def noisy(seed: int, like: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (tensor + torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor + seed
        for name, tensor in (like or weights()).items()
    }


def mean(state_dicts, shares=None, dtype=None, whole=1) -> dict[str, torch.Tensor]:
    """In float64, rounded once; integers of the last."""
    if shares is None:
        shares, whole = [1] * len(state_dicts), len(state_dicts)
    newest = state_dicts[-1]
    return {
        name: (
            sum(
                each[name].double() * share for each, share in zip(state_dicts, shares, strict=True)
            )
            / whole
        ).to(dtype or newest[name].dtype)
        if newest[name].is_floating_point()
        else newest[name]
        for name in newest
    }


@pytest.fixture
def run(tmp_path):
    """Four checkpoints of a run, whose names are not in the order of their steps."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name, step in (("d", 100), ("a", 200), ("c", 300), ("b", 500)):
        model = noisy(step)
        content = resumable(model) | {"global_step": step, "epoch": step // 100}
        save(folder / f"{name}.ckpt", model, average_of(model), **content)
    return folder


@pytest.fixture
def averaged(ckptool, tmp_path):
    """Run, and load what was written."""

    def run(*args, name="out.safetensors") -> dict:
        output = tmp_path / name
        done = ckptool("average", *args, "-o", output)
        assert done.exit_code == 0, done.stderr
        return load_file(output) if output.suffix == ".safetensors" else load(output)

    return run


@pytest.fixture
def refused(refusing, tmp_path):
    return partial(refusing, "average", "-o", tmp_path / "out.pt")


def of_steps(*steps: int) -> list[dict[str, torch.Tensor]]:
    return [noisy(step) for step in steps]


# ------------------------------------------------------------------------------- what is averaged


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt"])
def test_the_mean_of_a_run(run, averaged, name):
    assert_same_tensors(
        averaged(run, "--only", "model", name=name), mean(of_steps(100, 200, 300, 500))
    )


def test_the_newest_by_their_steps(run, averaged):
    found = averaged(run, "--only", "model", "--last", "2")
    assert_same_tensors(found, mean(of_steps(300, 500)))


def test_weights_in_the_order_of_the_operands(run, averaged):
    found = averaged(
        run / "b.ckpt", run / "d.ckpt", "--only", "model", "--weights", "3,1", name="out.pt"
    )  # and integers of the newest, wherever it stands
    assert_same_tensors(found, mean(of_steps(100, 500), [1, 3], whole=4))


def test_the_ema_weights_of_each(run, averaged):
    found = averaged(f"{run / 'a.ckpt'}#@ema", f"{run / 'b.ckpt'}#ema_state_dict")
    assert_same_tensors(found, mean([average_of(each) for each in of_steps(200, 500)]))


def test_an_ema_respects_the_gaps(run, averaged):
    decay = 0.995
    found = averaged(run, "--only", "model", "--ema-decay", str(decay), name="out.pt")
    first, *others = of_steps(100, 200, 300, 500)
    shares = [1.0]
    for gap in (100, 100, 200):
        shares = [share * decay**gap for share in shares] + [1 - decay**gap]
    assert_same_tensors(found, mean([first, *others], shares))


def test_torch_averages_alike(run, averaged):
    """AveragedModel's running mean rounds at each step; ours rounds once."""
    module = torch.nn.Linear(4, 3)
    swa = torch.optim.swa_utils.AveragedModel(module)
    files = []
    for seed in range(5):
        module.load_state_dict(noisy(seed, module.state_dict()))
        swa.update_parameters(module)
        files.append(run.parent / f"{seed}.pt")
        torch.save(module.state_dict(), files[-1])
    found = averaged(*files, name="swa.pt")
    for name, tensor in swa.module.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)


def test_dtypes_are_rounded_to_once(run, averaged):
    found = averaged(run, "--only", "model", "--dtype", "bf16", "--dtype", "*bias=float64")
    members = of_steps(100, 200, 300, 500)
    half, double = mean(members, dtype=torch.bfloat16), mean(members, dtype=torch.float64)
    wanted = {name: double[name] if name.endswith("bias") else half[name] for name in half}
    assert_same_tensors(found, wanted)


def test_batch_statistics(tmp_path, averaged, ckptool):
    for seed in range(3):
        norm = torch.nn.BatchNorm1d(4)
        norm.load_state_dict(noisy(seed + 1, norm.state_dict()))
        torch.save(norm.state_dict(), tmp_path / f"{seed}.pt")
    files = [tmp_path / f"{seed}.pt" for seed in range(3)]
    members = [load(path) for path in files]
    assert_same_tensors(averaged(*files, name="all.pt"), mean(members))
    kept = averaged(*files, "--buffers", "newest", name="newest.pt")
    assert torch.equal(kept["running_var"], members[-1]["running_var"])
    assert torch.equal(kept["weight"], mean(members)["weight"])
    report = ckptool("average", *files, "-o", tmp_path / "x.pt", "--json").json
    assert report["statistics"] == ["running_mean", "running_var"]
    assert report["newest"] == ["num_batches_tracked"]


def test_ties_stay(tmp_path, averaged):
    for seed in (1, 2):
        tied = torch.full((3, 2), float(seed))
        torch.save({"embed": tied, "head": tied, "own": tied.clone()}, tmp_path / f"{seed}.pt")
    found = averaged(tmp_path / "1.pt", tmp_path / "2.pt", name="out.pt")
    pointers = {name: tensor.untyped_storage().data_ptr() for name, tensor in found.items()}
    assert pointers["embed"] == pointers["head"] != pointers["own"]


def test_any_strides_dtypes_and_containers(tmp_path, averaged):
    wide = torch.arange(600_000.0).reshape(1000, 600) / 8192
    torch.save({"w": wide.t(), "s": torch.tensor(2.0)}, tmp_path / "a.pt")
    save_file(
        {"w": (wide.t() * 2).contiguous(), "s": torch.tensor(4.0)}, tmp_path / "b.safetensors"
    )
    torch.save({"w": wide.t().half(), "s": torch.tensor(6.0)}, tmp_path / "c.pt")
    files = [tmp_path / name for name in ("a.pt", "b.safetensors", "c.pt")]
    found = averaged(*files, "--weights", "1,1,0", "--dtype", "fp16")
    assert torch.equal(found["w"], (wide.t() * 1.5).half())
    assert found["s"] == 3


def test_a_mean_is_not_rounded_to_a_narrower_dtype_unasked(tmp_path, averaged, refused):
    for name, dtype in (("a", torch.float64), ("b", torch.float16)):
        torch.save({"w": torch.full((3,), 1.0, dtype=dtype), "v": torch.ones(2)}, tmp_path / name)
    files = tmp_path / "a", tmp_path / "b"
    error = refused(*files)
    assert f"w is float64 in {files[0]} and float16 in {files[1]}" in error["message"]
    assert error["hint"] == "say it: --dtype float64 or --dtype float16"
    for dtype in (torch.float64, torch.float16):
        output = f"{dtype}.pt"
        found = averaged(*files, "--dtype", f"w={dtype}", name=output)
        assert (found["w"].dtype, found["v"].dtype) == (dtype, torch.float32)
    assert averaged(*reversed(files), name="wide.pt")["w"].dtype == torch.float64


def test_complex_weights_are_those_of_all_or_refused(tmp_path, averaged, refused):
    for name, value in (("a", 1.0), ("b", 3.0)):
        content = {"w": torch.full((3,), value), "freqs": torch.full((3,), 1 + 2j)}
        torch.save(content, tmp_path / f"{name}.pt")
    torch.save({**content, "freqs": torch.full((3,), 1 + 3j)}, tmp_path / "c.pt")
    files = [tmp_path / f"{name}.pt" for name in "abc"]
    assert averaged(*files[:2], name="mean.pt")["freqs"].equal(content["freqs"])
    message = refused(*files[1:])["message"]
    assert f"freqs is complex, and differs in {files[1]} and {files[2]}" in message


def test_the_report(run, ckptool, tmp_path):
    done = ckptool("average", run, "--only", "model", "-o", tmp_path / "out.pt", "--json")
    report = done.json
    assert report["schema"] == "ckptool/average/1"
    assert [source["step"] for source in report["sources"]] == [100, 200, 300, 500]
    assert [source["weight"] for source in report["sources"]] == [0.25] * 4
    assert report["newest"] == ["steps"]
    made = ckptool("inspect", tmp_path / "out.pt", "--json").json["provenance"]
    assert (made["command"], made["kind"]) == ("average", "swa")


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ((), "swa"),
        (("--weights", "1,3,0,0"), "swa"),
        (("--ema-decay", "0.99"), "ema"),
        (("--weights", "0,1,0,0"), "table"),  # a copy of one
        (("--weights", "2,-1,0,0"), "table"),  # an extrapolation
    ],
)
def test_only_averages_count_as_such(run, ckptool, tmp_path, more, kind):
    output = tmp_path / "out.pt"
    ckptool("average", run, "--only", "model", *more, "-o", output)
    with open_checkpoint(output) as checkpoint:
        note = read_provenance(checkpoint.metadata)
    assert note.kind == kind
    assert ckptool("verify", output, "--require", "ema").exit_code == (kind == "table")


@pytest.mark.parametrize(
    ("more", "what", "headline"),
    [
        ((), "the mean of 4 checkpoints", "mean of several checkpoints in (root);"),
        (("--weights", "1,3,0,0"), "a weighted mean of 4 checkpoints", "mean of several"),
        (("--ema-decay", "0.99"), "an EMA made of 4 checkpoints", "EMA in (root);"),
    ],
)
def test_an_average_is_called_by_its_kind(run, ckptool, tmp_path, more, what, headline):
    output = tmp_path / "out.safetensors"
    ckptool("average", run, "--only", "model", *more, "-o", output)
    findings = ckptool("verify", output, "--json").json["findings"]
    assert [each["message"] for each in findings if each["rule"] == "CK414"] == [
        f"these are {what}"
    ]
    shown = ckptool("inspect", output).stdout
    assert headline in shown
    assert f"these weights are {what}, " in " ".join(shown.split())


def test_an_average_among_its_checkpoints_is_warned_of(run, ckptool):
    """The next average of the directory would be refused, or take it for a checkpoint."""
    first, other = "d.ckpt", "a.ckpt"
    more = ("--only", "model", "--dry-run", "--json", "-o")
    done = ckptool("average", run, *more, run / "mean.pt")
    assert [found["rule"] for found in done.json["findings"]] == ["CK804"]
    assert not ckptool("average", run, *more, run.parent / "mean.pt").json["findings"]
    named = ckptool("average", run / first, run / other, *more, run / "mean.pt")
    assert not named.json["findings"]


def test_a_schedule_follows_the_steps(run, ckptool, tmp_path):
    """Each checkpoint stands for the steps up to the next, the last one for a mean interval."""
    done = ckptool(
        "average", run, "--only", "model", "--schedule", "linear", "-o", tmp_path / "o.pt", "--json"
    )
    weights_found = [source["weight"] for source in done.json["sources"]]
    assert weights_found == pytest.approx([0.1875, 0.1875, 0.375, 0.25])
    assert done.json["intervals"] == "global_step"


@pytest.mark.parametrize(("name", "told"), [("epoch", "epoch"), ("note", "equal")])
def test_a_schedule_says_by_what_it_counts(tmp_path, ckptool, name, told):
    run = tmp_path / "run"
    run.mkdir()
    for at in (1, 2, 6):
        torch.save({"model": noisy(at), name: at}, run / f"{at}.pt")
    more = ("--schedule", "linear", "--dry-run", "--json")
    done = ckptool("average", run, "-o", tmp_path / "out.pt", *more)
    assert done.json["intervals"] == told
    first = done.json["sources"][0]["weight"]
    assert first == pytest.approx(2 / 15 if told == "epoch" else 1 / 3)


def test_from_python(run, tmp_path):
    steps: list[int] = []
    report = average(
        [Operand(run)], tmp_path / "out.pt", AverageOptions(role="ema", last=3),
        progress=steps.append, made_at=0,
    )  # fmt: skip
    assert [source.step for source in report.sources] == [200, 300, 500]
    assert sum(steps) == report.bytes


def test_the_only_state_dict(tmp_path):
    torch.save({"net": weights(), **resumable(weights())}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        location = locate_ema(checkpoint)
        assert only_state_dict(checkpoint, location, beside_optimizer=True) == "net"
        with pytest.raises(AddressError, match="a state dict and an optimizer"):
            only_state_dict(checkpoint, location)


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "2 state dicts and an optimizer: which one is meant?"),
        (("--only", "model", "--weights", "1,2"), "--weights has 2 numbers for 4 checkpoints"),
        (("--only", "model", "--weights", "1,2,x,3"), "are no numbers"),
        (("--only", "model", "--weights", "1,-1,1,-1"), "come to 0"),
        (("--only", "model", "--ema-decay", "1.5"), "not between 0 and 1"),
        (("--only", "model", "--weights", "1,1,1,1", "--ema-decay", "0.5"), "exclude each other"),
        (("--only", "model", "--weights", "1,1", "--last", "2"), "exclude each other"),
        (("--only", "model", "--weights", "1e308,1e308,1,1"), "come to inf"),
        (("--only", "model", "--last", "9"), "--last 9 asks for 9 checkpoints, and there are 4"),
        (("--only", "model", "--every", "2", "--last", "3"), "and there are 2 with --every 2"),
    ],
)
def test_options_that_do_not_fit(run, refused, more, message):
    assert message in refused(run, *more)["message"]


def test_the_hint_is_the_same_command_with_the_role(run, ckptool, tmp_path):
    command = ["ckptool", "average", str(run), "--last", "3", "-o", str(tmp_path / "a b.pt")]
    hint = ckptool(*command[1:]).stderr.splitlines()[-1]
    _, _, typed = hint.partition(": ckptool ")
    again = shlex.split(f"ckptool {typed}")
    assert again == [*command, "--only", "model"]
    assert ckptool(*again[1:]).exit_code == 0


def truncate(path):
    path.write_bytes(path.read_bytes()[:3000])


def flip(path):
    data = bytearray(path.read_bytes())
    data[data.index(load(path)["state_dict"]["stem.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(data)


def diverge(path):
    content = load(path)
    content["state_dict"]["stem.weight"].fill_(float("nan"))
    torch.save(content, path)


# How a checkpoint breaks -> what is said of it. Values are read while the mean is written.
BREAKS = {truncate: "truncated", flip: "do not fit its checksum", diverge: "are non-finite"}


@pytest.mark.parametrize("breaks", BREAKS)
@pytest.mark.parametrize("nth", [0, 2, 3])
def test_a_broken_checkpoint_of_a_run_is_named_and_can_be_skipped(
    breaks, nth, run, ckptool, tmp_path
):
    """It might be of any step, so that it is not left out in silence."""
    broken = [run / f"{name}.ckpt" for name in "dacb"][nth]
    kept = [path for path in sorted(run.iterdir()) if path != broken]
    breaks(broken)
    command = ("average", run, "--only", "model", "-o", tmp_path / "out.pt")
    refused = ckptool(*command)
    error, hint = refused.stderr.splitlines()
    assert refused.exit_code == 2
    assert error.startswith(f"error: {broken}: ")
    assert BREAKS[breaks] in error
    assert not (tmp_path / "out.pt").exists()
    _, _, typed = hint.partition(": ckptool ")
    done = ckptool(*shlex.split(typed))
    assert done.exit_code == 0
    (row,) = (each.split() for each in done.splitlines() if each.startswith("  broken "))
    assert row[1] == f"{broken}:"
    alone = ckptool("average", *kept, "--only", "model", "-o", tmp_path / "kept.pt")
    assert alone.exit_code == 0
    assert_same_tensors(load(tmp_path / "out.pt"), load(tmp_path / "kept.pt"))
    report = ckptool(*shlex.split(typed), "--force", "--json").json
    assert {*report["skipped"]} == {str(broken)}  # --force replaces the file, and takes no NaN


def test_what_was_named_itself_is_not_skipped(run, ckptool, tmp_path):
    diverge(run / "a.ckpt")
    named = [run / "a.ckpt", run / "b.ckpt", run / "c.ckpt"]
    done = ckptool("average", *named, "--only", "model", "--skip-broken", "-o", tmp_path / "o.pt")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {run / 'a.ckpt'}: the weights are non-finite: ")
    assert "hint: --skip-broken leaves out files of a directory; leave out this one" in done.stderr
    truncate(run / "b.ckpt")
    done = ckptool("average", *named, "--only", "model", "--skip-broken", "-o", tmp_path / "o.pt")
    assert done.exit_code == 2
    assert "hint: --skip-broken leaves out files of a directory; leave out this one" in done.stderr


def test_two_are_left_or_it_is_no_average(run, ckptool, tmp_path):
    for name in "acd":
        truncate(run / f"{name}.ckpt")
    done = ckptool("average", run, "--only", "model", "--skip-broken", "-o", tmp_path / "o.pt")
    assert (done.exit_code, "at least two" in done.stderr) == (2, True)


def test_one_is_no_average(run, refused):
    assert "at least two" in refused(run / "a.ckpt", "--only", "model")["message"]


def test_other_weights_are_refused_by_name(tmp_path, refused):
    torch.save(weights(), tmp_path / "a.pt")
    torch.save(weights(more=torch.ones(2)), tmp_path / "b.pt")
    torch.save(weights() | {"scale": torch.ones(3)}, tmp_path / "c.pt")
    error = refused(tmp_path / "a.pt", tmp_path / "b.pt")
    assert "a.pt has no more, which" in error["message"]
    error = refused(tmp_path / "b.pt", tmp_path / "a.pt")
    assert "a.pt has no more, which" in error["message"]
    error = refused(tmp_path / "a.pt", tmp_path / "c.pt")
    assert "scale is float32 [] in" in error["message"]


def test_an_order_that_nothing_states(tmp_path, refused):
    torch.save(weights(), tmp_path / "a.pt")
    torch.save(weights(), tmp_path / "b.pt")
    error = refused(tmp_path / "a.pt", tmp_path / "b.pt", "--ema-decay", "0.9")
    assert "the order is not known" in error["message"]
    assert "the order is not known: " + str(tmp_path / "a.pt") in error["message"]
    assert "--weights" in error["hint"]


@pytest.mark.parametrize("more", [(), ("--last", "2"), ("--ema-decay", "0.9")])
def test_weights_that_were_written_into_the_run_are_named(run, refused, ckptool, more):
    """The mean of a run must not take its extracted EMA for a checkpoint."""
    ema = run / "a.ema.safetensors"
    assert ckptool("extract-ema", run / "a.ckpt").exit_code == 0
    save_file(load_file(ema), ema)  # without the note that says so
    error = refused(run, "--only", "model", *more)
    assert f"{ema} states no step, other" in error["message"]
    assert "instead of their directory" in error["hint"]


@pytest.mark.parametrize("step", [10**400, float("nan"), float("inf")], ids=["1e400", "nan", "inf"])
def test_a_step_that_no_run_reaches_gives_no_order(tmp_path, refused, averaged, step):
    for name, each in (("a", step), ("b", 3)):
        torch.save({"state_dict": weights(), "global_step": each}, tmp_path / f"{name}.pt")
    files = tmp_path / "a.pt", tmp_path / "b.pt"
    assert "the order is not known" in refused(*files, "--last", "2")["message"]
    assert averaged(*files)


def test_epochs_are_an_order_but_no_steps_of_an_ema(tmp_path, refused, averaged):
    for epoch in (2, 1):
        content = {"state_dict": noisy(epoch), "epoch": epoch}
        torch.save(content, tmp_path / f"{epoch}.pt")
    files = tmp_path / "2.pt", tmp_path / "1.pt"
    assert_same_tensors(averaged(*files, name="mean.pt"), mean(of_steps(1, 2)))
    (tmp_path / "mean.pt").unlink()
    assert "the order is not known" in refused(*files, "--ema-decay", "0.9")["message"]


@pytest.mark.parametrize(("value", "lost"), [(1e-9, "vanished"), (1e6, "overflowed")])
def test_losses_of_a_cast_are_counted(tmp_path, ckptool, value, lost):
    for name in ("a", "b"):
        torch.save({"w": torch.full((4,), value), "v": torch.ones(2)}, tmp_path / f"{name}.pt")
    files = tmp_path / "a.pt", tmp_path / "b.pt"
    for more in (("--dry-run",), ()):
        done = ckptool("average", *files, "--dtype", "fp16", "--force", "-o", tmp_path / "o.pt",
                       "--json", *more)  # fmt: skip
        assert done.json["casts"][lost] == 4
        assert done.json["casts"]["tensors"] == 2
    refusal = ckptool("average", *files, "--dtype", "fp16", "-o", tmp_path / "n.pt")
    assert refusal.exit_code == (2 if lost == "overflowed" else 0)


def test_nan_and_damage_are_refused(tmp_path, refused, ckptool):
    torch.save(weights(), tmp_path / "a.pt")
    torch.save(weights(scale=torch.tensor(float("nan"))), tmp_path / "b.pt")
    error = refused(tmp_path / "a.pt", tmp_path / "b.pt")
    assert "non-finite" in error["message"]
    assert "scale" in error["message"]
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[data.index(weights()["stem.weight"].numpy().tobytes())] ^= 1
    (tmp_path / "c.pt").write_bytes(data)
    error = refused(tmp_path / "a.pt", tmp_path / "c.pt")
    assert "do not fit its checksum" in error["message"]


def test_no_source_is_written_over(run, refused, ckptool, tmp_path):
    before = contents(run)
    done = ckptool("average", run, "--only", "model", "-o", run / "a.ckpt", "--force")
    assert done.exit_code == 2
    assert contents(run) == before


# ------------------------------------------------------------------------------------ the numbers


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@given(
    shares=st.lists(st.floats(-2, 2), min_size=1, max_size=5), whole=st.sampled_from([1, 3, 7.5]),
    start=st.integers(0, 40), nbytes=st.integers(0, 60), seed=st.integers(0, 1000),
)  # fmt: skip
@examples(30)
def test_any_bytes_of_a_mean(dtype, shares, whole, start, nbytes, seed):
    """Also those that begin or end inside a value."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(5, 7, generator=generator).to(dtype) for _ in shares]
    row = BY_NAME[str(dtype).removeprefix("torch.")]
    series = []
    for tensor, share in zip(tensors, shares, strict=True):
        memory = Memory(tensor.view(torch.uint8).numpy().tobytes())
        chunk = Chunk(memory.span(0, memory.size), (0, 0), (5, 7), (7, 1))
        series.append(Weighted(TensorReader(memory), TensorRef(row, (5, 7), (chunk,)), share))
    total = torch.zeros(5, 7, dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total += tensor.double() * share
    wanted = (total / whole).to(dtype).view(torch.uint8).numpy().tobytes()
    found = Mean("w", series, whole, row)
    assert found.size == len(wanted)
    end = min(start + nbytes, found.size)
    assert found.read(min(start, end), end - min(start, end)) == wanted[min(start, end) : end]


def test_shares():
    assert given_shares("1,1,2", 3) == Shares((1, 1, 2), 4)
    assert given_shares("1,1,2", 3).weights == (0.25, 0.25, 0.5)
    assert given_shares("1e300,3e300", 2) == Shares((0.25, 0.75))
    assert ema_shares([1, 2, 4], 0.5) == Shares((0.125, 0.125, 0.75))
    with pytest.raises(UsageError, match="of step 2"):
        ema_shares([1, 2, 2], 0.5)


def test_a_plain_mean_is_rounded_as_the_exact_one(tmp_path, averaged):
    """It lies between two floats. A sum of products with 1 / 3 falls on the wrong side."""
    values = [float.fromhex(each) for each in ("0x1.497b16p-1", "0x1.2740a8p-2", "-0x1.158a1cp-4")]
    exact = torch.tensor(float(sum(map(Fraction, values)) / 3), dtype=torch.float32)
    assert exact != torch.tensor(sum(value * (1 / 3) for value in values), dtype=torch.float32)
    for value in values:
        torch.save({"w": torch.tensor([value])}, tmp_path / f"{value}.pt")
    found = averaged(*(tmp_path / f"{value}.pt" for value in values))
    assert found["w"].item() == exact
