"""Schemes of URLs, and the store of each, made when the first URL is read."""

from __future__ import annotations

from functools import cache

from ckptool.errors import UnreadableError
from ckptool.sources.remote.stores import Store
from ckptool.sources.urls import RemotePath


@cache
def web_store() -> Store:
    """Return the store of ``https://`` and ``http://``."""
    from ckptool.sources.remote.stores import WebStore  # noqa: PLC0415

    return WebStore()


@cache
def hub_store() -> Store:
    """Return the store of ``hf://``."""
    from ckptool.sources.remote.hub import HubStore  # noqa: PLC0415 - http and ssl

    return HubStore()


@cache
def cloud_store() -> Store:
    """Return the store of buckets."""
    from ckptool.sources.remote.cloud import CloudStore  # noqa: PLC0415 - obstore

    return CloudStore()


STORES = {
    "https": web_store, "http": web_store, "hf": hub_store,
    "s3": cloud_store, "gs": cloud_store, "az": cloud_store,
}  # fmt: skip


def store_of(path: RemotePath) -> Store:
    """Return the store of a URL.

    Raises:
        UnreadableError: its scheme is not supported.
    """
    make = STORES.get(path.scheme)
    if make is None:
        raise UnreadableError(
            f"{path.scheme}:// is not supported", path=path, hint="download the file and name it"
        )
    return make()
