"""``ckptool extract-ema``: names, formats, what it refuses, what it leaves behind."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
import tracemalloc
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file

from ckptool import load_state_dict
from helpers.making import average_of, resumable, save, weights
from helpers.paths import FIXTURES, unprivileged
from helpers.tensors import assert_same_tensor, assert_same_tensors, load, load_noted, storage_of

EXPORTED = FIXTURES / "ema" / "emacallback" / "exported.ckpt"

DOCUMENT = [
    "schema", "path", "output", "format", "written", "ema", "model", "names", "main_slot",
    "tensors", "bytes", "averaged", "from_model", "tied", "dropped", "findings", "file",
    "kind", "ties", "casts", "shards",
]  # fmt: skip
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "last.ckpt", weights(), epoch=3)


@pytest.fixture
def refused(refusing):
    return partial(refusing, "extract-ema")


# ------------------------------------------------------------------------------------- the document


def test_document_has_its_keys(path, ckptool, tmp_path):
    report = ckptool("extract-ema", path, "-o", tmp_path / "out.pt", "--json").json
    assert report.keys() >= {*DOCUMENT}
    assert report["schema"] == "ckptool/extract-ema/1"
    assert (report["path"], report["output"]) == (str(path), str(tmp_path / "out.pt"))
    assert (report["format"], report["written"]) == ("torch-zip", True)
    assert (report["ema"], report["model"]) == ("ema_state_dict", "state_dict")
    assert (report["tensors"], report["averaged"]) == (5, 5)
    assert report["bytes"] == sum(t.nbytes for t in weights().values())


def test_dry_run_says_the_same_and_writes_nothing(path, ckptool, tmp_path):
    args = ("extract-ema", path, "-o", tmp_path / "out.pt", "--json")
    planned = ckptool(*args, "--dry-run").json
    assert list(tmp_path.iterdir()) == [path]
    done = ckptool(*args).json
    assert planned == done | {"written": False}


def test_dry_run_is_told_in_words(path, ckptool):
    assert ckptool("extract-ema", path, "--dry-run").startswith("would write ")


# --------------------------------------------------------------------------------------- the output


def test_default_output_stands_beside_the_input(path, ckptool, tmp_path):
    assert ckptool("extract-ema", path, "--json").json["output"] == str(
        tmp_path / "last.ema.safetensors"
    )
    assert_same_tensors(load_file(tmp_path / "last.ema.safetensors"), average_of(weights()))


@pytest.mark.parametrize("suffix", TORCH_SUFFIXES)
def test_torch_suffixes_give_a_file_that_torch_trusts(suffix, path, ckptool, tmp_path):
    output = tmp_path / f"ema{suffix}"
    assert ckptool("extract-ema", path, "-o", output).exit_code == 0
    assert_same_tensors(torch.load(output, weights_only=True), average_of(weights()))
    assert_same_tensors(torch.load(output, mmap=True), average_of(weights()))


def test_suffix_chooses_in_either_case(path, ckptool, tmp_path):
    output = tmp_path / "ema.SAFETENSORS"
    assert ckptool("extract-ema", path, "-o", output).exit_code == 0
    assert_same_tensors(load_file(output), average_of(weights()))


def test_safetensors_say_that_they_are_for_torch(path, ckptool, tmp_path):
    """transformers refuses files without ``format``."""
    output = tmp_path / "ema.safetensors"
    ckptool("extract-ema", path, "-o", output)
    with safe_open(output, "pt") as opened:
        assert opened.metadata()["format"] == "pt"


def test_an_output_says_where_it_comes_from(path, ckptool, tmp_path):
    for suffix in (".safetensors", ".pt"):
        output = tmp_path / f"ema{suffix}"
        ckptool("extract-ema", path, "-o", output)
        origin = ckptool("inspect", output, "--json").json["provenance"]
        assert (origin["command"], origin["source"]) == ("extract-ema", path.name)
        assert (origin["ema"], origin["model"]) == ("ema_state_dict", "state_dict")


def test_names_keep_the_order_of_the_model_in_torch_files(path, ckptool, tmp_path):
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt")
    assert list(load(tmp_path / "ema.pt")) == list(weights())


def test_the_same_input_gives_the_same_bytes(path, ckptool, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    for suffix in (".pt", ".safetensors"):
        outputs = [tmp_path / f"{n}{suffix}" for n in range(2)]
        for output in outputs:
            ckptool("extract-ema", path, "-o", output)
        assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_wrap_puts_the_state_dict_under_a_key(path, ckptool, tmp_path):
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--wrap", "state_dict")
    (wrapped,) = torch.load(tmp_path / "ema.pt").items()
    assert wrapped[0] == "state_dict"
    assert_same_tensors(wrapped[1], average_of(weights()))


def test_what_was_extracted_is_read_again(path, ckptool, tmp_path):
    for suffix in (".safetensors", ".pt"):
        ckptool("extract-ema", path, "-o", tmp_path / f"ema{suffix}")
        report = ckptool("inspect", tmp_path / f"ema{suffix}", "--json").json
        assert report["tensors"]["count"] == 5


def test_nothing_but_the_output_is_left(path, ckptool, tmp_path):
    before = path.read_bytes()
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "ema.pt", path]
    assert path.read_bytes() == before


# -------------------------------------------------------------------------------------------- names


def wrapped(model, prefix="module."):
    return {prefix + name: tensor for name, tensor in model.items()}


def test_names_are_those_of_the_models_slot(ckptool, tmp_path):
    model, average = wrapped(weights()), average_of(weights())
    path = save(tmp_path / "ddp.pt", model, average)
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt")
    assert_same_tensors(load(tmp_path / "ema.pt"), wrapped(average))


def test_names_bare_are_without_wrappers(ckptool, tmp_path):
    average = average_of(weights())
    path = save(tmp_path / "ddp.pt", wrapped(weights(), "module._orig_mod."), wrapped(average))
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--names", "bare")
    assert_same_tensors(load(tmp_path / "ema.pt"), average)


def test_names_ema_are_those_that_are_stored(ckptool, tmp_path):
    average = wrapped(average_of(weights()), "net.")
    path = save(tmp_path / "net.pt", weights(), average)
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--names", "ema")
    assert_same_tensors(load(tmp_path / "ema.pt"), average)


def test_names_ema_get_what_the_average_lacks_under_their_prefix(ckptool, tmp_path):
    model, average = weights(), average_of(weights())
    stored = {f"net.{n}": t for n, t in average.items() if n != "steps"}
    path = save(tmp_path / "net.pt", model, stored)
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--names", "ema")
    assert_same_tensors(load(tmp_path / "ema.pt"), stored | {"net.steps": model["steps"]})


def test_bare_names_that_collide_are_refused(refused, tmp_path):
    model = {"module.a": torch.ones(2), "a": torch.zeros(2), "b": torch.ones(3)}
    path = save(tmp_path / "twice.pt", model)
    error = refused(path, "-o", tmp_path / "ema.pt", "--names", "bare")
    assert error["code"] == "ema-ambiguous"
    assert "'a'" in error["message"]


@pytest.mark.parametrize("prefix", ["net.", "net"])
def test_a_prefix_is_stripped(prefix, ckptool, tmp_path):
    """Of names that have it; as a whole component, also without its dot."""
    model = wrapped(weights(), "net.") | {"network.scale": torch.ones(1)}
    path = save(tmp_path / "net.pt", model)
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--strip-prefix", prefix)
    wanted = average_of(weights(**{"network.scale": torch.ones(1)}))
    assert_same_tensors(load(tmp_path / "ema.pt"), wanted)


def test_a_prefix_may_end_inside_a_component(ckptool, tmp_path):
    path = save(tmp_path / "net.pt", {f"ema_{n}": t for n, t in weights().items()})
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--strip-prefix", "ema_")
    assert_same_tensors(load(tmp_path / "ema.pt"), average_of(weights()))


def test_a_name_that_is_the_prefix_stays(ckptool, tmp_path):
    path = save(tmp_path / "net.pt", wrapped(weights(), "net.") | {"net": torch.ones(1)})
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--strip-prefix", "net")
    assert "net" in load(tmp_path / "ema.pt")


def test_stripped_names_that_collide_are_refused(refused, tmp_path):
    path = save(tmp_path / "twice.pt", weights() | wrapped(weights(), "net."))
    error = refused(path, "-o", tmp_path / "ema.pt", "--strip-prefix", "net.")
    assert error["code"] == "ema-ambiguous"
    assert "'stem.weight'" in error["message"]


def test_a_prefix_that_no_name_has_is_refused_with_those_nearby(refused, tmp_path):
    path = save(tmp_path / "net.pt", wrapped(weights(), "network.body."))
    error = refused(path, "-o", tmp_path / "ema.pt", "--strip-prefix", "netwrk.")
    assert error["code"] == "usage"
    assert "network." in error["hint"]


def test_names_without_end_are_not_searched_for_those_nearby(refused, tmp_path):
    path = save(tmp_path / "net.pt", wrapped(weights(), "a." * 20_000))
    tracemalloc.start()
    try:
        error = refused(path, "-o", tmp_path / "ema.pt", "--strip-prefix", "net.")
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    assert error["hint"] == "prefixes nearby: none"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_plan_tells_the_losses_of_tied_weights_as_the_run_does(suffix, ckptool, tmp_path):
    wide = torch.full((4, 4), 1e6)
    model = weights(**{"a.weight": wide, "b.weight": wide})
    average = average_of(model)
    average["b.weight"] = average["a.weight"]
    path = save(tmp_path / "last.pt", model, average)
    args = ("extract-ema", path, "-o", tmp_path / f"o{suffix}", "--dtype", "float16", "--force")
    plan = ckptool(*args, "--dry-run", "--json").json
    done = ckptool(*args, "--json").json
    assert done == plan | {"written": True}
    assert done["casts"]["overflowed"] == wide.numel()


def test_only_what_fits_is_written(path, ckptool, tmp_path):
    args = ("--match", "stem.*", "--match", "sc?le", "--json")
    report = ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", *args).json
    assert (report["tensors"], report["averaged"]) == (3, 3)
    wanted = {n: t for n, t in average_of(weights()).items() if n.startswith(("stem", "scale"))}
    assert_same_tensors(load(tmp_path / "ema.pt"), wanted)


def test_patterns_are_of_the_names_that_result(ckptool, tmp_path):
    path = save(tmp_path / "net.pt", wrapped(weights(), "net."))
    args = ("--strip-prefix", "net", "--match", "stem.*")
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", *args)
    assert sorted(load(tmp_path / "ema.pt")) == ["stem.bias", "stem.weight"]


def test_a_pattern_that_fits_nothing_is_refused_with_names_nearby(path, refused, tmp_path):
    error = refused(path, "-o", tmp_path / "ema.pt", "--match", "stem*", "--match", "head.wieght")
    assert (error["code"], "'head.wieght'" in error["message"]) == ("usage", True)
    assert "head.weight" in error["hint"]


# --------------------------------------------------------------------------- what the average lacks


def test_what_the_average_lacks_comes_from_the_model_and_is_named(ckptool, tmp_path):
    model, average = weights(), average_of(weights())
    del average["stem.bias"], average["steps"]
    path = save(tmp_path / "part.pt", model, average)
    report = ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--json").json
    assert report["from_model"] == ["stem.bias", "steps"]
    assert report["averaged"] == 3
    assert_same_tensors(load(tmp_path / "ema.pt"), model | average)


def test_what_the_model_lacks_is_left_out_and_named(ckptool, tmp_path):
    average = average_of(weights()) | {"extra": torch.ones(2)}
    path = save(tmp_path / "more.pt", weights(), average)
    report = ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--json").json
    assert report["dropped"] == ["extra"]
    assert "extra" not in load(tmp_path / "ema.pt")


def test_the_averages_keep_their_own_type(ckptool, tmp_path):
    """Extraction moves bytes: a float32 average of a bfloat16 model stays float32."""
    average = average_of(weights())
    model = {n: t.bfloat16() if t.is_floating_point() else t for n, t in weights().items()}
    path = save(tmp_path / "bf16.pt", model, average)
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt")
    assert_same_tensors(load(tmp_path / "ema.pt"), average)


# ---------------------------------------------------------------------------------- awkward tensors


@pytest.fixture
def tied(tmp_path):
    """A model whose decoder is its embedding, and an average of one of the two names."""
    shared = torch.randn(3, 2)
    model = weights(embed=shared, decoder=shared)
    average = average_of(weights(embed=shared))
    return save(tmp_path / "tied.pt", model, average), average | {"decoder": average["embed"]}


def test_ties_survive_in_torch_files(tied, ckptool, tmp_path):
    path, wanted = tied
    report = ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--json").json
    assert (report["tied"], report["ties"]) == ({"decoder": "embed"}, "shared")
    assert report["from_model"] == []
    written = load(tmp_path / "ema.pt")
    assert_same_tensors(written, wanted)
    assert storage_of(written["embed"]) == storage_of(written["decoder"])


@pytest.mark.parametrize("more", [(), ("--max-shard-size", "20B")])
def test_ties_of_names_that_metadata_has_for_itself_are_written(more, ckptool, tmp_path):
    """Noted, they would be lost: ``format`` is always pt there."""
    shared, names = torch.ones(3), ("w", "format", "total_size", "ckptool", "tied")
    tensors = dict.fromkeys(names, shared)
    torch.save(tensors, tmp_path / "last.pt")
    output = tmp_path / "out.safetensors"
    report = ckptool("convert", tmp_path / "last.pt", "-o", output, *more, "--json").json
    assert (report["tied"], report["tensors"]) == ({"tied": "w"}, 4)
    assert_same_tensors(load_state_dict(report["output"], "model"), tensors)


def test_ties_are_written_once_in_safetensors_and_noted(tied, ckptool, tmp_path):
    path, wanted = tied
    output = tmp_path / "ema.safetensors"
    report = ckptool("extract-ema", path, "-o", output, "--json").json
    assert (report["tied"], report["ties"]) == ({"decoder": "embed"}, "once")
    assert report["tensors"] == 6
    assert "decoder" not in load_file(output)
    assert_same_tensors(load_noted(output), wanted)


def test_ties_are_written_each_on_request(tied, ckptool, tmp_path):
    path, wanted = tied
    output = tmp_path / "ema.safetensors"
    report = ckptool("extract-ema", path, "-o", output, "--ties", "each", "--json").json
    assert (report["tied"], report["ties"]) == ({"decoder": "embed"}, "each")
    assert_same_tensors(load_file(output), wanted)


class Tied(torch.nn.Module):
    """A model that ties its decoder to its embedding."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 3))
        self.decoder = torch.nn.Linear(3, 5, bias=False)
        self.decoder.weight = self.embed.weight


@pytest.mark.parametrize("averaged", [("embed.weight", "decoder.weight"), ("decoder.weight",)])
def test_tied_modules_are_loaded_by_each_librarys_own_loader(averaged, ckptool, tmp_path):
    """With strict: torch wants all names, safetensors wants each tensor once."""
    model = Tied().state_dict()
    average = average_of({n: t for n, t in model.items() if n.startswith("body")})
    value = average_of(model)["embed.weight"]
    path = save(tmp_path / "tied.pt", model, average | dict.fromkeys(averaged, value))
    for name in ("ema.safetensors", "ema.pt"):
        ckptool("extract-ema", path, "-o", tmp_path / name)
    by_safetensors, by_torch, by_name = Tied(), Tied(), Tied()
    assert load_model(by_safetensors, tmp_path / "ema.safetensors") == (set(), [])
    by_torch.load_state_dict(torch.load(tmp_path / "ema.pt"))
    ckptool("extract-ema", path, "-o", tmp_path / "each.safetensors", "--ties", "each")
    by_name.load_state_dict(load_file(tmp_path / "each.safetensors"))
    for loaded in (by_safetensors, by_torch, by_name):
        assert_same_tensor(loaded.decoder.weight.detach(), value)
        assert loaded.decoder.weight is loaded.embed.weight


def test_a_tie_of_tensors_that_are_rearranged_survives(ckptool, tmp_path):
    shared = torch.arange(12.0).view(3, 4)[:, ::2]
    path = save(tmp_path / "tied.pt", weights(), weights(a=shared, b=shared))
    args = ("--ema", "ema_state_dict", "--model", "ema_state_dict", "--dtype", "bfloat16")
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", *args)
    written = load(tmp_path / "ema.pt")
    assert storage_of(written["a"]) == storage_of(written["b"])
    assert_same_tensor(written["a"], shared.bfloat16())


AWKWARD = {
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "sliced": torch.arange(24.0).view(4, 6)[1:3, ::2],
    "expanded": torch.arange(3.0).expand(2, 3),
    "channels_last": torch.arange(48.0).view(2, 3, 2, 4).to(memory_format=torch.channels_last),
    "scalar": torch.tensor(4.0),
    "empty": torch.empty(0, 3),
    "conjugated": torch.view_as_complex(torch.arange(8.0).view(4, 2)).conj(),
    "flags": torch.tensor([True, False]),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_awkward_tensors_have_their_values(suffix, ckptool, tmp_path):
    model = weights(**{name: tensor.clone() for name, tensor in AWKWARD.items()})
    average = average_of(weights()) | AWKWARD
    path, output = save(tmp_path / "awkward.pt", model, average), tmp_path / f"ema{suffix}"
    assert ckptool("extract-ema", path, "-o", output).exit_code == 0
    written = load_file(output) if suffix == ".safetensors" else load(output)
    assert_same_tensors(written, {n: t.resolve_conj() for n, t in average.items()})


def test_torch_files_keep_strides(ckptool, tmp_path):
    average = average_of(weights()) | AWKWARD
    path = save(tmp_path / "awkward.pt", weights(**AWKWARD), average)
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt")
    written = load(tmp_path / "ema.pt")
    for name in ("transposed", "sliced", "expanded", "channels_last"):
        assert written[name].stride() == AWKWARD[name].stride()


@pytest.mark.parametrize("name", ["plain.pt", "big_endian.pt", "no_crc.pt", "proto4.pt"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_every_kind_of_zip_gives_the_same_values(name, suffix, ckptool, tmp_path):
    """Named by hand: the file has one table of weights and no average."""
    folder, output = FIXTURES / "formats" / "torch_zip", tmp_path / f"out{suffix}"
    done = ckptool("extract-ema", folder / name, "-o", output, "--ema", "state_dict")
    assert done.exit_code == 0, done.stderr
    written = load_noted(output) if suffix == ".safetensors" else load(output)
    assert_same_tensors(written, load(folder / "plain.pt")["state_dict"])


def test_other_containers_give_their_average_too(ckptool, tmp_path):
    path = tmp_path / "legacy.pt"
    content = {"state_dict": weights(), "ema_state_dict": average_of(weights())}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt")
    assert_same_tensors(load(tmp_path / "ema.pt"), average_of(weights()))


def test_average_of_a_pickled_module_is_found(ckptool, tmp_path):
    path = FIXTURES / "formats" / "pickle" / "module_snapshot_proto4.pkl"
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt")
    assert_same_tensors(
        load(tmp_path / "ema.pt"), load_file(path.with_suffix(".averaged.safetensors"))
    )


# --------------------------------------------------------------------------------------- by address


def test_addresses_override_the_search(ckptool, tmp_path):
    model, average = weights(), average_of(weights())
    path = tmp_path / "own.pt"
    torch.save({"a": {"b": model}, "c": [average], "state_dict": weights()}, path)
    args = ("--ema", "c/0", "--model", "a/b")
    report = ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", *args, "--json").json
    assert (report["ema"], report["model"]) == ("c/0", "a/b")
    assert_same_tensors(load(tmp_path / "ema.pt"), average)


def test_a_prefix_is_an_address(ckptool, tmp_path):
    path = tmp_path / "inside.pt"
    average = average_of(weights())
    torch.save({"state_dict": weights() | wrapped(average, "copy.")}, path)
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--ema", "state_dict/copy.*")
    assert_same_tensors(load(tmp_path / "ema.pt"), average)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nowhere", "'nowhere'"),
        ("state_dict/nowhere", "'nowhere'"),
        ("epoch", "holds no tensors"),
        ("state_dict/no_such_prefix*", "no_such_prefix"),
    ],
)
def test_an_unknown_address_is_refused(address, said, path, refused, tmp_path):
    error = refused(path, "-o", tmp_path / "ema.pt", "--ema", address)
    assert (error["code"], error["address"]) == ("no-such-address", address)
    assert said in error["message"]


def test_a_place_without_tensors_names_places_with(path, refused, tmp_path):
    error = refused(path, "-o", tmp_path / "ema.pt", "--ema", "epoch")
    assert "state_dict" in error["hint"]


@pytest.fixture
def two_networks(tmp_path):
    """Of the discriminator's names, two of six are the generator's too."""
    odd = {f"blocks.{i}.weight": torch.full((5, i + 1), float(i)) for i in range(4)}
    discriminator = odd | {name: weights()[name] for name in ("stem.weight", "stem.bias")}
    path = tmp_path / "gan.pt"
    torch.save({"generator": weights(), "discriminator": discriminator}, path)
    return path, discriminator


def test_an_average_that_fits_nothing_of_the_model_that_was_named_is_refused(refused, tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"state_dict": weights(), "other": {"x": torch.ones(9), "y": torch.ones(8)}}, path)
    options = ("--ema", "other", "--model", "state_dict")
    error = refused(path, "-o", tmp_path / "ema.pt", *options)
    assert error["code"] == "ema-refused"
    assert "none of its 2 names" in error["message"]


def test_two_networks_are_never_mixed(two_networks, refused, tmp_path):
    error = refused(two_networks[0], "-o", tmp_path / "ema.pt", "--ema", "discriminator")
    assert error["code"] == "ema-refused"
    assert "2 of its 6" in error["message"]


def test_the_same_address_twice_takes_it_as_it_stands(two_networks, ckptool, tmp_path):
    path, discriminator = two_networks
    options = ("--ema", "discriminator", "--model", "discriminator")
    ckptool("extract-ema", path, "-o", tmp_path / "d.pt", *options)
    assert_same_tensors(load(tmp_path / "d.pt"), discriminator)


# -------------------------------------------------------------------------------- any other weights


@pytest.mark.parametrize("address", ["state_dict", "@model"])
def test_the_models_own_slot_is_taken_as_it_stands(address, path, ckptool, tmp_path):
    output = tmp_path / "raw.safetensors"
    report = ckptool("extract-ema", path, "-o", output, "--ema", address, "--json").json
    assert (report["ema"], report["kind"], report["from_model"]) == ("state_dict", "table", [])
    assert_same_tensors(load_file(output), weights())


def test_as_it_stands_is_said_in_words(path, ckptool):
    assert "state_dict unchanged" in ckptool("extract-ema", path, "--ema", "@model", "--dry-run")


def test_a_table_that_pairs_with_nothing_is_taken_as_it_stands(ckptool, tmp_path):
    other = {"x": torch.ones(9), "y": torch.ones(8)}
    path = tmp_path / "other.pt"
    torch.save({"state_dict": weights(), "other": other}, path)
    ckptool("extract-ema", path, "-o", tmp_path / "out.pt", "--ema", "other")
    assert_same_tensors(load(tmp_path / "out.pt"), other)


@pytest.mark.parametrize("address", ["", "@model"])
def test_a_bare_state_dict_is_converted(address, ckptool, tmp_path):
    path, output = tmp_path / "weights.bin", tmp_path / "weights.safetensors"
    torch.save(weights(), path)
    assert ckptool("extract-ema", path, "-o", output, "--ema", address).exit_code == 0
    assert_same_tensors(load_file(output), weights())


def test_a_safetensors_file_is_converted_to_torch(ckptool, tmp_path):
    path, output = tmp_path / "weights.safetensors", tmp_path / "weights.pt"
    save_file(weights(), path)
    assert ckptool("extract-ema", f"{path}#", "-o", output).exit_code == 0
    assert_same_tensors(torch.load(output), weights())


@pytest.mark.parametrize(
    ("address", "wanted"),
    [("@ema", average_of), ("ema_state_dict", average_of), ("@model", dict), ("state_dict", dict)],
)
def test_an_operand_names_a_place(address, wanted, path, ckptool, tmp_path):
    ckptool("extract-ema", f"{path}#{address}", "-o", tmp_path / "out.pt")
    assert_same_tensors(load(tmp_path / "out.pt"), wanted(weights()))


def test_an_operand_that_exists_is_a_path(ckptool, tmp_path):
    path = save(tmp_path / "last.ckpt#state_dict", weights())
    ckptool("extract-ema", path, "-o", tmp_path / "out.pt")
    assert_same_tensors(load(tmp_path / "out.pt"), average_of(weights()))


def test_weights_named_twice_are_refused(path, refused, tmp_path):
    error = refused(f"{path}#state_dict", "--ema", "@ema", "-o", tmp_path / "out.pt")
    assert error["code"] == "usage"


def test_no_model_to_take_is_refused(refused, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "nothing.pt")
    error = refused(tmp_path / "nothing.pt", "--ema", "@model")
    assert error["code"] == "ema-not-found"


# -------------------------------------------------------------------------------------------- casts


def as_type(tensors, dtype):
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "float8_e4m3fn"])
def test_floating_tensors_are_cast_and_others_stay(dtype, suffix, ckptool, tmp_path):
    model = weights(mask=torch.tensor([True, False]), wave=torch.ones(2, dtype=torch.complex64))
    path, output = save(tmp_path / "last.pt", model), tmp_path / f"ema{suffix}"
    wanted = as_type(average_of(model), getattr(torch, dtype))
    report = ckptool("extract-ema", path, "-o", output, "--dtype", dtype, "--json").json
    assert report["casts"]["dtype"] == dtype
    assert (report["casts"]["tensors"], report["casts"]["overflowed"]) == (4, 0)
    assert report["bytes"] == sum(t.nbytes for t in wanted.values())
    assert_same_tensors(load_file(output) if suffix == ".safetensors" else load(output), wanted)


def test_a_type_that_they_have_already_is_no_cast(path, ckptool, tmp_path):
    args = ("--dtype", "float32", "--json")
    report = ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", *args).json
    assert (report["casts"]["tensors"], report["casts"]["losses"]) == (0, {})
    assert_same_tensors(load(tmp_path / "ema.pt"), average_of(weights()))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_awkward_tensors_are_cast_to_their_values(suffix, ckptool, tmp_path):
    path = save(tmp_path / "awkward.pt", weights(**AWKWARD), average_of(weights()) | AWKWARD)
    output = tmp_path / f"ema{suffix}"
    ckptool("extract-ema", path, "-o", output, "--dtype", "bfloat16")
    written = load_noted(output) if suffix == ".safetensors" else load(output)
    wanted = as_type(average_of(weights()) | AWKWARD, torch.bfloat16)
    assert_same_tensors(written, {n: t.resolve_conj() for n, t in wanted.items()})


def test_casts_keep_strides_and_ties_in_torch_files(ckptool, tmp_path):
    shared = AWKWARD["channels_last"].clone(memory_format=torch.preserve_format)
    average = average_of(weights()) | {"a": shared, "b": shared, "part": shared[1]}
    path = save(tmp_path / "tied.pt", weights(**average), average)
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--dtype", "float16")
    written = load(tmp_path / "ema.pt")
    assert_same_tensors(written, as_type(average, torch.float16))
    assert written["a"].stride() == shared.stride()
    assert storage_of(written["a"]) == storage_of(written["b"]) == storage_of(written["part"])


@pytest.fixture
def extreme(tmp_path):
    """An average with values that float16 does not hold."""
    values = torch.tensor([1e5, -1e6, 1e-9, 1.0, 0.0, 65504.0])
    average = average_of(weights()) | {"head.weight": values, "scale": torch.tensor(1e-30)}
    model = weights(**{"head.weight": values + 1})
    return save(tmp_path / "extreme.pt", model, average), average


def test_a_cast_that_overflows_is_refused(extreme, refused, tmp_path):
    error = refused(extreme[0], "-o", tmp_path / "ema.pt", "--dtype", "float16")
    assert error["code"] == "ema-refused"
    assert "2 values of head.weight" in error["message"]
    assert "bfloat16" in error["hint"]


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_a_cast_loses_is_counted_and_named(suffix, options, extreme, ckptool, tmp_path):
    path, average = extreme
    output = tmp_path / f"ema{suffix}"
    args = ("--dtype", "float16", "--force", "--json", *options)
    report = ckptool("extract-ema", path, "-o", output, *args).json
    assert (report["casts"]["overflowed"], report["casts"]["vanished"]) == (2, 2)
    assert report["casts"]["losses"] == {
        "head.weight": {"overflowed": 2, "vanished": 1},
        "scale": {"overflowed": 0, "vanished": 1},
    }
    findings = {f["address"]: f["message"] for f in report["findings"] if f["rule"] == "CK801"}
    assert set(findings) == {"head.weight", "scale"}
    assert "overflow in the cast: 2 values" in findings["head.weight"]
    if not options:
        written = load_file(output) if suffix == ".safetensors" else load(output)
        assert_same_tensors(written, as_type(average, torch.float16))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float64"])
@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_what_is_not_finite_is_seen_in_a_cast(options, dtype, refused, ckptool, tmp_path):
    average = average_of(weights()) | {"stem.bias": torch.tensor([1, math.nan, math.inf, 2])}
    path = save(tmp_path / "nan.pt", weights(), average)
    args = (path, "-o", tmp_path / "ema.pt", "--dtype", dtype, *options)
    assert "2 values of stem.bias" in refused(*args)["message"]
    report = ckptool("extract-ema", *args, "--force", "--json").json
    assert [f["rule"] for f in report["findings"]] == ["CK301"]
    assert report["casts"]["overflowed"] == 0


def test_dry_run_refuses_a_cast_that_overflows(extreme, refused, tmp_path):
    error = refused(extreme[0], "-o", tmp_path / "ema.pt", "--dtype", "float16", "--dry-run")
    assert error["code"] == "ema-refused"


def test_many_findings_of_a_kind_are_folded(ckptool, tmp_path):
    many = weights(**{f"layer.{i:02}": torch.full((2,), 1e-30) for i in range(20)})
    path = save(tmp_path / "small.pt", many, {name: tensor * 0.9 for name, tensor in many.items()})
    args = ("-o", tmp_path / "ema.pt", "--dtype", "float16")
    said = ckptool("extract-ema", path, *args)
    assert said.count("CK801") == 6
    assert "and 15 more tensors" in said


@pytest.mark.parametrize("dtype", ["int8", "float8_e8m0fnu", "float4_e2m1fn_x2", "fp8"])
def test_a_type_that_is_none_to_cast_to_is_refused(dtype, path, refused, tmp_path):
    error = refused(path, "-o", tmp_path / "ema.pt", "--dtype", dtype)
    assert (error["code"], "bfloat16" in error["hint"]) == ("usage", True)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("fp16", "float16"), ("half", "float16"), ("bf16", "bfloat16"), ("BF16", "bfloat16"),
     ("torch.bfloat16", "bfloat16"), ("fp32", "float32"), ("torch.double", "float64")],
)  # fmt: skip
def test_a_type_has_the_names_that_people_use(typed, meant, path, ckptool, tmp_path):
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--dtype", typed)
    made = torch.load(tmp_path / "ema.pt")
    assert {str(t.dtype) for t in made.values() if t.is_floating_point()} == {f"torch.{meant}"}


# ------------------------------------------------------------------------------------------- shards


@pytest.fixture
def sharded(path, ckptool, tmp_path):
    """Shards of at most 48 bytes: the report and the index."""
    output = tmp_path / "out.safetensors"
    report = ckptool("extract-ema", path, "-o", output, "--max-shard-size", "48B", "--json").json
    return report, json.loads((tmp_path / "out.safetensors.index.json").read_text())


def test_shards_hold_everything_once(sharded, tmp_path):
    report, index = sharded
    files = [f"out-{at:05}-of-00003.safetensors" for at in (1, 2, 3)]
    assert [shard["file"] for shard in report["shards"]] == files
    assert report["output"] == str(tmp_path / "out.safetensors.index.json")
    found = {name: tensor for file in files for name, tensor in load_file(tmp_path / file).items()}
    assert_same_tensors(found, average_of(weights()))
    assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
    assert sum(shard["tensors"] for shard in report["shards"]) == len(index["weight_map"]) == 5
    assert all(shard["bytes"] <= 48 for shard in report["shards"])


def test_the_index_counts_the_bytes(sharded):
    report, index = sharded
    assert index["metadata"]["total_size"] == report["bytes"]


def test_nothing_but_shards_and_index_is_left(sharded, path, tmp_path):
    assert len(list(tmp_path.iterdir())) == 5
    assert path in tmp_path.iterdir()


def test_below_the_size_it_is_one_plain_file(path, ckptool, tmp_path):
    output = tmp_path / "out.safetensors"
    report = ckptool("extract-ema", path, "-o", output, "--max-shard-size", "1KB", "--json").json
    assert (report["output"], report["shards"]) == (str(output), [])
    assert_same_tensors(load_file(output), average_of(weights()))


def test_a_folder_of_shards_has_the_names_that_hugging_face_looks_for(path, ckptool, tmp_path):
    (tmp_path / "hub").mkdir()
    ckptool("extract-ema", path, "-o", tmp_path / "hub", "--max-shard-size", "48B")
    names = sorted(each.name for each in (tmp_path / "hub").iterdir())
    assert names[0] == "model-00001-of-00003.safetensors"
    assert names[-1] == "model.safetensors.index.json"


def test_shards_are_cast_and_their_size_is_what_is_written(path, ckptool, tmp_path):
    args = ("--max-shard-size", "30B", "--dtype", "bfloat16", "--json")
    report = ckptool("extract-ema", path, "-o", f"{tmp_path}/out.safetensors", *args).json
    assert all(shard["bytes"] <= 30 for shard in report["shards"])
    found = {
        name: tensor
        for shard in report["shards"]
        for name, tensor in load_file(tmp_path / shard["file"]).items()
    }
    assert_same_tensors(found, as_type(average_of(weights()), torch.bfloat16))


def test_ties_of_shards_are_noted_in_the_index(tied, ckptool, tmp_path):
    path, _ = tied
    ckptool("extract-ema", path, "-o", tmp_path / "out.safetensors", "--max-shard-size", "48B")
    index = json.loads((tmp_path / "out.safetensors.index.json").read_text())
    assert index["metadata"]["decoder"] == "embed"
    assert "decoder" not in index["weight_map"]


def split(ckptool, path, folder, size, *args):
    return ckptool("extract-ema", path, "-o", folder, "--max-shard-size", size, "--json", *args)


def test_a_set_that_is_replaced_leaves_no_shards(path, ckptool, tmp_path):
    """Of a larger set, which the new index does not name; nothing else in the folder goes."""
    folder = tmp_path / "hub"
    folder.mkdir()
    split(ckptool, path, folder, "16B")
    before = {each.name for each in folder.iterdir()}
    for name in ("model-00009-of-00009.safetensors", "other.safetensors"):
        (folder / name).write_bytes(b"mine")
    plan = split(ckptool, path, folder, "60B", "--force", "--dry-run").json
    assert before < {each.name for each in folder.iterdir()}
    done = split(ckptool, path, folder, "60B", "--force").json
    new = {shard["file"] for shard in done["shards"]} | {"model.safetensors.index.json"}
    mine = {"model-00009-of-00009.safetensors", "other.safetensors"}
    assert {each.name for each in folder.iterdir()} == new | mine
    assert plan["removed"] == done["removed"] == sorted(before - new)
    again = split(ckptool, path, folder, "60B", "--force").json
    assert again["removed"] == []


def test_an_index_removes_nothing_that_is_called_otherwise(path, ckptool, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    split(ckptool, path, folder, "16B")
    index = folder / "model.safetensors.index.json"
    kept = ("../last.ckpt", "model.safetensors.bak", "other-00001-of-00001.safetensors", 3)
    index.write_text(json.dumps({"weight_map": dict(enumerate(kept))}))
    (folder / kept[1]).write_bytes(b"mine")
    (folder / kept[2]).write_bytes(b"mine")
    assert split(ckptool, path, folder, "60B", "--force").json["removed"] == []
    assert path.exists()
    assert {kept[1], kept[2]} < {each.name for each in folder.iterdir()}


def test_shards_that_are_the_input_are_not_removed(path, refused, ckptool, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    split(ckptool, path, folder, "16B")
    args = ("-o", folder, "--max-shard-size", "60B", "--force", "--ema", "@model")
    assert "the input itself" in refused(folder, *args)["message"]


@pytest.mark.parametrize("ties", ["once", "each"])
def test_shards_are_loaded_by_hugging_face(ties, ckptool, tmp_path):
    """Into a module that ties; what is written once counts as missing with strict, so not so."""
    hub = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "hub"
    folder.mkdir()
    model = Tied().state_dict()
    average = average_of(model)
    average["decoder.weight"] = average["embed.weight"]
    path = save(tmp_path / "tied.pt", model, average)
    args = ("-o", folder, "--max-shard-size", "60B", "--ties", ties)
    assert ckptool("extract-ema", path, *args).exit_code == 0
    loaded = Tied()
    hub.load_torch_model(loaded, folder, strict=ties == "each")
    assert_same_tensors(loaded.state_dict(), average)


@pytest.mark.parametrize("form", ["out-00002-of-00003.safetensors", "out.safetensors.index.json"])
def test_no_file_of_a_set_is_replaced_without_force(form, path, refused, ckptool, tmp_path):
    (tmp_path / form).write_text("mine")
    args = (path, "-o", tmp_path / "out.safetensors", "--max-shard-size", "48B")
    assert refused(*args)["message"] == "the file exists"
    assert ckptool("extract-ema", *args, "--force").exit_code == 0
    assert (tmp_path / form).read_bytes() != b"mine"


def test_one_form_is_not_written_beside_the_other(path, refused, sharded, ckptool, tmp_path):
    """transformers takes the plain file, huggingface_hub the index."""
    output = tmp_path / "out.safetensors"
    assert refused(path, "-o", output, "--force")["path"].endswith("index.json")
    (tmp_path / "out.safetensors.index.json").unlink()
    assert ckptool("extract-ema", path, "-o", output).exit_code == 0
    error = refused(path, "-o", output, "--max-shard-size", "48B", "--force")
    assert error["path"] == str(output)


def test_shards_are_safetensors(path, refused, tmp_path):
    error = refused(path, "-o", tmp_path / "out.pt", "--max-shard-size", "5GB")
    assert error["code"] == "usage"


def test_dry_run_says_the_same_of_shards(path, ckptool, tmp_path):
    args = ("extract-ema", path, "-o", tmp_path / "out.safetensors", "--max-shard-size", "48B")
    planned = ckptool(*args, "--json", "--dry-run").json
    assert list(tmp_path.iterdir()) == [path]
    assert planned == ckptool(*args, "--json").json | {"written": False}


def test_an_average_that_is_not_finite_leaves_no_shard(refused, tmp_path):
    average = average_of(weights()) | {"scale": torch.tensor(math.nan)}
    path = save(tmp_path / "nan.pt", weights(), average)
    error = refused(path, "-o", tmp_path / "out.safetensors", "--max-shard-size", "48B")
    assert error["code"] == "ema-refused"


# ----------------------------------------------------------------------------------------- refusals


def test_two_averages_are_ambiguous_and_named(refused, ckptool, tmp_path):
    slow = {n: t * 0.5 if t.is_floating_point() else t for n, t in weights().items()}
    path = save(tmp_path / "two.pt", weights(), ema_slow=slow)
    error = refused(path, "-o", tmp_path / "ema.pt")
    assert error["code"] == "ema-ambiguous"
    assert "ema_state_dict" in error["message"]
    assert "ema_slow" in error["message"]
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--ema", "ema_slow")
    assert_same_tensors(load(tmp_path / "ema.pt"), slow)


def test_two_names_of_one_average_are_not(ckptool, tmp_path):
    average = average_of(weights())
    path = save(tmp_path / "alias.pt", weights(), average, callbacks={"EMA": {"ema": average}})
    report = ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--json").json
    assert report["ema"] == "ema_state_dict"


@pytest.mark.parametrize("slot", ["teacher", "momentum_encoder", "target_network"])
def test_other_kinds_are_taken_only_when_named(slot, refused, ckptool, tmp_path):
    path = tmp_path / "teacher.pt"
    torch.save({"state_dict": weights(), slot: average_of(weights())}, path)
    error = refused(path, "-o", tmp_path / "ema.pt")
    assert error["code"] == "ema-ambiguous"
    assert slot in error["message"]
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--ema", slot)
    assert_same_tensors(load(tmp_path / "ema.pt"), average_of(weights()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_an_average_that_is_not_finite_is_refused(value, dtype, refused, tmp_path):
    average = average_of(weights()) | {"stem.bias": torch.tensor([1, value, value, 2], dtype=dtype)}
    path = save(tmp_path / "nan.pt", weights(), average)
    error = refused(path, "-o", tmp_path / "ema.pt")
    assert error["code"] == "ema-refused"
    assert "2 values of stem.bias" in error["message"]


def test_force_takes_it_and_says_so(ckptool, tmp_path):
    average = average_of(weights()) | {"scale": torch.tensor(math.nan)}
    path = save(tmp_path / "nan.pt", weights(), average)
    report = ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--force", "--json").json
    (finding,) = report["findings"]
    assert (finding["severity"], finding["address"]) == ("warning", "scale")
    assert_same_tensors(load(tmp_path / "ema.pt"), average)


def test_a_model_that_is_not_finite_does_not_matter(ckptool, tmp_path):
    """Only the averages are taken from a run that diverged."""
    model = weights() | {"scale": torch.tensor(math.nan)}
    path = save(tmp_path / "nan.pt", model, average_of(weights()))
    assert ckptool("extract-ema", path, "-o", tmp_path / "ema.pt").exit_code == 0


def test_what_comes_from_a_model_that_is_not_finite_is_told(ckptool, tmp_path):
    model = weights(mean=torch.tensor([math.nan, 1.0, 2.0]))
    path = save(tmp_path / "nan.pt", model, average_of(weights()))
    report = ckptool("extract-ema", path, "-o", tmp_path / "ema.pt", "--json").json
    told = {(f["rule"], f["severity"], f["address"]) for f in report["findings"]}
    assert ("CK301", "warning", "mean") in told


def test_an_existing_file_is_kept_without_force(path, refused, ckptool, tmp_path):
    output = tmp_path / "ema.pt"
    output.write_text("mine")
    error = refused(path, "-o", output)
    assert (error["code"], "--force" in error["hint"]) == ("output", True)
    assert output.read_text() == "mine"
    assert ckptool("extract-ema", path, "-o", output, "--force").exit_code == 0
    assert_same_tensors(load(output), average_of(weights()))


def test_dry_run_refuses_an_existing_file_too(path, refused, tmp_path):
    (tmp_path / "ema.pt").write_text("mine")
    assert refused(path, "-o", tmp_path / "ema.pt", "--dry-run")["code"] == "output"


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_the_input_is_never_the_output(force, path, refused, tmp_path):
    (tmp_path / "link.ckpt").symlink_to(path)
    os.link(path, tmp_path / "hard.ckpt")
    for output in (path, tmp_path / "link.ckpt", tmp_path / "hard.ckpt"):
        error = refused(path, "-o", output, *force)
        assert "the input itself" in error["message"]


@pytest.mark.parametrize("name", ["ema", "ema.onnx", "ema.safetensors.bak", ".pt"])
def test_a_suffix_that_chooses_no_format_is_refused(name, path, refused, tmp_path):
    error = refused(path, "-o", tmp_path / name)
    assert error["code"] == "usage"
    assert ".safetensors" in error["hint"]


def test_wrap_is_refused_with_safetensors(path, refused, tmp_path):
    error = refused(path, "-o", tmp_path / "ema.safetensors", "--wrap", "model")
    assert error["code"] == "usage"


def test_a_missing_folder_is_refused(path, refused, tmp_path):
    error = refused(path, "-o", tmp_path / "no" / "such" / "ema.pt")
    assert "does not exist" in error["message"]
    assert error["hint"] == f"mkdir -p {tmp_path / 'no' / 'such'}"


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_takes_the_default_name(slash, path, ckptool, tmp_path):
    (tmp_path / "folder.pt").mkdir()
    ckptool("extract-ema", path, "-o", f"{tmp_path / 'folder.pt'}{slash}")
    output = tmp_path / "folder.pt" / "last.ema.safetensors"
    assert_same_tensors(load_file(output), average_of(weights()))


def test_a_folder_that_is_missing_is_refused(path, refused, tmp_path):
    error = refused(path, "-o", f"{tmp_path}/later/")
    assert error["hint"] == f"mkdir -p {tmp_path}/later"


def test_a_device_is_refused(path, refused, tmp_path):
    (tmp_path / "null.pt").symlink_to("/dev/null")
    assert "not a regular file" in refused(path, "-o", tmp_path / "null.pt", "--force")["message"]


def test_a_folder_that_may_not_be_written_is_refused(path, ckptool, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o555)
    ckptool("extract-ema", path, "-o", folder.with_name("warm.pt"))
    with path.open("rb") as opened, unprivileged():
        # Root reads /dev/fd; others may read their own file where it lies.
        source = f"/dev/fd/{opened.fileno()}" if os.geteuid() == 65534 else path
        output = ckptool("extract-ema", source, "-o", folder / "ema.pt", "--json")
    assert output.exit_code == 2
    assert output.json["error"]["message"] == "permission denied"


def test_a_full_disk_is_refused_and_leaves_nothing(path, refused, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(os, "fsync", full)
    assert "no space left" in refused(path, "-o", tmp_path / "ema.pt")["message"]


def quantized():
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def sparse():
    return torch.eye(3).to_sparse()


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch deprecates quantized tensors
@pytest.mark.parametrize("make", [quantized, sparse])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_tensors_without_plain_values_are_named_and_refused(make, suffix, refused, tmp_path):
    path = save(tmp_path / "odd.pt", weights(odd=make()), average_of(weights()))
    error = refused(path, "-o", tmp_path / f"ema{suffix}")
    assert (error["code"], error["address"]) == ("unsupported", "odd")


# -------------------------------------------------------------------------------------------- modes


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_of_the_umask(suffix, umask, path, ckptool, tmp_path):
    before = os.umask(umask)
    try:
        ckptool("extract-ema", path, "-o", tmp_path / f"ema{suffix}")
    finally:
        os.umask(before)
    assert mode(tmp_path / f"ema{suffix}") == 0o666 & ~umask


def test_a_replaced_file_keeps_its_mode(path, ckptool, tmp_path):
    output = tmp_path / "ema.pt"
    output.write_text("old")
    output.chmod(0o640)
    ckptool("extract-ema", path, "-o", output, "--force")
    assert mode(output) == 0o640


def test_a_link_is_written_through(path, ckptool, tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "latest.pt"
    link.symlink_to("real/ema.pt")
    ckptool("extract-ema", path, "-o", link)
    assert link.is_symlink()
    assert_same_tensors(load(tmp_path / "real" / "ema.pt"), average_of(weights()))


def test_an_input_that_cannot_be_written_is_read(ckptool, tmp_path):
    shutil.copy(EXPORTED, tmp_path / "read_only.ckpt")
    (tmp_path / "read_only.ckpt").chmod(0o444)
    output = tmp_path / "ema.pt"
    assert ckptool("extract-ema", tmp_path / "read_only.ckpt", "-o", output).exit_code == 0


def test_only_weights_are_taken(ckptool, tmp_path):
    path = save(tmp_path / "run.pt", weights(), **resumable(weights()))
    ckptool("extract-ema", path, "-o", tmp_path / "ema.pt")
    assert_same_tensors(load(tmp_path / "ema.pt"), average_of(weights()))
