"""An experiment's lab with a small text-to-image pipeline on a real Bench, nothing trained."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

from methods.harness import bases, run, zoo
from methods.harness.checkpoint import save_base
from methods.harness.data import ImageSet, Splits
from methods.harness.experiment import Lab
from methods.harness.pipeline import Pipeline
from methods.harness.run import Bench
from tests.experiments.small_lab import PROTOCOL
from tests.harness import tiny

TASK = "fashion_t2i"


def t2i() -> Pipeline:
    """A text-to-image pipeline with tokenizer, text encoder and autoencoder, none trained."""
    torch.manual_seed(0)
    text = bases.untrained_text()
    model = text_unet((16, 32), layers=1)
    return Pipeline(
        tiny.shaken(model),
        zoo.cosine_scheduler(num_train_timesteps=20, steps_offset=1),
        guidance=2.0,
        conditioning=bases.embedded_captions(text),
        autoencoder=tiny.shaken(bases.small_autoencoder()),
        text=text,
    )


def two_layers() -> UNet2DConditionModel:
    """A text U-Net that BK-SDM's lists fit, Tiny's too: the last two stages are equally wide."""
    torch.manual_seed(0)
    return text_unet((16, 16), layers=2)  # which is what the lists are written for


def text_unet(widths: tuple[int, int], layers: int) -> UNet2DConditionModel:
    """Two stages, the lower one with cross-attention."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=layers,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def colour_splits() -> Splits:
    draw = torch.Generator().manual_seed(5)
    images = torch.tanh(F.avg_pool2d(torch.randn(60, 3, 32, 32, generator=draw), 5, 1, 2))
    return Splits(*3 * [ImageSet(images, torch.arange(60) * 9)])


def lab(folder: Path, monkeypatch, seeds=(0, 1)) -> Lab:
    """A lab that knows this one task; what its Bench caches goes to the folder."""
    monkeypatch.setattr(run, "cache_folder", lambda: folder / "cache")
    monkeypatch.setitem(run.TASKS, TASK, run.TaskData(colour_splits, "random smooth images"))
    save_base(t2i(), folder / TASK)
    bench = Bench(TASK, PROTOCOL, model=str(folder / TASK))
    return Lab(seeds=seeds, protocol=PROTOCOL, used={TASK: bench})
