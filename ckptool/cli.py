"""The command line: the only module that knows the terminal, the environment and exit codes.

Everything it does with a checkpoint is one call into ``commands``. Whatever the input, there is no
traceback: :func:`main` turns every refusal into an ``error:`` line, a ``hint:`` line and exit code
2.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ckptool import __version__
from ckptool.errors import CkptError, UsageError
from ckptool.render.as_json import to_json
from ckptool.reports import ErrorReport

if TYPE_CHECKING:
    from ckptool.layouts import Layouts

DONE, NO, CANNOT, INTERRUPTED = 0, 1, 2, 130
PROGRESS_AFTER = 1.0  # seconds
PROGRESS_EVERY = 0.1

ClickError: type[Exception] = typer.BadParameter.__mro__[2]  # click's own base, wherever it lives

app = typer.Typer(
    name="ckptool",
    help="Look into training checkpoints, find the averaged weights, get them out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Color = Literal["auto", "always", "never"]
PathOperand = Annotated[Path, typer.Argument(metavar="PATH", help="The checkpoint.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")]
ColorOption = Annotated[Color, typer.Option(help="When to colour the output.")]
EmaOption = Annotated[
    str | None,
    typer.Option(
        "--ema", metavar="ADDRESS", help="Where the averaged weights are: a/b or a/prefix*."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="ADDRESS", help="Which weights they average: a/b or a/prefix*."
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace an existing file; take values that are not finite.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be written.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"ckptool {__version__}\n")


@app.command()
def inspect(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Checkpoints, or a run's folder.")
    ],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    match: Annotated[
        str | None, typer.Option(metavar="GLOB", help="List the tensors whose address fits.")
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Read the listed values: range, mean, norm, not finite.")
    ] = False,
    json: JsonOption = False,
    color: ColorOption = "auto",
) -> None:
    """Show what a checkpoint holds, where its EMA is, what training state rides along."""
    from ckptool.commands.inspect import inspect_directory, inspect_file, is_run  # noqa: PLC0415

    reports: list[Any] = []
    with _progress("reading") as progress:
        for path in paths:
            if is_run(path):
                reports.append(inspect_directory(path, layouts=_house_layouts()))
            else:
                reports.append(
                    inspect_file(
                        path,
                        list_tensors=tensors,
                        match=match,
                        stats=stats,
                        progress=progress,
                        layouts=_house_layouts(),
                    )
                )
    _answer(reports if len(reports) > 1 else reports[0], json=json, color=color)


@app.command("extract-ema")
def extract_ema(
    path: PathOperand,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="The suffix chooses the format: .safetensors, or .pt .pth .ckpt .bin for torch. "
            "By default PATH with .ema.safetensors.",
        ),
    ] = None,
    ema: EmaOption = None,
    model: ModelOption = None,
    names: Annotated[
        Literal["model", "bare", "ema"],
        typer.Option(help="Names as in the model's slot, those without wrappers, or as stored."),
    ] = "model",
    wrap: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Put the state dict under this key (torch files)."),
    ] = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    color: ColorOption = "auto",
) -> None:
    """Write the averaged weights as a file of their own, ready for inference."""
    from ckptool.commands.extract_ema import extract_ema as run_extract  # noqa: PLC0415

    with _progress("extracting") as progress:
        report = run_extract(
            path, output, ema=ema, model=model, names=names, wrap=wrap, force=force,
            dry_run=dry_run, progress=progress, layouts=_house_layouts(),
        )  # fmt: skip
    _answer(report, json=json, color=color)


@app.command("promote-ema")
def promote_ema(
    path: PathOperand,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help="The file to write.")
    ],
    ema: EmaOption = None,
    model: ModelOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    color: ColorOption = "auto",
) -> None:
    """Write a copy whose model slot holds the averaged weights, all else untouched."""
    from ckptool.commands.promote_ema import promote_ema as run_promote  # noqa: PLC0415

    with _progress("promoting") as progress:
        report = run_promote(
            path,
            output,
            ema=ema,
            model=model,
            force=force,
            dry_run=dry_run,
            progress=progress,
            layouts=_house_layouts(),
        )
    _answer(report, json=json, color=color)


@app.command()
def layouts(json: JsonOption = False, color: ColorOption = "auto") -> None:
    """List where frameworks are known to keep averaged weights."""
    from ckptool.layouts import LAYOUTS  # noqa: PLC0415
    from ckptool.reports import LayoutsReport  # noqa: PLC0415

    _answer(LayoutsReport((*_house_layouts(), *LAYOUTS)), json=json, color=color)


def _house_layouts() -> Layouts:
    """Rows of the configuration at or above the working directory."""
    from ckptool.config import read_layouts  # noqa: PLC0415

    return read_layouts(Path.cwd())


# ------------------------------------------------------------------------------------------ output


def _answer(report: Any, *, json: bool, color: str) -> None:
    if json:
        sys.stdout.write(to_json(report) + "\n")
        return
    from ckptool.render.terminal import show  # noqa: PLC0415

    reports = report if isinstance(report, list) else [report]
    for i, one in enumerate(reports):
        if i:
            sys.stdout.write("\n")
        show(one, sys.stdout, _color(color))


@contextlib.contextmanager
def _progress(verb: str) -> Iterator[Callable[[int], None]]:
    """Bytes and rate on stderr, on a terminal only, once something takes over a second."""
    done, begun, shown = 0, time.monotonic(), 0.0
    is_terminal = sys.stderr.isatty()

    def advance(nbytes: int) -> None:
        nonlocal done, shown
        done += nbytes
        now = time.monotonic()
        if is_terminal and now - begun > PROGRESS_AFTER and now - shown > PROGRESS_EVERY:
            shown = now
            rate = done / (now - begun) / 2**20
            sys.stderr.write(f"\r{verb}: {done / 2**20:,.0f} MiB, {rate:,.0f} MiB/s ")
            sys.stderr.flush()

    try:
        yield advance
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")


# ------------------------------------------------------------------------------------------- errors


def main(args: Sequence[str]) -> int:
    """Run one command and return its exit code; every error becomes text or a document."""
    try:
        # Commands answer nothing; typer answers with a code when one exits or is interrupted.
        code = app(args=list(args) or ["--help"], standalone_mode=False, prog_name="ckptool")
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # typer exits when a pipe breaks
        _close_stdout()
    except tuple(TRANSLATIONS) as error:
        return _refuse(_translated(error), as_json="--json" in args, color=_asked_color(args))
    else:
        return code if isinstance(code, int) else DONE
    return DONE


def _translated(error: Exception) -> CkptError:
    return next(make(error) for kind, make in TRANSLATIONS.items() if isinstance(error, kind))


def _usage_error(error: Any) -> CkptError:
    message = getattr(error, "format_message", lambda: str(error))().rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "ckptool"
    return UsageError(message, hint=f"{command} --help")


def _system_error(error: Any) -> CkptError:
    return CkptError(error.strerror or str(error), path=error.filename)


def _bug(error: Any) -> CkptError:
    """A mistake of ours: still one line, and a way to see more."""
    if os.environ.get("CKPTOOL_DEBUG"):
        raise error
    return CkptError(
        f"a bug in ckptool: {type(error).__name__}: {error}",
        hint="CKPTOOL_DEBUG=1 shows where; please report it with the format of the file",
    )


# What can go wrong, and how it is said.
TRANSLATIONS: dict[type[Exception], Callable[[Any], CkptError]] = {
    CkptError: lambda error: error,
    ClickError: _usage_error,
    RecursionError: lambda _: CkptError("nested too deep to be read"),
    MemoryError: lambda _: CkptError("not enough memory"),
    OSError: _system_error,
    Exception: _bug,
}


def _refuse(error: CkptError, *, as_json: bool, color: str) -> int:
    report = ErrorReport(
        error={
            "code": error.code,
            "message": error.message,
            "path": None if error.path is None else str(error.path),
            "address": error.address,
            "hint": error.hint or "ckptool --help",
        }
    )
    with contextlib.suppress(OSError, AttributeError):  # nobody can be told: the code still says it
        if as_json:
            sys.stdout.write(to_json(report) + "\n")
        else:
            from ckptool.render.terminal import show  # noqa: PLC0415

            show(report, sys.stderr, _color(color))
    return CANNOT


def _color(asked: str) -> str:
    """FORCE_COLOR colours pipes too, unless an option or NO_COLOR says otherwise."""
    forced = os.environ.get("FORCE_COLOR") and not os.environ.get("NO_COLOR")
    return "always" if asked == "auto" and forced else asked


def _asked_color(args: Sequence[str]) -> str:
    """The colour option, also when the rest of the command line cannot be understood."""
    for i, arg in enumerate(args):
        if arg.startswith("--color="):
            return arg.partition("=")[2]
        if arg == "--color" and i + 1 < len(args):
            return args[i + 1]
    return "auto"


def _close_stdout() -> None:
    """The reader went away (``| head``): nothing is wrong, and nothing more may be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt


def run() -> None:
    """The console script."""
    gc.disable()  # a short process that frees nothing; collection costs a fifth of a large pickle
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)  # so that no partial file is left
    code = main(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        _close_stdout()
    except (OSError, AttributeError):  # a full disk behind the pipe, or no output at all
        code = CANNOT
    # Every file is closed and in place; taking a tree of 100,000 tensors apart would cost 0.3 s.
    os._exit(code)
