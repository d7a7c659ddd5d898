"""Words of a name, and the keywords among them that mark EMA weights.

A word counts only as a whole: text is split at everything that is no letter or digit, between
letters and digits, and at camel case. So ``schema`` holds no ``ema``, ``power`` no ``wer`` and
``sampler`` no ``amp``. Every table of words in the package is searched with :func:`says`.

A keyword alone never decides; names, shapes and values must match (``ema/locate.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from ckptool.records import NamedTuple
from ckptool.regex import regex

# Keyword -> the kind of weights that it marks. Weights of an averaging kind are taken; those of the
# other kinds are reported, and taken only when they are named.
KINDS: Mapping[str, str] = {
    "ema": "ema",
    "shadow": "ema",
    "avg": "ema",
    "average": "ema",
    "averaged": "ema",
    "emas": "ema",
    "shadows": "ema",
    "avgs": "ema",
    "averages": "ema",
    "polyak": "ema",
    "swa": "swa",
    "swas": "swa",
    "teacher": "teacher",
    "momentum": "momentum-encoder",
    "target": "target-network",
}
AVERAGES = frozenset({"ema", "swa"})

# Whole components that are keywords although none of their words is: MoCo's key encoder.
COMPONENTS: Mapping[str, str] = {"encoder_k": "momentum-encoder"}

# Words that turn a following avg into a moment of an optimizer: exp_avg, square_avg.
MOMENTS = frozenset({"exp", "square", "grad"})

# Words for raw weights that were put aside during evaluation, or are kept beside their EMA.
RAW = frozenset({"collected", "backup", "stored", "online"})

# Ends of the names of batch statistics: floating-point buffers, which forward passes update.
STATISTICS = ("running_mean", "running_var")

# Directories that hold the model's weights, beside one whose whole name is a keyword (``ema/``).
MODEL_FOLDER = regex(
    r"(models?|net|nets|network|unet|nnet|weights?|ckpts?|checkpoints?|generator|raw|online)",
    re.IGNORECASE,
)


class Marker(NamedTuple):
    """A keyword that was found, and the kind of weights that it marks."""

    word: str
    kind: str


_SEPARATORS = str.maketrans(dict.fromkeys("_.-/^$", " "))  # the most frequent
_RUNS = regex(r"[^\W\d_]+|\d+")  # runs of letters or of digits
_HUMPS = regex(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+")  # words in camel case


MAX_TEXT = 2_000  # characters of a name that are read: people do not make longer names


def tokens(text: str) -> tuple[str, ...]:
    """Split a name into lower-case words and numbers.

    Example:
        >>> tokens("EMACallback/val_top5.bestLoss")
        ('ema', 'callback', 'val', 'top', '5', 'best', 'loss')
    """
    return _tokens(text[:MAX_TEXT])


@lru_cache(maxsize=1 << 14)
def _tokens(text: str) -> tuple[str, ...]:
    if text.isascii() and text == text.lower():  # as most are: no pattern has to be compiled
        parts = text.translate(_SEPARATORS).split()
        if all(part.isalpha() or part.isdigit() for part in parts):
            return (*parts,)
    humps = (hump for run in _RUNS.findall(text) for hump in _HUMPS.findall(run))
    return tuple(hump.lower() for hump in humps)


def words(text: str) -> tuple[str, ...]:
    """Split a name into words without numbers: ``state_dict_ema2`` -> state, dict, ema."""
    return tuple(token for token in tokens(text) if not token.isdigit())


class Run(NamedTuple):
    """Words that must follow each other in a name."""

    words: tuple[str, ...]
    is_first: bool  # they must begin the name
    is_last: bool  # they must end it


class Words:
    """A table for :func:`says`. It is made when it is first asked, as most are about no file."""

    __slots__ = ("_entries", "_firsts", "_table")

    def __init__(self, entries: Sequence[str]) -> None:
        self._entries = entries
        self._table: Mapping[str, tuple[Run, ...]] | None = None
        self._firsts: frozenset[str] | None = None

    @property
    def firsts(self) -> frozenset[str]:
        """The first word of each entry: a name without any of these letters says none."""
        if self._firsts is None:
            self._firsts = frozenset(tokens(entry)[0] for entry in self._entries)
        return self._firsts

    @property
    def by_first(self) -> Mapping[str, tuple[Run, ...]]:
        """The runs by the first word of each, also in the plural."""
        if self._table is None:
            self._table = _table(self._entries)
        return self._table


def whole(*entries: str) -> Words:
    """Return a table for :func:`says`: any of these words, or runs of words, in the plural too.

    An entry that begins with ``^`` must be the first word of the name, one that ends with ``$``
    the last. The table replaces a regular expression, which takes milliseconds to compile.
    """
    return Words(entries)


def _table(entries: Iterable[str]) -> Mapping[str, tuple[Run, ...]]:
    table: dict[str, tuple[Run, ...]] = {}
    for entry in entries:
        run = Run(tokens(entry), entry.startswith("^"), entry.endswith("$"))
        first, *others = run.words
        for begins in (first,) if others else (first, f"{first}s"):
            table[begins] = (*table.get(begins, ()), run)
    return table


def says(text: str, wanted: Words) -> bool:
    """Return whether the text has, as a whole word, one of the words that :func:`whole` was given.

    Example:
        >>> says("lrSchedulers", whole("scheduler")), says("sampler", whole("amp"))
        (True, False)
    """
    lower = text[:MAX_TEXT].lower()
    if not any(first in lower for first in wanted.firsts):  # to split a name takes far longer
        return False
    return holds(tokens(text), wanted)


def holds(parts: Sequence[str], wanted: Words) -> bool:
    """Return whether a name that is split into ``parts`` has one of the wanted words."""
    runs = wanted.by_first
    if runs.keys().isdisjoint(parts):  # as of most names
        return False
    return any(_fits(parts, at, run) for at, part in enumerate(parts) for run in runs.get(part, ()))


def _fits(parts: Sequence[str], at: int, run: Run) -> bool:
    end = at + len(run.words)
    *found, last = parts[at:end] or ("",)
    return (
        (*found, last) in {run.words, (*run.words[:-1], f"{run.words[-1]}s")}
        and not (run.is_first and at)
        and not (run.is_last and end < len(parts))
    )


def marker_in(texts: Iterable[str]) -> Marker | None:
    """Return the first keyword in the texts; None if a word says that the weights are raw."""
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


_ANY = (*KINDS, *COMPONENTS)


def may_mark(text: str) -> bool:
    """Return whether a keyword could be in the text; quickly rejects 100,000 names, also at once.

    To look for each keyword takes a fifth of the time of a pattern of all of them.
    """
    lower = text.lower()
    return any(keyword in lower for keyword in _ANY)


def is_raw(text: str) -> bool:
    """Return whether a word says that the weights are raw."""
    return any(word in RAW for word in words(text))


def unglued(text: str) -> frozenset[str]:
    """Return ``text`` without a keyword that is glued to its other words: ``checkpointema5``.

    There is a result for each occurrence. Such a keyword proves nothing: ``cinema`` has one too.
    """
    lower = text[:MAX_TEXT].lower()
    return frozenset(
        text[: found.start()] + text[found.end() :]
        for word, kind in KINDS.items()
        if kind in AVERAGES
        for found in re.finditer(word, lower)
    )


@lru_cache(maxsize=1 << 14)
def unmarked(text: str) -> str:
    """Return ``text`` without its keywords: ``actor`` of ``actor_target`` or ``actor-EMA``."""
    if text in COMPONENTS:
        return text.removesuffix("_k") + "_q"
    if text.isascii() and text.replace("_", "").isalnum():  # as most are
        return "_".join(part for part in text.split("_") if part and part.lower() not in KINDS)
    kept = [part for part in re.split(r"([^A-Za-z0-9]+)", text) if part.lower() not in KINDS]
    return re.sub(r"([_\-. ])[_\-. ]+", r"\1", "".join(kept)).strip("_-. ")


def is_capital(name: str) -> bool:
    """Return whether a name, after leading underscores, begins with a capital, as classes do."""
    return name.lstrip("_")[:1].isupper()
