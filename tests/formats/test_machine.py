"""The pickle machine: plain data as ``pickle`` loads it, everything else inert."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import pickletools
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptool.errors import CkptError, DamagedError
from ckptool.formats.pickles import machine as pickle_tree
from ckptool.formats.pickles.machine import Builder, PickleMachine
from ckptool.formats.pickles.torch_objects import TorchBuilder
from ckptool.sources.memory import Memory
from ckptool.tree.nodes import BytesRef, GlobalRef, Opaque, SpannedBytes
from helpers import strategies
from helpers.thinned import examples

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(data: bytes, *, builder=None, window=pickle_tree.WINDOW):
    """The value of a pickle; plain containers and bytes are recognised."""
    builder = builder or TorchBuilder(lambda _key, _nbytes: None)
    return PickleMachine(Memory(data), builder=builder, window=window).run()


def inert(data: bytes):
    """The value of a pickle with nothing recognised."""
    return read(data, builder=Builder())


def same(ours, theirs) -> None:
    """Equal, and of equal types all the way down; runs of bytes in the file count as bytes."""
    if isinstance(theirs, (bytes, bytearray)):
        assert isinstance(ours, (bytes, bytearray))
        assert ours == theirs
    elif isinstance(theirs, (list, tuple)):
        assert type(ours) is type(theirs)
        assert len(ours) == len(theirs)
        for our_part, their_part in zip(ours, theirs, strict=True):
            same(our_part, their_part)
    elif isinstance(theirs, dict):
        same(list(ours.items()), list(theirs.items()))
    else:
        assert type(ours) is type(theirs)
        assert ours == theirs


# --------------------------------------------------------------------------------------- plain data


@pytest.mark.parametrize("protocol", PROTOCOLS)
@examples(100)
@given(value=strategies.plain_data())
def test_plain_data_reads_as_pickle_loads_it(protocol, value):
    data = pickle.dumps(value, protocol)
    same(read(data), pickle.loads(data))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@examples(50)
@given(value=strategies.plain_data())
def test_python_s_own_pickler_too(protocol, value):
    """It writes other opcodes than the one in C: more memo entries, other frames."""
    stream = io.BytesIO()
    pickle._Pickler(stream, protocol).dump(value)
    same(read(stream.getvalue()), pickle.loads(stream.getvalue()))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@examples(50)
@given(value=strategies.plain_data(), window=st.integers(1, 40))
def test_windows_of_any_size_read_alike(protocol, value, window):
    data = pickle.dumps(value, protocol)
    same(read(data, window=window), pickle.loads(data))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@examples(30)
@given(value=strategies.plain_data())
def test_every_truncation_is_an_error(protocol, value):
    data = pickle.dumps(value, protocol)
    for size in range(len(data)):
        with pytest.raises(DamagedError):
            read(data[:size])


@examples(500)
@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_value_or_an_error_of_ours(data):
    with suppress(CkptError):
        read(data)


@examples(300)  # .ci/fuzz tries thousands
@given(ops=st.lists(st.sampled_from(pickletools.opcodes), max_size=30), data=st.data())
def test_any_instructions_are_a_value_or_an_error_of_ours(ops, data):
    program = b"".join(op.code.encode("latin-1") + data.draw(arguments(op)) for op in ops)
    with suppress(CkptError):
        read(program + b".")


def arguments(op) -> st.SearchStrategy[bytes]:
    """Bytes that an instruction may be followed by."""
    if op.arg is None:
        return st.just(b"")
    if op.arg.n == pickletools.UP_TO_NEWLINE:
        lines = [b"0\n", b"1\n", b"'a'\n", b"os\n", b"1.5\n", b"01\n", b"x\n"]
        count = 2 if op.name in {"GLOBAL", "INST"} else 1
        return st.lists(st.sampled_from(lines), min_size=count, max_size=count).map(b"".join)
    if op.arg.n >= 0:
        return st.integers(0, 3).map(lambda i: bytes([i]) + bytes(op.arg.n - 1))
    width = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
    return st.binary(max_size=3).map(
        lambda text: len(text).to_bytes(width.get(op.arg.n, 4), "little") + text
    )


def test_sharing_and_cycles_are_kept():
    shared: list = [1]
    loop: list = [shared, shared]
    loop.append(loop)
    for protocol in PROTOCOLS:
        found = read(pickle.dumps(loop, protocol))
        assert found[0] is found[1]
        assert found[2] is found


def test_dicts_keep_their_order():
    value = {str(i): i for i in range(2500)}  # more than one batch
    for protocol in PROTOCOLS:
        assert list(read(pickle.dumps(value, protocol))) == list(value)


# -------------------------------------------------------------------------------- every instruction


def line(text):
    return text.encode() + b"\n"


def sized(layout, data):
    return struct.pack(layout, len(data)) + data


# Each instruction of protocols 0 to 5 in a pickle that Python can load as well.
PROGRAMS = {
    "PROTO": b"\x80\x05N.",
    "FRAME": b"\x95" + struct.pack("<Q", 2) + b"N.",
    "STOP": b"N.",
    "NONE": b"N.",
    "NEWTRUE": b"\x88.",
    "NEWFALSE": b"\x89.",
    "INT": b"I-123\n.",
    "BININT": b"J" + struct.pack("<i", -(2**31)) + b".",
    "BININT1": b"K\xff.",
    "BININT2": b"M\xff\xfe.",
    "LONG": b"L-123456789012345678901234567890L\n.",
    "LONG1": b"\x8a" + sized("<B", (-(2**70)).to_bytes(9, "little", signed=True)) + b".",
    "LONG4": b"\x8b" + sized("<i", (2**70).to_bytes(9, "little", signed=True)) + b".",
    "FLOAT": b"F-1.5e300\n.",
    "BINFLOAT": b"G" + struct.pack(">d", -0.1) + b".",
    "STRING": b"S'a\\x41\\n\"'\n.",
    "BINSTRING": b"T" + sized("<i", b"text") + b".",
    "SHORT_BINSTRING": b"U" + sized("<B", b"text") + b".",
    "BINBYTES": b"B" + sized("<I", b"\0\xff") + b".",
    "SHORT_BINBYTES": b"C" + sized("<B", b"\0\xff") + b".",
    "BINBYTES8": b"\x8e" + sized("<Q", b"\0\xff") + b".",
    "BYTEARRAY8": b"\x96" + sized("<Q", b"\0\xff") + b".",
    "UNICODE": b"Va\\u00f6\\U0001f3b2\n.",
    "BINUNICODE": b"X" + sized("<I", "ö🎲".encode()) + b".",
    "SHORT_BINUNICODE": b"\x8c" + sized("<B", "ö".encode()) + b".",
    "BINUNICODE8": b"\x8d" + sized("<Q", b"\xed\xa0\x80") + b".",  # a lone surrogate
    "EMPTY_LIST": b"].",
    "APPEND": b"]K\1a.",
    "APPENDS": b"](K\1K\2e.",
    "LIST": b"(K\1K\2l.",
    "EMPTY_TUPLE": b").",
    "TUPLE": b"(K\1K\2K\3K\4t.",
    "TUPLE1": b"K\1\x85.",
    "TUPLE2": b"K\1K\2\x86.",
    "TUPLE3": b"K\1K\2K\3\x87.",
    "EMPTY_DICT": b"}.",
    "DICT": b"(K\1K\2d.",
    "SETITEM": b"}K\1K\2s.",
    "SETITEMS": b"}(K\1K\2K\3K\4u.",
    "EMPTY_SET": b"\x8f.",
    "ADDITEMS": b"\x8f(K\1K\2\x90.",
    "FROZENSET": b"(K\1K\2\x91.",
    "POP": b"K\1K\x020.",
    "DUP": b"]2K\1a0.",
    "MARK": b"(K\1t.",
    "POP_MARK": b"K\1(K\2K\x031.",
    "GET": b"K\1p7\nK\x020g7\n\x86.",
    "BINGET": b"K\1q\7K\x020h\7\x86.",
    "LONG_BINGET": b"K\1r\7\0\0\0K\x020j\7\0\0\0\x86.",
    "PUT": b"K\1p7\n.",
    "BINPUT": b"K\1q\7.",
    "LONG_BINPUT": b"K\1r\0\0\1\0.",
    "MEMOIZE": b"K\1\x94K\2\x94h\0h\1\x86\x86\x86.",
    "GLOBAL": b"ccollections\nOrderedDict\n)R.",
    "STACK_GLOBAL": b"\x8c\x0bcollections\x8c\x0bOrderedDict\x93)R.",
    "REDUCE": b"c__builtin__\ncomplex\n(K\1K\2tR.",
    "INST": b"(K\1K\2i__builtin__\ncomplex\n.",
    "OBJ": b"(c__builtin__\ncomplex\nK\1K\2o.",
    "NEWOBJ": b"c__builtin__\nlist\n)\x81.",
    "NEWOBJ_EX": b"c__builtin__\nlist\n)}\x92.",
    "BUILD": b"ccollections\nOrderedDict\n)R}U\1aK\2sb.",
}  # fmt: skip
ELSEWHERE = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}


def test_every_instruction_has_a_program():
    assert {op.name for op in pickletools.opcodes} == PROGRAMS.keys() | ELSEWHERE


@pytest.mark.parametrize("name", PROGRAMS)
def test_instruction(name):
    program = PROGRAMS[name]
    loaded = pickle.loads(program)
    found = read(program)
    assert found == loaded if name in {"GLOBAL", "STACK_GLOBAL"} else same(found, loaded) is None


@pytest.mark.parametrize("program", [b"S'ok'\n.", b"U\2ok."])
def test_python_2_strings_are_text_where_they_can_be(program):
    assert read(program) == "ok"
    assert read(program.replace(b"ok", b"\xff\xfe")) == b"\xff\xfe"


@pytest.mark.parametrize("program", [b"Pname\n.", b"\x8c\4nameQ."], ids=["PERSID", "BINPERSID"])
def test_persistent_ids_are_handed_to_the_builder(program):
    class Noting(Builder):
        def persistent(self, saved_id):
            return ("found", saved_id)

    assert read(program, builder=Noting()) == ("found", "name")
    assert inert(program).args == ("name",)


def test_out_of_band_buffers_are_named():
    made = inert(b"\x97\x98.")
    assert made.qualname == "<out-of-band buffer>"


@pytest.mark.parametrize("program", [b"\x82\1.", b"\x83\1\0.", b"\x84\1\0\0\0."])
def test_extension_codes_are_names_not_classes(program):
    copyreg.add_extension("os", "system", 1)
    try:
        assert read(program) == GlobalRef("copyreg", "extension 1")
    finally:
        copyreg.remove_extension("os", "system", 1)


def test_long_runs_of_bytes_stay_where_they_are():
    data = bytes(range(256)) * 1000
    for value in (data, bytearray(data)):
        pickled = pickle.dumps([value, "end"], 5)
        run, end = read(pickled)
        assert isinstance(run, BytesRef)
        assert (len(run), end) == (len(data), "end")
        start = run.span.offset
        assert run.span.source.data[start : start + len(run)] == data


def test_short_runs_of_bytes_know_where_they_lie():
    pickled = pickle.dumps(b"abc", 4)
    run = read(pickled)
    assert isinstance(run, SpannedBytes)
    assert pickled[run.span.offset :][: run.span.nbytes] == b"abc"


def test_concatenated_pickles_go_on_at_the_end():
    data = pickle.dumps(1) + pickle.dumps("two") + b"junk"
    first = PickleMachine(Memory(data))
    assert first.run() == 1
    second = PickleMachine(Memory(data), first.end)
    assert second.run() == "two"
    assert data[second.end :] == b"junk"


def test_names_are_listed_with_their_offsets():
    machine = PickleMachine(Memory(b"cos\nsystem\n0cos\nsystem\n0\x8c\2os\x8c\4pipe\x93."))
    machine.run()
    assert machine.globals == {GlobalRef("os", "system"): 0, GlobalRef("os", "pipe"): 34}


# ---------------------------------------------------------------------------- what breaks the rules

DAMAGED = {
    "empty": (b"", "without its STOP"),
    "no stop": (b"N", "without its STOP"),
    "nothing left": (b".N", "the stack is empty"),
    "mark left": (b"N(.N", "the stack is empty"),
    "unknown instruction": (b"\xff.", "byte 0xff is no pickle instruction"),
    "protocol 6": (b"\x80\6N.", "protocol 6 is not known"),
    "no mark": (b"Nt.", "not a valid pickle at byte 1"),
    "empty stack": (b"0.", "not a valid pickle at byte 0"),
    "memo": (b"h\7.", "memo entry 7 was never stored"),
    "odd items": (b"}(K\1u.", "a key without a value"),
    "items on a list": (b"](K\1K\2u.", "items are set on a list"),
    "elements on a dict": (b"}K\1a.", "appended to a dict"),
    "elements into a list": (b"](K\1\x90.", "added to a list"),
    "unhashable key": (b"}]K\1s.", "unhashable"),
    "unhashable element": (b"(]\x91.", "unhashable"),
    "deep key": (b"}" + b")" + b"\x85" * 100 + b"Ns.", "nested too deep"),
    "no integer": (b"Ix\n.", "not a valid pickle"),
    "no float": (b"Fx\n.", "not a valid pickle"),
    "no quotes": (b"Sx\n.", "has no quotes"),
    "no text": (b"X\1\0\0\0\xff.", "not a valid pickle"),
    "digits": (b"L" + b"9" * 5000 + b"L\n.", "a decimal integer of 5000 digits"),
    "length beyond the end": (b"X\xff\xff\xff\xffa.", "4294967293 bytes more than there are"),
    "bytes beyond the end": (b"\x8e" + b"\xff" * 8 + b"a.", "bytes more than there are"),
    "integer beyond the end": (b"\x8b\xff\xff\xff\x7fa.", "bytes more than there are"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_fault_is_named(fault):
    program, message = DAMAGED[fault]
    with pytest.raises(DamagedError, match=message):
        inert(program)


def test_values_left_over_are_ignored_as_pickle_does():
    """Code is smuggled into pickles so: the loader runs it, and returns the value on top."""
    for program in (b"K\1K\2.", b"K\1(K\2.", b"]K\1K\2."):
        assert inert(program) == pickle.loads(program) == 2


def test_huge_memo_index_costs_nothing():
    assert inert(b"K\1r\xff\xff\xff\xffj\xff\xff\xff\xff0.") == 1


def test_names_computed_by_the_pickle_are_told():
    assert inert(b"K\1K\2\x93.") == GlobalRef("<int>", "<int>")


def test_calls_of_calls_keep_a_short_name():
    """Without that, a megabyte of calls would become gigabytes of names."""
    made = inert(b"cos\nsystem\n" + b")R" * 100_000 + b".")
    assert made.qualname == "<result of os.system>"


def test_deep_nesting_does_not_overflow():
    depth = 100_000
    assert isinstance(inert(b")" + b"\x85" * depth + b"."), tuple)
    assert isinstance(inert(b"](" * depth + b"e" * depth + b"."), list)


def test_long_lines_are_read_in_linear_time():
    assert len(read(b"V" + b"a" * (1 << 22) + b"\n.", window=64)) == 1 << 22


# ---------------------------------------------------------------------------------------- hostility

CALL = b"cos\nsystem\n"
TOUCH = "touch executed"


def text(value):
    return b"\x8c" + sized("<B", value.encode())


ARGS = text(TOUCH) + b"\x85"
HOSTILE = {
    "REDUCE": CALL + ARGS + b"R.",
    "REDUCE by STACK_GLOBAL": b"\x8c\2os\x8c\6system\x93" + ARGS + b"R.",
    "OBJ": b"(" + CALL + text(TOUCH) + b"o.",
    "INST": b"(S'touch executed'\nios\nsystem\n.",
    "NEWOBJ": CALL + ARGS + b"\x81.",
    "NEWOBJ_EX": CALL + ARGS + b"}\x92.",
    "BUILD": b"cos\nsystem\n)R" + ARGS + b"b.",
    "PERSID": b"Ptouch executed\n.",
    "BINPERSID": CALL + ARGS + b"R" + b"Q.",
    "getattr": b"c__builtin__\ngetattr\ncos\nsystem\n" + text("__call__") + b"\x86R" + ARGS + b"R.",
    "eval": b"c__builtin__\neval\n" + text(f"__import__('os').system('{TOUCH}')") + b"\x85R.",
    "exec": b"c__builtin__\nexec\n" + text(f"import os; os.system('{TOUCH}')") + b"\x85R.",
    "popped": CALL + ARGS + b"R0N.",
    "in a key": b"}" + CALL + ARGS + b"RNs.",
    "in a nested pickle": b"cpickle\nloads\nB" + sized("<I", CALL + ARGS + b"R.") + b"\x85R.",
    "runpy": b"crunpy\nrun_path\n" + text("evil.py") + b"\x85R.",
    "as a table's function": b"ccollections\nOrderedDict\n" + CALL + ARGS + b"R\x85R.",
}


@pytest.mark.parametrize("way", HOSTILE)
@pytest.mark.parametrize("reader", [inert, read])
def test_nothing_is_ever_executed(way, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", pytest.fail)
    (tmp_path / "evil.py").write_text("open('executed', 'w')")
    with suppress(DamagedError):
        reader(HOSTILE[way])
    assert not (tmp_path / "executed").exists()


def test_the_programs_above_would_do_harm(tmp_path, monkeypatch):
    """Else the test above proves nothing."""
    monkeypatch.chdir(tmp_path)
    ways = ("REDUCE", "OBJ", "INST", "getattr", "eval", "exec", "popped", "in a nested pickle")
    for way in ways:
        pickle.loads(HOSTILE[way])
        assert (tmp_path / "executed").exists(), way
        (tmp_path / "executed").unlink()


def test_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "never_imported.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    made = inert(b"cnever_imported\nClass\n)R.")
    assert isinstance(made, Opaque)
    assert made.qualname == "never_imported.Class"


# ------------------------------------------------------------------------------------------ frames


def framed(length: int, body: bytes) -> bytes:
    return b"\x80\x04\x95" + struct.pack("<Q", length) + body


def objections(data: bytes) -> list[str]:
    machine = PickleMachine(Memory(data))
    machine.run()
    return machine.builder.objections


LONG_TEXT = b"X\x10\0\0\0" + b"a" * 16


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (framed(1 << 40, b"K\1."), "more than the pickle has"),
        (framed(4, LONG_TEXT + b"."), "over the end of its frame"),
        (framed(14, b"K\1" + framed(2, b"K\1.")[2:]), "a frame inside another"),
        (b"\x80\x02K\1r\xff\xff\xff\x7f.", "a memo entry with the index 2147483647"),
        (b"\x80\x02K\1p-1\n.", "a memo entry with the index -1"),
        (b"\x80\x02]}b.", "a state is set on a list"),
        (b"\x80\x02K\1Q.", "a persistent id"),
    ],
)
def test_what_python_refuses_is_objected_to(data, said):
    with pytest.raises(Exception):  # noqa: B017, PT011 - of several kinds
        no_huge_memo(data)
    assert said in " ".join(objections(data))


def no_huge_memo(data: bytes) -> None:
    """Load plain data; an index for which Python would take 32 GiB fails at once."""
    if b"r\xff\xff\xff\x7f" in data:
        raise MemoryError
    pickle.load(io.BytesIO(data))
    pickle._Unpickler(io.BytesIO(data)).load()  # the one in Python refuses other things


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("window", [16, 1 << 10, 1 << 20])
def test_frames_as_picklers_write_them_are_taken(protocol, window):
    value = {str(i): [i, "x" * (i % 300)] for i in range(3000)}
    value["long"] = b"b" * 100_000
    data = pickle.dumps(value, protocol)
    assert data.count(b"\x95") > 3
    machine = PickleMachine(Memory(data), window=window)
    read = machine.run()
    assert machine.builder.objections == []
    assert {k: v for k, v in read.items() if k != "long"} == {
        k: v for k, v in value.items() if k != "long"
    }
