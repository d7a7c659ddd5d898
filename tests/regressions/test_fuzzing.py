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
