"""Proxies: what they are asked, what is sent to whom, and what is said where they refuse."""

from __future__ import annotations

import pytest

from ckptool.errors import UnreadableError
from ckptool.sources.remote import connections
from ckptool.sources.remote.base import TransferError
from ckptool.sources.remote.file import RemoteFile
from ckptool.sources.remote.http import HttpObject
from ckptool.sources.remote.proxies import proxy_for
from ckptool.sources.remote.retries import Patience
from ckptool.sources.remote.web import Web
from ckptool.sources.urls import RemotePath
from helpers import web
from helpers.output import run_inside as run
from helpers.paths import FIXTURES
from helpers.proxy import relaying
from helpers.web import Site, serving

DATA = bytes(range(251)) * 8_000  # 2 MB, more than is fetched at once
QUICK = Patience(silence=2, first_pause=0.001, sleep=lambda _seconds: None)
SAMPLE = FIXTURES / "ema" / "emacallback" / "exported.ckpt"
SECRET = "us%40er:s3cr%20et"
PLAIN = "us@er:s3cr et"  # as it is sent


def opened(url: str) -> RemoteFile:
    return RemoteFile(HttpObject(url, Web(QUICK)), RemotePath(url), QUICK)


@pytest.fixture
def site():
    """A server, with a proxy before it that wants a login."""
    with serving(Site({"/a.pt": DATA})) as running:
        yield running


@pytest.fixture
def behind(site, monkeypatch):
    with relaying(site) as relay:
        monkeypatch.setenv("http_proxy", relay.url)
        yield relay


@pytest.fixture
def secure(certificates, monkeypatch):
    """A server that speaks TLS as elsewhere.example, and its proxy, which wants a login."""
    with (
        serving(Site({"/a.pt": DATA}), certificates.elsewhere) as site,
        relaying(site, PLAIN) as relay,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{SECRET}@127.0.0.1:{relay.port}")
        yield relay


@pytest.fixture
def trusting(certificates, monkeypatch):
    monkeypatch.setattr(connections, "verifying", lambda: certificates.client)


def test_https_goes_through_a_tunnel(secure, trusting):
    with opened("https://elsewhere.example/a.pt") as file:
        assert file.head(1000) == DATA[:1000]
        assert file.read(1_000_000, 1000) == DATA[1_000_000:1_001_000]
    assert secure.asked == ["elsewhere.example:443"]  # one connection for all requests
    assert secure.logins == [PLAIN]
    for each in secure.site.asked:
        assert each.path == "/a.pt"
        assert each.headers["Host"] == "elsewhere.example"
        assert not [name for name in each.headers if name.lower().startswith("proxy")]


def test_the_certificate_is_that_of_the_server(secure):
    with pytest.raises(UnreadableError, match=r"elsewhere\.example does not verify"):
        opened("https://elsewhere.example/a.pt")
    assert len(secure.asked) == 1  # it is not asked again
    assert not secure.site.asked


def test_a_certificate_of_another_host_does_not_verify(secure, trusting):
    with pytest.raises(UnreadableError, match=r"third\.example does not verify"):
        opened("https://third.example/a.pt")
    assert len(secure.asked) == 1
    assert not secure.site.asked


def test_http_sends_the_whole_url(site, monkeypatch):
    with relaying(site, PLAIN) as relay:
        monkeypatch.setenv("http_proxy", f"{SECRET}@127.0.0.1:{relay.port}")
        with opened("http://files.example:8080/a.pt?x=1") as file:
            assert file.head(1000) == DATA[:1000]
    assert set(relay.asked) == {"http://files.example:8080/a.pt?x=1"}
    assert set(relay.logins) == {PLAIN}
    assert {each.headers["Host"] for each in site.asked} == {"files.example:8080"}


def test_a_command_says_the_same(site, behind):
    site.files["/last.ckpt"] = SAMPLE.read_bytes()
    done = run("inspect", "http://files.example/last.ckpt", "--tensors")
    assert done.exit_code == 0, done
    assert run("diff", "http://files.example/last.ckpt", SAMPLE).exit_code == 0
    assert behind.asked


@pytest.mark.parametrize(
    ("status", "said"), [(407, "asks for a login"), (403, "refuses the connection"), (404, "404")]
)
def test_what_a_proxy_refuses_is_said_at_once_without_the_password(secure, trusting, status, said):
    secure.refusals = dict.fromkeys(range(9), status)
    with pytest.raises(UnreadableError, match=said) as error:
        opened("https://elsewhere.example/a.pt")
    assert f"127.0.0.1:{secure.port}" in error.value.message
    assert "_PROXY" in error.value.hint
    assert "s3cr" not in f"{error.value} {error.value.hint}"
    assert len(secure.asked) == 1


def test_the_login_of_a_proxy_for_http_is_asked_for(site, behind):
    behind.login = PLAIN
    with pytest.raises(UnreadableError, match=r"the proxy asks for a login \(407\)"):
        opened("http://files.example/a.pt")


def test_what_passes_is_outlived(secure, trusting):
    secure.refusals = {0: 503, 1: 502}
    with opened("https://elsewhere.example/a.pt") as file:
        assert file.head(10) == DATA[:10]
    assert len(secure.asked) == 3


def test_a_proxy_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://{SECRET}@127.0.0.1:9")
    with pytest.raises(UnreadableError, match=r"through the proxy 127\.0\.0\.1:9") as error:
        opened("https://elsewhere.example/a.pt")
    assert "s3cr" not in str(error.value)
    monkeypatch.setenv("HTTPS_PROXY", f"http://{SECRET}@no-such-proxy.invalid")
    with pytest.raises(UnreadableError, match=r"the proxy no-such-proxy\.invalid is not known"):
        opened("https://elsewhere.example/a.pt")


def test_a_proxy_that_speaks_no_http_is_said(monkeypatch):
    site = Site()
    with relaying(site) as relay:
        monkeypatch.setattr("helpers.proxy.Handler.send_response", lambda self, _code: None)
        monkeypatch.setenv("HTTPS_PROXY", relay.url)
        relay.refusals = dict.fromkeys(range(9), 403)
        with pytest.raises(UnreadableError, match=r"no HTTP|closed"):
            opened("https://elsewhere.example/a.pt")


@pytest.mark.parametrize(
    "to", ["http://10.0.0.1/a.pt", "http://127.0.0.1:9/a.pt", "http://[::ffff:10.0.0.1]/a.pt"]
)
def test_a_redirect_does_not_lead_into_a_private_network(site, behind, to):
    site.every = web.moved(lambda _path: to)
    with pytest.raises(UnreadableError, match="private"):
        opened("http://files.example/a.pt")
    assert behind.asked == ["http://files.example/a.pt"]


def test_a_redirect_to_another_name_goes_through_the_proxy(site, behind):
    site.every = lambda handler, data: (
        web.moved(lambda _path: "http://no-such-host.invalid/a.pt")(handler, data)
        if handler.headers["Host"] == "files.example"
        else False
    )
    with opened("http://files.example/a.pt") as file:
        assert file.head(10) == DATA[:10]
    assert behind.asked[1] == "http://no-such-host.invalid/a.pt"


# ---------------------------------------------------------- the environment


@pytest.mark.parametrize(
    ("entries", "url", "is_direct"),
    [
        ("", "https://a.example", False),
        ("*", "https://a.example", True),
        ("a.example", "https://a.example", True),
        ("A.Example", "https://a.example", True),
        ("example", "https://a.example", True),
        (".example", "https://a.example", True),
        ("*.example", "https://a.example", True),
        ("b.example,a.example", "https://a.example", True),
        ("b.example a.example", "https://a.example", True),
        ("ample", "https://a.example", False),
        ("a.example:443", "https://a.example", True),
        ("a.example:444", "https://a.example", False),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.1.2.3", "https://10.1.2.3", True),
        ("2.3", "https://10.1.2.3", False),
        ("10.1.2.3:443", "https://10.1.2.3", True),
        ("fd00::/8", "https://[fd00::1]", True),
        ("[fd00::1]", "https://[fd00::1]", True),
        ("", "https://localhost", True),
        ("", "https://127.0.0.9", True),
        ("", "https://[::1]", True),
    ],
)
def test_hosts_that_are_asked_directly(monkeypatch, entries, url, is_direct):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", entries)
    site = connections.site_of(url)
    assert (proxy_for(*site) is None) is is_direct


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({"HTTPS_PROXY": "http://p.example:1"}, "p.example:1"),
        ({"https_proxy": "http://p.example:1", "HTTPS_PROXY": "http://q.example:1"}, "p.example:1"),
        ({"https_proxy": "", "HTTPS_PROXY": "http://q.example:1"}, None),
        ({"ALL_PROXY": "p.example:2"}, "p.example:2"),
        ({"all_proxy": "p.example"}, "p.example:80"),
        ({"HTTPS_PROXY": "http://[fd00::2]:3"}, "fd00::2:3"),
        ({"HTTP_PROXY": "http://p.example:1"}, None),
        ({}, None),
    ],
)
def test_the_variables_are_those_of_curl(monkeypatch, variables, proxy):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = proxy_for("https", "a.example", 443)
    assert (found and str(found)) == proxy


def test_a_request_to_a_web_service_names_no_proxy(monkeypatch):
    """A CGI program has the field ``Proxy`` of a request as HTTP_PROXY (httpoxy)."""
    monkeypatch.setenv("HTTP_PROXY", "http://p.example:1")
    assert proxy_for("http", "a.example", 80) is not None
    monkeypatch.setenv("REQUEST_METHOD", "GET")
    assert proxy_for("http", "a.example", 80) is None


@pytest.mark.parametrize("setting", ["socks5://u:s3cret@p.example", "https://u:s3cret@p.example"])
def test_other_proxies_are_refused_by_name(monkeypatch, setting):
    monkeypatch.setenv("ALL_PROXY", setting)
    with pytest.raises(TransferError, match="not supported") as error:
        proxy_for("https", "a.example", 443)
    assert "NO_PROXY=a.example" in str(error.value.hint)
    assert "s3cret" not in f"{error.value} {error.value.hint}"


@pytest.mark.parametrize("setting", ["http://u:s3cret@p.example:x", "http://u:s3/cret@p.example"])
def test_settings_that_are_no_urls_are_not_shown(monkeypatch, setting):
    monkeypatch.setenv("HTTPS_PROXY", setting)
    with pytest.raises(TransferError) as error:
        proxy_for("https", "a.example", 443)
    assert "s3" not in f"{error.value} {error.value.hint}"
