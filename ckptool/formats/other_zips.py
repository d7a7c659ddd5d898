"""Zips that are no file of ``torch.save``, and files of torch that are such zips besides."""

from __future__ import annotations

from collections.abc import Iterable

from ckptool.errors import DamagedError, UnknownFormatError
from ckptool.formats.zips.records import ZipArchive

AGENT = "data"  # stable-baselines3's JSON
OF_ARCHIVES = (".ckpt", ".pt", ".pth", ".safetensors", ".tar", ".th")  # suffixes of what they hold
_NO_ACCIDENT = "get it from its author again; no program writes such a file by accident"
_UNPACK = "unpack it and point ckptool at the checkpoint inside"

_EXPORTED = (
    "an exported program of torch.export (.pt2)",
    "take its weights with torch: torch.save(torch.export.load(PATH).state_dict, 'weights.pt')",
)
# Names of records in other zips, with the kind of zip and the hint for it.
# fmt: off
_OTHER_ZIPS = (
    ("/archive_format", *_EXPORTED),
    ("serialized_exported_program.json", *_EXPORTED),
    (".data/extern_modules", "an archive of torch.package",
     "take its weights with torch.package.PackageImporter(PATH).load_pickle and torch.save"),
    ("/model.json", "a TorchScript archive of torch 1.0 or 1.1",
     "load it with torch.jit.load of that time, and save the state dict"),
    (".npy", "a numpy .npz archive", "numpy.load reads it"),
    (".weights.h5", "a Keras archive", "load it with Keras and save the weights as safetensors"),
)
# fmt: on


def other_zip(archive: ZipArchive) -> UnknownFormatError | None:
    """Return the error for a zip of another program, if the names of its records tell which."""
    names = [record.name for record in archive.records]
    for suffix, what, hint in _OTHER_ZIPS:
        if any(name.endswith(suffix) for name in names):
            return UnknownFormatError(f"{what}, not a file of torch.save", hint=hint)
    return None


def not_from_torch(archive: ZipArchive) -> UnknownFormatError:
    """Return the error for a zip without the pickle of ``torch.save``."""
    names = [record.name for record in archive.records]
    shown = ", ".join(repr(name)[:40] for name in names[:4]) or "nothing"
    return other_zip(archive) or UnknownFormatError(
        f"a zip archive without data.pkl, so not written by torch.save; it holds {shown}",
        hint=_UNPACK,
    )


# Records in the archive's own directory by which other loaders know it, which run what is in it.
_PROGRAMS = {
    "archive_format": "torch.export.load", "serialized_exported_program.json": "torch.export.load",
    ".data/extern_modules": "torch.package", "model.json": "torch.jit.load of some versions",
}  # fmt: skip


def refuse_programs(archive: ZipArchive, folder: str) -> None:
    """Refuse a file of torch that is an archive of a program too: its loader runs another content.

    Raises:
        DamagedError: a record in the archive's directory says so.
    """
    for name, loader in _PROGRAMS.items():
        if archive.get(folder + name) is not None:
            raise DamagedError(
                f"two files in one: a file of torch.save, and an archive that {loader} reads by "
                f"its record {name!r}",
                hint=_NO_ACCIDENT,
            )


def refuse_checkpoints(names: Iterable[str]) -> None:
    """Refuse a file of torch that is an archive of checkpoints too: its loader reads those alone.

    Raises:
        DamagedError: one of the members is called as an agent's settings, or as a checkpoint.
    """
    for name in names:
        if name == AGENT or name.endswith(OF_ARCHIVES):
            raise DamagedError(
                f"two files in one: a file of torch.save, and an archive that holds {name!r:.80}, "
                "which the loaders of agents and of NeMo read",
                hint=_NO_ACCIDENT,
            )
