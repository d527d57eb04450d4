"""Remove what is small: channels by the norm of their weights, or single weights.

Magnitude pruning goes back to Han et al., "Learning both Weights and Connections for Efficient
Neural Networks" (NeurIPS 2015, arXiv 1506.02626); filters by L1 norm to Li et al., "Pruning
Filters for Efficient ConvNets" (ICLR 2017, arXiv 1608.08710). The group form is DepGraph's
(Fang et al., CVPR 2023, arXiv 2301.12900), the baseline of Diff-Pruning.

Channels: s(i) = mean over member tensors m of sum |w_m,i|^p, divided by its mean over channels.
p = 2 takes no square root, as the official baseline. Weights: in every convolution and linear
layer the fraction `ratio` of smallest |w| becomes zero.

Differs from the papers in: one cut instead of alternating with training; the unstructured form
uses one threshold per layer and leaves conv_in, conv_out and the time embedding dense.

On a DiT every block's norm1 (timestep MLP and adaLN) stays dense too: 41 % of the parameters of
`fashion_dit`, of all of which a ratio of 0.5 of single weights zeroes 28.5 %.

Expect: `python -m methods run magnitude --task fashion_t2i --set magnitude.macs=0.5`. It is a row
of `python -m methods standard --task fashion_t2i`, whose records hold its time, machine, cost and
scores with their spread. Channels give fewer MACs and, at some batch sizes, less time; single
weights (`magnitude.unit=weight` with `magnitude.ratio=0.5` in place of `macs`) fewer that are not
zero, and neither fewer MACs nor any speed, since dense kernels multiply zeros too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from .harness.masks import smallest, sparse_layers
from .harness.pipeline import Notes, Pipeline, Task
from .harness.scores import GroupScore, Order, choose
from .harness.surgery import Rule, cut, requested_widths

CARD = {
    "paper": None,
    "granularity": "structured, unstructured",
    "unit": "channel, weight",
    "role": "baseline",
    "tasks": ["fashion_unet", "fashion_dit", "fashion_t2i"],
    "try": ("magnitude.macs=0.5",),
}


@dataclass(frozen=True)
class Config:
    """Ask either by `ratio` or by `macs`; with neither, the ratio is 0.3."""

    ratio: float | None = None  # channels removed from every group, or weights zeroed, [0, 1)
    macs: float | None = None  # convolution and linear MACs left, (0, 1]; channels only
    unit: Literal["channel", "weight"] = "channel"  # what is removed
    p: int = 2  # 1 or 2: the norm of a channel's weights
    rule: Rule = "within"  # equal counts inside GroupNorm groups, or "whole" groups
    order: Order = "sequential"  # as the official code, or all scores first ("one-shot")


SCORES = {  # by p
    1: GroupScore(lambda w, _: w.abs().sum(dim=1)),
    2: GroupScore(lambda w, _: w.square().sum(dim=1)),
}


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Score and cut; needs no data."""
    if config.unit == "weight":
        if config.macs is not None:
            raise ValueError("macs: zeroed weights save no MACs; ask for a ratio")
        ratio = 0.3 if config.ratio is None else config.ratio
        return pipe, {"zeroed": zero_smallest(pipe.denoiser, ratio)}
    if config.p not in SCORES:
        raise ValueError(f"p must be 1 or 2, not {config.p}")
    widths = requested_widths(
        pipe.denoiser, task.example_inputs(), config.ratio, config.macs, config.rule
    )
    keep = choose(pipe.denoiser, SCORES[config.p], widths, rule=config.rule, order=config.order)
    return cut(pipe, keep, config.rule), {"keep": keep}


@torch.no_grad()
def zero_smallest(model: nn.Module, ratio: float) -> dict[str, int]:
    """Zero int(n * ratio) weights of smallest |w| in every inner layer; returns the counts."""
    zeroed = {}
    for name, layer in sparse_layers(model).items():
        mask = smallest(layer.weight, ratio)
        layer.weight.masked_fill_(mask, 0.0)
        zeroed[name] = int(mask.sum())
    return zeroed
