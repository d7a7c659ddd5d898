"""``hf://`` against a stand-in for the hub, which redirects to storage on another port."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest

from ckptool.sources.remote import retries, schemes
from ckptool.sources.remote.base import TransferError
from ckptool.sources.remote.credentials import hub_access
from ckptool.sources.remote.hub import place_of
from ckptool.sources.urls import RemotePath
from helpers import web
from helpers.output import run_inside as run
from helpers.paths import FIXTURES
from helpers.web import Site, serving

COMMIT = "0123456789abcdef"
SAMPLE = FIXTURES / "ema" / "emacallback" / "exported.ckpt"
TOKEN = "hf_s3cret"


@pytest.fixture
def storage():
    with serving() as running:
        yield running


@pytest.fixture
def hub(storage, monkeypatch):
    """The hub; files are put in ``storage.files`` as ``/owner/repo/path``."""
    schemes.hub_store.cache_clear()
    monkeypatch.setattr(retries, "PATIENCE", retries.PATIENCE._replace(sleep=lambda _seconds: None))

    def answer(handler, _data) -> bool:
        path = unquote(handler.path)
        if "/resolve/" in path:
            repo, _, rest = path.partition("/resolve/")
            revision, _, name = rest.partition("/")
            key = f"{repo}/{name}"
            if revision not in {"main", COMMIT} or key not in storage.files:
                return web.status(404)(handler, b"")
            return web.moved(lambda _path: f"{storage.url}{key}?signature=s3cret")(handler, b"")
        if "/revision/" in path:
            handler.answer(200, json.dumps({"sha": COMMIT}).encode())
            return True
        repo, _, rest = path.removeprefix("/api/models").partition("/tree/")
        revision, _, below = rest.partition("/")
        assert revision == COMMIT
        start = f"{repo}/{below}".rstrip("/") + "/"
        rows = {}
        for key, data in storage.files.items():
            if key.startswith(start):
                name, slash, _ = key.removeprefix(start).partition("/")
                kind = "directory" if slash else "file"
                rows[name] = {
                    "type": kind,
                    "path": f"{below}/{name}".lstrip("/"),
                    "size": len(data),
                }
        if not rows:
            return web.status(404)(handler, b"")
        handler.answer(200, json.dumps(list(rows.values())).encode())
        return True

    with serving(Site(every=answer)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running
    schemes.hub_store.cache_clear()


def put(storage: Site, source: Path, at: str) -> None:
    """Put a file, or all files of a directory, in the storage."""
    for file in [source] if source.is_file() else source.rglob("*"):
        if file.is_file():
            rest = "" if source.is_file() else f"/{file.relative_to(source)}"
            storage.files[f"/owner/repo/{at}{rest}".replace("//", "/")] = file.read_bytes()


def test_a_file_is_read_where_the_hub_redirects_to(hub, storage, tmp_path):
    put(storage, SAMPLE, "runs/last.ckpt")
    output = tmp_path / "ema.safetensors"
    assert run("extract-ema", "hf://owner/repo/runs/last.ckpt", "-o", output).exit_code == 0
    assert run("diff", f"{SAMPLE}#@ema", output).exit_code == 0
    assert len(hub.asked) == 1  # where it leads is asked from then on


def test_the_token_is_for_the_hub_alone_and_never_shown(hub, storage):
    put(storage, SAMPLE, "last.ckpt")
    done = run("inspect", "hf://owner/repo@main/last.ckpt", "--json")
    assert done.exit_code == 0
    assert all(each.headers["Authorization"] == f"Bearer {TOKEN}" for each in hub.asked)
    assert storage.asked
    assert not any("Authorization" in each.headers for each in storage.asked)
    assert "s3cret" not in done + done.stderr


def test_a_document_of_digests_is_transferred_alone(hub, storage):
    put(storage, SAMPLE, "last.ckpt")
    document = run("inspect", SAMPLE, "--digests", "--json")
    storage.files["/owner/repo/last.ckpt.digests.json"] = document.encode()
    url = "hf://owner/repo/last.ckpt.digests.json"
    assert run("diff", url, SAMPLE).exit_code == 0
    assert run("diff", f"{url}#state_dict", f"{SAMPLE}#ema_state_dict").exit_code == 1
    assert {each.path.partition("?")[0] for each in storage.asked} == {
        "/owner/repo/last.ckpt.digests.json"
    }


def test_inspect_of_a_file_takes_few_requests(hub, storage):
    put(storage, SAMPLE, "last.ckpt")
    assert run("inspect", "hf://owner/repo/last.ckpt").exit_code == 0
    assert len(hub.asked) + len(storage.asked) <= 4


@pytest.mark.parametrize("named", ["folder", "index"])
def test_sharded_weights(hub, storage, tmp_path, named):
    folder = next(path.parent for path in sorted((FIXTURES).rglob("*.safetensors.index.json")))
    put(storage, folder, "model")
    index = next(folder.glob("*.index.json")).name
    url = "hf://owner/repo/model" + (f"/{index}" if named == "index" else "")
    here = folder / index if named == "index" else folder
    assert run("diff", url, here).exit_code == 0, run("diff", url, here)
    assert (
        run("inspect", url, "--json").json["tensors"]
        == run("inspect", here, "--json").json["tensors"]
    )


FOLDERS = {
    "dcp": "genuine/fsdp2/checkpoint",
    "zero": "genuine/deepspeed/zero2/global_step1",
    "trainer": "genuine/hf_trainer/run/checkpoint-4",
}


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_folders_that_are_one_checkpoint(hub, storage, tmp_path, folder):
    put(storage, FIXTURES / folder, "step")
    copy = tmp_path / "step"
    shutil.copytree(FIXTURES / folder, copy)
    ours, theirs = (run("inspect", where, "--json") for where in ("hf://owner/repo/step", copy))
    assert ours.exit_code == theirs.exit_code == 0, ours
    assert ours.json["tensors"] == theirs.json["tensors"]
    assert ours.json["format"] == theirs.json["format"]
    done = run("diff", "hf://owner/repo/step#@model", f"{copy}#@model")
    assert done.exit_code == 0, done


def test_a_directory_of_a_run_is_listed(hub, storage):
    put(storage, SAMPLE, "runs/a.ckpt")
    put(storage, SAMPLE, "runs/b.ckpt")
    done = run("inspect", "hf://owner/repo/runs")
    assert done.exit_code == 0, done
    assert "a.ckpt" in done
    assert "b.ckpt" in done


def test_all_files_are_of_one_commit(hub, storage):
    """The branch may move while the shards are read."""
    put(storage, FIXTURES / FOLDERS["dcp"], "step")
    assert run("inspect", "hf://owner/repo/step").exit_code == 0
    resolved = [each.path for each in hub.asked if "/resolve/" in each.path]
    assert resolved
    assert all(f"/resolve/{COMMIT}/" in path for path in resolved)


def test_verify_of_a_folder_names_what_it_did_not_fetch(hub, storage):
    put(storage, FIXTURES / FOLDERS["dcp"], "step")
    storage.files["/owner/repo/step/other.pt"] = SAMPLE.read_bytes()
    done = run("verify", "hf://owner/repo/step", "--verbose")
    assert "other.pt (not fetched)" in done, done


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hf://owner/repo/none.ckpt", "no such file|a directory without|404"),
        ("hf://owner/other/none", "no such file|404"),
        ("hf://owner", "no address of a repository"),
    ],
)
def test_what_is_not_there(hub, url, said):
    done = run("inspect", url)
    assert done.exit_code == 2
    assert any(each in done.stderr for each in said.split("|")), done
    assert "hint:" in done.stderr


@pytest.mark.parametrize("code", [401, 403])
def test_a_gated_repository(hub, code):
    hub.every = web.status(code)
    done = run("inspect", "hf://owner/repo/last.ckpt")
    assert done.exit_code == 2
    assert TOKEN not in done.stderr


# -------------------------------------------------------------------------------- addresses, tokens


@pytest.mark.parametrize(
    ("url", "repo", "revision", "path"),
    [
        ("hf://a/b/c/d.pt", "a/b", "main", "c/d.pt"),
        ("hf://a/b@v1.0/c.pt", "a/b", "v1.0", "c.pt"),
        ("hf://a/b@refs/pr/3/c.pt", "a/b", "refs/pr/3", "c.pt"),
        ("hf://a/b", "a/b", "main", ""),
        ("hf://datasets/a/b/c.pt", "a/b", "main", "c.pt"),
    ],
)
def test_places(url, repo, revision, path):
    place = place_of(RemotePath(url))
    assert (place.repo, place.revision, place.path) == (repo, revision, path)


def test_names_are_escaped():
    place = place_of(RemotePath("hf://a/b@x/c d/#1?.pt"))
    assert place.file_url == "a/b/resolve/x/c%20d/%231%3F.pt"


def test_a_repository_is_needed():
    with pytest.raises(TransferError):
        place_of(RemotePath("hf://alone"))


def test_the_token_is_where_the_hub_keeps_it(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert hub_access() == ("https://huggingface.co", "")
    (tmp_path / "token").write_text("hf_file\n")
    assert hub_access().token == "hf_file"
    monkeypatch.setenv("HF_TOKEN", "hf_variable")
    assert hub_access().token == "hf_variable"
