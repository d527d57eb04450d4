"""Retrain a pruned model on the dense model's answers and features: a recipe step for any method.

Kim et al., "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion", ECCV 2024,
arXiv 2305.15798: L = L_task + w_out L_out + w_feat L_feat, mean squared errors to the denoising
target, to the dense model's answer and to the outputs of its stages. LAPTOP-Diff (Zhang et al.,
arXiv 2404.11098) divides every feature term by the teacher's (`normalise`): "squared" is our
reading of "normalised by the L2 norm of teacher feature maps"; whether its square is meant is not
public, so "norm" can be chosen.

Feature points: U-Net stages (before the sampler, at the last transformer's `proj_out`, where the
student lost it, as in BK-SDM-Tiny), DiT blocks. A point whose width was pruned is left out, and the
notes name it; where all were, answers alone are learned from. Weights that an earlier step set to
zero stay zero.

Differs from the papers in: AdamW with warm-up, cosine decay and averaged weights, as `finetune`, so
that a table compares losses and not schedules.

Expect: `python -m methods run laptop_diff distill --task fashion_t2i --set laptop_diff.params=0.5
--set distill.steps=100 --set distill.batch_size=32 --set distill.normalise=squared`. It is a row of
`python -m methods standard --task fashion_t2i`, whose records hold its time, machine, cost and
scores with their spread. A step costs more than one of `finetune` by the teacher's forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .harness.distill import Distillation, Fit
from .harness.masks import apply_masks, kept_zero, zero_masks
from .harness.pipeline import Notes, Pipeline, Task
from .harness.train import Recipe, retrain

CARD = {
    "paper": None,
    "granularity": None,
    "unit": None,
    "role": "recovery",
    "tasks": ["fashion_unet", "fashion_dit", "fashion_t2i"],
    "recipe": ("laptop_diff", "distill"),
    "try": (
        "laptop_diff.params=0.5",
        "distill.steps=100",
        "distill.batch_size=32",
        "distill.normalise=squared",
    ),
}


@dataclass(frozen=True)
class Config:
    """The weights are BK-SDM's; the budget is that of `finetune`, a small fraction of theirs."""

    steps: int = 150  # optimizer steps
    batch_size: int = 64
    learning_rate: float = 2e-4  # BK-SDM: 5e-5 over 50,000 steps
    task_weight: float = 1.0
    output_weight: float = 1.0
    feature_weight: float = 1.0
    normalise: Literal["none", "norm", "squared"] = "none"  # feature terms over the teacher's size
    ema_decay: float = 0.98  # short runs need a short average
    precision: Literal["bf16", "fp32"] = "bf16"  # autocast dtype


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Train the pipeline's denoiser in place; the teacher is the task's dense model."""
    recipe = Recipe(
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup=max(1, config.steps // 10),
        ema_decay=config.ema_decay,
        precision=config.precision,
    )
    objective = Distillation(
        task.dense.denoiser,
        config.task_weight,
        config.output_weight,
        config.feature_weight,
        config.normalise,
    )
    masks = zero_masks(pipe.denoiser)
    batches = task.training_batches(config.batch_size)
    losses = retrain(pipe.denoiser, batches, recipe, kept_zero(objective, masks))
    apply_masks(pipe.denoiser, masks)
    points = objective.points or Fit({}, {})
    return pipe, {
        "losses": losses,
        "feature_points": points.used,
        "feature_points_left_out": points.left_out,
        "masked_tensors": len(masks),
    }
