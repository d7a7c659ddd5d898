"""Names of an average pair with the model's: every renaming is undone exactly, or refused."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ckptool.contents.alignment import (
    align_by_table,
    align_names,
    align_positions,
    common_tail,
    paired_prefixes,
    unwrapped,
)
from ckptool.dtypes import BY_NAME
from ckptool.sources.base import ByteSpan
from ckptool.sources.memory import Memory
from ckptool.tree.nodes import Chunk, TensorRef
from helpers.twins import ref

MODEL = {
    "stem.weight": ref(4, 3),
    "stem.bias": ref(4),
    "blocks.0.weight": ref(4, 4),
    "blocks.0.bias": ref(4),
    "blocks.1.weight": ref(4, 4),
    "blocks.1.bias": ref(4),
    "head.weight": ref(2, 4),
    "scale": ref(),
}


def renamed(rename) -> dict[str, TensorRef]:
    return {rename(name): tensor for name, tensor in MODEL.items()}


def assert_undone(model, average, rename, naming: str) -> None:
    found = align_names(model, average)
    assert dict(found.pairs) == {name: rename(name) for name in model}
    assert (found.naming, found.rivals, found.colliding, found.mismatched) == (naming, (), (), ())
    assert (found.missing_keys, found.unexpected_keys) == ((), ())


# ---------------------------------------------------------------------------------------- renamings


def test_same_names():
    assert_undone(MODEL, MODEL, str, "same")


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.module.",
        "_fsdp_wrapped_module.",
        "_forward_module.",
        "_forward_module._orig_mod.",
        "_orig_mod._forward_module.module.",
    ],
)
def test_wrappers_on_the_average(prefix):
    assert_undone(MODEL, renamed(lambda n: prefix + n), lambda n: prefix + n, "wrapped")


def test_wrappers_on_the_model():
    model = renamed(lambda name: f"module.{name}")
    assert_undone(model, MODEL, lambda name: name.removeprefix("module."), "wrapped")


def test_wrappers_on_both_sides_in_other_orders():
    model = renamed(lambda name: f"module._orig_mod.{name}")
    average = renamed(lambda name: f"_orig_mod.module.{name}")
    found = align_names(model, average)
    assert found.pairs == {f"module._orig_mod.{n}": f"_orig_mod.module.{n}" for n in MODEL}


def test_wrapper_in_the_middle():
    def wrap(name: str) -> str:
        return name.replace("blocks.", "blocks._checkpoint_wrapped_module.")

    assert_undone(MODEL, renamed(wrap), wrap, "wrapped")


@pytest.mark.parametrize("prefix", ["model.", "ema_model.", "net.backbone.", "a.b.c.d."])
def test_prefix_on_the_average(prefix):
    assert_undone(MODEL, renamed(lambda n: prefix + n), lambda n: prefix + n, "prefixed")


@pytest.mark.parametrize("prefix", ["model.", "net.backbone."])
def test_prefix_on_the_model(prefix):
    model = renamed(lambda name: prefix + name)
    assert_undone(model, MODEL, lambda name: name.removeprefix(prefix), "prefixed")


def test_other_prefixes_on_both_sides():
    model, average = renamed(lambda n: f"net.{n}"), renamed(lambda n: f"ema.model.{n}")
    assert_undone(model, average, lambda n: f"ema.model.{n.removeprefix('net.')}", "prefixed")


def test_prefix_and_wrapper():
    model = renamed(lambda name: f"model.{name}")
    average = renamed(lambda name: f"module.{name}")
    assert_undone(model, average, lambda n: f"module.{n.removeprefix('model.')}", "prefixed")


def test_dots_removed():
    assert_undone(
        MODEL, renamed(lambda n: n.replace(".", "")), lambda n: n.replace(".", ""), "dots-removed"
    )


def test_underscores():
    flat = {name.replace(".", "_"): tensor for name, tensor in MODEL.items()}
    assert_undone(MODEL, flat, lambda name: name.replace(".", "_"), "underscores")


def test_dots_removed_under_a_prefix():
    model = renamed(lambda name: f"model.{name}")
    average = renamed(lambda name: name.replace(".", ""))
    assert_undone(
        model, average, lambda n: n.removeprefix("model.").replace(".", ""), "dots-removed"
    )


# ------------------------------------------------------------------------------------- what is left


def test_missing_and_unexpected_are_seen_from_the_model():
    average = {name: t for name, t in MODEL.items() if "head" not in name} | {"more": ref(1)}
    found = align_names(MODEL, average)
    assert found.missing_keys == ("head.weight",)
    assert found.unexpected_keys == ("more",)
    assert len(found.pairs) == 7


def test_nothing_in_common():
    found = align_names(MODEL, {"x": ref(9), "y": ref(9)})
    assert found.pairs == {}
    assert found.missing_keys == tuple(MODEL)


def test_empty():
    assert align_names(MODEL, {}).pairs == {}
    assert align_names({}, MODEL).pairs == {}
    empty = align_names({}, {})
    assert (empty.pairs, empty.missing_keys) == ({}, ())


@pytest.mark.parametrize("prefix", ["", "module.", "ema_model."])
def test_another_shape_is_no_pair_and_is_named(prefix):
    average = renamed(lambda name: prefix + name) | {f"{prefix}head.weight": ref(7, 4)}
    found = align_names(MODEL, average)
    assert found.mismatched == ("head.weight",)
    assert "head.weight" not in found.pairs
    assert len(found.pairs) == 7


def test_integers_are_no_average_of_floats():
    found = align_names(MODEL, MODEL | {"head.weight": ref(2, 4, dtype="int8")})
    assert found.mismatched == ("head.weight",)


def test_floats_may_be_an_average_of_integers():
    """Some writers average the counters of batches too."""
    model = MODEL | {"steps": ref(dtype="int64")}
    assert align_names(model, MODEL | {"steps": ref()}).mismatched == ()


def test_other_names_for_some_of_the_tensors_are_told():
    """Left over on both sides, with one shape: renamed, so the averages would be lost."""
    average = {name.replace("head.weight", "out.weight"): t for name, t in MODEL.items()}
    found = align_names(MODEL, average)
    assert (found.missing_keys, found.unplaced) == (("head.weight",), ("out.weight",))


def test_what_only_the_average_has_is_no_renaming():
    assert align_names(MODEL, MODEL | {"queue": ref(9, 9)}).unplaced == ()


def test_pairs_have_the_order_of_the_model():
    found = align_names(MODEL, dict(reversed(MODEL.items())))
    assert list(found.pairs) == list(MODEL)


# ------------------------------------------------------------------------ what cannot be told apart


@pytest.mark.parametrize("glued", ["0", "module", "_forward_module", "net0"])
@pytest.mark.parametrize(("naming", "dot"), [("dots-removed", ""), ("underscores", "_")])
def test_prefix_glued_to_flattened_names(glued, naming, dot):
    rename = lambda name: glued + dot + name.replace(".", dot)  # noqa: E731
    found = align_names(MODEL, renamed(rename))
    assert dict(found.pairs) == {name: rename(name) for name in MODEL}
    assert (found.naming, found.missing_keys, found.unexpected_keys) == (naming, (), ())


def test_names_by_a_table():
    names = {f"p{i}": f"module.{name}" for i, name in enumerate(MODEL)}
    average = {made: MODEL[name.removeprefix("module.")] for made, name in names.items()}
    found = align_by_table(MODEL, average | {"more": ref(9)}, names)
    assert dict(found.pairs) == {name: f"p{i}" for i, name in enumerate(MODEL)}
    assert (found.unexpected_keys, found.missing_keys) == (("more",), ())


def test_collision_of_dots_removed():
    model = {"blocks.1.0.w": ref(2), "blocks.10.w": ref(2), "stem.w": ref(2)}
    found = align_names(model, {"blocks10w": ref(2), "stemw": ref(2)})
    assert found.pairs == {"stem.w": "stemw"}
    assert set(found.colliding) == {"blocks.1.0.w", "blocks.10.w"}


def test_collision_of_underscores():
    model = {"a.b_c.w": ref(2), "a_b.c.w": ref(2), "stem.w": ref(2)}
    found = align_names(model, {"a_b_c_w": ref(2), "stem_w": ref(2)})
    assert set(found.colliding) == {"a.b_c.w", "a_b.c.w"}


def test_shapes_tell_collisions_apart():
    model = {"blocks.1.0.w": ref(2), "blocks.10.w": ref(3), "stem.w": ref(2)}
    found = align_names(model, {"blocks10w": ref(3), "stemw": ref(2)})
    assert found.pairs == {"blocks.10.w": "blocks10w", "stem.w": "stemw"}
    assert found.colliding == ()


PARTS = {f"{part}.{name}": ref(2) for part in ("encoder", "decoder") for name in "abc"}


def test_two_parts_that_fit_equally_are_rivals():
    found = align_names(PARTS, {name: ref(2) for name in "abc"})
    assert len(found.rivals) > 0


def test_hint_decides_between_rivals():
    for part in ("encoder", "decoder"):
        found = align_names(PARTS, {name: ref(2) for name in "abc"}, hint=f"{part}.")
        assert found.pairs == {f"{part}.{name}": name for name in "abc"}
        assert found.rivals == ()


def test_two_parts_of_the_average_that_fit_equally_are_rivals():
    assert align_names({name: ref(2) for name in "abc"}, PARTS).rivals != ()


def test_part_that_fits_more_is_taken():
    model = PARTS | {"decoder.d": ref(2)}
    found = align_names(model, {name: ref(2) for name in "abcd"})
    assert found.pairs == {f"decoder.{name}": name for name in "abcd"}
    assert found.rivals == ()


def test_names_that_wrappers_make_equal_are_kept_apart():
    model = {"module.w": ref(2), "w": ref(2), "b": ref(2)}
    assert align_names(model, model).pairs == {name: name for name in model}
    assert align_names(model, {"w": ref(2)}).pairs == {"w": "w"}


# --------------------------------------------------------------------------------------------- ties


def stored(data: Memory, *shape: int) -> TensorRef:
    chunk = Chunk(ByteSpan(data, 0, 4 * shape[0]), (0,), shape, (1,))
    return TensorRef(BY_NAME["float32"], shape, (chunk,))


def test_tied_name_without_an_average_takes_that_of_its_twin():
    weight = stored(Memory(bytes(16)), 4)
    model = {"embed.w": weight, "head.w": weight, "b": stored(Memory(bytes(8)), 2)}
    found = align_names(model, {"embed.w": ref(4), "b": ref(2)})
    assert found.pairs == {"embed.w": "embed.w", "head.w": "embed.w", "b": "b"}
    assert found.tied == {"head.w": "embed.w"}
    assert found.missing_keys == ()


def test_equal_values_are_no_tie():
    model = {"embed.w": stored(Memory(bytes(16)), 4), "head.w": stored(Memory(bytes(16)), 4)}
    assert align_names(model, {"embed.w": ref(4)}).missing_keys == ("head.w",)


# ------------------------------------------------------------------------------------------ helpers


@pytest.mark.parametrize(
    ("one", "other", "tail"),
    [
        ("a.b.w", "c.b.w", "b.w"),
        ("w", "x.w", "w"),
        ("a.w", "a.v", ""),
        ("a.w", "a.w", "a.w"),
        ("ab.w", "b.w", "w"),
    ],
)
def test_common_tail_is_of_whole_components(one, other, tail):
    assert common_tail(one, other) == tail


def test_unwrapped():
    assert unwrapped("module.a._orig_mod.b") == "a.b"
    assert unwrapped("my_module.a") == "my_module.a"


def test_paired_prefixes_are_those_of_most_pairs():
    found = align_names({f"net.{n}": t for n, t in MODEL.items()}, MODEL)
    assert paired_prefixes(found) == ("net.", "")


def test_positions():
    found = align_positions(MODEL, {"0": ref(4, 3)}, {"stem.weight": "0"})
    assert (found.naming, dict(found.pairs)) == ("positional", {"stem.weight": "0"})


# --------------------------------------------------------------------------------------- properties

component = st.sampled_from(["a", "b", "stem", "0", "1", "10", "layers", "attn", "w_q", "x1"])
names = st.lists(component, min_size=1, max_size=4).map(".".join)
shapes = st.sampled_from([(), (1,), (2,), (3,), (2, 3), (3, 2), (3, 3)])
state_dicts = st.dictionaries(names, shapes, min_size=3, max_size=14).map(
    lambda entries: {f"{name}.weight": ref(*shape) for name, shape in entries.items()}
)
wrappers = st.lists(
    st.sampled_from(["module.", "_orig_mod.", "_fsdp_wrapped_module."]), max_size=3
).map("".join)
prefixes = st.sampled_from(["", "model.", "net.", "ema_model.", "net.backbone.", "generator."])


def assert_right_or_refused(found, rename) -> None:
    """Every pair is the true one, unless the alignment says itself that it must not be used."""
    if found.rivals or found.colliding or found.mismatched:
        return
    assert all(other == rename(name) for name, other in found.pairs.items())


@given(state_dicts, wrappers, wrappers)
def test_any_wrappers_are_undone(model, ours, theirs):
    """DDP, compile and FSDP put components in; whatever each side has, names pair as they were."""
    wrapped = {ours + name: tensor for name, tensor in model.items()}
    average = {theirs + name: tensor for name, tensor in model.items()}
    found = align_names(wrapped, average)
    assert found.pairs == {ours + name: theirs + name for name in model}


@given(state_dicts, prefixes, prefixes, wrappers)
def test_any_prefixes_are_undone_or_refused(model, ours, theirs, wrapper):
    inside = {ours + name: tensor for name, tensor in model.items()}
    average = {theirs + wrapper + name: tensor for name, tensor in model.items()}
    found = align_names(inside, average)
    assert_right_or_refused(found, lambda name: theirs + wrapper + name[len(ours) :])
    assert found.rivals or found.colliding or len(found.pairs) == len(model)


@given(state_dicts, st.sampled_from(["", "_"]), prefixes)
def test_any_flattening_is_undone_or_refused(model, replacement, ours):
    """A flattened name that stands for two of the model's is never paired."""
    flat = {name: name.replace(".", replacement) for name in model}
    inside = {ours + name: tensor for name, tensor in model.items()}
    average = {flat[name]: tensor for name, tensor in model.items()}  # the last one is kept
    assume(len(average) > 2)
    found = align_names(inside, average)
    last = {flat_name: ours + name for name, flat_name in flat.items()}
    if not (found.rivals or found.colliding or found.mismatched):
        for name, other in found.pairs.items():
            same = [n for n in flat if flat[n] == other and model[n].shape == average[other].shape]
            assert len(same) > 1 or last[other] == name
            assert len(same) == 1, "two of the model's tensors have this flattened name"


@given(state_dicts, st.data())
def test_any_part_is_undone_or_refused(model, data):
    """An average of some tensors, under another prefix."""
    kept = data.draw(st.sets(st.sampled_from(sorted(model)), min_size=1))
    average = {f"ema.{name}": model[name] for name in kept}
    assert_right_or_refused(align_names(model, average), lambda name: f"ema.{name}")
