"""Retrain on the denoising loss: the same short recovery for every method of a table.

The recipe step that stands behind a pruning method: `run diff_pruning finetune`. Loss: mean
squared error to the denoising target (Ho et al., "Denoising Diffusion Probabilistic Models",
NeurIPS 2020, arXiv 2006.11239, Eq. 14), AdamW, linear warm-up, cosine to zero, averaged weights at
the end.

Weights that an earlier step set to zero stay zero (unstructured pruning keeps its mask).

Expect: `python -m methods run magnitude finetune --task fashion_t2i --set magnitude.macs=0.5 --set
finetune.steps=100 --set finetune.batch_size=32`. It is a row of `python -m methods standard --task
fashion_t2i`, whose records hold its time, machine, cost and scores with their spread. Cost grows
with `steps`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .harness.masks import apply_masks, kept_zero, zero_masks
from .harness.pipeline import Notes, Pipeline, Task
from .harness.train import Recipe, denoising_loss, retrain

CARD = {
    "paper": None,
    "granularity": None,
    "unit": None,
    "role": "recovery",
    "tasks": ["fashion_unet", "fashion_dit", "fashion_t2i"],
    "recipe": ("magnitude", "finetune"),
    "try": ("magnitude.macs=0.5", "finetune.steps=100", "finetune.batch_size=32"),
}


@dataclass(frozen=True)
class Config:
    """Diff-Pruning retrains with Adam at 2e-4; the budget here is a small fraction of its own."""

    steps: int = 150  # optimizer steps
    batch_size: int = 64
    learning_rate: float = 2e-4
    ema_decay: float = 0.98  # short runs need a short average
    precision: Literal["bf16", "fp32"] = "bf16"  # autocast dtype


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Train the pipeline's denoiser in place; batches depend on the task's seed alone."""
    recipe = Recipe(
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup=max(1, config.steps // 10),
        ema_decay=config.ema_decay,
        precision=config.precision,
    )
    masks = zero_masks(pipe.denoiser)
    batches = task.training_batches(config.batch_size)
    losses = retrain(pipe.denoiser, batches, recipe, kept_zero(denoising_loss, masks))
    apply_masks(pipe.denoiser, masks)
    return pipe, {"losses": losses, "masked_tensors": len(masks)}
