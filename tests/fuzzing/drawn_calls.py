"""Pickles drawn from vetted calls and everyday constructions, with functions among their values.

Each is the body of a pickle. What it does is left to chance: a function may end under a name that
is asked for, a factory in a container that is iterated, an object in a key. Nothing that is drawn
calls ``quietlib.touch`` itself, so a loader that does has been led to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from ckptool.formats.pickles.answers import READ
from ckptool.formats.pickles.asked import BY_STATES
from ckptool.formats.pickles.calls import RUNS_SOURCE
from ckptool.formats.pickles.dropped import CALLED
from ckptool.formats.pickles.vetted import VETTED
from helpers.assembling import (
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    FALSE,
    NONE,
    TRUE,
    build,
    call,
    data,
    fields,
    legacy_file,
    name,
    new,
    number,
    row,
    storage,
    tensor,
    text,
)
from helpers.derived import CONCAT, FACTORY, MODULE, SUBSET

MEMO = b"\x94"
TOUCH = name("quietlib.touch")
STREAM = data(legacy_file(NONE))
ENDLESS = {"re._compile", "itertools.count"}
PYTHON2 = ("__builtin__.", "copy_reg.", "exceptions.")  # modules that a loader does not find
CALLS = sorted(n for n in VETTED.keys() - RUNS_SOURCE - ENDLESS if not n.startswith(PYTHON2))
READERS = (  # they iterate, hash or ask what they are given
    "builtins.dict", "builtins.frozenset", "builtins.list", "builtins.set", "builtins.tuple",
    "collections.Counter", "collections.OrderedDict", "collections.deque", "numpy.dtype",
    "torch.Size",
)  # fmt: skip
NAMES = sorted({
    *READ, *CALLED, *BY_STATES, "__array__", "__dict__", "__getitem__", "__iter__",
    "__len__", "__reduce__",
    "__setstate__", "_get_args", "_is_locked", "_modules", "_parameters", "_buffers", "append",
    "as_subclass", "cumulative_sizes", "data", "dataset", "default_factory", "detach", "dtype",
    "extend", "get", "held", "indices", "items", "keys", "lock_", "maps", "module", "setdefault",
    "to", "utcoffset", "values",
})  # fmt: skip
# Classes, by what their states need so that a loader reads these to their ends.
WHOLE: dict[tuple[str, ...], dict[str, bytes]] = {
    ("quietlib.Adam", "quietlib.Optimizes", "torch.optim.sgd.SGD"): {
        "defaults": EMPTY_DICT, "state": EMPTY_DICT, "param_groups": EMPTY_LIST,
    },
    ("quietlib.LSTM", "quietlib.Recurrent", "torch.nn.modules.rnn.LSTM"): {
        "_all_weights": EMPTY_LIST, "num_layers": number(1), "bias": FALSE,
        "bidirectional": FALSE, **MODULE,
    },
    # No class of the user's whose hash calls what it holds: nothing tells it from a module.
    ("quietlib.Plain", "torch.nn.modules.container.Sequential"): MODULE,
    (
        "argparse.Namespace", "builtins.ValueError", "collections.UserDict", "quietlib.Archive",
        "quietlib.Caller", "quietlib.Error", "quietlib.Key", "quietlib.Plain", "quietlib.Program",
        "quietlib.Zone", "torch.optim.lr_scheduler.LambdaLR",
        "torch.utils.data.dataloader.DataLoader", "torch.utils.data.dataset.ConcatDataset",
        "torch.utils.data.dataset.Subset", "types.SimpleNamespace",
    ): {},
}  # fmt: skip
DEPTH = 2
MOST_KEPT = 200  # values in the memo, which BINGET reaches


class Draw:
    """One draw: values that refer to each other through the memo.

    What is drawn is written in the order in which it is drawn, as the memo counts.
    """

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.kept: list[str] = []  # kinds of the values in the memo

    def some(self, most: int, depth: int) -> list[bytes]:
        return [self.value(depth) for _ in range(self.rng.randrange(most + 1))]

    def value(self, depth: int = 0) -> bytes:
        """A value, sometimes kept in the memo, where later ones find and change it."""
        kinds = ["plain", "known", "prepared"]
        if depth < DEPTH:
            kinds += ["row", "list", "set", "dict", "call", "call", "object", "object", "changed"]
        kind = self.rng.choice(kinds)
        made = getattr(self, f"_{kind}")(depth + 1)
        if len(self.kept) < MOST_KEPT and self.rng.random() < 0.3:
            self.kept.append(kind)
            made += MEMO
        return made

    def _plain(self, _depth: int) -> bytes:
        word = text(self.rng.choice(NAMES))
        one = number(self.rng.randrange(-1, 12))
        return self.rng.choice((
            word, word, one, one, NONE, TRUE, FALSE, EMPTY_TUPLE, data(b"x"), STREAM, tensor(),
            storage(), name("torch.float32"), text("f8"), text("O8"),
        ))  # fmt: skip

    def _known(self, depth: int) -> bytes:
        return self._got(range(len(self.kept))) if self.kept else self._plain(depth)

    def _got(self, places: Sequence[int]) -> bytes:
        return b"h" + bytes([self.rng.choice(places)])

    def _prepared(self, depth: int) -> bytes:
        """A function, or what calls one when it is asked."""
        made = (
            TOUCH, SUBSET, CONCAT, FACTORY, FACTORY + text("x") + number(1) + b"s",
            name(self.rng.choice(CALLS)),
        )  # fmt: skip
        if self.rng.random() < 0.2:
            return call("functools.partial", TOUCH, *self.some(1, depth))
        return self.rng.choice(made)

    def _row(self, depth: int) -> bytes:
        return row(*self.some(3, depth))

    def _list(self, depth: int) -> bytes:
        return b"](" + b"".join(self.some(3, depth)) + b"e"

    def _set(self, depth: int) -> bytes:
        return b"\x8f(" + self._key(depth) + self._key(depth) + b"\x90"

    def _dict(self, depth: int) -> bytes:
        return b"}(" + self._key(depth) + self.value(depth) + b"u"

    def _key(self, depth: int) -> bytes:
        return self.rng.choice((self._plain, self._plain, self.value))(depth)

    def _call(self, depth: int) -> bytes:
        if self.rng.random() < 0.7:
            given = self.rng.choice((self.value, self._prepared))(depth)
            return call(self.rng.choice(READERS), given)
        return self.rng.choice((call, new))(self.rng.choice(CALLS), *self.some(3, depth))

    def _object(self, depth: int) -> bytes:
        classes = self.rng.choice(list(WHOLE))
        return build(new(self.rng.choice(classes)), self.state(depth, WHOLE[classes]))

    def state(self, depth: int, whole: dict[str, bytes]) -> bytes:
        """A state of which one part that it needs is drawn, and others that it may have."""
        needed = self.rng.sample(sorted(whole), min(1, len(whole)))
        names = {*needed, *self.rng.sample(NAMES, self.rng.randrange(3))}
        rest = {name: part for name, part in whole.items() if name not in names}
        held = fields(**rest, **{each: self.value(depth) for each in sorted(names)})
        return row(NONE, held) if self.rng.random() < 0.2 else held

    def _changed(self, depth: int) -> bytes:
        """An earlier value that gets a state, items or elements; another value if there is none."""
        kind = self.rng.choice(sorted(CHANGES))
        places = [at for at, kept in enumerate(self.kept) if kept == kind]
        made = self._got(places) if places else self.value(depth)
        return made + CHANGES[kind](self, depth)


CHANGES: dict[str, Callable[[Draw, int], bytes]] = {
    "object": lambda draw, depth: draw.state(depth, {}) + b"b",
    "call": lambda draw, depth: draw.state(depth, {}) + b"b",
    "dict": lambda draw, depth: text("x") + draw.value(depth) + b"s",
    "set": lambda draw, depth: b"(" + b"".join(draw.some(2, depth)) + b"\x90",
    "list": lambda draw, depth: draw.value(depth) + b"a",
}


def drawn(seed: int) -> bytes:
    """The body of the pickle of a seed: values of which all but the last are dropped."""
    draw = Draw(Random(seed))
    values = (draw.value() for _ in range(draw.rng.randrange(1, 5)))
    return b"0".join(values)
