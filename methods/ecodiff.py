"""Learn which heads and neurons the finished image can do without, through the whole sampling run.

Zhang et al., "Effortless Efficiency: Low-Cost Pruning of Diffusion Models" (EcoDiff), arXiv
2412.02852; version 2 is "Learnable Sparsity for Vision Generative Models", ICLR 2026. Weights stay
frozen. Every attention head and feed-forward neuron has one gate for all timesteps, a hard-concrete
variable (Louizos et al., ICLR 2018, arXiv 1712.01312) with parameter lambda:

    s = sigmoid((log(u + delta) - log(1 - u + delta) + lambda) / 0.83),  u ~ U(0, 1)
    gate = clip(1.2 s - 0.1, 0, 1)

Heads are multiplied after softmax times values, neurons after the activation. The loss is the mean
squared error of the last latent of the guided sampling run to the dense model's, plus beta R. R is
the expected number of open gates, sum sigmoid(lambda - 0.83 log(0.1 / 1.1)), as the paper writes
("l0"), or what its code does, the mean over layers of |lambda|_1 / n ("l1"). Time-step gradient
checkpointing holds one step in memory. Units are ranked by lambda, the lowest are removed.

Differs from the paper in: gate noise is drawn once for each step and layer and replayed when the
step is run again, so gradients are those of the loss (the released code redraws it); weight decay
does not act on lambda; a layer that loses everything gives its output bias, as masking does; the
norm outputs of FLUX are not pruned. `objective="step"` matches single denoiser answers along the
dense trajectory instead, the paper's baseline.

Expect: prompts x epochs x steps x 2 guided denoiser calls forward, and about twice that back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .harness.denoise import guided
from .harness.pipeline import Notes, Pipeline, Task, seeded
from .harness.trajectory import Gates, LinearStep, Run, checkpointed_backward, linear_steps
from .harness.width import WidthLayer, gated, keep_units, unit_params, width_layers

CARD = {
    "paper": "ecodiff",
    "granularity": "structured",
    "unit": "head, neuron",
    "role": "method",
    "tasks": ["fashion_dit", "fashion_t2i"],
}

TEMPERATURE, LOW, HIGH = 0.83, -0.1, 1.1  # of the hard-concrete gate, as the released code


@dataclass(frozen=True)
class Config:
    """Ask either by `ratio` or by `params`; defaults are the released code's for SDXL."""

    ratio: float | None = None  # of all heads and of all neurons removed, [0, 1)
    params: float | None = None  # denoiser parameters left at most, (0, 1]
    prompts: int = 100  # requests that are learned from, each with one fixed noise
    epochs: int = 4
    batch_size: int = 4  # requests per optimizer step
    steps: int = 50  # sampling steps of the run
    guidance: float | None = None  # w of the run; none: the pipeline's own
    learning_rate: float = 0.1  # of AdamW on lambda
    beta: float = 0.5  # weight of the regulariser
    delta: float = 0.5  # noise of the gates: 0.5 is almost none, 1e-6 the full hard-concrete
    init: float = 3.0  # of lambda
    regulariser: Literal["l1", "l0"] = "l1"  # the code's, or the paper's expected count
    scope: Literal["local", "global"] = "local"  # rank inside each layer, or over the model
    objective: Literal["trajectory", "step"] = "trajectory"


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Learn lambda, rank, remove."""
    layers = width_layers(pipe.denoiser)
    ratio = requested_ratio(pipe.denoiser, layers, config)
    trained = {p: p.requires_grad for p in pipe.denoiser.parameters()}
    pipe.denoiser.eval().requires_grad_(False)
    try:
        lambdas, losses = learn(pipe, task, layers, config)
    finally:
        for parameter, wanted in trained.items():
            parameter.requires_grad_(wanted)
    keep = select_units(layers, lambdas, ratio, config.scope)
    notes: Notes = {
        "ratio": ratio,
        "losses": losses,
        "kept": {name: len(units) for name, units in keep.items()},
        "lambda": {
            name: [round(v, 4) for v in values.tolist()] for name, values in lambdas.items()
        },
    }
    return keep_units(pipe, keep), notes


# --- learning --------------------------------------------------------------------------------


def learn(
    pipe: Pipeline, task: Task, layers: Sequence[WidthLayer], config: Config
) -> tuple[dict[str, Tensor], list[float]]:
    """Lambda for every unit, by layer name, and the reconstruction loss of each optimizer step."""
    device = task.device
    lambdas = {
        layer.name: torch.full((layer.units,), config.init, device=device, requires_grad=True)
        for layer in layers
    }
    optimizer = torch.optim.AdamW(lambdas.values(), lr=config.learning_rate, weight_decay=0.0)
    steps = linear_steps(pipe.scheduler, config.steps)
    rows = task.prompts(config.prompts, "ecodiff")
    noise = task.noise(config.prompts, "ecodiff")
    weight = pipe.guidance if config.guidance is None else config.guidance
    losses = []
    for epoch in range(config.epochs):
        order = torch.randperm(config.prompts, generator=task.generator(f"ecodiff/{epoch}"))
        for number, chosen in enumerate(order.split(config.batch_size)):
            condition = pipe.condition(None if rows is None else rows[chosen])
            run = Run(pipe.denoiser, steps, condition, pipe.nothing(len(chosen)), weight)
            x = noise[chosen.to(device)]
            with torch.no_grad():
                dense = run.latents(x)
            draw = GateNoise(lambdas, config.delta, task.seed, f"ecodiff/{epoch}/{number}")
            if config.objective == "trajectory":
                loss = trajectory_backward(run, x, dense[-1], layers, draw)
            else:
                loss = step_backward(run, dense, layers, draw)
            (config.beta * penalty(lambdas, config.regulariser)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss)
    return {name: values.detach() for name, values in lambdas.items()}, losses


@dataclass(frozen=True)
class GateNoise:
    """Hard-concrete gates of a batch; asked again for a step, it draws the same noise again."""

    lambdas: Mapping[str, Tensor]
    delta: float
    seed: int
    name: str

    def __call__(self, step: int) -> Gates:
        draw = seeded(self.seed, f"{self.name}/{step}")
        return {
            name: hard_concrete(
                values, torch.rand(values.shape, generator=draw).to(values.device), self.delta
            )
            for name, values in self.lambdas.items()
        }


def hard_concrete(lambdas: Tensor, u: Tensor, delta: float) -> Tensor:
    """Gates in [0, 1], shape of lambda, from uniform noise u (Louizos et al. 2018, Eq. 10-11)."""
    logits = torch.log(u + delta) - torch.log(1 - u + delta) + lambdas
    stretched = torch.sigmoid(logits / TEMPERATURE) * (HIGH - LOW) + LOW
    return stretched.clamp(0, 1)


def penalty(lambdas: Mapping[str, Tensor], regulariser: str) -> Tensor:
    """R: the expected number of open gates ("l0"), or the mean over layers of |lambda|_1 / n."""
    if regulariser == "l0":
        shift = TEMPERATURE * math.log(-LOW / HIGH)
        return torch.stack([torch.sigmoid(v - shift).sum() for v in lambdas.values()]).sum()
    return torch.stack([values.abs().mean() for values in lambdas.values()]).mean()


def trajectory_backward(
    run: Run, x: Tensor, target: Tensor, layers: Sequence[WidthLayer], gates: GateNoise
) -> float:
    """Gradients of the last latent's mean squared error to the dense one; returns the error."""
    return checkpointed_backward(run, x, layers, gates, lambda z: (z - target).square().mean())


def step_backward(
    run: Run, dense: Sequence[Tensor], layers: Sequence[WidthLayer], gates: GateNoise
) -> float:
    """Gradients of the answers' mean squared error at every step of the dense run."""
    total = 0.0
    for index, step in enumerate(run.steps):
        with torch.no_grad():
            target = answer(run, step, dense[index])
        with torch.enable_grad(), gated(run.model, layers, gates(index).get):
            error = (answer(run, step, dense[index]) - target).square().mean() / len(run.steps)
        error.backward()
        total += float(error.detach())
    return total


def answer(run: Run, step: LinearStep, x: Tensor) -> Tensor:
    """The guided answer (B, C, H, W) at one step."""
    t = torch.full((len(x),), step.t, device=x.device)
    t = t.long() if float(step.t).is_integer() else t
    return guided(run.model, x, t, run.condition, run.null, run.guidance)


# --- choosing --------------------------------------------------------------------------------


def requested_ratio(model: nn.Module, layers: Sequence[WidthLayer], config: Config) -> float:
    """The fraction of units to remove; for a parameter budget the smallest that meets it.

    Raises:
        ValueError: both or neither of ratio and params, out of range, or not to be met.
    """
    if (config.ratio is None) == (config.params is None):
        raise ValueError("give either ratio (units removed) or params (fraction kept)")
    if config.ratio is not None:
        if not 0 <= config.ratio < 1:
            raise ValueError(f"ratio must lie in [0, 1), not {config.ratio}")
        return config.ratio
    assert config.params is not None
    if not 0 < config.params <= 1:
        raise ValueError(f"params must lie in (0, 1], not {config.params}")
    total = sum(parameter.numel() for parameter in model.parameters())
    wanted = total - int(config.params * total)
    each = {layer.name: unit_params(model, layer) for layer in layers}
    for thousandth in range(1001):
        ratio = thousandth / 1000
        gone = sum(each[layer.name] * round(ratio * layer.units) for layer in layers)
        if gone >= wanted:
            return ratio
    raise ValueError(
        f"params={config.params} cannot be met: without all heads and neurons "
        f"{1 - gone / total:.3f} stays"
    )


def select_units(
    layers: Sequence[WidthLayer], lambdas: Mapping[str, Tensor], ratio: float, scope: str
) -> dict[str, list[int]]:
    """Units that stay, by layer: the highest lambda in each layer, or of each kind in the model.

    Ties go to the lower index.
    """
    if scope == "local":
        return {
            layer.name: _highest(lambdas[layer.name], layer.units - round(ratio * layer.units))
            for layer in layers
        }
    keep: dict[str, list[int]] = {}
    for kind in ("heads", "neurons"):
        members = [layer for layer in layers if layer.kind == kind]
        if not members:
            continue
        scores = torch.cat([lambdas[layer.name] for layer in members])
        kept = set(_highest(scores, len(scores) - round(ratio * len(scores))))
        start = 0
        for layer in members:
            keep[layer.name] = [k for k in range(layer.units) if start + k in kept]
            start += layer.units
    return keep


def _highest(scores: Tensor, count: int) -> list[int]:
    order = torch.argsort(scores, descending=True, stable=True)
    return sorted(order[:count].tolist())
