"""What a release needs: a changelog with the version, and metadata with addresses for the index."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import sys

import pytest
import yaml

import ckptool
from helpers.links import links_of
from helpers.output import environment
from helpers.paths import REPOSITORY

RELEASE = REPOSITORY / ".github" / "workflows" / "release.yml"
CHANGELOG = REPOSITORY / "CHANGELOG.md"
ADDRESS = "https://git.example/owner/repository"
VERSION = ckptool.__version__


def step(word: str) -> str:
    """Return the script of the step whose name has a word."""
    steps = yaml.safe_load(RELEASE.read_text())["jobs"]["build"]["steps"]
    (script,) = (each["run"] for each in steps if word in each.get("name", ""))
    return script


# Changelog -> whether it may be released.
CHANGELOGS = {
    f"# Changelog\n\n## {VERSION} - 2026-11-30\n\n- a change\n\n## 0.1.0 - 2026-01-01\n": True,
    f"## Unreleased\n\n- a newer change\n\n## {VERSION} - 2026-11-30\n": False,
    f"## {VERSION}\n": False,
    f"## {VERSION}1 - 2026-11-30\n": False,
    f"## 9.9.9 - 2026-11-30\n\n## {VERSION} - 2026-11-30\n": False,
    "# Changelog\n": False,
}


@pytest.mark.parametrize("text", CHANGELOGS)
def test_only_a_changelog_that_ends_with_the_version_is_released(text, tmp_path):
    (tmp_path / "CHANGELOG.md").write_text(text)
    (tmp_path / "python").symlink_to(sys.executable)
    env = {"GITHUB_REF_NAME": f"v{VERSION}", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = ["bash", "-eo", "pipefail", "-c", step("changelog")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(env), check=False, capture_output=True
    )
    assert (done.returncode == 0) == CHANGELOGS[text], done.stderr


def test_the_newest_version_of_the_changelog_is_that_of_the_package():
    versions = re.findall(r"^## (\d.*) - (.+)$", CHANGELOG.read_text(), re.MULTILINE)
    assert versions[0][0] == VERSION
    dates = [dt.date.fromisoformat(date) for _, date in versions]
    assert dates == sorted(dates, reverse=True)


def metadata(**env: str) -> dict:
    """Return the metadata of the package, as it is built."""
    pytest.importorskip("hatchling")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "metadata"], cwd=REPOSITORY, env=environment(env),
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_the_index_gets_addresses_and_links_that_lead_to_the_repository():
    told = metadata(CKPTOOL_REPOSITORY=ADDRESS)
    assert told["urls"]["Source"] == ADDRESS
    assert told["urls"]["Changelog"] == f"{ADDRESS}/blob/v{VERSION}/CHANGELOG.md"
    links = links_of(told["readme"]["text"])
    ours = [link.removeprefix(f"{ADDRESS}/") for link in links if link.startswith(ADDRESS)]
    assert f"raw/v{VERSION}/docs/images/inspect.svg" in ours
    assert len(ours) == len(links_of((REPOSITORY / "README.md").read_text()))
    for link in ours:
        _, tag, path = link.split("/", 2)
        assert tag == f"v{VERSION}"
        assert (REPOSITORY / path).exists(), path


def test_a_build_elsewhere_claims_no_address():
    told = metadata()
    assert "urls" not in told
    assert told["readme"]["text"] == (REPOSITORY / "README.md").read_text()
