"""The published forms are those that were published, and refuse what they should."""

from __future__ import annotations

import jsonschema
import pytest
import xmlschema

from helpers import published


def test_sarif_is_held_against_the_schema_of_oasis():
    whole = {"version": "2.1.0", "runs": []}
    published.assert_sarif(whole)
    with pytest.raises(jsonschema.ValidationError, match="'runs' is a required property"):
        published.assert_sarif({"version": "2.1.0"})


@pytest.mark.slow
def test_junit_is_held_against_the_schema_of_jenkins():
    suite = '<testsuite name="a" tests="0" errors="0" failures="{}"/>'
    published.assert_junit(suite.format(0))
    with pytest.raises(xmlschema.XMLSchemaValidationError, match="missing required attribute"):
        published.assert_junit(suite.replace('failures="{}"', ""))


def test_a_schema_that_a_package_has_changed_is_not_taken():
    with pytest.raises(AssertionError, match="another schema"):
        published._as_published(b"{}", published.SARIF)


def test_without_network_tests_are_skipped_but_never_in_ci(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="cannot be fetched"):
        published._source_of_pytest(str(tmp_path))
    monkeypatch.setenv("CI", "true")
    with pytest.raises(AssertionError):
        published._source_of_pytest(str(tmp_path))
