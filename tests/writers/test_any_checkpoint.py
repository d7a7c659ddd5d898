"""Property: promote, then load with torch: what ``copy_`` makes of the model, all else as before.

Checkpoints have any element types, strides and ties, also between the model and what stands beside
it. The prediction is made in memory: a deep copy of all that was saved, in which the averages are
copied into the model. When they contradict each other there, promotion must refuse.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ckptool.commands.promote_ema import promote_ema
from ckptool.errors import CkptError, EmaRefusedError, UnsupportedError
from helpers import strategies
from helpers.containers import AVERAGE, LEGACY, MODEL, PICKLE, ZIP
from helpers.judge import tensor_bytes
from helpers.likeness import assert_same_objects
from helpers.samples import NEW_DTYPES, OLD_DTYPES, filled
from helpers.thinned import examples

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NARROW = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
OWN = pytest.mark.filterwarnings("ignore::UserWarning")  # torch has second thoughts about complex32


Content = dict[str, Any]


def predicted(content: Content) -> Content:
    """All that was saved, after the averages were copied into the model."""
    made = copy.deepcopy(content)
    for name, tensor in made[MODEL].items():
        tensor.copy_(content[AVERAGE][name])
    return made


def is_consistent(content: Content) -> bool:
    """Whether all averages can be in the model at once."""
    return all(
        tensor_bytes(tensor) == tensor_bytes(cast(content[AVERAGE][name], tensor.dtype))
        for name, tensor in predicted(content)[MODEL].items()
    )


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As ``copy_`` casts."""
    return torch.empty(tensor.shape, dtype=dtype).copy_(tensor)


def shows_each_element_once(view: Tensor) -> bool:
    """Whether no two elements of the view are one in memory: those are no weights."""
    places = torch.arange(view.storage_offset() + 400).as_strided(
        view.shape, view.stride(), view.storage_offset()
    )
    return places.unique().numel() == view.numel()


def near(storage: Tensor, dtype: torch.dtype) -> Tensor:
    """Another storage of as many elements; finite where it is cast."""
    if dtype is storage.dtype:
        return filled(dtype, storage.numel() + 1)[1:].clone()
    return torch.linspace(-3, 3, storage.numel()).to(dtype)


@st.composite
def pairs_of_storages(draw, *, new: bool) -> tuple[Tensor, Tensor]:
    """A storage of the model, and one of the average with as many elements."""
    floats = FLOATS + (NARROW if new else ())
    kinds = st.sampled_from(OLD_DTYPES + (NEW_DTYPES if new else ()))
    dtype, count = draw(kinds), draw(st.integers(1, 60))
    given_dtype = draw(st.sampled_from(floats)) if dtype in floats else dtype
    storage = filled(dtype, count)
    return storage, near(storage, given_dtype)


@st.composite
def checkpoints(draw, *, new: bool, shares: bool) -> Content:
    """A model of views, an average of the same views of other storages, in any order in memory.

    With ``shares`` some of the rest views storages of the model.
    """
    pools = draw(st.lists(pairs_of_storages(new=new), min_size=1, max_size=3))
    model, average = {}, {}
    for name in draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5, unique=True)):
        ours, theirs = draw(strategies.one_of_many(pools))
        view = draw(strategies.strided_views(ours).filter(shows_each_element_once))
        other = theirs.as_strided(view.shape, view.stride(), view.storage_offset())
        model[name], average[name] = view, draw(in_another_order(other))
    pool = draw(strategies.tensor_pools(new=new))
    views = [draw(strategies.strided_views(ours)) for ours, _ in pools] if shares else []
    rest = draw(strategies.trees(st.one_of(strategies.one_of_many(pool), strategies.scalars())))
    return {MODEL: model, "views": views, "rest": rest, AVERAGE: average}


@st.composite
def in_another_order(draw, tensor: Tensor) -> Tensor:
    """The same values as a view, a copy in C order, or one in another; rarely other values."""
    way = draw(st.integers(0, 9))
    if way < 4:
        return tensor
    if way >= 8 and tensor.numel():
        return tensor.roll(1, 0) if tensor.ndim else tensor.clone()
    order = draw(st.permutations(range(tensor.ndim)))
    return (
        tensor.permute(order)
        .clone(memory_format=torch.contiguous_format)
        .permute([order.index(i) for i in range(tensor.ndim)])
    )


@pytest.fixture
def folder(tmp_path_factory):
    """A new folder each time."""
    return lambda: tmp_path_factory.mktemp("any")


def written(container, content, folder) -> Path:
    path = folder / f"in{container.suffix}"
    container.write(path, content)
    return path


def promoted(container, path, **options) -> Content:
    """What the other party loads from the promoted file. A refusal leaves nothing behind."""
    output, before = path.with_stem("out"), path.read_bytes()
    output.unlink(missing_ok=True)
    try:
        promote_ema(path, output, ema=AVERAGE, model=MODEL, force=True, **options)
    except CkptError:
        assert list(path.parent.iterdir()) == [path]
        raise
    finally:
        assert path.read_bytes() == before
    return container.load(output)


CONTAINERS = pytest.mark.parametrize("container", [ZIP, LEGACY, PICKLE], ids=str)


@OWN
@CONTAINERS
@examples(30)
@given(data=st.data())
def test_the_model_takes_the_averages_and_the_rest_stays(container, data, folder):
    content = data.draw(checkpoints(new=container is ZIP, shares=False))
    path = written(container, content, folder())
    before = container.load(path)
    if is_consistent(before):
        assert_same_objects(promoted(container, path), predicted(before))
    else:
        with pytest.raises(EmaRefusedError):
            promoted(container, path)


@OWN
@CONTAINERS
@examples(20)
@given(data=st.data())
def test_what_views_the_models_memory_changes_only_when_allowed(container, data, folder):
    content = data.draw(checkpoints(new=container is ZIP, shares=True))
    path = written(container, content, folder())
    before = container.load(path)
    wanted = predicted(before)
    if is_consistent(before):
        assert_same_objects(promoted(container, path, allow_shared=True), wanted)
    pairs = zip(wanted["views"], before["views"], strict=True)
    if any(tensor_bytes(ours) != tensor_bytes(theirs) for ours, theirs in pairs):
        with pytest.raises((UnsupportedError, EmaRefusedError)):
            promoted(container, path)
