"""A smaller decoder for latents: cut its channels, then learn to decode as the whole one did.

SnapFusion (Li et al., NeurIPS 2023, arXiv 2306.00980, "Efficient Image Decoder"): half of the
decoder's channels go and the rest is trained on the mean squared error to the images of the whole
decoder, on latents that the diffusion model draws from text. No photographs and no encoder are
needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .pipeline import Pipeline, Task
from .scores import GroupScore, choose
from .surgery import cut_decoder, decoder_widths
from .trajectory import Run, linear_steps

Source = Literal["generated", "encoded"]
Latents = Callable[[int], Tensor]  # optimizer step -> (B, C, H, W)


def pruned_decoder(pipe: Pipeline, ratio: float) -> tuple[Pipeline, dict[str, int]]:
    """Cut the fraction `ratio` of the decoder's channels in place, those of least magnitude.

    Returns the pipeline and how many channels each group keeps.

    Raises:
        ValueError: the pipeline has no autoencoder.
    """
    decoder = pipe.autoencoder
    if decoder is None:
        raise ValueError("the pipeline has no autoencoder whose decoder could be pruned")
    score = GroupScore(lambda weights, _: weights.square().sum(dim=1))
    keep = choose(decoder, score, decoder_widths(decoder, ratio))
    return cut_decoder(pipe, keep), {name: len(kept) for name, kept in keep.items()}


def latents(
    task: Task, source: Source, count: int, sampling_steps: int, precision: str, name: str
) -> Latents:
    """Latents of `count` images for every optimizer step, as the denoiser sees them.

    "generated": the dense model draws them for the task's requests, new noise every time.
    "encoded": training photographs through the encoder.
    """
    if source == "encoded":
        batches = task.training_batches(count)
        return lambda _: next(batches).x0
    steps = linear_steps(task.dense.scheduler, sampling_steps)
    autocast = precision == "bf16"

    @torch.no_grad()
    def drawn(step: int) -> Tensor:
        rows = task.prompts(count, f"{name}/{step}")
        condition, nothing = task.dense.condition(rows), task.dense.nothing(count)
        run = Run(task.dense.denoiser, steps, condition, nothing, task.dense.guidance)
        with torch.autocast(task.device.type, torch.bfloat16, enabled=autocast):
            return run.latents(task.noise(count, f"{name}/{step}"))[-1].float()

    return drawn


def distil_decoder(
    pipe: Pipeline, teacher: Pipeline, source: Latents, steps: int, learning_rate: float
) -> list[float]:
    """Train the decoder in place on ||decode(z) - teacher's decode(z)||^2; the losses."""
    assert pipe.autoencoder is not None
    decoder = pipe.autoencoder.decoder.requires_grad_(True)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    losses = []
    for step in range(steps):
        z = source(step)
        with torch.no_grad():
            wanted = teacher.decode(z)
        loss = (pipe.decode(z) - wanted).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    optimizer.zero_grad(set_to_none=True)
    pipe.autoencoder.requires_grad_(False)
    return losses
