"""HTML documents as a browser shows them: nothing is too wide, cut or loaded, also on paper.

They need a Chromium (``helpers/browser.py`` says where it is looked for), and are skipped without.
"""

from __future__ import annotations

import pytest
import torch

from helpers.browser import found, running
from helpers.output import run_inside
from helpers.paths import FIXTURES

WIDTHS = (360, 800, 1400)  # pixels: a phone, half a screen, a screen
SMALLEST = 11  # pixels of a letter
LONG = "encoder.layers.{}.self_attention.in_proj_of_a_name_that_does_not_fit.weight"
RESUME = sorted((FIXTURES / "resume").glob("*.pth"))

# What is wrong with the page that is shown; each is a list, empty where all is well.
FAULTS = """
(() => {
  const near = 1, root = document.documentElement, width = root.clientWidth;
  const style = (one) => getComputedStyle(one);
  const box = (one) => one.getBoundingClientRect();
  const named = (one) => `${one.tagName}: ${one.textContent.trim().slice(0, 60)}`;
  const seen = [...document.body.querySelectorAll("*")]
    .filter((one) => one.getClientRects().length && !one.closest("title, .on-tile > *"));
  const within = (a, b) => a.left > b.left - near && a.right < b.right + near
    && a.top > b.top - near && a.bottom < b.bottom + near;
  const meet = (a, b) => a.left < b.right - near && b.left < a.right - near
    && a.top < b.bottom - near && b.top < a.bottom - near;
  const texts = seen.filter((one) => one.tagName === "text");
  const rest = (one) => texts.slice(texts.indexOf(one) + 1)
    .filter((other) => other.ownerSVGElement === one.ownerSVGElement);
  return {
    scrolled: root.scrollWidth > width ? [root.scrollWidth] : [],
    outside: seen.filter((one) => !one.ownerSVGElement
      && (box(one).left < -near || box(one).right > width + near)).map(named),
    cut: seen.filter((one) => one.clientWidth && one.scrollWidth > one.clientWidth + near
      && style(one).overflowX !== "visible" && style(one).textOverflow !== "ellipsis")
      .concat(texts.filter((one) => !within(box(one), box(one.ownerSVGElement)))).map(named),
    overlapping: texts.filter((one) => rest(one).some((other) => meet(box(one), box(other))))
      .map(named),
    small: seen.filter((one) => !one.children.length && one.textContent.trim()
      && parseFloat(style(one).fontSize) < SMALLEST).map(named),
  };
})()
""".replace("SMALLEST", str(SMALLEST))
HIDDEN = """
[...document.querySelectorAll("details > :not(summary)")]
  .filter((part) => !part.checkVisibility({contentVisibilityAuto: true})).length
"""

pytestmark = pytest.mark.skipif(found() is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with running(found(), tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def checkpoint(path, scale: float):
    """Write a checkpoint with long names, an optimizer, and values that are not finite."""
    shares = (1 + (scale - 1) * 10.0 ** -(i % 9) for i in range(24))  # so axes have many decades
    model = {LONG.format(i): torch.full((64, 64), share).double() * (i + 1)
             for i, share in enumerate(shares)}  # fmt: skip
    model |= {f"head.{i}.weight": torch.full((8, 8), scale) for i in range(40)}
    model["head.1.weight"][0, 0] = float("nan")
    ema = {name: tensor * 1.01 for name, tensor in model.items()}
    moments = {i: {"step": torch.tensor(3.0), "exp_avg": tensor, "exp_avg_sq": tensor}
               for i, tensor in enumerate(model.values())}  # fmt: skip
    groups = [{"lr": 1e-3 * scale, "params": [*moments]}]
    optimizer = {"state": moments, "param_groups": groups}
    torch.save(
        {"model": model, "ema": ema, "optimizer": optimizer, "epoch": int(scale),
         "a_setting_with_a_long_name_" * 4: "a value that is long too " * 12},
        path,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A document of each kind, by its name."""
    folder = tmp_path_factory.mktemp("documents")
    a, b = (checkpoint(folder / f"{name}.pt", i + 1.0) for i, name in enumerate("ab"))
    half = folder / "a_download_that_was_broken_off_in_the_middle.pt"
    half.write_bytes(a.read_bytes()[:9000])
    plain = FIXTURES / "ema" / "plain_loop" / "last.pt"
    asked = {
        "inspect": ("inspect", a),
        "inspect, values": ("inspect", a, plain, "--histogram"),
        "inspect, a run": ("inspect", FIXTURES / "resume"),
        "verify": ("verify", a, half, plain, "--require", "resume"),
        "verify, the best": ("verify", FIXTURES / "resume", "--best", "val_stats/loss:min"),
        "diff": ("diff", a, b),
        "diff, another": ("diff", RESUME[0], RESUME[-1]),
    }
    made = {}
    for name, args in asked.items():
        made[name] = folder / f"{name}.html"
        done = run_inside(*args, "--format", "html")
        assert done.startswith("<!doctype html>"), done
        made[name].write_text(done)
    return made


KINDS = ("inspect", "inspect, values", "inspect, a run", "verify", "verify, the best", "diff",
         "diff, another")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_in_its_place(scheme, width, kind, browser, documents):
    browser.open(documents[kind], width, scheme)
    browser.value("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert {fault: what for fault, what in browser.value(FAULTS).items() if what} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_loaded_and_nothing_goes_wrong(kind, browser, documents):
    browser.open(documents[kind], 800)
    assert browser.requests() == [documents[kind].as_uri()]
    assert browser.trouble() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_the_colours_that_the_reader_wants(scheme, browser, documents):
    browser.open(documents["inspect"], 800, scheme)
    paper = browser.value("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]


@pytest.mark.parametrize("kind", KINDS)
def test_paper_is_white_and_shows_what_is_folded(kind, browser, documents):
    browser.open(documents[kind], 700, "dark", media="print")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.value(HIDDEN) == 0
    faults = browser.value(FAULTS)
    del faults["small"]  # letters of 7 points can be read on paper
    assert {fault: what for fault, what in faults.items() if what} == {}
    assert browser.pdf().startswith(b"%PDF-")
