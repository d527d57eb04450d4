"""Small models of the real classes, and the masked dense model that a cut must equal."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from methods.harness import zoo
from methods.harness.channels import channel_groups
from methods.harness.data import ImageSet, Splits
from methods.harness.pipeline import Conditioning, Pipeline, Task

CONFIGS = {
    # name -> UNet2DModel settings: heads, GroupNorm groups, blocks and shortcuts all vary
    "one_head": {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": None,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
    "many_heads": {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (16, 32, 64),
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    },
    "equal_widths": {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 16,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    },
}


def unet(name: str = "many_heads", seed: int = 0) -> UNet2DModel:
    """A tiny U-Net whose every parameter is random, biases and gammas too."""
    torch.manual_seed(seed)
    return shaken(UNet2DModel(**CONFIGS[name]))


def pipeline(name: str = "many_heads", seed: int = 0) -> Pipeline:
    return Pipeline(denoiser=unet(name, seed), scheduler=zoo.ddpm_scheduler(), steps=3)


def text_unet(seed: int = 0, layers: int = 2) -> UNet2DConditionModel:
    """A tiny U-Net with cross-attention: three stages, the first without attention."""
    torch.manual_seed(seed)
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32, 32),
        layers_per_block=layers,
        cross_attention_dim=12,
        attention_head_dim=4,  # the number of heads
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return shaken(model)


def dit(seed: int = 0, layers: int = 6) -> DiTTransformer2DModel:
    """A tiny class-conditional DiT: 16 tokens, 4 heads of 8."""
    torch.manual_seed(seed)
    model = DiTTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=1,
        out_channels=1,
        num_layers=layers,
        num_attention_heads=4,
        attention_head_dim=8,
        num_embeds_ada_norm=10,
        norm_num_groups=1,
    )
    return shaken(zoo.without_label_dropout(model))


def mmdit(seed: int = 0, layers: int = 3) -> SD3Transformer2DModel:
    """A tiny MMDiT of Stable Diffusion 3's class: joint attention over image and text."""
    torch.manual_seed(seed)
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        num_attention_heads=4,
        attention_head_dim=8,
        joint_attention_dim=12,
        caption_projection_dim=32,
        pooled_projection_dim=6,
        pos_embed_max_size=8,
    )
    return shaken(model)


def flux() -> FluxTransformer2DModel:
    """A tiny FLUX: two double and two single blocks, 4 heads of 8."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=12,
        pooled_projection_dim=6,
        axes_dims_rope=(2, 2, 4),
    )
    return shaken(model)


def flux_inputs() -> dict[str, Any]:
    """One call of it: 9 image and 5 text tokens."""
    draw = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 9, 4, generator=draw),
        "encoder_hidden_states": torch.randn(2, 5, 12, generator=draw),
        "pooled_projections": torch.randn(2, 6, generator=draw),
        "timestep": torch.tensor([0.3, 0.9]),
        "img_ids": torch.randint(0, 3, (9, 3), generator=draw).float(),
        "txt_ids": torch.zeros(5, 3),
        "return_dict": False,
    }


def shaken(model: nn.Module) -> nn.Module:
    """Every parameter random, also those that start at zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def conditional(kind: str, seed: int = 0) -> Pipeline:
    """A tiny guided pipeline: "t2i" (text U-Net), "dit" or "mmdit"; 10 requests and the null."""
    draw = torch.Generator().manual_seed(seed)
    names = (*(f"request {row}" for row in range(10)), "")
    if kind == "dit":
        tables = {"class_labels": torch.arange(11)}
    else:
        tables = {"encoder_hidden_states": torch.randn(11, 5, 12, generator=draw)}
    if kind == "mmdit":
        tables["pooled_projections"] = torch.randn(11, 6, generator=draw)
    model = {"t2i": text_unet, "dit": dit, "mmdit": mmdit}[kind](seed)
    scheduler = zoo.cosine_scheduler(num_train_timesteps=100)
    return Pipeline(model, scheduler, 3, 2.0, Conditioning(tables, 10, names))


def task(pipe: Pipeline, seed: int = 0) -> Task:
    """A task on 64 smooth random images of the model's own size."""
    draw = torch.Generator().manual_seed(5)
    shape = (pipe.denoiser.config.in_channels,) + 2 * (pipe.denoiser.config.sample_size,)
    images = torch.tanh(torch.randn(64, *shape, generator=draw))
    images = F.avg_pool2d(images, 3, stride=1, padding=1)
    data = ImageSet(images, torch.arange(64) % 10)
    return Task("tiny", pipe, Splits(data, data, data), seed)


def inputs(model: UNet2DModel, batch: int = 2) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    size = model.config.sample_size
    x = torch.randn(batch, model.config.in_channels, size, size, generator=draw)
    return x, torch.tensor([7, 400][:batch])


class KeptGroupNorm(nn.Module):
    """GroupNorm that looks at the kept channels only and gives zero elsewhere."""

    def __init__(self, norm: nn.GroupNorm, kept: list[int], groups: int) -> None:
        super().__init__()
        self.norm, self.kept, self.groups = norm, kept, groups

    def forward(self, x: Tensor) -> Tensor:
        index = torch.tensor(self.kept)
        weight, bias = self.norm.weight[index], self.norm.bias[index]
        seen = F.group_norm(x[:, index], self.groups, weight, bias, self.norm.eps)
        out = torch.zeros_like(x)
        out[:, index] = seen
        return out


@torch.no_grad()
def masked(model: UNet2DModel, keep: dict[str, list[int]], rule: str) -> UNet2DModel:
    """The dense model with removed channels silenced, written without the cutting code.

    Rows that produce removed channels become zero; "whole" leaves every GroupNorm as it is but
    for zero gammas and betas, "within" lets it see the kept channels only.
    """
    dense = copy.deepcopy(model)
    norms: dict[str, set[int]] = {}
    for group in channel_groups(dense):
        gone = set(range(group.size)) - set(keep.get(group.name, range(group.size)))
        for slot in group.slots:
            layer = dense.get_submodule(slot.module)
            rows = [slot.start + i for i in sorted(gone)]
            if slot.axis == "out" and rows:
                layer.weight[rows] = 0.0
                if layer.bias is not None:
                    layer.bias[rows] = 0.0
            elif slot.axis == "norm":
                norms.setdefault(slot.module, set()).update(rows)
    for module, gone in norms.items():
        norm = dense.get_submodule(module)
        rows = sorted(gone)
        if not rows:
            continue
        if rule == "whole":
            norm.weight[rows] = 0.0
            norm.bias[rows] = 0.0
            continue
        kept = [i for i in range(norm.num_channels) if i not in gone]
        parent = dense.get_submodule(module.rpartition(".")[0])
        setattr(parent, module.rpartition(".")[2], KeptGroupNorm(norm, kept, norm.num_groups))
    return dense


def head_scale_is_kept(dense: Attention, cut: Attention) -> bool:
    """Queries of a narrower head carry the factor that keeps the dense softmax temperature."""
    before, after = dense.inner_dim / dense.heads, cut.inner_dim / cut.heads
    return math.isclose(cut.scale, after**-0.5) and after <= before
