"""The mixture that ``average`` writes: the checkpoints that count, and the weight of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

from ckptool.commands.members import (
    STEP,
    Members,
    Opened,
    open_members,
    refuse_disorder,
    refuse_strays,
)
from ckptool.commands.rating import direction_meant, rank
from ckptool.commands.runs import progress_entry
from ckptool.commands.snapshots import open_snapshots, parse_widths
from ckptool.commands.state_dicts import ROLE_NAMES
from ckptool.commands.writing import WriteOptions
from ckptool.contents.selection import Operand
from ckptool.contents.training import steps_in_running_mean
from ckptool.ema.layouts import Layouts
from ckptool.errors import UsageError
from ckptool.plans.averaging import Member
from ckptool.plans.weighing import (
    Shares,
    ema_shares,
    equal_shares,
    given_shares,
    schedule_shares,
    shares_between,
)
from ckptool.records import NamedTuple
from ckptool.reports.base import PosthocReport


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageOptions(WriteOptions):
    """Options of ``average``: what is averaged, with which weights, and how it is written."""

    role: str | None = None  # ``model`` or ``ema``, where an operand names no key path
    weights: str | None = None  # ``1,1,2``: one for each checkpoint, in the order of the operands
    schedule: str | None = None  # a name in ``weighing.SCHEDULES``
    ema_decay: float | None = None  # of one step: the EMA of the checkpoints in order of their step
    sigma_rel: float | None = None  # relative width: the EMA that snapshots of others make
    widths: str | None = None  # ``0.05,0.28``: those of snapshots that do not state them
    between: bool = False  # the mean of the steps between two running means of the whole run
    best: str | None = None  # ``METRIC:N``: only the best so many
    into: str | None = None  # the checkpoint whose model's state dict is replaced in a copy
    last: int | None = None  # only the newest so many
    every: int | None = None  # of each so many, the newest
    skip_broken: bool = False  # leave out files in directories that are damaged or non-finite
    buffers: str = "average"  # ``newest``: take batch statistics from the newest checkpoint


class Mixture(NamedTuple):
    """The checkpoints that count, the newest last, and their shares."""

    members: Members
    shares: Shares
    kind: str  # ema | swa | table: for the note in the file
    posthoc: PosthocReport | None = None
    intervals: str | None = None  # of a schedule: the counter that tells them, or EQUAL

    @property
    def state_dicts(self) -> list[Member]:
        """The state dicts that are combined, under the paths of their files."""
        return [
            Member(str(each.path), each.checkpoint.reader, each.tensors)
            for each in self.members.opened
        ]


# Options that give the weights, and options that choose checkpoints.
WEIGHING = ("weights", "schedule", "ema_decay", "sigma_rel", "between")
CHOOSING = ("role", "best", "last", "every", "skip_broken")
# Of the first, those that take the checkpoints as they are named.
ALONE = {
    "weights": {"best", "last", "every"},
    "between": {"best", "last", "every"},
    "sigma_rel": {*CHOOSING},
    "best": {"last", "every"},
}
# Options of a file of its own, which a copy of a checkpoint does not take.
OF_A_FILE = ("dtype", "wrap", "max_shard_size")


def refuse_contradictions(options: AverageOptions) -> None:
    """Refuse options that exclude each other.

    Raises:
        UsageError: two of them do.
    """
    given = [name for name in (*WEIGHING, *CHOOSING) if getattr(options, name) not in {None, False}]
    ways = [name for name in given if name in WEIGHING]
    excluded = [(one, other) for one in given for other in given if other in ALONE.get(one, ())]
    files = [("into", name) for name in OF_A_FILE if options.into and getattr(options, name)]
    pair = next(iter((*pairwise(ways), *excluded, *files)), ())
    if pair:
        one, other = (f"--{SPELLED.get(name, name.replace('_', '-'))}" for name in pair)
        raise UsageError(
            f"{one} and {other} exclude each other",
            hint="name the checkpoints in the order of their weights"
            if one == "--weights"
            else "leave out one of them",
        )
    if options.widths is not None and options.sigma_rel is None:
        raise UsageError("--widths are those of snapshots, for --sigma-rel")


SPELLED = {"role": "only"}


def choose(
    stack: ExitStack,
    operands: Sequence[Operand],
    options: AverageOptions,
    layouts: Layouts,
    broken: Mapping[str, str],
) -> Mixture:
    """Open the checkpoints that count, and return their shares; ``stack`` closes them.

    ``broken`` has the paths of files in directories that are left out, each with the reason.

    Raises:
        UsageError: they do not fit the options.
        CkptError: a checkpoint cannot be read, or it is not clear what to take from it.
    """
    if options.sigma_rel is not None:
        widths = parse_widths(options.widths)
        return Mixture(
            *open_snapshots(
                stack, operands, options.sigma_rel, widths, layouts, force=options.force
            )
        )
    opened = open_members(
        stack, operands, _role(options), layouts, skips=options.skip_broken, broken=broken
    )
    members, shares = _weighed(opened, options)
    intervals = _intervals(members)[0] if options.schedule is not None else None
    return Mixture(members, shares, _kind(shares.weights, options), intervals=intervals)


def _role(options: AverageOptions) -> str | None:
    """Return the role to take: a running mean of the whole run is found as its EMA."""
    role = options.role or ("ema" if options.between else None)
    return ROLE_NAMES[role] if role is not None else None


def _weighed(members: Members, options: AverageOptions) -> tuple[Members, Shares]:
    """Return the checkpoints that count, and their shares.

    Raises:
        UsageError: they do not fit the options.
    """
    if options.weights is not None:
        typed = given_shares(options.weights, len(members.opened))
        parts = tuple(typed.parts[at] for at in members.places)
        return _enough(members), typed._replace(parts=parts)
    refuse_strays(members)
    is_ordered = (options.schedule, options.ema_decay, options.last, options.every)
    if any(each is not None for each in is_ordered):
        refuse_disorder(members, by_step=options.ema_decay is not None)
    members = _enough(members.only(_places(members, options)))
    return members, _shares(members, options)


def _places(members: Members, options: AverageOptions) -> Sequence[int]:
    """Return the places of the members that count, the newest last."""
    places = range(len(members.opened))
    if options.best is None:
        return _newest(places[:: -(options.every or 1)], options)[::-1]
    metric, _, count = options.best.rpartition(":")
    if not metric or not count.isdecimal() or int(count) < 2:
        hint = direction_meant(options.best, ":5") or "like val_loss:5"
        raise UsageError(f"--best {options.best!r} is not METRIC:N", hint=hint)
    entries = [progress_entry(each.path) for each in members.opened]
    name, ranked = rank(metric, entries)
    if len(ranked) < int(count):
        raise UsageError(
            f"{len(ranked)} of the checkpoints have {name}, and --best asks for {int(count)}"
        )
    best = {entry.path for entry in ranked[: int(count)]}
    return [place for place in places if str(members.opened[place].path) in best]


def _newest(places: Sequence[int], options: AverageOptions) -> Sequence[int]:
    """Return the first places, as many as ``--last`` asks for.

    Raises:
        UsageError: there are fewer.
    """
    wanted = options.last or len(places)
    if wanted > len(places):
        every = f" with --every {options.every}" if options.every else ""
        raise UsageError(
            f"--last {wanted} asks for {wanted} checkpoints, and there are {len(places)}{every}",
            hint="leave it out to take all of them",
        )
    return places[:wanted]


def _enough(members: Members) -> Members:
    if len(members.opened) < 2:
        count = len(members.derived)
        left_out = f"; {count:,} that ckptool made of others do not count" if count else ""
        raise UsageError(f"an average takes at least two checkpoints{left_out}")
    return members


def _shares(members: Members, options: AverageOptions) -> Shares:
    count = len(members.opened)
    if options.ema_decay is not None:
        steps = [float(each.facts[STEP]) for each in members.opened]
        return ema_shares(steps, options.ema_decay)
    if options.between:
        if count != 2:
            raise UsageError(f"--between takes two checkpoints, and there are {count}")
        return shares_between(*map(_steps_in_mean, members.opened))
    if options.schedule is not None:
        return schedule_shares(options.schedule, _intervals(members)[1])
    return equal_shares(count)


EQUAL = "equal"


def _intervals(members: Members) -> tuple[str, Sequence[float]]:
    """Return the counter by whose gaps a schedule counts, and its values.

    Without a counter in all files that rises with their order, equal intervals are assumed.
    """
    counts = [each.facts.get(members.order) for each in members.opened]
    known = [float(each) for each in counts if each is not None]
    is_told = len(known) == len(counts) and all(a < b for a, b in pairwise(known))
    return (members.order, known) if is_told else (EQUAL, range(len(counts)))


def _steps_in_mean(each: Opened) -> int:
    checkpoint = each.checkpoint
    steps = steps_in_running_mean(checkpoint.tree, checkpoint.reader)
    if steps is None:
        raise UsageError(
            "it states no batch_idx_train and average_period: --between takes running means of all "
            "steps, as icefall saves them in model_avg",
            path=each.path,
        )
    return steps


def _kind(weights: Sequence[float], options: AverageOptions) -> str:
    """Return the kind of the result for its note; weights such as 1,0 or 2,-1 give no average."""
    if options.ema_decay is not None:
        return "ema"
    is_average = options.between or (min(weights) >= 0 and max(weights) < 1)
    return "swa" if is_average else "table"
