"""Promoted files fed to those for whom they are made: they load them, and serve the averages.

Lightning, timm and diffusers are no dependencies, not even of the tests: where one is missing, its
test says so and is skipped. To run them: ``pip install torch==2.13.0 lightning timm diffusers``.
"""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from helpers.making import average_of
from helpers.systems import load_script
from helpers.tensors import assert_same_tensors

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    """Convolutions in channels_last, BatchNorm with its buffers, a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.embed = nn.Linear(4, 5, bias=False)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(images)).mean((2, 3)))


def trained(make=Net, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A model, and a module with averaged weights."""
    torch.manual_seed(seed)
    model = make()
    average = copy.deepcopy(model)
    average.load_state_dict(average_of(model.state_dict()))
    return model, average


def answer(model: nn.Module) -> Tensor:
    """What a model makes of the same images each time."""
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(images)


@pytest.fixture
def promote(ckptool, tmp_path):
    def run(path, *args):
        output = tmp_path / f"promoted{path.suffix}"
        done = ckptool("promote-ema", path, "-o", output, *args)
        assert done.exit_code == 0, done
        return output

    return run


# ---------------------------------------------------------------------------- torch and safetensors


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("options", [{}, {"assign": True}])
def test_load_state_dict(options, zipped, promote, tmp_path):
    model, average = trained()
    path = tmp_path / "last.pt"
    content = {"model": model.state_dict(), "ema": average.state_dict(), "epoch": 1}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    served = Net()
    slot = torch.load(promote(path), weights_only=True)["model"]
    assert not any(served.load_state_dict(slot, strict=True, **options))
    assert torch.equal(answer(served), answer(average))
    assert not torch.allclose(answer(served), answer(model))


def test_a_bfloat16_model_takes_a_float32_average_as_load_state_dict_does(promote, tmp_path):
    model, average = trained()
    path = tmp_path / "last.pt"
    half = model.bfloat16().state_dict()
    torch.save({"model": half, "ema": average.state_dict()}, path)
    wanted = copy.deepcopy(model)
    wanted.load_state_dict(average.state_dict())
    served = torch.load(promote(path), weights_only=True)["model"]
    assert_same_tensors(served, wanted.state_dict())


def test_load_model_of_safetensors(promote, tmp_path):
    """Tied weights are one tensor there, under one name."""
    model, average = trained()
    path = tmp_path / "last.safetensors"
    save_model(nn.ModuleDict({"model": model, "ema": average}), str(path))
    both = nn.ModuleDict({"model": Net(), "ema": Net()})
    missing, unexpected = load_model(both, str(promote(path)), strict=True)
    assert not set(missing) | set(unexpected)
    assert torch.equal(answer(both["model"]), answer(average))
    assert torch.equal(answer(both["ema"]), answer(average))


# ----------------------------------------------------------------------------------------- trainers


def library(name: str):
    """A library that may be missing; torchvision, which some import, may be built for a GPU."""
    with contextlib.suppress(ImportError):
        load_script("stubs").import_torchvision()
    return pytest.importorskip(name, reason=f"{name} is not installed")


def test_load_from_checkpoint_of_lightning(promote, tmp_path):
    lightning = library("lightning.pytorch")

    class Classifier(lightning.LightningModule):
        """Keeps its average beside its weights, as many projects do."""

        def __init__(self, width: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net, self.average = trained()
            self.__dict__["average"] = self._modules.pop("average")

        def training_step(self, batch, _index) -> Tensor:
            return self.net(batch[0]).square().mean()

        def train_dataloader(self):
            images = torch.randn(4, 3, 6, 6)
            return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), 2)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

        def on_save_checkpoint(self, checkpoint) -> None:
            state = self.average.state_dict()
            checkpoint["ema_state_dict"] = {f"net.{name}": t for name, t in state.items()}

    def trainer():
        return lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip

    trained_by = trainer()
    module = Classifier(width=4)
    trained_by.fit(module)
    path = tmp_path / "last.ckpt"
    trained_by.save_checkpoint(path)
    output = promote(path)
    for weights_only in (True, False):
        served = Classifier.load_from_checkpoint(output, weights_only=weights_only)
        assert served.hparams.width == 4
        assert torch.equal(answer(served.net), answer(module.average))
    assert not torch.allclose(answer(module.net), answer(module.average))
    resumed = trainer()
    resumed.fit(Classifier(), ckpt_path=output)  # the loops and the optimizer are read too
    assert resumed.global_step == trained_by.global_step


def test_load_checkpoint_of_timm(promote, tmp_path):
    timm = library("timm")
    from timm.models import load_checkpoint
    from timm.utils import CheckpointSaver, ModelEmaV3

    torch.manual_seed(0)
    model = timm.create_model("test_byobnet", num_classes=3)
    ema = ModelEmaV3(model, decay=0.9)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.01)
    ema.update(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(epoch=2, metric=0.5)
    output = promote(tmp_path / "checkpoint-2.pth.tar")
    served = timm.create_model("test_byobnet", num_classes=3)
    load_checkpoint(served, str(output), use_ema=False, strict=True)
    assert_same_tensors(served.state_dict(), ema.module.state_dict())
    assert not torch.equal(served.stem.conv.weight, model.stem.conv.weight)


def test_from_pretrained_of_diffusers(ckptool, tmp_path):
    """The average is a folder beside the model's: its file is put into the model's, in place."""
    diffusers = library("diffusers")
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    ema = EMAModel(unet.parameters(), decay=0.9, model_cls=type(unet), model_config=unet.config)
    for _ in range(4):  # the first step copies
        with torch.no_grad():
            for weight in unet.parameters():
                weight.add_(torch.randn_like(weight) * 0.01)
        ema.step(unet.parameters())
    unet.save_pretrained(tmp_path / "unet")
    ema.save_pretrained(tmp_path / "unet_ema")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    done = ckptool("promote-ema", file, "--in-place", "--json")
    assert done.exit_code == 0, done
    assert done.json["file"].endswith("unet_ema/diffusion_pytorch_model.safetensors")
    served = type(unet).from_pretrained(tmp_path / "unet")
    averaged = type(unet).from_pretrained(tmp_path / "unet_ema")
    assert_same_tensors(served.state_dict(), averaged.state_dict())
    assert not torch.equal(served.conv_in.weight, unet.conv_in.weight)
