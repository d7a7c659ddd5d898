"""The note in the file of an average, and the proof of it from its sources."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ckptool import open_checkpoint
from ckptool.commands.sources import NO_DIGEST, below_one
from ckptool.formats.provenance import (
    AverageNote,
    LateNote,
    Provenance,
    SourceNote,
    as_text,
    final,
    read_provenance,
)
from ckptool.sources.urls import RemotePath
from helpers.making import average_of, resumable, save, weights
from helpers.thinned import examples

STEPS = (1, 2, 4)
OUTPUTS = ("out.safetensors", "out.pt")


def model_of(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        name: tensor + torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor + step
        for name, tensor in weights(wide=torch.zeros(70, 1000).t()).items()
    }


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for step in STEPS:
        content = resumable(model_of(step)) | {"global_step": step}
        save(folder / f"{step}.ckpt", model_of(step), average_of(model_of(step)), **content)
    return folder


@pytest.fixture
def averaged(run, ckptool, tmp_path):
    def average(*args, name="out.pt"):
        output = tmp_path / name
        done = ckptool("average", run, "--only", "model", *args, "-o", output, "--force")
        assert done.exit_code == 0, done.stderr
        return output

    return average


@pytest.fixture
def proof(run, ckptool):
    def verify(path, folder=run):
        return ckptool("verify", path, "--against", folder, "--json")

    return verify


def note_in(path) -> Provenance:
    with open_checkpoint(path) as checkpoint:
        return read_provenance(checkpoint.metadata)


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_note_has_the_sources(averaged, name):
    note = note_in(averaged("--weights", "1,1,2", name=name))
    assert [each.file for each in note.average.sources] == [f"{step}.ckpt" for step in STEPS]
    assert [each.part for each in note.average.sources] == [1, 1, 2]
    assert [each.step for each in note.average.sources] == [*STEPS]
    assert (note.average.whole, note.average.buffers) == (4, "average")
    digests = {each.digest for each in note.average.sources}
    assert len(digests) == len(STEPS)
    assert NO_DIGEST not in digests


def test_digests_are_those_of_the_values_in_every_format(run, ckptool, tmp_path, averaged):
    folder = tmp_path / "flat"
    folder.mkdir()
    for step in STEPS:
        save_file(
            {n: t.contiguous() for n, t in model_of(step).items()}, folder / f"{step}.safetensors"
        )
    assert ckptool("average", folder, "-o", tmp_path / "flat.pt").exit_code == 0
    ours, theirs = note_in(averaged()), note_in(tmp_path / "flat.pt")
    assert [s.digest for s in ours.average.sources] == [s.digest for s in theirs.average.sources]


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize(
    "more",
    [
        (), ("--weights", "1,2,3"), ("--ema-decay", "0.9"), ("--schedule", "minus-sqrt"),
        ("--dtype", "bf16"), ("--dtype", "float64"), ("--buffers", "newest"), ("--last", "2"),
    ],
)  # fmt: skip
def test_an_average_is_proved_again(averaged, proof, more, name):
    done = proof(averaged(*more, name=name))
    assert done.exit_code == 0, done.stdout
    states = {check["rule"]: check["state"] for check in done.json["checks"]}
    assert states["CK701"] == states["CK702"] == "passed"


def test_an_average_in_a_copy_is_proved_again(averaged, run, proof):
    output = averaged("--into", run / "4.ckpt", name="out.ckpt")
    assert NO_DIGEST not in {each.digest for each in note_in(output).average.sources}
    assert proof(output).exit_code == 0


def test_shards_are_proved_again(averaged, proof, run, ckptool, tmp_path):
    averaged("--max-shard-size", "200KB", name="out.safetensors")
    shards = sorted(tmp_path.glob("out-*.safetensors"))
    assert len(shards) > 1
    assert NO_DIGEST not in {s.digest for shard in shards for s in note_in(shard).average.sources}


def test_another_value_is_found(averaged, proof, tmp_path):
    output = averaged(name="out.safetensors")
    tensors = load_file(output)
    tensors["stem.weight"][0, 0] += 1
    with open_checkpoint(output) as checkpoint:
        metadata = dict(checkpoint.metadata)
    save_file(tensors, output, metadata)
    done = proof(output)
    assert done.exit_code == 1
    found = next(f for f in done.json["findings"] if f["rule"] == "CK701")
    assert "stem.weight" in found["message"]
    assert "not the file that was averaged" not in found["message"]
    assert "ckptool average" in found["remedy"]
    assert "extract-ema" not in found["remedy"]


def test_another_source_is_named(averaged, proof, run):
    output = averaged()
    save(run / "2.ckpt", model_of(3), average_of(model_of(3)), **resumable(model_of(3)))
    message = next(
        f for f in proof(output).json["findings"] if f["rule"] == "CK701"
    )["message"]  # fmt: skip
    assert "2.ckpt: not the file that was averaged" in message
    assert "1.ckpt" not in message


def test_a_source_that_is_gone_is_named(averaged, proof, run, tmp_path):
    output = averaged()
    (run / "2.ckpt").unlink()
    done = proof(output)
    assert done.exit_code == 2
    assert "2.ckpt, from which the average was made, is not there" in done.stdout + done.stderr
    other = tmp_path / "empty"
    other.mkdir()
    assert proof(output, other).exit_code == 2


def test_sources_of_two_directories_are_below_one(run, tmp_path, ckptool):
    for name in ("x", "y"):
        shutil.copytree(run, tmp_path / "runs" / name)
    runs = tmp_path / "runs"
    out = tmp_path / "out.pt"
    files = runs / "x" / "1.ckpt", runs / "y" / "2.ckpt"
    assert ckptool("average", *files, "--only", "model", "-o", out).exit_code == 0
    assert [each.file for each in note_in(out).average.sources] == ["x/1.ckpt", "y/2.ckpt"]
    assert ckptool("verify", out, "--against", runs).exit_code == 0


@pytest.mark.parametrize("roles", [("@ema", "@ema"), ("@model", "@ema")])
def test_roles_are_found_again(tmp_path, ckptool, proof, roles):
    """An EMA by its role has the model's names: without the prefix and the counter of torch."""
    module = torch.nn.Linear(3, 2)
    average = torch.optim.swa_utils.AveragedModel(module)
    folder = tmp_path / "swa"
    folder.mkdir()
    for step in (1, 2):
        with torch.no_grad():
            module.weight += step
        average.update_parameters(module)
        content = {"model": module.state_dict(), "ema_model": average.state_dict()}
        torch.save({**content, "global_step": step}, folder / f"{step}.pt")
    files = [f"{folder / str(at)}.pt#{role}" for at, role in enumerate(roles, 1)]
    output = tmp_path / "out.safetensors"
    done = ckptool("average", *files, "-o", output)
    assert done.exit_code == 0, done.stderr
    assert [each.address for each in note_in(output).average.sources] == [*roles]
    assert {*load_file(output)} == {"weight", "bias"}
    done = proof(output, folder)
    states = {check["rule"]: check["state"] for check in done.json["checks"]}
    assert (done.exit_code, states["CK701"], states["CK702"]) == (0, "passed", "passed")


@pytest.mark.parametrize(
    ("urls", "names"),
    [
        (("https://h.co/r/100/m.pt", "https://h.co/r/200/m.pt"), ["100/m.pt", "200/m.pt"]),
        (("https://h.co/r/a.pt?x=1", "https://h.co/r/b.pt?x=1"), ["a.pt", "b.pt"]),
        (("https://h.co/r/a.pt", "https://h.co/r/x/b.pt"), ["a.pt", "x/b.pt"]),
    ],
)
def test_urls_are_told_apart_in_the_note(urls, names):
    assert below_one([RemotePath(url) for url in urls]) == names


# --------------------------------------------------------------------------------------- the note

SOURCE = SourceNote("a.pt", "model", 1, None, "0" * 64)


def noted(average) -> Provenance | None:
    plain = json.loads(as_text(Provenance("1", "average", "a.pt", "", None, None, "t", "swa")))
    return read_provenance({"ckptool": json.dumps({**plain, "average": average})})


def test_a_note_reads_back():
    average = AverageNote(2, "average", (SOURCE, SOURCE))
    note = Provenance("1", "average", "a.pt", "", None, None, "t", "swa", average)
    assert read_provenance({"ckptool": as_text(note)}) == note


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*AverageNote._fields, *SourceNote._fields]), inner)
    ),
    max_leaves=12,
)


@given(JSON)
@examples(200)
def test_any_other_note_is_none(average):
    found = noted(average)
    assert found is not None
    assert found.average is None or isinstance(found.average, AverageNote)


@pytest.mark.parametrize("part", [10**400, float("inf"), "1", None, True])
def test_a_part_that_is_no_number_makes_no_note(part):
    source = SOURCE._replace(part=part)._asdict()
    assert noted({"whole": 1, "buffers": "average", "sources": [source]}).average is None
    assert (
        noted({"whole": part, "buffers": "average", "sources": [SOURCE._asdict()]}).average is None
    )


@pytest.mark.parametrize("file", ["/etc/passwd", "../out.pt", "x/../../y"])
def test_no_file_outside_the_directory_is_opened(file, run, tmp_path, proof):
    average = {"whole": 1, "buffers": "average", "sources": [SOURCE._replace(file=file)._asdict()]}
    plain = json.loads(as_text(Provenance("1", "average", "a.pt", "", None, None, "t", "swa")))
    metadata = {"ckptool": json.dumps({**plain, "average": average})}
    save_file({"w": torch.ones(2)}, tmp_path / "m.safetensors", metadata)
    done = proof(tmp_path / "m.safetensors")
    assert done.exit_code == 2
    assert "is not there" in done.stdout + done.stderr


def test_a_late_note_keeps_its_place():
    assert final("plain") == "plain"
    assert final(LateNote.of("0000", lambda: "abcd")) == "abcd"
    with pytest.raises(AssertionError):
        final(LateNote.of("0000", lambda: "abc"))
