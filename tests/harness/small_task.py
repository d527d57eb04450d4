"""The shipped task in miniature: a random U-Net of 16x16 pixels and random smooth images.

Run as a program, it is the command line on that miniature, for tests that kill a process.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from methods.harness import run, zoo
from methods.harness.checkpoint import save_base
from methods.harness.data import ImageSet, Splits
from methods.harness.pipeline import Pipeline
from methods.harness.run import Protocol

TASK = "fashion_unet"
PROTOCOL = Protocol(
    samples=24, steps=2, precision="fp32", reference=40, latency_batch=2, latency_rounds=2
)


def splits() -> Splits:
    draw = torch.Generator().manual_seed(5)
    images = torch.randn(3, 200, 1, 16, 16, generator=draw)
    images = torch.tanh(2 * F.avg_pool2d(images.flatten(0, 1), 5, stride=1, padding=2))
    sets = [ImageSet(part, torch.arange(200) % 10) for part in images.split(200)]
    return Splits(*sets)


def write_base(folder: Path) -> Path:
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    save_base(Pipeline(model, zoo.ddpm_scheduler(num_train_timesteps=20)), folder)
    return folder


def install() -> None:
    """Give the task its miniature data in this process."""
    run.TASKS[TASK] = run.TaskData(splits, "random smooth images")


if __name__ == "__main__":
    from methods.__main__ import main

    torch.set_num_threads(1)
    install()
    sys.exit(main())
