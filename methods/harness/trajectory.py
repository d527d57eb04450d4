"""A whole sampling run as something to differentiate, with the memory of one step.

Every deterministic one-step sampler here is linear in what the denoiser answers: x' = keep x + add
answer. That holds for DDIM (Song et al. 2021, Eq. 12, sigma = 0) with any prediction type and for
Euler steps of flow matching. Multistep samplers keep a history and are not of this form.

Time-step checkpointing (EcoDiff, arXiv 2412.02852): the forward pass keeps only the latents; going
back, one step at a time is run again with gradients. Gates that are random have to be the same
both times, so whoever calls gives gates as a function of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from .denoise import Condition, alpha_sigma, guided, ladder
from .width import WidthLayer, gated

Gates = Mapping[str, Tensor]  # layer name -> (units,)


@dataclass(frozen=True)
class LinearStep:
    """x' = keep * x + add * answer at timestep t."""

    t: float
    keep: float
    add: float


def linear_steps(scheduler: Any, steps: int) -> list[LinearStep]:
    """The sampling run of a scheduler, noisiest step first.

    Raises:
        ValueError: the scheduler is neither DDIM nor flow matching by Euler steps.
    """
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler.set_timesteps(steps)
        sigmas, times = scheduler.sigmas.tolist(), scheduler.timesteps.tolist()
        return [
            LinearStep(t, 1.0, after - before)
            for t, before, after in zip(times, sigmas[:-1], sigmas[1:], strict=True)
        ]
    if not isinstance(scheduler, DDIMScheduler):
        raise ValueError(
            f"a sampling run of {type(scheduler).__name__} is not linear in single answers"
        )
    found = []
    for t, after in ladder(scheduler, steps):
        pair = torch.tensor([t, after])
        alphas, sigmas_ = (
            values.double().flatten().tolist() for values in alpha_sigma(scheduler, pair)
        )
        (a, a2), (s, s2) = alphas, sigmas_
        kind = scheduler.config.prediction_type
        if kind == "epsilon":
            found.append(LinearStep(t, a2 / a, s2 - a2 * s / a))
        elif kind == "v_prediction":
            found.append(LinearStep(t, a2 * a + s2 * s, s2 * a - a2 * s))
        else:
            found.append(LinearStep(t, s2 / s, a2 - s2 * a / s))
    return found


@dataclass(frozen=True)
class Run:
    """A guided sampling run of one batch: everything but the noise that it starts from."""

    model: nn.Module
    steps: Sequence[LinearStep]
    condition: Condition
    null: Condition
    guidance: float

    def step(
        self, index: int, x: Tensor, layers: Sequence[WidthLayer] = (), gates: Gates | None = None
    ) -> Tensor:
        """The latents (B, C, H, W) after step `index`; keeps gradients."""
        step = self.steps[index]
        t = torch.full((len(x),), step.t, device=x.device)
        if float(step.t).is_integer():
            t = t.long()
        chosen = gates or {}
        with gated(self.model, layers if gates else (), chosen.get):
            answer = guided(self.model, x, t, self.condition, self.null, self.guidance)
        return step.keep * x + step.add * answer

    def latents(
        self, x: Tensor, layers: Sequence[WidthLayer] = (), gates: GatesAt | None = None
    ) -> list[Tensor]:
        """The start and what every step leaves; keeps gradients where they are enabled."""
        found = [x]
        for index in range(len(self.steps)):
            found.append(self.step(index, found[-1], layers, gates(index) if gates else None))
        return found


GatesAt = Callable[[int], Gates]


def checkpointed_backward(
    run: Run,
    x: Tensor,
    layers: Sequence[WidthLayer],
    gates: GatesAt,
    loss: Callable[[Tensor], Tensor],
) -> float:
    """Back-propagate `loss(last latents)` into whatever the gates were made of; return the loss.

    `gates(step)` is asked twice for every step and has to give equal values both times.
    """
    with torch.no_grad():
        kept = run.latents(x, layers, gates)
    last = kept.pop().requires_grad_()
    value = loss(last)
    (gradient,) = torch.autograd.grad(value, last)
    for index in reversed(range(len(run.steps))):
        start = kept.pop().detach().requires_grad_(index > 0)
        with torch.enable_grad():
            after = run.step(index, start, layers, gates(index))
        torch.autograd.backward(after, gradient)
        if index > 0:
            assert start.grad is not None
            gradient = start.grad
    return float(value.detach())
