"""Experiments at small size on a real Bench: random models and images, real figures of quality."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel, UNet2DModel

from methods.harness import run, zoo
from methods.harness.checkpoint import save_base
from methods.harness.data import ImageSet, Splits
from methods.harness.experiment import Lab
from methods.harness.pipeline import Pipeline
from methods.harness.run import Bench, Protocol
from tests.harness import tiny

SIZES = {"fashion_unet": 12, "fashion_dit": 28}  # 28: what the classifier of garments reads
PROTOCOL = Protocol(samples=20, steps=2, precision="fp32", reference=40)


def splits(task: str) -> Splits:
    draw = torch.Generator().manual_seed(5)
    images = torch.randn(60, 1, SIZES[task], SIZES[task], generator=draw)
    images = torch.tanh(2 * F.avg_pool2d(images, 5, stride=1, padding=2))
    return Splits(*3 * [ImageSet(images, torch.arange(60) % 10)])


def unet() -> Pipeline:
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=SIZES["fashion_unet"],
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return Pipeline(tiny.shaken(model), zoo.ddpm_scheduler(num_train_timesteps=20))


def dit() -> Pipeline:
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        sample_size=SIZES["fashion_dit"],
        patch_size=4,
        in_channels=1,
        out_channels=1,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        num_embeds_ada_norm=10,
        norm_num_groups=1,
    )
    scheduler = zoo.cosine_scheduler(num_train_timesteps=20)
    return Pipeline(tiny.shaken(zoo.without_label_dropout(model)), scheduler, guidance=2.0)


def lab(folder: Path, monkeypatch, seeds=(0, 1), tasks=("fashion_unet",)) -> Lab:
    """Benches of these tasks; what a Bench caches goes to the folder."""
    monkeypatch.setattr(run, "cache_folder", lambda: folder / "cache")
    benches = {}
    for task in tasks:
        monkeypatch.setitem(run.TASKS, task, run.TaskData(partial(splits, task), "random"))
        save_base({"fashion_unet": unet, "fashion_dit": dit}[task](), folder / task)
        benches[task] = Bench(task, PROTOCOL, model=str(folder / task))
    return Lab(seeds=seeds, protocol=PROTOCOL, used=benches)
