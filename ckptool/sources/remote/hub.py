"""The hub of Hugging Face: ``hf://owner/repo[@revision]/path``, also of data sets and spaces.

A file is at ``ENDPOINT/owner/repo/resolve/REVISION/path``, which redirects to the storage. The API
lists directories: ``ENDPOINT/api/models/owner/repo/tree/REVISION/path``. Before a directory is
listed the revision is replaced by the commit that it names, so that all files are of one commit.
The token goes to the endpoint alone, never to the storage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urljoin

from ckptool.records import NamedTuple
from ckptool.regex import regex
from ckptool.sources.remote import retries
from ckptool.sources.remote.base import NotThereError, RemoteObject, TransferError
from ckptool.sources.remote.credentials import HubAccess, hub_access
from ckptool.sources.remote.http import HttpObject
from ckptool.sources.remote.listings import MAX_ENTRIES, Entry, ListingStore
from ckptool.sources.remote.retries import repeated
from ckptool.sources.remote.web import Web
from ckptool.sources.urls import RemotePath

PLACE = regex(
    r"(?:(?P<kind>models|datasets|spaces)/)?(?P<repo>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)
MAX_DOCUMENT = 8 << 20  # bytes of an answer of the API
NEXT = regex(r'<([^>]*)>\s*;\s*rel="?next"?')
FORM = "hf://owner/repo/file or hf://owner/repo@revision/file"


class Place(NamedTuple):
    """A file or a directory of a repository."""

    kind: str  # models, datasets, spaces
    repo: str  # owner/name
    revision: str
    path: str

    @property
    def file_url(self) -> str:
        """The address of a file, without the endpoint."""
        kind = "" if self.kind == "models" else f"{self.kind}/"
        return f"{kind}{self.repo}/resolve/{quote(self.revision, safe='')}/{quote(self.path)}"

    @property
    def api_url(self) -> str:
        """The address of a repository in the API, without the endpoint."""
        return f"api/{self.kind}/{self.repo}"


def place_of(path: RemotePath) -> Place:
    """Return the place that a URL names.

    Raises:
        TransferError: it names no repository.
    """
    match = PLACE.fullmatch(path.url.partition("://")[2].rstrip("/"))
    if match is None:
        raise TransferError("no address of a repository", FORM)
    return Place(
        match["kind"] or "models", match["repo"], match["revision"] or "main", match["path"] or ""
    )


class HubStore(ListingStore):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self._commits: dict[tuple[str, str, str], str] = {}

    def remote(self, path: RemotePath) -> RemoteObject:
        """Return the object at a path."""
        place = place_of(path)
        if not place.path:
            raise TransferError("a repository, not a file of it", FORM)
        access = hub_access()
        commit = self._commits.get((place.kind, place.repo, place.revision))
        url = f"{access.endpoint}/{place._replace(revision=commit or place.revision).file_url}"
        return HttpObject(url, Web(retries.PATIENCE), lambda _url: _fields(access))

    def listed(self, folder: RemotePath) -> Mapping[str, Entry]:
        """Return what lies directly in a directory."""
        place, api = place_of(folder), _Api(hub_access())
        found: dict[str, Entry] = {}
        try:
            commit = self._commit(place, api)
            tree = f"{api.endpoint}/{place.api_url}/tree/{quote(commit, safe='')}"
            url = f"{tree}/{quote(place.path)}".rstrip("/")
            while url:
                rows, url = api.document(url)
                for row in rows if isinstance(rows, list) else ():
                    name = str(row["path"]).rpartition("/")[2]
                    is_file = row["type"] == "file"
                    found[name] = Entry(int(row["size"]) if is_file else None)
                if len(found) > MAX_ENTRIES:
                    raise TransferError(f"a directory of more than {MAX_ENTRIES:,} files", FORM)
        except NotThereError:
            return {}
        except (LookupError, TypeError, ValueError) as error:
            raise TransferError("the hub's listing is of another form", "name a file") from error
        finally:
            api.close()
        return dict(sorted(found.items()))

    def _commit(self, place: Place, api: _Api) -> str:
        """Return the commit that the revision names now."""
        key = (place.kind, place.repo, place.revision)
        if key not in self._commits:
            url = f"{api.endpoint}/{place.api_url}/revision/{quote(place.revision, safe='')}"
            self._commits[key] = str(api.document(url)[0]["sha"])
        return self._commits[key]


class _Api:
    """Requests to the hub's API."""

    def __init__(self, access: HubAccess) -> None:
        self.endpoint, self._access = access.endpoint, access
        self._web = Web(retries.PATIENCE)

    def document(self, url: str) -> tuple[Any, str]:
        """Return an answer of the API, and the address of its next page; empty: there is none."""
        return repeated(lambda: self._asked(url), retries.PATIENCE)

    def _asked(self, url: str) -> tuple[Any, str]:
        answer = self._web.ask(url, {"User-Agent": "ckptool"}, _fields(self._access))
        text = self._web.text(answer, MAX_DOCUMENT)
        more = NEXT.search(answer.response.headers.get("Link", ""))
        following = urljoin(url, more[1]) if more else ""
        if following and not following.startswith(f"{self.endpoint}/"):
            raise TransferError("the hub's listing goes on elsewhere", "name a file")
        return json.loads(text), following

    def close(self) -> None:
        """Close the connections."""
        self._web.close()


def _fields(access: HubAccess) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {access.token}"} if access.token else {}
