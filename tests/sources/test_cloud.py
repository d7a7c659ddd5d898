"""Buckets, against a stand-in for S3 that answers the requests of obstore."""

from __future__ import annotations

import sys
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from ckptool.sources.remote import cloud, retries, schemes
from helpers import web
from helpers.output import run_inside as run
from helpers.paths import FIXTURES
from helpers.web import Site, serving

SAMPLE = FIXTURES / "ema" / "emacallback" / "exported.ckpt"
SECRET = "wJalrXUtnFEMI"


def listing(handler, files) -> bytes:
    """Return the answer to ListObjectsV2."""
    asked = parse_qs(urlsplit(handler.path).query)
    bucket = urlsplit(handler.path).path.strip("/")
    prefix, delimiter = asked.get("prefix", [""])[0], asked.get("delimiter", [""])[0]
    rows, folders = [], {}
    for path, data in files.items():
        key = path.removeprefix(f"/{bucket}/")
        if not path.startswith(f"/{bucket}/") or not key.startswith(prefix):
            continue
        name, slash, _ = key.removeprefix(prefix).partition("/")
        if delimiter and slash:
            folders[f"{prefix}{name}/"] = None
        else:
            rows.append((key, len(data)))
    keys = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;x&quot;</ETag><Size>{size}</Size></Contents>"
        for key, size in rows
    )
    common = "".join(
        f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders
    )
    return (
        '<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>'
        f"<Name>{bucket}</Name><KeyCount>{len(rows)}</KeyCount>{keys}{common}</ListBucketResult>"
    ).encode()


@pytest.fixture
def bucket(monkeypatch):
    pytest.importorskip("obstore")
    schemes.cloud_store.cache_clear()
    cloud.client_of.cache_clear()
    monkeypatch.setattr(
        retries, "PATIENCE", retries.PATIENCE._replace(sleep=lambda _seconds: None, attempts=2)
    )
    site = Site()

    def answer(handler, _data) -> bool:
        if "list-type=2" in handler.path:
            handler.answer(200, listing(handler, site.files), **{"Content-Type": "application/xml"})
            return True
        path = unquote(urlsplit(handler.path).path)
        if path not in site.files:
            return web.status(404)(handler, b"")
        handler.answer_range(site.files[path], **{"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"})
        return True

    site.every = answer
    with serving(site) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        yield running
    schemes.cloud_store.cache_clear()
    cloud.client_of.cache_clear()


def test_a_file_of_a_bucket(bucket, tmp_path):
    bucket.files["/models/runs/last.ckpt"] = SAMPLE.read_bytes()
    url, output = "s3://models/runs/last.ckpt", tmp_path / "ema.safetensors"
    done = run("inspect", url)
    assert done.exit_code == 0, done
    assert run("extract-ema", url, "-o", output).exit_code == 0
    assert run("diff", f"{SAMPLE}#@ema", output).exit_code == 0
    assert all("AWS4-HMAC-SHA256" in each.headers["authorization"] for each in bucket.asked)


def test_a_folder_of_a_bucket(bucket):
    folder = FIXTURES / "genuine" / "fsdp2" / "checkpoint"
    for file in folder.rglob("*"):
        if file.is_file():
            bucket.files[f"/models/step/{file.relative_to(folder)}"] = file.read_bytes()
    done = run("diff", "s3://models/step#@model", f"{folder}#@model")
    assert done.exit_code == 0, done


def test_a_run_in_a_bucket(bucket):
    for name in ("a", "b"):
        bucket.files[f"/models/runs/{name}.ckpt"] = SAMPLE.read_bytes()
    done = run("inspect", "s3://models/runs/")
    assert done.exit_code == 0, done
    assert "b.ckpt" in done


def test_another_version_is_told(bucket, tmp_path, monkeypatch):
    data = SAMPLE.read_bytes()
    bucket.files["/models/last.ckpt"] = data
    monkeypatch.setattr("ckptool.sources.remote.file.TAIL", 1024)
    monkeypatch.setattr("ckptool.sources.remote.file.HEAD", 4096)
    plain = bucket.every

    def replace(handler, given) -> bool:
        if len(bucket.asked) == 2:
            bucket.files["/models/last.ckpt"] = bytes(reversed(data))
        return plain(handler, given)

    bucket.every = replace
    done = run("extract-ema", "s3://models/last.ckpt", "-o", tmp_path / "a.safetensors")
    assert done.exit_code == 2, done
    assert "replaced" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("status", [403, 404])
def test_refusals(bucket, status):
    bucket.every = web.status(status)
    done = run("inspect", "s3://models/last.ckpt")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: s3://models/last.ckpt: ")
    assert "hint:" in done.stderr
    assert SECRET not in done.stderr


def test_without_the_library_it_says_what_to_install(monkeypatch):
    schemes.cloud_store.cache_clear()
    cloud.client_of.cache_clear()
    monkeypatch.setitem(sys.modules, "obstore", None)
    done = run("inspect", "gs://models/last.ckpt")
    assert done.exit_code == 2
    assert "pip install 'ckptool[remote]'" in done.stderr
