"""Calling a denoiser and reading its answer, whatever its class and prediction type.

VP notation: x_t = alpha_t x0 + sigma_t eps with alpha^2 + sigma^2 = 1 (Ho et al. 2020, Eq. 4) and
v = alpha eps - sigma x0 (Salimans and Ho 2022, arXiv 2202.00512, appendix D).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

Condition = dict[str, Tensor]  # keyword arguments of the denoiser, each (B, ...)


def predict(model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """One denoiser call: x (B, C, H, W) at timesteps t (B,) -> (B, C, H, W)."""
    answer: Tensor = model(x, timestep=t, **condition, return_dict=False)[0]
    return answer


def guided(
    model: nn.Module, x: Tensor, t: Tensor, condition: Condition, null: Condition, w: float
) -> Tensor:
    """Classifier-free guidance, null + w (cond - null) (Ho and Salimans 2022, arXiv 2207.12598).

    w = 1 is no guidance and costs one call; any other w runs both halves as one batch of 2 B.
    """
    if w == 1.0 or not condition:
        return predict(model, x, t, condition)
    unconditional, conditional = halves(model, x, t, condition, null)
    return unconditional + w * (conditional - unconditional)


def halves(
    model: nn.Module, x: Tensor, t: Tensor, condition: Condition, null: Condition
) -> tuple[Tensor, Tensor]:
    """What the model answers to the empty request and to `condition`, from one batch of 2 B."""
    both = {key: torch.cat([null[key], condition[key]]) for key in condition}
    answers = predict(model, torch.cat([x, x]), torch.cat([t, t]), both)
    unconditional, conditional = answers.chunk(2)
    return unconditional, conditional


def alpha_sigma(scheduler: DDIMScheduler, t: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha_t, sigma_t) for integer timesteps t (B,), each (B, 1, 1, 1); t = -1 is clean.

    Clean means the scheduler's own last step: alpha 1 unless `set_alpha_to_one` is off.
    """
    # diffusers moves one of the two to the device of what it noises, and leaves the other.
    parts = (scheduler.final_alpha_cumprod.reshape(1), scheduler.alphas_cumprod)
    products = torch.cat([part.to(t.device) for part in parts])
    product = products[(t + 1).clamp(min=0)].reshape(-1, 1, 1, 1)
    return product.sqrt(), (1 - product).sqrt()


def clean_and_noise(
    scheduler: DDIMScheduler, answer: Tensor, x_t: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """(x0, eps) that the denoiser's answer at x_t stands for, by the prediction type."""
    alpha, sigma = alpha_sigma(scheduler, t)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (x_t - sigma * answer) / alpha, answer
    if kind == "v_prediction":
        return alpha * x_t - sigma * answer, sigma * x_t + alpha * answer
    if kind == "sample":
        return answer, (x_t - alpha * answer) / sigma
    raise ValueError(f"unknown prediction_type {kind!r} in the scheduler's config")


def ddim_step(
    scheduler: DDIMScheduler, answer: Tensor, x_t: Tensor, t: Tensor, t_next: Tensor
) -> Tensor:
    """DDIM from t to t_next without noise (Song et al. 2021, Eq. 12, sigma = 0).

    The clean image is clipped where the scheduler clips it, as diffusers does when it samples.
    """
    x0, eps = clean_and_noise(scheduler, answer, x_t, t)
    if scheduler.config.clip_sample:
        limit = float(scheduler.config.clip_sample_range)
        x0 = x0.clamp(-limit, limit)
    alpha, sigma = alpha_sigma(scheduler, t_next)
    return alpha * x0 + sigma * eps


def ladder(scheduler: Any, steps: int) -> list[tuple[int, int]]:
    """The (t, t_next) pairs of a DDIM run as diffusers steps, noisiest first; -1 is clean.

    t_next lies a whole number of training timesteps below t; where `steps` does not divide their
    number, that is not quite the next t.
    """
    scheduler.set_timesteps(steps)
    stride = int(scheduler.config.num_train_timesteps) // steps
    return [(int(t), max(int(t) - stride, -1)) for t in scheduler.timesteps]
