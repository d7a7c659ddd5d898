"""The published forms that our documents are held against.

Schemas of other publishers are not ours to keep in this repository: they stand in
``shared/schemas`` beside it, and tests against them are skipped where they are not. Ours are in
``tests/schemas``.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import xmlschema

from paths import REPOSITORY

OURS = REPOSITORY / "tests" / "schemas"


@cache
def _found(name: str) -> Path | None:
    """``shared/schemas`` beside the repository or further up."""
    places = (parent / "shared" / "schemas" / name for parent in REPOSITORY.parents)
    return next((place for place in places if place.is_file()), None)


def _theirs(name: str) -> Path:
    path = _found(name)
    if path is None:
        pytest.skip(f"shared/schemas/{name} is not beside this repository")
    return path


@cache
def _validator(path: Path) -> Any:
    schema = json.loads(path.read_text())
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


def assert_sarif(document: Any) -> None:
    """As OASIS publishes it: https://github.com/oasis-tcs/sarif-spec."""
    _validator(_theirs("sarif-schema-2.1.0.json")).validate(document)


@cache
def _junit(path: Path) -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(path)


def assert_junit(text: str) -> None:
    """As Jenkins takes it: ``junit-10.xsd`` of https://github.com/jenkinsci/xunit-plugin."""
    _junit(_theirs("junit-10.xsd")).validate(text)


def assert_ours(document: Any) -> None:
    """As ``tests/schemas`` says, by the document's own ``schema``."""
    name = document["schema"].replace("/", "-")
    _validator(OURS / f"{name}.json").validate(document)
