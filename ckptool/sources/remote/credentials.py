"""Credentials and endpoints from the environment, where each ecosystem keeps them.

This is the only module besides the command line that reads the environment: a token is no option of
a command, and functions of the library need it too. A token is read for the request that sends it,
kept nowhere, and never shown.
"""

from __future__ import annotations

import os
from pathlib import Path

from ckptool.records import NamedTuple

HUB = "https://huggingface.co"
MAX_TOKEN = 1 << 12  # bytes


class HubAccess(NamedTuple):
    """The hub's address, and the user's token; empty: there is none."""

    endpoint: str
    token: str


def hub_access() -> HubAccess:
    """Return what Hugging Face's own library uses: ``HF_ENDPOINT``, ``HF_TOKEN``, its file."""
    named = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    token = named or _read(_token_file())
    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    return HubAccess(endpoint.rstrip("/"), "".join(token.split()))


def _token_file() -> Path:
    path = os.environ.get("HF_TOKEN_PATH")
    if path:
        return Path(path).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "token"
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache) / "huggingface" / "token"


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_TOKEN)
    except (OSError, ValueError):
        return ""


def proxy_setting(scheme: str) -> str:
    """Return the proxy that the environment names for ``http`` or ``https``; empty: none.

    In a CGI program ``HTTP_PROXY`` is a field of a stranger's request.
    """
    names = [f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY"]
    if "REQUEST_METHOD" in os.environ:
        names.remove(f"{scheme.upper()}_PROXY")
    return next((os.environ[name].strip() for name in names if name in os.environ), "")


def hosts_without_proxy() -> list[str]:
    """Return the hosts and domains that ``NO_PROXY`` names, in lower case."""
    text = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    return text.lower().replace(",", " ").split()


# For the scheme of a URL, variables that name the endpoint of its service, and one that allows
# plain HTTP.
_ENDPOINTS = {
    "s3": (("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"), "AWS_ALLOW_HTTP"),
    "gs": (("GOOGLE_BASE_URL",), "GOOGLE_ALLOW_HTTP"),
    "az": (("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"), "AZURE_ALLOW_HTTP"),
}


def allows_plain_http(scheme: str) -> bool:
    """Return whether the environment names an endpoint that is not on TLS."""
    names, allowing = _ENDPOINTS[scheme]
    endpoint = next((os.environ[name] for name in names if os.environ.get(name)), "")
    is_emulator = scheme == "az" and _is_true("AZURE_STORAGE_USE_EMULATOR")
    return endpoint.startswith("http://") or is_emulator or _is_true(allowing)


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").lower() in {"1", "true", "on", "yes", "y"}


def s3_endpoint() -> str | None:
    """Return the endpoint of S3 that the environment names for S3 alone."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or None


def s3_profile() -> str | None:
    """Return the profile of AWS that the environment names; None: keys stand in it, or nothing."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return None
    return os.environ.get("AWS_PROFILE") or None
