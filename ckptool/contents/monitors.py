"""Direction in which each metric is better, as the file states it: ``mode: min``, a monitor.

Trainers store the metric that they watch and which way it is better. Lightning stores it in the key
of a callback (``ModelCheckpoint{'monitor': 'val_loss', 'mode': 'min'}``), schedulers and early
stopping beside their best value, Hugging Face and others in their arguments
(``greater_is_better``). The file's statement comes first, and the name of a metric only after it.
Where neither states a direction, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from ckptool.contents.inventory import is_optimizer, is_state_dict, scalars_in
from ckptool.contents.metrics import better_direction, is_best, measured, strong_direction
from ckptool.contents.walks import ByLevel
from ckptool.names import says, tokens, whole
from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.tree.addresses import format_address
from ckptool.tree.nodes import Address, Opaque, TensorRef, Tree, is_real
from ckptool.tree.walking import children

MAX_DEPTH = 6  # levels below the top
MAX_NODES = 20_000  # containers that are looked at
MAX_CHILDREN = 1_000  # of a container that is entered

# Keys that name the metric that a run watches.
MONITORS = frozenset({
    "monitor", "monitored", "monitor_metric", "metric_for_best_model", "eval_metric", "main_metric",
    "best_checkpoint_metric", "best_metric_name", "key_indicator", "selection_metric", "save_best",
    "metric_name", "early_stopping_metric", "checkpoint_metric", "validation_metric", "metric",
})  # fmt: skip
CURRENT = "current_score"  # where Lightning's ModelCheckpoint keeps the last value
# Keys that state the direction, by their last word, and the meanings of their values.
MODES = frozenset({"mode", "rule", "direction", "goal"})
MEANINGS: Mapping[str, int] = {
    "min": -1, "minimize": -1, "minimise": -1, "less": -1, "lower": -1, "smaller": -1,
    "max": 1, "maximize": 1, "maximise": 1, "greater": 1, "higher": 1, "larger": 1,
}  # fmt: skip
GREATER = whole(
    "greater_is_better", "higher_is_better", "bigger_is_better", "larger_is_better",
    "maximize_metric", "maximize_best_checkpoint_metric",
)  # fmt: skip
LOWER = whole(
    "lower_is_better", "smaller_is_better", "less_is_better", "minimize_metric", "should_decrease",
)  # fmt: skip

# The state of a callback under a key that holds its settings, as Lightning writes it.
IN_KEY = regex(r"""['"]?\b(\w{1,40})['"]?\s*[:=]\s*['"]([^'"]{1,200})['"]""")
MAX_KEY = 2_000  # characters of such a key


class Direction(NamedTuple):
    """Direction in which a metric is better, and the reason."""

    sign: int  # -1: lower is better, 1: higher is
    because: str  # a key path, or "its name"

    @property
    def word(self) -> str:
        """The direction as a word: ``lower`` or ``higher``."""
        return "lower" if self.sign < 0 else "higher"


class Statement(NamedTuple):
    """Statement of one container about the metric that it watches."""

    where: str  # key path
    sign: int | None  # None: it only names the metric
    monitored: str | None
    values: int  # number of best values in the container itself


class Monitors:
    """All statements of a file."""

    def __init__(self, tree: Tree) -> None:
        self._places = dict(_statements(tree))
        metrics: dict[str, set[Direction]] = {}  # by what is measured
        general: set[Direction] = set()  # for values whose names state no direction
        for stated in self._places.values():
            told = _direction(stated)
            if told is None:
                continue
            if stated.monitored and stated.sign is not None:
                metrics.setdefault(measured(stated.monitored), set()).add(told)
            if stated.monitored or not stated.values:
                general.add(told)
        self._metrics = {what: _agreed(told) for what, told in metrics.items()}
        self._general = _agreed(general)

    def directions(self, addresses: Iterable[str]) -> dict[str, Direction]:
        """Return the known directions, by the key paths of the metrics."""
        found = ((address, self.direction(address)) for address in addresses)
        return {address: told for address, told in found if told is not None}

    def direction(self, address: str) -> Direction | None:
        """Return the direction for a key path; None where neither file nor name states it."""
        container, _, name = address.rpartition("/")
        told = self._metrics.get(measured(name))
        if told is not None:
            return told
        here = self._places.get(container)
        is_about = here is not None and here.values == 1 and is_best(name) and here.sign is not None
        if here is not None and (is_about or not strong_direction(name)):
            told = _direction(here)
        elif not strong_direction(name) and is_best(name):
            told = self._general
        if told is None and (sign := better_direction(address)):
            told = Direction(sign, "its name")
        return told


def _agreed(told: set[Direction]) -> Direction | None:
    """Return the first of several statements; None if they contradict each other."""
    return min(told) if len({each.sign for each in told}) == 1 else None


def _direction(stated: Statement) -> Direction | None:
    sign = stated.sign if stated.sign is not None else better_direction(stated.monitored or "")
    return Direction(sign, stated.where) if sign else None


def _statements(tree: Tree) -> Iterator[tuple[str, Statement]]:
    """Yield the statements, with the key path of the container of each."""
    for address, node in _containers(tree):
        said = scalars_in(node) | _said_by_key(address)
        text = format_address(address)
        key, sign = next(_signs(said), (None, None))
        name = next((said[k] for k in said if k in MONITORS and _is_name(said[k])), None)
        if name is not None and name[0] in "+-":  # AllenNLP: -loss, +accuracy
            key, sign, name = key or "validation_metric", 1 if name[0] == "+" else -1, name[1:]
        if sign is None and name is None:
            continue
        values = sum(is_best(k) and not isinstance(said[k], (bool, str)) for k in said)
        inside = key is not None and key in scalars_in(node)
        where = format_address((*address, key)) if key is not None and inside else text
        yield text, Statement(where, sign, name, values)


def _signs(said: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in said.items():
        if isinstance(value, str) and tokens(key)[-1:] and tokens(key)[-1] in MODES:
            if value.lower() in MEANINGS:
                yield key, MEANINGS[value.lower()]
        elif isinstance(value, bool) and says(key, GREATER):
            yield key, 1 if value else -1
        elif isinstance(value, bool) and says(key, LOWER):
            yield key, -1 if value else 1


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value.lstrip("+-")) <= 200


def _said_by_key(address: Address) -> dict[str, Any]:
    key = address[-1] if address else ""
    if not isinstance(key, str) or "{" not in key:
        return {}
    return dict(IN_KEY.findall(key[:MAX_KEY]))


def _containers(tree: Tree) -> Iterator[tuple[Address, Tree]]:
    """Yield dicts and objects, those in lists too; weights and optimizers are not entered."""
    walk = ByLevel[tuple[Address, Tree]](MAX_DEPTH, ((), tree))
    for address, node in islice(walk, MAX_NODES):
        if is_optimizer(node) or isinstance(node, TensorRef):
            continue
        if isinstance(node, (dict, Opaque)):
            yield address, node
        for key, child in () if is_state_dict(node) else children(node)[:MAX_CHILDREN]:
            if isinstance(child, (dict, list, tuple, Opaque)):
                walk.enter((*address, key), child)


# ------------------------------------------------------------------------------- any number at all


def numbers_called(tree: Tree, name: str) -> dict[str, Any]:
    """Return the plain numbers of a file at a key path, or at those that end with it.

    In a log, which is a list of records, the last record that has the number counts.
    """
    found: dict[tuple[Any, ...], tuple[str, Any]] = {}
    for address, node in _containers(tree):
        for key, value in scalars_in(node).items():
            text = format_address((*address, key))
            is_scalar = isinstance(value, TensorRef) and not is_state_dict(node)
            if (is_real(value) or is_scalar) and (text == name or text.endswith(f"/{name}")):
                record = tuple("" if isinstance(part, int) else part for part in address)
                found[(*record, key)] = (text, value)
    exact = {text: value for text, value in found.values() if text == name}
    return exact or dict(found.values()) or dict(_monitored(tree, name))


def _monitored(tree: Tree, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the last values of a metric that only a callback keeps, as ``current_score``."""
    for address, node in _containers(tree):
        said = scalars_in(node)
        watched = (said | _said_by_key(address)).get("monitor")
        if watched == name and said.get(CURRENT) is not None:
            yield format_address((*address, CURRENT)), said[CURRENT]
