"""A whole sampling run as something to differentiate, with the memory of one step.

Every deterministic one-step sampler here is linear in what the denoiser answers: x' = keep x + add
answer. That holds for DDIM (Song et al. 2021, Eq. 12, sigma = 0) with any prediction type and for
Euler steps of flow matching. Multistep samplers keep a history and are not of this form.

Time-step checkpointing (EcoDiff, arXiv 2412.02852): the forward pass keeps only the latents; going
back, one step at a time is run again with gradients. Gates that are random have to be the same
both times, so whoever calls gives gates as a function of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from .denoise import Condition, alpha_sigma, guided, ladder
from .pipeline import Pipeline, Task
from .width import WidthLayer, closed, gated

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
        ValueError: the scheduler is neither DDIM nor flow matching by Euler steps, or clips.
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
    if scheduler.config.clip_sample:
        raise ValueError(
            "a sampling run that clips predicted images is not linear in single answers: set "
            "clip_sample to false in the scheduler's config"
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


def start(pipe: Pipeline, task: Task, steps: int, count: int, name: str) -> tuple[Run, Tensor]:
    """A run of `count` requests and the noise (count, C, H, W) it starts from, by name."""
    rows = task.prompts(count, name)
    run = Run(
        pipe.denoiser,
        linear_steps(pipe.scheduler, steps),
        pipe.condition(rows),
        pipe.nothing(count),
        pipe.guidance,
    )
    return run, task.noise(count, name)


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


# --- what it costs ---------------------------------------------------------------------------


@dataclass
class Held:
    """Bytes that autograd holds for a backward pass: now, and at most so far.

    A storage counts once however often it is saved; parameters and what the caller names in
    `known` (storage addresses) do not count, since they are there anyway.
    """

    known: frozenset[int] = frozenset()
    now: int = 0
    most: int = 0
    _saved: dict[int, int] = field(default_factory=dict)

    def take(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor, self)
        place, size = saved.place, tensor.untyped_storage().nbytes()
        if place not in self.known:
            self._saved[place] = self._saved.get(place, 0) + 1
            if self._saved[place] == 1:
                self.now += size
                self.most = max(self.most, self.now)
        return saved

    def give_back(self, saved: _Saved) -> None:
        if saved.place not in self.known:
            self._saved[saved.place] -= 1
            if self._saved[saved.place] == 0:
                self.now -= saved.tensor.untyped_storage().nbytes()


class _Saved:
    """A tensor in a graph; it tells when the graph lets go of it."""

    def __init__(self, tensor: Tensor, held: Held) -> None:
        self.tensor = tensor
        self.place = tensor.untyped_storage().data_ptr()
        self._held = held

    def __del__(self) -> None:
        self._held.give_back(self)


@contextmanager
def held_by_autograd(model: nn.Module) -> Iterator[Held]:
    """Inside, what every graph saves is counted, and given back when the graph is freed."""
    tensors = [*model.parameters(), *model.buffers()]
    held = Held(frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors))
    with torch.autograd.graph.saved_tensors_hooks(held.take, lambda saved: saved.tensor):
        yield held


@torch.no_grad()
def masked_error(
    run: Run, x: Tensor, target: Tensor, layers: Sequence[WidthLayer], keep: Mapping[str, list[int]]
) -> float:
    """Mean squared error of the last latents (B, C, H, W) to `target` with `keep` alone in use."""
    gates = closed(layers, keep, x.device)
    return float((run.latents(x, layers, lambda _: gates)[-1] - target).square().mean())


@torch.no_grad()
def answers_error(
    run: Run,
    dense: Sequence[Tensor],
    layers: Sequence[WidthLayer],
    keep: Mapping[str, list[int]],
) -> float:
    """Mean squared error of the guided answers at the latents of the dense run.

    `dense` is what the dense model's `run.latents` gave, one more than steps.
    """
    gates = closed(layers, keep, dense[0].device)
    errors = []
    for index, step in enumerate(run.steps):
        change = run.step(index, dense[index], layers, gates) - dense[index + 1]
        errors.append((change / step.add).square().mean())
    return float(torch.stack(errors).mean())
