"""Buckets: ``s3://bucket/key``, ``gs://bucket/key`` and ``az://container/key``, by obstore.

obstore wraps the object_store of Rust: a package of 16 MB without dependencies, imported in 20 ms,
that signs requests for all three services, reads ranges by them and lists prefixes. Its clients
read the usual variables of the environment and the services of virtual machines; AWS profiles are
read by boto3 where that is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from ckptool.sources.remote.base import NotThereError, RemoteObject, ReplacedError, TransferError
from ckptool.sources.remote.credentials import allows_plain_http, s3_endpoint, s3_profile
from ckptool.sources.remote.listings import MAX_ENTRIES, Entry, ListingStore
from ckptool.sources.urls import RemotePath

INSTALL = "pip install 'ckptool[remote]'"
PAGE = 1000  # entries of a listing that are asked for at a time

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
    """Return an error of the library as one of ours."""
    name = type(error).__name__
    if name == "PreconditionError":
        return ReplacedError()
    if name in _REASONS:
        message, hint = _REASONS[name]
        return (NotThereError if name == "FileNotFoundError" else TransferError)(message, hint)
    said = " ".join(str(error).split("Debug source:")[0].split())[:300]
    hint = (
        "check the bucket's name, the endpoint, the credentials, and for S3 the region (AWS_REGION)"
    )
    return TransferError(f"the storage service failed: {said}", hint)  # obstore tried again


class CloudObject(RemoteObject):
    """An object of a bucket."""

    def __init__(self, client: Any, key: str) -> None:
        self._client, self._key = client, key
        self.size = 0
        self._etag, self._version = "", ""

    @property
    def version(self) -> str:
        """The ETag."""
        return self._etag or self._version

    def last(self, nbytes: int) -> bytes:
        """Return the last bytes; where no range from the end is known, find out the size first.

        Azure knows none, and an empty object has none.
        """
        try:
            answer = obstore().get(self._client, self._key, options={"range": {"suffix": nbytes}})
            self._remember(answer.meta)
            return bytes(answer.bytes())
        except Exception as error:  # the library's errors have a base that is not public
            if type(error).__name__ in _REASONS:
                raise failed(error) from error
        try:
            self._remember(obstore().head(self._client, self._key))
        except Exception as error:
            raise failed(error) from error
        data = bytearray(min(nbytes, self.size))
        if data:
            self.get(memoryview(data), self.size - len(data))
        return bytes(data)

    def _remember(self, meta: Any) -> None:
        self.size = meta["size"]
        self._etag = meta.get("e_tag") or ""
        self._version = str(meta.get("last_modified") or "")

    def get(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` by one request."""
        options: dict[str, Any] = {"range": (offset, offset + len(buffer))}
        if self._etag and not self._etag.startswith("W/"):
            options["if_match"] = self._etag
        try:
            answer = obstore().get(self._client, self._key, options=options)
            meta, data = answer.meta, bytes(answer.bytes())
        except Exception as error:
            raise failed(error) from error
        if meta["size"] != self.size or (meta.get("e_tag") or "") != self._etag:
            raise ReplacedError
        if len(data) != len(buffer):
            raise TransferError("the service answers with another range", "try again later")
        buffer[:] = data
        return len(data)

    def close(self) -> None:
        """Do nothing: the client is shared."""


class CloudStore(ListingStore):
    """A storage service."""

    def remote(self, path: RemotePath) -> RemoteObject:
        """Return the object at a path."""
        bucket, key = _parts(path)
        if not key:
            raise TransferError("a bucket, not a file in it", f"{path.scheme}://bucket/key")
        return CloudObject(client_of(path.scheme, bucket), key)

    def listed(self, folder: RemotePath) -> Mapping[str, Entry]:
        """Return what lies directly below a prefix."""
        bucket, prefix = _parts(folder)
        client = client_of(folder.scheme, bucket)
        try:
            found = obstore().list_with_delimiter(client, prefix.rstrip("/") or None)
        except Exception as error:
            raised = failed(error)
            if isinstance(raised, NotThereError):
                return {}
            raise raised from error
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
        more |= {"client_options": {"allow_http": True}} if allows_plain_http() else {}
        more |= _profile()
    try:
        return from_url(f"{scheme}://{urlsplit(f'//{bucket}').netloc}", **more)
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
    return {"credential_provider": Boto3CredentialProvider(boto3.Session(profile_name=profile))}
