"""Names by which the modules of torch and numpy hand out classes that are not their own.

``torch.utils.data.dataloader`` imports a class that unpickles its state, and
``torch.optim.lr_scheduler`` imports ``Optimizer``. So the module of a name does not say what the
class is. The tables are a scan of the sources of torch 2.13 and numpy 2.4. A test scans what is
installed and compares.
"""

from __future__ import annotations

from collections.abc import Mapping

# Package -> classes of Python, of packages that torch brings along, and of modules that run code.
OTHERS: Mapping[str, str] = {
    "torch": (
        "ABC ABCMeta AOTAutogradCache AOTCompiledArtifact AOTConfig AOTDedupeWrapper "
        "AOTDispatchCompiler AOTGraphCapture AOTInput AOTOutput AOTState AOTSyntheticBaseWrapper "
        "AbstractContextManager AbstractSet Action Annotated Any Application ArgumentParser "
        "AsyncCollectiveTensor AtomicExpr BOOL BackendCacheArtifact BackwardSignature "
        "BackwardState BaseHTTPRequestHandler BaseTy BaseType BooleanAtom BoxedBool "
        "BufferAOTInput BufferedIOBase BypassFxGraphCache CFunctionalizeInterpreterPtr "
        "CGradInterpreterPtr CInterpreter CJvpInterpreterPtr CVmapInterpreterPtr Callable "
        "CallbackTrigger ChainMap ChildFailedError CodeType Collection CompileEventLogger "
        "CompiledFxGraph CompiledFxGraphConstants Connection ConstantIntNode Counter "
        "CreationMeta CustomKnapsackSolver CustomOpDef CustomRuntimeEstimator DFIterDataPipe "
        "DWORD DataChunk DefaultLogsSpecs DeviceType DictLoader DifferentiableAOTInput "
        "DistAutogradContext EffectType Enum Environment ExitStack ExportGraphSignature "
        "ExportedProgram Expr FakeProcessGroup FakeScriptObject ForwardRef FunctionSchema "
        "FunctionType FxGraphCache FxGraphCachePickler FxGraphHashDetails Generator Generic "
        "GenericAlias GraphModule GraphSignature GuardOnDataDependentSymNode GuardedCache HANDLE "
        "Hashable HealthCheckServer HigherOrderOperator IO InputAliasInfo IntEnum "
        "InterpreterModule IterDataPipe Iterable Iterator JITFunction JointWithDescriptors "
        "KernelInterface LatticeOp ListType LocalElasticAgent LocalTensor LocalTensorMode "
        "LockType LoggingTensorMode LogsSpecs MapDataPipe Mapping MappingProxyType MethodType "
        "MissingOpProfile ModuleType MutableMapping MutableSet MutationType NewType NoneType "
        "Number OpOverload OpOverloadPacket OpaqueMeta OperatorBase OperatorName OptimizedModule "
        "OrdDict OrderedDict OutputAliasInfo OutputCode OutputType PackageExporter ParamAOTInput "
        "ParamSpec Path Pipe Placement PlainAOTInput PrecompileContext ProcessExitedException "
        "ProfilerActivity ProfilerConfig ProfilerEvent ProfilerState PropagateUnbackedSymInts "
        "Protocol ProxyTorchDispatchMode PyRRef PythonKeyTracer PytreeThunk Queue RRef "
        "RandomnessType RawTextHelpFormatter Real ReferenceType RegistrationHandle "
        "RendezvousParameters Reversible SHARDING_PRIORITIES SampleInput "
        "SavedForBackwardsAOTOutput SavedForBackwardsNoVcCheckAOTOutput SavedTensor SchemaKind "
        "Sequence SerializableAOTDispatchCompiler SerializableCompiledFunction ShapeEnv "
        "ShmemKernelRegistry ShortCircuit SignalException Signature Sized SourceRangeFactory "
        "SplitPoint Stats Std StorageWeakRef StrPrinter StrobelightCompileTimeProfiler "
        "SubclassCreationMeta SubclassMeta SupportsFloat SupportsInt SymIntEqByExpr SymNode "
        "Symbol SympyBoolean TensorAlias TensorifyScalarRestartAnalysis TensorifyState "
        "ThreadPoolExecutor ThreadingHTTPServer Timer TorchBindOpOverload TracebackType "
        "TransformType TypeAliasType TypeVar TypeVarTuple UnsupportedOperation Var "
        "ViewAndMutationMeta WeakKeyDictionary WeakSet WeakValueDictionary WorkerSpec ZipFile "
        "_AliveCallbackProxy _Any _AttrKind _Callable _ContextDecorator _DefaultLogsSpecs "
        "_ExperimentalConfig _IterDataPipeSerializationWrapper _JITFunction _KinetoEvent "
        "_MapDataPipeSerializationWrapper _ModuleFrame _ParamSpec _ProfilerResult "
        "_ShardingIterDataPipe _SubmoduleEntry _TypeVar _WaitCounter _WaitCounterTracker _bool "
        "_bytes _complex _deprecated _float _int _pickler _str _unpickler accumulate attrgetter "
        "auto base_FileLock c_double c_uint32 c_void_p cached_property chain closing "
        "combinations count datetime defaultdict deprecated deque functional_datapipe groupby "
        "guaranteed_datapipes_determinism islice itemgetter member non_deterministic nullcontext "
        "partial partialmethod product ref repeat runtime_validation_disabled timedelta tqdm "
        "zip_longest"
    ),
    "numpy": (
        "AnalyzeTypeContext Any Callable Collection ContextVar Counter Enum FFI ImportFrom "
        "Iterable Mapping MypyFile Path Plugin Protocol Sequence Statement SupportsIndex "
        "TestCase TypeAliasType TypeVar _Buffer _gentype bool bytes cached_property complex "
        "float int itemgetter nullcontext object product str"
    ),
    "functorch": (
        "Any BuiltinMethodType Callable FunctionType Generator GetSetDescriptorType "
        "HigherOrderOperator MethodDescriptorType WrapperDescriptorType"
    ),
    "torchgen": (
        "ABC Any Callable Counter Dumper Enum Generic Iterable Loader OrderedDict Path "
        "TypeVar auto defaultdict itemgetter"
    ),
}

# Classes of torch that a family of modules imports from outside of it. The rules of the family
# (``_STATES`` in ``grammar.py``) are not for them.
GUESTS = (
    "Argument BlockMask Buffer C10dBackend DDP Device ExceptionWrapper FSDP FSDPExtensions "
    "FakeTensor FakeTensorMode FullOptimStateDictConfig FullStateDictConfig Function Future "
    "Graph Join JoinHook Joinable Layout LazyString Library ModTracker Node OpaqueBase "
    "OptimStateDictConfig Optimizer Parameter PassBase PassResult Scope "
    "ShardedOptimStateDictConfig ShardedStateDictConfig StateDictConfig StateDictType "
    "SymInt Tensor TorchDispatchMode Tracer TreeSpec UninitializedBuffer "
    "UninitializedParameter UntypedStorage Variable WeakIdKeyDictionary Work "
    "_IncompatibleKeys device"
)


def is_of_others(qualname: str) -> bool:
    """Return whether a name of torch's or numpy's may be a class that is not their own."""
    return (qualname.partition(".")[0], qualname.rpartition(".")[2]) in _OTHERS


def is_guest(qualname: str) -> bool:
    """Return whether a class may be of another module than those around the one that names it."""
    return qualname.rpartition(".")[2] in _GUESTS


_OTHERS = frozenset((package, name) for package, names in OTHERS.items() for name in names.split())
_GUESTS = frozenset(GUESTS.split())
