"""Classes that any module hands out: the tables have all of their kinds that are installed."""

from __future__ import annotations

import importlib
import io
import itertools
import typing
from collections.abc import Iterator

import pytest

from ckptool.formats.pickles.imported import IMPORTED, may_be_acting_method
from ckptool.formats.pickles.tools import CLASSES_THAT_ACT
from helpers.assembling import call, name, text
from helpers.quiet import is_reported

# Modules that define files, which are loaded so that these are known.
WITH_FILES = (
    "bz2", "doctest", "gzip", "http.client", "io", "lzma", "socket", "socketserver", "tarfile",
    "tempfile", "xml.etree.ElementTree", "xmlrpc.client", "zipfile",
)  # fmt: skip


def below(cls: type) -> Iterator[type]:
    """The classes that are derived from one, at any depth."""
    for each in cls.__subclasses__():
        yield each
        yield from below(each)


def of_python(cls: type) -> bool:
    return cls.__module__ in WITH_FILES


def test_files_are_imported():
    for module in WITH_FILES:
        importlib.import_module(module)
    missing = {each.__name__ for each in below(io.IOBase) if of_python(each)} - IMPORTED
    assert missing <= {"_IOBase", "_RawIOBase", "_BufferedIOBase", "_TextIOBase"}


def test_iterators_are_imported():
    public = {each for each in vars(itertools) if not each.startswith("_")}
    assert public <= IMPORTED
    assert {"map", "filter", "zip", "enumerate", "reversed"} <= IMPORTED


def test_aliases_of_types_are_imported():
    aliases = {each.__name__ for each in below(typing._BaseGenericAlias)}
    assert {each for each in aliases if hasattr(typing, each)} <= IMPORTED


@pytest.mark.parametrize(
    ("owner", "method", "acts"),
    [
        ("somelib.files.Path", "touch", True),
        ("somelib.PosixPath", "write_text", True),
        ("somelib.Tools.ExitStack", "callback", True),
        ("somelib.TarFile", "extractall", True),
        ("somelib.Profile", "runctx", True),
        ("somelib.Profile", "name", False),
        ("somelib.Runner", "step", False),
    ],
)
def test_a_method_of_a_class_of_python_is_not_looked_up_under_another_name(owner, method, acts):
    assert may_be_acting_method(owner, method) is acts
    assert is_reported(call("builtins.getattr", name(owner), text(method))) is acts


@pytest.mark.parametrize("name_of_class", sorted(CLASSES_THAT_ACT))
def test_classes_of_cpp_that_act_are_reported(name_of_class):
    last = name_of_class.rpartition(".")[2]
    assert is_reported(name(name_of_class))
    assert is_reported(name(f"torch.distributed.rendezvous.{last}"))
