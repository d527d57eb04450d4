"""Gradients of the denoising loss over timesteps, and the Taylor terms made of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .denoise import predict
from .pipeline import Examples, Task
from .surgery import check_fraction


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
) -> list[float]:
    """Leave sum_t dL_t/dw in `.grad` and return the losses, the one that stopped it included.

    Examples and noise (B, C, H, W) are the same for all t. L_t is the squared error, averaged over
    the batch and over pixels, or summed over pixels. `precision` bf16 runs the model under
    autocast; losses and accumulated gradients stay float32.

    Raises:
        ValueError: the threshold is not in [0, 1), or the loss is not finite.
    """
    check_fraction("threshold", threshold)
    model.eval()
    model.zero_grad(set_to_none=True)
    losses: list[float] = []
    highest = 0.0
    for t in range(0, task.timesteps, stride):
        level = torch.full((len(examples),), t, device=noise.device)
        batch = task.noised(examples.x0, noise, level, examples.condition)
        with torch.autocast(noise.device.type, torch.bfloat16, enabled=precision == "bf16"):
            prediction = predict(model, batch.x_t, batch.t, batch.condition).float()
        error = (prediction - batch.target).square().flatten(1)  # (B, C * H * W)
        loss = error.sum(dim=1).mean() if sum_pixels else error.mean()
        losses.append(float(loss.detach()))
        if not losses[-1] < float("inf"):
            raise ValueError(f"the denoising loss at t={t} is {losses[-1]}")
        highest = max(highest, losses[-1])
        below = losses[-1] < threshold * highest
        if below and not include_last:
            break
        loss.backward()
        if below:
            break
    return losses


def taylor_terms(weight: Tensor, grad: Tensor | None) -> Tensor:
    """w g, element by element: what the loss changes by to first order when w becomes zero."""
    if grad is None:
        raise ValueError("a layer has no gradient: was the loss back-propagated?")
    return weight * grad
