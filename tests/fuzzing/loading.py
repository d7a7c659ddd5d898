"""The other party for "what passes verify loads": torch and safetensors, in a process of their own.

Nothing here unpickles freely. ``torch.load(weights_only=True)`` is the judge; where it refuses a
file, the same file is loaded with Python's own unpickler that may look up nothing but what torch
allows and a few harmless names of numpy, so that only the *form* of the file is judged by it.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import select
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

SECONDS = 60
MEMORY = 4 << 30  # bytes of data that the judge may have


class Judge:
    """A process that loads files, one after the other; a new one where it died."""

    def __enter__(self) -> Self:
        self._process: subprocess.Popen[str] | None = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._end()

    def load(self, path: Path, *, plain: bool = False) -> dict[str, str]:
        """How loading ended: ``{"safe": "", "free": ""}`` says that both went well.

        ``plain``: it is a bare pickle, which Python alone reads.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps([str(path), plain]), file=process.stdin, flush=True)
        ready, _, _ = select.select([process.stdout], [], [], SECONDS)
        line = process.stdout.readline() if ready else ""
        if not line:
            self._end()
            return {"safe": "the loader died", "free": "the loader died"}
        answer: dict[str, str] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(
            [sys.executable, __file__], text=True, stderr=subprocess.DEVNULL, env=env, **pipes
        )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None


# ------------------------------------------------------------------------------ inside the process

HARMLESS = {
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy": ("ndarray", "dtype"),
    "collections": ("OrderedDict", "Counter", "defaultdict", "deque"),
    "builtins": ("list", "dict", "tuple", "set", "frozenset", "complex", "bytearray", "bytes"),
    "argparse": ("Namespace",),
}


def _refuse(module: str, name: str) -> Any:
    raise LookupError(f"refused: {module}.{name}")


def restricted(otherwise: Callable[[str, str], Any] = _refuse) -> ModuleType:
    """A pickle module whose unpickler looks up nothing but what is harmless.

    ``otherwise`` gives what every other name stands for.
    """
    from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

    from torch._weights_only_unpickler import _get_allowed_globals

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == ("torch.storage", "_load_from_bytes"):
                _refuse(module, name)
            module, name = NAME_MAPPING.get((module, name), (module, name))
            module = IMPORT_MAPPING.get(module, module)
            allowed = _get_allowed_globals().get(f"{module}.{name}")
            if allowed is None and name not in HARMLESS.get(module, ()):
                return otherwise(module, name)
            return super().find_class(module, name)

    made = ModuleType("restricted")
    made.__dict__.update(
        Unpickler=Unpickler, load=lambda file, **more: Unpickler(file, **more).load()
    )
    return made


def _how(load: Any, path: str) -> str:
    try:
        load(path)
    except Exception as error:  # noqa: BLE001 - loaders fail with anything
        if "Attempting to deserialize object on" in str(error):  # no such device here
            return _how(partial(load, map_location="cpu"), path)
        said = str(error).rpartition("WeightsUnpickler error: ")[2]
        return f"{type(error).__name__}: {said}"[:200]
    return ""


def _serve() -> None:
    import torch
    from safetensors import safe_open

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    harmless = restricted()

    def safetensors(path: str) -> None:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                file.get_tensor(name)

    def plain(path: str, map_location: str = "") -> None:
        with open(path, "rb") as file:  # noqa: PTH123
            harmless.load(file)

    loaders: dict[str, tuple[Any, Any]] = {
        ".safetensors": (safetensors, safetensors),
        ".pkl": (plain, plain),
    }
    torch_loaders = (
        partial(torch.load, weights_only=True),
        partial(torch.load, weights_only=False, pickle_module=harmless),
    )
    for line in sys.stdin:
        path, is_plain = json.loads(line)
        safe, free = loaders.get(".pkl" if is_plain else Path(path).suffix, torch_loaders)
        how = _how(safe, path)
        said = {"safe": how, "free": _how(free, path) if how else ""}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
