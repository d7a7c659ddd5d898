"""Conversion of a state dict, or of a whole checkpoint without some of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ckptool.commands.origin import converted_from
from ckptool.commands.parts import read_parts, write_whole
from ckptool.commands.state_dicts import ROLE_NAMES, state_dicts, take_state_dict
from ckptool.commands.writing import WriteOptions, choose_form, write_output
from ckptool.contents.renames import parse_rename, renamed_by
from ckptool.ema.candidates import EmaLocation
from ckptool.ema.layouts import Layouts
from ckptool.ema.locate import locate_ema
from ckptool.errors import UsageError, about
from ckptool.formats import open_checkpoint
from ckptool.formats.base import Checkpoint
from ckptool.formats.provenance import as_text
from ckptool.plans.extraction import Extraction, complete, renamed
from ckptool.plans.renaming import only_matching, without_matching
from ckptool.plans.rules import (
    Rule,
    RuleFile,
    Tensors,
    apply_rules,
    parse_rule,
    parse_rule_file,
    unfitted,
)
from ckptool.plans.validation import names_to_note
from ckptool.process.progress import Progress, no_progress
from ckptool.reports.write import ConvertReport
from ckptool.sources.local import LocalFile
from ckptool.tree.walking import children

MAX_RULES = 1 << 22  # bytes of a file of rules


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions(WriteOptions):
    """Options of ``convert``: which state dict and tensors it takes, and how it writes them."""

    address: str | None = None  # key path of the state dict, or a role
    renames: Sequence[str] = ()  # ``REGEX=REPL``, applied to each name in this order
    only: Sequence[str] = ()  # globs; one must match the name that results; or ``ema``, ``model``
    drop: Sequence[str] = ()  # globs; none may match it
    rules: Path | None = None  # a file of rules, which come before the options
    split: Sequence[str] = ()  # ``GLOB=NAME,NAME``, by the names as stored
    join: Sequence[str] = ()  # ``GLOB,GLOB=NAME``
    transpose: Sequence[str] = ()  # ``GLOB``
    whole: bool = False  # write the whole checkpoint, in a torch zip
    safe: bool = False  # the whole checkpoint as plain data, for torch.load(weights_only=True)


def convert(
    path: Path,
    output: str | Path,
    options: ConvertOptions = ConvertOptions(),
    *,
    progress: Progress = no_progress,
    layouts: Layouts = (),
    made_at: float | None = None,
) -> ConvertReport:
    """Write a state dict of ``path`` to ``output``.

    A state dict at a key path is taken as it is stored. ``@ema`` and ``@model`` are what
    ``extract-ema`` takes for them. Without an address, the checkpoint may hold only one state dict
    of weights, and no optimizer. Where parts are dropped, the whole checkpoint is written without
    them, in the container that it has.

    Args:
        path: the checkpoint.
        output: its suffix chooses the format; in a directory, the file has the source's name.
        options: the tensors to take, and how to write them.
        progress: called with the bytes written.
        layouts: custom layouts of the configuration, tried before the known ones.
        made_at: seconds since 1970 for the record of provenance; by default now.

    Raises:
        AddressError: there is no state dict at the key path; or several, and no key path.
        EmaNotFoundError, EmaAmbiguousError, EmaRefusedError: a role that the file does not have.
        UsageError: options exclude each other, or match nothing.
        UnsupportedError: the format cannot hold a tensor, or a part of what is taken cannot be
            written as plain tensors.
        OutputError: the output exists or cannot be written.
    """
    with open_checkpoint(path) as checkpoint:
        location = locate_ema(checkpoint, layouts=layouts)
        dropped = _dropped_parts(checkpoint, location, options)
        if dropped is not None:
            return write_whole(
                checkpoint,
                location,
                output,
                dropped,
                progress,
                safe=options.safe,
                force=options.force,
                dry_run=options.dry_run,
                made_at=made_at,
            )
        form = choose_form(path, output, options, path.resolve().stem + ".safetensors")
        address, globs = _asked(options)
        taken, kind, plan = take_state_dict(checkpoint, address, layouts, location)
        before = plan.tensors
        rules = _rules(plan, options)
        plan = complete(_chosen(plan, options, globs, rules.rules), checkpoint.path)
        options = replace(options, dtype=(*rules.dtypes, *options.dtype))
        note = as_text(converted_from(path, taken, kind, made_at))
        made = write_output(checkpoint, plan, form, options, note, progress)
        made = replace(made, findings=(*made.findings, *names_to_note(checkpoint)))
        return ConvertReport(
            path=str(path),
            address=taken,
            kind=kind,
            renamed=_renamed(before, plan.tensors),
            reshaped=_reshaped(before, plan.tensors),
            beside=_beside(checkpoint, taken),
            **vars(made),
        )


def _dropped_parts(
    checkpoint: Checkpoint, location: EmaLocation, options: ConvertOptions
) -> set[str] | None:
    """Return the top-level keys that a whole checkpoint is written without; None: weights only.

    A word of ``--drop`` that is a role or a top-level key means a part, and so do two roles of
    ``--only``, since one state dict cannot hold both.
    """
    roles = {name for name in options.only if name in ROLE_NAMES}
    is_part, is_whole = options.address is not None or len(roles) == 1, options.whole
    if is_whole and is_part:
        raise UsageError(
            "--whole writes all parts, and a part is named", hint="leave out one of the two"
        )
    if options.safe and not is_part:  # a state dict alone is plain data in any form
        is_whole = is_whole or checkpoint.format.is_rewritable
    if options.address is not None or not (is_whole or options.drop or len(roles) > 1):
        return None
    parts = read_parts(checkpoint, location)
    several = len(state_dicts(location)) + len(location.inventory.optimizers) > 1
    names_parts = any(map(parts.named, options.drop)) or several
    if not is_whole and len(roles) < 2 and (options.only or not names_parts):
        return None
    _refuse_for_weights(options)
    kept = parts.all_named(options.only) if options.only else set(parts.keys)
    return {key for key in parts.keys if key not in kept} | parts.all_named(options.drop)


def _refuse_for_weights(options: ConvertOptions) -> None:
    """Refuse options that a whole checkpoint has no use for."""
    given = {"--map": options.renames, "--dtype": options.dtype, "--wrap": options.wrap,
             "--max-shard-size": options.max_shard_size, "--rules": options.rules,
             "--split": options.split, "--join": options.join,
             "--transpose": options.transpose}  # fmt: skip
    misfit = next((name for name, value in given.items() if value), None)
    if misfit:
        raise UsageError(
            f"{misfit} is for weights, and a whole checkpoint is written here",
            hint="drop parts first, and convert the weights of the result",
        )


def _asked(options: ConvertOptions) -> tuple[str | None, Sequence[str]]:
    """Return the address and the globs of ``--only``, which may also name a role."""
    roles = [name for name in options.only if name in ROLE_NAMES]
    if not roles:
        return options.address, options.only
    if options.address is not None:
        raise UsageError(
            f"--only {roles[-1]} names a state dict, and another one is named too",
            hint="one output holds one state dict: run convert for each",
        )
    return ROLE_NAMES[roles[0]], [name for name in options.only if name not in ROLE_NAMES]


def _chosen(
    plan: Extraction, options: ConvertOptions, globs: Sequence[str], rules: Sequence[Rule]
) -> Extraction:
    """Return the plan after the rules, ``--map``, ``--only`` and ``--drop``, in this order."""
    if rules:
        made = apply_rules(plan.tensors, rules)
        averaged = frozenset(name for name in made if name in plan.averaged)
        plan = plan._replace(tensors=made, averaged=averaged, from_model=())
    if options.renames:
        renames = [parse_rename(text) for text in options.renames]
        names = (*plan.tensors, *plan.refused)
        for text, one in zip(options.renames, renames, strict=True):
            if not any(one[0].search(name) for name in names):
                raise UsageError(f"--map {text!r}: no tensor's name matches {one[0].pattern!r}")
            names = tuple(renamed_by([one], name) for name in names)
        plan = renamed(plan, lambda name: renamed_by(renames, name), "by --map", "narrow REGEX")
    plan = only_matching(plan, globs) if globs else plan
    return without_matching(plan, options.drop) if options.drop else plan


def _rules(plan: Extraction, options: ConvertOptions) -> RuleFile:
    """Return the rules of the file and then of the options, in their order."""
    given = {"split": options.split, "transpose": options.transpose, "join": options.join}
    typed = tuple(parse_rule(option, text) for option, texts in given.items() for text in texts)
    if options.rules is None:
        return RuleFile(typed)
    try:
        with about(options.rules), LocalFile(options.rules) as file:
            found = parse_rule_file(file.head(MAX_RULES).decode())
    except UnicodeDecodeError as error:
        raise UsageError("no TOML: it is not UTF-8", path=options.rules) from error
    left = unfitted(plan.tensors, (*found.rules, *typed)) if found.takes_all else []
    if left:
        raise UsageError(
            f"every_tensor is set, and no rule fits {len(left)} of them, such as {left[0]!r}",
            path=options.rules,
        )
    return found._replace(rules=(*found.rules, *typed))


def _renamed(before: Tensors, after: Tensors) -> int:
    """Return the number of tensors that are the same under another name."""
    names: dict[int, set[str]] = {}
    for name, ref in before.items():
        names.setdefault(id(ref), set()).add(name)
    return sum(name not in names.get(id(ref), {name}) for name, ref in after.items())


def _reshaped(before: Tensors, after: Tensors) -> int:
    """Return the number of tensors that rules have made of others."""
    known = set(map(id, before.values()))
    return sum(id(ref) not in known for ref in after.values())


def _beside(checkpoint: Checkpoint, taken: str) -> tuple[str, ...]:
    """Return the top-level keys of the checkpoint that the output lacks."""
    if not taken:
        return ()
    top = taken.partition("/")[0]
    return tuple(str(key) for key, _ in children(checkpoint.tree) if str(key) != top)
