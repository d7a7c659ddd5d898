"""Archives with checkpoints in them: NeMo's tars and stable-baselines3's zips, read in place."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from ckptool.errors import CkptError, DamagedError, UnknownFormatError, UnsupportedError
from ckptool.formats import open_checkpoint
from ckptool.formats.archives import SB3_SIGN
from ckptool.formats.texts import MAX_NESTING
from ckptool.tensors.as_torch import as_torch
from helpers import samples
from helpers.conformance import FormatTests, open_files
from helpers.paths import FIXTURES

ROOT = FIXTURES / "sharded" / "archives"
WHOLE = ".whole.safetensors"
CASES = [(path.parent.name, path.name.removesuffix(WHOLE)) for path in ROOT.glob(f"*/*{WHOLE}")]
RECORD = 10_240  # of tar
MEMBER = "model_weights.ckpt"


def file_of(case):
    (found,) = (path for path in ROOT.iterdir() if path.is_file() and path.stem == case)
    return found


def saved(obj) -> bytes:
    stream = io.BytesIO()
    torch.save(obj, stream)
    return stream.getvalue()


def tar(path, members):
    with tarfile.open(path, "w:") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def zipped(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


class ArchiveTests(FormatTests):
    samples = (samples.ties, samples.nesting, samples.collections, samples.scalars)

    def test_opening_reads_no_values(self, tmp_path, monkeypatch):
        path, taken, pread = tmp_path / "large", [], os.pread
        self.write(path, torch.ones(3 << 20))
        monkeypatch.setattr(os, "pread", lambda fd, n, at: taken.append(n) or pread(fd, n, at))
        with open_checkpoint(path) as checkpoint:
            assert [*checkpoint.tree] == [MEMBER]
        assert sum(taken) < 1 << 20


class TestTarArchive(ArchiveTests):
    format_name = "tar-archive"
    padding = RECORD
    signature = 2048

    def write(self, path, obj):
        tar(path, {"./model_config.yaml": b"a: 1\n", f"./{MEMBER}": saved(obj)})

    def load(self, path):
        with tarfile.open(path) as archive:
            return {MEMBER: torch.load(archive.extractfile(f"./{MEMBER}"), weights_only=False)}


class TestZipOfCheckpoints(ArchiveTests):
    format_name = "zip-archive"

    def write(self, path, obj):
        zipped(path, {"version.txt": b"1", MEMBER: saved(obj)})

    def load(self, path):
        with zipfile.ZipFile(path) as archive, archive.open(MEMBER) as file:
            return {MEMBER: torch.load(file, weights_only=False)}


# ----------------------------------------------------------------------------- what libraries write


@pytest.mark.parametrize(("case", "member"), CASES)
def test_weights_equal_those_that_were_saved(case, member, ckptool, tmp_path):
    wanted = load_file(ROOT / case / f"{member}{WHOLE}")
    path, out = file_of(case), tmp_path / "model.safetensors"
    with open_checkpoint(path) as checkpoint:
        found = as_torch(checkpoint.tree[member], checkpoint.reader)
    assert ckptool("extract-ema", f"{path}#{member}", "-o", out).exit_code == 0
    for made in (found, load_file(out)):
        assert made.keys() == wanted.keys()
        assert all(torch.equal(made[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("case", sorted({case for case, _ in CASES}))
def test_verify_passes_and_the_file_is_closed(case, ckptool):
    before = open_files()
    assert ckptool("verify", file_of(case), "--bytes", "--values").exit_code == 0
    assert open_files() <= before


def test_an_agent_has_its_parts_and_its_progress(ckptool):
    report = ckptool("inspect", file_of("td3"), "--json").json
    roles = {section["address"]: section["role"] for section in report["sections"]}
    assert (roles["policy.pth"], roles["actor.optimizer.pth"]) == ("model", "optimizer")
    assert report["training"]["global_step"] == 16
    assert {each["kind"] for each in report["ema"]["candidates"]} == {"target-network"}


def test_a_zip_keeps_the_checksums_of_its_members(tmp_path, ckptool):
    path = shutil.copy(file_of("ppo"), tmp_path / "agent.zip")
    with open_checkpoint(path) as checkpoint:
        (chunk,) = checkpoint.tree["policy.pth"]["mlp_extractor.policy_net.0.weight"].chunks
    data = bytearray(path.read_bytes())
    data[chunk.span.offset] ^= 1
    path.write_bytes(data)
    verdict = ckptool("verify", path, "--bytes", "--json")
    assert verdict.exit_code == 1
    (broken,) = (f for f in verdict.json["findings"] if f["rule"] == "CK103")
    assert "policy.pth" in broken["message"]


# ---------------------------------------------------------------------------------- what it refuses


class Shell:
    def __reduce__(self):
        return os.system, ("true",)


def test_an_object_in_the_json_of_an_agent_is_unpickled_by_its_reader(tmp_path, ckptool):
    payload = base64.b64encode(pickle.dumps(Shell(), 2)).decode()
    members = {
        "data": json.dumps({"num_timesteps": 3, "schedule": {":serialized:": payload}}).encode(),
        "policy.pth": saved({"w": torch.ones(2, 2)}),
        SB3_SIGN: b"2.9.2",
    }
    verdict = ckptool("verify", zipped(tmp_path / "agent.zip", members), "--json")
    assert verdict.exit_code == 1
    assert any(f["rule"] == "CK201" and "system" in f["message"] for f in verdict.json["findings"])


def agent(signed: bool = True, **settings: object) -> dict[str, bytes]:
    """The members of an agent, whose settings hold a pickle that runs a command."""
    payload = base64.b64encode(pickle.dumps(Shell(), 2)).decode()
    data = json.dumps({**settings, "schedule": {":serialized:": payload}}).encode()
    members = {"data": data, "policy.pth": saved({"w": torch.ones(2, 2)})}
    return members | ({SB3_SIGN: b"2.9.2"} if signed else {})


def test_an_agents_reader_looks_for_no_version(tmp_path, ckptool):
    verdict = ckptool("verify", zipped(tmp_path / "agent.zip", agent(signed=False)), "--json")
    assert verdict.exit_code == 1
    assert any(f["rule"] == "CK201" and "system" in f["message"] for f in verdict.json["findings"])


@pytest.mark.parametrize("data", [b"text", b"\xff", b""])
def test_data_of_another_program_is_no_agents(data, tmp_path):
    path = zipped(tmp_path / "other.zip", {"data": data, MEMBER: saved({"w": torch.ones(2)})})
    with open_checkpoint(path) as checkpoint:
        assert [*checkpoint.tree] == [MEMBER]


@pytest.mark.parametrize("deep", [MAX_NESTING, 2000])
def test_settings_that_are_not_looked_through_are_refused(deep, tmp_path):
    """An agent's reader takes them."""
    settings = eval("[" * deep + "]" * deep) if deep < 200 else None
    members = agent(signed=False, deep=settings)
    if settings is None:
        members["data"] = b'{"a": ' + b"[" * deep + b"]" * deep + b"," + members["data"][1:]
    with pytest.raises(DamagedError, match="JSON cannot be read"):
        open_checkpoint(zipped(tmp_path / "agent.zip", members))


@pytest.mark.parametrize("folder", ["archive/", ""])
@pytest.mark.parametrize("left", ["data", "policy.pth"])
def test_a_file_of_torch_that_is_an_agent_too_is_refused(folder, left, tmp_path):
    """Torch and the agent's loader each read the half that the other does not."""
    path = tmp_path / "two.zip"
    torch.save({"w": torch.ones(2)}, tmp_path / "one.pt")
    with zipfile.ZipFile(tmp_path / "one.pt") as whole:
        records = {name: whole.read(name) for name in whole.namelist()}
    root = next(iter(records)).partition("/")[0]
    renamed = {folder + name.removeprefix(f"{root}/"): data for name, data in records.items()}
    members = {name: data for name, data in agent().items() if name != left}
    with pytest.raises(DamagedError, match="two files in one"):
        open_checkpoint(zipped(path, renamed | members))


def test_a_tar_of_torch_that_is_nemos_too_is_refused(tmp_path):
    path = tmp_path / "two.nemo"
    shutil.copy(FIXTURES / "hostile" / "benign" / "tar.pt", path)
    with tarfile.open(path, "a:") as archive:
        info, data = tarfile.TarInfo(MEMBER), saved({"w": torch.ones(2)})
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    with pytest.raises(DamagedError, match="two files in one"):
        open_checkpoint(path)


def test_a_crowd_of_checkpoints_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ckptool.formats.archives.MAX_CHECKPOINTS", 3)
    members = {f"{n}.pth": saved({}) for n in range(4)}
    with pytest.raises(UnsupportedError, match="more than 3 checkpoints"):
        open_checkpoint(zipped(tmp_path / "many.zip", members))


@pytest.mark.parametrize("name", ["notes", "tokenizer.pkl", "a/b.dat"])
@pytest.mark.parametrize("pack", [tar, zipped])
def test_a_pickle_in_another_member_is_seen(pack, name, tmp_path, ckptool):
    members = {MEMBER: saved({"w": torch.ones(2, 2)}), name: pickle.dumps(Shell(), 2)}
    verdict = ckptool("verify", pack(tmp_path / "archive", members), "--json")
    assert {f["rule"] for f in verdict.json["findings"] if f["severity"] == "error"} >= {"CK201"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "JSON cannot be read"),
        (b"[" * 10_000, "JSON cannot be read"),
        (b"[]", "no object"),
        (b"\xff", "JSON cannot be read"),
        (b'{"a": {":serialized:": "A"}}', "no base64"),
    ],
)
def test_json_that_no_agent_has_is_refused(data, said, tmp_path):
    members = {"data": data, "policy.pth": saved({}), SB3_SIGN: b"2"}
    with pytest.raises(DamagedError, match=said):
        open_checkpoint(zipped(tmp_path / "agent.zip", members))


def test_a_compressed_member_is_told_with_the_command(tmp_path):
    path = zipped(tmp_path / "agent.zip", {MEMBER: saved({})}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsupportedError, match="cannot be read in place") as caught:
        open_checkpoint(path)
    assert caught.value.hint.startswith("unzip ")


def test_a_link_is_not_followed(tmp_path):
    with tarfile.open(tmp_path / "a.nemo", "w:") as archive:
        link = tarfile.TarInfo(f"./{MEMBER}")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(UnsupportedError, match="a link"):
        open_checkpoint(tmp_path / "a.nemo")


def test_what_is_not_looked_at_is_refused(tmp_path, monkeypatch):
    """A loader may unpickle any member: one that is compressed, a link, or the thousandth."""
    path = zipped(tmp_path / "agent.zip", {"policy.pth": saved({"w": torch.ones(2)})})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", pickle.dumps(print) * 100)
    with pytest.raises(UnsupportedError, match="compressed"):
        open_checkpoint(path)
    path = tar(tmp_path / "hard.nemo", {MEMBER: saved({"w": torch.ones(2)})})
    with tarfile.open(path, "a:") as archive:
        link = tarfile.TarInfo("model_config.yaml")
        link.type, link.linkname = tarfile.LNKTYPE, MEMBER
        archive.addfile(link)
    with pytest.raises(UnsupportedError, match="a link"):
        open_checkpoint(path)
    monkeypatch.setattr("ckptool.formats.archives.MAX_LISTENED", 3)
    others = {f"{i}.txt": b"text" for i in range(4)}
    path = tar(tmp_path / "many.nemo", {MEMBER: saved({"w": torch.ones(2)})} | others)
    with pytest.raises(UnsupportedError, match="more than 3 other files"):
        open_checkpoint(path)


def test_directories_in_a_tar_are_passed_over(tmp_path):
    path = tar(tmp_path / "a.nemo", {MEMBER: saved({"w": torch.ones(2)})})
    with tarfile.open(path, "a:") as archive:
        folder = tarfile.TarInfo("weights")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tree) == [MEMBER]


def test_a_compressed_tar_is_told_with_the_command(tmp_path):
    path = tmp_path / "model.nemo"
    path.write_bytes(gzip.compress(file_of("weights").read_bytes()))
    with pytest.raises(UnknownFormatError, match="compressed with gzip") as caught:
        open_checkpoint(path)
    assert "gzip -dc FILE" in caught.value.hint


def test_weights_of_several_ranks_are_not_joined(tmp_path):
    names = [f"./tp_rank_{rank:02d}_pp_rank_000/{MEMBER}" for rank in range(2)]
    whole = saved({"w": torch.ones(2, 2)})
    with pytest.raises(UnsupportedError, match="tp_rank_00_pp_rank_000, tp_rank_01_pp_rank_000"):
        open_checkpoint(tar(tmp_path / "a.nemo", dict.fromkeys(names, whole)))
    with open_checkpoint(tar(tmp_path / "b.nemo", {names[0]: whole})) as checkpoint:
        assert [*checkpoint.tree] == [names[0][2:]]


@pytest.mark.parametrize("left", [".metadata", "__0_0.distcp"])
def test_a_distributed_checkpoint_without_a_file_is_refused(left, tmp_path):
    with tarfile.open(file_of("distributed")) as archive:
        files = {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}
    kept = {name: data for name, data in files.items() if not name.endswith(left)}
    assert len(kept) == len(files) - 1
    with pytest.raises(CkptError):
        open_checkpoint(tar(tmp_path / "a.nemo", kept))


@pytest.mark.parametrize(
    "names",
    [
        (f"./{MEMBER}", MEMBER), (MEMBER, MEMBER), (MEMBER, f"a/../{MEMBER}"),
        (f"a/{MEMBER}", f"a//./{MEMBER}"), (MEMBER, MEMBER.upper()),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["nemo", "zip"])
def test_members_that_unpack_to_one_file_are_refused(names, suffix, tmp_path):
    """Which of them is meant depends on the reader."""
    path = tmp_path / f"a.{suffix}"
    files = [(name, saved({"w": torch.full((2,), float(i))})) for i, name in enumerate(names)]
    if suffix == "zip":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of equal names
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in files:
                    archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:") as archive:
            for name, data in files:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    with pytest.raises(DamagedError, match=r"unpack to one|two records"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["../model.ckpt", "/model.ckpt", "a/../../model.ckpt"])
@pytest.mark.parametrize("pack", [tar, zipped])
def test_a_member_that_unpacks_outside_is_refused(pack, name, tmp_path):
    with pytest.raises(DamagedError, match="outside"):
        open_checkpoint(pack(tmp_path / "a", {MEMBER: saved({}), name: saved({})}))


@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.parametrize("members", [{}, {"notes.txt": b"x" * 600}, {"a.bin": b"\x99" * 600}])
def test_an_archive_of_other_files_is_no_checkpoint(pack, members, tmp_path):
    with pytest.raises(CkptError):
        open_checkpoint(pack(tmp_path / "archive", members))


def test_archives_are_not_opened_in_archives(tmp_path):
    inner = zipped(tmp_path / "inner.zip", {MEMBER: saved({})}).read_bytes()
    with pytest.raises(UnknownFormatError):
        open_checkpoint(tar(tmp_path / "outer.tar", {"inner.pt": inner}))


@pytest.mark.parametrize("case", ["td3", "weights"])
def test_promotion_says_what_to_type_instead(case, ckptool, tmp_path):
    refused = ckptool("promote-ema", file_of(case), "-o", tmp_path / "out.nemo")
    assert (refused.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "hint: " in refused.stderr
