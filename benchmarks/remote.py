"""Checkpoints behind URLs: requests, bytes and rate, against curl of the same bytes.

The server runs in a process of its own on the loopback and waits 50 ms before each answer, as far
servers do. It serves the file from the page cache by ``sendfile``, so that it is not the slowest of
the three. The rate counts the whole command, the start of Python and the output on the disk
included, and so does that of curl. Unlike curl, ckptool waits until the output is on the disk, so
the rate of curl and ``fsync`` is told too.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
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
MOST_SENT = 1 << 30  # bytes of one call of the kernel
AT_LEAST = 0.8  # of the rate of curl
MOST_BYTES = 1.02  # of those of the tensors


def make(path: Path, size: int) -> None:
    """Write a checkpoint with a model and its EMA, each of ``size`` bytes."""
    import torch

    block = torch.randn(ROWS, size // (4 * ROWS * TENSORS))
    model = {f"layers.{n}.weight": block * (1 + n / TENSORS) for n in range(TENSORS)}
    ema = {name: value * 1.001 for name, value in model.items()}
    torch.save({"state_dict": model, "ema_state_dict": ema}, path)


def serve(path: str, told) -> None:
    """Serve a file, and answer each message with requests and bytes so far."""
    from helpers.web import Handler, Site, serving

    class Sender(Handler):
        def send(self, body) -> None:
            """Send a range of the file without a copy of it."""
            start, stop = self.asked.range
            self.asked.sent += len(body)
            while start < stop:
                nbytes = min(stop - start, MOST_SENT)
                start += os.sendfile(self.connection.fileno(), file.fileno(), start, nbytes)

    with Path(path).open("rb") as file:
        while file.read(MOST_SENT):  # into the page cache
            pass
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        site = Site({"/last.ckpt": data}, latency=LATENCY)
        site._digests[id(data)] = data, "benchmark"  # hashing it would take its time
        with serving(site, kind=Sender):
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
    options.add_argument("--size", type=int, default=3 << 30, help="bytes of the EMA")
    options.add_argument("--file", type=Path, help="use this file, and make it if it is not there")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--check", action="store_true", help="exit with 1 beyond the limits")
    given = options.parse_args()
    ckptool = [sys.executable, "-m", "ckptool"]
    with tempfile.TemporaryDirectory(dir=given.dir) as folder:
        path = given.file or Path(folder, "last.ckpt")
        if not path.exists():
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
        end = path.stat().st_size  # the EMA is what lies last
        ratios, synced, rates = [], [], []
        for _ in range(given.runs):
            output.unlink()
            curl = timed("curl", "-s", "-r", f"{end - values}-{end - 1}", "-o", output, url)
            begun = time.perf_counter()
            with output.open("rb") as file:
                os.fsync(file.fileno())
            sync = time.perf_counter() - begun
            output.unlink()
            own = timed(*ckptool, "extract-ema", url, "-o", output)
            ratios.append(curl / own)
            synced.append((curl + sync) / own)
            rates.append(values / own / 1e6)
        server.kill()
    ratio, share = statistics.median(ratios), extraction[1] / values
    seconds, here = statistics.median(inspect), statistics.median(local)
    rate, each = statistics.median(rates), sent / given.runs / 1024
    print("| What | Value |\n|---|---|")
    print(f"| file | {2 * values / 1e9:.1f} GB, {LATENCY * 1000:.0f} ms before each answer |")
    print(f"| inspect | {seconds:.2f} s, of the file here {here:.2f} s |")
    print(f"| | {asked / given.runs:.0f} requests, {each:,.0f} KiB |")
    print(f"| extract-ema | {rate:,.0f} MB/s, {ratio:.2f} of the rate of curl |")
    print(f"| | {statistics.median(synced):.2f} of the rate of curl and fsync of its output |")
    print(f"| | {extraction[0]} requests, {share:.3f} of the bytes of its tensors |")
    is_bad = ratio < AT_LEAST or share > MOST_BYTES or asked / given.runs > 4
    return int(is_bad and given.check)


if __name__ == "__main__":
    sys.exit(main())
