"""What layers see: calibration batches, and the inputs of chosen layers while they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .denoise import predict
from .masks import Layer
from .pipeline import NoisedBatch, Task


def calibration(task: Task, images: int, timesteps: int, name: str) -> list[NoisedBatch]:
    """The same calibration images at `timesteps` random noise levels each, one batch per level.

    Raises:
        ValueError: timesteps < 1, or more images than the calibration split holds.
    """
    if timesteps < 1:
        raise ValueError(f"timesteps must be at least 1, not {timesteps}")
    examples = task.calibration_batch(images)
    x0 = examples.x0
    draw = task.generator(f"{name}/noise")
    batches = []
    for _ in range(timesteps):
        noise = torch.randn(x0.shape, generator=draw).to(x0.device)
        t = torch.randint(task.timesteps, (len(x0),), generator=draw).to(x0.device)
        batches.append(task.noised(x0, noise, t, examples.condition))
    return batches


def columns(layer: Layer, x: Tensor) -> Tensor:
    """Inputs of a layer as (tokens, columns): output = columns @ as_matrix(weight).T + bias.

    A convolution (B, C, H, W) is unfolded to one token per output position.

    Raises:
        ValueError: grouped or non-zero-padded convolution.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise ValueError(f"cannot unfold the input of {layer}: groups, padding mode or padding")
    patches = F.unfold(  # (B, C * kh * kw, L)
        x, layer.kernel_size, layer.dilation, layer.padding, layer.stride
    )
    patches = patches.unflatten(1, (x.shape[1], -1))  # (B, C, kh * kw, L)
    return patches.permute(0, 3, 2, 1).reshape(-1, patches.shape[1] * patches.shape[2])


@torch.no_grad()
def observe(
    model: nn.Module,
    batches: Sequence[NoisedBatch],
    layers: Mapping[str, Layer],
    see: Callable[[str, Tensor], None],
) -> None:
    """Run the batches and hand every input of the layers to `see` under its layer's name."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: see(name, inputs[0])

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        for batch in batches:
            predict(model, batch.x_t, batch.t, batch.condition)
    finally:
        for handle in handles:
            handle.remove()


def in_stages(
    model: nn.Module, batch: NoisedBatch, layers: Mapping[str, Layer], count: int
) -> list[dict[str, Layer]]:
    """The layers in order of execution, cut into `count` stages of nearly equal length.

    Raises:
        ValueError: count < 1, or a layer that the model never runs.
    """
    if count < 1:
        raise ValueError(f"stages must be at least 1, not {count}")
    seen: list[str] = []
    observe(model, [batch], layers, lambda name, _: seen.append(name))
    names = list(dict.fromkeys(seen))
    idle = sorted(layers.keys() - set(names))
    if idle:
        raise ValueError(f"{idle[0]} is never run, so nothing is known of its inputs")
    count = min(count, len(names))
    ends = [len(names) * k // count for k in range(count + 1)]
    return [{name: layers[name] for name in names[a:b]} for a, b in pairwise(ends)]
