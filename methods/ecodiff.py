"""Learn through the whole sampling run which heads and neurons the final image can do without.

Zhang et al., "Effortless Efficiency: Low-Cost Pruning of Diffusion Models" (EcoDiff), arXiv
2412.02852; version 2 is "Learnable Sparsity for Vision Generative Models", ICLR 2026. Weights stay
frozen. Every attention head and feed-forward neuron has one gate for all timesteps, a hard-concrete
variable (Louizos et al., ICLR 2018, arXiv 1712.01312) with parameter lambda:

    s = sigmoid((log(u + delta) - log(1 - u + delta) + lambda) / 0.83),  u ~ U(0, 1)
    gate = clip(1.2 s - 0.1, 0, 1)

Heads are multiplied after softmax times values, neurons after the activation. The loss is the mean
squared error of the last latent of the guided sampling run to the dense model's, plus beta R. R is
the expected number of open gates, sum sigmoid(lambda - 0.83 log(0.1 / 1.1)), as the paper writes
("l0"), or what its code does: for heads and for neurons the mean over layers of |lambda|_1 / n,
added up ("l1"), for FLUX with sigmoid(0.4 lambda + 1) in place of lambda ("l1_sigmoid"). Time-step
gradient checkpointing holds one step in memory. Units are ranked by lambda, the lowest are removed.

In FLUX the shift, scale and gate that the norms compute are units too. The paper's text does not
say so, its code prunes them, and the printed 9.6 billion parameters at 20 % are not met without.
Gates, gradients and removal are there for FLUX; `compress` refuses it, as nothing here samples it.

Differs from the paper in: gate noise is drawn once for each step and layer and replayed when the
step is run again, so gradients are those of the loss (the released code redraws it), and one draw
serves a batch of requests (there: one request); every request starts from noise of its own (there:
all from one seed); of n units round(ratio n) go (there: int of the part that stays is kept); weight
decay does not act on lambda; a layer that loses everything gives its output bias, as masking does;
R counts FLUX's modulation outputs (the released code adds their term after the loss is formed).
`objective="step"` matches single denoiser answers along the dense trajectory instead, the paper's
baseline.

Expect: `python -m methods run ecodiff --task fashion_t2i --set ecodiff.params=0.75 --set
ecodiff.prompts=16 --set ecodiff.steps=8 --set ecodiff.learning_rate=0.3 --set ecodiff.beta=0.01`.
It is a row of `python -m methods standard --task fashion_t2i`, whose records hold its time,
machine, cost and scores with their spread. Cost is prompts x steps x (1 + 2 epochs) guided denoiser
calls forward and prompts x epochs x steps back; a call back costs about two forward. The
text-to-image U-Net keeps most of its parameters outside heads and neurons, so that half of them
cannot be asked of it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .harness.denoise import guided
from .harness.pipeline import Notes, Pipeline, Task, seeded
from .harness.trajectory import Gates, LinearStep, Run, checkpointed_backward, linear_steps
from .harness.width import KINDS, WidthLayer, gated, keep_units, unit_params, width_layers

CARD = {
    "paper": "ecodiff",
    "granularity": "structured",
    "unit": "head, neuron",
    "role": "method",
    "tasks": ["fashion_dit", "fashion_t2i"],
    "known_as": "EcoDiff",
    "try": (
        "ecodiff.params=0.75",
        "ecodiff.prompts=16",
        "ecodiff.steps=8",
        "ecodiff.learning_rate=0.3",
        "ecodiff.beta=0.01",
    ),
}

TEMPERATURE, LOW, HIGH = 0.83, -0.1, 1.1  # of the hard-concrete gate, as the released code


@dataclass(frozen=True)
class Config:
    """Ask either by `ratio` or by `params`; defaults are the released code's for SDXL."""

    ratio: float | None = None  # of all heads, of all neurons removed, [0, 1)
    params: float | None = None  # denoiser parameters left at most, (0, 1]
    prompts: int = 100  # requests that are learned from, each with one fixed noise
    epochs: int = 4
    batch_size: int = 4  # requests per optimizer step
    steps: int = 50  # sampling steps of the run
    guidance: float | None = None  # w of the run; none: the pipeline's own
    learning_rate: float = 0.1  # of AdamW on lambda; FLUX: 0.5, and 0.1 for neurons
    neuron_rate: float | None = None  # the same for neurons; none: learning_rate
    modulation_rate: float | None = None  # for FLUX's modulation outputs; none: learning_rate
    beta: float = 0.5  # weight of the regulariser
    delta: float = 0.5  # noise of the gates: 0.5 is almost none, 1e-6 the full hard-concrete
    init: float = 3.0  # of lambda
    regulariser: Literal["l1", "l1_sigmoid", "l0"] = "l1"  # l0: the paper's expected count
    scope: Literal["local", "global"] = "local"  # rank inside each layer, or over the model
    round_to: int = 1  # neurons that stay in a layer are rounded up to a multiple, for fast kernels
    objective: Literal["trajectory", "step"] = "trajectory"


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Learn lambda, rank, remove."""
    layers = width_layers(pipe.denoiser)
    check_request(pipe.denoiser, layers, config)
    trained = {p: p.requires_grad for p in pipe.denoiser.parameters()}
    pipe.denoiser.eval().requires_grad_(False)
    try:
        lambdas, losses = learn(pipe, task, layers, config)
    finally:
        for parameter, wanted in trained.items():
            parameter.requires_grad_(wanted)
    ratio, keep = choose(pipe.denoiser, layers, lambdas, config)
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
    optimizer = torch.optim.AdamW(
        [{"params": [lambdas[layer.name]], "lr": learning_rate(layer, config)} for layer in layers],
        weight_decay=0.0,
    )
    noise = task.noise(config.prompts, "ecodiff")  # first: refuses what cannot be sampled
    rows = task.prompts(config.prompts, "ecodiff")
    steps = linear_steps(pipe.scheduler, config.steps)
    weight = pipe.guidance if config.guidance is None else config.guidance

    def run_of(chosen: Tensor) -> Run:
        condition = pipe.condition(None if rows is None else rows[chosen])
        return Run(pipe.denoiser, steps, condition, pipe.nothing(len(chosen)), weight)

    dense = dense_latents(run_of, noise, config)
    losses = []
    for epoch in range(config.epochs):
        order = torch.randperm(config.prompts, generator=task.generator(f"ecodiff/{epoch}"))
        for number, chosen in enumerate(order.split(config.batch_size)):
            here = chosen.to(device)
            draw = GateNoise(lambdas, config.delta, task.seed, f"ecodiff/{epoch}/{number}")
            if config.objective == "trajectory":
                loss = trajectory_backward(
                    run_of(chosen), noise[here], dense[-1][here], layers, draw
                )
            else:
                loss = step_backward(run_of(chosen), [x[here] for x in dense], layers, draw)
            (config.beta * penalty(layers, lambdas, config.regulariser)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss)
    return {name: values.detach() for name, values in lambdas.items()}, losses


def learning_rate(layer: WidthLayer, config: Config) -> float:
    """Of the layer's lambda."""
    own = {"neurons": config.neuron_rate, "modulation": config.modulation_rate}.get(layer.kind)
    return config.learning_rate if own is None else own


@torch.no_grad()
def dense_latents(run_of: Callable[[Tensor], Run], noise: Tensor, config: Config) -> list[Tensor]:
    """What the dense model makes of every request, once for all epochs, each (prompts, C, H, W).

    The last latents alone, or those of all steps where single answers are matched.
    """
    parts = []
    for chosen in torch.arange(len(noise)).split(config.batch_size):
        latents = run_of(chosen).latents(noise[chosen.to(noise.device)])
        parts.append(latents[-1:] if config.objective == "trajectory" else latents)
    return [torch.cat(each) for each in zip(*parts, strict=True)]


@dataclass(frozen=True)
class GateNoise:
    """Hard-concrete gates of a batch; asked again for a step, it draws the same noise again."""

    lambdas: Mapping[str, Tensor]
    delta: float
    seed: int
    name: str

    def __call__(self, step: int) -> Gates:
        values = torch.cat(list(self.lambdas.values()))  # at once: layers are many and small
        u = torch.rand(values.shape, generator=seeded(self.seed, f"{self.name}/{step}"))
        gates = hard_concrete(values, u.to(values.device), self.delta)
        sizes = [len(each) for each in self.lambdas.values()]
        return dict(zip(self.lambdas, gates.split(sizes), strict=True))


def hard_concrete(lambdas: Tensor, u: Tensor, delta: float) -> Tensor:
    """Gates in [0, 1], shape of lambda, from uniform noise u (Louizos et al. 2018, Eq. 10-11)."""
    logits = torch.log(u + delta) - torch.log(1 - u + delta) + lambdas
    stretched = torch.sigmoid(logits / TEMPERATURE) * (HIGH - LOW) + LOW
    return stretched.clamp(0, 1)


def penalty(
    layers: Sequence[WidthLayer], lambdas: Mapping[str, Tensor], regulariser: str
) -> Tensor:
    """R: the expected number of open gates ("l0"), or the sizes of lambda as the code adds them."""
    if regulariser == "l0":
        shift = TEMPERATURE * math.log(-LOW / HIGH)
        return torch.stack([torch.sigmoid(v - shift).sum() for v in lambdas.values()]).sum()
    total = []
    for kind in KINDS:
        members = [lambdas[layer.name] for layer in layers if layer.kind == kind]
        if regulariser == "l1_sigmoid":
            members = [torch.sigmoid(0.4 * values + 1) for values in members]
        if members:
            total.append(torch.stack([values.abs().mean() for values in members]).mean())
    return torch.stack(total).sum()


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


def check_request(model: nn.Module, layers: Sequence[WidthLayer], config: Config) -> None:
    """Refuse what cannot be met, before anything is learned.

    Raises:
        ValueError: both or neither of ratio and params, out of range, or not to be met; or there
            is no head and no neuron.
    """
    if not layers:
        raise ValueError("this denoiser has no attention head or feed-forward neuron left to gate")
    if (config.ratio is None) == (config.params is None):
        raise ValueError("give either ratio (units removed) or params (fraction kept)")
    if config.ratio is not None and not 0 <= config.ratio < 1:
        raise ValueError(f"ratio must lie in [0, 1), not {config.ratio}")
    if config.params is not None and not 0 < config.params <= 1:
        raise ValueError(f"params must lie in (0, 1], not {config.params}")
    if config.round_to < 1:
        raise ValueError(f"round_to must be at least 1, not {config.round_to}")
    if config.params is not None:
        total = sum(parameter.numel() for parameter in model.parameters())
        gone = sum(unit_params(model, layer) * layer.units for layer in layers)
        if gone < total - int(config.params * total):
            raise ValueError(
                f"params={config.params} cannot be met: without all heads and neurons "
                f"{1 - gone / total:.3f} stays"
            )


def choose(
    model: nn.Module,
    layers: Sequence[WidthLayer],
    lambdas: Mapping[str, Tensor],
    config: Config,
) -> tuple[float, dict[str, list[int]]]:
    """The fraction of units to remove and those that stay, by layer.

    For a parameter budget it is the smallest thousandth that meets it.
    """

    def kept(ratio: float) -> dict[str, list[int]]:
        return select_units(layers, lambdas, ratio, config.scope, config.round_to)

    if config.ratio is not None:
        return config.ratio, kept(config.ratio)
    assert config.params is not None
    total = sum(parameter.numel() for parameter in model.parameters())
    wanted = total - int(config.params * total)
    each = {layer.name: unit_params(model, layer) for layer in layers}

    def meets(thousandth: int) -> bool:
        keep = kept(thousandth / 1000)
        gone = sum(each[n.name] * (n.units - len(keep[n.name])) for n in layers)
        return gone >= wanted

    # More removed units never mean fewer removed parameters: what stays is nested.
    ratio = bisect_left(range(1000), True, key=meets) / 1000
    return ratio, kept(ratio)


def select_units(
    layers: Sequence[WidthLayer],
    lambdas: Mapping[str, Tensor],
    ratio: float,
    scope: str,
    round_to: int = 1,
) -> dict[str, list[int]]:
    """Units that stay, by layer: the highest lambda in each layer, or of each kind in the model.

    Ties go to the lower index. Neurons that stay in a layer are rounded up to a multiple of
    `round_to`, at most to all of them.
    """
    counts = {layer.name: layer.units - round(ratio * layer.units) for layer in layers}
    if scope == "global":
        for kind in KINDS:
            members = [layer for layer in layers if layer.kind == kind]
            if not members:
                continue
            scores = torch.cat([lambdas[layer.name] for layer in members])
            chosen = torch.zeros(len(scores), dtype=torch.bool)
            chosen[_highest(scores, len(scores) - round(ratio * len(scores)))] = True
            for layer, part in zip(members, chosen.split([n.units for n in members]), strict=True):
                counts[layer.name] = int(part.sum())
    for layer in layers:
        if layer.kind == "neurons":
            whole = -(-counts[layer.name] // round_to) * round_to
            counts[layer.name] = min(whole, layer.units)
    return {
        layer.name: sorted(_highest(lambdas[layer.name], counts[layer.name])) for layer in layers
    }


def _highest(scores: Tensor, count: int) -> list[int]:
    order: list[int] = torch.argsort(scores, descending=True, stable=True)[:count].tolist()
    return order
