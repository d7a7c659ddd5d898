"""An address that leads nowhere is answered with the one that was meant, if one is like it."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.pt"
    weights = {"encoder.weight": torch.zeros(2, 3), "encoder.bias": torch.zeros(2)}
    ema = {name: tensor + 1 for name, tensor in weights.items()}
    torch.save({"state_dict": weights, "callbacks": {"EMA": {"ema/weights": ema}}}, path)
    return path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("state_dcit", "did you mean state_dict?"),
        ("callbacks/EMa", "did you mean callbacks/EMA?"),
        ("callbacks/EMA/ema~1weight", "did you mean callbacks/EMA/ema~1weights?"),
        ("@emo", "the roles are @ema and @model"),
        ("nothing-like-it", "the keys of the root: state_dict, callbacks"),
        ("callbacks/EMA/nothing", "the keys of callbacks/EMA: ema/weights"),
    ],
)
def test_what_was_meant_is_named(typed, meant, path, ckptool):
    for refused in (
        ckptool("extract-ema", path, "--ema", typed, "--dry-run"),
        ckptool("convert", f"{path}#{typed}", "-o", path.with_name("out.pt")),
        ckptool("diff", path, f"{path}#{typed}"),
    ):
        assert refused.exit_code == 2
        assert f"error: {path}: {typed}: no such place" in refused.stderr
        assert meant in refused.stderr


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("inspect", "https:/host/a.pt"), "hint: a URL has two slashes: https://host/a.pt\n"),
        (("convert", "run.pt", "-o"), "hint: ckptool convert --help\n"),
        (("strip", "run.pt"), "hint: ckptool convert FILE --drop optimizer -o OUT\n"),
        (("frobnicate",), "hint: ckptool --help\n"),
        (("verify", "--latest-valid", "run.pt"), "hint: ckptool verify run.pt checks this file"),
        (("extract-ema", "run.pt", "--match", "blocks.*", "-o", "a.pt"), "begin with encoder"),
        (("extract-ema", "run.pt", "--match", "encoder.*", "--strip-prefix", "encoder",
          "-o", "a.pt"),
         "no tensor's name without 'encoder' fits 'encoder.*'"),
    ],
)  # fmt: skip
def test_the_hint_is_the_next_thing_to_type(args, hint, path, ckptool, monkeypatch):
    monkeypatch.chdir(path.parent)
    refused = ckptool(*args)
    assert refused.exit_code == 2
    assert hint in refused.stderr
