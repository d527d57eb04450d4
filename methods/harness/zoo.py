"""The shipped bases and the true architectures of the literature, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, UNet2DModel
from torch import nn

MODELS = Path(__file__).resolve().parents[2] / "models"


@dataclass(frozen=True)
class Base:
    """A small model that the repository trains and ships."""

    name: str
    describes: str
    build: Callable[[], nn.Module]

    @property
    def folder(self) -> Path:
        return MODELS / self.name


def ddpm_scheduler(**changes: Any) -> DDIMScheduler:
    """The linear schedule of Ho et al. 2020 (beta 1e-4 to 0.02, 1000 steps), sampled by DDIM."""
    settings: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "prediction_type": "epsilon",
        "clip_sample": True,
        "timestep_spacing": "trailing",
    }
    return DDIMScheduler(**(settings | changes))


def _fashion_unet() -> nn.Module:
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=32,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


BASES = {
    base.name: base
    for base in (
        Base(
            name="fashion_unet",
            describes="unconditional U-Net on Fashion-MNIST, 28x28 grey, noise prediction",
            build=_fashion_unet,
        ),
    )
}
