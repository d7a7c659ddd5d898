"""Buckets: ``s3://bucket/key``, ``gs://bucket/key`` and ``az://container/key``, by obstore.

obstore wraps the object_store of Rust: a package of 16 MB without dependencies, imported in 20 ms,
that signs requests for all three services, reads ranges by them and lists prefixes. Its clients
read the usual variables of the environment and the services of virtual machines; AWS profiles are
read by boto3 where that is installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from ckptool.sources.remote import file, retries
from ckptool.sources.remote.ahead import CHUNK
from ckptool.sources.remote.base import NotThereError, RemoteObject, ReplacedError, TransferError
from ckptool.sources.remote.connections import OWN_AUTHORITY
from ckptool.sources.remote.credentials import allows_plain_http, s3_endpoint, s3_profile
from ckptool.sources.remote.listings import MAX_ENTRIES, Entry, ListingStore
from ckptool.sources.remote.proxies import LOGIN
from ckptool.sources.remote.retries import repeated
from ckptool.sources.remote.web import TRANSIENT
from ckptool.sources.urls import RemotePath

INSTALL = "pip install 'ckptool[remote]'"
PIECE = 1 << 20  # bytes of an answer that are received at a time

# The error of obstore, by its name, with what it says to the user and what to do.
_REASONS = {
    "FileNotFoundError": ("no such file", "check bucket and key"),  # Python's own
    "PermissionDeniedError": ("the service forbids it", "check that these credentials may read it"),
    "UnauthenticatedError": (
        "the service asks for credentials",
        "see docs/remote.md",
    ),
    "InvalidPathError": ("no valid key", "check its spelling"),
}
_CHECK = (
    "check the bucket's name, the endpoint, the credentials, and for S3 the region (AWS_REGION)"
)
STATUS = re.compile(r"status code: (\d{3})")
CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(\w+)")  # as rustls calls the reason
SYSTEM = re.compile(r'(?:message|error): "([^"]{1,200})"')  # of the operating system
QUERY = re.compile(r"\?\S*")  # of a URL in a message; it may be a signature
_NO_CREDENTIALS = (
    "no credentials were found, in the environment or of a virtual machine",
    "docs/remote.md says from where they come",
)
# A word in the details of an error, with what it means and what to do.
_OF_CONNECTIONS = (
    ("ProxyAuthRequired", "the proxy asks for a login", LOGIN),
    ("TunnelUnsuccessful", "the proxy refuses the connection to the storage service",
     "check HTTPS_PROXY; NO_PROXY names the hosts that are asked directly"),
    # Services that know the credentials of a virtual machine or a container:
    ("http://169.254.169.254/", *_NO_CREDENTIALS),
    ("http://169.254.170.2/", *_NO_CREDENTIALS),
    ("http://metadata.google.internal/", *_NO_CREDENTIALS),
)  # fmt: skip


def obstore() -> Any:
    """Return the library.

    Raises:
        TransferError: it is not installed.
    """
    try:
        import obstore  # noqa: PLC0415 - of the extra [remote]
    except ImportError as error:
        raise TransferError("URLs of buckets need the package obstore", INSTALL) from error
    return obstore


def failed(error: Exception) -> TransferError:
    """Return an error of the library as one of ours.

    The library says by text alone what failed: the status of an answer, or behind "Debug source"
    the errors of the connection. It repeats no request itself, or a certificate that does not
    verify would be met ten times.
    """
    if isinstance(error, TransferError):
        return error
    name = type(error).__name__
    if name == "PreconditionError":
        return ReplacedError()
    if name in _REASONS:
        message, hint = _REASONS[name]
        return (NotThereError if name == "FileNotFoundError" else TransferError)(message, hint)
    said, _, details = str(error).partition("Debug source:")
    said = QUERY.sub("?…", " ".join(said.split()))[:300]
    refused = CERTIFICATE.search(details)
    if refused is not None:
        return TransferError(
            f"the TLS certificate of the storage service does not verify: {refused[1]}",
            OWN_AUTHORITY,
        )
    for word, message, hint in _OF_CONNECTIONS:
        if word in details:
            return TransferError(message, hint)
    status, system = STATUS.search(said), SYSTEM.search(details)
    if status is not None:
        is_transient = int(status[1]) in TRANSIENT
    else:
        is_transient = "HTTP error" in said and "not known" not in details
        said = f"{said}: {system[1]}" if system else said
    return TransferError(f"the storage service failed: {said}", _CHECK, is_transient=is_transient)


def _asked(ask: Callable[[], Any]) -> Any:
    """Return the answer to a request.

    Raises:
        TransferError: there is none.
    """
    try:
        return ask()
    except Exception as error:  # the library's errors have a base that is not public
        raise failed(error) from error


class CloudObject(RemoteObject):
    """An object of a bucket."""

    def __init__(self, client: Any, key: str, *, has_suffixes: bool = True) -> None:
        self._client, self._key = client, key
        self._has_suffixes = has_suffixes  # the service knows ranges from the end
        self.size = 0
        self._etag = self._version = ""
        self._first = b""  # bytes of the beginning, fetched to find out the size

    @property
    def version(self) -> str:
        """The ETag, or the date of the last change."""
        return self._version

    def last(self, nbytes: int) -> bytes:
        """Return the last bytes; where no range from the end is known, fetch the first ones too."""
        if self._has_suffixes:
            try:
                answer = self._answer({"suffix": nbytes})
            except Exception as error:
                if _status(error) not in NO_SUFFIXES:
                    raise failed(error) from error
            else:
                self._remember(answer.meta)
                data = bytearray(min(nbytes, self.size))
                self._receive(answer, memoryview(data), self.size - len(data))
                return bytes(data)
        self._find_size()
        data = bytearray(min(nbytes, self.size))
        at, view = self.size - len(data), memoryview(data)
        while view:
            count = self.get(view, at)
            view, at = view[count:], at + count
        return bytes(data)

    def _find_size(self) -> None:
        """Find out size and version by the first bytes, which are read next anyway."""
        try:
            answer = self._answer((0, file.HEAD))
        except Exception as error:
            if _status(error) != 416:  # an empty object has no range
                raise failed(error) from error
            self._remember(_asked(lambda: obstore().head(self._client, self._key)))
            return
        self._remember(answer.meta)
        first = bytearray(min(file.HEAD, self.size))
        self._receive(answer, memoryview(first), 0)
        self._first = bytes(first)

    def _answer(self, wanted: Any, **options: Any) -> Any:
        return obstore().get(self._client, self._key, options={"range": wanted, **options})

    def _remember(self, meta: Any) -> None:
        self.size = meta["size"]
        self._etag, self._version = meta.get("e_tag") or "", _version(meta)

    def get(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` by one request, or the beginning of it with what was fetched before."""
        if offset < len(self._first):
            kept = self._first[offset : offset + len(buffer)]
            buffer[: len(kept)] = kept
            return len(kept)
        is_strong = self._etag and not self._etag.startswith("W/")
        condition = {"if_match": self._etag} if is_strong else {}
        wanted = (offset, offset + len(buffer))
        answer = _asked(lambda: self._answer(wanted, **condition))
        meta = answer.meta
        if meta["size"] != self.size or _version(meta) != self.version:
            raise ReplacedError
        self._receive(answer, buffer, offset)
        return len(buffer)

    @staticmethod
    def _receive(answer: Any, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with the body of an answer.

        Raises:
            TransferError: it is another range, or the connection broke off.
        """
        at = 0
        try:
            is_wanted = tuple(answer.range) == (offset, offset + len(buffer))
            for piece in answer.stream(min_chunk_size=PIECE) if is_wanted else ():
                part = memoryview(piece)[: len(buffer) - at]
                buffer[at : at + len(part)] = part
                at += len(part)
        except Exception as error:
            raised = failed(error)
            raised.received = at
            raise raised from error
        if at != len(buffer):
            raise TransferError("the service answers with another range", "try again later")

    def close(self) -> None:
        """Do nothing: the client is shared."""


def _version(meta: Any) -> str:
    return str(meta.get("e_tag") or meta.get("last_modified") or "")


NO_SUFFIXES = frozenset({400, 416, 501})  # answers to ranges from the end


def _status(error: Exception) -> int | None:
    """Return the status of the answer that an error of the library is about."""
    found = STATUS.search(str(error))
    return int(found[1]) if found else None


class CloudStore(ListingStore):
    """A storage service."""

    def remote(self, path: RemotePath) -> RemoteObject:
        """Return the object at a path."""
        bucket, key = _parts(path)
        if not key:
            raise TransferError("a bucket, not a file in it", f"{path.scheme}://bucket/key")
        has_suffixes = path.scheme != "az"
        return CloudObject(client_of(path.scheme, bucket), key, has_suffixes=has_suffixes)

    def listed(self, folder: RemotePath) -> Mapping[str, Entry]:
        """Return what lies directly below a prefix."""
        bucket, prefix = _parts(folder)
        client = client_of(folder.scheme, bucket)

        def listing() -> Any:
            return obstore().list_with_delimiter(client, prefix.rstrip("/") or None)

        try:
            found = repeated(lambda: _asked(listing), retries.PATIENCE)
        except NotThereError:
            return {}
        entries = {str(each).rpartition("/")[2]: Entry(None) for each in found["common_prefixes"]}
        for each in found["objects"]:
            name = str(each["path"]).rpartition("/")[2]
            entries[name] = Entry(each["size"], each["last_modified"].timestamp())
        if len(entries) > MAX_ENTRIES:
            raise TransferError(f"a directory of more than {MAX_ENTRIES:,} files", "name a file")
        return dict(sorted(entries.items()))


def _parts(path: RemotePath) -> tuple[str, str]:
    """Return bucket and key.

    Raises:
        TransferError: there is no bucket.
    """
    bucket, _, key = path.url.partition("://")[2].partition("/")
    if not bucket:
        raise TransferError("it names no bucket", f"{path.scheme}://bucket/key")
    return bucket, key


@cache
def client_of(scheme: str, bucket: str) -> Any:
    """Return a client for a bucket.

    Raises:
        TransferError: the library is not installed, or the settings of the environment are wrong.
    """
    obstore()
    from obstore.store import from_url  # noqa: PLC0415 - of the extra [remote]

    more: dict[str, Any] = {}
    if scheme == "s3":
        more = {"endpoint": s3_endpoint()} if s3_endpoint() else {}
        more |= _profile()
    patience = retries.PATIENCE
    # These options are all that hold: none of the environment turns verification off. A request
    # would end after 30 seconds, which are not enough for a chunk where the network is slow.
    options = {
        "allow_http": allows_plain_http(scheme),
        "connect_timeout": timedelta(seconds=patience.connect),
        "read_timeout": timedelta(seconds=patience.silence),
        "timeout": timedelta(seconds=CHUNK / patience.rate),
        "user_agent": "ckptool",
    }
    try:
        return from_url(
            f"{scheme}://{urlsplit(f'//{bucket}').netloc}",
            client_options=options,
            retry_config={"max_retries": 0},
            **more,
        )
    except Exception as error:
        raise failed(error) from error


def _profile() -> dict[str, Any]:
    """Return the credentials of an AWS profile, which boto3 reads."""
    profile = s3_profile()
    if profile is None:
        return {}
    try:
        import boto3  # noqa: PLC0415 - optional
        from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415
    except ImportError as error:
        raise TransferError(
            f"the profile {profile!r:.60} of AWS_PROFILE is read by boto3", "pip install boto3"
        ) from error
    try:
        session = boto3.Session(profile_name=profile)
        return {"credential_provider": Boto3CredentialProvider(session)}
    except Exception as error:  # of botocore: there is no such profile, or its file is damaged
        raise TransferError(
            f"the profile {profile!r:.60} of AWS_PROFILE cannot be used: {error!s:.200}",
            "aws configure list-profiles shows those that there are",
        ) from error
