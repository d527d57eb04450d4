"""Prune channels by a Taylor score summed over the timesteps that matter, then fine-tune.

Gongfan Fang, Xinyin Ma, Xinchao Wang: "Structural Pruning for Diffusion Models" (Diff-Pruning),
NeurIPS 2023, arXiv 2305.10924.

One batch x0 and one noise tensor are taken through t = 0, 1, 2, ...; gradients of the denoising
loss L_t add up, g = sum_t dL_t/dw. At large t images are little but noise: accumulation stops at
the first t with L_t < threshold * max L. L_t is the error of the noise also where the model
predicts v or the clean image. A channel's score adds the Taylor terms of all tensor slices that go
with it (residuals, concatenations, time projections: `harness/channels.py`), and the lowest are
cut. The two official programs differ, `variant` selects:

* "diffusers" (ddpm_prune.py): slice score sum |w g|, mean over conv and linear slices, divided
  by its mean; a tensor that holds the group twice counts both halves; the step that falls under
  the threshold is still accumulated.
* "ddpm_exp" (the code behind the tables): slice score sum (w g)^2, GroupNorm gammas |w g| are
  members, plain sum; tensors that read the group twice are dropped; the step that falls under the
  threshold is not accumulated.
  Its loss sums over pixels, and since squared and plain terms are added, that scale matters.

Counts follow the official rule: int arithmetic inside every GroupNorm group, which makes ratio
0.3 remove 25 % of 128, 256 and 512 channels. `rule="whole"` cuts whole groups instead.

The other criteria of ddpm_prune.py are methods of their own, cut to the same widths: its "taylor"
is `taylor`, its "magnitude" `magnitude` (p = 1 or 2), its "random" `random_pruning` and its
"reinit" `random_pruning` with reinit.

Differs from the paper in: the base and its data; `stride` can skip timesteps to save time
(1 is the paper's); timesteps of a batch below `images_per_pass` share a forward pass, which leaves
the sum of gradients as it is; the pruned model is saved as data, not pickled. Fine-tuning is the
recipe step `finetune`, shared by all methods.

Expect: `python -m methods run diff_pruning --task fashion_t2i --set diff_pruning.macs=0.5 --set
diff_pruning.batch_size=32 --set diff_pruning.stride=10`. It is a row of `python -m methods standard
--task fashion_t2i`, whose records hold its time, machine, cost and scores with their spread. The
defaults are the paper's: every timestep and 128 images instead of every tenth and 32, which takes
about 40 times as many denoiser calls at threshold 0. `run diff_pruning finetune` retrains too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from .harness.gradients import accumulate_gradients, taylor_terms
from .harness.pipeline import Notes, Pipeline, Task
from .harness.scores import GroupScore, Order, choose
from .harness.surgery import Rule, cut, requested_widths

CARD = {
    "paper": "diff-pruning",
    "granularity": "structured",
    "unit": "channel",
    "role": "method",
    "tasks": ["fashion_unet", "fashion_dit", "fashion_t2i"],
    "known_as": "Diff-Pruning",
    "try": ("diff_pruning.macs=0.5", "diff_pruning.batch_size=32", "diff_pruning.stride=10"),
}

Variant = Literal["diffusers", "ddpm_exp"]


@dataclass(frozen=True)
class Config:
    """Ask either by `ratio` or by `macs`; with neither, the paper's ratio of 0.3."""

    ratio: float | None = None  # channels removed from every group, [0, 1)
    macs: float | None = None  # convolution and linear MACs left, (0, 1]
    threshold: float = 0.05  # relative loss at which accumulation stops, [0, 1); 0: all timesteps
    variant: Variant = "diffusers"  # which official program to follow
    batch_size: int = 128  # calibration images, one fixed batch for all timesteps
    stride: int = 1  # every stride-th timestep; 1 is the paper's
    rule: Rule = "within"  # equal counts inside GroupNorm groups, or "whole" groups
    order: Order = "sequential"  # as the official code, or all scores first ("one-shot")
    precision: Literal["fp32", "bf16"] = "fp32"  # of the model while gradients are taken
    images_per_pass: int = 128  # timesteps of smaller batches share a pass up to so many images


SCORES = {
    "diffusers": GroupScore(lambda w, g: taylor_terms(w, g).abs().sum(dim=1)),
    "ddpm_exp": GroupScore(
        # One column is a GroupNorm gamma, whose Taylor term stays linear.
        lambda w, g: (
            taylor_terms(w, g).square().sum(dim=1)
            if w.shape[1] > 1
            else taylor_terms(w, g).abs()[:, 0]
        ),
        reduction="sum",
        norms=True,
        repeated="drop",
    ),
}


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Accumulate gradients, score, cut."""
    if config.variant not in SCORES:
        raise ValueError(f"variant must be one of {', '.join(SCORES)}, not {config.variant!r}")
    if config.stride < 1:
        raise ValueError(f"stride must be at least 1, not {config.stride}")
    widths = requested_widths(
        pipe.denoiser, task.example_inputs(), config.ratio, config.macs, config.rule
    )
    examples = task.calibration_batch(config.batch_size)
    noise = torch.randn(examples.x0.shape, generator=task.generator("diff_pruning/noise")).to(
        task.device
    )
    losses = accumulate_gradients(
        pipe.denoiser,
        task,
        examples,
        noise,
        threshold=config.threshold,
        stride=config.stride,
        include_last=config.variant == "diffusers",
        sum_pixels=config.variant == "ddpm_exp",
        precision=config.precision,
        images_per_pass=config.images_per_pass,
    )
    keep = choose(
        pipe.denoiser, SCORES[config.variant], widths, rule=config.rule, order=config.order
    )
    pipe.denoiser.zero_grad(set_to_none=True)
    pipe = cut(pipe, keep, config.rule)
    return pipe, {"keep": keep, "losses": losses, "stop": (len(losses) - 1) * config.stride}
