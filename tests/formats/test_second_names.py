"""What an attack with the source at hand found: other names, other readings, other ways in."""

from __future__ import annotations

import pickle
import shutil

import pytest

from ckptool.errors import DamagedError
from ckptool.formats import open_checkpoint
from ckptool.formats.base import DANGEROUS, NamedGlobal
from ckptool.formats.pickles.machine import PickleMachine
from ckptool.formats.pickles.plain_names import trust_of
from ckptool.sources.memory import Memory
from ckptool.tree.nodes import GlobalRef
from helpers.paths import FIXTURES


@pytest.mark.parametrize(
    "name",
    [
        "numpy._core.memmap:memmap", "numpy.matlib:memmap", "numpy.lib._datasource:DataSource",
        "torch.profiler.profiler:ExecutionTraceObserver", "torch.cuda.gds:GdsFile",
        "torch.distributed._local_tensor:LocalIntNode", "_pydecimal:Decimal",
        "torch.distributed._functional_collectives:AsyncCollectiveTensor",
        "torch.distributed.distributed_c10d:_tensor_to_object",
        "networkx.utils.backends:partial", "filelock._core._singleton:ABCMeta",
    ],
)  # fmt: skip
def test_other_names_of_what_acts_are_dangerous(name):
    ref = GlobalRef(*name.split(":"))
    assert trust_of(NamedGlobal(ref, called=False, pickle="")) == DANGEROUS


def test_a_class_that_makes_a_directory_is_dangerous_to_call():
    ref = GlobalRef("distlib.util", "Cache")
    assert trust_of(NamedGlobal(ref, called=True, pickle="", of_data=True)) == DANGEROUS


@pytest.mark.parametrize("line", [b"010", b"-010", b"007", b"+01", b" 010"])
def test_an_integer_that_c_reads_as_octal_is_refused(line):
    with pytest.raises(DamagedError, match="octal"):
        PickleMachine(Memory(b"I" + line + b"\n.")).run()


@pytest.mark.parametrize("line", [b"0", b"-1", b"10", b"+5", b"00", b"01"])
def test_other_integers_are_those_of_python(line):
    data = b"I" + line + b"\n."
    assert PickleMachine(Memory(data)).run() == pickle.loads(data)


@pytest.mark.parametrize("quoted", [r"'\u0041'", r"'\x41\n'", r"'\N{BULLET}'", r"'\101'"])
def test_escapes_are_those_of_bytes(quoted):
    data = b"S" + quoted.encode() + b"\n."
    assert PickleMachine(Memory(data)).run() == pickle.loads(data)


def test_bytes_that_a_plan_would_load_are_followed(tmp_path, ckptool):
    folder = shutil.copytree(FIXTURES / "genuine" / "torch_dcp" / "checkpoint", tmp_path / "c")
    payload = b"cos\nsystem\n(S'true'\ntR."
    call = b"ctorch.storage\n_load_from_bytes\n(B" + len(payload).to_bytes(4, "little") + payload
    plan = (folder / ".metadata").read_bytes()
    head = plan[:2] if plan[:1] == b"\x80" else b""
    (folder / ".metadata").write_bytes(head + call + b"tR0" + plan[len(head) :])
    verdict = ckptool("verify", folder, "--json")
    assert verdict.exit_code == 1
    assert "CK201" in {finding["rule"] for finding in verdict.json["findings"]}


def test_an_entry_that_its_class_denies_is_refused(tmp_path):
    folder = shutil.copytree(FIXTURES / "genuine" / "torch_dcp" / "checkpoint", tmp_path / "c")
    plan = (folder / ".metadata").read_bytes()
    assert b"TensorStorageMetadata" in plan
    (folder / ".metadata").write_bytes(
        plan.replace(b"TensorStorageMetadata", b"Tensor5torageMetadata")
    )
    with pytest.raises(DamagedError, match="what its class is not"):
        open_checkpoint(folder).close()
