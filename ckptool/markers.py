"""Words that mark averaged weights in addresses, names and file names.

A marker is a whole word: text is split at everything that is no letter and at camel case, so that
``semantic``, ``schema`` and ``cinema`` mark nothing. A marker alone never decides; names, shapes
and values must agree (``ema.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

# What a word marks. The averaging kinds are taken; the others are reported, and taken when named.
KINDS: Mapping[str, str] = {
    "ema": "ema",
    "shadow": "ema",
    "avg": "ema",
    "average": "ema",
    "averaged": "ema",
    "polyak": "ema",
    "swa": "swa",
    "teacher": "teacher",
    "momentum": "momentum-encoder",
    "target": "target-network",
}
AVERAGES = frozenset({"ema", "swa"})

# Whole components that mark, where no single word does: MoCo's key encoder.
COMPONENTS: Mapping[str, str] = {"encoder_k": "momentum-encoder"}

# Words before avg that make it a moment of an optimizer: exp_avg, square_avg.
MOMENTS = frozenset({"exp", "square", "grad"})

# Words for raw weights: put aside during evaluation, or kept beside their average.
RAW = frozenset({"collected", "backup", "stored", "online"})


class Marker(NamedTuple):
    """A word that was found, and what it marks."""

    word: str
    kind: str


@lru_cache(maxsize=1 << 14)
def words(text: str) -> tuple[str, ...]:
    """``EMACallback`` -> ema, callback; ``state_dict_ema`` -> state, dict, ema."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text))


def marker_in(texts: Iterable[str]) -> Marker | None:
    """The first marker in the texts, unless a word says that the weights are raw."""
    found: Marker | None = None
    for text in texts:
        before = ""
        for word in words(text):
            if word in RAW:
                return None
            if found is None and word in KINDS and before not in MOMENTS:
                found = Marker(word, KINDS[word])
            before = word
        if found is None and text in COMPONENTS:
            found = Marker(text, COMPONENTS[text])
    return found


# Matched against lower case: a fifth of the time of a pattern that ignores it.
_ANY = re.compile("|".join((*KINDS, *COMPONENTS)))


def may_mark(text: str) -> bool:
    """Whether a marker could be in the text at all: a quick no for most of 100,000 names."""
    return _ANY.search(text.lower()) is not None


def is_raw(text: str) -> bool:
    """Whether a word says that these are raw weights."""
    return any(word in RAW for word in words(text))


@lru_cache(maxsize=1 << 14)
def unmarked(text: str) -> str:
    """``text`` without its markers: ``actor_target`` -> ``actor``, ``model-EMA`` -> ``model``."""
    if text in COMPONENTS:
        return text.removesuffix("_k") + "_q"
    kept = [part for part in re.split(r"([^A-Za-z0-9]+)", text) if part.lower() not in KINDS]
    return re.sub(r"([_\-. ])[_\-. ]+", r"\1", "".join(kept)).strip("_-. ")
