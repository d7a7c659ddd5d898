"""How far the names in a pickle can be trusted: known, unknown or dangerous. Deny by default.

``known`` are the calls that ckptool itself understands and a short vetted list: constructors of
plain values, which run nothing that they are given. ``dangerous`` are

* every other function that the pickle would *call*: a loader that obeyed would run it. Most of
  what scanners of names have missed was a function of the standard library that was not on their
  list, so here the list is of the harmless ones;
* names whose mere import or possession is a means to run code (``GADGETS``), since a later call
  can reach them by way of others;
* names that say not what they are: parts of classes, codes of a registry, names that the pickle
  computed.

``unknown`` is an object of a class that we do not know, built as pickle builds objects: by
``__new__``, attributes set.

Pickles of protocols 0 to 2 use Python 2's names, which a loader translates; both readings count.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

from ckptool.dtypes import BY_NAME, BY_STORAGE_CLASS
from ckptool.formats.base import NamedGlobal
from ckptool.formats.torch_objects import RUNS_SOURCE, VETTED_CALLS
from ckptool.tree import GlobalRef

KNOWN, UNKNOWN, DANGEROUS = "known", "unknown", "dangerous"

# Modules, with all that is in them, that run code, load code or reach the system.
GADGET_MODULES = frozenset({
    # processes, the system, files
    "os", "posix", "nt", "posixpath", "ntpath", "subprocess", "_posixsubprocess", "commands",
    "popen2", "pty", "sys", "shutil", "tempfile", "glob", "fileinput", "linecache", "platform",
    "io", "_io", "mmap", "signal", "_signal", "atexit", "resource", "syslog", "antigravity",
    "_osx_support", "_aix_support", "_pyrepl", "pexpect", "psutil", "paramiko",
    # code from text, from files, from other places
    "code", "codeop", "runpy", "importlib", "imp", "_imp", "_frozen_importlib", "zipimport",
    "_frozen_importlib_external", "pkgutil", "pydoc", "doctest", "compileall", "py_compile",
    "marshal", "types", "ast", "symtable", "dis", "site", "sitecustomize", "usercustomize",
    "ctypes", "_ctypes", "cffi", "_cffi_backend", "gc", "inspect", "bdb", "pdb", "profile",
    "cProfile", "timeit", "trace", "tracemalloc", "unittest", "test.support", "test.libregrtest",
    "test.regrtest", "idlelib", "lib2to3",
    "turtledemo", "distutils", "setuptools", "pkg_resources", "pip", "ensurepip", "venv",
    "virtualenv", "pytest", "_pytest", "IPython", "ipykernel",
    # pickles inside, and whatever else is deserialized
    "pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "shelve",
    "dbm", "yaml", "jsonpickle", "copyreg", "copy_reg", "sqlite3", "_sqlite3",
    # any function, by way of others
    "builtins", "__builtin__", "__builtins__", "operator", "_operator", "functools", "_functools",
    "contextlib", "weakref", "_weakref", "sched", "concurrent", "threading", "_thread", "thread",
    "_threading_local", "asyncio", "_asyncio", "multiprocessing", "_multiprocessing", "queue",
    # the network
    "socket", "_socket", "socketserver", "ssl", "_ssl", "select", "selectors", "http", "httplib",
    "urllib", "urllib2", "urlparse", "requests", "httpx", "aiohttp", "tornado", "ftplib",
    "smtplib", "smtpd", "poplib", "imaplib", "nntplib", "telnetlib", "xmlrpc", "xmlrpclib",
    "wsgiref", "webbrowser", "huggingface_hub", "fsspec",
    # archives and logs that write files
    "zipfile", "tarfile", "logging",
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
    "re.Scanner", "sre_compile.compile", "random._test_generator", "string.Formatter",
    "getpass.getpass", "getpass.unix_getpass", "locale.setlocale", "gettext.translation",
    "gettext.find", "gettext.c2py", "cgitb.lookup", "this", "xml.etree.ElementTree.parse",
    "pathlib.Path.touch", "pathlib._NormalAccessor", "codecs.open", "_codecs.lookup",
    "_codecs.register", "codecs.register", "tqdm.auto", "keras.models.load_model",
})  # fmt: skip

# Names that neither run nor reach anything, whatever they are given; some stand in modules above.
VETTED_NAMES = frozenset({
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
    "argparse.Namespace", "types.SimpleNamespace", "functools.partial", "torch.device",
    "torch.dtype", "torch.Size", "torch.Tensor", "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer", "torch.torch_version.TorchVersion",
    "torch.serialization._get_layout", "torch.Generator", "numpy.ndarray", "numpy.dtype",
    "numpy.random._pickle.__randomstate_ctor", "numpy.random._pickle.__generator_ctor",
    "numpy.random._pickle.__bit_generator_ctor", "numpy.random._mt19937.MT19937",
    "numpy.random._pcg64.PCG64", "numpy.random._pcg64.PCG64DXSM", "numpy.random._philox.Philox",
    "numpy.random.bit_generator.SeedSequence",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence", "numpy.random._sfc64.SFC64",
    "numpy.random.mtrand.RandomState", "datetime.datetime",
    "datetime.timedelta", "datetime.date", "datetime.time", "datetime.timezone",
    "decimal.Decimal", "fractions.Fraction", "uuid.UUID", "re._compile",
    "builtins.object", "builtins.slice", "builtins.int", "builtins.float", "builtins.str",
    "builtins.bool", "builtins.range", "builtins.NoneType", "__builtin__.object",
    "__builtin__.slice", "__builtin__.int", "__builtin__.float", "__builtin__.bool",
    "__builtin__.str", "__builtin__.unicode", "__builtin__.long", "__builtin__.xrange",
    "copyreg.__newobj_ex__",
    *(f"numpy.{name}" for name in (
        "bool_", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8",
        "uint16", "uint32", "uint64", "complex64", "complex128", "str_", "bytes_", "longdouble",
    )),
    *(f"torch.jit._pickle.{name}" for name in (
        "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist",
        "restore_type_tag",
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
