# /// script
# requires-python = ">=3.11"
# dependencies = ["ckptool"]
# ///
"""What scanners of pickles say of ``fixtures/hostile``: detections, and false alarms.

    python benchmarks/scanners.py --picklescan VENV --modelscan VENV --fickling VENV

Each scanner stands in an environment of its own, made by hand (``python -m venv VENV``, then
``VENV/bin/pip install`` of ``picklescan==1.0.5``, ``modelscan==0.8.8``, or ``fickling==0.1.12
typing_extensions``), and is asked file by file through its command line, as a user would. What
counts:

* a **detection**: the scanner says that the file is unsafe. A crash, or a file that it skips, is
  none; they are counted as failed;
* a **false alarm**: it says so of an honest file.

Hostile are the files that our manifest calls flagged or refused and whose payload or name is
dangerous; files that only lie about sizes (``malformed/``) are no business of scanners.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"

UNSAFE, CLEAN, FAILED = "unsafe", "clean", "failed"
Verdict = Callable[[Path, subprocess.CompletedProcess[str]], str]


class Scanner(NamedTuple):
    """A program that judges a file."""

    name: str
    command: tuple[str, ...]
    verdict: Verdict


def by_picklescan(_path: Path, done: subprocess.CompletedProcess[str]) -> str:
    """1: dangerous globals. 2: an error, unless it says what it found before."""
    if done.returncode == 1:
        return UNSAFE
    is_scanned = "Scanned files: 0" not in done.stdout
    return CLEAN if done.returncode == 0 and is_scanned else FAILED


def by_modelscan(_path: Path, done: subprocess.CompletedProcess[str]) -> str:
    """1: issues. 2: an error. 3: nothing that it knows how to scan."""
    return {0: CLEAN, 1: UNSAFE}.get(done.returncode, FAILED)


def by_fickling(_path: Path, done: subprocess.CompletedProcess[str]) -> str:
    """1: unsafe, or an error with a traceback."""
    if "Traceback" in done.stderr or done.returncode not in {0, 1}:
        return FAILED
    return UNSAFE if done.returncode == 1 else CLEAN


def by_ckptool(_path: Path, done: subprocess.CompletedProcess[str]) -> str:
    """A finding of CK1 or CK2; a refusal is a verdict too: nothing will be built on that file."""
    document = json.loads(done.stdout)
    if "error" in document:
        return UNSAFE
    rules = {finding["rule"] for finding in document["findings"]}
    return UNSAFE if any(rule.startswith(("CK1", "CK2")) for rule in rules) else CLEAN


def scanners(options: argparse.Namespace) -> list[Scanner]:
    """Ours, and those whose environments are named."""
    found = [Scanner("ckptool", (sys.executable, "-m", "ckptool", "inspect", "--json"), by_ckptool)]
    if options.picklescan:
        command = (f"{options.picklescan}/bin/picklescan", "-p")
        found.append(Scanner("picklescan", command, by_picklescan))
    if options.modelscan:
        command = (f"{options.modelscan}/bin/modelscan", "-p")
        found.append(Scanner("modelscan", command, by_modelscan))
    if options.fickling:
        command = (f"{options.fickling}/bin/fickling", "--check-safety", "--print-results")
        found.append(Scanner("fickling", command, by_fickling))
    return found


def judge(scanner: Scanner, path: Path, folder: Path) -> str:
    """One verdict; the working directory is one that nobody misses."""
    command = [*scanner.command, str(path)]
    environment = {"PYTHONPATH": str(ROOT)} if scanner.name == "ckptool" else {}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment | {"PATH": "/usr/bin:/bin", "HOME": str(folder)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return FAILED
    return scanner.verdict(path, done)


def main() -> None:
    """Ask each scanner about each file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("picklescan", "modelscan", "fickling"):
        parser.add_argument(f"--{name}", type=Path, help="its environment")
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="where they run")
    parser.add_argument("--live", action="store_true", help="only payloads that Python runs")
    options = parser.parse_args()
    rows = json.loads((FIXTURES / "hostile" / "manifest.json").read_text())
    hostile = [r for r in rows if r["name"].count("/") == 1 and r["name"].startswith("hostile/")]
    hostile = [r for r in hostile if r["live"] or not options.live]
    benign = [r for r in rows if r["family"] == "benign"]
    print(f"{len(hostile)} hostile files, {len(benign)} honest ones\n")
    print(f"{'':12} {'detected':>9} {'missed':>7} {'failed':>7} {'false alarms':>13} {'failed':>7}")
    for scanner in scanners(options):
        says = [
            Counter(judge(scanner, FIXTURES / row["name"], options.folder) for row in part)
            for part in (hostile, benign)
        ]
        print(
            f"{scanner.name:12} {says[0][UNSAFE]:9} {says[0][CLEAN]:7} {says[0][FAILED]:7} "
            f"{says[1][UNSAFE]:13} {says[1][FAILED]:7}",
            flush=True,
        )


if __name__ == "__main__":
    main()
