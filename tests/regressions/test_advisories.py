"""One test a public advisory: what fooled a loader or a scanner does not fool us.

The files are those of ``fixtures/hostile`` whose rows carry the advisory's number; here stands what
is particular about each.
"""

from __future__ import annotations

import json
import struct

import pytest
import torch

from helpers.paths import FIXTURES

MANIFEST = json.loads((FIXTURES / "hostile" / "manifest.json").read_text())


def files_of(advisory: str) -> list[str]:
    names = [row["name"] for row in MANIFEST if row["advisory"] == advisory]
    assert names
    return names


@pytest.fixture
def dangers(ckptool, tmp_path, monkeypatch):
    """The names that inspect calls dangerous in a file of the corpus; nothing may run."""
    monkeypatch.chdir(tmp_path)

    def of(name: str) -> set[str]:
        report = ckptool("inspect", FIXTURES / name, "--json").json
        assert not (tmp_path / "canary").exists()
        return {g["name"] for g in report["pickle"]["globals"] if g["trust"] == "dangerous"}

    return of


def test_cve_2025_32434_pickles_of_tar_members_are_judged_like_any(dangers):
    """``weights_only=True`` was not passed on to the storages and tensors of torch 0.1's tar.

    https://github.com/advisories/GHSA-53q9-r3pm-6pq6
    """
    for member in ("storages", "tensors", "pickle", "sys_info"):
        assert dangers(f"hostile/tar-{member}.pt") == {"os.system"}


def test_cve_2026_24747_a_tensor_never_reaches_beyond_its_storage(ckptool):
    """Storages shorter than they say, and items set on what is no dict, corrupted memory.

    https://github.com/advisories/GHSA-63cw-57p8-fm3p
    """
    for name in files_of("CVE-2026-24747"):
        output = ckptool("inspect", FIXTURES / name, "--json")
        assert (output.exit_code, output.json["error"]["code"]) == (2, "damaged"), name


def test_ghsa_mxhj_88fx_4pcv_a_call_by_obj_is_seen_when_its_result_is_thrown_away(dangers):
    """fickling forgot calls by OBJ, NEWOBJ and NEWOBJ_EX whose result was popped."""
    assert dangers("hostile/obj-pop.pkl") == {"smtplib.SMTP"}
    assert dangers("hostile/obj-pop-system.pkl") == {"os.system"}
    assert dangers("hostile/newobj-ex.pkl") == {"subprocess.Popen"}


def test_ghsa_mhc9_48gj_9gp3_build_behind_a_call_hides_nothing(dangers):
    """fickling took a call for harmless when BUILD came behind it."""
    assert dangers("hostile/reduce-build.pkl") == {"io.BytesIO"}
    assert dangers("hostile/build-setstate-unknown.pkl") == {"collections.UserDict.__setstate__"}


@pytest.mark.parametrize("bit", ["1", "20", "40", "2000"])
def test_ghsa_w8jq_xcqf_f792_flags_of_local_headers_hide_nothing(bit, dangers, ckptool):
    """CVE-2025-1945: picklescan failed on flags that torch does not look at."""
    assert dangers(f"hostile/zip-local-flag-{bit}.pt") == {"os.system"}
    refused = ckptool("inspect", FIXTURES / f"hostile/zip-central-flag-{bit}.pt")
    assert refused.exit_code == 2  # torch refuses those too:
    with pytest.raises(RuntimeError):
        torch.load(FIXTURES / f"hostile/zip-central-flag-{bit}.pt", weights_only=True)


def test_ghsa_7q5r_7gvp_wc82_another_name_in_the_local_header_hides_nothing(dangers, ckptool):
    """CVE-2025-1944: picklescan failed on what ``zipfile`` refuses and torch loads."""
    name = "hostile/zip-local-name.pt"
    assert dangers(name) == {"os.system"}
    findings = ckptool("inspect", FIXTURES / name, "--json").json["findings"]
    (said,) = (f for f in findings if f["rule"] == "CK111")
    assert "datap.kl" in said["message"]


def test_ghsa_mjqp_26hc_grxg_a_wrong_checksum_hides_nothing(dangers, ckptool):
    """CVE-2025-10156: picklescan failed on checksums, which torch never reads."""
    for name in files_of("GHSA-mjqp-26hc-grxg"):
        assert dangers(name) == {"os.system"}
    findings = ckptool("inspect", FIXTURES / "hostile/zip-crc.pt", "--json").json["findings"]
    assert "CK112" in {f["rule"] for f in findings}


def test_ghsa_g38g_8gr9_h9xp_functions_that_nobody_listed_are_dangerous(dangers):
    """CVE-2026-56315: no list of bad names is ever complete; ours is of the good ones."""
    for name in files_of("GHSA-g38g-8gr9-h9xp"):
        assert dangers(name), name


@pytest.mark.parametrize("qualname", ["nobody.heard_of.it", "statistics.mean", "zlib.crc32"])
def test_any_function_is_dangerous_when_it_is_called(qualname, ckptool, tmp_path):
    module, _, name = qualname.rpartition(".")
    (tmp_path / "any.pkl").write_bytes(f"\x80\x04c{module}\n{name}\n)R.".encode("latin-1"))
    report = ckptool("inspect", tmp_path / "any.pkl", "--json").json
    assert [g["trust"] for g in report["pickle"]["globals"]] == ["dangerous"]


OTHERS = sorted({row["advisory"] for row in MANIFEST if row["advisory"]})


@pytest.mark.parametrize("advisory", OTHERS)
def test_every_advisory_of_the_corpus_is_answered(advisory, ckptool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in files_of(advisory):
        output = ckptool("inspect", FIXTURES / name, "--json")
        assert output.exit_code == 2 or {
            f["rule"] for f in output.json["findings"]
        } & {"CK201", "CK111", "CK112"}, name  # fmt: skip


# -------------------------------------------------------------------------- what our fuzzing found


def test_containers_in_circles_do_not_keep_the_locator_busy():
    """Every container held every other: a table had addresses without end."""
    import sys
    import time

    sys.path.insert(0, str(FIXTURES.parent / "tests" / "fuzzing"))
    from targets import TARGETS

    data = (FIXTURES.parent / "tests" / "regressions" / "locator-circles.bin").read_bytes()
    began = time.process_time()
    TARGETS["locator"](data)
    assert time.process_time() - began < 20


# --------------------------------------------------------------------------- arguments and places


def test_a_finding_has_the_name_the_place_and_the_arguments(ckptool, tmp_path):
    body = b"}X\x06\x00\x00\x00config}X\x02\x00\x00\x00lrcos\nsystem\n(X\x02\x00\x00\x00lsK\x07tRss"
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + body + b".")
    (found,) = ckptool("inspect", tmp_path / "a.pkl", "--json").json["findings"]
    assert (found["rule"], found["severity"]) == ("CK201", "error")
    assert found["address"] == "config/lr"
    assert "os.system('ls', 7)" in found["message"]


def test_arguments_of_a_megabyte_are_cut(ckptool, tmp_path):
    text = b"x" * 1_000_000
    call = b"cos\nsystem\n(X" + struct.pack("<I", len(text)) + text + b"]" * 100 + b"tR"
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + call + b".")
    (found,) = ckptool("inspect", tmp_path / "a.pkl", "--json").json["findings"]
    assert len(found["message"]) < 400
