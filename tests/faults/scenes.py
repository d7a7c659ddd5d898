"""What a fault test looks at: a folder, a command that writes there, and the two states allowed.

A ``Scene`` is a row: what lies in the folder, and the arguments. The state after an undisturbed
run is found by one; the time in the record of provenance is fixed, so that it is always the same.
Whatever happens to a run, the folder must be in the one state or the other, and the same command
must then lead to the second.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from helpers.making import average_of, resumable, save, weights
from helpers.output import environment
from helpers.paths import FIXTURES

INPUT, SAFE = "last.ckpt", "last.safetensors"
DRIVER = Path(__file__).with_name("driver.py")
PARTIAL = ".ckptool.partial"  # how the only litter of a killed run ends
SAMPLE = FIXTURES / "ema" / "emacallback" / "exported.ckpt"

State = dict[str, bytes]


class Try(NamedTuple):
    """A run and what came of it."""

    code: int  # negative: the signal that ended it
    calls: list[str]  # to the system, by the main thread
    stdout: str
    stderr: str
    seconds: float


class Driver:
    """The process that forks the tries."""

    def __init__(self) -> None:
        steady = {
            "OPENBLAS_NUM_THREADS": "1",  # threads do not fork
            "SOURCE_DATE_EPOCH": "86400",  # the record of provenance is always the same
            "CKPTOOL_DEBUG": "",  # as users run it
        }
        self._process = subprocess.Popen(
            [sys.executable, str(DRIVER), str(SAMPLE)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(steady), text=True,
        )  # fmt: skip

    def __call__(self, folder: Path, args: Iterable[object], **fault: Any) -> Try:
        """One run."""
        return self.at_once(folder, [args], **fault)[0]

    def at_once(self, folder: Path, several: list[Iterable[object]], **fault: Any) -> list[Try]:
        """Several runs beside each other."""
        request = [
            {"folder": str(folder), "args": [str(arg) for arg in args], "fault": fault}
            for args in several
        ]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return [Try(**one) for one in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


@dataclass(frozen=True, eq=False)
class Scene:
    """A row of ``SCENES``."""

    name: str
    args: tuple[str, ...]
    more: Mapping[str, bytes] = field(default_factory=dict)  # files beside the inputs
    again: int = 0  # exit code of the same command when it is done already
    report: str | None = None  # the file in which a verdict is written

    def __str__(self) -> str:
        return self.name

    @property
    def input(self) -> str:
        return self.args[1]

    @property
    def backup(self) -> str | None:
        return f"{self.input}.bak" if "--backup" in self.args else None

    @property
    def index(self) -> str | None:
        """The file without which the others are nothing yet."""
        if "out.dcp" in self.args:
            return "out.dcp/.metadata"
        return "out.safetensors.index.json" if "--max-shard-size" in self.args else None


OLD_INDEX = b'{"weight_map": {"a": "out-00001-of-00002.safetensors"}}'
SCENES = (
    Scene("in-place", ("promote-ema", INPUT, "--in-place")),
    Scene("in-place-backup", ("promote-ema", INPUT, "--in-place", "--backup")),
    Scene("in-place-safetensors", ("promote-ema", SAFE, "--in-place")),
    Scene("promote", ("promote-ema", INPUT, "-o", "out.ckpt"), again=2),
    Scene("promote-force", ("promote-ema", INPUT, "-o", "out.ckpt", "--force"),
          {"out.ckpt": b"an older one" * 9000}),
    Scene("extract-safetensors", ("extract-ema", INPUT, "-o", "out.safetensors"), again=2),
    Scene("extract-torch", ("extract-ema", INPUT, "-o", "out.pt"), again=2),
    Scene("extract-cast",
          ("extract-ema", INPUT, "-o", "out.safetensors", "--dtype", "float16"), again=2),
    Scene("extract-shards",
          ("extract-ema", INPUT, "-o", "out.safetensors", "--max-shard-size", "10KB"), again=2),
    Scene("extract-force", ("extract-ema", INPUT, "-o", "out.pt", "--force"),
          {"out.pt": b"an older one"}),
    Scene("extract-shards-force",
          ("extract-ema", INPUT, "-o", "out.safetensors", "--max-shard-size", "10KB", "--force"),
          {"out-00001-of-00002.safetensors": b"an older one",
           "out.safetensors.index.json": OLD_INDEX}),
    Scene("report", ("verify", INPUT, "--report", "json=out.json"), again=2, report="out.json"),
    Scene("report-force", ("verify", INPUT, "--report", "json=out.json", "--force"),
          {"out.json": b"an older one"}, report="out.json"),
    Scene("configuration",
          ("verify", INPUT, "--config", "ckptool.toml", "--report", "json=out.json"),
          {"ckptool.toml": b'[verify]\nrequire = ["ema"]\nignore_rules = ["CK121"]\n'},
          again=2, report="out.json"),
    Scene("configuration-found", ("extract-ema", INPUT, "-o", "out.pt"),
          {"ckptool.toml": b'[verify]\nrequire = ["ema"]\n'}, again=2),
    Scene("average", ("average", INPUT, INPUT, "--only", "ema", "-o", "out.safetensors"), again=2),
    Scene("average-shards",
          ("average", INPUT, INPUT, "--only", "ema", "--weights", "1,3", "-o", "out.safetensors",
           "--max-shard-size", "10KB"), again=2),
    Scene("average-into",
          ("average", INPUT, INPUT, "--only", "ema", "--into", INPUT, "-o", "out.ckpt"), again=2),
    Scene("average-into-safetensors",
          ("average", SAFE, SAFE, "--only", "ema", "--into", SAFE, "-o", "out.safetensors"),
          again=2),
    Scene("drop", ("convert", INPUT, "--drop", "optimizer", "-o", "out.ckpt"), again=2),
    Scene("convert", ("convert", INPUT, "--only", "model", "-o", "out.pt", "--dtype", "*=float16"),
          again=2),
    Scene("safe", ("convert", INPUT, "--safe", "-o", "out.ckpt"), again=2),
    Scene("dcp", ("convert", INPUT, "--only", "model", "-o", "out.dcp"), again=2),
    Scene("dcp-force", ("convert", INPUT, "--only", "model", "-o", "out.dcp", "--force"),
          {"out.dcp/.metadata": b"an older one", "out.dcp/__1_0.distcp": b"an older one"}),
)  # fmt: skip
BY_NAME = {scene.name: scene for scene in SCENES}


def make_inputs(folder: Path) -> State:
    """Checkpoints whose promotion moves, casts and rearranges values."""
    generator = torch.Generator().manual_seed(5)
    model = weights(
        large=torch.randn(64, 64, generator=generator),
        half=torch.randn(33, 5, generator=generator).bfloat16(),
        conv=torch.randn(4, 3, 5, 5, generator=generator).to(memory_format=torch.channels_last),
    )
    average = {
        name: tensor.float().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in average_of(model).items()
    }
    save(folder / INPUT, model, average, **resumable(model))
    tables = {"model.": model, "ema_model.": average}
    named = {p + n: t.contiguous() for p, table in tables.items() for n, t in table.items()}
    save_file(named, folder / SAFE)
    return state_of(folder)


def state_of(folder: Path) -> State:
    """Names and contents of all files."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Stage:
    """The folder in which the scenes are played, one at a time."""

    def __init__(self, folder: Path, inputs: State) -> None:
        self.folder, self.inputs = folder, inputs
        self.driver = Driver()
        self._after: dict[Scene, tuple[State, list[str]]] = {}
        self._tidied: set[tuple[Scene, str]] = set()

    def close(self) -> None:
        self.driver.close()

    def before(self, scene: Scene) -> State:
        """What lies there at first."""
        return {scene.input: self.inputs[scene.input], **scene.more}

    def after(self, scene: Scene) -> State:
        """What an undisturbed run leaves."""
        return self._undisturbed(scene)[0]

    def calls(self, scene: Scene) -> list[str]:
        """What an undisturbed run asks of the system."""
        return self._undisturbed(scene)[1]

    def _undisturbed(self, scene: Scene) -> tuple[State, list[str]]:
        if scene not in self._after:
            done = self._run(scene)
            assert done.code == 0, done
            self._after[scene] = state_of(self.folder), done.calls
        return self._after[scene]

    def play(self, scene: Scene, **fault: Any) -> Try:
        """Set the scene and run its command."""
        self._undisturbed(scene)  # so that nothing is left to be found out when we look
        return self._run(scene, **fault)

    def _run(self, scene: Scene, **fault: Any) -> Try:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, content in self.before(scene).items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_bytes(content)
        return self.driver(self.folder, scene.args, **fault)

    def look(self, scene: Scene) -> str:
        """``before``, ``after``, or what else lies there; ``+ partial`` when litter does too.

        Some shards without their index are ``begun``. A report of a run that could not read
        everything is whole, too, and says so: ``judged``.
        """
        found = state_of(self.folder)
        partial = {name for name in found if name.endswith(PARTIAL)}
        whole = {name: content for name, content in found.items() if name not in partial}
        known = {"before": self.before(scene), "after": self.after(scene)}
        if scene.report and _is_verdict(whole.get(scene.report, b"")):
            known["judged"] = {**known["before"], scene.report: whole[scene.report]}
        if scene.backup:
            known["backup"] = {**known["before"], scene.backup: self.inputs[scene.input]}
        if scene.index and scene.index not in whole and whole != known["before"]:
            states = known["before"], known["after"]
            known["begun"] = {
                name: next((s[name] for s in states if s.get(name) == content), b"neither")
                for name, content in whole.items()
            }
        sizes = str({name: len(content) for name, content in found.items()})
        state = next((name for name, state in known.items() if state == whole), sizes)
        return f"{state} + partial" if partial else state

    def assert_next_run_works(self, scene: Scene) -> None:
        """The same command leads to the end, and leaves nothing else; looked at once a state."""
        state = self.look(scene)
        if (scene, state) in self._tidied:
            return
        done = self.driver(self.folder, scene.args)
        if state.startswith("begun") and "--force" not in scene.args:  # nothing proves whose it is
            assert (done.code, self.look(scene)) == (2, "begun"), (state, done)
            done = self.driver(self.folder, [*scene.args, "--force"])
        assert done.code == (scene.again if state.startswith("after") else 0), (state, done)
        assert self.look(scene) == "after", state
        self._tidied.add((scene, state))


def _is_verdict(content: bytes) -> bool:
    """A whole report, which does not say that all is well."""
    try:
        return json.loads(content)["ok"] is False
    except (ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def quick_folder(otherwise: Path) -> Iterator[Path]:
    """An empty folder in memory, where syncing costs nothing, or else on the disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="ckptool-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
