"""Several processes give the report of one, of ``diff`` and of ``verify``."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from threading import Barrier, Thread

import pytest
import torch

from ckptool.errors import DamagedError
from ckptool.process.ranks import Ranks
from helpers.output import environment


@pytest.fixture
def paths(tmp_path):
    torch.manual_seed(0)
    one = {f"layers.{i}": torch.randn(700_000) for i in range(8)}
    one |= {"codes": torch.randn(3_000_000).to(torch.float8_e4m3fn), "n": torch.arange(9)}
    other = {name: tensor.clone() for name, tensor in one.items()}
    other["layers.3"][5_000:] *= 1.001
    other["layers.5"][-1] = float("nan")
    other["codes"] = torch.randn(3_000_000).to(torch.float8_e4m3fn)
    other["n"] = other["n"] + 2**60
    for name, tree in (("a.pt", one), ("b.pt", other)):
        torch.save({"model": tree, "epoch": len(name)}, tmp_path / name)
    return tmp_path / "a.pt", tmp_path / "b.pt"


def torchrun(*args, program=("-m", "ckptool")):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", "2", *map(str, program), *map(str, args)]  # fmt: skip
    env = environment({"OMP_NUM_THREADS": "1"})
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.slow
def test_two_ranks_give_the_report_of_one_process(paths, ckptool):
    alone = ckptool("diff", *paths, "--json")
    together = torchrun("diff", *paths, "--json")
    assert (alone.exit_code, together.returncode) == (1, 1), together.stderr
    assert json.loads(together.stdout) == alone.json
    assert len(alone.json["tensors"]) == 4


@pytest.mark.slow
def test_two_ranks_agree_that_equal_files_are_equal(paths):
    done = torchrun("diff", paths[0], paths[0])
    assert (done.returncode, done.stdout.split()[0]) == (0, "equal"), done.stderr
    assert done.stdout.count("tensors:") == 1


SLOW_TO_PRINT = """
import os, sys, time
from ckptool import cli
from ckptool.cli import {command} as command
shown = command.answer
def late(*args, **options):
    time.sleep(2)
    shown(*args, **options)
command.answer = late
cli.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["diff", "verify"])
def test_no_process_ends_before_the_answer_is_printed(command, broken, paths, tmp_path):
    """torchrun kills all processes when one ends with a code: that must not be before rank 0."""
    script = tmp_path / "late.py"
    script.write_text(SLOW_TO_PRINT.format(command=command))
    operands = paths if command == "diff" else [broken, *EVERYTHING]
    together = torchrun(command, *operands, "--json", program=[script])
    assert together.returncode == 1
    assert json.loads(together.stdout)["schema"] == f"ckptool/{command}/1"


# -------------------------------------------------------------------------------------- the sharing


class Meeting:
    """Ranks that are threads of this process."""

    def __init__(self, world: int) -> None:
        self.world, self.texts, self.barrier = world, [""] * world, Barrier(world, timeout=10)

    def exchange(self, rank: int, text: str) -> list[str]:
        self.texts[rank] = text
        self.barrier.wait()
        texts = list(self.texts)
        self.barrier.wait()
        return texts

    def run(self, work) -> list:
        """What ``work(ranks)`` gives or raises on each rank."""
        answers = [None] * self.world

        def one(rank: int) -> None:
            ranks = Ranks(rank, self.world, lambda text: self.exchange(rank, text))
            try:
                answers[rank] = work(ranks)
            except Exception as error:  # noqa: BLE001
                answers[rank] = error

        threads = [Thread(target=one, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_rank_has_all_results_in_order_and_did_its_share(world):
    sizes = [50, 1, 1, 7, 30, 3, 2, 6]
    shares: dict[int, int] = {}

    def work(ranks):
        def carry_out(own):
            shares[ranks.rank] = sum(own)
            return [2 * size for size in own]

        return ranks.work(sizes, carry_out, lambda size: size)

    assert Meeting(world).run(work) == [[2 * size for size in sizes]] * world
    assert max(shares.values()) == {1: 100, 2: 50, 3: 50}[world]


def test_an_error_of_one_rank_is_an_error_of_all():
    def work(ranks):
        def carry_out(own):
            if 3 in own:
                raise DamagedError("cut", path="a.pt", address="b")
            return own

        return ranks.work([1, 2, 3, 4], carry_out)

    errors = Meeting(2).run(work)
    assert [type(error) for error in errors] == [DamagedError, DamagedError]
    assert {str(error) for error in errors} == {"a.pt: b: cut"}


def test_a_bug_of_one_rank_keeps_nobody_waiting():
    first, second = Meeting(2).run(
        lambda ranks: ranks.work([1, 0], lambda own: [1 / n for n in own])
    )
    assert str(first) == str(second) == "a bug in ckptool: ZeroDivisionError: division by zero"


# ------------------------------------------------------------------------------------------- verify


@pytest.fixture
def broken(tmp_path):
    """Weights of all kinds with NaN, a constant, a counter at its limit, and a flipped bit."""
    torch.manual_seed(0)
    model = {f"layers.{i}.weight": torch.randn(300, 1000) for i in range(12)}
    model["layers.3.weight"][7, 7] = float("nan")
    model["layers.4.weight"] = torch.full((300, 1000), 0.5)
    model["codes"] = torch.tensor([2**31 - 1, 1], dtype=torch.int32)
    average = {name: v.clone() for name, v in model.items()}
    average["layers.8.weight"] += 1e-3
    path = tmp_path / "broken.pt"
    torch.save({"model": model, "ema_state_dict": average, "global_step": 3}, path)
    data = bytearray(path.read_bytes())
    data[data.index(model["layers.9.weight"].numpy().tobytes()) + 4000] ^= 1
    path.write_bytes(data)
    return path


EVERYTHING = ("--bytes", "--values", "--select", "CK1,CK3,CK306,CK4")


@pytest.mark.slow
def test_verify_by_two_ranks_gives_the_report_of_one_process(broken, ckptool):
    alone = ckptool("verify", broken, *EVERYTHING, "--json")
    found = {finding["rule"] for finding in alone.json["findings"]}
    assert found >= {"CK103", "CK301", "CK305", "CK306"}
    together = torchrun("verify", broken, *EVERYTHING, "--json")
    assert (alone.exit_code, together.returncode) == (1, 1), together.stderr
    assert json.loads(together.stdout) == alone.json


@pytest.mark.slow
def test_verify_against_a_source_is_shared_too(paths, tmp_path, ckptool):
    source, release = tmp_path / "source.pt", tmp_path / "release.pt"
    model = torch.load(paths[0])["model"]
    average = {n: v if n in {"n", "codes"} else v + 1e-3 for n, v in model.items()}
    torch.save({"model": model, "ema": average}, source)
    torch.save(model, release)
    alone = ckptool("verify", release, "--against", source, "--json")
    assert "they are its raw weights" in alone.json["findings"][0]["message"]
    together = torchrun("verify", release, "--against", source, "--json")
    assert together.returncode == alone.exit_code, together.stderr
    assert json.loads(together.stdout) == alone.json


def every_rank(*args):
    """(exit code, stdout, stderr) of two processes that torchrun would start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}  # fmt: skip
    command = [sys.executable, "-m", "ckptool", *map(str, args)]
    running = [
        subprocess.Popen(
            command, env=environment({**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=240) for process in running]
    return [(p.returncode, *output) for p, output in zip(running, outputs, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["verify", "diff"])
def test_every_rank_ends_with_the_verdict_and_the_first_one_speaks(command, broken, paths):
    args = (broken, "--values") if command == "verify" else paths
    (first, said, _), (second, nothing, _) = every_rank(command, *args)
    assert (first, second) == (1, 1)
    assert said
    assert nothing == ""


@pytest.mark.slow
def test_an_error_is_one_document_for_all_ranks(tmp_path):
    (first, said, _), (second, nothing, told) = every_rank("verify", tmp_path / "no.pt", "--json")
    assert (first, second) == (2, 2)
    assert json.loads(said)["error"]["code"] == "unreadable"
    assert nothing == ""
    assert told.startswith("error: ")
