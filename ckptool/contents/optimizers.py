"""The state of each optimizer in a checkpoint: its parameters and groups, and the kind it has.

A state dict of an optimizer does not name its class. The settings of its groups do, as far as they
differ from those of the others: :data:`KINDS`.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import Any

from ckptool.contents.inventory import Inventory, Table, is_flat_optimizer
from ckptool.names import STATISTICS
from ckptool.records import NamedTuple
from ckptool.tree.nodes import Address, Opaque, TensorRef, Tree, fields_of

MAX_PARAMETERS = 1 << 20  # a hostile file lists one group a million times


class OptimizerState(NamedTuple):
    """The state of one optimizer."""

    address: Address
    states: dict[Any, dict[Any, Any]]  # state by parameter
    groups: tuple[dict[Any, Any], ...]
    parameters: tuple[Any, ...]  # ids of the parameters of all groups, in order
    names: dict[Any, str]  # names by parameter, where the optimizer stores them
    is_flat: bool = False  # flattened keys, with a group for each parameter

    @property
    def has_momentum(self) -> bool:
        """True if the settings require a state for each parameter."""
        return any("betas" in g or g.get("momentum") or "rho" in g for g in self.groups)


def read_optimizers(inventory: Inventory) -> list[OptimizerState]:
    """Return all optimizers of a tree, pickled whole or stored as a state dict."""
    return [
        _flat(address, fields) if is_flat_optimizer(fields) else _optimizer(address, fields)
        for address, node in inventory.optimizers.items()
        if (fields := fields_of(node))
    ]


def _optimizer(address: Address, fields: dict[Any, Any]) -> OptimizerState:
    groups = tuple(group for group in _elements(fields["param_groups"]) if isinstance(group, dict))
    listed = chain.from_iterable(map(parameters_of, groups))
    parameters = tuple(islice(listed, MAX_PARAMETERS))
    states = fields["state"] if isinstance(fields["state"], dict) else {}
    by_parameter = {key: state for key, state in states.items() if isinstance(state, dict)}
    if parameters and not by_parameter.keys() & set(parameters):
        by_parameter = _with_numbers(by_parameter, parameters)
    names: dict[Any, str] = {p: p for p in parameters if isinstance(p, str)}
    for group in {id(group): group for group in groups}.values():
        called = zip(parameters_of(group), _elements(group.get("param_names")), strict=False)
        names |= {p: name for p, name in called if isinstance(name, str)}
    return OptimizerState(address, by_parameter, groups, parameters, names)


def parameters_of(group: dict[Any, Any]) -> list[Any]:
    """Return the parameters of a group, as the optimizer numbers or names them.

    A list that holds containers is none of parameters, which are keys of the states.
    """
    parameters = _elements(group.get("params"))
    return [] if any(isinstance(each, _NO_PARAMETERS) for each in parameters) else parameters


_NO_PARAMETERS = (dict, list, tuple, set)


def _with_numbers(states: dict[Any, Any], parameters: tuple[Any, ...]) -> dict[Any, Any]:
    """Key the states by number again if the file stores numbers as text: ``"0"`` for 0."""
    numbers = {str(p): p for p in parameters if isinstance(p, int)}
    is_text = states.keys() <= numbers.keys()
    return {numbers[key]: state for key, state in states.items()} if is_text else states


def _flat(address: Address, fields: dict[Any, Any]) -> OptimizerState:
    """Read keys of the form ``state.<name>.<slot>`` and ``param_groups.<name>.<setting>``."""
    states: dict[Any, dict[Any, Any]] = {}
    groups: dict[str, dict[Any, Any]] = {}
    for key, value in fields.items():
        kind, _, rest = key.partition(".") if isinstance(key, str) else ("", "", "")
        name, _, slot = rest.rpartition(".")
        if kind == "state":
            states.setdefault(name, {})[slot] = value
        elif kind == "param_groups":
            groups.setdefault(name, {"params": [name]})[slot] = value
    names = {name: name for name in groups}
    return OptimizerState(address, states, tuple(groups.values()), tuple(groups), names, True)


def _elements(value: Any) -> list[Any]:
    """Return the elements of a list, also if a directory stores it as a dict by position."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, dict) and all(type(key) is int for key in value):
        return [value[key] for key in sorted(value)]
    return []


def parameter_names(optimizer: OptimizerState, model: Table | None) -> dict[Any, str]:
    """Return the names of the parameters by their keys in the optimizer; nothing if in doubt.

    A state dict numbers the parameters in the order in which the optimizer got them. That is the
    model's order if there is one group, as many parameters, and every moment has the shape of its
    parameter. Several groups seldom keep the order.
    """
    if optimizer.names or model is None or len(optimizer.groups) != 1:
        return optimizer.names
    shapes = {name: ref.shape for name, ref in model_parameters(model).items()}
    names = list(shapes)
    if len(names) != len(optimizer.parameters):
        return {}
    paired = dict(zip(optimizer.parameters, names, strict=True))
    moments = (
        (key, moment)
        for key, state in optimizer.states.items()
        for moment in state.values()
        if isinstance(moment, TensorRef) and moment.shape not in {(), (1,)}
    )
    return paired if all(m.shape == shapes.get(paired.get(k, "")) for k, m in moments) else {}


def owners(inventory: Inventory, model: Table | None) -> dict[Address, str]:
    """Return the names of parameters by the key paths of their states in optimizers."""
    return {
        (*optimizer.address, "state", key): name
        for optimizer in read_optimizers(inventory)
        for key, name in parameter_names(optimizer, model).items()
    }


def model_parameters(model: Table) -> dict[str, TensorRef]:
    """Return the parameters of a state dict: without buffers, and of tied ones the first."""
    floating = {
        name: ref
        for name, ref in model.tensors.items()
        if ref.dtype.is_floating and not name.endswith(STATISTICS)
    }
    spans = [ref.chunks[0].span for ref in floating.values() if ref.chunks]
    if len(set(spans)) == len(spans):  # as mostly: no two are tied
        return floating
    parameters: dict[str, TensorRef] = {}
    seen: set[Any] = set()
    for name, ref in floating.items():
        if ref.chunks:
            span, _, shape, strides = ref.chunks[0]
            place = span.offset, id(span.source), shape, strides
            if place in seen:
                continue
            seen.add(place)
        parameters[name] = ref
    return parameters


# Kind of optimizer -> settings that its groups have and those of the rows below lack. Sources: the
# ``defaults`` of torch.optim, transformers, schedule_free, lion-pytorch and muon.
KINDS: tuple[tuple[str, frozenset[str]], ...] = (
    ("Schedule-Free", frozenset({"train_mode"})),
    ("Muon", frozenset({"ns_steps"})),
    ("LBFGS", frozenset({"history_size"})),
    ("Adafactor", frozenset({"scale_parameter"})),
    ("Adafactor", frozenset({"beta2_decay"})),
    ("ASGD", frozenset({"lambd", "t0"})),
    ("Rprop", frozenset({"etas"})),
    ("Adagrad", frozenset({"lr_decay", "initial_accumulator_value"})),
    ("Adadelta", frozenset({"rho"})),
    ("RMSprop", frozenset({"alpha", "centered"})),
    ("NAdam", frozenset({"momentum_decay"})),
    ("SGD", frozenset({"nesterov", "dampening"})),
    ("AdamW", frozenset({"betas", "correct_bias"})),
)
ADAM = frozenset({"betas", "amsgrad"})


def is_stateless(optimizer: OptimizerState, kind: str | None) -> bool:
    """Return whether an optimizer has no state to keep: SGD without momentum."""
    return kind == "SGD" and not optimizer.has_momentum


def kind_of(optimizer: OptimizerState, node: Tree) -> str | None:
    """Return the kind of an optimizer: its class, or what its settings tell; None: they do not."""
    if isinstance(node, Opaque):
        return node.qualname.rpartition(".")[2]
    settings = optimizer.groups[0] if optimizer.groups else {}
    named = next((kind for kind, keys in KINDS if keys <= settings.keys()), None)
    if named is not None or not settings.keys() >= ADAM:
        return named
    is_decoupled = settings.get("decoupled_weight_decay")  # only since torch 2.6
    return "AdamW" if is_decoupled is True else "Adam" if is_decoupled is False else "Adam or AdamW"
