"""The shipped bases and the true architectures of the literature, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.embeddings import LabelEmbedding
from torch import nn

MODELS = Path(__file__).resolve().parents[2] / "models"


@dataclass(frozen=True)
class Base:
    """A small model that the repository trains and ships."""

    name: str
    describes: str
    build: Callable[[], nn.Module]
    scheduler: Callable[[], DDIMScheduler]
    guidance: float = 1.0

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


def cosine_scheduler(**changes: Any) -> DDIMScheduler:
    """The cosine schedule of Nichol and Dhariwal 2021 with v prediction (Salimans and Ho 2022)."""
    settings: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "clip_sample": False,
        "timestep_spacing": "trailing",
    }
    return DDIMScheduler(**(settings | changes))


def _fashion_dit() -> nn.Module:
    model = DiTTransformer2DModel(
        sample_size=28,
        patch_size=4,
        in_channels=1,
        out_channels=1,
        num_layers=8,
        num_attention_heads=5,
        attention_head_dim=32,
        num_embeds_ada_norm=10,
        norm_num_groups=1,
    )
    return without_label_dropout(model)


def without_label_dropout(model: nn.Module) -> nn.Module:
    """Leave dropping labels to the batches: diffusers draws it anew in every block of one image."""
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0
    return model


def _fashion_t2i() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 80, 96),
        layers_per_block=2,
        cross_attention_dim=64,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


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
            scheduler=ddpm_scheduler,
        ),
        Base(
            name="fashion_dit",
            describes="class-conditional DiT on Fashion-MNIST, 28x28 grey, v prediction",
            build=_fashion_dit,
            scheduler=cosine_scheduler,
            guidance=2.0,
        ),
        Base(
            name="fashion_t2i",
            describes="text-to-image latent U-Net on tinted garments, 32x32 colour, v prediction",
            build=_fashion_t2i,
            scheduler=cosine_scheduler,
            guidance=5.0,
        ),
    )
}


def base(name: str) -> Base:
    """The shipped base `name`; ValueError with the valid names otherwise."""
    if name not in BASES:
        raise ValueError(f"unknown base {name!r}; known: {', '.join(BASES)}")
    return BASES[name]


@dataclass(frozen=True)
class Architecture:
    """A published denoiser's architecture, for counting on the meta device; no weights."""

    name: str
    describes: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]

    def on_meta(self) -> tuple[nn.Module, dict[str, Any]]:
        """The model and the inputs of one denoiser call for one image, both without memory."""
        with torch.device("meta"):
            return self.build().eval(), self.inputs()


def _ddpm_cifar10() -> nn.Module:
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attention_head_dim=None,
    )


def _stable_diffusion(heads: int | tuple[int, ...], text_width: int, linear: bool) -> nn.Module:
    return UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=text_width,
        attention_head_dim=heads,  # diffusers reads this as the number of heads
        use_linear_projection=linear,
    )


def _bk_sdm(size: str, version: int) -> nn.Module:
    """BK-SDM (Kim et al., arXiv 2305.15798): one pair a stage down, two up; Small has no middle,
    Tiny has neither the middle nor the lowest-resolution stage."""
    stages = 3 if size == "tiny" else 4
    down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    return UNet2DConditionModel(
        sample_size=64,
        layers_per_block=1,
        block_out_channels=(320, 640, 1280, 1280)[:stages],
        down_block_types=down[:stages],
        up_block_types=up[-stages:],
        mid_block_type="UNetMidBlock2DCrossAttn" if size == "base" else None,
        cross_attention_dim=768 if version == 1 else 1024,
        attention_head_dim=8 if version == 1 else (5, 10, 20, 20)[:stages],
        use_linear_projection=version == 2,
    )


def _sdxl() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def _sd3_medium() -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=128,
        num_layers=24,
        num_attention_heads=24,
        caption_projection_dim=1536,
        pos_embed_max_size=192,
    )


def _dit_xl_2() -> nn.Module:
    return DiTTransformer2DModel(
        sample_size=32,
        out_channels=8,  # noise and variance
        num_layers=28,
        num_attention_heads=16,
        attention_head_dim=72,
    )


def _unet_inputs(size: int, channels: int = 4, text: tuple[int, int] | None = None) -> Any:
    def inputs() -> dict[str, Any]:
        found: dict[str, Any] = {
            "sample": torch.zeros(1, channels, size, size),
            "timestep": torch.zeros(1, dtype=torch.long),
        }
        if text is not None:
            found["encoder_hidden_states"] = torch.zeros(1, *text)
        return found

    return inputs


def _sdxl_inputs() -> dict[str, Any]:
    added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
    found: dict[str, Any] = _unet_inputs(128, text=(77, 2048))()
    return found | {"added_cond_kwargs": added}


def _sd3_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, 16, 128, 128),
        "encoder_hidden_states": torch.zeros(1, 333, 4096),
        "pooled_projections": torch.zeros(1, 2048),
        "timestep": torch.zeros(1),
    }


def _flux_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, 4096, 64),  # 1024 x 1024 pixels
        "encoder_hidden_states": torch.zeros(1, 512, 4096),
        "pooled_projections": torch.zeros(1, 768),
        "timestep": torch.zeros(1),
        "guidance": torch.zeros(1),
        "img_ids": torch.zeros(4096, 3),
        "txt_ids": torch.zeros(512, 3),
    }


def _dit_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, 4, 32, 32),
        "timestep": torch.zeros(1, dtype=torch.long),
        "class_labels": torch.zeros(1, dtype=torch.long),
    }


def _small_dit_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, 1, 28, 28),
        "timestep": torch.zeros(1, dtype=torch.long),
        "class_labels": torch.zeros(1, dtype=torch.long),
    }


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        *(
            Architecture(BASES[name].name, BASES[name].describes, BASES[name].build, inputs)
            for name, inputs in (
                ("fashion_unet", _unet_inputs(28, 1)),
                ("fashion_dit", _small_dit_inputs),
                ("fashion_t2i", _unet_inputs(16, text=(12, 64))),
            )
        ),
        Architecture(
            "ddpm_cifar10",
            "U-Net of google/ddpm-cifar10-32, 32x32 pixels",
            _ddpm_cifar10,
            _unet_inputs(32, 3),
        ),
        Architecture(
            "sd15",
            "U-Net of Stable Diffusion v1.4/v1.5, 64x64 latent, 77 text tokens",
            lambda: _stable_diffusion(8, 768, linear=False),
            _unet_inputs(64, text=(77, 768)),
        ),
        Architecture(
            "sd21",
            "U-Net of Stable Diffusion v2.1-base, 64x64 latent, 77 text tokens",
            lambda: _stable_diffusion((5, 10, 20, 20), 1024, linear=True),
            _unet_inputs(64, text=(77, 1024)),
        ),
        *(
            Architecture(
                f"bk_sdm_{'v2_' if version == 2 else ''}{size}",
                f"U-Net of BK-SDM-{'v2-' if version == 2 else ''}{size.capitalize()}",
                partial(_bk_sdm, size, version),
                _unet_inputs(64, text=(77, 768 if version == 1 else 1024)),
            )
            for version in (1, 2)
            for size in ("base", "small", "tiny")
        ),
        Architecture(
            "sdxl",
            "U-Net of Stable Diffusion XL base, 128x128 latent, 77 text tokens",
            _sdxl,
            _sdxl_inputs,
        ),
        Architecture(
            "sd3_medium",
            "MMDiT of Stable Diffusion 3 medium, 128x128 latent, 333 text tokens",
            _sd3_medium,
            _sd3_inputs,
        ),
        Architecture(
            "flux_dev",
            "transformer of FLUX.1-dev, 4096 image and 512 text tokens",
            lambda: FluxTransformer2DModel(guidance_embeds=True),
            _flux_inputs,
        ),
        Architecture(
            "dit_xl_2",
            "DiT-XL/2 as diffusers builds it (a label table in every block), 32x32 latent",
            _dit_xl_2,
            _dit_inputs,
        ),
    )
}
