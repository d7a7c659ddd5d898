"""What fuzzing found, a test each: the shortest input, and what it must be answered with."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("behind", range(14))
def test_a_file_shorter_than_a_zips_end_record_is_cut_off(behind, ckptool, tmp_path):
    """The end record's signature at the end of so short a file was taken for a whole record."""
    path = tmp_path / "short.pt"
    path.write_bytes(b"PK\3\4" + b"PK\5\6" + bytes(behind))
    refused = ckptool("inspect", path)
    assert refused.exit_code == 2
    assert "truncated" in refused.stderr


LOOKED_UP = (
    b"\x80\x04cbuiltins\ngetattr\n(cbuiltins\n__import__\n(X\x02\0\0\0ostRX\x06\0\0\0systemtR"
)


@pytest.mark.parametrize("after", [b"(Ne.", b"(NNu.", b"}b.", b"Na."])
def test_what_is_set_on_a_part_of_an_imported_module_is_noted(after, ckptool, tmp_path):
    """``getattr(__import__("os"), "system")`` is no part of a class; it has no module to name."""
    path = tmp_path / "looked-up.pkl"
    path.write_bytes(LOOKED_UP + after)
    seen = ckptool("inspect", path, "--json")
    assert seen.exit_code == 0
    assert "builtins.__import__" in seen.stdout
    assert ckptool("verify", path).exit_code == 1
