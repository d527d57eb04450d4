"""Prune channels by a first-order Taylor score over all timesteps, signs cancelling.

The baseline of Diff-Pruning (Fang, Ma and Wang, NeurIPS 2023, arXiv 2305.10924), after Molchanov et
al., "Importance Estimation for Neural Network Pruning" (CVPR 2019, arXiv 1906.10771). Gradients of
the denoising loss (of the noise, whatever the model predicts) are added up over all timesteps,
g = sum_t dL_t/dw; a slice's score is |sum w g|, the absolute value of the sum, as the authors'
program has it ("multivariable"): terms of opposite sign cancel inside a slice. Diff-Pruning adds
|w g| instead and stops early.

Differs from the program in: `stride` can skip timesteps (1 is theirs); timesteps of small batches
share a forward pass.

Expect: `python -m methods run taylor --task fashion_t2i --set taylor.macs=0.5 --set
taylor.batch_size=32 --set taylor.stride=10`. It is a row of `python -m methods standard --task
fashion_t2i`, whose records hold its time, machine, cost and scores with their spread. As
`diff_pruning` with threshold 0, at the same cost.
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
    "paper": None,
    "granularity": "structured",
    "unit": "channel",
    "role": "baseline",
    "tasks": ["fashion_unet", "fashion_dit", "fashion_t2i"],
    "try": ("taylor.macs=0.5", "taylor.batch_size=32", "taylor.stride=10"),
}

SCORE = GroupScore(lambda w, g: taylor_terms(w, g).sum(dim=1).abs())


@dataclass(frozen=True)
class Config:
    """Ask either by `ratio` or by `macs`; with neither, the ratio is 0.3."""

    ratio: float | None = None  # channels removed from every group, [0, 1)
    macs: float | None = None  # convolution and linear MACs left, (0, 1]
    batch_size: int = 128  # calibration images, one fixed batch for all timesteps
    stride: int = 1  # every stride-th timestep; 1 is the program's
    rule: Rule = "within"  # equal counts inside GroupNorm groups, or "whole" groups
    order: Order = "sequential"  # as the official code, or all scores first ("one-shot")
    precision: Literal["fp32", "bf16"] = "fp32"  # of the model while gradients are taken
    images_per_pass: int = 128  # timesteps of smaller batches share a pass up to so many images


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Accumulate gradients over all timesteps, score, cut."""
    if config.stride < 1:
        raise ValueError(f"stride must be at least 1, not {config.stride}")
    widths = requested_widths(
        pipe.denoiser, task.example_inputs(), config.ratio, config.macs, config.rule
    )
    examples = task.calibration_batch(config.batch_size)
    draw = task.generator("taylor/noise")
    noise = torch.randn(examples.x0.shape, generator=draw).to(task.device)
    losses = accumulate_gradients(
        pipe.denoiser,
        task,
        examples,
        noise,
        threshold=0.0,
        stride=config.stride,
        precision=config.precision,
        images_per_pass=config.images_per_pass,
    )
    keep = choose(pipe.denoiser, SCORE, widths, rule=config.rule, order=config.order)
    pipe.denoiser.zero_grad(set_to_none=True)
    return cut(pipe, keep, config.rule), {"keep": keep, "losses": losses}
