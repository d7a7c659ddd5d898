"""Errors of ckptool, each with a code for machines and a hint for people.

An error states the problem, its place (file, key path) and its reason. Its hint states what to type
next. The command line prints both lines and exits with 2; nothing else in the package knows about
exit codes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self


class CkptError(Exception):
    """Base class of the errors of ckptool: something could not be done.

    Attributes:
        message: the problem and its reason, without the path.
        path: the file concerned, or None.
        address: the key path in the checkpoint's tree, written ``a/b/0``, or None.
        hint: the next thing to type or to look at, or None.
        dangers: names that a loader would have met before it, too, failed.
        rule: the id of the rule that is broken, or None.
        size: the bytes of the file at ``path``, where it was opened; or None.
        adding: words with which the same command goes on, or () where no words help.
    """

    code: ClassVar[str] = "error"
    default_hint: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        path: Path | str | None = None,
        address: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = Path(path) if isinstance(path, str) else path
        self.address = address
        self.hint = hint or self.default_hint
        self.dangers: tuple[str, ...] = ()
        self.rule: str | None = None  # of ``reports/rules.py``, where the reader knows it
        self.size: int | None = None
        self.adding: tuple[str, ...] = ()

    def add(self, more: str) -> None:
        """Append ``more`` to the message."""
        self.message += more
        self.args = (self.message,)

    def at(self, path: Path) -> Self:
        """Set the file, unless the error has a path already, and return the error."""
        self.path = self.path or path
        return self

    @property
    def document(self) -> dict[str, str | None]:
        """The parts that every report of the error has."""
        return {
            "code": self.code,
            "message": self.message,
            "path": None if self.path is None else str(self.path),
            "address": self.address,
            "hint": self.hint,
        }

    def __str__(self) -> str:
        where = [str(self.path)] if self.path else []
        where += [self.address] if self.address else []
        return ": ".join([*where, self.message])


class UnreadableError(CkptError):
    """A path that cannot be read at all: missing, a directory, no permission, no regular file."""

    code = "unreadable"
    default_hint = "check the path: ls -l shows what is there"


class UnknownFormatError(CkptError):
    """A file whose bytes are readable but in no checkpoint format that ckptool knows."""

    code = "unknown-format"
    default_hint = (
        "ckptool reads files of torch.save, safetensors files and plain pickles of modules"
    )


class DamagedError(CkptError):
    """A file that begins like a known format and then breaks its rules, or ends too soon."""

    code = "damaged"
    default_hint = "compare the size with the original; a copy that broke off must be made again"


class AbsentError(DamagedError):
    """A tensor that an index names, but that is not in the file to which the index points."""

    default_hint = "fetch the file and its index again, both from one save"


class UnsupportedError(CkptError):
    """A request that cannot be carried out although the file is in order."""

    code = "unsupported"
    default_hint = "load it with the library that wrote it, and save what you need as a state dict"


class RepetitionError(UnsupportedError):
    """Tensors that view the same bytes so often that to read all of them would take too long.

    A check that meets it fails, unlike one that meets another :class:`UnsupportedError`.
    """

    default_hint = "name a part of the file: PATH#ADDRESS"


class AddressError(CkptError):
    """A key path that is not in the checkpoint's tree, or that holds no weights."""

    code = "no-such-address"
    default_hint = "ckptool inspect PATH --tensors lists the addresses"


class EmaNotFoundError(CkptError):
    """A checkpoint that stores no EMA weights beside the model's, or no model."""

    code = "ema-not-found"


class EmaAmbiguousError(CkptError):
    """Several key paths that could hold the EMA weights, or names that do not pair one to one."""

    code = "ema-ambiguous"


class EmaRefusedError(CkptError):
    """EMA weights that it would be wrong to take: non-finite, or unfit for the model."""

    code = "ema-refused"


class OutputError(CkptError):
    """An output that cannot or must not be written."""

    code = "output"


class UsageError(CkptError):
    """Arguments of the command line that do not go together."""

    code = "usage"


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Set the file of an error, unless it has a path already."""
    try:
        yield
    except CkptError as error:
        error.at(path)
        raise


MORE_ROOM = "make room, or name a file on another disk"
# Number of an error of the system, met while writing -> what to do.
SYSTEM_HINTS: Mapping[int, str] = {
    errno.ENOSPC: MORE_ROOM,
    errno.EDQUOT: MORE_ROOM,
    errno.EFBIG: "ulimit -f shows the limit; ckptool convert --max-shard-size writes several files",
    errno.EROFS: "name a file on another disk",
    errno.EACCES: "ls -ld shows who may write there",
}


def as_ckpt_error(error: Exception) -> CkptError:
    """Return an error of the system as one of ckptool; raise any other again."""
    if isinstance(error, CkptError):
        return error
    if isinstance(error, MemoryError):
        return CkptError("not enough memory", hint="free -h shows how much there is")
    if isinstance(error, RecursionError):
        return CkptError(
            "nested too deep to be read", hint="such a file was made by hand or is damaged"
        )
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return CkptError(reason, path=error.filename, hint=SYSTEM_HINTS.get(error.errno or 0))
    raise error


_KINDS: tuple[type[CkptError], ...] = (CkptError, *CkptError.__subclasses__())
BY_CODE: Mapping[str, type[CkptError]] = {kind.code: kind for kind in _KINDS}
