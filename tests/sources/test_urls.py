"""URLs as paths: their parts, what is shown of them, and that the system takes them for none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptool.contents.selection import parse_operand
from ckptool.errors import UnreadableError, UsageError
from ckptool.sources.local import LocalFile
from ckptool.sources.places import as_path, is_folder
from ckptool.sources.remote.base import TransferError
from ckptool.sources.remote.connections import site_of
from ckptool.sources.urls import RemotePath

URL = "https://me:secret@host.example:8443/runs/last%20one.ckpt?X-Signature=secret"


def test_parts_of_a_url():
    path = RemotePath(URL)
    assert (path.name, path.suffix, path.stem) == ("last one.ckpt", ".ckpt", "last one")
    assert str(path) == "https://host.example:8443/runs/last%20one.ckpt?…"
    assert str(path.parent) == "https://host.example:8443/runs?…"
    assert str(path.with_name("b c.json")) == "https://host.example:8443/runs/b%20c.json?…"
    assert str(RemotePath("https://host.example/a.ckpt")) == "https://host.example/a.ckpt"
    assert path.with_name("b.json").url.endswith("/runs/b.json?X-Signature=secret")
    assert path.parents[-1] == RemotePath("https://me:secret@host.example:8443?X-Signature=secret")
    assert path.parents[-1].parent == path.parents[-1]


def test_keys_of_buckets_are_taken_as_they_are():
    path = RemotePath("s3://bucket/a%20b/c?d/e.pt")
    assert path.name == "e.pt"
    assert (path.parent.name, path.parent.parent.name) == ("c?d", "a%20b")


def test_secrets_are_not_shown():
    path = RemotePath(URL)
    assert "secret" not in f"{path} {path!r} {path.parent} {path / 'x'}"
    assert "secret" not in str(UnreadableError("it failed", path=path))


@pytest.mark.parametrize("password", ["s3cr?et", "s3cr/et", "s3cr#et"])
def test_a_password_that_is_not_escaped_is_not_shown(password):
    path = RemotePath(f"https://bob:{password}@host.example/a.pt")
    assert "s3cr" not in f"{path} {path!r}"
    with pytest.raises(TransferError) as error:
        site_of(path.url)
    assert "s3cr" not in f"{error.value} {error.value.hint}"


@pytest.mark.parametrize(
    "last", ["..%2F..%2Fup.pt", "%2Ftmp%2Fup.pt", "%2e%2e", "..", "a%00b.pt", "a%5Cb.pt", "%2e"]
)
def test_a_name_stays_a_name(last):
    """Outputs without a name of their own are called like the file."""
    name = RemotePath(f"https://host/d/{last}").name
    assert not set(name) & set("/\\\0")
    assert name not in {"", ".", ".."}


def test_the_system_takes_it_for_no_file(tmp_path, monkeypatch):
    """Not even where a directory is called like the beginning of the URL."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "https:" / "host" / "a.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not this one")
    path = RemotePath("https://host/a.pt")
    assert not os.path.isfile(path)  # noqa: PTH113
    assert not os.path.lexists(path)
    with pytest.raises(UnreadableError):
        LocalFile(path)


def test_equal_urls_are_equal_paths():
    assert RemotePath("hf://a/b/c.pt") == RemotePath("hf://a/b/c.pt")
    assert len({RemotePath("hf://a/b/c.pt"), RemotePath("hf://a/b/c.pt")}) == 1
    assert RemotePath("hf://a/b/c.pt") != Path("hf://a/b/c.pt")
    assert min(RemotePath("hf://b"), RemotePath("hf://a")).url == "hf://a"


def test_an_operand_has_its_address_behind_the_url():
    path, address = parse_operand("https://host/last.ckpt?a=b#state_dict/*")
    assert isinstance(path, RemotePath)
    assert (path.url, address) == ("https://host/last.ckpt?a=b", "state_dict/*")
    assert parse_operand("https://host/last.ckpt").address is None


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    (tmp_path / "s3:" / "a.pt").touch()
    assert not isinstance(as_path("s3://a.pt"), RemotePath)


def test_unknown_schemes_are_named():
    with pytest.raises(UsageError, match="ftp://") as error:
        as_path("ftp://me:secret@host/a.pt")
    assert "https://" in error.value.hint


def test_a_web_server_has_no_folders():
    assert not is_folder(RemotePath("https://host/runs"))
    with pytest.raises(NotADirectoryError):
        list(RemotePath("https://host/runs").iterdir())
