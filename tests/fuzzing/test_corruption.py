"""Structured corruption, a short run: honest files with bytes changed, cut, doubled and exchanged.

Long runs by hand: ``fuzz.py``. Whatever comes, a target returns or refuses; see ``targets.py``.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from targets import SECONDS, TARGETS

from helpers.paths import FIXTURES
from helpers.thinned import examples

BENIGN = FIXTURES / "hostile" / "benign"
SEEDS = {
    "pickle": (BENIGN / "protocol-4.pkl", BENIGN / "protocol-1.pkl",
               FIXTURES / "formats" / "numpy" / "numpy2_proto5.pkl"),
    "zip": (BENIGN / "training.pt", BENIGN / "deflated.pt"),
    "legacy": (BENIGN / "legacy.pt",),
    "tar": (BENIGN / "tar.pt",),
    "safetensors": (BENIGN / "weights.safetensors",),
    "locator": (BENIGN / "training.pt",),
}  # fmt: skip
SHORT = {"locator": 300}  # bytes: each pair of them is a container or a value
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF)


@st.composite
def corrupted(draw, seeds: tuple[bytes, ...]) -> bytes:
    """A seed after some changes."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(0, 64))
        change = draw(st.sampled_from(("flip", "number", "cut", "double", "insert", "exchange")))
        if change == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "number":
            width = draw(st.sampled_from((1, 2, 4, 8)))
            value = draw(st.sampled_from(NUMBERS)) % (1 << 8 * width)
            data[at : at + width] = value.to_bytes(width, "little")
        elif change == "cut":
            del data[at : at + length]
        elif change == "double":
            data[at:at] = data[at : at + length]
        elif change == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        else:
            other = draw(st.integers(0, max(len(data) - 1, 0)))
            data[at : at + length] = data[other : other + length]
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
@examples(100)
@given(data=st.data())
def test_a_corrupted_file_is_read_or_refused(name, data):
    seeds = tuple(path.read_bytes()[: SHORT.get(name)] for path in SEEDS[name])
    began = time.process_time()
    TARGETS[name](data.draw(corrupted(seeds)))
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize("name", TARGETS)
@examples(100)
@given(noise=st.binary(max_size=512))
def test_noise_is_read_or_refused(name, noise):
    TARGETS[name](noise)
