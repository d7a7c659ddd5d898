"""Everything that ckptool can refuse, each with a code for machines and a hint for people.

An error says what is wrong, where (file, address) and why; its hint says what to type next. The
command line prints both lines and exits with 2; nothing else in the package knows about exit codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self


class CkptError(Exception):
    """Something could not be done.

    Attributes:
        message: what is wrong and why, without the path.
        path: the file concerned, or None.
        address: the place in the checkpoint's tree, written ``a/b/0``, or None.
        hint: the next thing to type or to look at, or None.
        dangers: names that a loader would have met before it failed likewise.
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
        self.path = None if path is None else Path(path)
        self.address = address
        self.hint = hint or self.default_hint
        self.dangers: tuple[str, ...] = ()

    def add(self, more: str) -> None:
        """Say more of what is wrong."""
        self.message += more
        self.args = (self.message,)

    def at(self, path: Path) -> Self:
        """The same error, now knowing its file; a path it has already stays."""
        self.path = self.path or path
        return self

    def __str__(self) -> str:
        where = [str(self.path)] if self.path else []
        where += [self.address] if self.address else []
        return ": ".join([*where, self.message])


class UnreadableError(CkptError):
    """The path cannot be read at all: missing, a directory, no permission, not a regular file."""

    code = "unreadable"
    default_hint = "check the path: ls -l shows what is there"


class UnknownFormatError(CkptError):
    """The bytes are readable but are no checkpoint format that ckptool knows."""

    code = "unknown-format"
    default_hint = (
        "ckptool reads files of torch.save, safetensors files and plain pickles of modules"
    )


class DamagedError(CkptError):
    """The file begins like a known format and then breaks its rules, or ends too soon."""

    code = "damaged"
    default_hint = "compare the size with the original; a copy that broke off must be made again"


class UnsupportedError(CkptError):
    """The file is in order, but what was asked for cannot be done with it."""

    code = "unsupported"


class AddressError(CkptError):
    """No such place in the checkpoint's tree, or the place holds no weights."""

    code = "no-such-address"
    default_hint = "ckptool inspect PATH --tensors lists the addresses"


class EmaNotFoundError(CkptError):
    """No averaged weights are stored beside the model's."""

    code = "ema-not-found"


class EmaAmbiguousError(CkptError):
    """More than one place could hold the averaged weights, or names cannot be paired one to one."""

    code = "ema-ambiguous"


class EmaRefusedError(CkptError):
    """There is a candidate, but taking it would be wrong: not finite, or the raw weights."""

    code = "ema-refused"


class OutputError(CkptError):
    """The output cannot or must not be written."""

    code = "output"


class UsageError(CkptError):
    """The command line asks for something that does not go together."""

    code = "usage"


_KINDS: tuple[type[CkptError], ...] = (CkptError, *CkptError.__subclasses__())
BY_CODE: Mapping[str, type[CkptError]] = {kind.code: kind for kind in _KINDS}
