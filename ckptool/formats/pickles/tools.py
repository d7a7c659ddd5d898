"""Modules and functions of torch and numpy that run code, open files or start programs.

They are tools for developers and parts of compilers, of which no training state holds a name. The
table of functions is a scan of the sources of torch 2.13 and numpy 2.4: those that open a file,
start a program, run source code or import a module by its name. A test scans what is installed.
Classes written in C++ are not in the sources: those that open files or connections are listed.
"""

from __future__ import annotations

from collections.abc import Mapping

MODULES_OF_TORCH = frozenset({
    "torch.hub", "torch.profiler", "torch.cuda.gds", "torch.distributed._local_tensor",
    "torch.distributed._functional_collectives", "torch.jit", "torch.package",
    "torch.utils.cpp_extension", "torch.utils.bottleneck", "torch.utils.collect_env",
    "torch.utils._config_module", "torch.utils.model_zoo", "torch.utils.data.datapipes",
    "torch._dynamo", "torch._inductor", "torch._ops", "torch.ops", "torch._classes",
    "torch.fx.graph_module", "torch.fx.experimental", "torch._export", "torch.export",
    "torch.multiprocessing", "torch.distributed.launch", "torch.distributed.run",
    "torch.distributed.elastic", "torch.distributed.rpc", "torch.testing",
    "torch._weights_only_unpickler", "torch.onnx", "torch.utils.serialization",
    "torch.utils.benchmark", "torch._lazy", "torch._appdirs",
    "torch._functorch.benchmark_utils", "torch._functorch.compilers",
    "torch._functorch.fx_minifier", "torch._library", "torch._native", "torch._numpy.testing",
    "torch._strobelight", "torch._vendor.quack", "torch.backends._coreml", "torch.backends.xeon",
    "torch.cuda._annotate_cuda_graph_trace", "torch.cuda._memory_viz", "torch.cuda.tunable",
    "torch.distributed.checkpoint._consolidate_hf_safetensors",
    "torch.distributed.checkpoint.format_utils", "torch.distributed.debug",
    "torch.distributed.flight_recorder", "torch.distributed.launcher", "torch.numa",
    "torch.utils._cpp_embed_headers", "torch.utils._get_clean_triton", "torch.utils.hipify",
    "torch.utils.jit", "torch.utils.model_dump", "torch.utils.show_pickle",
    "torch.utils.tensorboard", "torch.utils.viz", "torchgen",
    # Classes derived from those of sympy, which evaluate their text, of filelock and of pickle.
    "torch.utils._sympy", "torch.utils._filelock", "torch.distributed.pipelining._IR",
    "torch.fx._graph_pickler", "torch.fx.passes._tensorify_python_scalars",
    "torch._functorch._aot_autograd", "numpy.typing.mypy_plugin",
    "torch.distributed._symmetric_memory._nvshmem_triton",
    "torch.distributed._symmetric_memory._shmem_triton_utils",
    # Parts of the library in C++, apart from those with functions of layers and of tensors.
    *(f"torch._C.{part}" for part in (
        "_acc", "_aoti", "_autograd", "_cpu", "_distributed", "_distributed_autograd",
        "_distributed_rpc", "_distributed_rpc_testing", "_dynamo", "_export", "_functionalization",
        "_functions", "_functorch", "_instruction_counter", "_itt", "_jit", "_jit_tree_views",
        "_lazy", "_lazy_ts_backend", "_monitor", "_nativert", "_nvtx", "_onnx", "_profiler", "_te",
        "_verbose", "cpp",
    )),
    "functorch._src", "functorch.compile", "functorch.dim", "functorch.einops",
    "numpy.conftest", "numpy.ctypeslib", "numpy.distutils", "numpy.f2py", "numpy.lib.format",
    "numpy.lib._format_impl", "numpy.lib.npyio", "numpy.lib._npyio_impl", "numpy.random._examples",
    "numpy.testing",
})  # fmt: skip

# Module -> its functions that act, and classes of the library in C++ that open what they are given.
# What a module imports from elsewhere is in it too, where that is dangerous under its own name.
FUNCTIONS: Mapping[str, str] = {
    "numpy": "savez savez_compressed test",
    "numpy._core": "test",
    "numpy._core._methods": "_dump",
    "numpy._core.function_base": "add_newdoc",
    "numpy._core.numeric": "_fromfunction_with_like",
    "numpy.core": "_ufunc_reconstruct",
    "numpy.lib": "test",
    "numpy.lib._arrayterator_impl": "reduce",
    "numpy.lib._datasource": "_open",
    "numpy.lib._utils_impl": "_makenamedict",
    "numpy.linalg": "test",
    "numpy.ma.mrecords": "fromtextfile openfile",
    "numpy.matlib": "savez savez_compressed",
    "numpy.matrixlib": "test",
    "torch": (
        "PyTorchFileReader PyTorchFileWriter _import_dotted_name _load_global_deps "
        "_preload_cuda_lib"
    ),
    "torch._functorch._aot_autograd.graph_compile": ("_cache_autograd_info _cache_inference_info"),
    "torch._functorch._aot_autograd.subclass_codegen": "_compile_and_exec_source",
    "torch._functorch.partitioners": (
        "choose_saved_values_set solve_min_cut visualize_min_cut_graph"
    ),
    "torch._functorch.aot_autograd": "patch",
    "torch._higher_order_ops.invoke_leaf_function": "_resolve_mutated_flat_indices",
    "torch._higher_order_ops.triton_kernel_wrap": "triton_kernel_wrapper_mutation_dense",
    "torch._jit_internal": "_TensorExtractor",
    "torch._logging": "_init_logs",
    "torch._logging._internal": "_init_logs",
    "torch._prims_common": "reduce",
    "torch._utils": "_augment_memory_snapshot_stack_traces _import_dotted_name",
    "torch._utils_internal": "get_writable_path",
    "torch.ao.pruning._experimental.pruner.base_structured_sparsifier": "getitem",
    "torch.autograd.profiler": "load_nvprof parse_nvprof_trace",
    "torch.autograd.profiler_util": "attrgetter",
    "torch.cuda.amp.common": "find_spec",
    "torch.cuda.memory": (
        "_augment_memory_snapshot_stack_traces _dump_snapshot _save_memory_usage "
        "_save_segment_usage"
    ),
    "torch.distributed._pycute.int_tuple": "reduce",
    "torch.distributed._serialization": "_save",
    "torch.distributed._shard.checkpoint._fsspec_filesystem": "url_to_fs",
    "torch.distributed._shard.checkpoint.hf_storage": "consolidate_safetensors_files",
    "torch.distributed._tensor": "import_module",
    "torch.distributed.checkpoint._async_process_executor": "ThreadPoolExecutor",
    "torch.distributed.checkpoint._async_thread_executor": "ThreadPoolExecutor",
    "torch.distributed.checkpoint._fsspec_filesystem": "url_to_fs",
    "torch.distributed.checkpoint.filesystem": "_write_item",
    "torch.distributed.checkpoint.hf_storage": "consolidate_safetensors_files",
    "torch.distributed.checkpoint.staging": "ThreadPoolExecutor",
    "torch.distributed": "FileStore TCPStore",
    "torch.distributed.distributed_c10d": (
        "FileStore TCPStore _object_to_tensor _pickler _unpickler namedtuple"
    ),
    "torch._C._distributed_c10d": "FileStore TCPStore _WorkerServer _get_handler",
    "torch.distributed.fsdp._flat_param": "accumulate",
    "torch.distributed.nn.api.remote_module": "_recursive_script_module_reducer",
    "torch.distributed.optim.zero_redundancy_optimizer": "_broadcast_object",
    "torch.distributed.pipelining._schedule_visualizer": "visualize_schedule",
    "torch.distributed.pipelining.schedules": "_dump_chrometrace",
    "torch.distributed.tensor.debug._op_coverage": "itemgetter print_op_coverage_summary",
    "torch.fx._lazy_graph_module": (
        "GraphModule PackageExporter reduce_graph_module reduce_package_graph_module"
    ),
    "torch.fx._symbolic_trace": "CodeType FunctionType GraphModule",
    "torch.fx.operator_schemas": "_torchscript_type_to_python_type",
    "torch.nn.attention._fa3": "_fa3_import_module",
    "torch.nn.attention._fa4": "_fa4_import_module",
    "torch.nativert.backends._lower_utils": "package_pt2",
    "torch.nn.modules.module": "namedtuple",
    "torch.nn.utils._deprecation_utils": "lazy_deprecated_import",
    "torch.optim._multi_tensor": "partialmethod",
    "torch.serialization": (
        "_import_dotted_name _legacy_save _open_file _open_file_like _save mkdtemp"
    ),
    "torch.sparse._triton_ops_meta": "dump",
    "torch.sparse.semi_structured": "namedtuple",
    "torch.utils._cpp_extension_versioner": "hash_source_files",
    "torch.utils._pytree": "_defaultdict_deserialize enum_object_hook treespec_loads",
    "torch.utils._traceback": "report_compile_source_on_error",
    "torch.utils._triton": "_extern_libs_key",
    "torch.utils.data.graph": "_list_connected_datapipes",
    "torch.utils._zip": "ZipFile",
    "torch.xpu": "byref cast pointer",
    "torch.xpu.memory": "_augment_memory_snapshot_stack_traces _dump_snapshot",
}
FUNCTIONS_THAT_ACT = frozenset(
    f"{module}.{name}" for module, names in FUNCTIONS.items() for name in names.split()
)
CLASSES_THAT_ACT = frozenset(
    f"torch.distributed.{name}"
    for name in (
        "FakeProcessGroup", "FileStore", "HashStore", "PrefixStore", "ProcessGroupGloo",
        "ProcessGroupMPI", "ProcessGroupNCCL", "ProcessGroupUCC", "ProcessGroupXCCL", "TCPStore",
        "_ControlCollectives", "_DistributedBackendOptions", "_ProcessGroupWrapper",
        "_StoreCollectives", "_SymmetricMemory",
    )
)  # fmt: skip
