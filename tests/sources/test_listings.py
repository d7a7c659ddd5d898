"""Directories of a store that lists them: each is asked for once, files are opened before."""

from __future__ import annotations

import pytest

from ckptool.errors import UnreadableError
from ckptool.sources.places import as_path
from ckptool.sources.remote.base import NotThereError, RemoteObject
from ckptool.sources.remote.listings import Entry, ListingStore
from ckptool.sources.urls import RemotePath

TREE = {"runs": {"a.ckpt": 5, "deep.ckpt": {"b.pt": 7}}, "top.txt": 3}


class Object(RemoteObject):
    version = "1"

    def __init__(self, size: int | None) -> None:
        self._size = size

    def last(self, nbytes: int) -> bytes:
        if self._size is None:
            raise NotThereError("no such file")
        self.size = self._size
        return bytes(self.size)

    def get(self, buffer: memoryview, offset: int) -> int:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Nested(ListingStore):
    """A tree of dicts; a number is the size of a file."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def _at(self, path: RemotePath):
        node = TREE
        for key in path.url.removeprefix("hf://o/r").strip("/").split("/"):
            node = node.get(key) if key and isinstance(node, dict) else node if not key else None
        return node

    def remote(self, path: RemotePath) -> RemoteObject:
        node = self._at(path)
        self.asked.append(f"open {path.name}")
        return Object(node if isinstance(node, int) else None)

    def listed(self, folder: RemotePath):
        self.asked.append(f"list {folder.name}")
        node = self._at(folder)
        rows = node.items() if isinstance(node, dict) else ()
        return {name: Entry(what if isinstance(what, int) else None) for name, what in rows}


@pytest.fixture
def store(monkeypatch):
    made = Nested()
    monkeypatch.setattr(RemotePath, "find_store", staticmethod(lambda _path: made))
    return made


ROOT = "hf://o/r"


def test_a_file_is_opened_once_and_nothing_listed(store):
    path = as_path(f"{ROOT}/runs/a.ckpt")
    assert not path.is_dir()
    with store.open(path) as source:
        assert source.size == 5
    assert not path.is_dir()
    assert store.asked == ["open a.ckpt"]


def test_a_directory_may_be_called_like_a_file(store):
    """Lightning calls the directories of DeepSpeed epoch=1.ckpt."""
    path = as_path(f"{ROOT}/runs/deep.ckpt")
    assert path.is_dir()
    assert [entry.name for entry in path.iterdir()] == ["b.pt"]
    assert store.asked == ["open deep.ckpt", "list deep.ckpt"]


def test_a_listing_answers_all_questions(store):
    folder = as_path(f"{ROOT}/runs")
    inside = {path.name: path for path in folder.iterdir()}
    assert inside["deep.ckpt"].is_dir()
    assert inside["a.ckpt"].is_file()
    assert inside["a.ckpt"].stat().st_size == 5
    assert not (folder / "c.ckpt").exists()
    with pytest.raises(FileNotFoundError):
        (folder / "c.ckpt").stat()
    assert [path.name for path in folder.glob("*/*.pt")] == ["b.pt"]
    assert [path.name for path in folder.glob("**/*.pt")] == ["b.pt"]
    assert store.asked == ["list runs", "list deep.ckpt"]


def test_what_is_not_there(store):
    path = as_path(f"{ROOT}/none.ckpt")
    assert not path.is_dir()
    with pytest.raises(UnreadableError, match="no such file"):
        store.open(path)
