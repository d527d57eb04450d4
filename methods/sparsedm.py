"""Fine-tune under n:m masks that follow the weights, with a dense teacher beside it.

Kafeng Wang, Jianfei Chen, He Li, Zhenpeng Mi, Jun Zhu: "SparseDM: Toward Sparse Efficient
Diffusion Models", ICME 2025, arXiv 2404.10445.

In every forward pass n weights of largest |W| stay in each run of m, W' = W * mask. Backward, the
improved straight-through estimator gives the dense weight the gradient of the sparse one, not
masked, plus a decay of what is masked now:

    dL/dW = dL/dW' + decay * (1 - mask) * W

so that masked weights fade or come back; `dense_gradient` off masks the first term too: a masked
weight then learns nothing and comes back only if a kept one falls below it.

Loss: a |target - student|^2 + b |teacher - student|^2, (a, b) = (1, 0) plain, (0, 1) teacher only,
(1, 0.1) the default and the code's "lsm3".
`progressive` tightens the pattern in four phases of equal length (2:4 comes after 6:8, 5:8, 4:8),
each with a new optimizer and a new loss. The published loop has a phase as configured before them,
and keeps the old optimizer and loss by mistake. Runs of 8 have to fit every masked layer.

Differs from the paper in: masked are the inner convolutions and linear layers of a U-Net (its
U-ViT: attention and MLP; its U-Net: all, here `layers="all"`); learning rate warmed up, then a
cosine to zero, and gradients clipped at norm 1, as `finetune` does, over far fewer steps; Adam's
betas 0.99 and 0.999 and weight decay 0.03 are theirs, not those of `finetune`. Averages are taken
of the dense weights, and the final mask is chosen from the averaged weights. By default runs stay
within the input channels of one kernel position; layout "flattened" is the authors' order, whose
runs may cross them (`crossing` in the notes tells where; no hardware can use those). Ties go in
order of their index instead of by chance.

By default the first and last layers and the embeddings stay dense, and on a DiT every block's norm1
(timestep MLP and adaLN) too: 41 % of the parameters of `fashion_dit`, of all of which 2:4 zeroes
28.5 %. `layers="all"` masks them too.

Expect: `python -m methods run sparsedm --task fashion_t2i --set sparsedm.steps=100 --set
sparsedm.batch_size=32`. It is a row of `python -m methods standard --task fashion_t2i`, whose
records hold its time, machine, cost and scores with their spread. MACs as counted on dense hardware
do not change and neither does time: only `harness.semi_structured`, on a CUDA device, in 2:4 and
for linear layers, skips the zeros. Convolutions have no such kernel in torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .harness.denoise import predict
from .harness.masks import (
    Along,
    Layer,
    NOfM,
    Which,
    apply_masks,
    crossing,
    lowest,
    removed,
    sparse_layers,
)
from .harness.pipeline import NoisedBatch, Notes, Pipeline, Task
from .harness.train import Recipe, retrain

CARD = {
    "paper": "sparsedm",
    "granularity": "semi-structured",
    "unit": "n:m",
    "role": "method",
    "tasks": ["fashion_unet", "fashion_dit", "fashion_t2i"],
    "try": ("sparsedm.steps=100", "sparsedm.batch_size=32"),
}


@dataclass(frozen=True)
class Config:
    """2:4 and the estimator as published; the training budget is a small fraction of theirs."""

    n: int = 2  # weights kept of every run
    m: int = 4  # length of a run
    layout: Along = "input"  # runs along input channels, or "flattened" as the authors' code
    layers: Which = "inner"  # or "all": first, last and time-embedding layers too
    decay: float = 2e-4  # pull of masked weights towards zero, lambda of the paper
    dense_gradient: bool = True  # masked weights get the gradient too; off: an ablation
    noise_weight: float = 1.0  # weight of the denoising loss
    teacher_weight: float = 0.1  # weight of the distance to the dense model's answer; 0: no teacher
    progressive: bool = False  # tighten the pattern in four phases
    steps: int = 150  # optimizer steps, of all phases together
    batch_size: int = 64
    learning_rate: float = 2e-4
    weight_decay: float = 0.03  # of AdamW, on all weights
    ema_decay: float = 0.98  # short runs need a short average
    precision: Literal["bf16", "fp32"] = "bf16"  # autocast dtype


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Train the pipeline's denoiser in place under its masks, then bake the last mask in."""
    target = NOfM(config.n, config.m, config.layout)
    phases = schedule(target, config.steps) if config.progressive else [(target, config.steps)]
    for weight in ("decay", "noise_weight", "teacher_weight"):
        if getattr(config, weight) < 0:
            raise ValueError(f"{weight} must not be negative, not {getattr(config, weight)}")
    if config.noise_weight == config.teacher_weight == 0:
        raise ValueError("noise_weight and teacher_weight are both zero: nothing to learn from")
    layers = sparse_layers(pipe.denoiser, config.layers)
    check_patterns([pattern for pattern, _ in phases], layers)  # before any training

    first = magnitude_masks(layers, target)
    batches = task.training_batches(config.batch_size)
    losses: list[float] = []
    for pattern, steps in phases:
        recipe = Recipe(
            steps=steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            betas=(0.99, 0.999),
            weight_decay=config.weight_decay,
            warmup=max(1, steps // 10),
            ema_decay=config.ema_decay,
            precision=config.precision,
        )
        objective = SparseLoss(
            pattern,
            tuple(layers),
            config.decay,
            task.dense.denoiser,
            config.noise_weight,
            config.teacher_weight,
            config.dense_gradient,
        )
        losses += retrain(pipe.denoiser, batches, recipe, objective)
    last = magnitude_masks(layers, target)
    apply_masks(pipe.denoiser, last)
    pipe.denoiser.eval()
    zeroed = {name: int(last[f"{name}.weight"].sum()) for name in layers}
    changed = sum(int((first[name] & ~last[name]).sum()) for name in last)
    return pipe, {
        "zeroed": zeroed,
        "came_back": changed / max(1, sum(zeroed.values())),  # masked at first, kept at last
        "phases": [[str(pattern), steps] for pattern, steps in phases],
        "crossing": crossing(layers, target),
        "losses": losses,
    }


def check_patterns(patterns: Sequence[NOfM], layers: Mapping[str, Layer]) -> None:
    """Refuse patterns, the last of which is the one asked for, whose runs do not fit a layer.

    Raises:
        ValueError: naming the layer, and the phase where `progressive` put the pattern there.
    """
    for pattern in patterns:
        for name, layer in layers.items():
            try:
                pattern.check(layer.weight.shape, name)
            except ValueError as error:
                if pattern == patterns[-1]:
                    raise
                raise ValueError(f"progressive, in its phase {pattern}: {error}") from error


def schedule(target: NOfM, steps: int) -> list[tuple[NOfM, int]]:
    """Four patterns of equal length, ending in `target`; the last takes what does not divide.

    The first three keep ever less of runs twice as long: 6:8, 5:8, 4:8 before 2:4.
    """
    n, m, along = target.n, target.m, target.along
    kept = (n + m, (3 * n + m) // 2, 2 * n)
    share = steps // 4
    phases = [(NOfM(k, 2 * m, along), share) for k in kept]
    return [*phases, (target, steps - 3 * share)]


class SparseWeight(torch.autograd.Function):
    """W with its masked entries zero; backward as in the module's equation."""

    @staticmethod
    def forward(weight: Tensor, mask: Tensor, decay: float, dense_gradient: bool) -> Tensor:
        return weight.masked_fill(mask, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, bool], output: Tensor) -> None:
        weight, mask, ctx.decay, ctx.dense_gradient = inputs
        ctx.save_for_backward(weight, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        weight, mask = ctx.saved_tensors
        upstream = grads[0] if ctx.dense_gradient else grads[0].masked_fill(mask, 0.0)
        return upstream + ctx.decay * (mask * weight), None, None, None


def sparse_weights(
    model: nn.Module,
    names: tuple[str, ...],
    pattern: NOfM,
    decay: float,
    dense_gradient: bool = True,
) -> dict[str, Tensor]:
    """Masked weights of the named layers by parameter name; masks from the magnitudes of now."""
    masked = {}
    for name in names:
        weight = model.get_parameter(f"{name}.weight")
        mask = lowest(weight.detach().abs(), pattern, name)
        masked[f"{name}.weight"] = SparseWeight.apply(  # type: ignore[no-untyped-call]
            weight, mask, decay, dense_gradient
        )
    return masked


@dataclass(frozen=True)
class SparseLoss:
    """The training objective; the model itself keeps plain dense parameters."""

    pattern: NOfM
    names: tuple[str, ...]  # layers that are masked
    decay: float
    teacher: nn.Module
    noise_weight: float
    teacher_weight: float
    dense_gradient: bool = True

    def __call__(self, model: nn.Module, batch: NoisedBatch) -> Tensor:
        weights = sparse_weights(model, self.names, self.pattern, self.decay, self.dense_gradient)
        inputs = (batch.x_t,)
        settings = {"timestep": batch.t, "return_dict": False, **batch.condition}
        answer = functional_call(model, weights, inputs, settings)[0].float()
        loss = self.noise_weight * (answer - batch.target).square().mean()
        if self.teacher_weight:
            with torch.no_grad():
                dense = predict(self.teacher, batch.x_t, batch.t, batch.condition).float()
            loss = loss + self.teacher_weight * (answer - dense).square().mean()
        return loss


def magnitude_masks(layers: Mapping[str, Layer], pattern: NOfM) -> dict[str, Tensor]:
    """Masks of the smallest magnitudes by parameter name."""
    return {
        f"{name}.weight": removed(layer.weight.detach().abs(), pattern, name)
        for name, layer in layers.items()
    }
