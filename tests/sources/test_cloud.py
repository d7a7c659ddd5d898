"""What is said where a bucket cannot be read: TLS, proxies, credentials, the library itself.

``test_services.py`` has the answers of the services that others wrote.
"""

from __future__ import annotations

import sys

import pytest

from ckptool.sources.remote import cloud, schemes
from ckptool.sources.remote.base import NotThereError, ReplacedError
from helpers import web
from helpers.output import run_inside as run
from helpers.paths import FIXTURES
from helpers.proxy import relaying
from helpers.web import Site, serving

SAMPLE = FIXTURES / "ema" / "emacallback" / "exported.ckpt"
SECRET = "wJalrXUtnFEMI"


def forget_clients() -> None:
    schemes.cloud_store.cache_clear()
    cloud.client_of.cache_clear()


@pytest.fixture
def clients(monkeypatch):
    pytest.importorskip("obstore")
    web.be_quick(monkeypatch)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    forget_clients()
    yield
    forget_clients()


@pytest.fixture
def bucket(certificates):
    """A server of one object that speaks TLS as elsewhere.example, and counts handshakes."""
    with serving(Site({"/b/last.ckpt": SAMPLE.read_bytes()}), certificates.elsewhere) as site:
        handshakes: list[str] = []
        certificates.elsewhere.sni_callback = lambda _socket, name, _context: handshakes.append(
            name
        )
        yield site, handshakes
        certificates.elsewhere.sni_callback = None


@pytest.fixture
def proxied(bucket, clients, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://elsewhere.example")
    with relaying(bucket[0], f"me:{SECRET}") as relay:
        monkeypatch.setenv("HTTPS_PROXY", relay.url)
        yield relay


@pytest.mark.parametrize("place", ["last.ckpt", "runs"])
def test_a_certificate_that_does_not_verify_is_an_error_at_once(
    proxied, bucket, place, monkeypatch
):
    monkeypatch.setenv("AWS_ALLOW_INVALID_CERTIFICATES", "true")  # of no effect
    done = run("inspect", f"s3://b/{place}")
    assert done.exit_code == 2
    assert "the TLS certificate of the storage service does not verify" in done.stderr
    assert "SSL_CERT_FILE" in done.stderr
    assert bucket[1] == ["elsewhere.example"]  # one handshake
    assert not bucket[0].asked


def test_an_authority_of_ones_own_and_a_proxy(proxied, bucket, certificates, tmp_path, monkeypatch):
    authority = tmp_path / "ca.pem"
    certificates.authority.cert_pem.write_to_path(authority)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    done = run("inspect", "s3://b/last.ckpt")
    assert done.exit_code == 0, done
    assert proxied.asked == ["elsewhere.example:443"]
    assert bucket[0].asked


@pytest.mark.parametrize(
    ("status", "said"), [(407, "asks for a login"), (403, "refuses the connection")]
)
def test_what_a_proxy_refuses_is_said_at_once(proxied, status, said):
    proxied.refusals = dict.fromkeys(range(99), status)
    done = run("inspect", "s3://b/last.ckpt")
    assert done.exit_code == 2
    assert f"s3://b/last.ckpt: the proxy {said}" in done.stderr
    assert "hint: " in done.stderr
    assert SECRET not in done.stderr
    assert len(proxied.asked) == 1


def test_a_signature_in_a_url_is_not_shown(clients, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"sv=2026&sig={SECRET}")
    with serving(Site(every=web.status(400))) as site:
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", site.url)
        done = run("inspect", "az://models/last.ckpt")
    assert done.exit_code == 2
    assert SECRET in site.asked[0].path
    assert SECRET not in done.stderr + done


def error(name: str, text: str) -> Exception:
    return type(name, (Exception,), {})(text)


@pytest.mark.parametrize(
    ("name", "text", "said", "is_transient"),
    [
        ("GenericError", "non-2xx status code: 503 Slow Down: <Code>", "503", True),
        ("GenericError", "non-2xx status code: 400 Bad Request", "400", False),
        ("GenericError", "HTTP error: error sending request", "sending request", True),
        ("GenericError", "HTTP error: x\nDebug source:\nmessage: \"Timed out\"", "Timed out", True),
        ("GenericError", "HTTP error: x\nDebug source: Name or service not known", "HTTP", False),
        ("GenericError", "x\nDebug source: InvalidCertificate(\n Expired", "not verify: E", False),
        ("GenericError", "GET http://h/k?sig=s3cret in 1ms", "h/k?… in", False),
        ("GenericError", "x Debug source: http://169.254.169.254/latest", "no credentials", False),
        ("UnauthenticatedError", "401", "asks for credentials", False),
        ("OfTheFuture", "something", "something", False),
    ],
)  # fmt: skip
def test_errors_of_the_library(name, text, said, is_transient):
    found = cloud.failed(error(name, text))
    assert said in found.message
    assert found.hint
    assert found.is_transient is is_transient
    assert "s3cret" not in found.message


def test_errors_that_tell_more_than_that_it_failed():
    assert isinstance(cloud.failed(FileNotFoundError("x")), NotThereError)
    assert isinstance(cloud.failed(error("PreconditionError", "412")), ReplacedError)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    forget_clients()
    monkeypatch.setitem(sys.modules, "obstore", None)
    done = run("inspect", "gs://models/last.ckpt")
    assert done.exit_code == 2
    assert "pip install 'ckptool[remote]'" in done.stderr


def test_a_profile_of_aws_is_read_by_boto3(clients, monkeypatch, tmp_path):
    pytest.importorskip("boto3")
    (tmp_path / "credentials").write_text(
        f"[mine]\naws_access_key_id = OF_MINE\naws_secret_access_key = {SECRET}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with serving(Site({"/b/last.ckpt": SAMPLE.read_bytes()})) as site:
        monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
        done = run("inspect", "s3://b/last.ckpt")
        assert done.exit_code == 0, done
        assert all("Credential=OF_MINE/" in each.headers["authorization"] for each in site.asked)
        monkeypatch.setenv("AWS_PROFILE", "nobodys")
        forget_clients()
        done = run("inspect", "s3://b/last.ckpt")
    assert done.exit_code == 2
    assert "nobodys" in done.stderr
    monkeypatch.setitem(sys.modules, "boto3", None)
    forget_clients()
    done = run("inspect", "s3://b/last.ckpt")
    assert "pip install boto3" in done.stderr
