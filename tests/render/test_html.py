"""HTML documents: they stand alone, can be read in both schemes, and say what the reports say."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.render.facts import TOP
from ckptool.render.html_charts import Box, DecadeAxis, Part, axis_of, squarified, treemap
from ckptool.render.html_document import COLORS, STYLE, TEXTS, page_as_html
from ckptool.render.html_verify import verdicts_to_html
from ckptool.render.page import Grid, line
from helpers import verdicts
from helpers.contrast import contrast
from helpers.paths import FIXTURES

EVIL = '</title><script>alert("x")</script><img src=x onerror=alert(1)>\x1b[31m'
VOID = {"meta", "line", "rect"}
KINDS = {
    "inspect": ("inspect", "{a}"),
    "inspect, histograms": ("inspect", "{a}", "--histogram"),
    "inspect, several": ("inspect", "{a}", "{b}"),
    "inspect, a run": ("inspect", FIXTURES / "resume"),
    "inspect, a part": ("inspect", "{a}#model"),
    "verify": ("verify", "{a}", "--require", "resume"),
    "verify, several": ("verify", "{a}", "{b}"),
    "verify, the best": ("verify", FIXTURES / "resume", "--best", "val_stats/loss:min"),
    "diff": ("diff", "{a}", "{b}"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints with names that would break out of a document."""
    folder = tmp_path_factory.mktemp("html")
    for name, value in (("a", 1.0), ("b", 2.0)):
        model = {f"blocks.{i}.weight": torch.full((8, 8), value + i) for i in range(4)}
        tree = {"model": {**model, EVIL: torch.full((64, 64), value)}, "ema": model, EVIL: EVIL}
        torch.save(tree | {"epoch": int(value)}, folder / f"{name}.pt")
    return folder


@pytest.fixture
def page(ckptool, folder):
    """``page("inspect")``: the document of a row of ``KINDS``."""

    def run(kind: str) -> str:
        names = {name: str(folder / f"{name}.pt") for name in ("a", "b")}
        args = [str(arg).format(**names) for arg in KINDS[kind]]
        done = ckptool(*args, "--format", "html")
        assert done.exit_code in {0, 1}, done
        return str(done)

    return run


class Elements(HTMLParser):
    """Checks that every element is closed, and collects names and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("kind", KINDS)
def test_documents_stand_alone_and_escape_everything(kind, page):
    text = page(kind)
    read = Elements()
    read.feed(text.replace("/>", ">"))
    assert not {"script", "link", "img", "iframe", "object"} & set(read.seen)
    assert read.seen.count("style") == 1
    assert not [name for name, _ in read.attributes if name in {"src", "href"} or name[:2] == "on"]
    assert not re.search(r"https?://|@import|url\(", text)
    assert "\x1b" not in text
    assert all(row.isprintable() for row in text.split("\n"))


@pytest.mark.parametrize("kind", KINDS)
def test_documents_fit_a_phone_and_a_sheet_of_paper(kind, page):
    text = page(kind)
    assert 'name="viewport" content="width=device-width' in text
    assert not re.search(r'<svg[^>]* width="\d{3,}"', text), "wider than a phone"
    assert text.count("<figcaption>") <= text.count("<figure>")


def test_inspect_shows_sizes_roles_training_and_findings(page):
    text = page("inspect")
    assert text.index("<h1>") < text.index("<figure>") < text.index("<h2>Sections</h2>")
    for said in ("model weights", "EMA weights", "<h2>EMA</h2>", "<h2>Tensors</h2>", "epoch 1"):
        assert said in text
    assert "<title>blocks: 1 KiB</title>" in text, "a rectangle for the layers of the model"
    assert "CK" in text.partition("<h2>Findings</h2>")[2]


def test_inspect_lists_in_html_what_it_lists_in_text(ckptool, folder):
    """The treemap needs the tensors; other forms and the JSON are as before."""
    assert "entries" not in ckptool("inspect", folder / "a.pt", "--json").json
    assert "blocks.0.weight" not in ckptool("inspect", folder / "a.pt")


def test_verify_draws_the_checks_of_each_family_in_words_and_in_bars():
    text = verdicts_to_html([verdicts.bad(), verdicts.good()])
    assert text.count("<article>") == 2
    assert "<title>1 of 2 passed</title>" in text
    assert 'aria-label="container: 1 passed, 1 failed, 1 not checked"' in text
    assert text.count('<rect class="failed"') == text.count('<rect class="passed"') == 3
    assert text.index("CK102 error") < text.index("CK404 warning") < text.index("CK409 note")


@pytest.mark.parametrize("second", ["same", "nan"])
def test_diff_draws_what_is_not_finite_and_nothing_for_equal_files(second, ckptool, tmp_path):
    values = torch.arange(4.0)
    torch.save({"layer.w": values}, tmp_path / "a.pt")
    torch.save({"layer.w": values.clone().fill_(float("nan"))}, tmp_path / "nan.pt")
    torch.save({"layer.w": values}, tmp_path / "same.pt")
    done = ckptool("diff", tmp_path / "a.pt", tmp_path / f"{second}.pt", "--format", "html")
    assert (done.count("<figure>") > 0) == (second == "nan")
    assert ("NOT FINITE" in done) == (second == "nan")


def test_values_are_drawn_on_request(ckptool, tmp_path):
    tensors = {"small": torch.tensor([-0.01, 0.01]), "large": torch.tensor([-100.0, 100.0]),
               "bad": torch.tensor([1.0, float("nan")]), "same": torch.ones(3)}  # fmt: skip
    torch.save({"model": tensors}, tmp_path / "a.pt")
    shown = ckptool("inspect", tmp_path / "a.pt", "--stats", "--format", "html")
    assert "<h2>Spread of the values</h2>" in shown
    for name, said in (("small", "0.01"), ("large", "100"), ("bad", "1 NOT FINITE"), ("same", "0")):
        assert f'aria-label="model/{name}: {said}"' in shown
    assert shown.count('<rect class="failed"') == 1
    assert "Spread" not in ckptool("inspect", tmp_path / "a.pt", "--format", "html")


def test_the_distance_of_the_ema_is_drawn_by_layer_on_request(ckptool):
    path = FIXTURES / "ema" / "plain_loop" / "last.pt"
    shown = ckptool("inspect", path, "--stats", "--format", "html")
    assert "<h2>EMA distance by layer</h2>" in shown
    layers = ckptool("inspect", path, "--stats", "--json").json["ema_layers"]
    far = {row["address"]: row["relative_l2"] for row in layers}
    assert far
    for address, distance in far.items():
        if distance:
            assert f'aria-label="{address or TOP}: {100 * distance:.3g} %"' in shown
    assert "EMA distance" not in ckptool("inspect", path, "--format", "html")
    assert "ema_layers" not in ckptool("inspect", path, "--json").json


@pytest.mark.parametrize("kind", ["inspect", "verify", "diff"])
def test_the_exit_code_is_that_of_the_text(kind, ckptool, folder):
    args = [str(arg).format(a=folder / "a.pt", b=folder / "b.pt") for arg in KINDS[kind]]
    assert ckptool(*args, "--format", "html").exit_code == ckptool(*args).exit_code


# ----------------------------------------------------------------------------------------- colours


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
SETTING = re.compile(r"(?<![\w-])(color|fill): var\(--([\w-]+)\)")


def used() -> dict[str, set[str]]:
    """Return the colours of the style by what has them: texts, and shapes of charts."""
    found: dict[str, set[str]] = {"text": set(), "shape": set()}
    for selector, settings in RULE.findall(STYLE):
        for setting, use in SETTING.findall(settings):
            is_text = setting == "color" or "text" in selector
            found["text" if is_text else "shape"].add(use)
    return found


def test_the_style_tells_which_colours_are_texts_and_shapes():
    """Else the test of their contrast would pass over some."""
    assert used()["text"] == set(TEXTS)
    assert used()["shape"] >= {"bar", "good", "warning", "error", "info", "edge", "tile-model"}


@pytest.mark.parametrize("scheme", COLORS)
def test_text_and_charts_have_enough_contrast(scheme):
    """4.5 for text and 3 for what charts are made of: WCAG 2.2, levels AA of 1.4.3 and 1.4.11.

    The areas of a treemap are told apart by their edges, so these need the contrast.
    """
    colors = COLORS[scheme]
    tiles = {use for use in used()["shape"] if use.startswith("tile-")}
    texts = [(use, "paper") for use in used()["text"]] + [("ink", tile) for tile in tiles]
    shapes = [(use, "paper") for use in used()["shape"] - tiles | {"edge"}]
    shapes += [("edge", tile) for tile in tiles]
    for pairs, least in ((texts, 4.5), (shapes, 3)):
        ratios = {pair: contrast(colors[pair[0]], colors[pair[1]]) for pair in pairs}
        assert {pair: ratio for pair, ratio in ratios.items() if ratio < least} == {}


def test_both_schemes_have_the_same_colours_and_the_style_no_other():
    assert COLORS["light"].keys() == COLORS["dark"].keys()
    known = {color for colors in COLORS.values() for color in colors.values()}
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", STYLE)) == known
    named = set(re.findall(r"var\(--([\w-]+)\)", STYLE))
    assert named == COLORS["light"].keys() - {"paper", "ink"} | {"paper", "ink"}


# ------------------------------------------------------------------------------------------ charts


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=30))
def test_areas_of_a_treemap_are_the_sizes(sizes):
    parts = [Part(str(i), size, "") for i, size in enumerate(sizes)]
    tiles = list(squarified(parts, Box(0, 0, 100, 380)))
    assert len(tiles) == len(parts)
    whole = sum(sizes)
    for part, tile in tiles:
        assert tile.width * tile.height / (100 * 380) == pytest.approx(part.size / whole, rel=1e-6)
        assert tile.x >= -1e-6
        assert tile.y >= -1e-6
        assert tile.x + tile.width <= 100 + 1e-6
        assert tile.y + tile.height <= 380 + 1e-6
    for (_, one), (_, other) in itertools.combinations(tiles, 2):
        across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
        down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
        assert across < 1e-6 or down < 1e-6, "two rectangles overlap"


def test_the_smallest_of_many_parts_are_one_rectangle():
    drawn = "".join(treemap([Part(f"t{i}", 1 + i, "1 B") for i in range(200)], "sizes"))
    assert drawn.count("<rect") == 61
    assert "and 140 more" in drawn
    assert ">t199<" in drawn
    assert ">t139<" not in drawn


@given(st.lists(st.floats(1e-300, 1e38, allow_subnormal=False), min_size=1, max_size=20))
def test_an_axis_of_decades_holds_its_values_in_order(values):
    axis = axis_of(values)
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)
    assert 2 <= len(axis.ticks) <= 7
    assert axis.ticks[0] == axis.last


def test_ticks_are_at_their_powers_of_ten():
    axis = DecadeAxis(-4, 0)
    assert [axis.at(10.0**tick) for tick in axis.ticks] == pytest.approx([100, 75, 50, 25, 0])
    assert [axis.label(tick) for tick in axis.ticks] == ["1", "0.1", "0.01", "0.001", "0.0001"]
    shares = axis_of([0.02, 3.0], in_percent=True)
    assert [shares.label(tick) for tick in shares.ticks] == ["1000 %", "100 %", "10 %", "1 %"]


def test_a_page_of_text_keeps_its_titles_columns_and_meanings():
    grid = Grid("left", "right", title="Parts", heads=("size",))
    grid.add_row(line("  ", ("a<b", "name")), "3 KiB")
    grid.add_row(line("      ", ("deeper", "name")))
    grid.add_note("and more")
    html = "\n".join(page_as_html(iter([line(("f.pt", "title"), "  zip"), grid])))
    assert html.startswith('<p><span class="title">f.pt</span>  zip</p>')
    assert "<summary><h2>Parts</h2></summary>" in html
    assert '<th class="right">size</th>' in html
    assert '<td><span class="name">a&lt;b</span></td>' in html
    assert '<td class="right" data-label="size">3 KiB</td>' in html
    assert '<td>&emsp;&emsp;<span class="name">deeper</span></td>' in html
    assert html.index("</table>") < html.index("<p>and more</p>")


def test_a_check_that_found_a_note_is_not_red():
    """Under "passed", a bar of failures would be a contradiction."""
    report = replace(verdicts.bad(), findings=verdicts.FINDINGS[1:], ok=True)
    html = verdicts_to_html([report])
    drawn = dict(re.findall(r'<rect class="(\w+)" x="[^"]*" y="2" width="([\d.]+)%"', html))
    assert {kind for kind, width in drawn.items() if float(width)} >= {"warned", "noted"}
    assert ">warning</span>" in html
    assert "1 warning, 1 note, 1 ok; 1 not checked" in html


def test_parts_of_an_optimizer_are_no_layers(ckptool, tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        net = torch.nn.Linear(2, 2)
        optimizer = torch.optim.Adam(net.parameters())
        torch.nn.init.constant_(net.weight, value)
        (net(torch.ones(1, 2)).sum() * value).backward()
        optimizer.step()
        state = {"model": {"net.weight": net.weight.data}, "optimizer": optimizer.state_dict()}
        torch.save(state, tmp_path / f"{name}.pt")
    html = ckptool("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--format", "html").stdout
    chart = html.partition("Drift by layer")[2].partition("</figure>")[0]
    assert "model/net" in chart
    assert "optimizer" not in chart
