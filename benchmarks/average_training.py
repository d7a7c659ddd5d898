"""A real tiny training run, and what averaging its checkpoints after the fact is worth.

A network of three layers learns a function of 16 numbers from noisy samples, with SGD at a constant
learning rate, so that its weights never come to rest. The run tracks an EMA whose decay was chosen
before (0.99), and two power-function EMAs as EDM2 does, in its layout. Then `ckptool average` makes
what nobody kept: the mean of the last five checkpoints, other weights of the last twenty, an EMA of
the files, and post-hoc EMAs of some widths. The loss is the mean squared error on a test set
without noise. It takes half a minute:

    python benchmarks/average_training.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

SEED, STEPS, EVERY, BATCH = 7, 12_000, 200, 32
DECAY = 0.99
WIDTHS = (0.05, 0.1)
NOISE = 1.0


def gamma_of(width: float) -> float:
    """The exponent of the profile of a power-function EMA of a relative width, by bisection."""
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        std = ((middle + 1) / (middle + 2) ** 2 / (middle + 3)) ** 0.5
        low, high = (middle, high) if std > width else (low, middle)
    return low


def network() -> nn.Module:
    """The network that learns, and the one that made the truth."""
    return nn.Sequential(
        nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    )


def truth() -> nn.Module:
    """A network with large weights: a function that is not learned at once."""
    torch.manual_seed(SEED + 1)
    teacher = network()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(2)
    return teacher


def train(folder: Path, teacher: nn.Module) -> None:
    """Train, and save each ``EVERY`` steps: the weights, the tracked EMA, and two snapshots."""
    torch.manual_seed(SEED)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    ema = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    powers = {width: dict(ema) for width in WIDTHS}
    gammas = {width: gamma_of(width) for width in WIDTHS}
    for step in range(1, STEPS + 1):
        x = torch.randn(BATCH, 16)
        with torch.no_grad():
            y = teacher(x) + NOISE * torch.randn(BATCH, 1)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        live = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        ema = {name: ema[name].lerp(live[name], 1 - DECAY) for name in live}
        for width, gamma in gammas.items():
            share = 1 - (1 - 1 / step) ** (gamma + 1)
            powers[width] = {name: powers[width][name].lerp(live[name], share) for name in live}
        if step % EVERY == 0:
            torch.save({"model": live, "ema": ema, "step": step}, folder / "raw" / f"{step:05}.pt")
            content = {
                "state": {"cur_nimg": step * BATCH},
                "net": live,
                "ema": {"stds": list(WIDTHS), "emas": list(powers.values())},
            }
            torch.save(content, folder / "snapshots" / f"training-state-{step:07}.pt")


def averages(folder: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield what is compared, and its weights; all but the first two are made by ckptool."""
    last = torch.load(folder / "raw" / f"{STEPS:05}.pt", weights_only=True)
    yield "raw weights", last["model"]
    yield f"tracked EMA, decay {DECAY}", last["ema"]
    ways = {
        "mean of the last five": ("raw", "--only", "model", "--last", "5"),
        "mean of the last twenty": ("raw", "--only", "model", "--last", "20"),
        "last twenty, --schedule minus-sqrt": (
            "raw", "--only", "model", "--last", "20", "--schedule", "minus-sqrt",
        ),
        "--ema-decay 0.999 of all files": ("raw", "--only", "model", "--ema-decay", "0.999"),
        **{
            f"post-hoc EMA, --sigma-rel {width:g}": ("snapshots", "--sigma-rel", f"{width:g}")
            for width in (0.02, 0.05, 0.1, 0.15, 0.2)
        },
    }  # fmt: skip
    for name, (source, *options) in ways.items():
        output = folder / "out.pt"
        command = [sys.executable, "-m", "ckptool", "average", str(folder / source), *options]
        subprocess.run([*command, "--force", "-o", str(output)], check=True, capture_output=True)
        yield name, torch.load(output, weights_only=True)


def main() -> None:
    """Print the loss of each."""
    torch.set_num_threads(1)
    teacher = truth()
    torch.manual_seed(SEED + 2)
    x = torch.randn(20_000, 16)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        for part in ("raw", "snapshots"):
            (folder / part).mkdir()
        with torch.enable_grad():
            train(folder, teacher)
        y, model = teacher(x), network()
        for what, weights in averages(folder):
            model.load_state_dict(weights)
            print(f"{what:40}  {(model(x) - y).square().mean().item():.4f}")


if __name__ == "__main__":
    main()
