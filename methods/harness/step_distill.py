"""Fewer sampling steps: one student step learns what two (or more) teacher steps do.

Salimans and Ho, ICLR 2022, arXiv 2202.00512, with the guidance-aware loss of SnapFusion (Li et al.,
NeurIPS 2023, arXiv 2306.00980, Eq. 6-11). The teacher goes t -> t' -> t'' by DDIM, the student has
to reach z_t'' in one step; the clean image that would take it there is

    x* = (z_t'' - (sigma_t'' / sigma_t) z_t) / (alpha_t'' - (sigma_t'' / sigma_t) alpha_t)

and the loss omega ||x_student - x*||^2 with omega = max(alpha_t^2 / sigma_t^2, 1). With probability
p every answer, of teacher and student, is the guided one with one w drawn for the iteration. Where
the teacher takes more steps than two, t'' is where the last of them ends; nothing else changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from .denoise import (
    Condition,
    alpha_sigma,
    clean_and_noise,
    ddim_step,
    guided,
    halves,
    ladder,
    predict,
)
from .pipeline import NoisedBatch, noised, seeded


@dataclass(frozen=True)
class Rung:
    """One student step from t to t_end; the teacher rests at the stops between. -1 is clean."""

    t: int
    stops: tuple[int, ...]
    t_end: int


def rungs(scheduler: DDIMScheduler, student_steps: int, stride: int = 2) -> list[Rung]:
    """The student's sampling steps, each with the teacher's `stride - 1` stops between.

    The student is sampled at exactly these timesteps. Where the teacher's own ladder of `stride`
    times as many steps has the same points, the stops are its points; the trailing spacing has.

    Raises:
        ValueError: the teacher's ladder does not contain the student's, or the scheduler clips
            predicted images, so that no clean image answers for a step whose x* lies outside.
    """
    if scheduler.config.get("clip_sample"):
        raise ValueError(
            "this base's scheduler clips predicted images (clip_sample), so steps cannot be "
            "distilled: x* of the target may lie outside [-1, 1]; use a base without clipping"
        )
    coarse = ladder(scheduler, student_steps)
    fine = [t for t, _ in ladder(scheduler, stride * student_steps)]
    if fine[::stride] != [t for t, _ in coarse] or any(end not in (*fine, -1) for _, end in coarse):
        raise ValueError(
            f"{stride * student_steps} steps do not contain the {student_steps}: use a scheduler "
            "with trailing spacing and steps that divide its timesteps"
        )
    return [
        Rung(t, tuple(fine[stride * k + 1 : stride * (k + 1)]), end)
        for k, (t, end) in enumerate(coarse)
    ]


def clean_target(
    scheduler: DDIMScheduler, z: Tensor, z_end: Tensor, t: Tensor, t_end: Tensor
) -> Tensor:
    """x* (B, C, H, W): the clean image from which one DDIM step takes z at t to z_end at t_end."""
    alpha, sigma = alpha_sigma(scheduler, t)
    alpha_end, sigma_end = alpha_sigma(scheduler, t_end)
    ratio = sigma_end / sigma
    return (z_end - ratio * z) / (alpha_end - ratio * alpha)


def truncated_snr(scheduler: DDIMScheduler, t: Tensor) -> Tensor:
    """omega (B, 1, 1, 1) = max(alpha^2 / sigma^2, 1)."""
    alpha, sigma = alpha_sigma(scheduler, t)
    return (alpha.square() / sigma.square()).clamp(min=1.0)


@dataclass
class StepDistillation:
    """The objective; made for one number of student steps, called once an iteration.

    It draws its own timesteps among the student's, so of the batch it uses x0, noise and requests.
    `w_low` to `w_high` is the range of w, `probability` p, `original` gamma: the weight of the
    plain denoising loss, rescaled to the size of the distillation loss; `stride` the teacher's
    steps for one of the student's.
    """

    teacher: nn.Module
    scheduler: DDIMScheduler
    steps: int
    null: Any  # count -> Condition
    seed: int
    probability: float = 0.1
    w_low: float = 2.0
    w_high: float = 14.0
    original: float = 0.2
    stride: int = 2
    calls: int = 0

    def __post_init__(self) -> None:
        self.ladder = rungs(self.scheduler, self.steps, self.stride)

    def __call__(self, model: nn.Module, batch: NoisedBatch) -> Tensor:
        draw = seeded(self.seed, f"step_distill/{self.steps}/{self.calls}")
        self.calls += 1
        w = self.guidance(draw)
        chosen = torch.randint(len(self.ladder), (len(batch.x0),), generator=draw)
        table = torch.tensor([(r.t, *r.stops, r.t_end) for r in self.ladder])[chosen]
        t, *path = table.to(batch.x0.device).unbind(dim=1)
        start = noised(self.scheduler, batch.x0, batch.noise, t)
        z, null = start.x_t, self.null(len(batch.x0))
        with torch.no_grad():
            z_end, now = z, t
            for after in path:
                answer = guided(self.teacher, z_end, now, batch.condition, null, w).to(z.dtype)
                z_end = ddim_step(self.scheduler, answer, z_end, now, after)
                now = after
            target = clean_target(self.scheduler, z, z_end, t, now)
        answer, plain = _answers(model, z, t, batch.condition, null, w)
        clean, _ = clean_and_noise(self.scheduler, answer, z, t)
        weight = truncated_snr(self.scheduler, t)
        loss = (weight * (clean - target).square()).mean()
        if not self.original:
            return loss
        original = (plain - start.target).square().mean()
        scale = (loss / original.clamp_min(1e-12)).detach()
        return loss + self.original * scale * original

    def guidance(self, draw: torch.Generator) -> float:
        """w of one iteration, for all of its answers: 1, or with probability p from the range."""
        if float(torch.rand((), generator=draw)) >= self.probability:
            return 1.0
        return self.w_low + (self.w_high - self.w_low) * float(torch.rand((), generator=draw))


def _answers(
    model: nn.Module, z: Tensor, t: Tensor, condition: Condition, null: Condition, w: float
) -> tuple[Tensor, Tensor]:
    """(guided answer, plain answer), both from one pass, in the precision of z."""
    if w == 1.0 or not condition:
        plain = predict(model, z, t, condition).to(z.dtype)
        return plain, plain
    unconditional, plain = (part.to(z.dtype) for part in halves(model, z, t, condition, null))
    return unconditional + w * (plain - unconditional), plain


def halvings(start: int, end: int) -> list[int]:
    """The numbers of student steps on the way from start to end: 16, 4 -> [8, 4].

    Raises:
        ValueError: end is not start halved some times.
    """
    found = []
    steps = start
    while steps > end:
        if steps % 2:
            break
        steps //= 2
        found.append(steps)
    if steps != end or end < 1:
        raise ValueError(f"{end} steps cannot be reached from {start} by halving")
    return found
