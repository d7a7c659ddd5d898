"""Classes of torch and numpy that run code of their own when an object of them is made or dropped.

``__new__`` runs when a pickle makes an object, whatever else it does with it, and ``__del__`` when
the object is dropped: numpy's ``DataSource`` then removes the directory that it names. The tables
are a scan of the sources of torch 2.13 and numpy 2.4, without the classes of ``vetted.py``; a test
scans what is installed and compares. A class is known by its own name in its package, since other
modules hand it out too.
"""

from __future__ import annotations

from collections.abc import Mapping

MADE: Mapping[str, str] = {  # module -> its classes with a ``__new__``
    "numpy._core.defchararray": "chararray",
    "numpy._core.getlimits": "finfo",
    "numpy._core.memmap": "memmap",
    "numpy._core.records": "recarray",
    "numpy._globals": "_NoValueType",
    "numpy.ma.core": "MaskedConstant mvoid",
    "numpy.ma.mrecords": "MaskedRecords",
    "numpy.matrixlib.defmatrix": "matrix",
    "torch": (
        "BFloat16Storage BoolStorage ByteStorage CharStorage ComplexDoubleStorage "
        "ComplexFloatStorage DoubleStorage FloatStorage HalfStorage IntStorage LongStorage "
        "QInt32Storage QInt8Storage QUInt2x4Storage QUInt4x2Storage QUInt8Storage ShortStorage"
    ),
    "torch._dynamo.bytecode_debugger": "_BreakpointMarker",
    "torch._dynamo.device_interface": (
        "CpuInterface.Event DeviceInterface.Event DeviceInterface.Stream DeviceInterface.device"
    ),
    "torch._dynamo.polyfills.pytree": "_Asterisk",
    "torch._dynamo.variables.base": "ImplicitRealizingVariableTrackerMeta VariableTrackerMeta",
    "torch._export.serde.serialize": "Final",
    "torch._export.verifier": "_VerifierMeta",
    "torch._inductor.codegen.cpp": "CppTile2DOverrides CppVecOverrides",
    "torch._inductor.dtype_propagation": "DtypePropagationOpsHandler _typecheck_DtypePropagation",
    "torch._inductor.freezing": "ErasedTensor",
    "torch._numpy._dtypes": (
        "bool_ complex128 complex64 complexfloating float16 float32 float64 floating generic "
        "inexact int16 int32 int64 int8 integer number signedinteger uint16 uint32 uint64 "
        "uint8 unsignedinteger"
    ),
    "torch._streambase": "_EventBase _StreamBase",
    "torch._subclasses.complex_tensor._core": "ComplexTensor",
    "torch._subclasses.fake_tensor": "FakeTensor",
    "torch._subclasses.functional_tensor": "FunctionalTensor",
    "torch.accelerator.graphs": "Graph",
    "torch.ao.quantization.fx._equalize": "EqualizationQConfig",
    "torch.ao.quantization.fx.graph_module": (
        "FusedGraphModule ObservedGraphModule ObservedStandaloneGraphModule QuantizedGraphModule"
    ),
    "torch.autograd.grad_mode": "enable_grad inference_mode no_grad",
    "torch.cuda": (
        "BFloat16Storage BoolStorage ByteStorage CharStorage ComplexDoubleStorage "
        "ComplexFloatStorage DoubleStorage FloatStorage HalfStorage IntStorage LongStorage "
        "ShortStorage _CudaBase _CudaLegacyStorage device_of"
    ),
    "torch.cuda.graphs": "CUDAGraph",
    "torch.cuda.streams": "Event ExternalStream Stream",
    "torch.distributed._composable.replicate": "DDP",
    "torch.distributed._composable.replicate_with_fsdp": "ReplicateModule",
    "torch.distributed._functional_collectives": "AsyncCollectiveTensor",
    "torch.distributed._local_tensor": "LocalIntNode LocalTensor",
    "torch.distributed._shard.sharded_tensor.api": "ShardedTensor ShardedTensorBase",
    "torch.distributed.distributed_c10d": "Backend P2POp",
    "torch.distributed.flight_recorder.components.fr_logger": "FlightRecorderLogger",
    "torch.distributed.fsdp._flat_param": "FlatParameter",
    "torch.distributed.fsdp._fully_shard._fully_shard": "FSDPModule",
    "torch.distributed.nn.api.remote_module": "RemoteModule _RemoteModule",
    "torch.distributed.tensor._api": "DTensor",
    "torch.distributed.tensor._shards_wrapper": "LocalShardsWrapper",
    "torch.export._unlift": "_StatefulGraphModule",
    "torch.fx._lazy_graph_module": "_LazyGraphModule",
    "torch.fx.experimental.const_fold": "FoldedGraphModule",
    "torch.fx.experimental.sym_node": "DynamicInt _DynamicScalar",
    "torch.fx.experimental.unification.variable": "Var",
    "torch.fx.graph_module": "GraphModule",
    "torch.fx.passes.infra.pass_base": "PassResult",
    "torch.masked.maskedtensor.core": "MaskedTensor",
    "torch.mtia.mtia_graph": "MTIAGraph",
    "torch.nn.utils._expanded_weights.expanded_weights_impl": "ExpandedWeight",
    "torch.package._mock": "MockedObject",
    "torch.sparse.semi_structured": (
        "SparseSemiStructuredTensor SparseSemiStructuredTensorCUSPARSELT "
        "SparseSemiStructuredTensorCUTLASS"
    ),
    "torch.storage": "TypedStorage _LegacyStorage",
    "torch.utils._contextlib": "_NoParamDecoratorContextManager",
    "torch.utils._cxx_pytree": "LeafSpec _Asterisk",
    "torch.utils._pytree": "_Asterisk structseq",
    "torch.utils._sympy.functions": "CeilDiv Max Min MinMaxBase",
    "torch.utils._sympy.numbers": "IntInfinity NegativeIntInfinity",
    "torch.utils._sympy.singleton_int": "SingletonInt",
    "torch.utils.data.datapipes._typing": "_DataPipeMeta _IterDataPipeMeta",
    "torch.utils.data.datapipes.iter.combining": "DemultiplexerIterDataPipe ForkerIterDataPipe",
    "torch.xpu": "device_of",
    "torch.xpu.graphs": "XPUGraph",
    "torch.xpu.streams": "Event Stream",
}

DROPPED: Mapping[str, str] = {  # module -> its classes with a ``__del__``
    "numpy.distutils.ccompiler_opt": "CCompilerOpt _Cache",
    "numpy.lib._datasource": "DataSource Repository",
    "numpy.lib._npyio_impl": "NpzFile",
    "torch._dynamo.device_interface": "CpuInterface.Event",
    "torch._inductor.codecache": "DLLWrapper",
    "torch._inductor.output_code": "CompiledFxGraph",
    "torch._inductor.runtime.static_triton_launcher": (
        "StaticallyLaunchedCudaKernel StaticallyLaunchedTritonKernel StaticallyLaunchedXpuKernel"
    ),
    "torch._native.ops.foreach_mm.nvmath_impl": "ForeachMMCublasLt",
    "torch._streambase": "_EventBase",
    "torch._subclasses.fake_tensor": "IncrementRecursionCount",
    "torch.cuda._sanitizer": "CUDASanitizer",
    "torch.cuda.gds": "GdsFile",
    "torch.cuda.graphs": "CUDAGraph",
    "torch.distributed._shard.sharded_tensor.api": "ShardedTensor",
    "torch.distributed._symmetric_memory._nccl": "NcclCommRegistration",
    "torch.distributed.checkpoint._async_process_executor": "_AsyncCheckpointProcess",
    "torch.distributed.elastic.rendezvous.etcd_rendezvous": "EtcdRendezvous EtcdRendezvousHandler",
    "torch.mps.event": "Event",
    "torch.multiprocessing.reductions": "StorageWeakRef",
    "torch.profiler.profiler": "ExecutionTraceObserver",
    "torch.utils.data.dataloader": "_MultiProcessingDataLoaderIter",
    "torch.utils.data.datapipes.iter.combinatorics": "ShufflerIterDataPipe",
    "torch.utils.data.datapipes.iter.combining": (
        "MultiplexerIterDataPipe _DemultiplexerIterDataPipe _ForkerIterDataPipe"
    ),
    "torch.utils.data.datapipes.iter.grouping": "GrouperIterDataPipe",
    "torch.utils.data.datapipes.utils.common": "StreamWrapper",
}

# Of these it is known that they do nothing but what is stated.
REVIEWED: Mapping[str, str] = {
    "torch.distributed._shard.sharded_tensor.api.ShardedTensor": (
        "drops its own number from a table of the process"
    ),
}


def acts_when_made(qualname: str) -> bool:
    """Return whether a class of torch or numpy has a ``__new__`` or a ``__del__`` of its own."""
    return _own_name(qualname) in _MADE or acts_when_dropped(qualname)


def acts_when_dropped(qualname: str) -> bool:
    """Return whether a class of torch or numpy has a ``__del__`` of its own."""
    return _own_name(qualname) in _DROPPED and qualname not in REVIEWED


def _own_name(qualname: str) -> tuple[str, str]:
    return qualname.partition(".")[0], qualname.rpartition(".")[2]


def _by_name(table: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    rows = ((module, name) for module, names in table.items() for name in names.split())
    return frozenset(_own_name(f"{module}.{name}") for module, name in rows)


_MADE, _DROPPED = _by_name(MADE), _by_name(DROPPED)

NAMES_OF_DROPPED = frozenset(name for _, name in _DROPPED)
