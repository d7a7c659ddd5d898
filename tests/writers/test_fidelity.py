"""What must change changes exactly, and nothing else does: every kind of model in every container.

The judge is the other party: torch, pickle and the safetensors library write the files, load the
originals and the promoted ones, and ``copy_`` says what the model must become.
"""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from helpers import samples
from helpers.absent import MODULE, instances, present
from helpers.containers import AVERAGE, CONTAINERS, LEGACY, MODEL, PICKLE, ZIP
from helpers.file_bytes import assert_only_the_slot_differs
from helpers.kinds import KINDS, channels_last, loaded, plain, tied
from helpers.likeness import assert_same_objects
from helpers.making import average_of, resumable, weights
from helpers.output import run_inside
from helpers.tensors import assert_same_tensor, storage_of

CELLS = [
    pytest.param((container, kind), id=f"{container}-{kind.__name__}")
    for container in CONTAINERS
    for kind in KINDS
    if kind not in container.beyond
]
TIME = "86400"  # 1970-01-02


@pytest.fixture(autouse=True)
def _fixed_time(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", TIME)


@pytest.fixture
def promote(ckptool):
    """Promote a file into a new one; fails when the command does."""

    def run(path, output, *args):
        done = ckptool("promote-ema", path, "-o", output, *args)
        assert done.exit_code == 0, done
        return output

    return run


def beside(model) -> dict:
    """What a trainer saves beside the weights: small things that any container of objects holds."""
    return {**resumable(model), "args": samples.namespace(), "losses": [0.5, 0.25]}


def written(container, kind, folder, **more):
    """A checkpoint of that kind in that container."""
    model, average = kind()
    path = folder / f"last{container.suffix}"
    others = beside(weights()) | more if container.holds_objects else {}
    if container.name == "tar":
        del others["optimizer"], others["rng_state"]  # with tensors that torch 0.1 did not have
    container.write(path, {MODEL: model, AVERAGE: average, **others})
    return path


# --------------------------------------------------------------------------- every kind, everywhere


class Cell(NamedTuple):
    """A checkpoint of one kind in one container, and what it was promoted to."""

    container: Any
    path: Path
    output: Path

    def loaded(self) -> tuple[Any, Any]:
        """The content before and after."""
        return self.container.load(self.path), self.container.load(self.output)


@pytest.fixture(scope="module", params=CELLS)
def cell(request, tmp_path_factory):
    """Each is written and promoted once; the tests read the two files."""
    container, kind = request.param
    folder = tmp_path_factory.mktemp("cell")
    path, output = written(container, kind, folder), folder / f"out{container.suffix}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", TIME)
        done = run_inside("promote-ema", path, "-o", output)
    assert done.exit_code == 0, done
    return Cell(container, path, output)


def test_the_model_becomes_what_load_state_dict_makes_of_it(cell):
    before, after = cell.loaded()
    wanted = loaded(before[MODEL], before[AVERAGE])
    assert list(after[MODEL]) == list(before[MODEL])
    for name, tensor in after[MODEL].items():
        assert_same_tensor(tensor, wanted[name], name)
        was = before[MODEL][name]
        assert (tensor.stride(), tensor.storage_offset()) == (was.stride(), was.storage_offset())


def test_everything_else_is_what_it_was(cell):
    before, after = cell.loaded()
    assert ties_of(after[MODEL]) == ties_of(before[MODEL])
    del before[MODEL], after[MODEL]
    assert_same_objects(after, before)


def ties_of(state) -> set[frozenset[str]]:
    """The names of each storage."""
    storages = {name: storage_of(tensor) for name, tensor in state.items() if tensor.numel()}
    return {
        frozenset(name for name, place in storages.items() if place == one)
        for one in set(storages.values())
    }


def test_only_bytes_of_the_slot_differ(cell):
    slot = MODEL if cell.container.holds_objects else "model."
    assert_only_the_slot_differs(cell.path, cell.output, slot)


def test_promoting_twice_changes_nothing(cell, promote, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")  # were there a new note, it would say so
    second = promote(cell.output, tmp_path / f"again{cell.container.suffix}")
    assert second.read_bytes() == cell.output.read_bytes()


def test_in_place_gives_the_same_bytes(cell, ckptool, tmp_path):
    path, before = tmp_path / cell.path.name, cell.path.read_bytes()
    path.write_bytes(before)
    done = ckptool("promote-ema", path, "--in-place", "--backup")
    assert done.exit_code == 0, done
    assert path.read_bytes() == cell.output.read_bytes()
    assert path.with_name(f"{path.name}.bak").read_bytes() == before


# ------------------------------------------------------------------------------ all that is beside


def numpy_and_python_states():
    return {"python": random.Random(5).getstate(), "numpy": np.random.RandomState(3).get_state()}


SAVED_BESIDE = (
    numpy_and_python_states, samples.random_states, samples.optimizers, samples.namespace,
    samples.enums, samples.partials, samples.sparse, samples.quantized, samples.packed_quantized,
    samples.every_old_dtype, samples.dataclasses, samples.collections, samples.numpy_values,
    samples.paths, samples.scalars, samples.torch_values, samples.nesting, samples.subclass,
    samples.parameters, samples.ties, samples.views, samples.lazy_views, samples.meta_tensor,
)  # fmt: skip
ONLY_IN_ZIP = (samples.every_new_dtype, samples.nested_tensor)  # legacy: torch cannot read its own
BESIDE = [
    pytest.param(container, made, id=f"{container}-{made.__name__}")
    for container in (ZIP, LEGACY, PICKLE)
    for made in SAVED_BESIDE + (ONLY_IN_ZIP if container is ZIP else ())
]


@pytest.mark.parametrize(("container", "made"), BESIDE)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_every_object_beside_the_model_is_what_it_was(container, made, promote, tmp_path):
    path = written(container, plain, tmp_path, more=made())
    before = container.load(path)
    after = container.load(
        promote(path, tmp_path / f"out{container.suffix}", "--ema", AVERAGE, "--model", MODEL)
    )
    assert_same_objects(after["more"], before["more"])
    assert_same_objects(after[AVERAGE], before[AVERAGE])
    for name, tensor in loaded(before[MODEL], before[AVERAGE]).items():
        assert_same_tensor(after[MODEL][name], tensor, name)


@pytest.mark.parametrize("container", [c for c in CONTAINERS if c.holds_objects], ids=str)
def test_instances_of_classes_that_are_absent_are_what_they_were(container, promote, tmp_path):
    with present() as lab:
        objects = instances(lab)
        if container.name == "tar":
            del objects["head"]  # with parameters, whose pickle torch 0.1 could not have written
        path = written(container, tied, tmp_path, **objects)
    with pytest.raises((ImportError, AttributeError)):
        torch.load(path, weights_only=False)
    before = container.load(path)
    after = container.load(promote(path, tmp_path / f"out{container.suffix}"))
    assert type(after["config"]).__module__ == MODULE
    assert after["config"].state["nested"].state == {"layers": (1, 2)}
    del before[MODEL], after[MODEL]
    assert_same_objects(after, before)


# ------------------------------------------------------------------------------- torch's other ways


@pytest.mark.parametrize("kind", [plain, channels_last, tied])
@pytest.mark.parametrize(
    ("container", "options"),
    [
        (ZIP, {}), (ZIP, {"mmap": True}), (ZIP, {"weights_only": True}),
        (ZIP, {"weights_only": True, "mmap": True}), (LEGACY, {}), (LEGACY, {"weights_only": True}),
    ],
)  # fmt: skip
def test_torch_loads_it_in_every_way(container, options, kind, promote, tmp_path):
    model, average = kind()
    path = tmp_path / "last.pt"
    container.write(path, {MODEL: model, AVERAGE: average, **resumable(model)})
    after = torch.load(promote(path, tmp_path / "out.pt"), **{"weights_only": False} | options)
    for name, tensor in loaded(model, average).items():
        assert_same_tensor(after[MODEL][name], tensor, name)
    before = torch.load(path, **{"weights_only": False} | options)
    del before[MODEL], after[MODEL]
    assert_same_objects(after, before)


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("protocol", [3, 5])
def test_pickles_with_their_values_as_bytes_are_patched(protocol, promote, tmp_path):
    path, average = tmp_path / "bytes.pkl", average_of(weights())
    path.write_bytes(pickle.dumps({MODEL: weights(), AVERAGE: average}, protocol))
    after = pickle.loads(promote(path, tmp_path / "out.pkl").read_bytes())
    assert_same_objects(after, {MODEL: average, AVERAGE: average_of(weights())})


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_pickles_with_their_values_as_text_are_refused(protocol, ckptool, tmp_path):
    path = tmp_path / "text.pkl"
    path.write_bytes(pickle.dumps({MODEL: weights(), AVERAGE: average_of(weights())}, protocol))
    done = ckptool("promote-ema", path, "-o", tmp_path / "out.pkl", "--json")
    assert (done.exit_code, done.json["error"]["code"]) == (2, "unsupported")
    assert "encoded in the pickle" in done.json["error"]["message"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_shards_is_refused(ckptool, tmp_path):
    import torch.distributed.checkpoint as dcp

    folder = tmp_path / "sharded"
    dcp.save({MODEL: weights(), AVERAGE: average_of(weights())}, checkpoint_id=folder, no_dist=True)
    for where in (("-o", tmp_path / "out.pt"), ("--in-place",)):
        done = ckptool("promote-ema", folder, *where, "--json")
        assert (done.exit_code, done.json["error"]["code"]) == (2, "unsupported")
        assert "several files" in done.json["error"]["message"]
        assert "extract-ema" in done.json["error"]["hint"]
    assert list(tmp_path.iterdir()) == [folder]
