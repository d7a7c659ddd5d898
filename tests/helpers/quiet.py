"""A loader in a process of its own, and a module whose functions it counts the calls of.

``quietlib`` is a module that no list of names has: what it does is not to be told by its names, so
that only the grammar of values can tell. A payload counts if ``quietlib.touch`` was called.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ckptool.errors import CkptError
from ckptool.formats.base import DANGEROUS
from ckptool.formats.pickles.plain_names import trust_of
from ckptool.formats.pickles.reader import Pickles
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from helpers.assembling import program
from helpers.output import environment

QUIETLIB = """
import collections, dataclasses, datetime, enum, os, sys, types
import torch

calls = 0
def touch(*args, **kwargs):
    global calls
    calls += 1

def stop():
    touch(); raise StopIteration

class Plain: pass
class Base:
    def __new__(cls, *args, **kwargs): return object.__new__(cls)
    def __init__(self, *args, **kwargs): touch()
class Made(Base):
    def __new__(cls, *args, **kwargs): touch(); return object.__new__(cls)
class Meta(type): pass
class Word(str, enum.Enum):
    APPEND = "append"
class Named(torch.Tensor): pass
class Answers:
    def __getattr__(self, name): touch(); raise AttributeError(name)
for name in ("iter", "len", "index", "int", "float", "complex", "str", "repr", "bytes", "format",
             "getitem", "contains", "call", "lt", "gt", "add", "radd", "mul", "rmul", "bool",
             "fspath", "array", "neg", "eq", "trunc", "setitem", "enter", "length_hint"):
    setattr(Answers, f"__{name}__", touch)
Answers.__hash__ = object.__hash__
class Caller:
    pass
for name in ("iter", "eq", "hash", "str", "repr", "float", "int", "index", "array", "bool", "len",
             "getitem"):
    setattr(Caller, f"__{name}__", lambda self, *args: self.held())
class Zone(datetime.tzinfo): pass
class RealZone(datetime.tzinfo):
    def utcoffset(self, date): return datetime.timedelta(0)
class Apply:
    def __new__(cls, function, *args): function(*args); return object.__new__(cls)
class Closes:
    close = touch
class Text(str): pass
class Set(set): pass
class Dict(dict): pass
Pair = collections.namedtuple("Pair", "first second")
def tested(self, *args, **kwargs):
    touch()
    return iter(())
from types import CodeType, FunctionType  # as many modules do
from torch import SymInt
from torch.optim import Optimizer
from torch.utils.data.dataloader import _IterDataPipeSerializationWrapper
import numpy._pytesttester
numpy._pytesttester.PytestTester.__call__ = tested  # instead of the tests of a package

# Classes of Python and torch that other modules import, or derive theirs from.
from itertools import product
from multiprocessing.synchronize import Barrier
from random import Random
from subprocess import Popen
from urllib.request import URLopener
from weakref import finalize, ref
from zipfile import ZipFile
from torch.nn import LSTM
from torch.optim import Adam
from numpy.lib._npyio_impl import NpzFile
class Error(Exception): pass
class Recurrent(LSTM): pass
class Optimizes(Adam): pass
class Archive(ZipFile): pass
class Program(Popen): pass
class Dice(Random): pass
import array, io, pickle
from asyncio.futures import _PyFuture
from asyncio.selector_events import _SelectorDatagramTransport
import numpy
class Matrix(numpy.matrix): pass
class Float(numpy.float64): pass
class Product(product): pass
class Reference(ref): pass
class Transport(_SelectorDatagramTransport): pass
class Promise(_PyFuture): pass
class Pickles(pickle.Pickler): pass
class Wrapper(io.TextIOWrapper):
    def __del__(self): self.detach()
class Numbers(array.array): pass
class Rows(numpy.ndarray): pass
class Tester(numpy._pytesttester.PytestTester): pass
from http.client import HTTPResponse
from itertools import groupby
from typing import _GenericAlias
class Response(HTTPResponse): pass
class Items(list): pass
ALL = slice(None)
class Proxy:  # sets its attributes on another object
    def __new__(cls, other=None):
        made = object.__new__(cls)
        object.__setattr__(made, "other", other)
        return made
    def __setattr__(self, name, value):
        if name == "other": object.__setattr__(self, name, value)
        else: setattr(self.other, name, value)
class Same:
    def __hash__(self): return 1
    def __eq__(self, other): return bool(self.held["x"])
class Default(collections.defaultdict): pass
class Sorted(dict):
    def __setitem__(self, key, value):
        if hasattr(self, "_list_add"): self._list_add(key)
        dict.__setitem__(self, key, value)
class Closing(torch.nn.Module):
    def __del__(self): self.close()
@dataclasses.dataclass(frozen=True)
class Key: when: object
SETDEFAULT = "setdefault"

# What tensordict does, which need not be installed.
def make_td(cls, state):
    made = cls.__new__(cls)
    for key, value in state.items():
        setattr(made, key, value)
    if made._is_locked:
        made._is_locked = False
        made.lock_()
    return made
for package in ("tensordict", "tensordict._reductions"):
    sys.modules[package] = types.ModuleType(package)
sys.modules["tensordict._reductions"]._make_td = make_td
"""
# Loads each file in this process; whether the payload was called, and what the loader said.
LOADER = """
import gc, io, json, signal, sys, warnings
warnings.simplefilter("ignore")
import torch, quietlib
from torch import distributed
# Whole DistributedDataParallel objects are loaded in a group of processes only.
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
gc.freeze()  # what is imported by now is no garbage, and takes half a second to look through
for line in sys.stdin:
    quietlib.calls = 0
    signal.alarm(5)  # ends the process
    try:
        torch.load(io.BytesIO(bytes.fromhex(line)), weights_only=False)
        said = "loaded"
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    gc.collect()
    print(json.dumps([quietlib.calls, said]), flush=True)
"""


class Loader:
    """A process that loads files, one after the other."""

    def __init__(self, folder: Path) -> None:
        (folder / "quietlib.py").write_text(QUIETLIB)
        self._folder = folder
        self._process = self._start()

    def _start(self) -> subprocess.Popen:
        env = environment() | {"PYTHONPATH": str(self._folder)}
        return subprocess.Popen(
            [sys.executable, "-c", LOADER], env=env, cwd=self._folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def load(self, file: bytes) -> tuple[int, str]:
        """How often a trusting loader calls the payload in a file, and what it says."""
        print(file.hex(), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:  # torch crashes on some files that no pickler writes
            self.end()
            self._process = self._start()
            return 0, "the loader died"
        calls, said = json.loads(line)
        return calls, said

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()


@contextmanager
def loader(folder: Path) -> Iterator[Loader]:
    started = Loader(folder)
    try:
        yield started
    finally:
        started.end()


def is_reported(body: bytes) -> bool:
    """A pickle of this value has a dangerous name."""
    pickles = Pickles("data.pkl", lambda _data, _pickles: None)
    four = Memory(bytes(16))
    builder = TorchBuilder(lambda _key, nbytes: ByteSpan(four, 0, nbytes), pickles.open_nested)
    with suppress(CkptError):
        pickles.read(Memory(program(body)), builder)
    return any(trust_of(named) == DANGEROUS for named in pickles.globals_named)
