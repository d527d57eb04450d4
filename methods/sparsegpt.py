"""Zero weights layer by layer and let those that stay make up for them, by second order.

Elias Frantar, Dan Alistarh: "SparseGPT: Massive Language Models Can Be Accurately Pruned in
One-Shot", ICML 2023, arXiv 2301.00774. A baseline from language models, not a diffusion paper.

With H = 2 / samples * sum of x x^T over tokens (damped by 0.01 of its mean diagonal) and U the
upper Cholesky factor of H^-1, columns are visited from left to right. A removed weight costs
w^2 / U_jj^2; its loss is spread over the columns k >= j of its row by w_k -= w_j / U_jj * U_jk.
Unstructured masks are chosen per block of about 128 columns, over all rows at once; n:m masks at
the first column of each run; both from weights that already hold earlier compensation.

Differs from the paper in: inputs are calibration images at random noise levels, a sample is one
image at one level; convolutions are unfolded, columns run over kernel positions first and input
channels last (the released class flattens the weight and leaves the input); exactly
int(block * ratio) weights go per block, ties by index; layers are calibrated in `stages` in order
of execution, each with the stages before it pruned (1: all at once on dense inputs). First and
last convolution and time embedding stay dense.

On a DiT every block's norm1 (timestep MLP and adaLN) stays dense too: 41 % of the parameters of
`fashion_dit`, of all of which a ratio of 0.5 zeroes 28.5 %.

Expect: `python -m methods run sparsegpt --task fashion_t2i`. It is a row of `python -m methods
standard --task fashion_t2i`, whose records hold its time, machine, cost and scores with their
spread. Memory for one columns x columns matrix per layer of a stage. Neither MACs nor time on dense
hardware change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .harness.calibration import calibration, columns, in_stages, observe
from .harness.masks import (
    NOfM,
    Pattern,
    PatternName,
    Unstructured,
    as_matrix,
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
    """Either a share of every block of columns, or n of m."""

    ratio: float = 0.5  # weights zeroed, [0, 1); unstructured only
    pattern: PatternName = "unstructured"
    n: int = 2  # weights kept of every run, n:m only
    m: int = 4  # length of a run, n:m only
    block: int = 128  # columns whose mask is chosen together
    damp: float = 0.01  # added to the diagonal, as a fraction of its mean
    batch_size: int = 32  # calibration images
    timesteps: int = 4  # random noise levels that each image is seen at
    stages: int = 4  # calibration passes; later layers see what pruning did before them


@torch.no_grad()
def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Sum up the Hessians of a stage, solve its layers, go on."""
    pattern = requested_pattern(config.pattern, config.ratio, config.n, config.m)
    if config.block < 1 or not config.damp > 0:
        raise ValueError("block must be at least 1 and damp above 0")
    model = pipe.denoiser.eval()
    layers = sparse_layers(model)
    batches = calibration(task, config.batch_size, config.timesteps, "sparsegpt")
    scale = 2.0 / (config.batch_size * config.timesteps)
    zeroed: dict[str, int] = {}
    for stage in in_stages(model, batches[0], layers, config.stages):
        hessians: dict[str, Tensor] = {}

        def see(name: str, x: Tensor, hessians: dict[str, Tensor] = hessians) -> None:
            tokens = columns(layers[name], x)
            hessians[name] = hessians.get(name, 0) + scale * (tokens.T @ tokens)

        observe(model, batches, stage, see)
        for name, layer in stage.items():
            if isinstance(pattern, NOfM):
                pattern.check(layer.weight.shape, name)
            matrix, mask = solve(
                as_matrix(layer.weight),
                hessians.pop(name),
                pattern,
                config.block,
                config.damp,
                name,
            )
            layer.weight.copy_(as_weight(matrix, layer.weight.shape))
            zeroed[name] = int(mask.sum())
    return pipe, {"zeroed": zeroed}


@torch.no_grad()
def solve(
    weight: Tensor,
    hessian: Tensor,
    pattern: Pattern,
    block: int = 128,
    damp: float = 0.01,
    name: str = "the layer",
) -> tuple[Tensor, Tensor]:
    """The pruned, compensated weight (out, columns) and its mask; hessian is (columns, columns).

    Columns that never see an input are cleared whole, and so masked, beside what the pattern takes;
    a pattern that takes nothing leaves the weight as it is.

    Raises:
        ValueError: the Hessian is not finite or not positive after damping, naming the layer.
    """
    weight = weight.clone()
    mask = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    if pattern.n == pattern.m if isinstance(pattern, NOfM) else pattern.ratio == 0.0:
        return weight, mask
    upper, dead = _inverse_factor(hessian, damp, name)
    weight[:, dead] = 0.0
    run = pattern.m if isinstance(pattern, NOfM) else 1
    block = max(run, block - block % run)
    for start in range(0, weight.shape[1], block):
        end = min(start + block, weight.shape[1])
        part, diagonal = weight[:, start:end], upper.diagonal()[start:end]
        if isinstance(pattern, Unstructured):
            mask[:, start:end] = removed((part / diagonal).square(), pattern, name)
        errors = torch.zeros_like(part)
        for j in range(end - start):
            if isinstance(pattern, NOfM) and j % run == 0:
                ahead = slice(j, j + run)
                cost = (part[:, ahead] / diagonal[ahead]).square()
                mask[:, start + j : start + j + run] = removed(cost, pattern, name)
            errors[:, j] = part[:, j] * mask[:, start + j] / diagonal[j]
            part[:, j:] -= errors[:, j, None] * upper[start + j, start + j : end]
        weight[:, end:] -= errors @ upper[start:end, end:]
    mask[:, dead] = True
    return weight.masked_fill_(mask, 0.0), mask


def _inverse_factor(hessian: Tensor, damp: float, name: str) -> tuple[Tensor, Tensor]:
    """Upper Cholesky factor of the damped inverse, and which columns are dead."""
    hessian = hessian.clone()
    diagonal = hessian.diagonal()  # a view: what is written here lands in the matrix
    dead = diagonal == 0
    diagonal[dead] = 1.0
    diagonal += damp * diagonal.mean()
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if not bool(failed):
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
    if bool(failed) or not bool(upper.isfinite().all()):
        raise ValueError(f"{name}: its inputs give no positive Hessian; raise damp")
    return upper, dead
