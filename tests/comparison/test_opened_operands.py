"""What an operand of ``diff`` stands for."""

from __future__ import annotations

import json

import pytest

from ckptool.comparison.leaves import Digest
from ckptool.comparison.operands import MANIFEST, Side, read_manifest
from ckptool.contents.selection import select_node
from ckptool.errors import AddressError, DamagedError

TREE = {"model": {"net.w": 1, "net.b": 2, "head.w": 3}, "log": [{"loss": 4}, {"loss": 5}]}
ENTRY = {"address": "model/w", "dtype": "float32", "shape": [2], "bytes": 8, "sha256": "ab"}


@pytest.fixture
def document(tmp_path):
    def write(*entries):
        path = tmp_path / "digests.json"
        path.write_text(json.dumps({"schema": MANIFEST, "entries": entries}))
        return path

    return write


def test_a_key_path_names_a_node():
    assert select_node(TREE, "log/1") == {"loss": 5}
    assert select_node(TREE, "model/net.w") == 1


def test_a_star_at_the_end_names_what_begins_so():
    assert select_node(TREE, "model/net.*") == {"w": 1, "b": 2}


@pytest.mark.parametrize("text", ["none", "model/none.*", "log/7", "model/net.w/x"])
def test_a_place_that_is_not_there_is_refused(text):
    with pytest.raises(AddressError):
        select_node(TREE, text)


def test_a_document_of_digests_is_an_operand(document):
    path = document(ENTRY)
    assert read_manifest(path) == {"model/w": Digest("float32", (2,), 8, "ab")}
    with Side(f"{path}#model") as side:
        assert side.is_manifest
        assert side.leaves == side.tensors_once() == {"w": Digest("float32", (2,), 8, "ab")}


def test_a_document_without_digests_is_refused(document):
    without = {key: value for key, value in ENTRY.items() if key != "sha256"}
    with pytest.raises(DamagedError, match="without digests"):
        read_manifest(document(without))


def test_a_document_that_lists_nothing_there_is_refused(document):
    with pytest.raises(AddressError, match="lists no tensors"):
        Side(f"{document(ENTRY)}#optimizer")


def test_other_files_and_folders_are_no_documents(tmp_path):
    (tmp_path / "other.json").write_text('{"entries": []}')
    assert read_manifest(tmp_path / "other.json") is None
    assert read_manifest(tmp_path) is None
