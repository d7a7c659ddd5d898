"""Classes of Python's and torch's that act, by whatever module hands them out.

Any module hands out what it imports: ``somelib.archives.ZipFile`` is Python's. So the name of a
class alone decides. What projects call their own classes (``Policy``, ``Queue``, ``ConfigParser``)
is left out. The tables are a scan of Python 3.11; a test scans what is installed.
"""

from __future__ import annotations

from ckptool.formats.pickles.trust import ACTING

# Classes that act on their attributes when an object of them is given its state, read or dropped,
# on their arguments when one is made, or on both when they are iterated.
IMPORTED = frozenset({
    # of Python: iterators
    "FileInput", "FileWrapper", "IMapIterator", "IMapUnorderedIterator", "IteratorProxy",
    "IteratorWrapper", "PartialIteratorWrapper", "_GeneratorWrapper", "_MockIter", "_grouper",
    "_tee", "accumulate", "batched", "chain", "combinations", "combinations_with_replacement",
    "compress", "count", "cycle", "dropwhile", "enumerate", "filter", "filterfalse", "groupby",
    "islice", "map", "pairwise", "permutations", "product", "repeat", "reversed", "starmap",
    "takewhile", "tee", "zip", "zip_longest",
    # files, which are closed when they are dropped, and what is read as files are
    "BZ2File", "BaseStream", "BufferedIOBase", "BufferedRWPair", "BufferedRandom",
    "BufferedReader", "BufferedWriter", "BytesIO", "CompleteDirs", "DecompressReader",
    "ExFileObject", "FastLookup", "FileIO", "GzipDecodedResponse", "GzipFile", "HTTPResponse",
    "IOBase", "LZMAFile", "PyZipFile", "RawIOBase", "SocketIO", "SpooledTemporaryFile",
    "StreamReader", "StreamReaderProtocol", "StreamReaderWriter", "StreamRecoder", "StreamWriter",
    "StringIO", "TarFile", "TextIOBase", "TextIOWrapper", "ZipExtFile", "ZipFile", "_GzipReader",
    "_ListDataStream", "_ReaderView", "_SocketWriter", "_SpoofOut", "_Stream",
    "_TemporaryFileCloser", "_TemporaryFileWrapper", "_ZipWriteFile", "_wrap_close", "addbase",
    "addclosehook", "addinfo", "addinfourl", "file_wrapper",
    # other classes with a ``__del__`` or a ``__setstate__``
    "Aifc_write", "Au_read", "Au_write", "Barrier", "BaseEventLoop", "BaseProactorEventLoop",
    "BaseSelectorEventLoop", "BaseSubprocessTransport", "BoundedSemaphore", "CDLL", "Connection",
    "FancyURLopener", "FieldStorage", "IsolatedAsyncioTestCase", "JoinableQueue", "Pool", "Popen",
    "Random", "SSLSocket", "SemLock", "ServerProxy", "SharedMemory", "SharedMemoryManager",
    "Shelf", "Telnet", "ThreadPool", "ThreadedChildWatcher", "URLopener", "Wave_read",
    "Wave_write", "_ConnectionBase", "_SafeQueue", "_SharedMemoryTracker", "socket",
    # attributes that are set on another object, and made when they are asked for
    "AsyncMock", "MagicMock", "Mock", "NamespaceProxy", "NonCallableMagicMock", "NonCallableMock",
    "PropertyMock", "_AnnotatedAlias", "_BaseGenericAlias", "_CallableGenericAlias",
    "_CallableType", "_ConcatenateGenericAlias", "_DeprecatedGenericAlias", "_GenericAlias",
    "_LazyModule", "_LiteralGenericAlias", "_SpecialGenericAlias", "_TupleType",
    "_UnionGenericAlias", "_UnpackGenericAlias",
    # containers and references
    "ChainMap", "ConverterMapping", "KeyedRef", "RawConfigParser", "ReferenceType",
    "SectionProxy", "UserDict", "UserList", "UserString", "WeakKeyDictionary", "WeakMethod",
    "WeakSet", "WeakValueDictionary", "dircmp", "finalize", "ref",
    # of torch
    "BatchSampler", "ChainDataset", "ConcatDataset", "DataLoader", "Subset",
})  # fmt: skip

# Classes of Python's with methods that open, write, start or call: these are not looked up.
_WITH_METHODS = frozenset({
    "AsyncExitStack", "BackgroundBrowser", "BaseRotatingHandler", "Bdb", "CGIHTTPRequestHandler",
    "CoverageResults", "DOMBuilder", "DistributionMetadata", "ElementTree", "EnvBuilder",
    "ExitStack", "FileCookieJar", "ForkServer", "FrozenImporter", "GenericBrowser", "ImpLoader",
    "InspectLoader", "Konqueror", "LWPCookieJar", "MH", "MacOSX", "MacOSXOSAScript", "Mailbox",
    "Maildir", "MimeTypes", "ModuleFinder", "ModuleScanner", "MozillaCookieJar",
    "NamespaceLoader", "Path", "PosixPath", "RobotFileParser", "SharedMemoryManager",
    "SharedMemoryServer", "SimpleHTTPRequestHandler", "TestLoader", "Textbox", "URLopener",
    "WindowsPath", "mbox",
})  # fmt: skip
# Single methods of classes whose names projects have, too.
_METHODS = frozenset({
    "Completer.attr_matches", "Completer.complete", "Distribution.get_command_class",
    "Distribution.run_command", "Distribution.run_commands", "Document.writexml",
    "Element.writexml", "Helper.help", "Profile.dump_stats", "Profile.run", "Profile.runcall",
    "Profile.runctx", "Snapshot.dump", "Snapshot.load", "Stats.dump_stats", "Stats.load_stats",
    "Template.copy", "Template.open", "Template.open_r", "Template.open_w", "Trace.run",
    "Trace.runctx", "Trace.runfunc", "Values.read_file", "Values.read_module",
})  # fmt: skip


def may_be_acting_method(owner: str, name: str) -> bool:
    """Return whether a method may be one of Python's that acts, by the name of its class."""
    last = owner.rpartition(".")[2]
    return last in _WITH_METHODS or last in ACTING or f"{last}.{name}" in _METHODS
