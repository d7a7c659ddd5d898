"""Weights in several files are one state dict, and an index that misleads is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckptool import load_state_dict
from ckptool.errors import DamagedError, RepetitionError, UnknownFormatError
from ckptool.formats import open_checkpoint, same_values
from ckptool.sources.local import LocalFile
from helpers.making import average_of, resumable, weights
from helpers.tensors import assert_same_tensors
from helpers.web import serving

INDEX = "model.safetensors.index.json"


def shard(folder, tensors, count=2, stem="model", suffix=".safetensors"):
    """Deal the tensors into ``count`` files, with their index, as the hub's library writes it."""
    names = [f"{stem}-{i + 1:05d}-of-{count:05d}{suffix}" for i in range(count)]
    parts = [dict(list(tensors.items())[i::count]) for i in range(count)]
    for name, part in zip(names, parts, strict=True):
        (save_file if suffix == ".safetensors" else torch.save)(part, folder / name)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path = folder / f"{stem}{suffix}.index.json"
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("operand", ["folder", "index"])
def test_shards_are_one_state_dict(operand, suffix, tmp_path):
    index = shard(tmp_path, weights(), 3, suffix=suffix)
    path = tmp_path if operand == "folder" else index
    assert_same_tensors(load_state_dict(path, "model"), weights())


def test_an_index_with_many_notes_before_its_map_is_one(ckptool, tmp_path):
    """As extraction writes it for many tied names."""
    index = shard(tmp_path, weights())
    content = json.loads(index.read_text())
    content["metadata"] |= {f"decoder.{i}.weight": f"encoder.{i}.weight" for i in range(200)}
    index.write_text(json.dumps(content, indent=2))
    assert index.read_bytes().index(b"weight_map") > 4096
    assert_same_tensors(load_state_dict(index, "model"), weights())


def test_inspect_says_that_they_are_sharded(ckptool, tmp_path):
    shard(tmp_path, weights())
    report = ckptool("inspect", tmp_path, "--json").json
    assert (report["format"], report["tensors"]["count"]) == ("sharded", len(weights()))
    files = tmp_path.glob("*.safetensors")
    assert report["size_bytes"] == sum(path.stat().st_size for path in files)


def test_an_average_in_shards_is_extracted(ckptool, tmp_path):
    model = weights()
    ema = {f"model_ema.{name}": tensor for name, tensor in average_of(model).items()}
    (tmp_path / "in").mkdir()
    shard(tmp_path / "in", {f"model.{n}": t for n, t in model.items()} | ema, 3)
    output = tmp_path / "ema.safetensors"
    assert ckptool("extract-ema", tmp_path / "in", "-o", output).exit_code == 0
    wanted = {f"model.{name}": tensor for name, tensor in (model | average_of(model)).items()}
    assert_same_tensors(load_file(output), wanted)


def test_what_lies_beside_the_shards_is_seen(ckptool, tmp_path):
    model = weights()
    shard(tmp_path, model)
    torch.save(resumable(model)["optimizer"], tmp_path / "optimizer.pt")
    roles = {
        s["address"]: s["role"] for s in ckptool("inspect", tmp_path, "--json").json["sections"]
    }
    assert (roles["model"], roles["optimizer.pt"]) == ("model", "optimizer")


def test_promotion_of_several_files_is_refused(ckptool, tmp_path):
    (tmp_path / "in").mkdir()
    ema = {f"model_ema.{name}": tensor for name, tensor in average_of(weights()).items()}
    shard(tmp_path / "in", {f"model.{n}": t for n, t in weights().items()} | ema)
    done = ckptool("promote-ema", tmp_path / "in", "-o", tmp_path / "out.safetensors", "--json")
    assert done.json["error"]["code"] == "unsupported"
    assert "several files" in done.json["error"]["message"]


# ----------------------------------------------------------------------------------------- refusals


def edited(path, **changes):
    fields = json.loads(path.read_text())
    fields["weight_map"].update(changes)
    path.write_text(json.dumps(fields))


def test_a_missing_shard_is_named(tmp_path):
    shard(tmp_path, weights())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DamagedError, match="missing") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.path.name == "model-00002-of-00002.safetensors"


def test_a_name_that_its_shard_lacks_is_named(tmp_path):
    index = shard(tmp_path, weights())
    edited(index, ghost="model-00001-of-00002.safetensors")
    with pytest.raises(DamagedError, match="not") as caught:
        open_checkpoint(index)
    assert caught.value.address == "ghost"


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "", "..", "a\0b", 3, None])
def test_a_shard_is_a_file_of_the_folder(name, tmp_path):
    index = shard(tmp_path, weights())
    edited(index, ghost=name)
    with pytest.raises(DamagedError, match="no file of its folder"):
        open_checkpoint(index)


def test_a_name_twice_is_refused(tmp_path):
    index = shard(tmp_path, weights())
    index.write_text(
        index.read_text().replace('"weight_map": {', '"weight_map": {"head.bias": "x",')
    )
    with pytest.raises(DamagedError, match="twice"):
        open_checkpoint(index)


@pytest.mark.parametrize(
    "text", ['{"weight_map": [', '{"weight_map": []}', '{"weight_map": ' + "[" * 9999]
)
def test_what_is_no_index_is_refused(text, tmp_path):
    path = tmp_path / INDEX
    path.write_text(text)
    with pytest.raises(DamagedError):
        open_checkpoint(path)


def test_an_index_that_names_itself_ends(tmp_path):
    path = tmp_path / INDEX
    path.write_text(json.dumps({"weight_map": {"w": INDEX}}))
    with pytest.raises(UnknownFormatError, match="JSON"):
        open_checkpoint(path)


# --------------------------------------------------------------- what the index says and leaves out


def rules(output):
    return {f["rule"]: f for f in output.json["findings"]}


def as_it_should_be(folder):
    shard(folder, weights())


def drop_from_shard(folder):
    shard(folder, weights() | {"mtp.fc.weight": torch.ones(3, 3)})
    path = folder / "model-00002-of-00002.safetensors"
    save_file({n: v for n, v in load_file(path).items() if n != "mtp.fc.weight"}, path)


def rename_all(folder):
    index = shard(folder, weights(), 2)
    names = {
        name: f"model-{2 * i + 1:05d}-of-00012.safetensors" for i, name in enumerate(weights())
    }
    edited(index, **names)


def unlist_one(folder):
    index = shard(folder, weights())
    fields = json.loads(index.read_text())
    kept = {n: s for n, s in fields["weight_map"].items() if "00001" in s}
    index.write_text(json.dumps(fields | {"weight_map": kept}))


def of_another_save(folder):
    shard(folder, weights())
    save_file({"old.weight": torch.zeros(2)}, folder / "model-00003-of-00003.safetensors")


def in_one_file(folder):
    shard(folder, weights())
    save_file(weights(), folder / "model.safetensors")


def beside_other_files(folder):
    """Adapters, another format and another precision have files and indices of their own."""
    shard(folder, weights())
    save_file({"lora_A": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    save_file(weights(), folder / "model.fp16-00001-of-00002.safetensors")
    torch.save(weights(), folder / "pytorch_model.bin")


def lost_and_unlisted(folder):
    unlist_one(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


FOLDERS = {
    drop_from_shard: ("CK105", "error", "model-00002-of-00002.safetensors"),
    rename_all: ("CK104", "error", "; 4 other shards are missing too: "),
    unlist_one: ("CK108", "warning", "model-00002-of-00002.safetensors, which lies"),
    of_another_save: ("CK108", "warning", "model-00003-of-00003.safetensors"),
    in_one_file: ("CK108", "warning", "model.safetensors, which"),
    lost_and_unlisted: ("CK108", "warning", "names 1 shard, which is numbered to 2"),
    as_it_should_be: None,
    beside_other_files: None,
}


@pytest.mark.parametrize("operand", ["folder", "index"])
@pytest.mark.parametrize(
    ("make", "wanted"), FOLDERS.items(), ids=lambda v: getattr(v, "__name__", "")
)
def test_an_index_is_held_against_its_folder(make, wanted, operand, tmp_path, ckptool):
    make(tmp_path, weights()) if make is shard else make(tmp_path)
    output = ckptool("verify", tmp_path if operand == "folder" else tmp_path / INDEX, "--json")
    if wanted is None:
        assert (output.exit_code, rules(output)) == (0, {})
        return
    rule, severity, message = wanted
    found = rules(output)[rule]
    assert (found["severity"], message in found["message"]) == (severity, True)
    assert output.exit_code == (severity == "error")


def test_the_tensor_that_its_shard_lacks_is_the_address(tmp_path, ckptool):
    drop_from_shard(tmp_path)
    found = rules(ckptool("verify", tmp_path, "--json"))["CK105"]
    assert found["address"] == "mtp.fc.weight"


def in_both_shards(folder, *, is_mapped=True, added=0.0, suffix=".safetensors"):
    """Put one tensor into both shards, in the second one perhaps with other values."""
    index = shard(folder, weights(), suffix=suffix)
    name = next(iter(weights()))
    load, save = (load_file, save_file) if suffix == ".safetensors" else (torch.load, torch.save)
    for path, more in zip(sorted(folder.glob(f"*{suffix}")), (0.0, added), strict=True):
        save({**load(path), name: weights()[name] + more}, path)
    content = json.loads(index.read_text())
    if not is_mapped:
        del content["weight_map"][name]
    index.write_text(json.dumps(content))
    return name


@pytest.mark.parametrize("is_mapped", [True, False])
def test_a_tensor_of_two_values_in_two_shards_is_refused(is_mapped, tmp_path, ckptool):
    """transformers, diffusers and accelerate load whole shards: the last one counts."""
    in_both_shards(tmp_path, is_mapped=is_mapped, added=1.0)
    for command in (("extract-ema", "--ema", "@model", "-o", tmp_path / "o.pt"), ("inspect",)):
        done = ckptool(command[0], tmp_path, *command[1:], "--json")
        assert done.exit_code == 2
        said = "it is in model-00002-of-00002.safetensors and, with other values, in another"
        assert said in str(done.json["error"])


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("is_mapped", [True, False])
def test_a_tensor_of_one_value_in_two_shards_is_told(is_mapped, suffix, tmp_path, ckptool):
    """Whichever shard a loader takes it from, the model is the same."""
    name = in_both_shards(tmp_path, is_mapped=is_mapped, suffix=suffix)
    assert_same_tensors(load_state_dict(tmp_path, "model"), weights())
    for command in ("inspect", "verify"):
        found = rules(ckptool(command, tmp_path, "--json"))["CK127"]
        assert (found["severity"], name in found["message"]) == ("warning", True)
    out = tmp_path / "out"
    out.mkdir()
    assert ckptool("convert", tmp_path, "-o", out / "whole.safetensors").exit_code == 0
    assert_same_tensors(load_file(out / "whole.safetensors"), weights())


TAKING = (
    ("convert", "-o", "OUT"), ("extract-ema", "--ema", "@model", "-o", "OUT"),
    ("inspect", "--stats"), ("inspect", "--digests"), ("diff", "PATH"),
    ("average", "PATH", "-o", "OUT"), ("convert", "--explain", "PATH"),
    ("verify", "--against", "PATH"),
)  # fmt: skip


@pytest.mark.parametrize("command", TAKING, ids=" ".join)
@pytest.mark.parametrize("beside", [False, True])
def test_copies_of_many_bytes_are_compared_by_commands_that_take_values(
    command, beside, monkeypatch, tmp_path, ckptool
):
    monkeypatch.setattr(same_values, "AT_ONCE", 0)
    folder, out = tmp_path / "model", tmp_path / "out.safetensors"
    folder.mkdir()
    name = in_both_shards(folder, added=1.0)
    if beside:
        torch.save({"state": {}, "param_groups": []}, folder / "optimizer.pt")
    path = f"{folder}#@model" if command[0] == "convert" else folder
    words = {"PATH": path, "OUT": out}
    first, *more = (words.get(word, word) for word in command)
    done = ckptool(first, path, *more)
    assert (done.exit_code in {1, 2}, out.exists()) == (True, False)
    assert "with other values" in done + done.stderr
    assert name in done + done.stderr


def test_inspect_says_that_copies_of_many_bytes_were_not_compared(monkeypatch, tmp_path, ckptool):
    monkeypatch.setattr(same_values, "AT_ONCE", 0)
    name = in_both_shards(tmp_path, added=1.0)
    for command in ("inspect", "verify"):
        done = ckptool(command, tmp_path, "--json")
        said = rules(done)["CK127"]["message"]
        assert (done.exit_code, "compared when they are taken" in said, name in said) == (
            0, True, True,
        )  # fmt: skip
    done = ckptool("verify", tmp_path, "--bytes", "--json")
    assert (done.exit_code, rules(done)["CK101"]["address"]) == (1, name)


def test_equal_copies_of_many_bytes_are_taken(monkeypatch, tmp_path, ckptool):
    monkeypatch.setattr(same_values, "AT_ONCE", 0)
    in_both_shards(tmp_path)
    assert_same_tensors(load_state_dict(tmp_path, "model"), weights())
    assert ckptool("verify", tmp_path, "--bytes").exit_code == 0


def test_copies_behind_a_url_are_not_read_by_inspect(tmp_path, ckptool):
    values = torch.arange(1 << 20, dtype=torch.float32)
    index = shard(tmp_path, {"w": values, "x": values[:9].clone()})
    for path in tmp_path.glob("*.safetensors"):
        save_file({**load_file(path), "w": values}, path)
    with serving() as site:
        for path in tmp_path.iterdir():
            site.files[f"/{path.name}"] = path.read_bytes()
        url = f"{site.url}/{index.name}"
        assert "CK127" in rules(ckptool("inspect", url, "--json"))
        assert site.sent < values.nbytes
        assert ckptool("convert", url, "-o", tmp_path / "out.safetensors").exit_code == 0
        assert torch.equal(load_file(tmp_path / "out.safetensors")["w"], values)


def test_shards_that_view_the_same_bytes_again_and_again_are_refused(tmp_path, monkeypatch):
    """To compare a thousand views of all of a file would take a thousand readings of it."""
    monkeypatch.setattr(same_values, "MAX_COMPARED", 1 << 14)
    values = torch.randn(2000)
    tensors = {f"w{i}": values[i : i + 1000] for i in range(1000)}
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for name in names:
        torch.save(tensors, tmp_path / name)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {f"w{i}": names[i % 2] for i in range(1000)}}))
    read = 0

    class Counting(LocalFile):
        def read(self, offset, nbytes):
            nonlocal read
            read += nbytes
            return super().read(offset, nbytes)

    monkeypatch.setattr("ckptool.sources.places.LocalFile", Counting)
    with pytest.raises(RepetitionError, match="again and again"):
        open_checkpoint(index)
    assert read < 10 * sum((tmp_path / name).stat().st_size for name in names)
