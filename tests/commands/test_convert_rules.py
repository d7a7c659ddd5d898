"""``convert --split``, ``--join``, ``--transpose``, ``--rules``, judged by torch's operations."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file

from ckptool.errors import UsageError
from ckptool.plans.rule_patterns import Axis, Pattern
from ckptool.plans.rules import Split, parse_rule, parse_rule_file
from ckptool.tree.reshaping import lifted, lowered, transposed
from helpers.paths import contents
from helpers.tensors import assert_same_tensors, load
from helpers.thinned import examples

DIM = 4


def layer(at: int) -> dict[str, torch.Tensor]:
    def made(number: int, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(10 * at + number))

    return {
        f"h.{at}.attn.qkv.weight": made(0, 3 * DIM, DIM),
        f"h.{at}.attn.qkv.bias": made(1, 3 * DIM),
        f"h.{at}.attn.out.weight": made(2, DIM, DIM),
        f"h.{at}.mlp.up.weight": made(3, 2 * DIM, DIM),
    }


MODEL = {**layer(0), **layer(1), "embed": torch.arange(12.0).view(3, 4)}


@pytest.fixture(params=["pt", "safetensors"])
def converted(request, ckptool, tmp_path):
    """Convert ``MODEL``, or another one, and load it; the report is in ``report``."""

    def run(*args, model=MODEL) -> dict[str, torch.Tensor]:
        torch.save(model, tmp_path / "in.pt")
        output = tmp_path / f"out.{request.param}"
        done = ckptool("convert", tmp_path / "in.pt", "-o", output, *args, "--force", "--json")
        assert done.exit_code == 0, done.stdout
        run.report = done.json
        return load(output) if request.param == "pt" else load_file(output)

    return run


@pytest.fixture
def refused(ckptool, tmp_path):
    def run(*args, model=MODEL) -> str:
        torch.save(model, tmp_path / "in.pt")
        before = contents(tmp_path)
        done = ckptool("convert", tmp_path / "in.pt", "-o", tmp_path / "out.pt", *args, "--json")
        assert (done.exit_code, contents(tmp_path)) == (2, before), done.stdout
        return done.json["error"]["message"]

    return run


# ----------------------------------------------------------------------------------- each operation


def test_a_fused_weight_is_split(converted):
    found = converted("--split", "*.attn.qkv.*=*.attn.q.*,*.attn.k.*,*.attn.v.*")
    wanted = {name: tensor for name, tensor in MODEL.items() if "qkv" not in name}
    for at in (0, 1):
        for kind in ("weight", "bias"):
            parts = MODEL[f"h.{at}.attn.qkv.{kind}"].chunk(3)
            wanted |= {f"h.{at}.attn.{n}.{kind}": p for n, p in zip("qkv", parts, strict=True)}
    assert_same_tensors(found, wanted)
    assert (converted.report["reshaped"], converted.report["renamed"]) == (12, 0)


def test_what_was_split_is_joined_again(converted):
    names = "*.attn.q.*,*.attn.k.*,*.attn.v.*"
    found = converted("--split", f"*.attn.qkv.*={names}", "--join", f"{names}=*.attn.qkv.*")
    assert_same_tensors(found, MODEL)
    assert list(found) == list(MODEL) or sorted(found) == sorted(MODEL)


def test_parts_of_other_sizes(converted):
    """Grouped queries: more of them than keys and values."""
    found = converted("--split", "*.qkv.weight=*.q:8,*.kv")
    assert_same_tensors(
        {name: found[name] for name in ("h.0.attn.q", "h.0.attn.kv")},
        {"h.0.attn.q": MODEL["h.0.attn.qkv.weight"][:8],
         "h.0.attn.kv": MODEL["h.0.attn.qkv.weight"][8:]},
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_part_of_size_zero_is_written(suffix, ckptool, tmp_path):
    """It was taken for a meta tensor, which has no values."""
    torch.save({"w": torch.ones(4, 3)}, tmp_path / "a.pt")
    out = tmp_path / f"out{suffix}"
    done = ckptool("convert", tmp_path / "a.pt", "--split", "w=none:0,all:4", "-o", out)
    assert done.exit_code == 0, done.stderr
    found = load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)
    assert_same_tensors(found, {"none": torch.ones(0, 3), "all": torch.ones(4, 3)})


@pytest.mark.parametrize("axis", ["@1", "@-1"])
def test_along_another_dimension(converted, axis):
    found = converted("--split", f"embed=left:1,right{axis}")
    assert torch.equal(found["left"], MODEL["embed"][:, :1])
    assert torch.equal(found["right"], MODEL["embed"][:, 1:])
    again = converted("--split", f"embed=left:1,right{axis}", "--join", f"right,left=e{axis}")
    assert torch.equal(again["e"], torch.cat([MODEL["embed"][:, 1:], MODEL["embed"][:, :1]], 1))


def test_experts_are_stacked_and_unstacked(converted):
    experts = {f"moe.{e}.w": torch.full((2, 3), float(e)) for e in range(11)}
    found = converted("--join", "moe.#.w=moe.w@+0", model=experts)
    assert_same_tensors(found, {"moe.w": torch.stack(list(experts.values()))})
    found = converted("--split", "moe.w=moe.#.w@+0", model=found)
    assert_same_tensors(found, experts)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_a_new_dimension_anywhere(converted, axis):
    parts = {"a": torch.randn(2, 3), "b": torch.randn(2, 3)}
    found = converted("--join", f"a,b=c@+{axis}", model=parts)
    assert_same_tensors(found, {"c": torch.stack(list(parts.values()), axis)})


def test_a_transpose(converted):
    """Conv1D of GPT-2 has its weights as (in, out)."""
    found = converted("--transpose", "*.up.weight,embed", "--dtype", "bf16")
    for name, tensor in MODEL.items():
        is_turned = name.endswith("up.weight") or name == "embed"
        assert torch.equal(found[name], (tensor.t() if is_turned else tensor).bfloat16()), name


def test_a_transpose_of_a_join_of_parts_of_sparse_views(converted):
    base = torch.arange(240.0).view(4, 6, 10)
    model = {"a": base[::2, 1:, ::3], "b": base[1::2, :5, 1:9:2]}
    found = converted("--join", "a,b=c@2", "--transpose", "a,b", model=model)
    assert "c" not in model
    assert torch.equal(found["c"], torch.cat([model["a"], model["b"]], 1).transpose(-1, -2))


# ------------------------------------------------------------------------------------- rule files

RULES = """
every_tensor = true

[[rule]]
split = "*.qkv.*=*.q.*,*.k.*,*.v.*"
[[rule]]
transpose = "*.weight"
[[rule]]
map = '^h\\.=layers.'
[[rule]]
map = '^embed$=embed.weight'
"""


def test_the_rules_of_a_file_come_in_their_order(converted, tmp_path):
    (tmp_path / "rules.toml").write_text(RULES)
    found = converted("--rules", tmp_path / "rules.toml", "--map", "^layers=model.layers")
    q = MODEL["h.1.attn.qkv.weight"][:DIM].t()
    assert torch.equal(found["model.layers.1.attn.q.weight"], q)
    assert torch.equal(found["embed.weight"], MODEL["embed"])


def test_a_tensor_that_no_rule_fits(refused, tmp_path):
    (tmp_path / "rules.toml").write_text(RULES)
    message = refused("--rules", tmp_path / "rules.toml", model={**MODEL, "pos_ids": torch.ones(2)})
    assert message == "every_tensor is set, and no rule fits 1 of them, such as 'pos_ids'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("split = 1", "a file of rules has [[rule]] tables"),
        ("[[rule]]\nsplit = 1", "a [[rule]] has one key"),
        ("[[rule]]\nsplit = 'a=b'\njoin = 'a=b'", "a [[rule]] has one key"),
        ("[[rule]]\nswap = 'a'", "no rule is called 'swap'"),
        ("[[rule]", "no TOML"),
        ("[[rule]]\nsplit = 'a'", "'a' is not GLOB=NAME,NAME"),
        ("[" * 100_000, "no TOML"),
    ],
)
def test_a_file_that_holds_no_rules(refused, tmp_path, text, message):
    (tmp_path / "rules.toml").write_text(text)
    assert message in refused("--rules", tmp_path / "rules.toml")


def test_other_bytes_are_no_rules(refused, tmp_path):
    (tmp_path / "rules.toml").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in refused("--rules", tmp_path / "rules.toml")
    assert refused("--rules", tmp_path / "nowhere.toml")


# --------------------------------------------------------------------- nothing is lost or doubled


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--split", "*.qkv.*=*.q.*,*.k.*"), None),  # halves: odd names, but all is there
        (("--split", "*.qkv.weight=*.a,*.b,*.c,*.d,*.e"), "5 parts do not make a dimension of 12"),
        (("--split", "*.qkv.weight=*.q:4,*.k:4"), "2 parts do not make a dimension of 12"),
        (("--split", "*.qkv.weight=*.q:13,*.k"), "2 parts do not make a dimension of 12"),
        (("--split", "*.qkv.weight=*.q,*.q,*.v"), "two tensors would be called 'h.0.attn.q'"),
        (("--split", "*.qkv.weight=*.attn.out.weight,*.k"), None),
        (("--split", "*.attn.qkv.weight=*.attn.out.weight,*.k"), "two tensors would be called"),
        (("--split", "*.qkv.weight=q,k,v"), "all names of a rule have the same number of *"),
        (("--split", "*.nothing=*.q,*.k"), "no tensor's name fits '*.nothing'"),
        (("--split", "*.qkv.weight=*.q,*.k@2"), "a tensor of 2 dimensions has no dimension 2"),
        (("--split", "embed=a,b,c@+1"), "3 parts do not make a dimension of 4"),
        (("--split", "a,b=c,d"), "one pattern is split"),
        (("--split", "embed=e.#,f"), "a name with # is the only one"),
        (("--join", "*.qkv.weight,*.none=*.x"), "no tensor's name fits '*.none'"),
        (("--join", "h.0.attn.*.weight,h.1.attn.*.weight=all.*"), None),
        (("--join", "h.*.attn.qkv.bias,h.*.1=x.*"), "no tensor's name fits 'h.*.1'"),
        (("--join", "h.0.*.qkv.bias,embed=x"), "all names of a rule have the same number of *"),
        (("--join", "h.0.attn.qkv.bias,embed=x"), "cannot be joined"),
        (("--join", "h.#.attn.qkv.bias,embed=x"), "a pattern with # is the only one"),
        (("--join", "embed=a,b"), "joined to one"),
        (("--transpose", "*.bias"), "has no transpose"),
        (("--transpose", "nothing"), "no tensor's name fits 'nothing'"),
        (("--split", "##=a"), "more than one #"),
        (("--split", "embed"), "is not GLOB=NAME,NAME"),
    ],
)
def test_a_rule_that_does_not_fit(refused, converted, args, message):
    if message is None:
        found = converted(*args)
        assert sum(t.numel() for t in found.values()) == sum(t.numel() for t in MODEL.values())
        return
    error = refused(*args)
    assert message in error
    assert error.startswith(args[0])


def test_a_part_that_is_missing_is_no_join(refused):
    model = {"0.q": torch.ones(2), "0.k": torch.ones(2), "1.q": torch.ones(2)}
    assert "there is no '1.k' to join" in refused("--join", "*.q,*.k=*.qk", model=model)
    numbered = {"e.0": torch.ones(2), "e.2": torch.ones(2)}
    assert "there is no 'e.1' to join" in refused("--join", "e.#=e", model=numbered)


def test_dtypes_that_differ_are_not_joined(refused):
    model = {"a": torch.ones(2), "b": torch.ones(2).half()}
    assert "cannot be joined" in refused("--join", "a,b=c", model=model)


@pytest.mark.parametrize("more", [("--drop", "optimizer"), ("--whole",)])
def test_rules_are_for_weights(ckptool, tmp_path, more):
    torch.save({"w": MODEL, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "in.pt")
    done = ckptool("convert", tmp_path / "in.pt", *more, "--join", "a,b=c", "-o", tmp_path / "o.pt")
    assert "--join is for weights" in done.stderr


# ----------------------------------------------------------------------------------- any tensors


@given(data=st.data())
@examples(60)
def test_any_split_is_the_one_of_torch(ckptool, tmp_path_factory, data):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if len(shape) > 1 and data.draw(st.booleans()):
        whole = whole.transpose(0, -1)
    axis = data.draw(st.integers(-whole.dim(), whole.dim() - 1))
    cuts = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    sizes, left = [], whole.shape[axis]
    for cut in cuts:
        if cut < left:
            sizes.append(cut)
            left -= cut
    sizes.append(left)
    names = [f"p{at}" for at in range(len(sizes))]
    sized = ",".join(f"{name}:{size}" for name, size in zip(names, sizes, strict=True))
    folder = tmp_path_factory.mktemp("rules")
    torch.save({"whole": whole}, folder / "in.pt")
    for step in (
        ("in.pt", "parts.safetensors", "--split", f"whole={sized}@{axis}"),
        ("parts.safetensors", "back.pt", "--join", f"{','.join(names)}=whole@{axis}"),
        ("in.pt", "both.pt", "--split", f"whole={sized}@{axis}", "--join",
         f"{','.join(names)}=whole@{axis}"),
    ):  # fmt: skip
        done = ckptool("convert", folder / step[0], "-o", folder / step[1], *step[2:])
        assert done.exit_code == 0, done.stderr
    parts = whole.split(sizes, axis)
    assert_same_tensors(load_file(folder / "parts.safetensors"),
                        {n: p.contiguous() for n, p in zip(names, parts, strict=True)})  # fmt: skip
    assert torch.equal(load(folder / "back.pt")["whole"], whole)
    assert torch.equal(load(folder / "both.pt")["whole"], whole)


# -------------------------------------------------------------------------------------- patterns


def test_what_stands_for_the_marks():
    pattern = Pattern("h.*.moe.#.w*")
    assert pattern.match("h.3.moe.12.w1") == (("3", "1"), 12)
    assert pattern.match("h.3.moe.x.w1") is None
    assert pattern.match("h.3.moe.01.w1") is None
    assert pattern.filled(("5", "2"), 7) == "h.5.moe.7.w2"
    assert Axis(-1).of(3) == 2


def test_sizes_of_names():
    split = Split("a=b:3,c")
    assert [part[2] for part in split._parts(5)] == [3, 2]
    assert not split.fits("b")


def test_rules_are_parsed_by_their_option():
    assert parse_rule("transpose", "a").fits("a")
    assert parse_rule_file("[[rule]]\ntranspose='a'").rules[0].fits("a")
    with pytest.raises(UsageError, match="no rule is called 'x'"):
        parse_rule("x", "a")


def test_a_dimension_comes_and_goes(tmp_path):
    from ckptool import open_checkpoint

    torch.save({"a": torch.arange(6.0).view(2, 3)}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        ref = checkpoint.tree["a"]
    assert lowered(lifted(ref, 1), 1).shape == transposed(transposed(ref)).shape == (2, 3)
    assert lifted(ref, 2).shape == (2, 3, 1)
