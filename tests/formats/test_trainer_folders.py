"""A trainer's folder is read whatever lies beside its parts, never without a part of its own."""

from __future__ import annotations

import pickle
import shutil

import pytest

from ckptool.formats import open_checkpoint
from helpers.paths import FIXTURES

LAST = FIXTURES / "genuine" / "hf_trainer" / "run" / "checkpoint-4"
# The beginning of SentencePiece's protobuf: pieces with a score each.
SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02\n\x0c\n\x03<s>\x15\0\0\0\0\x18\x03" + bytes(
    range(128, 256)
)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
CUT = (LAST / "optimizer.pt").read_bytes()[:-60]


@pytest.fixture
def folder(tmp_path):
    """A copy of a genuine folder, to lay something beside."""
    return shutil.copytree(LAST, tmp_path / "checkpoint-4")


def addresses(report) -> set[str]:
    return {section["address"] for section in report.json["sections"]}


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "tokens.bin"])
def test_a_file_of_another_program_is_left_closed(name, folder, ckptool):
    (folder / name).write_bytes(SENTENCEPIECE)
    assert addresses(ckptool("inspect", folder, "--json")) == addresses(
        ckptool("inspect", LAST, "--json")
    )
    verdict = ckptool("verify", folder, "--require", "resume", "--json")
    assert (verdict.exit_code, verdict.json["format"]) == (0, "folder")
    (told,) = [f for f in verdict.json["findings"] if name in f["message"]]
    assert told["rule"] == "CK121"


def test_a_file_of_another_program_is_compared_byte_by_byte(folder, tmp_path, ckptool):
    (folder / "tokenizer.model").write_bytes(SENTENCEPIECE)
    other = shutil.copytree(folder, tmp_path / "other")
    assert ckptool("diff", folder, other).exit_code == 0
    (other / "tokenizer.model").write_bytes(SENTENCEPIECE + b"\0")
    changed = ckptool("diff", folder, other)
    assert (changed.exit_code, "__files__/tokenizer.model" in changed.stdout) == (1, True)


@pytest.mark.parametrize(
    ("name", "data"),
    [("old.pt", CUT), ("empty.bin", b""), ("weights.bin", POINTER), ("tokenizer.model", POINTER)],
)
def test_a_damaged_file_beside_fails_and_hides_nothing(name, data, folder, ckptool):
    (folder / name).write_bytes(data)
    report = ckptool("inspect", folder, "--json")
    assert addresses(report) == addresses(ckptool("inspect", LAST, "--json"))
    assert [f["address"] for f in report.json["findings"] if f["rule"] == "CK121"] == [name]
    verdict = ckptool("verify", folder, "--json")
    (failed,) = [f for f in verdict.json["findings"] if f["severity"] == "error"]
    assert (verdict.exit_code, failed["address"].partition(":")[0]) == (1, name)


@pytest.mark.parametrize("data", [CUT, b"", POINTER], ids=["cut", "empty", "pointer"])
@pytest.mark.parametrize(
    "name",
    ["optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "model.safetensors"],
)
def test_a_damaged_part_is_an_error_that_names_it(name, data, folder, ckptool):
    (folder / name).write_bytes(data)
    verdict = ckptool("verify", folder, "--json")
    failed = [f for f in verdict.json["findings"] if f["severity"] == "error"]
    assert verdict.exit_code == 1
    assert name in {f["address"].partition(":")[0] for f in failed}


class Shell:
    """What a hostile pickle holds."""

    def __reduce__(self):
        import os

        return os.system, ("true",)


@pytest.mark.parametrize("selected", [(), ("--select", "CK2")], ids=["all", "CK2"])
@pytest.mark.parametrize("name", ["evil", "evil.pt", "sub/evil.dat"])
def test_a_hostile_pickle_beside_is_not_safe(name, selected, folder, ckptool):
    (folder / "training_args.bin").unlink()  # whose enums are not safe either
    asked = ("verify", folder, "--require", "safe", *selected, "--json")
    assert ckptool(*asked).exit_code == 0
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(Shell(), 2))
    verdict = ckptool(*asked)
    (failed,) = [f for f in verdict.json["findings"] if f["severity"] == "error"]
    assert (verdict.exit_code, failed["rule"]) == (1, "CK201")
    assert failed["address"].partition(":")[0] == name
    assert "system" in failed["message"]


def refused(report) -> dict[str, str]:
    return {f["address"]: f["message"] for f in report.json["findings"] if f["rule"] == "CK202"}


def test_the_parts_that_weights_only_refuses_are_told_as_alone(ckptool):
    alone = {
        path.name: message
        for path in LAST.iterdir()
        if path.suffix in {".bin", ".pt", ".pth"}
        for message in refused(ckptool("verify", path, "--json")).values()
    }
    assert "training_args.bin" in alone
    assert refused(ckptool("verify", LAST, "--json")) == alone


def test_the_same_refusal_of_several_files_is_told_once(folder, ckptool):
    shutil.copy(folder / "rng_state.pth", folder / "rng_state_1.pth")
    told = [f for f in refused(ckptool("verify", folder, "--json")).items() if "rng_state" in f[0]]
    ((_, message),) = told
    assert message.endswith("; the same in rng_state_1.pth")


# ------------------------------------------------------------------------------- the files of ranks

ZERO = FIXTURES / "sharded" / "zero"


@pytest.mark.parametrize(
    ("of_ranks", "name"),
    [
        (ZERO / "stage3_bf16" / "global_step2", "global_step4"),
        (FIXTURES / "sharded" / "ranks" / "fsdp2_two", "pytorch_model_fsdp_0"),
        (FIXTURES / "genuine" / "fsdp2" / "checkpoint", "pytorch_model_fsdp_0"),
    ],
)
def test_a_folder_of_ranks_is_a_part(of_ranks, name, folder, tmp_path, ckptool):
    """Genuine parts, put together as the Trainer and accelerate do."""
    for own in ("model.safetensors", "optimizer.pt"):
        (folder / own).unlink()
    shutil.copytree(of_ranks, folder / name)
    report = ckptool("inspect", folder, "--json").json
    assert report["format"] == "folder"
    roles = {section["address"]: section["role"] for section in report["sections"]}
    assert roles[name] == "model"
    assert roles["trainer_state.json"] == "progress"
    assert report["training"]["global_step"] == 4
    with open_checkpoint(of_ranks) as alone, open_checkpoint(folder) as whole:
        assert whole.tree[name].keys() == alone.tree.keys()
    out = tmp_path / "model.safetensors"
    assert ckptool("extract-ema", f"{folder}#@model", "-o", out).exit_code == 0


def test_a_rank_that_is_missing_in_a_part_is_refused(folder, ckptool):
    ranks = shutil.copytree(ZERO / "stage2_bf16" / "global_step2", folder / "global_step4")
    next(ranks.glob("*rank_1*optim*")).unlink()
    assert "rank 1 is missing" in ckptool("inspect", folder).stderr
