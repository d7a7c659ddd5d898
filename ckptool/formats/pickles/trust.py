"""Trust in the names of a pickle: known, unknown or dangerous, by a list of harmless names.

The default is to deny. ``known`` are the vetted calls of ``vetted.py``, of which some make what
ckptool understands, and the classes of known families. ``dangerous`` are

* every other function that the pickle would *call*: a loader that obeyed would run it. Scanners of
  names have mostly missed functions of the standard library that were not on their list, so here
  the list is of the harmless ones;
* names whose mere import or possession is a means to run code (``GADGET_MODULES``, ``stateless.py``
  and all of Python's library but ``HARMLESS_STDLIB``): a later call can reach them through others;
* vetted calls that are given more than their row takes, since they would run what the pickle
  prepared in it, and other uses of values that the grammar has not (``grammar.py``);
* names that do not say what they are: parts of classes, modules and special names in a module,
  codes of a registry, names that the pickle computed.

``unknown`` is an object of a class that we do not know, built as pickle builds objects: ``__new__``
makes it, then its attributes are set. A call is ``unknown`` too if it looks like a member of an
enum (``SchedulerType('linear')``) or a setting. For that, the name is written like a class, in a
package that is neither Python's nor torch's nor numpy's. All arguments are plain values, and no
text in them looks like a path, a URL or a command line (``effects.py``). Neither the package nor
the name says that it acts (``_acts``). Names prove nothing, so the call is still reported (CK210).

Pickles of protocols 0 to 2 use Python 2's names, which a loader translates; both readings count.
"""

from __future__ import annotations

import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from functools import lru_cache

from ckptool.dtypes import BY_NAME, BY_STORAGE_CLASS
from ckptool.formats.base import DANGEROUS, KNOWN, UNKNOWN, NamedGlobal
from ckptool.formats.pickles.calls import RUNS_SOURCE
from ckptool.formats.pickles.stateless import SETTINGS, stateless
from ckptool.formats.pickles.tools import CLASSES_THAT_ACT, FUNCTIONS_THAT_ACT, MODULES_OF_TORCH
from ckptool.formats.pickles.vetted import VETTED
from ckptool.names import is_capital, says, whole
from ckptool.tree.nodes import GlobalRef

# Modules that run code, load code or reach the system, with everything in them. Packages that read
# weights, and those that sklearn's files come from, bring the last ones along. Of the modules of
# ruamel.yaml those with the values of a document are none: settings are kept so.
GADGET_MODULES = MODULES_OF_TORCH | frozenset({
    "fsspec", "huggingface_hub", "joblib", "traitlets.config.application",
    *(f"ruamel.yaml.{module}" for module in (
        "composer", "constructor", "cyaml", "dumper", "emitter", "events", "loader", "main",
        "nodes", "parser", "reader", "representer", "resolver", "scanner", "serializer", "util",
    )),
})  # fmt: skip

# Other packages whose objects act when they are made: they start processes, open files or
# connections, read source code or load other pickles.
GADGET_PACKAGES = frozenset({
    "cupy", "distributed", "git", "h5py", "hydra", "lmdb", "numexpr", "pandas.core.computation",
    "parsl", "pycuda", "pyximport", "ray", "sympy", "tables", "vllm", "wandb", "zarr",
})  # fmt: skip
# Classes that act on plain values as soon as they are made. Any module hands out what it imports:
# ``somelib.compat.Popen`` is subprocess's.
ACTING = frozenset({
    # of Python's library
    "BaseManager", "BufferedReader", "BufferedWriter", "CDLL", "CodeType", "Connection", "Console",
    "DebugRunner", "ExtensionFileLoader", "FTP", "FTP_TLS", "FileHandler", "FileIO", "FileInput",
    "FunctionType", "HTTPConnection", "HTTPSConnection", "HTTPServer", "IMAP4", "IMAP4_SSL",
    "IMAP4_stream", "InteractiveConsole", "InteractiveInterpreter", "LMTP", "LazyLoader",
    "LibraryLoader", "ModuleType", "NNTP", "NamedTemporaryFile", "OleDLL", "POP3", "POP3_SSL",
    "Pdb", "Pickler", "Pool", "Popen", "Process", "ProcessPoolExecutor", "PyDLL", "RawConfigParser",
    "RotatingFileHandler", "SMTP", "SMTPHandler", "SMTP_SSL", "SafeConfigParser", "ServerProxy",
    "SharedMemory", "ShareableList", "Shelf", "SocketHandler", "SourceFileLoader",
    "SourcelessFileLoader", "SpooledTemporaryFile", "SysLogHandler", "TarFile", "TCPServer",
    "Telnet", "TemporaryDirectory", "TemporaryFile", "Thread", "ThreadPool", "ThreadPoolExecutor",
    "ThreadingHTTPServer", "TimedRotatingFileHandler", "Timer", "UDPServer", "Unpickler",
    "WatchedFileHandler", "WinDLL", "ZipFile", "DbfilenameShelf", "ForwardRef", "Scanner",
    # of other packages
    "Capture", "ExcelFile", "ExcelWriter", "Fire", "GFile", "GraphModule", "HDFStore", "HfApi",
    "JSONLogger", "LLM", "LightningCLI", "ProxyCommand", "RawKernel", "RawModule", "RemotePdb",
    "Rpdb", "SentenceTransformer", "SourceModule", "Subprocess", "SummaryWriter", "VideoCapture",
    "VideoWriter",
})  # fmt: skip
# Packages whose functions and classes open, start, send or run their arguments. Their objects may
# be in a pickle, as a model's layers are, but none of their calls is taken for plain.
ACTING_PACKAGES = frozenset({
    # deep learning: run graphs, load models, read and write files
    "bentoml", "caffe", "caffe2", "catboost", "clearml", "comet_ml", "coremltools", "fasttext",
    "gensim", "horovod", "jaxlib", "keras", "lightgbm", "mlflow", "mxnet", "neptune", "nltk",
    "onnxruntime", "openvino", "paddle", "spacy", "swanlab", "taichi", "tensorboard",
    "tensorboardX", "tensorflow", "tensorrt", "tf_keras", "tflite_runtime", "torchaudio.io",
    "torchaudio.utils", "torchvision.io", "triton", "tvm", "webdataset", "xgboost", "datasets",
    # simulators: start a program
    "bpy", "carla", "dm_control", "gym_unity", "minerl", "mlagents_envs", "mujoco", "mujoco_py",
    "procgen", "pybullet", "retro", "vizdoom",
    # files of other kinds
    "audioread", "av", "compress_pickle", "cv2", "decord", "diskcache", "duckdb", "ffmpeg",
    "fiona", "geopandas", "hickle", "imageio", "klepto", "leveldb", "librosa", "moviepy",
    "netCDF4", "nibabel", "osgeo", "patoolib", "pickle5", "plyvel", "py7zr", "pyarrow",
    "pyaudio", "pydicom", "pydub", "rarfile", "rasterio", "smart_open", "sounddevice",
    "soundfile", "sqlitedict", "tifffile", "xarray", "zodbpickle", "ZODB",
    # databases, services and the network
    "google", "gradio", "grpc", "kaggle", "modelscope", "nats", "telnetlib3",
    # programs, clusters, other languages, the desktop
    "airflow", "buildbot", "clr", "comtypes", "daemon", "dask", "envoy", "execjs", "gi",
    "jpype", "js2py", "keyboard", "lupa", "matlab", "mouse", "mpi4py", "objc", "oct2py", "py4j",
    "py_mini_racer", "pyglet", "pyopencl", "pyspark", "quickjs", "rpy2", "submitit", "wmi",
    # templates and evaluators
    "RestrictedPython", "asteval", "hy", "llvmlite", "numba", "simpleeval",
})  # fmt: skip
# The first letters of families of packages, in lower case: pywin32 is a dozen modules.
_ACTING_ROOTS = ("win32", "_win32", "pythoncom", "pythonwin", "pywin", "pyqt", "pyside", "mlagents")

# Whole words by which a name says that it acts. A name in ``_ACTS`` that ends as one of ``_MODES``
# is a mode or strategy of an action, which does not act.
_ALWAYS_ACTS = whole(
    "delete", "eval", "exec", "execute", "kill", "popen", "remove", "rmtree", "shell", "spawn",
    "unlink", "^get", "^set", "getattr", "setattr",
)  # fmt: skip
_ACTS = whole("dispatch", "download", "import", "upload", *(f"^{word}" for word in (
    "add", "append", "apply", "bind", "browse", "build", "call", "chmod", "clone", "close",
    "compile", "connect", "copy", "create", "decode", "del", "deserialize", "do", "dump", "emit",
    "enable", "erase", "evaluate", "export", "fetch", "find", "fork", "from", "init", "initialize",
    "insert", "install", "invoke", "join", "launch", "link", "listen", "load", "make", "mk",
    "mkdir", "mount", "move", "notify", "open", "parse", "patch", "ping", "post", "print",
    "publish", "pull", "push", "put", "query", "read", "recv", "register", "rename", "render",
    "replace", "request", "reset", "restore", "rm", "run", "save", "send", "serve", "show", "start",
    "stop", "submit", "system", "terminate", "touch", "truncate", "unpack", "unpickle", "update",
    "wipe", "write",
)))  # fmt: skip
_MODES = whole(*(f"{word}$" for word in (
    "enum", "format", "kind", "level", "mode", "policy", "stage", "status", "strategy", "type",
)))  # fmt: skip
# Things that hold a file, a connection or a program as soon as they are made.
_HANDLES = whole(*(f"{word}$" for word in (
    "application", "archive", "browser", "callback", "capture", "channel", "client", "command",
    "compiler", "connection", "console", "context", "cursor", "daemon", "database", "dataset", "db",
    "document", "downloader", "driver", "engine", "env", "environment", "evaluator", "executor",
    "fetcher", "file", "folder", "handler", "hook", "importer", "interpreter", "job", "lambda",
    "launcher", "library", "listener", "loader", "lock", "logger", "manager", "module", "parser",
    "pickler", "pipe", "pool", "process", "program", "proxy", "publisher", "reader", "recorder",
    "registry", "repl", "repo", "repository", "request", "runner", "script", "server", "service",
    "session", "shelf", "socket", "spider", "storage", "store", "stream", "subprocess", "template",
    "terminal", "thread", "transport", "unpickler", "uploader", "watcher", "wrapper", "worker",
    "writer",
)))  # fmt: skip
# Whole words by which a function says that it reaches the system: no checkpoint needs its name.
REACHING = whole(
    "check call$", "^check output$", "chmod", "chown", "copytree", "delete file", "delete folder",
    "delete tree", "ensure dir", "ensure directory", "^exec$", "exec command", "execfile",
    "^execute$", "execute command",
    "getoutput", "^import module$", "import string", "^kill$", "make dir", "make directory",
    "makedir", "mkdir", "mkdtemp", "mkstemp", "open url", "popen", "remove dir",
    "remove directory", "remove file", "remove folder", "remove tree", "^rm$", "rmdir", "rmtree",
    "run cmd", "run command", "run program", "run script", "run shell", "save file",
    "serialize file", "^shell$", "shell command", "^spawn$", "subprocess", "symlink", "unlink",
    "urlopen", "urlretrieve", "write bytes", "write file", "write text",
)  # fmt: skip
# Packages whose classes are vetted one by one.
OWN_PACKAGES = frozenset({"torch", "numpy", "functorch", "torchgen", "torch_utils"})
# Packages that torch brings along: whoever loads a checkpoint has their classes too.
BROUGHT_ALONG = frozenset({
    "cuda", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "nvidia",
    "pkg_resources", "setuptools", "sympy", "triton", "typing_extensions", "_distutils_hack",
})  # fmt: skip

# The modules of Python's library that cannot run code, load code or reach the system, apart from
# ``GADGET_NAMES``. All others can.
HARMLESS_STDLIB = frozenset({
    "_codecs", "_collections", "_collections_abc", "_datetime", "_decimal", "_pydatetime",
    "_random", "_sre", "abc", "argparse", "array", "bisect", "calendar", "cmath", "codecs",
    "collections", "colorsys", "configparser", "contextvars", "copy", "dataclasses", "datetime",
    "decimal", "difflib", "enum", "fractions", "graphlib", "hashlib", "heapq", "ipaddress", "json",
    "keyword", "math", "numbers", "pathlib", "pprint", "random", "re", "secrets", "sre_constants",
    "statistics", "string", "struct", "textwrap", "time", "token", "typing", "unicodedata", "uuid",
    "warnings", "xml", "zoneinfo", "itertools",
})  # fmt: skip
# Modules of Python's library in this version and in others: any version may load the file.
STDLIB = sys.stdlib_module_names | frozenset({
    "BaseHTTPServer", "CGIHTTPServer", "Cookie", "Queue", "SimpleHTTPServer", "SocketServer",
    "StringIO", "__builtin__", "__builtins__", "_android_support", "_apple_support", "_ast_unparse",
    "_bootsubprocess", "_colorize", "_hmac", "_interpchannels", "_interpqueues", "_interpreters",
    "_ios_support", "_opcode_metadata", "_py_warnings", "_remote_debugging", "_suggestions",
    "_sysconfig", "_types", "_wmi", "_xxinterpchannels", "_xxsubinterpreters", "_zstd",
    "__hello__", "__phello__", "_ctypes_test", "_testbuffer", "_testcapi", "_testclinic",
    "_testimportmultiple", "_testinternalcapi", "_testlimitedcapi", "_testmultiphase",
    "_testsinglephase", "_xxtestfuzz", "xxlimited", "xxlimited_35", "xxsubtype",
    "annotationlib", "compression", "_pyrepl", "aifc", "anydbm", "asynchat", "asyncore", "audioop",
    "binhex", "bsddb", "cPickle", "cStringIO", "cgi", "cgitb", "commands", "cookielib", "copy_reg",
    "crypt", "dbhash", "distutils", "dumbdb", "dummy_thread", "gdbm", "httplib", "ihooks", "imp",
    "imputil", "lib2to3", "macpath", "mailcap", "msilib", "nis", "nntplib", "ossaudiodev", "popen2",
    "rexec", "robotparser", "sitecustomize", "smtpd", "sndhdr", "spwd", "statvfs", "sunau",
    "telnetlib", "test", "thread", "tkFileDialog", "urllib2", "urlparse", "usercustomize", "uu",
    "wave", "whichdb", "xdrlib", "xmlrpclib",
})  # fmt: skip

# Modules that others hand out: ``torch.os`` is Python's.
MODULES = frozenset({
    "builtins", "ctypes", "importlib", "inspect", "io", "os", "pickle", "posix", "pty", "runpy",
    "shutil", "socket", "subprocess", "sys", "tempfile", "threading", "types",
})  # fmt: skip

FUNCTIONS_OF_TORCH = "_VariableFunctionsClass"  # pickles take torch.relu from it, by getattr

# Single names in modules that are otherwise harmless.
GADGET_NAMES = CLASSES_THAT_ACT | frozenset({
    "traitlets.config.Application",  # closes the handlers of its log when it is dropped
    "argparse.FileType",  # opens a file for writing as soon as it is called
    "torch.distributed.distributed_c10d._tensor_to_object", "torch.load", "torch.save",
    "torch.serialization.load", "torch.serialization._load", "torch.serialization._legacy_load",
    "torch.serialization.add_safe_globals", "torch.serialization.register_package",
    "torch.from_file", "torch.load_library", "torch.compile", "torch.library.Library",
    "torch.storage._load_from_bytes.__globals__", "numpy.load", "numpy.save", "numpy.savetxt",
    "numpy.fromfile", "numpy.memmap", "numpy.fromregex", "numpy.loadtxt", "numpy.genfromtxt",
    "numpy.DataSource", "numpy.vectorize", "numpy.frompyfunc", "numpy.apply_along_axis",
    "numpy.fromfunction", "numpy.piecewise", "pandas.eval", "pandas.read_pickle",
    "pandas.io.pickle.read_pickle", "scipy.io.loadmat", "uuid._get_command_stdout", "uuid._popen",
    "uuid._find_mac", "uuid.getnode", "collections.namedtuple", "collections._eval",
    "typing.get_type_hints", "typing.ForwardRef", "enum._make_class_unpicklable",
    "dataclasses._create_fn", "dataclasses.make_dataclass", "re.Scanner", "random._test_generator",
    "string.Formatter", "xml.etree.ElementTree.parse",
    *(f"itertools.{name}" for name in ("accumulate", "dropwhile", "filterfalse", "groupby",
                                       "starmap", "takewhile")),
    "copy._reconstruct", "copy.copy", "copy.deepcopy", "pathlib.Path.touch",
    "pathlib._NormalAccessor", "codecs.open", "_codecs.lookup", "_codecs.register",
    "codecs.register", "tqdm.auto", "keras.models.load_model",
})  # fmt: skip

# Functions that an object may well hold, to compare or to reduce. A call of one counts like any.
HARMLESS_TO_HOLD = frozenset({
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in (
        "abs", "all", "any", "divmod", "len", "max", "min", "pow", "print", "round", "sum",
    )),
    *(f"{module}.{name}" for module in ("operator", "_operator") for name in (
        "add", "eq", "ge", "gt", "le", "lt", "mod", "mul", "ne", "neg", "not_", "pow", "sub",
        "truediv",
    )),
})  # fmt: skip


@lru_cache(1 << 12)
def is_own(qualname: str) -> bool:
    """Return whether a name is Python's, torch's, numpy's, or of what torch brings along.

    A name of Python 2 counts if it is own as Python 3 translates it: ``ConfigParser``.
    """
    module, _, name = qualname.rpartition(".")
    mapped, _ = NAME_MAPPING.get((module, name), (module, name))
    roots = {each.partition(".")[0] for each in (qualname, IMPORT_MAPPING.get(mapped, mapped))}
    return not roots.isdisjoint(_OWN_ROOTS)


def is_scanned(qualname: str) -> bool:
    """Return whether a name is torch's or numpy's own, whose sources were scanned (``acting``)."""
    return qualname.partition(".")[0] in OWN_PACKAGES


_OWN_ROOTS = STDLIB | OWN_PACKAGES | BROUGHT_ALONG
TORCH_VALUES = frozenset(f"torch.{name}" for name in BY_NAME) | frozenset({
    "torch.strided", "torch.sparse_coo", "torch.sparse_csr", "torch.sparse_csc", "torch.sparse_bsr",
    "torch.sparse_bsc", "torch.per_tensor_affine", "torch.per_channel_affine",
    "torch.per_channel_affine_float_qparams", "torch.per_tensor_symmetric",
    "torch.per_channel_symmetric", "torch.contiguous_format", "torch.channels_last",
    "torch.channels_last_3d", "torch.preserve_format", "torch.jagged",
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


def trust_by_tables(named: NamedGlobal) -> str:
    """Return ``known``, ``unknown`` or ``dangerous``."""
    if named.looks_up:
        return UNKNOWN
    trusts = {_trust(ref, named) for ref in _readings(named.ref)}
    return next(trust for trust in (DANGEROUS, UNKNOWN, KNOWN) if trust in trusts)


def _readings(ref: GlobalRef) -> tuple[GlobalRef, ...]:
    """Return the name as it is written and, if Python 3 translates it, the translation."""
    module, name = NAME_MAPPING.get((ref.module, ref.name), (ref.module, ref.name))
    translated = GlobalRef(IMPORT_MAPPING.get(module, module), name)
    if translated == ref or _is_vetted(ref):  # the vetted names include Python 2's
        return (ref,)
    return (ref, translated)


def _trust(ref: GlobalRef, named: NamedGlobal) -> str:
    if named.is_misused or ref.qualname in RUNS_SOURCE:
        return DANGEROUS
    is_mild = named.of_data or not named.called
    if _is_vetted(ref) and (is_mild or not _is_storage(ref)):
        return KNOWN
    if ref.qualname in HARMLESS_TO_HOLD and not named.called:
        return UNKNOWN
    is_built = is_mild and _is_foreign_class(ref) and not (named.called and _acts(ref))
    if _is_gadget(ref) or (not is_built and (named.called or _says_not_what_it_is(ref))):
        return DANGEROUS
    return KNOWN if ref.qualname.startswith(_KNOWN_FAMILIES) else UNKNOWN


def _is_foreign_class(ref: GlobalRef) -> bool:
    """Return whether a name looks like a class, or one in a class, of an unknown package."""
    root, parts = ref.module.partition(".")[0], ref.name.split(".")
    return (
        root.isidentifier()
        and root not in STDLIB
        and root not in OWN_PACKAGES
        and all(part.isidentifier() and is_capital(part) for part in parts)
        and parts[-1] not in ACTING
    )


def _acts(ref: GlobalRef) -> bool:
    """Return whether package or name says that a call opens, starts, sends or runs something."""
    modules, name = ref.module.split("."), ref.name.rpartition(".")[2]
    families = (".".join(modules[: i + 1]) for i in range(min(len(modules), 8)))
    return (
        modules[0].lower().startswith(_ACTING_ROOTS)
        or "datasets" in modules
        or any(family in ACTING_PACKAGES for family in families)
        or says(name, _ALWAYS_ACTS)
        or says(name, _HANDLES)
        or (says(name, _ACTS) and not says(name, _MODES))
    )


def _is_vetted(ref: GlobalRef) -> bool:
    return ref.qualname in VETTED or ref.qualname in TORCH_VALUES or _is_storage(ref)


def _is_storage(ref: GlobalRef) -> bool:
    """Return whether a name is a class of storages, which a call gives a row of numbers."""
    return ref.name in _STORAGES and ref.module in _STORAGE_MODULES


# A package's function or class has many names: numpy.memmap is numpy._core.memmap.memmap too.
_OWN_GADGETS = frozenset(
    (name.partition(".")[0], name.rpartition(".")[2])
    for name in GADGET_NAMES
    if name.partition(".")[0] in OWN_PACKAGES
)
# What prepares calls in Python's library, under the name of a package that imports it.
# So are functions and code, torch's classes that unpickle their state, and classes that delete the
# files that their attributes name.
PREPARED = frozenset({
    "ABCMeta", "attrgetter", "itemgetter", "methodcaller", "partial", "partialmethod", "CodeType",
    "FunctionType", "LambdaType", "MethodType", "_DataPipeSerializationWrapper",
    "_IterDataPipeSerializationWrapper", "_MapDataPipeSerializationWrapper", "DataSource",
    "FancyURLopener", "URLopener", "_TemporaryFileCloser",
})  # fmt: skip


def _is_gadget(ref: GlobalRef) -> bool:
    parts = ref.module.split(".")
    if parts[0] in STDLIB and parts[0] not in HARMLESS_STDLIB:
        return True
    families = (".".join(parts[: i + 1]) for i in range(min(len(parts), 8)))
    # Programs run when they are imported; examples among the tests of numpy are such.
    is_program = parts[-1] == "__main__" and len(parts) > 1
    is_program |= parts[0] in OWN_PACKAGES and "tests" in parts
    return (
        is_program
        or ref.qualname in GADGET_NAMES
        or ref.qualname in FUNCTIONS_THAT_ACT
        or (parts[0], ref.name.rpartition(".")[2]) in _OWN_GADGETS
        or (parts[0] not in OWN_PACKAGES | STDLIB and ref.name in PREPARED)
        or ref.name.lstrip("_") in MODULES  # argparse._os
        or _reaches(ref)
        or (ref.module == "torch._C" and ref.name != FUNCTIONS_OF_TORCH)  # files, engines, devices
        or (parts[0] in BROUGHT_ALONG and not is_capital(ref.name))
        or (parts[0] in stateless() and ref.qualname not in SETTINGS)
        or any(family in GADGET_MODULES or family in GADGET_PACKAGES for family in families)
    )


def _reaches(ref: GlobalRef) -> bool:
    """Return whether the name of a function of an unknown package says that it acts."""
    return not is_capital(ref.name) and not is_own(ref.qualname) and says(ref.name, REACHING)


def _says_not_what_it_is(ref: GlobalRef) -> bool:
    """Return whether a name is a part of a class or a module, a registry code, or computed."""
    is_special = ref.name[:2] == ref.name[-2:] == "__"  # torch.optim.adam.__builtins__
    is_part = is_special or "." in ref.name
    return is_part or " " in ref.name or not ref.module or ref.module.startswith("<")
