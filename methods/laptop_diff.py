"""Remove the layers whose absence changes the output least, all at once, under a budget.

Zhang, Li, Chen, Xie and Lu, "LAPTOP-Diff: Layer Pruning and Normalized Distillation for Compressing
Diffusion Models", arXiv 2404.11098. Criterion: v_i = E ||eps(x_t, t) - eps_i(x_t, t)||^2, where
eps_i is the dense denoiser with layer i alone bypassed; the expectation is over data, noise and
timesteps, the same for every layer. What several removals do together is taken to be the sum, so
the set R that minimises sum v_i with at least the wanted parameters is a 0/1 knapsack, solved
by dynamic programming. The normalised distillation behind it: `run laptop_diff distill --set
distill.normalise=squared`.

Differs from the paper in: no code is public and the full text was not at hand, so the number of
calibration samples and the solver are our choices, and so is the granularity: whole transformers
go, as whole ResNets do (`layers="blocks"` takes them block by block, which matters where one holds
several, as in SDXL). The mean square is taken per element. Notes hold the damage that the sum
predicts and the one that was measured.

Expect: `python -m methods run laptop_diff --task fashion_t2i --set laptop_diff.params=0.5`. It is a
row of `python -m methods standard --task fashion_t2i`, whose records hold its time, machine, cost
and scores with their spread. Scoring takes one denoiser call per layer and calibration batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .harness.calibration import calibration
from .harness.denoise import predict
from .harness.depth import FINE, LAYERS, Unit, bypassed, drop, removable, requested
from .harness.knapsack import least_damage
from .harness.pipeline import NoisedBatch, Notes, Pipeline, Task

CARD = {
    "paper": "laptop-diff",
    "granularity": "structured",
    "unit": "layer",
    "role": "method",
    "tasks": ["fashion_unet", "fashion_dit", "fashion_t2i"],
    "try": ("laptop_diff.params=0.5",),
}


@dataclass(frozen=True)
class Config:
    """Ask either by `params` or by `ratio`; the paper halves the denoiser."""

    params: float | None = None  # denoiser parameters left at most, (0, 1]
    ratio: float | None = None  # of the removable layers' parameters, [0, 1)
    layers: Literal["whole", "blocks"] = "whole"  # transformers as one, or block by block
    batch_size: int = 32  # calibration images
    timesteps: int = 8  # calibration batches, each with its own random timesteps


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Score every removable layer by itself, solve the knapsack, drop."""
    model = pipe.denoiser
    candidates = removable(model, LAYERS if config.layers == "whole" else FINE)
    wanted = requested(model, candidates, config.params, config.ratio)
    batches = calibration(task, config.batch_size, config.timesteps, "laptop_diff")
    answers = outputs(model, batches)
    damages = [damage(model, batches, answers, [unit.name]) for unit in candidates]
    sizes = [unit.params for unit in candidates]
    names = [candidates[k].name for k in least_damage(damages, sizes, wanted)] if wanted else []
    notes: Notes = {
        "removed": names,
        "damage": {unit.name: value for unit, value in zip(candidates, damages, strict=True)},
        "predicted": predicted(candidates, damages, names),
        "joint": damage(model, batches, answers, names),
    }
    return drop(pipe, names), notes


def predicted(candidates: Sequence[Unit], damages: Sequence[float], names: list[str]) -> float:
    """What additivity says that removing `names` does together."""
    pairs = zip(candidates, damages, strict=True)
    return sum(value for unit, value in pairs if unit.name in names)


@torch.no_grad()
def outputs(model: nn.Module, batches: Sequence[NoisedBatch]) -> list[Tensor]:
    """The model's answers to the batches, each (B, C, H, W)."""
    model.eval()
    return [predict(model, batch.x_t, batch.t, batch.condition) for batch in batches]


def damage(
    model: nn.Module, batches: Sequence[NoisedBatch], answers: Sequence[Tensor], names: list[str]
) -> float:
    """Mean squared change of the answers when the named layers are bypassed."""
    with bypassed(model, names):
        found = outputs(model, batches)
    errors = [(a - b).square().mean() for a, b in zip(found, answers, strict=True)]
    return float(torch.stack(errors).mean())
