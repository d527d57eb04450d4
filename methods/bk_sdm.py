"""Remove fixed pairs of ResNet and transformer from a U-Net of Stable Diffusion's kind.

Kim, Song, Castells and Choi, "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion",
ECCV 2024, arXiv 2305.15798. Base: the second pair of every down stage and the middle one of three
pairs of every up stage. Small: the middle block too. Tiny: the lowest-resolution stage as well,
with the samplers that lead there and back. What stays keeps its weights: a student's first and
last up layers are the teacher's first and third.

Tiny needs a U-Net whose last two stages are equally wide, as those of Stable Diffusion 1 and 2 are:
without the lowest stage, the one above it feeds an up part that was built for the lowest stage's
width. `fashion_t2i` has 80 and 96 channels there and takes base and small only.

Training with output and feature distillation is the recipe step behind it: `run bk_sdm distill`.

Differs from the paper in: nothing of the architecture (the sizes of the six published models come
out of this code path, to the parameter); removed layers leave stand-ins without parameters, so
that the names of the others stay.

Expect: `python -m methods run bk_sdm --task fashion_t2i`. It is a row of `python -m methods
standard --task fashion_t2i`, whose records hold its time, machine, cost and scores with their
spread. Training with distillation, as the paper does, costs more: `run bk_sdm distill`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffusers import UNet2DConditionModel
from torch import nn

from .harness.depth import drop, drop_lowest_stage, drop_middle
from .harness.pipeline import Notes, Pipeline, Task

CARD = {
    "paper": "bk-sdm",
    "granularity": "structured",
    "unit": "block",
    "role": "method",
    "tasks": ["fashion_t2i"],
}
LAYERS_PER_BLOCK = 2  # what the published lists are written for


@dataclass(frozen=True)
class Config:
    """One of the paper's three sizes."""

    size: Literal["base", "small", "tiny"] = "base"  # tiny: last two stages equally wide


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Drop the listed layers; needs no data.

    Raises:
        ValueError: as `removed_pairs`, or size is tiny and the last two stages differ in width.
    """
    names = removed_pairs(pipe.denoiser)
    pipe = drop(pipe, names)
    if config.size in ("small", "tiny"):
        pipe = drop_middle(pipe)
    if config.size == "tiny":
        pipe = drop_lowest_stage(pipe)
    return pipe, {"removed": names, "size": config.size}


def removed_pairs(model: nn.Module) -> list[str]:
    """Modules of BK-SDM-Base's list, in this U-Net.

    Raises:
        ValueError: the model is no UNet2DConditionModel with two layers a block.
    """
    if not isinstance(model, UNet2DConditionModel):
        raise ValueError(f"BK-SDM's lists are for UNet2DConditionModel, not {type(model).__name__}")
    names = []
    for part, expected in (("down_blocks", LAYERS_PER_BLOCK), ("up_blocks", LAYERS_PER_BLOCK + 1)):
        for stage, block in enumerate(getattr(model, part)):
            if len(block.resnets) != expected:
                raise ValueError(
                    f"{part}.{stage} has {len(block.resnets)} layers; BK-SDM's lists are for "
                    f"{expected}"
                )
            names.append(f"{part}.{stage}.resnets.1")
            if hasattr(block, "attentions"):
                names.append(f"{part}.{stage}.attentions.1")
    return names
