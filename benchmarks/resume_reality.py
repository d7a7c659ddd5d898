"""Kills real runs while they save, and holds ckptool's word against what the trainer then does.

    python benchmarks/resume_reality.py                      all trainers that are installed
    python benchmarks/resume_reality.py plain dcp --by-calls  without strace, as the tests run it

For each trainer of ``resume_trainers.py`` a run saves, trains on, and saves again. At the second
save it forks a child for each boundary: before each call that changes a file, where the child is
killed by SIGKILL (``strace`` injects it; with ``--by-calls`` the functions of Python are counted
instead). Then, of each file that was written, the state with that file cut in half. What lies there
is judged by ``ckptool verify --require resume`` and ``--latest-valid``, and by the trainer: a fresh
process is told to resume and trains to the end.

It is *equal* if its losses are those of a resume from a complete save, to the last bit; otherwise
it *diverges* or *fails*. A "yes" is wrong where the run is not equal. The certificate
says "to the bit" rightly if the resume from a complete save equals the run that was never stopped.

Needs Linux, and strace without ``--by-calls``; transformers, accelerate, lightning, pytorch-ignite
and mmengine where those are to be tried.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # threads do not fork
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import torch  # noqa: E402
from resume_trainers import TRAINERS, Losses, Run  # noqa: E402

from ckptool.commands.choosing import latest_valid  # noqa: E402
from ckptool.commands.verify import Request, chosen_rules, verify_file  # noqa: E402
from ckptool.errors import CkptError  # noqa: E402

CALLS = (
    "openat", "creat", "write", "pwrite64", "writev", "fsync", "fdatasync", "rename", "renameat",
    "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "ftruncate", "rmdir",
)  # fmt: skip
CALL = re.compile(r"^(?:\[pid +\d+\] )?(?:\d+ +)?(\w+)\(", re.MULTILINE)
ENOUGH = 10_000  # calls of a save; more is a fault of this script
REQUEST = Request(chosen_rules({"require": ["resume"]}), ("resume",))


@dataclass
class Tried:
    """A state that a killed save left, with the two answers."""

    where: str  # the boundary
    word: bool  # ckptool's
    outcome: str  # equal, diverges, fails
    latest_is_right: bool  # what --latest-valid printed resumes


@dataclass
class Outcome:
    """All that was tried of one trainer."""

    name: str
    tried: list[Tried] = field(default_factory=list)
    to_the_bit: bool = False  # a resume from a complete save equals the run at a stretch
    said: str = ""  # the verdict of the certificate on a complete save

    def count(self, outcome: str, *, word: bool) -> int:
        """Return how many states have these two answers."""
        return sum(each.outcome == outcome and each.word == word for each in self.tried)

    @property
    def faults(self) -> list[str]:
        """What must not be."""
        found = [f"{t.where}: ok, but it {t.outcome}" for t in self.tried
                 if t.word and t.outcome != "equal"]  # fmt: skip
        found += [f"{t.where}: --latest-valid" for t in self.tried if not t.latest_is_right]
        good = self.count("equal", word=True) + self.count("equal", word=False)
        if self.count("equal", word=True) < 0.95 * good:
            found.append(f"{self.count('equal', word=False)} of {good} that resume are not ok")
        if self.said == "to-the-bit" and not self.to_the_bit:
            found.append("the certificate says to the bit, and a complete save diverges")
        return found


# --------------------------------------------------------------------------------- forked children


def forked(task: Callable[[], Any], *, quiet: bool = True) -> int:
    """Fork a child that does a task; return its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if quiet:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        task()
        code = 0
    except BaseException:  # noqa: BLE001 - the child's only answer is its code
        code = 1
    finally:
        os._exit(code)


def answer_of(task: Callable[[], Any]) -> Any:
    """Return what a task gives in a fork, as JSON carries it; None if it fails."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "answer")
        os.waitpid(forked(lambda: file.write_text(json.dumps(task()))), 0)
        text = file.read_text() if file.exists() else ""
    return json.loads(text) if text else None


# ------------------------------------------------------------------------------- killing by strace


class ByStrace:
    """Kills a child before its n-th call of the system that can change a file."""

    def boundaries(self, save: Callable[[], Any]) -> list[tuple[str, int]]:
        """Return the calls of one save: each by its name and its number among its namesakes."""
        with tempfile.NamedTemporaryFile("r") as log:
            self._run(save, ["-o", log.name, "-e", f"trace={','.join(CALLS)}"])
            names = CALL.findall(log.read())
        counted: Counter[str] = Counter()
        found = []
        for name in names:
            counted[name] += 1
            found.append((name, counted[name]))
        return found

    def kill(self, save: Callable[[], Any], boundary: tuple[str, int]) -> None:
        """Save in a child that is killed at the boundary."""
        name, nth = boundary
        inject = f"inject={name}:signal=KILL:when={nth}"
        self._run(save, ["-o", os.devnull, "-e", f"trace={name}", "-e", inject])

    def _run(self, save: Callable[[], Any], options: list[str]) -> None:
        def task() -> None:
            os.kill(os.getpid(), signal.SIGSTOP)
            save()

        child = forked(task)
        os.waitpid(child, os.WUNTRACED)
        tracer = subprocess.Popen(["strace", *options, "-p", str(child)], stderr=subprocess.PIPE,
                                  stdout=subprocess.DEVNULL, text=True)  # fmt: skip
        assert tracer.stderr is not None
        assert "attached" in tracer.stderr.readline()
        os.kill(child, signal.SIGCONT)
        os.waitpid(child, 0)
        tracer.communicate()


# -------------------------------------------------------------------------------- killing by calls


class Counted(io.FileIO):
    """The file under a buffered one; each of its writes, which goes to the system, is counted."""

    def __init__(self, count: Callable[[], None], *args: Any) -> None:
        """Open it, which is counted too."""
        self._count = count
        count()
        super().__init__(*args)

    def write(self, data: Any) -> int:
        """Write after it was counted."""
        self._count()
        return super().write(data)


class ByCalls:
    """Kills a child before its n-th call of the functions of Python that change files."""

    def boundaries(self, save: Callable[[], Any]) -> list[tuple[str, int]]:
        """Return the numbers of the calls of one save."""
        count = answer_of(lambda: self._counted(save, ENOUGH))
        return [("call", nth) for nth in range(1, count + 1)]

    def kill(self, save: Callable[[], Any], boundary: tuple[str, int]) -> None:
        """Save in a child that is killed at the boundary."""
        os.waitpid(forked(lambda: self._counted(save, boundary[1])), 0)

    def _counted(self, save: Callable[[], Any], at: int) -> int:
        made = 0

        def count() -> None:
            nonlocal made
            made += 1
            if made == at:
                os.kill(os.getpid(), signal.SIGKILL)

        def opened(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
                if mode == "wb":
                    return io.BufferedWriter(Counted(count, file, mode))
                return real(file, mode, *args, **options)

            return call

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                count()
                return real(*args, **options)

            return call

        import builtins

        builtins.open = opened(builtins.open)  # type: ignore[assignment]
        io.open = opened(io.open)  # type: ignore[assignment]
        for name in ("fsync", "rename", "replace", "unlink", "remove", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        save()
        return made


# --------------------------------------------------------------------------------------- a trainer


class Trial:
    """The states that the second save of a run can leave."""

    def __init__(self, run: Run, killer: ByStrace | ByCalls, place: Path) -> None:
        self.run, self.killer, self.place = run, killer, place
        self.folder = place / "run"
        self.folder.mkdir(parents=True)
        self.states: dict[str, tuple[str, Path]] = {}  # digest -> (boundary, copy)
        self.boundaries: list[tuple[str, str]] = []  # (boundary, digest of the state)
        self.target = self.first = self.folder

    def play(self) -> None:
        """Run to the end in this process; save for real after all kills."""
        self.losses = self.run(self.folder, None, self._saving)

    def _saving(self, path: Path, save: Callable[[], Any]) -> None:
        self.saved = getattr(self, "saved", 0) + 1
        if self.saved == 1:
            save()
            self.first = path
            self._keep("a complete first save", self.place / "first")
        elif self.saved == 2:
            self.target = path
            self._kill_all(save)
            save()
            self._note("a complete second save")
            self._keep("a complete second save", self.place / "second")
        # A third save, at the end of the run, is not made: it would hide the second.

    def _kill_all(self, save: Callable[[], Any]) -> None:
        before = self.place / "before"
        shutil.copytree(self.folder, before)
        self._note("before the save")
        calls = self.killer.boundaries(save)
        assert len(calls) < ENOUGH
        for boundary in calls:
            restore(before, self.folder)
            self.killer.kill(save, boundary)
            self._note(f"{boundary[0]} {boundary[1]}")
        restore(before, self.folder)
        os.waitpid(forked(save), 0)
        complete = self.place / "complete"
        shutil.copytree(self.folder, complete)
        for file in sorted(path for path in complete.rglob("*") if path.is_file()):
            name = file.relative_to(complete)
            old = before / name
            if old.exists() and old.read_bytes() == file.read_bytes():
                continue
            restore(complete, self.folder)
            data = file.read_bytes()
            (self.folder / name).write_bytes(data[: len(data) // 2])
            self._note(f"{name} cut")
        restore(before, self.folder)

    def _note(self, where: str) -> None:
        digest = digest_of(self.folder)
        if digest not in self.states:
            copy = self.place / f"state{len(self.states)}"
            shutil.copytree(self.folder, copy)
            self.states[digest] = (where, copy)
        self.boundaries.append((where, digest))

    def _keep(self, _where: str, copy: Path) -> None:
        shutil.copytree(self.folder, copy)


def digest_of(folder: Path) -> str:
    """Return a digest of names and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        digest.update(path.read_bytes() if path.is_file() else b"/")
    return digest.hexdigest()


def restore(source: Path, folder: Path) -> None:
    """Make a folder equal to another one."""
    shutil.rmtree(folder)
    shutil.copytree(source, folder)


def try_trainer(name: str, killer: ByStrace | ByCalls) -> Outcome:
    """Return all answers on what the kills of one trainer left."""
    run, outcome = TRAINERS[name], Outcome(name)
    with tempfile.TemporaryDirectory() as place:
        trial = Trial(run, killer, Path(place))
        whole = Path(place, "whole")
        whole.mkdir()
        clean = answer_of(lambda: keyed(run(whole, None, plainly)))
        with quiet():
            trial.play()

        def resumed(copy: Path, path: Path) -> Losses | None:
            restore(copy, trial.folder)
            found: dict[str, float] | None = answer_of(
                lambda: keyed(run(trial.folder, path, lambda *_: None))
            )
            return {int(step): loss for step, loss in found.items()} if found else None

        good = [resumed(Path(place, "first"), trial.first),
                resumed(Path(place, "second"), trial.target)]  # fmt: skip
        assert None not in good, "a complete save does not resume"
        outcome.to_the_bit = good[1] == {
            int(step): loss for step, loss in clean.items() if int(step) in good[1]
        }
        restore(Path(place, "second"), trial.folder)
        report = verify_file(trial.target, REQUEST)
        outcome.said = str(report.resume.verdict) if report.resume else ""
        answers = {}
        for digest, (where, copy) in trial.states.items():
            losses = resumed(copy, trial.target)
            restore(copy, trial.folder)
            word, latest = said_of(trial.target), latest_of(trial.folder)
            does = "fails" if losses is None else "equal" if losses in good else "diverges"
            if latest is None:  # right where the only checkpoint is the one that was overwritten
                is_right = trial.first == trial.target and does != "equal"
            else:
                is_right = resumed(copy, latest) in good
            answers[digest] = Tried(where, word, does, is_right)
        outcome.tried = [answers[digest] for _, digest in trial.boundaries]
        for tried, (where, _) in zip(outcome.tried, trial.boundaries, strict=True):
            tried.where = where
    return outcome


def keyed(losses: Losses) -> dict[str, float]:
    """Return losses as JSON keeps them; none would be no run."""
    assert losses
    return {str(step): loss for step, loss in losses.items()}


def plainly(_path: Path, save: Callable[[], Any]) -> None:
    """Save without more ado."""
    save()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what libraries print."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def said_of(path: Path) -> bool:
    """Return whether ckptool says that a run resumes from a path."""
    try:
        return path.exists() and not _is_run(path) and verify_file(path, REQUEST).ok
    except CkptError:
        return False


def _is_run(path: Path) -> bool:
    from ckptool.commands.operands import is_run

    return is_run(path)


def latest_of(folder: Path) -> Path | None:
    """Return what --latest-valid prints."""
    try:
        chosen = latest_valid([folder], REQUEST).path
    except CkptError:
        return None
    return None if chosen is None else Path(chosen)


# -------------------------------------------------------------------------------------------- table


def show(outcomes: list[Outcome], seconds: float) -> None:
    """Print the table of confusions."""
    columns = ("equal", "diverges", "fails")
    print(f"{'':14}{'ok and it':^27}{'not ok and it':^27}  a complete save")
    head = "".join(f"{name:>9}" for name in columns)
    print(f"{'':14}{head}{head}  resumes")
    for each in outcomes:
        cells = [each.count(name, word=word) for word in (True, False) for name in columns]
        bits = "to the bit" if each.to_the_bit else "with losses"
        print(f"{each.name:14}{''.join(f'{cell:9}' for cell in cells)}  {bits}, said {each.said}")
    for each in outcomes:
        for fault in each.faults:
            print(f"WRONG {each.name}: {fault}")
    print(f"{sum(len(o.tried) for o in outcomes)} states in {seconds:.0f} s")


def main() -> int:
    """Try the trainers; return 1 if a word is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trainers", nargs="*", default=list(TRAINERS), metavar="TRAINER")
    parser.add_argument("--by-calls", action="store_true", help="count Python's calls")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    begun = time.monotonic()
    outcomes = []
    for name in asked.trainers:
        killer = ByCalls() if asked.by_calls else ByStrace()
        outcomes.append(try_trainer(name, killer))
        print(f"{name} tried", file=sys.stderr, flush=True)
    if asked.json:
        print(json.dumps([{**vars(o), "tried": [vars(t) for t in o.tried], "faults": o.faults}
                          for o in outcomes]))  # fmt: skip
    else:
        show(outcomes, time.monotonic() - begun)
    return int(any(outcome.faults for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
