"""Every command on a URL: the answer is that for the same file here, or a clear error."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch

from ckptool.cli import completion
from ckptool.commands.inspect import inspect_file
from ckptool.contents.selection import Operand
from ckptool.sources.remote import ahead, file
from ckptool.sources.urls import RemotePath
from helpers import web
from helpers.output import run_inside as run
from helpers.paths import FIXTURES
from helpers.thinned import one_in
from helpers.two_faced import EVIL
from helpers.unpacked import array, storage
from helpers.web import Site, serving

SAMPLE = FIXTURES / "ema" / "emacallback" / "exported.ckpt"
ONE_FILE = sorted(
    path
    for folder in ("ema", "formats", "resume")
    for path in (FIXTURES / folder).rglob("*")
    if path.suffix in {".ckpt", ".pt", ".pth", ".safetensors", ".pkl"}
)


def place(path: Path) -> str:
    return str(path.relative_to(FIXTURES))


@pytest.fixture
def site():
    with serving() as running:
        yield running


@pytest.fixture
def in_parts(monkeypatch):
    web.cut_small(monkeypatch)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    web.be_quick(monkeypatch)


def at(site: Site, path: Path) -> str:
    """Serve a file, and return its URL."""
    site.files[f"/{path.name}"] = path.read_bytes()
    return f"{site.url}/{path.name}"


def without_places(document, *texts: str):
    """A document in which the path of its file is the same wherever it was."""
    if isinstance(document, dict):
        return {key: without_places(value, *texts) for key, value in document.items()}
    if isinstance(document, list):
        return [without_places(value, *texts) for value in document]
    for text in texts if isinstance(document, str) else ():
        document = document.replace(text, "HERE")
    return document


# ---------------------------------------------------------- the same as on the disk


@pytest.mark.parametrize("path", one_in(3, ONE_FILE), ids=place)
def test_inspect_says_the_same(site, tmp_path, path):
    copy = tmp_path / path.name  # alone: a URL has no neighbours
    copy.write_bytes(path.read_bytes())
    ours, theirs = run("inspect", at(site, path), "--json"), run("inspect", copy, "--json")
    assert (ours.exit_code, ours.stderr) == (theirs.exit_code, theirs.stderr.replace(str(copy), ""))
    there = [f"{site.url}/{path.name}", str(copy)]
    assert without_places(ours.json, *there) == without_places(theirs.json, *there)
    assert len(site.asked) <= 4


@pytest.mark.parametrize("path", one_in(3, ONE_FILE), ids=place)
def test_extraction_in_parts_writes_the_same_bytes(site, tmp_path, in_parts, path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    ours = run("extract-ema", at(site, path), "-o", one)
    theirs = run("extract-ema", copy, "-o", other)
    assert ours.exit_code == theirs.exit_code
    assert one.exists() == other.exists()
    if one.exists():
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("path", one_in(4, ONE_FILE[::3]), ids=place)
def test_nothing_differs_from_the_file_itself(site, in_parts, path):
    done = run("diff", at(site, path), path)
    assert done.exit_code == run("diff", path, path).exit_code, done


def test_verify_reads_all_bytes(site, in_parts):
    done = run("verify", at(site, SAMPLE), "--require", "intact", "--json")
    assert done.exit_code == run("verify", SAMPLE, "--require", "intact").exit_code == 0
    assert site.sent >= 0.9 * SAMPLE.stat().st_size


def test_a_changed_bit_is_found(site, in_parts):
    data = bytearray(SAMPLE.read_bytes())
    at_value = data.find(b"/data/0") + 200
    data[at_value] ^= 1
    site.files["/a.ckpt"] = bytes(data)
    done = run("verify", f"{site.url}/a.ckpt", "--require", "intact")
    assert done.exit_code == 1
    assert "CK103" in done


def test_convert_and_average(site, tmp_path, in_parts):
    url = at(site, SAMPLE)
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    assert run("convert", f"{url}#@model", "-o", one).exit_code == 0
    assert run("convert", f"{SAMPLE}#@model", "-o", other).exit_code == 0
    assert run("diff", one, other).exit_code == 0
    done = run("average", f"{url}#@model", f"{SAMPLE}#@model", "-o", tmp_path / "mean.safetensors")
    assert done.exit_code == 0, done
    assert run("diff", tmp_path / "mean.safetensors", one).exit_code == 0


def test_an_average_is_written_into_a_copy_of_a_url(site, tmp_path, in_parts):
    path = FIXTURES / "ema" / "has_ema" / "late.pt"
    url, one, other = at(site, path), tmp_path / "one.pt", tmp_path / "other.pt"
    site.every = lambda handler, data: (
        web.status(403)(handler, data) if not handler.path.endswith("?sig=s3cret") else False
    )
    words = ("average", path, path, "--only", "model", "--into")
    ours = run(*words, f"{url}?sig=s3cret", "-o", one)
    theirs = run(*words, path, "-o", other)
    assert ours.exit_code == theirs.exit_code == 0, ours
    assert run("diff", one, other).exit_code == 0
    done = run(*words, f"{url}?sig=of_another", "-o", tmp_path / "third.pt")
    assert done.exit_code == 2
    assert f"error: {url}?…: the server forbids it" in done.stderr
    assert "of_another" not in done.stderr
    done = run(*words, f"{url}?sig=s3cret#state_dict", "-o", tmp_path / "third.pt")
    assert done.exit_code == 2
    assert "--into takes a whole checkpoint" in done.stderr


@pytest.mark.parametrize("words", [("inspect",), ("inspect", "--tensors")])
def test_the_model_that_is_to_take_weights_may_be_behind_a_url(site, words):
    asked = ("--tensors", "--json") if len(words) > 1 else ()
    site.files["/model.json"] = run("inspect", SAMPLE, *asked).encode()
    like = f"{site.url}/model.json?sig=s3cret" if asked else at(site, SAMPLE)
    done = run("verify", SAMPLE, "--like", like, "--require", "loads")
    assert done.exit_code == 0, done
    assert site.asked


def test_a_glob_that_fits_nothing_is_told_of_a_signed_url(site):
    site.every = lambda handler, data: (
        web.status(403)(handler, data) if not handler.path.endswith("?sig=s3cret") else False
    )
    done = run("inspect", f"{at(site, SAMPLE)}?sig=s3cret", "--match", "no.such.*")
    assert done.exit_code == 2
    assert "fits no tensor" in done.stderr


def test_arrays_of_objects_are_looked_for_where_all_bytes_are_read(site, in_parts):
    site.files["/a.pt"] = storage(bytes(5000) + b"1234")
    assert run("verify", f"{site.url}/a.pt", "--bytes", "--require", "safe").exit_code == 0
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        site.files["/a.pt"] = storage(array(EVIL) + bytes(5000), method)
        done = run("verify", f"{site.url}/a.pt", "--bytes", "--require", "safe")
        assert done.exit_code == 1, done
        assert "CK201" in done
        assert "mkdir" in done


def test_a_whole_checkpoint_without_its_optimizer(site, tmp_path, in_parts):
    path = FIXTURES / "ema" / "has_ema" / "late.pt"
    one, other = tmp_path / "one.ckpt", tmp_path / "other.ckpt"
    ours = run("convert", at(site, path), "--drop", "optimizer", "-o", one)
    theirs = run("convert", path, "--drop", "optimizer", "-o", other)
    assert ours.exit_code == theirs.exit_code == 0, ours
    assert run("diff", one, other).exit_code == 0


def test_promotion_writes_a_local_copy(site, tmp_path, in_parts):
    one, other = tmp_path / "one.ckpt", tmp_path / "other.ckpt"
    ours = run("promote-ema", at(site, SAMPLE), "-o", one)
    theirs = run("promote-ema", SAMPLE, "-o", other)
    assert ours.exit_code == theirs.exit_code == 0, ours
    assert run("diff", one, other).exit_code == 0


def test_what_to_type_next_is_left_out_where_a_query_would_have_to_be_typed(site, tmp_path):
    url = at(site, SAMPLE)
    done = run("promote-ema", url, "-o", tmp_path / "a.ckpt")
    assert f"--against {url}" in done
    done = run("promote-ema", f"{url}?sig=s3cret", "-o", tmp_path / "b.ckpt")
    assert done.exit_code == 0
    assert "--against" not in done
    assert "s3cret" not in done


def test_without_an_output_it_is_written_here(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("extract-ema", at(site, SAMPLE)).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["exported.ema.safetensors"]


def test_digests_behind_a_url_are_compared_with_a_file_here(site):
    document = run("inspect", SAMPLE, "--digests", "--json")
    site.files["/last.ckpt.digests.json"] = document.encode()
    site.files["/last.ckpt"] = SAMPLE.read_bytes()
    url = f"{site.url}/last.ckpt.digests.json"
    assert run("diff", url, SAMPLE).exit_code == 0
    assert {each.path for each in site.asked} == {"/last.ckpt.digests.json"}
    other = FIXTURES / "ema" / "emacallback" / "callback_only.ckpt"
    assert run("diff", url, other).exit_code == 1


def test_a_difference_is_measured_as_between_files_here(site, tmp_path, in_parts):
    torch.manual_seed(0)
    values = {"a": torch.randn(400_000), "b": torch.randn(1000)}
    torch.save(values, tmp_path / "one.pt")
    values["a"][300_000] += 1
    torch.save(values, tmp_path / "other.pt")
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    here = run("diff", one, other, "--json")
    assert here.exit_code == 1
    for a, b in ((at(site, one), other), (one, at(site, other)), (at(site, one), at(site, other))):
        assert run("diff", a, b, "--json").json["tensors"] == here.json["tensors"]


def test_verify_says_before_how_much_it_reads(site, tmp_path):
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "a.pt")
    done = run("verify", at(site, tmp_path / "a.pt"), "--require", "intact")
    assert "note: verifying 4 MiB over the network" in done.stderr


def test_completion_asks_no_server(site, monkeypatch):
    assert completion.operands(f"{at(site, SAMPLE)}#state") == []
    assert not site.asked


# ---------------------------------------------------------- refusals


@pytest.mark.parametrize("output", ["s3://bucket/ema.safetensors", "https://host/ema.safetensors"])
def test_outputs_are_local(output):
    done = run("extract-ema", SAMPLE, "-o", output)
    assert done.exit_code == 2
    assert "outputs are files of this machine" in done.stderr


def test_an_output_that_is_a_url_is_named_as_one_without_its_secret():
    done = run("extract-ema", SAMPLE, "-o", "https://a.example/b.safetensors?sig=s3cret")
    assert done.exit_code == 2
    assert "error: https://a.example/b.safetensors?…: outputs are files" in done.stderr
    assert "s3cret" not in done.stderr + done


def test_in_place_is_refused(site):
    done = run("promote-ema", at(site, SAMPLE), "--in-place")
    assert done.exit_code == 2
    assert "error:" in done.stderr


def test_a_missing_file_is_said_with_its_url(site):
    done = run("inspect", f"{site.url}/none.ckpt?sig=s3cret")
    assert done.exit_code == 2
    assert f"{site.url}/none.ckpt?…: no such file (404)" in done.stderr
    assert "s3cret" not in done.stderr + done


@pytest.mark.parametrize("choice", [("--latest-valid",), ("--best", "loss")])
def test_a_web_server_has_no_run_to_choose_from(site, choice):
    done = run("verify", *choice, f"{site.url}/Runs/?sig=s3cret")
    assert done.exit_code == 2
    assert f"error: {site.url}/Runs/?…: the server lists no files" in done.stderr


def test_a_login_page_is_said(site):
    site.every = web.page
    done = run("inspect", f"{site.url}/a.ckpt")
    assert done.exit_code == 2
    assert "web page" in done.stderr


# ---------------------------------------------------------- bytes and requests


@pytest.fixture(scope="module")
def large() -> bytes:
    """A checkpoint of 100 MB, with its EMA and the state of Adam."""
    torch.manual_seed(0)
    model = {f"layers.{n}.weight": torch.randn(256, 1024) for n in range(24)}
    model |= {f"layers.{n}.bias": torch.randn(1024) for n in range(24)}
    ema = {name: value + 0.01 * torch.randn_like(value) for name, value in model.items()}
    moments = {n: {"step": torch.tensor(5.0), "exp_avg": v, "exp_avg_sq": v * v}
               for n, v in enumerate(model.values())}  # fmt: skip
    groups = [{"params": list(moments), "lr": 1e-3, "betas": (0.9, 0.999)}]
    state = {"state_dict": model, "ema_state_dict": ema, "epoch": 3,
             "optimizer": {"state": moments, "param_groups": groups}}  # fmt: skip
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def test_inspect_takes_four_requests(site, large):
    site.files["/last.ckpt"] = large
    report = inspect_file(Operand(RemotePath(f"{site.url}/last.ckpt")))
    assert report.ema.status == "found"
    assert report.ema.main_slot == "raw"
    assert len(site.asked) <= 4
    assert site.sent <= 1 << 20


def test_inspect_of_many_tensors_takes_four_requests(site):
    """Pickle and directory are larger than what is fetched first."""
    model = {
        f"blocks.{n // 10}.layer.{n % 10}.weight": torch.full((3000,), n + 0.5) for n in range(6000)
    }
    out = io.BytesIO()
    torch.save({"model": model, "model_ema": {k: v + 1 for k, v in model.items()}}, out)
    site.files["/last.ckpt"] = out.getvalue()
    report = inspect_file(Operand(RemotePath(f"{site.url}/last.ckpt")))
    assert report.tensors.count == 12_000
    assert report.ema.main_slot == "unknown"  # no request is left to compare values
    assert len(site.asked) <= 4
    pickle_and_directory = 3_500_000
    assert site.sent <= pickle_and_directory + (1 << 20)


def test_extraction_reads_in_the_order_of_the_bytes(site, large, tmp_path, monkeypatch):
    """By name, layers.10 comes before layers.2; pieces fetched ahead would fill the memory."""
    monkeypatch.setattr(ahead, "CHUNK", 1 << 20)
    monkeypatch.setattr(ahead, "HELD", ahead.Held())  # whose buffers have this size
    site.files["/last.ckpt"] = large
    output = tmp_path / "a.safetensors"
    assert run("extract-ema", f"{site.url}/last.ckpt", "-o", output).exit_code == 0
    ranges = [each.range for each in site.asked]
    starts = [start for start, stop in ranges if stop - start == ahead.CHUNK]  # no samples
    near = 2 * ahead.THREADS * ahead.CHUNK  # threads ask side by side
    assert len(starts) > 20
    assert all(start > max(starts[: nth + 1]) - near for nth, start in enumerate(starts))


def test_extraction_transfers_the_ema_and_nothing_else(site, large, tmp_path):
    site.files["/last.ckpt"] = large
    done = run("extract-ema", f"{site.url}/last.ckpt", "-o", tmp_path / "a.safetensors", "--json")
    assert done.exit_code == 0
    opening = file.TAIL + file.HEAD
    assert site.sent - opening <= 1.02 * done.json["bytes"]
    (tmp_path / "last.ckpt").write_bytes(large)
    other = tmp_path / "b.safetensors"
    assert run("extract-ema", tmp_path / "last.ckpt", "-o", other).exit_code == 0
    assert run("diff", tmp_path / "a.safetensors", other).exit_code == 0


@pytest.mark.parametrize("end", [5000, -22])
def test_a_damaged_file_behind_a_url_has_its_size(end, site, tmp_path):
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(SAMPLE.read_bytes()[:end])
    report = run("verify", at(site, cut), "--json").json
    assert (report["ok"], report["size_bytes"]) == (False, cut.stat().st_size)
