"""How far the names in a pickle can be trusted: known, unknown or dangerous. Deny by default.

``known`` are the calls that ckptool itself understands and a short vetted list of classes.
``dangerous`` are modules whose functions run code or touch the system, and every other function
that the pickle would *call*: a loader that obeyed would run it. ``unknown`` is an object of a
class that we do not know.
"""

from __future__ import annotations

from ckptool.dtypes import BY_NAME, BY_STORAGE_CLASS
from ckptool.formats.base import NamedGlobal
from ckptool.formats.torch_objects import VETTED_CALLS
from ckptool.tree import GlobalRef

KNOWN, UNKNOWN, DANGEROUS = "known", "unknown", "dangerous"

# Top-level modules whose functions run code, load code or reach the system.
DANGEROUS_MODULES = frozenset({
    "os", "posix", "nt", "subprocess", "commands", "sys", "runpy", "importlib", "imp", "pkgutil",
    "code", "codeop", "ctypes", "_ctypes", "cffi", "socket", "_socket", "ssl", "http", "urllib",
    "urllib2", "httplib", "requests", "ftplib", "smtplib", "telnetlib", "webbrowser", "asyncio",
    "multiprocessing", "threading", "_thread", "signal", "shutil", "tempfile", "glob", "pty",
    "platform", "marshal", "types", "pickle", "_pickle", "cPickle", "dill", "cloudpickle",
    "joblib", "shelve", "inspect", "gc", "atexit", "bdb", "pdb", "profile", "cProfile", "timeit",
    "trace", "doctest", "unittest", "venv", "pip", "setuptools", "distutils", "zipimport",
    "zipfile", "tarfile", "io", "_io", "fileinput", "operator", "_operator", "builtins",
    "__builtin__", "functools", "idlelib", "lib2to3", "pydoc", "site", "test", "numpy.testing",
    "torch.hub", "torch.utils.cpp_extension", "torch.jit",
})  # fmt: skip

VETTED_CLASSES = frozenset({
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
    "argparse.Namespace", "types.SimpleNamespace", "functools.partial", "torch.device",
    "torch.dtype", "torch.Size", "torch.Tensor", "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer", "torch.torch_version.TorchVersion",
    "torch.serialization._get_layout", "torch.Generator", "numpy.ndarray", "numpy.dtype",
    "numpy.bool_", "numpy.float32", "numpy.float64", "numpy.int64",
    "numpy.random._pickle.__randomstate_ctor", "numpy.random._pickle.__generator_ctor",
    "numpy.random._pickle.__bit_generator_ctor", "numpy.random._mt19937.MT19937",
    "numpy.random._pcg64.PCG64", "datetime.datetime", "datetime.timedelta", "datetime.date",
    "datetime.timezone", "decimal.Decimal", "fractions.Fraction", "uuid.UUID", "builtins.object",
    "builtins.slice", "builtins.int", "builtins.float", "builtins.str", "builtins.bool",
    "builtins.bytes", "__builtin__.object", "__builtin__.slice", "__builtin__.int",
    "__builtin__.float", "__builtin__.bool", "__builtin__.str", "__builtin__.unicode",
    "__builtin__.long", "builtins.range", "__builtin__.xrange", "builtins.NoneType",
})  # fmt: skip

_TORCH_VALUES = frozenset(f"torch.{name}" for name in BY_NAME) | frozenset({
    "torch.strided", "torch.sparse_coo", "torch.sparse_csr", "torch.sparse_csc", "torch.sparse_bsr",
    "torch.sparse_bsc", "torch.per_tensor_affine", "torch.per_channel_affine",
    "torch.per_channel_affine_float_qparams", "torch.contiguous_format", "torch.channels_last",
})  # fmt: skip
_STORAGES = frozenset(BY_STORAGE_CLASS) | {"UntypedStorage", "_UntypedStorage", "TypedStorage"}
_STORAGE_MODULES = frozenset({"torch", "torch.cuda", "torch.storage", "torch.mps"})

# Families whose classes are built as objects, never called.
_KNOWN_FAMILIES = (
    "torch.nn.modules.",
    "torch.optim.",
    "torch.ao.quantization.",
    "torch.distributed.checkpoint.",
)


def trust_of(named: NamedGlobal) -> str:
    """``known``, ``unknown`` or ``dangerous``."""
    ref = named.ref
    if ref.qualname in VETTED_CALLS or ref.qualname in VETTED_CLASSES or _is_torch_value(ref):
        return KNOWN
    if _is_dangerous_module(ref.module) or named.called or "." in ref.name:
        return DANGEROUS
    return KNOWN if ref.qualname.startswith(_KNOWN_FAMILIES) else UNKNOWN


def _is_torch_value(ref: GlobalRef) -> bool:
    if ref.name in _STORAGES and ref.module in _STORAGE_MODULES:
        return True
    return ref.qualname in _TORCH_VALUES


def _is_dangerous_module(module: str) -> bool:
    parts = module.split(".")
    return any(".".join(parts[: i + 1]) in DANGEROUS_MODULES for i in range(len(parts)))
