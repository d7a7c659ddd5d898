"""Whenever a run is ended, the original is intact or wholly replaced, and the next run works.

Two sweeps: SIGKILL at every call that changes something, before and after it; and the signals that
can be caught at the same calls, at single instructions of the writers, and at random times.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Iterator

import pytest
from scenes import BY_NAME, SCENES, Scene, Stage

# What changes the disk, or what the process knows of it.
CHANGING = {
    "open", "close", "pwrite", "copy_file_range", "sendfile", "posix_fallocate", "fsync", "flock",
    "ftruncate", "fchmod", "fchown", "rename", "link", "unlink", "setxattr", "ioctl", "umask",
    "mkdir", "mmap",
}  # fmt: skip
CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
KILLED = {"before", "after", "before + partial", "after + partial", "backup", "backup + partial",
          "begun + partial"}  # fmt: skip
ENDED = {"before", "after"}

Point = dict[str, int | bool]


def points(calls: list[str], often: int | None = None) -> Iterator[Point]:
    """Before each changing call, and after those whose success must not be forgotten.

    ``often`` is how many of the calls of one name are enough.
    """
    seen: Counter[str] = Counter()
    for at, name in enumerate(calls, 1):
        seen[name] += 1
        if often is None or seen[name] <= often:
            if name in CHANGING:
                yield {"at": at}
            if name in {"open", "rename", "link", "unlink", "fsync", "mkdir"}:
                yield {"at": at, "after": True}


def kill_at(stage: Stage, scene: Scene, point: Point) -> None:
    done = stage.play(scene, **point, signal=signal.SIGKILL)
    assert done.code == -signal.SIGKILL, (point, done)
    assert stage.look(scene) in KILLED, point
    stage.assert_next_run_works(scene)


def end_at(stage: Stage, scene: Scene, point: dict, number: int) -> None:
    done = stage.play(scene, **point, signal=number)
    assert (done.code, done.stderr) == (130, ""), (point, done)
    assert stage.look(scene) in ENDED, point
    stage.assert_next_run_works(scene)


# --------------------------------------------------------------------------------- at chosen calls


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_a_kill_at_any_call_costs_nothing(scene, stage):
    for point in points(stage.calls(scene)):
        kill_at(stage, scene, point)


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_a_signal_at_any_call_leaves_nothing(scene, stage):
    for n, point in enumerate(points(stage.calls(scene), often=6)):
        end_at(stage, scene, point, CAUGHT[n % len(CAUGHT)])


@pytest.mark.parametrize("name", ["open", "rename", "link"])
@pytest.mark.parametrize("scene", ["in-place-backup", "promote", "extract-safetensors"])
def test_an_end_when_a_name_changes_costs_nothing(scene, name, stage):
    scene = BY_NAME[scene]
    calls = stage.calls(scene)
    for at in (n for n, call in enumerate(calls, 1) if call == name):
        for after in (False, True):
            kill_at(stage, scene, {"at": at, "after": after})
            end_at(stage, scene, {"at": at, "after": after}, CAUGHT[at % len(CAUGHT)])


# ------------------------------------------------------------------------------ at any instruction


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["in-place-backup", "promote", "extract-force"])
def test_a_signal_at_any_instruction_of_the_writers_leaves_nothing(scene, stage):
    scene, chance = BY_NAME[scene], random.Random(7)
    instructions = int(stage.play(scene, opcode=-1, signal=0).calls[0])
    for opcode in sorted(chance.sample(range(1, instructions), 40)):
        end_at(stage, scene, {"opcode": opcode}, chance.choice(CAUGHT))


# ---------------------------------------------------------------------------------- at random times


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_an_end_at_any_time_costs_nothing(scene, stage):
    chance = random.Random(11)
    usual = stage.play(scene).seconds
    for _ in range(25):
        number = chance.choice((signal.SIGKILL, *CAUGHT))
        done = stage.play(scene, seconds=chance.random() * usual, signal=number)
        assert done.code in {0, 130, -signal.SIGKILL}, done
        assert stage.look(scene) in (KILLED if number == signal.SIGKILL else ENDED)
        stage.assert_next_run_works(scene)
