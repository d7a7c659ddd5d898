"""The pipeline of a GPU without one: streams that do what they are asked for later."""

from __future__ import annotations

import queue
import random
import threading
import time
from contextlib import contextmanager

import pytest
import torch

from ckptool.comparison import devices
from ckptool.comparison.devices import Device, Pipeline, Slot
from ckptool.comparison.tolerances import Tolerance
from ckptool.comparison.values import Job, Run, Values
from ckptool.dtypes import BY_NAME
from ckptool.errors import DamagedError
from ckptool.formats.base import TensorReader
from ckptool.process.progress import no_progress
from ckptool.sources.local import LocalFile
from ckptool.tree.nodes import TensorRef

UINT8 = BY_NAME["uint8"]
STAGED = 512


class Stream:
    """One thing after the other, each by up to ``late`` seconds late."""

    def __init__(self, seed, late):
        self._wanted, self._late = queue.Queue(), late
        self._random = random.Random(seed)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while (work := self._wanted.get()) is not None:
            time.sleep(self._random.random() * self._late)
            work()

    def ask(self, work):
        self._wanted.put(work)

    def end(self):
        self.ask(done := threading.Event().set)
        self._wanted.put(None)
        assert done.__self__.wait(60)


class Queues:
    """What ``devices.Queues`` is for a GPU."""

    def __init__(self, copying_late, computing_late):
        self.copying, self.computing = Stream(7, copying_late), Stream(8, computing_late)
        self._own = threading.local()

    def copy_from_here(self):
        self._own.stream = self.copying

    @contextmanager
    def computing_here(self):
        yield
        self.copying.end()
        self.computing.end()

    def stream(self):
        return getattr(self._own, "stream", self.computing)

    def event(self):
        return Event(self)

    def memory(self, *, pinned):
        return torch.full((STAGED,), 255, dtype=torch.uint8)

    def copy(self, there, here):
        self.stream().ask(lambda: there.copy_(here))


class Event:
    def __init__(self, queues):
        self._queues, self._done = queues, None

    def record(self):
        self._done = done = threading.Event()
        self._queues.stream().ask(done.set)

    def wait(self):
        if self._done is not None:
            self._queues.stream().ask(self._done.wait)

    def synchronize(self):
        if self._done is not None:
            self._done.wait()


def job(folder, count):
    """Two tensors of bytes that nowhere agree."""
    one = torch.randint(0, 100, (count,), dtype=torch.uint8)
    sides = []
    for name, tensor in (("a", one), ("b", one + 100)):
        path = folder / name
        path.write_bytes(tensor.numpy().tobytes())
        ref = TensorRef(UINT8, (count,), ())
        source = LocalFile(path)
        spans = (source.span(0, count),)
        sides.append(Values(ref, TensorReader(source), UINT8, count, spans))
    return Job(*sides, Tolerance()), (one, one + 100)


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Whether the kernels of each run saw its bytes, given a class of slots."""
    monkeypatch.setattr(devices, "STAGED", STAGED)

    def go(slot=Slot, threads=3, count=60 * STAGED + 7, late=(5e-4, 5e-4)):
        torch.manual_seed(0)
        queues = Queues(*late)
        sides, tensors = job(tmp_path, count)
        right = {}

        def take(run, a, b):  # a kernel, which reads its arguments when its turn comes
            def kernel():
                wanted = [tensor[run.start : run.stop] for tensor in tensors]
                right[run] = a.equal(wanted[0]) and b.equal(wanted[1])

            queues.computing.ask(kernel)

        runs = list(Run(0, 0, count).pieces(STAGED))
        slots = [slot(queues) for _ in range(threads + 1)]
        with queues.computing_here():
            Pipeline(None, queues, slots, [sides], threads).go(runs, take, no_progress)
        assert list(right) == runs
        return right.values()

    return go


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_every_kernel_sees_the_bytes_of_its_run(found, threads):
    assert all(found(threads=threads))


SLOW_COPIES, SLOW_KERNELS = (2e-2, 0), (0, 2e-2)


@pytest.mark.parametrize(
    ("passed_over", "late"),
    [
        ("_arrived.synchronize", SLOW_COPIES),  # what lies in memory is replaced before its copy
        ("_arrived.wait", SLOW_COPIES),  # a kernel comes before the copy that it reads
        ("_used.wait", SLOW_KERNELS),  # a copy comes before the kernel that still reads
    ],
)
def test_each_wait_is_needed(found, passed_over, late):
    """So that the test above can fail; the stream that must be waited for is the slower one."""
    event, wait = passed_over.split(".")

    class Hasty(Slot):
        def __init__(self, queues):
            super().__init__(queues)
            setattr(getattr(self, event), wait, lambda: None)

    assert not all(found(slot=Hasty, count=12 * STAGED, late=late))


def test_a_file_that_ends_too_soon_is_damaged_on_a_device_too(tmp_path):
    sides, _ = job(tmp_path, 1 << 18)
    (tmp_path / "b").write_bytes(bytes(1000))
    device = Device("cpu")
    with pytest.raises(DamagedError, match="became shorter"):
        device.measure([sides], [Run(0, 0, 1 << 18)], 2, no_progress)


def test_another_error_than_that_of_the_device_is_told_as_it_is(tmp_path):
    def broken(_nbytes):
        raise RecursionError("not of the device")

    sides, _ = job(tmp_path, 1 << 18)
    with pytest.raises(RecursionError):
        Device("cpu").measure([sides], [Run(0, 0, 1 << 18)], 2, broken)
