"""Do pruning, low precision and fewer steps add up on a text-to-image U-Net?

{dense, pruned, pruned and distilled} x {fp32, bf16, dynamic int8} x {DDIM, DPM-Solver++} x
{50, 20, 8 steps}: error to the dense model at the same noise, distance to real photographs,
agreement with the request, CPU time of the denoiser (one call, times the steps) and bytes of its
weights. Pruned is laptop_diff; int8 has CPU kernels only and leaves convolutions in fp32.

At this scale: 40 images leave half of the combinations open, all of them in 20 or 50 steps, where
errors are small and differ much from image to image. In 8 steps, whose own error is the largest, an
excess is ruled out for all.

Expect: `python -m methods experiment stacking_t2i`, 13 minutes of one core.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.harness import stacking
from methods.harness.experiment import Finding, Lab

CARD = {
    "methods": ["laptop_diff", "distill"],
    "task": "fashion_t2i",
    "bar": "every combination errs at most a tenth more than the sum of its parts, by the upper "
    "ends of 95 % intervals over images that hold jointly",
    "source": "the question that every list of complements leaves open: do the gains stack?",
}

SEEDS = 1  # intervals are over images


@dataclass(frozen=True)
class Config:
    """One size, one length of distillation."""

    params: float = 0.75  # denoiser parameters left
    distill_steps: int = 100  # optimizer steps
    distill_batch: int = 64  # images in each
    images: int = 40  # of every combination
    most_steps: int = 50  # sampling steps of the reference
    some_steps: int = 20
    few_steps: int = 8


def investigate(lab: Lab, config: Config) -> Finding:
    """Every combination on this base."""
    recipes = stacking.laptop_diff_recipes(
        config.params, config.distill_steps, config.distill_batch
    )
    steps = (config.most_steps, config.some_steps, config.few_steps)
    return stacking.investigate(lab, "fashion_t2i", recipes, steps, config.images)
