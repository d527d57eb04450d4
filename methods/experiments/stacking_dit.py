"""Do pruning, low precision and fewer steps add up on a DiT?

{dense, pruned, pruned and distilled} x {fp32, bf16, dynamic int8} x {DDIM, DPM-Solver++} x
{50, 20, 8 steps}: error to the dense model at the same noise, distance to real photographs,
agreement with the request, CPU time of the denoiser (one call, times the steps) and bytes of its
weights. Pruned is laptop_diff; int8 has CPU kernels only and leaves convolutions in fp32.

At this scale: no combination of the pruned or the distilled model can err more than a tenth above
its sum. What 60 images leave open are four of the dense model, in low precision and without the
fewest steps, whose errors are the smallest of all and differ most from image to image.

Expect: `python -m methods experiment stacking_dit`, 8 minutes of one core.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.harness import stacking
from methods.harness.experiment import Finding, Lab

CARD = {
    "methods": ["laptop_diff", "distill"],
    "task": "fashion_dit",
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
    images: int = 60  # of every combination
    most_steps: int = 50  # sampling steps of the reference
    some_steps: int = 20
    few_steps: int = 8


def investigate(lab: Lab, config: Config) -> Finding:
    """Every combination on this base."""
    recipes = stacking.laptop_diff_recipes(
        config.params, config.distill_steps, config.distill_batch
    )
    steps = (config.most_steps, config.some_steps, config.few_steps)
    return stacking.investigate(lab, "fashion_dit", recipes, steps, config.images)
