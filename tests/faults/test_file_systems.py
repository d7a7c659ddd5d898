"""Other file systems than the one the tests run on: those that share blocks, and a layered one.

Each is made in a file and mounted in a namespace of its own, which takes root and their tools.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch

from helpers.making import average_of, save, weights
from helpers.output import environment
from helpers.tensors import assert_same_tensors, load

# The file system, its image, a mount point, the command; prints what the copy has taken (KiB).
ON = """
set -e
case $1 in
overlay) mkdir -p "$2.upper" "$2.work" "$2.lower"; cp "$4" "$2.lower"
  mount -t overlay -o lowerdir="$2.lower",upperdir="$2.upper",workdir="$2.work" none "$3" ;;
*) truncate -s 512M "$2"; mkfs.$1 -q "$2" >/dev/null 2>&1 || exit 77
  mount -o loop "$2" "$3" || exit 77; cp "$4" "$3" ;;
esac
cd "$3" && shift 4 && sync
before=$(df --output=used -k . | tail -1)
"$@" >&2
sync
echo $(($(df --output=used -k . | tail -1) - before))
cat out.ckpt > "$RESULT"
find . -name ".?*" -name "*partial*"
"""
SHARING = ("xfs", "btrfs")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A checkpoint of 32 MiB, of which half is the average."""
    generator = torch.Generator().manual_seed(1)
    model = weights(large=torch.randn(2048, 2048, generator=generator))
    return save(tmp_path_factory.mktemp("inputs") / "last.ckpt", model, average_of(model)), model


@pytest.fixture
def on(path, tmp_path):
    """Run a command there; gives the file ``out.ckpt`` and how many KiB more are taken."""

    def run(kind, *args):
        if os.geteuid() != 0 or not shutil.which("unshare"):
            pytest.skip("only root can mount a file system")
        if kind in SHARING and not shutil.which(f"mkfs.{kind}"):
            pytest.skip(f"there is no mkfs.{kind}")
        result, mountpoint = tmp_path / "result.ckpt", tmp_path / "mounted"
        mountpoint.mkdir()
        command = [sys.executable, "-m", "ckptool", *args]
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", ON, "sh", kind, tmp_path / "image", mountpoint, path[0],
             *command],
            env=environment({"RESULT": str(result)}), capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        if done.returncode in {32, 77} or "unshare:" in done.stderr:
            pytest.skip(f"{kind} cannot be mounted here")
        assert done.returncode == 0, done
        taken, *litter = done.stdout.split()
        assert not litter
        return result, int(taken)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*SHARING, "overlay"])
def test_promotion_is_as_anywhere(kind, on, path):
    result, taken = on(kind, "promote-ema", "last.ckpt", "-o", "out.ckpt")
    found, source = load(result), load(path[0])
    assert_same_tensors(found["state_dict"], average_of(path[1]))
    assert_same_tensors(found["ema_state_dict"], source["ema_state_dict"])
    if kind in SHARING:  # blocks of what was not promoted are those of the source
        assert taken < 0.75 * path[0].stat().st_size / 1024


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*SHARING, "overlay"])
def test_extraction_is_as_anywhere(kind, on, path):
    result, _ = on(kind, "extract-ema", "last.ckpt", "-o", "out.ckpt")
    assert_same_tensors(load(result), average_of(path[1]))
