"""Remove channels by chance: the row that a criterion has to beat to mean anything.

Shapes are those of the other channel methods at the same request; only the choice is random.

Differs from the "random" of Diff-Pruning's script in nothing but the random numbers: one
uniform number per channel and group.

Expect: `python -m methods run random_pruning --task fashion_t2i --set random_pruning.macs=0.5`. It
is a row of `python -m methods standard --task fashion_t2i`, whose records hold its time, machine,
cost and scores with their spread. It takes hardly any time beside that of sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .harness.channels import channel_groups
from .harness.pipeline import Notes, Pipeline, Task
from .harness.surgery import Rule, cut, requested_widths, select

CARD = {
    "paper": None,
    "granularity": "structured",
    "unit": "channel",
    "role": "baseline",
    "tasks": ["fashion_unet", "fashion_dit", "fashion_t2i"],
    "try": ("random_pruning.macs=0.5",),
}


@dataclass(frozen=True)
class Config:
    """Ask either by `ratio` or by `macs`; with neither, the ratio is 0.3."""

    ratio: float | None = None  # channels removed from every group, [0, 1)
    macs: float | None = None  # convolution and linear MACs left, (0, 1]
    rule: Rule = "within"  # equal counts inside GroupNorm groups, or "whole" groups
    reinit: bool = False  # forget the weights too: a smaller model that starts from scratch


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Draw one uniform number per channel from the task's seed and keep the largest."""
    widths = requested_widths(
        pipe.denoiser, task.example_inputs(), config.ratio, config.macs, config.rule
    )
    draw = task.generator("random_pruning")
    keep = {}
    for group in channel_groups(pipe.denoiser):
        scores = torch.rand(group.size, generator=draw)
        if widths[group.name] < group.size:
            keep[group.name] = select(group, scores, widths[group.name], config.rule)
    pipe = cut(pipe, keep, config.rule)
    if config.reinit:
        reinitialise(pipe.denoiser, draw)
    return pipe, {"keep": keep}


def reinitialise(model: nn.Module, draw: torch.Generator) -> None:
    """Give every layer the weights that torch starts it with, from this generator alone.

    The numbers are drawn on the CPU, so that devices agree and no global state is touched.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**31, (1,), generator=draw)))
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                module.cpu()
                reset()
                module.to(device)
