"""Certificates for servers on the loopback, made anew for each run."""

from __future__ import annotations

import ssl
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def certificates() -> SimpleNamespace:
    """Settings of TLS: a server called localhost, and a client that trusts its authority."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return SimpleNamespace(server=server, client=client, authority=authority)
