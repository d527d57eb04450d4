"""Drawing images: DDIM without added noise, from given noise, guided where a model is asked.

Song, Meng and Ermon 2021, "Denoising Diffusion Implicit Models", arXiv 2010.02502, eq. 12 with
sigma = 0: two models that get the same noise differ by what was done to the model alone.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor, nn

from .denoise import Condition, guided
from .journal import write_bytes
from .pipeline import Pipeline

Precision = Literal["bf16", "fp32"]
DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


def sample(
    pipe: Pipeline,
    noise: Tensor,
    steps: int | None = None,
    *,
    rows: Tensor | None = None,
    guidance: float | None = None,
    scheduler: Any = None,
    batch_size: int = 50,
    precision: Precision = "bf16",
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Images for `noise` (N, C, H, W): float32 on the CPU in [-1, 1].

    The denoiser runs in `precision`, weights included, on a copy; the sampler's arithmetic and the
    autoencoder stay float32. A conditional pipeline needs `rows` (N,) of its conditioning.
    `steps` are sampling steps and `guidance` is w (None: the pipeline's own), `scheduler` takes the
    place of the pipeline's DDIM, `threads` are CPU threads (None: torch's choice), `progress` is
    told how many images each batch finished.

    Raises:
        ValueError: steps or batch_size do not make sense, the precision is unknown, rows are
            missing, or the model gave values that are not finite.
    """
    steps = pipe.steps if steps is None else steps
    horizon = int(pipe.scheduler.config.num_train_timesteps)
    if not 1 <= steps <= horizon:
        raise ValueError(f"sampling steps must lie in 1..{horizon}, not {steps}")
    if precision not in DTYPES:
        raise ValueError(f"precision must be bf16 or fp32, not {precision!r}")
    if batch_size < 1 or len(noise) < 1:
        raise ValueError(f"nothing to sample: {len(noise)} images in batches of {batch_size}")
    if pipe.conditioning is not None and (rows is None or len(rows) != len(noise)):
        raise ValueError("a conditional model needs one row of its conditioning for each image")
    pipe = replace(pipe, guidance=pipe.guidance if guidance is None else guidance)
    if scheduler is not None:
        pipe = replace(pipe, scheduler=scheduler)
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return _sample(pipe, noise, rows, steps, batch_size, DTYPES[precision], progress)
    finally:
        torch.set_num_threads(before)


def _sample(
    pipe: Pipeline,
    noise: Tensor,
    rows: Tensor | None,
    steps: int,
    batch_size: int,
    dtype: torch.dtype,
    progress: Callable[[int], None] | None,
) -> Tensor:
    device = pipe.device
    denoiser = copy.deepcopy(pipe.denoiser).eval().requires_grad_(False)
    # nn.Module's own method: the one of diffusers warns about every cast. Not channels-last either:
    # GroupNorm is so much slower in that layout that a whole U-Net of this kind is.
    nn.Module.to(denoiser, device=device, dtype=dtype)
    scheduler = copy.deepcopy(pipe.scheduler)
    noiseless = {"eta": 0.0} if isinstance(scheduler, DDIMScheduler) else {}
    finished = []
    with torch.inference_mode():
        for first in range(0, len(noise), batch_size):
            x = noise[first : first + batch_size].to(device, torch.float32)  # (B, C, H, W)
            condition = _cast(
                pipe.condition(None if rows is None else rows[first : first + batch_size]), dtype
            )
            null = _cast(pipe.nothing(len(x)), dtype)
            scheduler.set_timesteps(steps)  # a multistep scheduler forgets the batch before
            for t in scheduler.timesteps:
                times = torch.full((len(x),), int(t), device=device)
                answer = guided(denoiser, x.to(dtype), times, condition, null, pipe.guidance)
                x = scheduler.step(answer.float(), t, x, **noiseless, return_dict=False)[0]
            finished.append(pipe.decode(x).clamp(-1.0, 1.0).cpu())
            if progress is not None:
                progress(len(x))
    images = torch.cat(finished).contiguous().clone()
    if not bool(torch.isfinite(images).all()):
        raise ValueError("the model gave values that are not finite")
    return images


def _cast(condition: Condition, dtype: torch.dtype) -> Condition:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in condition.items()}


def to_uint8(images: Tensor) -> np.ndarray:
    """Grey levels (N, H, W, C) of images (N, C, H, W) in [-1, 1]."""
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def grid(images: Tensor, columns: int, scale: int = 2, gap: int = 2) -> Image.Image:
    """A picture of all images (N, C, H, W), row by row, enlarged `scale` times."""
    levels = to_uint8(images)
    count, height, width, channels = levels.shape
    rows = -(-count // columns)
    cell_h, cell_w = height * scale + gap, width * scale + gap
    canvas = np.full((rows * cell_h + gap, columns * cell_w + gap, channels), 255, np.uint8)
    for index, level in enumerate(levels):
        top, left = (index // columns) * cell_h + gap, (index % columns) * cell_w + gap
        big = level.repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + height * scale, left : left + width * scale] = big
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


def write_grid(path: Path, images: Tensor, columns: int) -> None:
    """Write `grid` as a PNG, atomically."""
    buffer = io.BytesIO()
    grid(images, columns).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
