"""Files on a web server: the answers to be had, and what is said where a server misbehaves."""

from __future__ import annotations

import pytest

from ckptool.errors import UnreadableError
from ckptool.sources.remote import connections
from ckptool.sources.remote.ahead import CHUNK, FAR
from ckptool.sources.remote.base import TransferError
from ckptool.sources.remote.file import HEAD, TAIL, RemoteFile
from ckptool.sources.remote.http import HttpObject
from ckptool.sources.remote.retries import Patience
from ckptool.sources.remote.web import MAX_REDIRECTS, Web
from ckptool.sources.urls import RemotePath
from helpers import web
from helpers.web import Site, serving

DATA = bytes(range(251)) * 50_000  # 12 MB, of which no two places look alike
QUICK = Patience(silence=0.3, first_pause=0.001, sleep=lambda _seconds: None)


@pytest.fixture
def site():
    with serving(Site({"/a b.pt": DATA, "/small.pt": DATA[:1000], "/empty.pt": b""})) as running:
        yield running


def opened(site: Site, path: str = "/a b.pt", patience: Patience = QUICK) -> RemoteFile:
    url = site.url + path.replace(" ", "%20")
    return RemoteFile(HttpObject(url, Web(patience)), RemotePath(url), patience)


@pytest.fixture(autouse=True)
def path_with_a_space(monkeypatch):
    """The server's files are called as they are, not as URLs write them."""
    plain = web.Handler.do_GET

    def do_get(self) -> None:
        self.path = self.path.replace("%20", " ")
        plain(self)

    monkeypatch.setattr(web.Handler, "do_GET", do_get)


def test_two_requests_fetch_both_ends(site):
    with opened(site) as file:
        assert file.size == len(DATA)
        assert file.head(1000) == DATA[:1000]
        assert file.read(file.size - 1000, 1000) == DATA[-1000:]
    assert [each.range for each in site.asked] == [(len(DATA) - TAIL, len(DATA)), (0, HEAD)]


def test_a_short_file_is_one_request(site):
    with opened(site, "/small.pt") as file:
        assert file.read(0, file.size) == DATA[:1000]
    assert len(site.asked) == 1


def test_an_empty_file_is_empty(site):
    with opened(site, "/empty.pt") as file:
        assert file.size == 0


def test_what_was_read_is_kept(site):
    with opened(site) as file:
        for _ in range(5):
            assert file.read(5_000_000, 1000) == DATA[5_000_000:5_001_000]
    assert len(site.asked) == 2


def test_one_connection_serves_one_reader(site):
    with opened(site) as file:
        for at in range(0, len(DATA) - TAIL, 1 << 20):
            file.read(at, 1)
        pool = file._remote._web.pool
        assert [len(idle) for idle in pool._idle.values()] == [1]


def test_the_version_is_stated_in_every_request(site):
    with opened(site) as file:
        file.head(10)
    first, second = site.asked
    assert "If-Match" not in first.headers
    assert second.headers["If-Match"].strip('"')
    assert all(each.headers["Accept-Encoding"] == "identity" for each in site.asked)


# ---------------------------------------------------------- misbehaviour


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(
    "fault",
    [
        web.reset,
        web.short,
        web.status(500),
        web.status(503),
        web.status(429, Retry_After="1"),
        web.drip,
    ],
    ids=["reset", "short", "500", "503", "429", "drip"],
)
def test_what_passes_is_outlived(site, number, fault):
    site.faults[number] = fault
    with opened(site) as file:
        assert file.head(1000) == DATA[:1000]
        assert file.read(6_000_000, 1000) == DATA[6_000_000:6_001_000]
    assert len(site.asked) >= 4


def test_a_transfer_goes_on_where_it_broke_off(site):
    site.faults[2] = web.short
    with opened(site) as file:
        file.head(1)
        assert file.read(4_000_000, 2_000_000) == DATA[4_000_000:6_000_000]
    broken, resumed = site.asked[2:]
    assert resumed.range == (4_000_000 + broken.sent, 6_000_000)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (web.wrong_range, "another range"),
        (web.longer, "another range"),
        (web.packed, "compressed"),
        (web.no_ranges, "whole file|no ranges"),
        (web.page, "web page|whole file"),
        (web.status(401), "login"),
        (web.status(403), "forbids"),
        (web.status(404), "no such file"),
        (web.status(418), "418"),
        (web.status(429, Retry_After="3600"), "asks to wait 3600 seconds"),
        (web.reset, "connection"),
        (web.status(500), "500"),
    ],
)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_does_not_pass_is_said(site, number, fault, said):
    """From the given request on, every answer is of the kind."""
    site.faults = dict.fromkeys(range(number, 40), fault)

    def read() -> None:
        with opened(site) as file:
            file.head(1000)
            file.read(6_000_000, 1000)

    with pytest.raises(UnreadableError, match=said) as error:
        read()
    assert error.value.hint
    assert "127.0.0.1" in str(error.value.path)


@pytest.mark.parametrize("has_etags", [True, False])
def test_another_version_is_never_mixed_in(site, has_etags):
    site.has_etags = has_etags
    other = bytes(reversed(DATA)) + (b"" if has_etags else b"more")
    with opened(site) as file:
        assert file.head(1000) == DATA[:1000]
        site.files["/a b.pt"] = other
        with pytest.raises(UnreadableError, match="replaced"):
            file.read(6_000_000, 1000)


def test_a_version_that_only_the_answer_tells_is_noticed(site):
    """Not every server knows ``If-Match``."""

    def deaf(handler, data):
        del handler.headers["If-Match"]
        return False

    site.every = deaf
    with opened(site) as file:
        file.head(1)
        site.files["/a b.pt"] = bytes(reversed(DATA))
        with pytest.raises(UnreadableError, match="replaced"):
            file.read(6_000_000, 1000)


def test_an_answer_that_no_longer_states_the_version_is_of_another(site):
    with opened(site) as file:
        file.head(1)
        site.has_etags = False
        site.files["/a b.pt"] = bytes(reversed(DATA))
        with pytest.raises(UnreadableError, match="replaced"):
            file.read(6_000_000, 1000)


def in_chunks(more: bytes = b"") -> web.Fault:
    """Answer with a chunked body, which has no length, and may go on behind the range."""

    def answer(handler, data):
        start, stop = handler.wanted(len(data))
        body = data[start:stop] + more
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        return True

    return answer


def test_chunked_answers_are_read(site):
    site.every = in_chunks()
    with opened(site) as file:
        assert file.head(1000) == DATA[:1000]
        assert file.read(6_000_000, 1000) == DATA[6_000_000:6_001_000]


def test_a_chunked_answer_that_goes_on_is_refused_unread(site):
    site.every = in_chunks(bytes(64 << 20))
    with pytest.raises(UnreadableError, match="more bytes than it announced"):
        opened(site)


@pytest.mark.parametrize(
    "fields",
    [
        {"status": 206, "Content-Range": f"bytes 0-{'9' * 5000}/1"},
        {"status": 416, "Content-Range": f"bytes */{'9' * 5000}"},
        {"status": 503, "Retry-After": "Mon, 01 Jan 2030 00:00:00 +99999999999999"},
    ],
    ids=["range", "size", "wait"],
)
def test_numbers_of_any_length_are_no_bug(site, fields):
    status = fields.pop("status")

    def answer(handler, _data):
        handler.answer(status, b"", **fields)
        return True

    site.every = answer
    with pytest.raises(UnreadableError):
        opened(site)


def test_urls_that_differ_in_the_query_alone_are_two(site):
    site.has_etags = False
    with opened(site, "/small.pt?id=a") as one, opened(site, "/small.pt?id=b") as other:
        assert one.identity != other.identity
    site.has_etags = True
    with opened(site, "/small.pt?id=a") as one, opened(site, "/small.pt?id=a") as other:
        assert one.identity == other.identity


def test_a_fault_of_ours_in_a_thread_reaches_the_reader(site):
    with opened(site) as file:
        file._ahead._fetch = lambda _buffer, _offset: {}[0]
        file.expect([(1_000_000, 9_000_000), (11_000_000, 500_000)])
        with pytest.raises(KeyError):
            file.read(1_000_000, 10)


def test_announcements_are_bounded(site):
    """A server may claim any size, and a file any number of bytes."""
    with opened(site) as file:
        file._ahead._fetch = lambda _buffer, _offset: None
        file.expect([(0, 1 << 62), (1 << 62, 1 << 62)])
        assert len(file._ahead._chunks) <= FAR // CHUNK


def test_a_file_that_became_shorter_is_another(site):
    with opened(site) as file:
        file.head(1)
        site.files["/a b.pt"] = DATA[:1000]
        with pytest.raises(UnreadableError, match=r"replaced|shorter"):
            file.read(6_000_000, 1000)


def test_a_server_without_ranges_from_the_end_is_asked_twice(site):
    def only_from_the_start(handler, data):
        if handler.headers["Range"].startswith("bytes=-"):
            handler.answer(416, b"")
            return True
        return False

    site.every = only_from_the_start
    with opened(site) as file:
        assert file.read(file.size - 100, 100) == DATA[-100:]
        assert file.head(100) == DATA[:100]


def test_a_short_file_is_read_from_a_server_without_ranges(site):
    site.every = web.no_ranges
    with opened(site, "/small.pt") as file:
        assert file.read(0, 1000) == DATA[:1000]


# ---------------------------------------------------------- redirects


def test_a_redirect_is_followed_once(site):
    site.every = lambda handler, data: (
        web.moved(lambda _path: "/small.pt")(handler, data) if handler.path == "/old.pt" else False
    )
    with opened(site, "/old.pt") as file:
        assert file.head(10) == DATA[:10]


def test_redirects_end(site):
    site.every = web.moved(lambda path: path + "x")
    with pytest.raises(UnreadableError, match="redirects"):
        opened(site)
    assert len(site.asked) == MAX_REDIRECTS + 1


def test_a_place_that_expired_is_asked_for_anew(site):
    """Signed URLs of storage services live for minutes."""
    signed = {"/signed1": True, "/signed2": True}

    def serve(handler, _data):
        if handler.path == "/a b.pt":
            to = next(path for path, is_valid in signed.items() if is_valid)
            return web.moved(lambda _path: to)(handler, b"")
        if not signed[handler.path]:
            return web.status(403)(handler, b"")
        handler.answer_range(DATA)
        return True

    site.every = serve
    with opened(site) as file:
        file.head(1)
        signed["/signed1"] = False
        assert file.read(6_000_000, 10) == DATA[6_000_000:6_000_010]


@pytest.mark.parametrize("to", ["ftp://elsewhere/a.pt", "file:///etc/passwd", "", "http://[::bad/"])
def test_a_redirect_out_of_the_web_is_refused(site, to):
    site.every = web.moved(lambda _path: to)
    with pytest.raises(UnreadableError, match=r"redirects to|valid URL"):
        opened(site)


def test_credentials_stay_with_the_server_that_they_are_for(site):
    with serving(Site({"/a b.pt": DATA})) as other:
        site.every = web.moved(lambda path: other.url + path)
        url = site.url.replace("http://", "http://me:s3cret@") + "/a%20b.pt?sig=s3cret"
        with RemoteFile(HttpObject(url, Web(QUICK)), RemotePath(url), QUICK) as file:
            assert file.head(10) == DATA[:10]
            assert "s3cret" not in repr(file) + str(file.path) + file.name
        assert site.asked[0].headers["Authorization"].startswith("Basic ")
        assert other.asked
        assert not any("Authorization" in each.headers for each in other.asked)


def test_a_public_server_does_not_lead_into_a_private_network(site, monkeypatch):
    """The address of the first server counts as public here; that of the second is private."""
    seen = []

    def is_private(address: str) -> bool:
        seen.append(address)
        return len(seen) > 1

    monkeypatch.setattr(connections, "is_private", is_private)
    with serving(Site({"/a b.pt": DATA})) as other:
        site.every = web.moved(lambda path: other.url + path)
        with pytest.raises(UnreadableError, match="private"):
            opened(site)
        assert not other.asked


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("127.0.0.1", True), ("10.1.2.3", True), ("192.168.0.9", True), ("169.254.169.254", True),
        ("::1", True), ("fe80::1%eth0", True), ("::ffff:10.0.0.1", True), ("0.0.0.0", True),
        ("64:ff9b::a00:1", True), ("2002:a00:1::", True), ("::10.0.0.1", True), ("::", True),
        ("64:ff9b::808:808", False), ("100.64.0.1", True), ("8.8.8.8", False),
        ("2606:4700:4700::1111", False),
    ],
)  # fmt: skip
def test_private_addresses(address, private):
    assert connections.is_private(address) is private


# ---------------------------------------------------------- TLS


def test_tls_is_verified(certificates, monkeypatch):
    with serving(Site({"/a b.pt": DATA}), certificates.server) as site:
        with pytest.raises(UnreadableError, match="certificate") as error:
            opened(site)
        assert "SSL_CERT_FILE" in error.value.hint
        assert not site.asked
        monkeypatch.setattr(connections, "verifying", lambda: certificates.client)
        with opened(site) as file:
            assert file.head(10) == DATA[:10]


def test_no_setting_turns_the_verification_off():
    context = connections.verifying()
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"


def test_an_unknown_host_is_said():
    with pytest.raises(UnreadableError, match="not known") as error:
        opened(Site(url="http://no-such-host.invalid"))
    assert "curl" in error.value.hint


@pytest.mark.parametrize("url", ["https://a b/c.pt", "https:///c.pt", "https://a\x7f/c.pt"])
def test_a_host_has_no_spaces_and_no_controls(url):
    with pytest.raises(TransferError, match="names no host"):
        connections.site_of(url)


def test_a_host_with_other_letters_is_asked_for_in_ascii():
    assert connections.site_of("https://bücher.example/a.pt").host == "xn--bcher-kva.example"
