"""Checkpoints behind URLs: requests, bytes and rate, against curl of the same bytes.

The server runs in a process of its own on the loopback and waits 50 ms before each answer, as far
servers do. It serves the file from the page cache. The rate counts the whole command, the start of
Python and the output on the disk included, and so does that of curl.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

LATENCY = 0.05  # seconds
TENSORS = 48
ROWS = 4096
AT_LEAST = 0.8  # of the rate of curl
MOST_BYTES = 1.02  # of those of the tensors


def make(path: Path, size: int) -> None:
    """Write a checkpoint with a model, its EMA and a moment of Adam, each of ``size`` bytes."""
    import torch

    columns = size // (4 * ROWS * TENSORS)
    model = {f"layers.{n}.weight": torch.randn(ROWS, columns) for n in range(TENSORS)}
    ema = {name: value * 1.001 for name, value in model.items()}
    moments = {n: {"exp_avg": value * 0.1} for n, value in enumerate(model.values())}
    torch.save({"state_dict": model, "ema_state_dict": ema, "optimizer": {"state": moments}}, path)


def serve(path: str, told) -> None:
    """Serve a file, and answer each message with requests and bytes so far."""
    from helpers.web import Site, serving

    with Path(path).open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        site = Site({"/last.ckpt": data}, latency=LATENCY)
        site._digests[id(data)] = data, "benchmark"  # hashing it would take its time
        with serving(site):
            told.send(site.url)
            while told.recv():
                told.send((len(site.asked), site.sent))
                site.forget()


def timed(*command: object) -> float:
    """Run a command, and return the seconds that it took."""
    begun = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    options.add_argument("--size", type=int, default=1 << 30, help="bytes of the EMA")
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--check", action="store_true", help="exit with 1 beyond the limits")
    given = options.parse_args()
    ckptool = [sys.executable, "-m", "ckptool"]
    with tempfile.TemporaryDirectory(dir=given.dir) as folder:
        path = Path(folder, "last.ckpt")
        make(path, given.size)
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve, args=(str(path), theirs), daemon=True)
        server.start()
        url = f"{ours.recv()}/last.ckpt"

        def counted() -> tuple[int, int]:
            ours.send(True)
            return ours.recv()

        inspect = [timed(*ckptool, "inspect", url) for _ in range(given.runs)]
        asked, sent = counted()
        local = [timed(*ckptool, "inspect", path) for _ in range(given.runs)]
        output = Path(folder, "ema.safetensors")
        done = subprocess.run(
            [*ckptool, "extract-ema", url, "-o", output, "--json"], check=True, capture_output=True
        )
        values = json.loads(done.stdout)["bytes"]
        extraction = counted()
        end = 2 * values + values // 8  # the EMA's place, roughly
        ratios, rates = [], []
        for _ in range(given.runs):
            output.unlink()
            curl = timed("curl", "-s", "-r", f"{end - values}-{end - 1}", "-o", output, url)
            output.unlink()
            own = timed(*ckptool, "extract-ema", url, "-o", output)
            ratios.append(curl / own)
            rates.append(values / own / 1e6)
        server.kill()
    ratio, share = statistics.median(ratios), extraction[1] / values
    seconds, here = statistics.median(inspect), statistics.median(local)
    rate, each = statistics.median(rates), sent / given.runs / 1024
    print("| What | Value |\n|---|---|")
    print(f"| file | {3 * values / 1e9:.1f} GB, {LATENCY * 1000:.0f} ms before each answer |")
    print(f"| inspect | {seconds:.2f} s, of the file here {here:.2f} s |")
    print(f"| | {asked / given.runs:.0f} requests, {each:,.0f} KiB |")
    print(f"| extract-ema | {rate:,.0f} MB/s, {ratio:.2f} of the rate of curl |")
    print(f"| | {extraction[0]} requests, {share:.3f} of the bytes of its tensors |")
    is_bad = ratio < AT_LEAST or share > MOST_BYTES or asked / given.runs > 4
    return int(is_bad and given.check)


if __name__ == "__main__":
    sys.exit(main())
