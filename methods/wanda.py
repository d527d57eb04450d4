"""Zero the weights whose magnitude times the size of their input is smallest; no training.

Mingjie Sun, Zhuang Liu, Anna Bair, J. Zico Kolter: "A Simple and Effective Pruning Approach for
Large Language Models" (Wanda), ICLR 2024, arXiv 2306.11695. A baseline from language models, not
a diffusion paper.

    S_ij = |W_ij| * sqrt(sum over tokens of x_j^2 / samples)

compared within each output row i: the int(columns * ratio) lowest go, or all but n of every run
of m. Weights that stay are not changed.

Differs from the paper in: inputs are calibration images at random noise levels; a sample is one
image at one level. Convolutions are unfolded: a column is one input channel at one kernel position
and a token one output position; n:m runs follow the input channels of a kernel position. Instead
of transformer block by block, layers are calibrated in `stages` in order of execution, each with
the stages before it pruned (1: all at once on dense inputs). First and last convolution and time
embedding stay dense.

On a DiT every block's norm1 (timestep MLP and adaLN) stays dense too: 41 % of the parameters of
`fashion_dit`, of all of which a ratio of 0.5 zeroes 28.5 %.

Expect: `python -m methods run wanda --task fashion_t2i`. It is a row of `python -m methods standard
--task fashion_t2i`, whose records hold its time, machine, cost and scores with their spread. Some
forward passes and no gradients. Neither MACs nor time on dense hardware change, since dense kernels
multiply zeros too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .harness.calibration import calibration, columns, in_stages, observe
from .harness.masks import (
    Layer,
    PatternName,
    as_weight,
    removed,
    requested_pattern,
    sparse_layers,
)
from .harness.pipeline import Notes, Pipeline, Task

CARD = {
    "paper": None,
    "granularity": "unstructured, semi-structured",
    "unit": "weight, n:m",
    "role": "baseline",
    "tasks": ["fashion_unet", "fashion_dit", "fashion_t2i"],
}


@dataclass(frozen=True)
class Config:
    """Either a share of every row, or n of m."""

    ratio: float = 0.5  # weights zeroed of every output row, [0, 1); unstructured only
    pattern: PatternName = "unstructured"
    n: int = 2  # weights kept of every run, n:m only
    m: int = 4  # length of a run, n:m only
    batch_size: int = 32  # calibration images
    timesteps: int = 4  # random noise levels that each image is seen at
    stages: int = 4  # calibration passes; later layers see what pruning did before them


@torch.no_grad()
def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Measure inputs, score and zero, stage by stage."""
    pattern = requested_pattern(config.pattern, config.ratio, config.n, config.m, per="row")
    model = pipe.denoiser.eval()
    layers = sparse_layers(model)
    batches = calibration(task, config.batch_size, config.timesteps, "wanda")
    samples = config.batch_size * config.timesteps
    zeroed: dict[str, int] = {}
    for stage in in_stages(model, batches[0], layers, config.stages):
        squares: dict[str, Tensor] = {}

        def see(name: str, x: Tensor, squares: dict[str, Tensor] = squares) -> None:
            total = columns(layers[name], x).square().sum(dim=0)  # (columns,)
            squares[name] = squares.get(name, 0) + total

        observe(model, batches, stage, see)
        for name, layer in stage.items():
            mask = removed(scores(layer, squares[name] / samples), pattern, name)
            layer.weight.masked_fill_(mask, 0.0)
            zeroed[name] = int(mask.sum())
    return pipe, {"zeroed": zeroed}


def scores(layer: Layer, mean_squares: Tensor) -> Tensor:
    """|W| times the norm of its input, shaped as the weight; mean_squares is (columns,)."""
    shape = layer.weight.shape
    norms = as_weight(mean_squares.sqrt()[None], (1, *shape[1:]))
    return layer.weight.detach().abs() * norms
