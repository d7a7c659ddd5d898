"""``convert --explain``: each tensor by content, rules that make it, and never a false word."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from ckptool.commands.explain import explain_conversion
from ckptool.comparison import explaining
from ckptool.comparison.explained_rules import Step
from ckptool.comparison.explanations import Same
from ckptool.comparison.rows import can_become
from ckptool.comparison.tilings import likeness
from ckptool.contents.selection import Operand
from ckptool.dtypes import BY_NAME
from ckptool.formats import open_checkpoint
from ckptool.render.explain_text import show_explain
from ckptool.reports.write import ExplainedTensor, ExplainReport
from helpers.conversions import CONVERSIONS, Conversion, random
from helpers.paths import contents
from helpers.tensors import assert_same_tensors, load
from helpers.thinned import one_in

EACH = pytest.mark.parametrize("make", CONVERSIONS, ids=lambda make: make.__name__)


@pytest.fixture
def explained(ckptool, tmp_path):
    """Explain a conversion; gives the report."""

    def run(conversion: Conversion) -> dict:
        torch.save(conversion.source, tmp_path / "old.pt")
        save_file(conversion.result, tmp_path / "new.safetensors")
        done = ckptool("convert", "--explain", tmp_path / "old.pt", tmp_path / "new.safetensors",
                       "--json")  # fmt: skip
        is_whole = done.json["explained"] == len(done.json["tensors"])
        assert done.exit_code == (0 if is_whole else 1), done.stdout
        return done.json

    return run


@EACH
def test_a_conversion_as_a_project_does_it(make, explained):
    conversion = make()
    report = explained(conversion)
    rows = {row["name"]: row for row in report["tensors"]}
    assert rows.keys() == conversion.result.keys()
    odd = {name for name, row in rows.items() if row["kind"] == "unexplained"}
    assert odd == conversion.unexplained
    assert report["explained"] == len(rows) - len(odd)
    not_made = {name for name, row in rows.items() if not row["by_rules"]}
    assert not_made == conversion.unexplained | conversion.doubled


@EACH
def test_the_rules_make_what_was_explained(make, explained, ckptool, tmp_path):
    """Torch judges: the tensors are equal in values, shape and dtype."""
    conversion = make()
    report = explained(conversion)
    (tmp_path / "rules.toml").write_text(report["rules"])
    done = ckptool("convert", tmp_path / "old.pt", "--rules", tmp_path / "rules.toml",
                   "-o", tmp_path / "made.pt")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    made = load(tmp_path / "made.pt")
    rest = conversion.unexplained | conversion.doubled
    wanted = {name: tensor for name, tensor in conversion.result.items() if name not in rest}
    found = {name: made[name].contiguous() for name in wanted}
    assert_same_tensors(found, wanted)
    assert made.keys() - wanted.keys() <= {n for each in report["tensors"] for n in each["sources"]}


def test_most_of_all_conversions_is_explained(explained):
    reports = [explained(make()) for make in CONVERSIONS]
    total = sum(len(report["tensors"]) for report in reports)
    assert sum(report["explained"] for report in reports) >= 0.95 * total


def test_the_layers_share_their_rules(explained):
    """As a person would write them."""
    rules = explained(CONVERSIONS[0]())["rules"]
    assert "transformer.h.*.attn.c_attn.weight=model.layers.*.attn.q.weight," in rules
    assert "h.0" not in rules
    rules = explained(CONVERSIONS[5]())["rules"]
    assert "=model.layers.*.mlp.experts.down_proj@+0" in rules
    assert ".experts.#.w2.weight=" in rules


def test_a_rotary_permutation_is_named(explained):
    report = explained(CONVERSIONS[-1]())
    row = next(row for row in report["tensors"] if row["kind"] == "unexplained")
    assert row["note"] == "it has the rows of layers.0.attention.wk.weight in another order" or (
        row["note"] == "it has the rows of layers.0.attention.wq.weight in another order"
    )


# ------------------------------------------------------------------------------- never a false word

BITS = [(make, nth) for make in CONVERSIONS for nth in range(60)]


@pytest.mark.parametrize(("make", "nth"), one_in(12, BITS),
                         ids=lambda v: v.__name__ if callable(v) else str(v))  # fmt: skip
def test_one_changed_bit_is_never_explained(make, nth, explained):
    conversion = make()
    names = list(conversion.result)
    if nth >= len(names):
        pytest.skip("the conversion has fewer tensors")
    changed = {name: tensor.clone() for name, tensor in conversion.result.items()}
    raw = changed[names[nth]].view(-1).view(torch.uint8)
    raw[(nth * 37) % len(raw)] ^= 1 << nth % 8
    report = explained(conversion._replace(result=changed))
    odd = {row["name"] for row in report["tensors"] if row["kind"] == "unexplained"}
    assert names[nth] in odd
    twins = conversion.doubled  # a copy of the tensor that was changed is now the only one
    assert odd - twins <= conversion.unexplained | {names[nth]}


def test_an_expert_that_differs_makes_the_stack_unexplained(explained):
    experts = {f"e.{at}.w": random(2, 3) for at in range(4)}
    stack = torch.stack(list(experts.values()))
    stack[2, 1, 1] += 1
    report = explained(Conversion(experts, {"w": stack}))
    assert [row["kind"] for row in report["tensors"]] == ["unexplained"]
    assert report["unused"] == list(experts)


def test_a_cast_that_rounds_otherwise_is_none(explained):
    weight = random(64, 64)
    towards_zero = (weight.view(torch.int32) & ~0x1FFF).view(torch.float32)
    result = {"a": weight.half(), "b": towards_zero.half()}
    report = explained(Conversion({"a": weight}, result))
    assert [row["kind"] for row in report["tensors"]] == ["copy", "unexplained"]
    assert report["tensors"][0]["cast"] == "float32"


# -------------------------------------------------------------------------------- names and options


def test_a_new_name_that_another_tensor_had(explained, ckptool, tmp_path):
    source = {"a": random(3, 4), "b": random(3, 4), "c": random(6, 4)}
    first, second = source["c"].chunk(2)
    result = {"a": source["b"], "b": source["a"].t(), "c": first, "d": second}
    conversion = Conversion(source, {n: t.contiguous() for n, t in result.items()})
    report = explained(conversion)
    assert all(row["by_rules"] for row in report["tensors"])
    (tmp_path / "rules.toml").write_text(report["rules"])
    ckptool("convert", tmp_path / "old.pt", "--rules", tmp_path / "rules.toml",
            "-o", tmp_path / "made.safetensors")  # fmt: skip
    done = ckptool("diff", tmp_path / "made.safetensors", tmp_path / "new.safetensors")
    assert done.exit_code == 0


def test_names_that_no_rule_can_write(explained):
    weight = random(2, 2)
    source = {"a:0": weight, "b": weight + 1}
    report = explained(Conversion(source, {"x": weight.clone(), "y": weight + 1}))
    rows = {row["name"]: row for row in report["tensors"]}
    assert (rows["x"]["kind"], rows["x"]["by_rules"]) == ("copy", False)
    assert rows["x"]["note"] == "its names cannot be written in a rule; --rules leaves the old ones"
    assert rows["y"]["by_rules"]


def test_parts_of_a_tensor_and_the_rest_dropped(explained):
    weight = random(10, 4)
    report = explained(
        Conversion({"w": weight}, {"x": weight[2:5].clone(), "y": weight[7:9].clone()})
    )
    assert [row["kind"] for row in report["tensors"]] == ["slice", "slice"]
    assert all(row["by_rules"] for row in report["tensors"])
    assert "w=w/rest0:2,x:3,w/rest1:2,y:2,w/rest2:1" in report["rules"]


def test_shapes_and_types_without_values(explained):
    tensors = {
        "none": torch.zeros(0, 3), "one": torch.tensor(1.5), "flag": torch.tensor([True]),
        "count": torch.tensor(3), "complex": torch.ones(2, dtype=torch.complex64),
    }  # fmt: skip
    report = explained(Conversion(tensors, {f"x.{n}": t.clone() for n, t in tensors.items()}))
    assert report["explained"] == len(tensors)


def test_the_text_is_a_file_of_rules(ckptool, tmp_path):
    conversion = CONVERSIONS[0]()
    torch.save(conversion.source, tmp_path / "a.pt")
    torch.save({**conversion.result, "extra": random(7)}, tmp_path / "b.pt")
    done = ckptool("convert", "--explain", tmp_path / "a.pt", tmp_path / "b.pt")
    assert done.exit_code == 1, "the answer is no: the rules make only a part"
    total = len(conversion.result) + 1
    note = f"note: no rule makes 1 of {total} tensors, which is not explained by its values\n"
    assert done.stderr == note
    assert "# unexplained: extra: no tensor has its values" in done.stdout
    (tmp_path / "rules.toml").write_text(done.stdout)
    made = ckptool("convert", tmp_path / "a.pt", "--rules", tmp_path / "rules.toml",
                   "-o", tmp_path / "c.pt")  # fmt: skip
    assert made.exit_code == 0, made.stderr


def test_key_paths_of_both(ckptool, tmp_path):
    weight = random(3, 3)
    torch.save({"model": {"a": weight}, "ema": {"a": random(3, 3)}}, tmp_path / "a.pt")
    torch.save({"state_dict": {"x.a": weight.t().contiguous()}, "n": 1}, tmp_path / "b.pt")
    done = ckptool("convert", "--explain", f"{tmp_path / 'a.pt'}#model",
                   f"{tmp_path / 'b.pt'}#state_dict", "--json")  # fmt: skip
    (row,) = done.json["tensors"]
    assert (row["sources"], row["transposed"]) == (["a"], True)


def test_nothing_is_written(ckptool, tmp_path):
    torch.save({"a": random(2)}, tmp_path / "a.pt")
    before = contents(tmp_path)
    done = ckptool(
        "convert", "--explain", tmp_path / "a.pt", tmp_path / "a.pt", "-o", tmp_path / "b"
    )
    assert (done.exit_code, contents(tmp_path)) == (2, before)
    done = ckptool("convert", tmp_path / "a.pt")
    assert done.exit_code == 2
    assert "Missing option" in done.stderr


def test_from_python(tmp_path):
    torch.save({"a": random(2, 2)}, tmp_path / "a.pt")
    report = explain_conversion(Operand(tmp_path / "a.pt"), Operand(tmp_path / "a.pt"))
    assert (report.explained, report.rules) == (1, "")


# -------------------------------------------------------------------------------------------- parts


def test_names_that_are_alike():
    one = "h.3.attn.qkv.weight"
    assert likeness(one, "layers.3.attn.q.weight") > likeness(one, "layers.2.attn.q.weight")
    assert likeness(one, "layers.3.attn.q.weight") > likeness(one, "layers.3.mlp.q.bias")


def test_a_rule_as_it_is_written():
    assert Step("split", ("a",), ("b", "c"), (3, 1), "@1").text() == "a=b:3,c:1@1"
    assert Step("transpose", ("a",)).text() == "a"
    assert Step("join", ("a", "b"), ("c",), axis="@+0").text() == "a,b=c@+0"


def test_only_floats_are_cast(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        ref = checkpoint.tree["a"]
    assert can_become(ref, BY_NAME["bfloat16"])
    assert not can_become(ref, BY_NAME["int64"])
    assert Same is not None


def test_the_text_of_an_answer():
    rows = (
        ExplainedTensor("a", "copy", ("x",), True, "float32", True),
        ExplainedTensor("b\n", "unexplained", (), False, None, False, "no tensor has its values"),
        ExplainedTensor("c", "copy", ("x",), False, None, False, "another copy of x"),
    )
    report = ExplainReport("old.pt", "new.pt", rows, 2, ("y",), '[[rule]]\nrename = "x=a"\n')
    lines = [line.text for line in show_explain([report])]
    assert lines == [
        "# new.pt from old.pt", "# explained: 2 of 3 tensors, 1 of them by these rules",
        "#   1 copy, transposed, cast from float32", "#   1 unexplained", "#   1 copy",
        "# unexplained: b\\x0a: no tensor has its values", "# not by rules: c: another copy of x",
        "# not used: y", "[[rule]]", 'rename = "x=a"',
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------- too many


def explanation_of(tmp_path, source, result):
    for name, tensors in (("old.pt", source), ("new.pt", result)):
        torch.save(tensors, tmp_path / name)
    return explain_conversion(Operand(tmp_path / "old.pt"), Operand(tmp_path / "new.pt"))


@pytest.mark.parametrize(
    ("limit", "value"),
    [("explaining.MAX_PAIRS", 50), ("rows.MAX_ROWS", 20)],
)
def test_where_too_much_is_left_the_rest_is_told_as_not_searched(
    limit, value, tmp_path, monkeypatch
):
    """Pairs of tensors are counted, and rows: whole tensors are found before."""
    monkeypatch.setattr(f"ckptool.comparison.{limit}", value)
    monkeypatch.setattr("ckptool.comparison.rows.A_ROW", 1 << 20)
    source = {f"a.{i}": random(5, 3) for i in range(20)}
    result = {f"b.{i}": source[f"a.{i}"] for i in range(5)} | {
        f"c.{i}": random(3 + i % 2, 3) for i in range(15)
    }
    report = explanation_of(tmp_path, source, result)
    assert {row.name for row in report.tensors if row.kind == "copy"} == {*list(result)[:5]}
    notes = {row.note for row in report.tensors if row.kind == "unexplained"}
    assert notes == {explaining.NOT_SEARCHED}


def test_names_of_equal_tensors_are_compared_with_a_few(tmp_path, monkeypatch):
    calls = 0

    def counted(one, other):
        nonlocal calls
        calls += 1
        return likeness(one, other)

    monkeypatch.setattr(explaining, "likeness", counted)
    source = {f"a.{i}": torch.zeros(3) for i in range(300)}
    report = explanation_of(tmp_path, source, {f"b.{i}": torch.zeros(3) for i in range(300)})
    assert report.explained == 300
    assert calls <= 300 * explaining.MAX_ALIKE


def test_of_many_equal_tensors_none_is_used_for_two_dtypes(tmp_path):
    """Each dtype has a list of its own of the same tensors, of which the other has used some."""
    half, other = torch.zeros(4, dtype=torch.float16), torch.zeros(4, dtype=torch.bfloat16)
    result = {"a": other} | {f"x.{i}": half.clone() for i in range(100)}
    result |= {f"b.{i}": other.clone() for i in range(150)}
    source = {f"s.{i:03d}": torch.zeros(4) for i in range(300)}
    report = explanation_of(tmp_path, source, result)
    used = [name for row in report.tensors for name in row.sources]
    assert report.explained == len(used) == len(set(used)) == 251
    assert len(report.unused) == 49


def test_rules_that_would_be_too_many_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("ckptool.comparison.explained_rules.MAX_MATCHES", 100)
    source = {f"{letter}.w": random(3) for letter in "abcdefghijklm"}
    report = explanation_of(tmp_path, source, {f"new_{n}": t for n, t in source.items()})
    assert (report.explained, report.rules) == (13, "")
    assert {row.note for row in report.tensors} == {
        "no rules make it, or they would be too many to write"
    }


def test_experts_are_found_by_digest_not_one_by_one(tmp_path, monkeypatch):
    """Stacks of each layer, cut into experts: the work grows with them, not with their square."""
    looked = 0
    look_at = explaining._Search._look_at

    def counted(self, count):
        nonlocal looked
        looked += count
        look_at(self, count)

    monkeypatch.setattr(explaining._Search, "_look_at", counted)
    source = {f"layers.{i}.experts": random(16, 3, 2) for i in range(8)}
    result = {
        f"layers.{i}.experts.{e}.w": stack[e].clone()
        for i, stack in enumerate(source.values())
        for e in range(16)
    }
    assert explanation_of(tmp_path, source, result).explained == 128
    assert looked < 40 * 128
