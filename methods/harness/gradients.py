"""Gradients of the denoising loss over timesteps, and the Taylor terms made of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .denoise import clean_and_noise, predict
from .pipeline import Examples, Task
from .surgery import check_fraction

IMAGES_PER_PASS = 128  # what the paper's batch at one timestep takes


def accumulate_gradients(
    model: nn.Module,
    task: Task,
    examples: Examples,
    noise: Tensor,
    *,
    threshold: float,
    stride: int = 1,
    include_last: bool = True,
    sum_pixels: bool = False,
    precision: str = "fp32",
    images_per_pass: int = IMAGES_PER_PASS,
) -> list[float]:
    """Leave sum_t dL_t/dw in `.grad` and return the losses, the one that stopped it included.

    Examples and noise (B, C, H, W) are the same for all t. L_t is the squared error of the noise
    that the answer stands for, whatever the model predicts: of v, the error would grow again where
    little but noise is left, and no threshold would be reached. It is averaged over the batch and
    over pixels, or summed over pixels. `precision` bf16 runs the model under autocast; losses and
    accumulated gradients stay float32.

    images_per_pass // B timesteps, at least one, go through the model together. Gradients add up,
    so the sum is the same but for rounding; memory grows with the images of a pass, and a pass that
    holds the stop has predicted some timesteps for nothing.

    Raises:
        ValueError: the threshold is not in [0, 1), images_per_pass is not positive, or the loss is
            not finite.
    """
    check_fraction("threshold", threshold)
    if images_per_pass < 1:
        raise ValueError(f"images_per_pass must be at least 1, not {images_per_pass}")
    model.eval()
    model.zero_grad(set_to_none=True)
    levels = range(0, task.timesteps, stride)
    together = max(1, images_per_pass // len(examples))
    losses: list[float] = []
    highest = 0.0
    for first in range(0, len(levels), together):
        some = levels[first : first + together]
        loss = _losses(model, task, examples, noise, some, sum_pixels, precision)  # (levels,)
        counted, stop = 0, False
        for t, value in zip(some, loss.tolist(), strict=True):
            if not value < float("inf"):
                raise ValueError(f"the denoising loss at t={t} is {value}")
            losses.append(value)
            highest = max(highest, value)
            stop = value < threshold * highest
            counted += include_last or not stop
            if stop:
                break
        if counted:
            loss[:counted].sum().backward()
        if stop:
            break
    return losses


def _losses(
    model: nn.Module,
    task: Task,
    examples: Examples,
    noise: Tensor,
    levels: Sequence[int],
    sum_pixels: bool,
    precision: str,
) -> Tensor:
    """L_t of the examples at every level, (levels,), in one forward pass."""
    count = len(levels)
    times = torch.tensor(levels).repeat_interleave(len(examples)).to(noise.device)
    batch = task.noised(
        _again(examples.x0, count),
        _again(noise, count),
        times,
        {name: _again(value, count) for name, value in examples.condition.items()},
    )
    with torch.autocast(noise.device.type, torch.bfloat16, enabled=precision == "bf16"):
        prediction = predict(model, batch.x_t, batch.t, batch.condition).float()
    _, guess = clean_and_noise(task.dense.scheduler, prediction, batch.x_t, batch.t)
    error = (guess - batch.noise).square().unflatten(0, (count, -1))
    error = error.flatten(2)  # (levels, B, C * H * W)
    return error.sum(dim=2).mean(dim=1) if sum_pixels else error.mean(dim=(1, 2))


def _again(values: Tensor, count: int) -> Tensor:
    """(B, ...) as (count * B, ...), the whole batch `count` times."""
    return values.repeat(count, *(1 for _ in values.shape[1:]))


def taylor_terms(weight: Tensor, grad: Tensor | None) -> Tensor:
    """w g, element by element: what the loss changes by to first order when w becomes zero."""
    if grad is None:
        raise ValueError("a layer has no gradient: was the loss back-propagated?")
    return weight * grad
