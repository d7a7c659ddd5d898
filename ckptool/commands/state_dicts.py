"""The state dict that a command takes from a checkpoint: by key path, by role, or the only one."""

from __future__ import annotations

from ckptool.commands.origin import kind_at, kind_taken
from ckptool.contents.given import refuse_given
from ckptool.contents.inventory import Table, is_state_dict
from ckptool.contents.selection import EMA_ROLE, MODEL_ROLE, ROLES, select_table
from ckptool.ema.candidates import EmaLocation, table_address
from ckptool.ema.layouts import Layouts
from ckptool.ema.locate import locate_ema
from ckptool.errors import AddressError, about
from ckptool.formats.base import Checkpoint
from ckptool.plans.extraction import Extraction, plan_extraction, plan_model
from ckptool.plans.weights import take_weights
from ckptool.records import NamedTuple
from ckptool.tensors.volume import refuse_repetition
from ckptool.tree.addresses import refuse_ambiguous

ROLE_NAMES = {role.removeprefix("@"): role for role in ROLES}  # ema -> @ema, as --only takes it


class Taken(NamedTuple):
    """A state dict that is taken."""

    address: str  # its key path
    kind: str  # raw, ema, …; see ``ConvertReport``
    plan: Extraction


def only_state_dict(
    checkpoint: Checkpoint, location: EmaLocation, *, beside_optimizer: bool = False
) -> str:
    """Return the key path of the only state dict of weights.

    Raises:
        AddressError: there are others, or, unless ``beside_optimizer``, an optimizer, which the
            output would silently lack.
    """
    weights, optimizers = state_dicts(location), location.inventory.optimizers
    if len(weights) == 1 and (beside_optimizer or not optimizers):
        return table_address(weights[0])
    roles = _roles_there(location)
    named = [f"#{role} ({place or 'all of it'})" for role, place in roles.items()]
    others_at = [at for table in weights[:5] if (at := table_address(table)) not in roles.values()]
    places = [*named, *(f"#{at or '*'}" for at in others_at)]
    counted = f"{len(weights)} state dicts" if len(weights) != 1 else "a state dict"
    others = " and an optimizer" if optimizers else ""
    error = AddressError(
        f"the checkpoint holds {counted}{others}: which one is meant?"
        if weights
        else "the checkpoint holds no state dict of weights",
        path=checkpoint.path,
        hint=f"name it behind the path: {', '.join(places)}" if weights else None,
    )
    if weights and not beside_optimizer and checkpoint.format.as_one_file:
        error.hint = f"{error.hint}; {checkpoint.format.as_one_file}"
    if beside_optimizer and roles:  # the command has --only, which names it for all checkpoints
        options = [("--only", name) for name, role in ROLE_NAMES.items() if role in roles]
        error.hint = f"choose with {' or '.join(map(' '.join, options))}"
        error.adding = options[-1]
    raise error


def state_dicts(location: EmaLocation) -> list[Table]:
    """Return the state dicts of weights; a lone tensor beside other things is none."""
    return [table for table in location.inventory.weights if is_state_dict(table.node)]


def _roles_there(location: EmaLocation) -> dict[str, str]:
    """Return the key paths of what a role means, by role."""
    found = {}
    if location.model is not None:
        found[MODEL_ROLE] = table_address(location.model)
    if location.selected is not None:
        found[EMA_ROLE] = location.selected.address
    return found


def take_state_dict(
    checkpoint: Checkpoint,
    address: str | None,
    layouts: Layouts,
    location: EmaLocation | None = None,
    *,
    beside_optimizer: bool = False,
) -> Taken:
    """Return the state dict at a key path, or the one that a role means; by default the only one.

    Args:
        checkpoint: the checkpoint.
        address: a key path or a role.
        layouts: custom layouts of the configuration, tried before the known ones.
        location: of its weights, if it is known.
        beside_optimizer: the only one may be beside an optimizer.

    Raises:
        AddressError: there is none; or several, and none is named.
        EmaNotFoundError, EmaAmbiguousError, EmaRefusedError: a role that the file does not have.
    """
    location = location or locate_ema(checkpoint, layouts=layouts)
    if address is None:
        address = only_state_dict(checkpoint, location, beside_optimizer=beside_optimizer)
    if address in ROLES:
        weights = take_weights(checkpoint, ema=address, layouts=layouts, command=None)
        plan = plan_extraction(*weights, "model")
        model, candidate = weights.location.model, weights.candidate
        place = candidate.address if candidate else table_address(model) if model else ""
        is_ema = address == EMA_ROLE
        kind = kind_taken(weights.location) if is_ema else kind_at(location, place, checkpoint)
        return Taken(place, kind, plan)
    with about(checkpoint.path):
        table = select_table(location.inventory, address)
    refuse_ambiguous(checkpoint.tree, table.address)
    refuse_given(checkpoint, (table,))
    refuse_repetition(table.tensors.values())
    place = table_address(table)
    kind = kind_at(location, place, checkpoint)
    return Taken(place, kind, plan_model(table, "model", location))
