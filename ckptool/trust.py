"""How far the names in a pickle can be trusted: known, unknown or dangerous. Deny by default.

``known`` are the calls that ckptool itself understands and a short vetted list: constructors of
plain values, which run nothing that they are given. ``dangerous`` are

* every other function that the pickle would *call*: a loader that obeyed would run it. Most of
  what scanners of names have missed was a function of the standard library that was not on their
  list, so here the list is of the harmless ones;
* names whose mere import or possession is a means to run code (``GADGET_MODULES``, and all of
  Python's library but ``HARMLESS_STDLIB``), since a later call can reach them by way of others;
* what a vetted function calls in turn: attributes that an object's state gave it
  (``torch_objects.py``);
* names that say not what they are: parts of classes, codes of a registry, names that the pickle
  computed.

``unknown`` is an object of a class that we do not know, built as pickle builds objects: by
``__new__``, attributes set.

Pickles of protocols 0 to 2 use Python 2's names, which a loader translates; both readings count.
"""

from __future__ import annotations

import sys
from _compat_pickle import (
    IMPORT_MAPPING,
    NAME_MAPPING,
    PYTHON2_EXCEPTIONS,
    PYTHON3_OSERROR_EXCEPTIONS,
)

from ckptool.dtypes import BY_NAME, BY_STORAGE_CLASS
from ckptool.formats.base import NamedGlobal
from ckptool.formats.torch_objects import PLAIN_CONSTRUCTORS, RUNS_SOURCE, VETTED_CALLS
from ckptool.tree import GlobalRef

KNOWN, UNKNOWN, DANGEROUS = "known", "unknown", "dangerous"

# Modules, with all that is in them, that run code, load code or reach the system.
GADGET_MODULES = frozenset({
    # what others bring along
    "IPython", "_cffi_backend", "_pytest", "aiohttp", "cffi", "cloudpickle", "dill",
    "fsspec", "httpx", "huggingface_hub", "ipykernel", "joblib", "jsonpickle", "paramiko",
    "pexpect", "pip", "pkg_resources", "psutil", "pytest", "requests", "setuptools",
    "test.libregrtest", "test.regrtest", "test.support", "tornado", "virtualenv", "yaml",
    # torch and numpy
    "torch.hub", "torch.jit", "torch.package", "torch.utils.cpp_extension",
    "torch.utils.bottleneck", "torch.utils.collect_env", "torch.utils._config_module",
    "torch.utils.model_zoo",
    "torch.utils.data.datapipes", "torch._dynamo", "torch._inductor", "torch._ops", "torch.ops",
    "torch._classes", "torch.fx.graph_module", "torch.fx.experimental", "torch._export",
    "torch.export", "torch.multiprocessing",
    "torch.distributed.launch", "torch.distributed.run", "torch.distributed.elastic",
    "torch.distributed.rpc", "torch.testing", "torch._weights_only_unpickler", "torch.onnx",
    "torch.utils.serialization", "torch.utils.benchmark", "torch._lazy", "torch._appdirs",
    "numpy.testing", "numpy.f2py", "numpy.distutils", "numpy.ctypeslib", "numpy.lib.npyio",
})  # fmt: skip

# Of Python's own library every module can do so but these, apart from the names below.
HARMLESS_STDLIB = frozenset({
    "_codecs", "_collections", "_collections_abc", "_datetime", "_decimal", "_pydatetime",
    "_pydecimal", "_random", "_sre", "abc", "argparse", "array", "bisect", "calendar", "cmath",
    "codecs", "collections", "colorsys", "configparser", "contextvars", "copy", "dataclasses",
    "datetime",
    "decimal", "difflib", "enum", "fractions", "graphlib", "hashlib", "heapq", "ipaddress",
    "json", "keyword", "math", "numbers", "pathlib", "pprint", "random", "re", "secrets",
    "sre_constants", "statistics", "string", "struct", "textwrap", "time", "token", "typing",
    "unicodedata", "uuid", "warnings", "xml", "zoneinfo", "itertools",
})  # fmt: skip
# Its modules by this Python's account, and those that others have had: any may load the file.
STDLIB = sys.stdlib_module_names | frozenset({
    "BaseHTTPServer", "CGIHTTPServer", "Cookie", "Queue", "SimpleHTTPServer", "SocketServer",
    "StringIO", "__builtin__", "__builtins__", "_bootsubprocess", "_pyrepl", "aifc", "anydbm",
    "asynchat", "asyncore", "audioop", "binhex", "bsddb", "cPickle", "cStringIO", "cgi", "cgitb",
    "commands", "cookielib", "copy_reg", "crypt", "dbhash", "distutils", "dumbdb",
    "dummy_thread", "gdbm", "httplib", "ihooks", "imp", "imputil", "lib2to3",
    "macpath", "mailcap", "msilib", "nis", "nntplib", "ossaudiodev",
    "popen2", "rexec", "robotparser", "sitecustomize", "smtpd", "sndhdr", "spwd", "statvfs",
    "sunau", "telnetlib", "thread", "tkFileDialog", "urllib2", "urlparse",
    "usercustomize", "uu", "wave", "whichdb", "xdrlib", "xmlrpclib",
})  # fmt: skip

# Single names in modules that are otherwise harmless.
GADGET_NAMES = frozenset({
    "torch.load", "torch.save", "torch.serialization.load", "torch.serialization._load",
    "torch.serialization._legacy_load", "torch.serialization.add_safe_globals",
    "torch.serialization.register_package", "torch.from_file", "torch.load_library",
    "torch.compile", "torch.library.Library", "torch.storage._load_from_bytes.__globals__",
    "numpy.load", "numpy.save", "numpy.savetxt", "numpy.fromfile", "numpy.memmap",
    "numpy.fromregex", "numpy.loadtxt", "numpy.genfromtxt", "numpy.DataSource", "numpy.vectorize",
    "numpy.frompyfunc", "numpy.apply_along_axis", "numpy.fromfunction", "numpy.piecewise",
    "pandas.eval", "pandas.read_pickle", "pandas.io.pickle.read_pickle", "scipy.io.loadmat",
    "uuid._get_command_stdout", "uuid._popen", "uuid._find_mac", "uuid.getnode",
    "collections.namedtuple", "collections._eval", "typing.get_type_hints", "typing.ForwardRef",
    "enum._make_class_unpicklable", "dataclasses._create_fn", "dataclasses.make_dataclass",
    "re.Scanner", "random._test_generator", "string.Formatter", "xml.etree.ElementTree.parse",
    *(f"itertools.{name}" for name in ("accumulate", "dropwhile", "filterfalse", "groupby",
                                       "starmap", "takewhile")),
    "copy._reconstruct", "copy.copy", "copy.deepcopy", "pathlib.Path.touch",
    "pathlib._NormalAccessor", "codecs.open", "_codecs.lookup", "_codecs.register",
    "codecs.register", "tqdm.auto", "keras.models.load_model",
})  # fmt: skip

# Names that neither run nor reach anything, whatever they are given; some stand in modules above.
VETTED_NAMES = frozenset({
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
    "argparse.Namespace", "optparse.Values", "types.SimpleNamespace", "functools.partial",
    "torch.dtype",
    "torch.Size", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer",
    "torch.serialization._get_layout", "torch.Generator", "numpy.ndarray", "numpy.dtype",
    "numpy.random._pickle.__randomstate_ctor", "numpy.random._pickle.__generator_ctor",
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence", "datetime.datetime",
    "datetime.timedelta", "datetime.date", "datetime.time", "datetime.timezone",
    "builtins.object", "builtins.slice", "builtins.NoneType", "__builtin__.object",
    "__builtin__.slice", "torch._C.Generator", "numpy.ma.core._mareconstruct",
    "itertools.count", "copyreg.__newobj_ex__", *PLAIN_CONSTRUCTORS,
    *(f"{module}.{name}" for module in ("builtins", "exceptions", "__builtin__") for name in (
        *PYTHON2_EXCEPTIONS, *PYTHON3_OSERROR_EXCEPTIONS, "Ellipsis", "NotImplemented",
    )),
})  # fmt: skip

# Functions that an object may well hold, how to compare or to reduce; called, they count as any.
HARMLESS_TO_HOLD = frozenset({
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in (
        "abs", "all", "any", "divmod", "len", "max", "min", "pow", "print", "round", "sum",
    )),
    *(f"{module}.{name}" for module in ("operator", "_operator") for name in (
        "add", "eq", "ge", "gt", "le", "lt", "mod", "mul", "ne", "neg", "not_", "pow", "sub",
        "truediv",
    )),
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
    if named.looks_up:
        return UNKNOWN
    trusts = {_trust(ref, called=named.called) for ref in _readings(named.ref)}
    return next(trust for trust in (DANGEROUS, UNKNOWN, KNOWN) if trust in trusts)


def _readings(ref: GlobalRef) -> tuple[GlobalRef, ...]:
    """The name as it stands and, if Python 3 has another for it, as that."""
    module, name = NAME_MAPPING.get((ref.module, ref.name), (ref.module, ref.name))
    translated = GlobalRef(IMPORT_MAPPING.get(module, module), name)
    if translated == ref or _is_vetted(ref):  # the vetted names include Python 2's
        return (ref,)
    return (ref, translated)


def _trust(ref: GlobalRef, *, called: bool) -> str:
    if ref.qualname in RUNS_SOURCE:
        return DANGEROUS
    if _is_vetted(ref):
        return KNOWN
    if ref.qualname in HARMLESS_TO_HOLD and not called:
        return UNKNOWN
    if called or _is_gadget(ref) or _says_not_what_it_is(ref):
        return DANGEROUS
    return KNOWN if ref.qualname.startswith(_KNOWN_FAMILIES) else UNKNOWN


def _is_vetted(ref: GlobalRef) -> bool:
    name = ref.qualname
    if name in VETTED_CALLS or name in VETTED_NAMES or name in _TORCH_VALUES:
        return True
    return ref.name in _STORAGES and ref.module in _STORAGE_MODULES


def _is_gadget(ref: GlobalRef) -> bool:
    parts = ref.module.split(".")
    if parts[0] in STDLIB and parts[0] not in HARMLESS_STDLIB:
        return True
    families = (".".join(parts[: i + 1]) for i in range(min(len(parts), 8)))
    is_program = parts[-1] == "__main__" and len(parts) > 1  # runs when it is imported
    return (
        is_program
        or ref.qualname in GADGET_NAMES
        or any(family in GADGET_MODULES for family in families)
    )


def _says_not_what_it_is(ref: GlobalRef) -> bool:
    """A part of a class, a code of the registry, or a name that the pickle computed."""
    return "." in ref.name or " " in ref.name or not ref.module or ref.module.startswith("<")
