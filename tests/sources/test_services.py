"""Buckets of the storage services that others wrote: every command says the same as on files here.

Each service is a row of ``SERVICES``; one that is not installed is skipped.
"""

from __future__ import annotations

import shutil

import pytest

from ckptool.sources.remote import cloud, retries, schemes
from helpers import web
from helpers.output import run_inside as run
from helpers.paths import FIXTURES
from helpers.services import BUCKET, KEY, SECRET, SERVICES

SAMPLE = FIXTURES / "ema" / "emacallback" / "exported.ckpt"
OTHER = FIXTURES / "ema" / "emacallback" / "callback_only.ckpt"
DCP = FIXTURES / "genuine" / "fsdp2" / "checkpoint"
TRAINER = FIXTURES / "genuine" / "hf_trainer" / "run" / "checkpoint-4"
SHARDED = next(path.parent for path in sorted(FIXTURES.rglob("*.safetensors.index.json")))
RESUMED = FIXTURES / "resume"


def forget_clients() -> None:
    schemes.cloud_store.cache_clear()
    cloud.client_of.cache_clear()


@pytest.fixture(scope="module", params=SERVICES.values(), ids=SERVICES)
def running(request):
    pytest.importorskip("obstore")
    with request.param() as service:
        yield service


@pytest.fixture
def service(running, monkeypatch):
    """A service without a record of requests; commands find it by the environment."""
    web.be_quick(monkeypatch)
    forget_clients()
    for name, value in running.variables.items():
        monkeypatch.setenv(name, value)
    running.front.faults = {}
    running.front.forget()
    yield running
    forget_clients()


def put_all(service, folder, at: str) -> str:
    """Put all files of a directory, and return its URL."""
    for file in folder.rglob("*"):
        if file.is_file():
            service.put(f"{at}/{file.relative_to(folder)}", file.read_bytes())
    return service.url(at)


def put(service, path, at: str) -> str:
    service.put(at, path.read_bytes())
    return service.url(at)


def there_and_here(url: str, here, *words: str):
    """Run a command on the URL and on the same file here; the paths apart they say the same."""
    ours, theirs = run(words[0], url, *words[1:]), run(words[0], here, *words[1:])
    assert ours.exit_code == theirs.exit_code, ours
    return ours, theirs


def test_inspect(service):
    url = put(service, SAMPLE, "runs/one/last.ckpt")
    ours, theirs = there_and_here(url, SAMPLE, "inspect", "--json")
    assert ours.json["tensors"] == theirs.json["tensors"]
    assert ours.json["ema"]["selected"] == theirs.json["ema"]["selected"]
    assert ours.json["path"] == url
    assert len(service.front.asked) <= 4


def test_extract_ema(service, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    web.cut_small(monkeypatch)
    copy, one, other = (tmp_path / name for name in ("last.ckpt", "a.safetensors", "b.safetensors"))
    shutil.copy(SAMPLE, copy)
    assert run("extract-ema", put(service, SAMPLE, "last.ckpt"), "-o", one).exit_code == 0
    assert run("extract-ema", copy, "-o", other).exit_code == 0
    assert one.read_bytes() == other.read_bytes()
    assert len(service.front.asked) > 4


def test_verify_reads_all_bytes(service, monkeypatch):
    web.cut_small(monkeypatch)
    url = put(service, SAMPLE, "last.ckpt")
    words = ("verify", "--bytes", "--values", "--require", "intact,safe")
    there_and_here(url, SAMPLE, *words)
    data = bytearray(SAMPLE.read_bytes())
    data[data.find(b"/data/0") + 200] ^= 1
    service.put("bad.ckpt", bytes(data))
    done = run("verify", service.url("bad.ckpt"), "--require", "intact")
    assert done.exit_code == 1
    assert "CK103" in done


def test_diff(service, monkeypatch):
    web.cut_small(monkeypatch)
    url = put(service, SAMPLE, "last.ckpt")
    assert run("diff", url, SAMPLE).exit_code == 0
    assert run("diff", url, f"{put(service, SAMPLE, 'copy.ckpt')}").exit_code == 0
    assert run("diff", f"{url}#@ema", f"{SAMPLE}#@model").exit_code == 1


def test_a_document_of_digests(service):
    service.put("last.ckpt.digests.json", run("inspect", SAMPLE, "--digests", "--json").encode())
    url = service.url("last.ckpt.digests.json")
    assert run("diff", url, SAMPLE).exit_code == 0
    assert run("diff", f"{url}#state_dict", f"{SAMPLE}#state_dict").exit_code == 0
    assert run("diff", url, OTHER).exit_code == 1


def test_a_run(service):
    url = put_all(service, RESUMED, "runs/resumed")
    ours, theirs = there_and_here(url, RESUMED, "inspect", "--json")
    names = [each["path"].rpartition("/")[2] for each in theirs.json["checkpoints"]]
    assert [each["path"] for each in ours.json["checkpoints"]] == [f"{url}/{n}" for n in names]
    assert all(each["modified"] for each in ours.json["checkpoints"])
    assert [each["global_step"] for each in ours.json["checkpoints"]] == [
        each["global_step"] for each in theirs.json["checkpoints"]
    ]


@pytest.mark.parametrize("choice", [("--latest-valid",), ("--best", "val_stats/loss:min")])
def test_a_choice_among_the_checkpoints_of_a_run(service, choice):
    url = put_all(service, RESUMED, "runs/resumed")
    ours, theirs = there_and_here(url, RESUMED, "verify", *choice)
    assert ours.exit_code == 0, ours
    assert ours.strip() == f"{url}/{theirs.strip().rpartition('/')[2]}"


@pytest.mark.parametrize("folder", [DCP, TRAINER, SHARDED], ids=["dcp", "trainer", "sharded"])
def test_a_directory_that_is_one_checkpoint(service, folder):
    url = put_all(service, folder, f"runs/{folder.name}")
    ours, theirs = there_and_here(url, folder, "inspect", "--json")
    assert ours.json["format"] == theirs.json["format"]
    assert ours.json["tensors"] == theirs.json["tensors"]
    assert run("diff", url, folder).exit_code == 0
    ours, theirs = there_and_here(url, folder, "verify", "--bytes", "--json")
    found = {each["rule"] for each in theirs.json["findings"]}
    assert {each["rule"] for each in ours.json["findings"]} - {"CK121"} == found - {"CK121"}


@pytest.mark.parametrize("key", ["a b/c+d.ckpt", "weiß/%20.ckpt", "q?x=1/l.ckpt"])
def test_keys_are_taken_as_they_are(service, key):
    url = put(service, SAMPLE, key)
    assert run("inspect", url, "--json").exit_code == 0
    assert run("inspect", url.rpartition("/")[0]).exit_code == 0


def test_an_empty_object_is_said(service):
    service.put("empty.ckpt", b"")
    done = run("inspect", service.url("empty.ckpt"))
    assert done.exit_code == 2
    assert "empty" in done.stderr


@pytest.mark.parametrize("key", ["none.ckpt", "none/", "none"])
def test_what_is_not_there_is_said(service, key):
    done = run("inspect", service.url(key))
    assert done.exit_code == 2
    assert "no such file" in done.stderr.lower() or "not exist" in done.stderr


def test_an_object_that_is_replaced_is_told_and_never_mixed(service, tmp_path, monkeypatch):
    web.cut_small(monkeypatch)
    url = put(service, SAMPLE, "last.ckpt")
    assert run("extract-ema", url, "-o", tmp_path / "a.safetensors").exit_code == 0
    requests = len(service.front.asked)
    data = SAMPLE.read_bytes()
    other = bytes(byte ^ 1 if nth > 6000 else byte for nth, byte in enumerate(data))

    def replace(_handler, _data) -> bool:
        service.put("last.ckpt", other)
        return False

    refused = 0
    for number in {1, 2, requests // 2, requests - 1}:
        service.put("last.ckpt", data)
        service.front.forget()
        service.front.faults = {number: replace}
        output = tmp_path / "out.safetensors"
        done = run("extract-ema", url, "-o", output)
        assert done.exit_code == 2, done
        assert "the file was replaced while it was read" in done.stderr
        assert not output.exists()
        refused += 1
    assert refused >= 3


@pytest.mark.parametrize(
    "fault", [web.status(503), web.status(429), web.reset], ids=["503", "429", "reset"]
)
def test_what_passes_is_outlived(service, tmp_path, monkeypatch, fault):
    web.cut_small(monkeypatch)
    url = put(service, SAMPLE, "last.ckpt")
    service.front.faults = {0: fault, 1: fault, 5: fault, 9: fault}
    output = tmp_path / "ema.safetensors"
    assert run("extract-ema", url, "-o", output).exit_code == 0
    assert run("diff", f"{SAMPLE}#@ema", output).exit_code == 0
    service.front.forget()
    forget_clients()
    service.front.faults = {0: fault, 2: fault}
    assert run("inspect", service.url()).exit_code in {0, 2}


def test_what_stays_is_an_error_without_secrets(service):
    url = put(service, SAMPLE, "last.ckpt")
    for status in (500, 503, 403, 401):
        service.front.forget()
        service.front.faults = dict.fromkeys(range(99), web.status(status))
        done = run("inspect", url)
        assert done.exit_code == 2
        assert done.stderr.startswith(f"error: {url}: ")
        assert "hint:" in done.stderr
        assert SECRET not in done.stderr
        assert KEY not in done.stderr
        assert len(service.front.asked) <= retries.PATIENCE.attempts


def test_wrong_credentials_are_refused(service, monkeypatch):
    if service.mistrust is None:
        pytest.skip("this service checks none")
    url = put(service, SAMPLE, "last.ckpt")
    service.mistrust(monkeypatch)
    forget_clients()
    done = run("inspect", url)
    service.trust()
    assert done.exit_code == 2
    assert "forbids" in done.stderr or "credentials" in done.stderr
    assert BUCKET in done.stderr
