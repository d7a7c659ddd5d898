"""The forms of a report of diff: each read by what reads such documents."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
import torch

from ckptool.render.diff_text import bar, fold_layers
from ckptool.render.diff_values import value_text
from ckptool.reports.diff import GroupDistance, ValueDifference
from helpers.published import assert_junit

EVIL = '<script>alert("x")</script>|`x`\x1b[31m&::error::%'
VOID = {"meta", "line", "rect"}


@pytest.fixture
def show(ckptool, tmp_path):
    """``show("html")``: checkpoints that differ in each way, with a name that would break out."""
    model = {f"blocks.{i}.weight": torch.ones(4, 4) for i in range(30)}
    one = {"model": {**model, EVIL: torch.ones(3)}, "epoch": 3, EVIL: EVIL, "gone": 1}
    other = {"model": {**{n: t * 1.01 for n, t in model.items()}, EVIL: torch.zeros(3)},
             "epoch": 4, EVIL: "y", "new": torch.ones(2)}  # fmt: skip
    for name, tree in (("a", one), ("b", other)):
        torch.save(tree, tmp_path / f"{name}.pt")

    def run(form, second="b"):
        done = ckptool("diff", tmp_path / "a.pt", tmp_path / f"{second}.pt", "--format", form)
        assert done.exit_code == int(second == "b"), done
        assert "\x1b" not in done
        return str(done)

    return run


class Elements(HTMLParser):
    """Checks that every element is closed, and collects names, attributes and texts."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes, self.texts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("second", ["a", "b"])
def test_html_stands_alone_and_escapes_everything(show, second):
    page = show("html", second)
    read = Elements()
    read.feed(page.replace("/>", ">"))
    assert read.open == []
    assert not {"script", "link", "img", "iframe"} & set(read.seen)
    assert not re.search(r"https?://|@import|url\(", page)
    assert not [name for name, _ in read.attributes if name in {"src", "href"} or name[:2] == "on"]
    assert page.startswith("<!doctype html>")


def test_html_says_on_a_phone_what_each_cell_is(show):
    """Where there is no room for columns, rows are paragraphs; captions are not drawn."""
    page = show("html")
    assert 'data-label="max abs">' in page
    assert page.count("<figcaption>") == page.count("<figure>") == 2


@pytest.mark.parametrize("form", ["text", "md", "html", "junit", "github"])
def test_the_whole_has_a_name_where_it_differs(ckptool, tmp_path, form):
    torch.save([torch.ones(2), 1], tmp_path / "a.pt")
    torch.save({0: torch.ones(2), 1: 1}, tmp_path / "b.pt")
    done = ckptool("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--format", form)
    assert "(root)" in done
    names = ckptool("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--name-only")
    assert names.split("\n") == ["(root)", ""]


def test_html_shows_the_answer_charts_and_evidence(show):
    page = show("html")
    assert page.count("<figure>") == 2
    assert "Drift by layer" in page
    assert "Histogram of relative change" in page
    assert page.index("different") < page.index("<svg") < page.index("the worst first")
    assert 'name="viewport"' in page
    assert "@media print" in page
    assert "&lt;script&gt;" in page


def test_markdown_tables_have_as_many_cells_as_heads(show):
    text = show("md")
    assert text.startswith("### different: ")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    counts = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert counts == {9, 4}
    assert "<script" not in re.sub(r"`[^`]*`", "", text).replace("\\<", "")


def test_markdown_escapes_no_colon_that_means_nothing(show):
    lines = show("md").splitlines()
    assert [line for line in lines if line.startswith("- tensors: 31 compared")]
    assert not [line for line in lines if r"\:" in line and "script" not in line]


def test_markdown_says_how_many_rows_it_leaves_out(ckptool, tmp_path):
    for name, value in (("a", 0.0), ("b", 1.0)):
        torch.save({f"w{i}": torch.full((2,), value) for i in range(60)}, tmp_path / f"{name}.pt")
    said = ckptool("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--format", "md")
    assert "… and 10 more." in said


def test_junit_has_a_failure_for_each_section_that_differs(show):
    (suite,) = ET.fromstring(show("junit"))
    failed = {case.get("name") for case in suite if case.find("failure") is not None}
    assert {"model", "epoch", "gone", "new"} <= failed
    assert int(suite.get("failures")) == len(failed)
    assert int(suite.get("tests")) == len(list(suite))
    assert ET.fromstring(show("junit", "a"))[0].get("failures") == "0"


@pytest.mark.slow
def test_junit_is_what_jenkins_takes(show):
    assert_junit(show("junit"))
    assert_junit(show("junit", "a"))


def test_github_gets_commands_of_one_line_each(show):
    lines = show("github").splitlines()
    assert 1 < len(lines) <= 10
    assert all(re.match(r"::error title=[^:,]*::", line) for line in lines)
    assert show("github", "a").startswith("::notice ")


# ---------------------------------------------------------------------------------------- the terms


@pytest.mark.parametrize(
    ("change", "length"), [(None, 0), (0.0, 0), (1e-9, 1), (1e-4, 8), (1.0, 16), (1.9, 16)]
)
def test_a_bar_is_as_long_as_its_decade(change, length):
    assert len(bar(change)) == length


def layer(name, change):
    return GroupDistance(name, "", 1, int(change > 0), 0, 4, change, change)


def test_layers_of_one_kind_share_lines_and_show_their_worst():
    layers = [layer("stem", 0.1), *(layer(f"h.{i}", i / 100) for i in range(24)), layer("out", 0.2)]
    folded = list(fold_layers(layers))
    assert [f.label for f in folded[:3]] == ["stem", "h.0…1", "h.2…3"]
    assert (folded[2].worst.relative_l2, folded[2].worst.differing) == (0.03, 2)
    assert len(folded) == 14


def test_a_backslash_before_a_bar_does_not_end_a_cell_of_markdown(ckptool, tmp_path):
    name = r"a\|<img src=x>"
    torch.save({name: torch.ones(1), "url": "x"}, tmp_path / "a.pt")
    torch.save(
        {name: torch.zeros(1), "url": "https://example.org www.example.org"}, tmp_path / "b.pt"
    )
    said = ckptool("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--format", "md")
    rows = [line for line in said.splitlines() if "img" in line and line.startswith("|")]
    assert all(r"a\\x7c<img src=x>" in row for row in rows)
    assert rows
    assert "https://" not in said
    assert "www.example" not in said


def test_folding_layers_takes_no_square_of_the_length_of_a_name():
    name = "1" * 100_000 + "x"
    layers = [GroupDistance(name, "", 1, 1, 0, 1, 0.0, None)] * 2
    begun = time.process_time()
    assert len(list(fold_layers(layers))) == 2
    assert time.process_time() - begun < 5


def test_numbers_have_as_few_digits_as_tell_them_apart():
    def told(one, other):
        return value_text(ValueDifference("lr", "value", "", one, other))

    assert told(0.0005, 0.00034549150281252633) == "0.0005 → 0.000345492"
    assert told(1.0, 1.0 + 1e-8) == "1 → 1.00000001"
    assert told(0.1, 0.1 + 2**-56) == f"0.1 → {0.1 + 2**-56!r}"


def test_weights_come_first_and_the_state_of_the_optimizer_later(ckptool, tmp_path):
    state = {"state": {i: {"exp_avg": torch.ones(2)} for i in range(6)},
             "param_groups": [{"params": list(range(6))}]}  # fmt: skip
    one = {"optimizer": state, "model": {f"h.{i}.w": torch.ones(2) for i in range(2)}}
    other = {
        "optimizer": state | {"state": {i: {"exp_avg": torch.ones(2) * 9} for i in range(6)}},
        "model": {f"h.{i}.w": torch.ones(2) * 1.01 for i in range(2)},
    }
    torch.save(one, tmp_path / "a.pt")
    torch.save(other, tmp_path / "b.pt")
    said = ckptool("diff", tmp_path / "a.pt", tmp_path / "b.pt")
    layers, tensors = re.split(r"\nTensors.*\n", said)
    assert tensors.split()[0] == "model/h.0.w"
    assert "optimizer/state" not in layers.partition("\nLayers")[2]
    assert "model: 0.99 % (relative L2), max abs 0.01" in said


@pytest.fixture
def flipped(tmp_path):
    """Checkpoints of ten large tensors, of which one small bias has its sign turned."""
    model = {f"h.{i}.w": torch.ones(8, 8) for i in range(9)} | {"bias": torch.ones(4)}
    counters = {"bn.num_batches_tracked": torch.tensor(3), "step": torch.tensor(3.0)}
    for run, sign in (("one", 1), ("other", -1)):
        (tmp_path / run).mkdir()
        tree = {"model": {**model, **counters, "bias": model["bias"] * sign}, "global_step": 1}
        torch.save(tree, tmp_path / run / "step_1.pt")
    return tmp_path


@pytest.mark.parametrize("form", ["text", "md", "html", "github"])
def test_a_distance_says_over_which_tensors_it_is(form, flipped, ckptool):
    files = [flipped / run / "step_1.pt" for run in ("one", "other")]
    said = str(ckptool("diff", *files, "--format", form)).replace("\\", "").replace("%25", "%")
    over = "over the 1 of 10 floating-point tensors with other values"
    assert f"model: 200 % (relative L2, {over}), max abs 2" in said


def test_below_tables_stands_that_equal_tensors_are_in_no_norm(flipped, ckptool):
    note = "without the equal ones"
    files = [flipped / run / "step_1.pt" for run in ("one", "other")]
    assert ckptool("diff", *files, "--stat").count(note) == 1
    assert note in ckptool("diff", *files, "--format", "html").partition("<footer>")[2]
    assert note in ckptool("diff", flipped / "one", flipped / "other")
    only = ckptool("diff", *files, "--match", "*bias")
    assert note not in only
    assert "200 % (relative L2), max abs 2" in only


def test_the_document_counts_the_tensors_of_a_distance(flipped, ckptool):
    files = [flipped / run / "step_1.pt" for run in ("one", "other")]
    report = ckptool("diff", *files, "--json").json
    groups = [report["summary"], *report["summary"]["roles"], report["sections"][0]]
    assert [(g["relative_l2"], g["measured"], g["floating"]) for g in groups] == [(2.0, 1, 10)] * 3
    (row,) = ckptool("diff", flipped / "one", flipped / "other", "--json").json["checkpoints"]
    assert (row["relative_l2"], row["measured"], row["floating"]) == (2.0, 1, 10)
