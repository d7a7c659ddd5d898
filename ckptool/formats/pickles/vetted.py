"""``VETTED``: the calls of a pickle that run nothing, if their arguments are what the row states.

Each row states what the function does with its arguments, and so which arguments it may be given.
A class has the row also for ``__new__``. Whatever is not in this table is no vetted call. The kinds
of arguments are those of ``grammar.py``: where the row has none, an argument has to be data.
"""

from __future__ import annotations

from _compat_pickle import PYTHON2_EXCEPTIONS, PYTHON3_OSERROR_EXCEPTIONS
from collections.abc import Mapping
from enum import Enum, auto

from ckptool.names import is_capital
from ckptool.records import NamedTuple


class Kind(Enum):
    """A kind of argument: what the function does with it, and so what it may be."""

    DATA = auto()  # read, compared, hashed or asked for attributes: data alone
    HELD = auto()  # only kept: any value that is not armed
    OBJECT = auto()  # only kept, and asked later by what holds it: data or an object, no function
    PAIRS = auto()  # a dict or a row of pairs: keys are hashed, values are kept
    ROW = auto()  # a plain container that is iterated: its elements are kept
    KEYS = auto()  # a plain container that is iterated: its elements are hashed
    STATE = auto()  # attributes that are set one by one: their names are text of the pickle
    TENSOR = auto()  # asked for the methods of a tensor: a tensor
    CLASS = auto()  # ``__new__`` is called, or attributes are read: a class of the file's own
    FACTORY = auto()  # called later without arguments
    ARRAY = auto()  # as CLASS, but of numpy's only those of arrays
    FOREIGN = auto()  # as CLASS, but none of Python's, torch's or numpy's: it gets a state too
    CODE = auto()  # text, or a name, of which attributes are read
    NOTHING = auto()  # not given
    BYTES = auto()  # followed as a file: bytes
    BASED = auto()  # given to the base in the argument before, which decides
    CALLED = auto()  # called by the function: our builder makes that call, with its own row


class Called(frozenset[str]):
    """Names of which one has to be the argument, which the function calls."""


Takes = Kind | frozenset[str]  # a set: exactly one of these names


class Vetted(NamedTuple):
    """A row: what a function does with its arguments."""

    why: str  # why it can call, ask or hash nothing that the pickle prepared
    takes: tuple[Takes, ...] = ()  # of its first arguments, in order
    rest: Kind = Kind.DATA  # of the arguments behind those


DATA, HELD, OBJECT, PAIRS, ROW = Kind.DATA, Kind.HELD, Kind.OBJECT, Kind.PAIRS, Kind.ROW
KEYS, STATE, TENSOR, CLASS = Kind.KEYS, Kind.STATE, Kind.TENSOR, Kind.CLASS
ARRAY, FACTORY, FOREIGN, CALLED = Kind.ARRAY, Kind.FACTORY, Kind.FOREIGN, Kind.CALLED
CODE, BASED, NOTHING = Kind.CODE, Kind.BASED, Kind.NOTHING


def _rows(
    modules: str, names: str, why: str, *takes: Takes, rest: Kind = Kind.DATA
) -> dict[str, Vetted]:
    """Return one row for each of ``names`` in each of ``modules``."""
    row = Vetted(why, takes, rest)
    return {f"{module}.{name}": row for module in modules.split() for name in names.split()}


BUILTINS = "builtins __builtin__"
_BASES = Called(
    f"{module}.{name}" for module in BUILTINS.split()
    for name in ("object", "list", "dict", "tuple", "set", "frozenset", "int", "float", "complex",
                 "str", "bytes", "bytearray", "unicode", "long", "bool", "Exception")
)  # fmt: skip
_BIT_GENERATORS = Called({
    "numpy.random._mt19937.MT19937", "numpy.random._pcg64.PCG64", "numpy.random._pcg64.PCG64DXSM",
    "numpy.random._philox.Philox", "numpy.random._sfc64.SFC64",
})  # fmt: skip
_BIT_GENERATOR_CTOR = Called({"numpy.random._pickle.__bit_generator_ctor"})
_MASKED = frozenset({
    "numpy.ma.MaskedArray", "numpy.ma.core.MaskedArray", "numpy.ma.mrecords.MaskedRecords",
})  # fmt: skip
ARRAYS = _MASKED | {
    "numpy.ndarray", "numpy.matrix", "numpy.matrixlib.defmatrix.matrix", "numpy.recarray",
    "numpy.rec.recarray", "numpy.core.records.recarray", "numpy.chararray",
    "numpy.char.chararray", "numpy.core.defchararray.chararray",
}  # fmt: skip

_VALUE = "makes a value of Python or numpy out of numbers and text"
LOOKS_UP = "looks up a member of an enumeration"
HOLDS = "keeps its arguments"
_SAME = "returns its argument as it is"
_REBUILDS = "makes a tensor of a storage and numbers; hooks are kept"

VETTED: Mapping[str, Vetted] = {
    # ------------------------------------------------------------------------------ containers
    **_rows("collections", "OrderedDict", "copies a dict", PAIRS),
    **_rows("collections", "Counter", "counts hashable elements, or copies a dict", PAIRS),
    **_rows("collections", "defaultdict", "copies a dict; a missing key calls the factory",
            FACTORY, PAIRS),
    **_rows("collections", "deque", "copies a row", ROW),
    **_rows(BUILTINS, "dict", "copies a dict", PAIRS),
    **_rows(BUILTINS, "list tuple", "copies a row", ROW),
    **_rows(BUILTINS, "set frozenset", "hashes and compares the elements of a row", KEYS),
    **_rows("torch", "Size", "makes a tuple of integers"),
    # ---------------------------------------------------------------------------------- values
    **_rows(BUILTINS, "bytes bytearray complex int float str bool range unicode long xrange slice "
            "object", _VALUE),
    **_rows("builtins", "NoneType", _VALUE),
    **_rows("_codecs", "encode", "encodes text"),
    **_rows("pathlib pathlib._local", "Path PosixPath WindowsPath PurePosixPath PureWindowsPath",
            "joins text, and does not look for the file"),
    **_rows("numpy", "bool_ float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 "
            "uint64 complex64 complex128 str_ bytes_ longdouble", _VALUE),
    **_rows("decimal", "Decimal", _VALUE),
    **_rows("fractions", "Fraction", _VALUE),
    **_rows("uuid", "UUID", _VALUE),
    **_rows("re", "_compile", "compiles a pattern"),
    **_rows("datetime", "timedelta date timezone", _VALUE),
    **_rows("datetime", "datetime time", "keeps its time zone, which is asked when it is hashed",
            rest=OBJECT),
    **_rows("time", "struct_time", _VALUE),
    **_rows("zoneinfo", "ZoneInfo ZoneInfo._unpickle", "reads the time zone of a name"),
    **_rows("ipaddress", "IPv4Address IPv4Network IPv4Interface IPv6Address IPv6Network "
            "IPv6Interface", _VALUE),
    **_rows("array", "array", "copies a row of numbers"),
    **_rows("array", "_array_reconstructor", "copies bytes", frozenset({"array.array"})),
    **_rows("random", "Random", _VALUE),
    **_rows("itertools", "count", "keeps two numbers"),
    **_rows(f"{BUILTINS} exceptions", " ".join((*PYTHON2_EXCEPTIONS, *PYTHON3_OSERROR_EXCEPTIONS)),
            HOLDS, rest=HELD),
    # Of the error 11, OSError makes a BlockingIOError, which asks for a number of bytes.
    **_rows(f"{BUILTINS} exceptions", "EnvironmentError IOError OSError", HOLDS, HELD, HELD),
    **_rows(f"{BUILTINS} exceptions", "UnicodeDecodeError UnicodeEncodeError "
            "UnicodeTranslateError", HOLDS),
    **_rows(f"{BUILTINS} exceptions", "SyntaxError IndentationError TabError",
            "copies a row of the place"),
    **_rows(f"{BUILTINS} exceptions", "Ellipsis NotImplemented", "cannot be called"),
    # --------------------------------------------------------------------------------- objects
    **_rows("argparse", "Namespace", "takes no positional arguments"),
    **_rows("types", "SimpleNamespace", "copies attributes", STATE),
    **_rows("optparse", "Values", "sets attributes", STATE),
    **_rows("functools", "partial", "keeps a function and its arguments", rest=HELD),
    **_rows("copyreg copy_reg", "_reconstructor", "makes an object, and initializes its base",
            CLASS, _BASES, BASED),
    **_rows("copyreg copy_reg", "__newobj__ __newobj_ex__", "makes an object as NEWOBJ does",
            rest=CALLED),
    # ----------------------------------------------------------------------------------- numpy
    **_rows("numpy", "dtype", "reads a code, or the attribute dtype of a class", CODE),
    **_rows("numpy", "ndarray recarray record rec.recarray rec.record",
            "makes an array of its shape; a buffer could hold addresses of objects",
            DATA, DATA, rest=NOTHING),
    **_rows("numpy numpy.ma numpy.ma.core", "MaskedArray", "copies an array"),
    **_rows("numpy.core numpy._core", "multiarray._reconstruct", "makes an empty array", ARRAY),
    **_rows("numpy.core numpy._core", "multiarray.scalar", "copies bytes; an object is kept",
            DATA, HELD),
    **_rows("numpy.core numpy._core", "numeric._frombuffer", "views bytes"),
    **_rows("numpy.ma.core", "_mareconstruct", "makes an array of its classes", _MASKED, ARRAYS),
    **_rows("numpy.random.mtrand", "RandomState", "seeds a generator"),
    **_rows("numpy.random", "_mt19937.MT19937 _pcg64.PCG64 _pcg64.PCG64DXSM _philox.Philox "
            "_sfc64.SFC64 bit_generator.SeedSequence", "seeds a generator"),
    **_rows("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence", "sets attributes",
            frozenset({"numpy.random.bit_generator.SeedSequence"})),
    **_rows("numpy.random._pickle", "__randomstate_ctor __generator_ctor", "calls the constructor",
            DATA, _BIT_GENERATOR_CTOR),
    **_rows("numpy.random._pickle", "__bit_generator_ctor", "calls the class", _BIT_GENERATORS),
    # ----------------------------------------------------------------------------------- torch
    **_rows("torch._utils", "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3", _REBUILDS,
            *(DATA,) * 5, HELD),
    **_rows("torch._utils", "_rebuild_qtensor", _REBUILDS, *(DATA,) * 6, HELD),
    **_rows("torch._utils", "_rebuild_parameter", "is data.detach(); hooks are kept",
            TENSOR, DATA, HELD),
    **_rows("torch._utils", "_rebuild_parameter_with_state", "is data.detach(); sets attributes",
            TENSOR, DATA, HELD, STATE),
    **_rows("torch._utils", "_rebuild_sparse_tensor _rebuild_sparse_csr_tensor "
            "_rebuild_meta_tensor_no_storage", "makes a tensor of tensors and numbers"),
    **_rows("torch._utils", "_rebuild_nested_tensor", "makes a tensor of tensors",
            TENSOR, TENSOR, TENSOR, TENSOR),
    **_rows("torch._utils", "_rebuild_device_tensor_from_cpu_tensor "
            "_rebuild_device_tensor_from_numpy _rebuild_xla_tensor", "is data.to(dtype, device)",
            TENSOR),
    **_rows("torch._utils", "_rebuild_wrapper_subclass", "makes a tensor without values", CLASS),
    **_rows("torch._tensor torch.tensor", "_rebuild_from_type _rebuild_from_type_v2",
            "calls a function of this table; sets attributes", CALLED, CLASS, CALLED, CALLED),
    **_rows("torch.nn.parameter", "Parameter Buffer", "is data.detach()", TENSOR),
    **_rows("torch.nn.parameter", "UninitializedParameter UninitializedBuffer",
            "makes an empty tensor"),
    **_rows("torch.autograd.variable", "Variable", "returns the tensor", TENSOR),
    **_rows("torch", "Tensor", "copies a row of numbers"),
    **_rows("torch", "Generator _C.Generator", "makes a generator of a device"),
    **_rows("torch", "dtype", "cannot be called"),
    **_rows("torch", "device", "reads the name of a device"),
    **_rows("torch.serialization", "_get_layout", "looks up a name"),
    **_rows("torch.torch_version", "TorchVersion", "copies text"),
    **_rows("torch.storage", "_load_from_bytes", "is torch.load: the bytes are followed as a file",
            Kind.BYTES),
    **_rows("torch.fx.graph_module", "reduce_graph_module", "runs source code: always reported",
            HELD, HELD),
    **_rows("torch_utils.persistence", "_reconstruct_persistent_obj",
            "runs source code: always reported", HELD),
    **_rows("torch.jit._pickle", "build_intlist build_doublelist build_boollist build_tensorlist "
            "restore_type_tag", _SAME, HELD),
    **_rows("tensordict._reductions", "_make_td", "sets attributes", FOREIGN, STATE),
    **_rows("torch.nested._internal.nested_tensor", "_rebuild_njt NestedTensor",
            "makes a jagged tensor of its parts"),
    **_rows("torch.ao.quantization.qconfig torch.quantization.qconfig", "QConfig QConfigDynamic",
            HOLDS, rest=HELD),
    **_rows("torch.nn.utils.rnn", "PackedSequence", "makes a tuple of tensors"),
    **_rows("torch._dynamo.decorators", "_DimRange", "makes a tuple of numbers"),
    # ------------------------------------------------------------------------------ enumerations
    **_rows("http", "HTTPStatus HTTPMethod", LOOKS_UP),
    **_rows("inspect", "_ParameterKind", LOOKS_UP),
    **_rows("re", "RegexFlag", LOOKS_UP),
    **_rows("signal", "Signals Handlers", LOOKS_UP),
    **_rows("socket", "AddressFamily SocketKind", LOOKS_UP),
    **_rows("uuid", "SafeUUID", LOOKS_UP),
    **_rows("torch.amp.grad_scaler", "OptState", LOOKS_UP),
    **_rows("torch.ao.quantization", "backend_config.backend_config.ObservationType "
            "observer.MappingType observer.TorchAODType observer.ZeroPointDomain "
            "quant_type.QuantType", LOOKS_UP),
    **_rows("torch.distributed", "_shard.checkpoint.metadata._MEM_FORMAT_ENCODING "
            "_shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING "
            "algorithms._checkpoint.checkpoint_wrapper.CheckpointImpl "
            "algorithms._quantization.quantization.DQuantType "
            "algorithms.ddp_comm_hooks.DDPCommHookType checkpoint.metadata._MEM_FORMAT_ENCODING "
            "checkpoint.filesystem.SerializationFormat checkpoint.planner.LoadItemType "
            "checkpoint.planner.WriteItemType checkpoint.state_dict_saver.AsyncCheckpointerType "
            "fsdp._common_utils.HandleTrainingState fsdp._common_utils.TrainingState "
            "fsdp._flat_param.HandleShardingStrategy "
            "fsdp._fully_shard._fsdp_common.TrainingState "
            "fsdp._fully_shard._fsdp_param.ShardedState fsdp.api.BackwardPrefetch "
            "fsdp.api.ShardingStrategy fsdp.api.StateDictType "
            "fsdp.fully_sharded_data_parallel.OptimStateKeyType "
            "optim.zero_redundancy_optimizer._OverlapStatus "
            "tensor.placement_types._StridedShardOffsetMode", LOOKS_UP),
    **_rows("torch.distributed", "_shard.sharded_tensor.api.ShardedTensor.ProcessGroupState",
            "keeps four numbers"),
    **_rows("torch.distributed.distributed_c10d torch._C._distributed_c10d", "ReduceOp.RedOpType",
            LOOKS_UP),
    **_rows("torch.nn.attention.bias", "CausalVariant", LOOKS_UP),
}  # fmt: skip

# Names that make plain data of any arguments, whatever else a loader allows: numbers, text, arrays,
# members of enumerations, and objects that keep attributes and call none. A loader to which a user
# allows them for one file can be given every other file, too. Functions that keep or call others
# (``partial``, ``defaultdict``) are not among them, nor are classes that nobody has vetted.
_NOT_IMPORTED = (".NoneType", ".RedOpType", ".long", ".unicode", ".xrange")  # from their modules
PLAIN_DATA = frozenset({
    *(
        name for name, row in VETTED.items()
        if row.why in {_VALUE, LOOKS_UP} and not name.endswith(_NOT_IMPORTED)
    ),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in (
        "Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath",
    )),
    "argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.time",
    "numpy.dtype", "numpy.ndarray", "torch.torch_version.TorchVersion",
    *(f"numpy.{module}.multiarray.{name}" for module in ("core", "_core") for name in (
        "_reconstruct", "scalar",
    )),
    *(f"numpy.{module}.numeric._frombuffer" for module in ("core", "_core")),
})  # fmt: skip

# Objects of own classes that may be in the arguments of a call of plain values: none is text, which
# the pickle could compute (``str(b"+AC8-tmp", "utf-7")`` is a path), or a row, and none is called.
TEXTS = (
    ".str", ".unicode", ".bytes", ".bytearray", ".str_", ".bytes_", ".TorchVersion", ".struct_time",
)  # fmt: skip
PLAIN_OBJECTS = frozenset({
    *(name for name in PLAIN_DATA if not name.endswith(TEXTS)),
    "torch.device", "torch.Generator", "torch._C.Generator", "torch._dynamo.decorators._DimRange",
    "numpy.scalar",
})  # fmt: skip

# Functions of the table that are no classes.
FUNCTIONS = frozenset(
    name
    for name in VETTED
    if not is_capital(last := name.rpartition(".")[2])
    and last.startswith(("_", "encode", "scalar", "build_", "restore_", "reduce_"))
)
PARTIAL = "functools.partial"

# Factories of a defaultdict: each makes an empty value.
FACTORIES = frozenset({
    *(f"{module}.{name}" for module in BUILTINS.split() for name in (
        "list", "dict", "tuple", "set", "frozenset", "int", "float", "complex", "str", "bytes",
        "bytearray", "bool", "unicode", "long", "object", "NoneType",
    )),
    *(f"collections.{name}" for name in ("OrderedDict", "Counter", "deque", "defaultdict")),
    "argparse.Namespace", "types.SimpleNamespace",
    *(f"torch.{each}amp.grad_scaler._refresh_per_optimizer_state" for each in ("", "cuda.")),
})  # fmt: skip

# -------------------------------------------------------------------- classes that are not called

# Classes that only keep the attributes that a state gives them.
HOLDERS = frozenset({
    "argparse.Namespace", "types.SimpleNamespace", "optparse.Values", "collections.UserDict",
    "collections.UserList", "UserDict.IterableUserDict", "UserDict.UserDict", "UserList.UserList",
    *(name for name, row in VETTED.items() if row.why == HOLDS),
})  # fmt: skip
# Of these, exceptions copy a row that is set as ``args``.
EXCEPTIONS = frozenset(
    name for name, row in VETTED.items()
    if row.why == HOLDS and name.startswith(("builtins.", "__builtin__.", "exceptions."))
)  # fmt: skip
# Classes of Python that are made without a call: no method of theirs is one that pickle calls.
PLAIN = frozenset({
    "calendar.Calendar", "calendar.TextCalendar", "collections.ChainMap", "collections.UserString",
    "UserString.UserString", "statistics.NormalDist", "string.Template", "textwrap.TextWrapper",
})  # fmt: skip
SCRIPTED = "torch.ScriptObject"  # its __setstate__ iterates, and makes an object of a class in C++
DDP = "torch.nn.parallel.distributed.DistributedDataParallel"
# torch's modules: __setstate__ updates the attributes, and asks whether some are there.
MODULES = (
    "torch.nn.modules.", "torch.nn.parallel.data_parallel.", "torch.nn.utils.",
    DDP,
    "torch.nn.quantized.", "torch.nn.quantizable.", "torch.nn.intrinsic.", "torch.nn.qat.",
    "torch.ao.", "torch.quantization.", "torch.optim.swa_utils.AveragedModel",
)  # fmt: skip
# Those whose __setstate__ iterates or asks what other attributes hold, also under other modules.
READERS = (
    DDP, "torch.ao.", "torch.quantization.", "torch.nn.quantized.", "torch.nn.quantizable.",
    "torch.nn.qat.",
)  # fmt: skip
READER_NAMES = frozenset({"RNNBase", "RNN", "LSTM", "GRU"})
HOOK = "._WrappedHook"  # of torch's modules: it keeps a function and its module
HANDLES = "torch.utils.hooks."  # weak references to dicts of hooks
# torch's classes without a __setstate__: they keep what they are given, and call it later.
KEEPERS = (
    "torch.optim.lr_scheduler.", "torch.optim.swa_utils.", "torch.utils.data.dataset.",
    "torch.utils.data.sampler.", "torch.utils.data.distributed.", "torch.distributions.",
    "torch.utils.data.dataloader.DataLoader",
)  # fmt: skip
# torch's optimizers: __setstate__ looks up, and sets, items of the parts of the state.
OPTIMIZERS = "torch.optim."
# Distributed tensors and plans of checkpoints: objects of these classes hold each other, and no
# others, which some iterate (``DeviceMesh``); ``READ_STATES`` compare what they are given.
NESTERS = (
    "torch.distributed.device_mesh.", "torch.distributed._mesh_layout.",
    "torch.distributed.tensor.", "torch.distributed._tensor.", "torch.distributed._shard.",
    "torch.distributed.checkpoint.", "torch.distributed.remote_device.",
)  # fmt: skip
READ_STATES = frozenset({
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
    "torch.distributed.checkpoint.metadata.TensorProperties",
})  # fmt: skip
