"""The two things that every method receives: a pipeline to compress and the task around it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from .data import ImageSet, Splits

Edit = dict[str, Any]
Notes = dict[str, Any]  # JSON: kept channels, losses; never quality, size or speed


@dataclass(frozen=True)
class Pipeline:
    """A denoiser with what it needs to sample, and the record of what was cut out of it.

    `edits` is replayed on the architecture when a saved model is loaded; `surgery` appends to
    it. `steps` is the number of sampling steps, never of optimizer steps.
    """

    denoiser: nn.Module
    scheduler: DDIMScheduler
    steps: int = 20
    decoder: nn.Module | None = None
    edits: tuple[Edit, ...] = field(default=())

    def private_copy(self) -> Pipeline:
        """A pipeline that shares no tensor with this one."""
        return replace(
            self,
            denoiser=copy.deepcopy(self.denoiser),
            decoder=copy.deepcopy(self.decoder),
            scheduler=copy.deepcopy(self.scheduler),
        )

    def edited(self, edit: Edit) -> Pipeline:
        """The same pipeline with one more edit on its record."""
        return replace(self, edits=(*self.edits, edit))

    @property
    def config(self) -> Any:
        """The denoiser's architecture as diffusers records it; widths are those before any cut."""
        return self.denoiser.config

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def to(self, device: torch.device | str) -> Pipeline:
        """Move in place, as nn.Module.to does, and return self."""
        self.denoiser.to(device)
        if self.decoder is not None:
            self.decoder.to(device)
        return self


@dataclass(frozen=True)
class NoisedBatch:
    """One batch on its way into the denoiser: images x0, noise and x_t are (B, C, H, W)."""

    x0: Tensor
    noise: Tensor
    t: Tensor  # (B,) integer timesteps, 0 is almost clean
    x_t: Tensor
    target: Tensor  # what the denoiser should answer, by the scheduler's prediction type


@dataclass(frozen=True)
class Task:
    """What a method may know about the model's surroundings.

    Two tasks with equal name, seed and data hand out equal batches and equal noise, so that
    every method sees the same.
    """

    name: str
    dense: Pipeline
    splits: Splits
    seed: int = 0

    @property
    def device(self) -> torch.device:
        return self.dense.device

    def generator(self, name: str) -> torch.Generator:
        """A CPU generator that depends on the seed and the name alone."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def noise(self, count: int, name: str) -> Tensor:
        """Standard normal noise (count, C, H, W), drawn on the CPU so that devices agree."""
        shape = (count, *self.sample_shape)
        return torch.randn(shape, generator=self.generator(name)).to(self.device)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the denoiser works on."""
        config = self.dense.config
        return (config.in_channels, config.sample_size, config.sample_size)

    @property
    def timesteps(self) -> int:
        """Length of the training noise schedule."""
        return int(self.dense.scheduler.config.num_train_timesteps)

    def calibration_batch(self, count: int, name: str = "calibration") -> Tensor:
        """Images (count, C, H, W) from the calibration split, without replacement.

        Raises:
            ValueError: more images are wanted than the split holds.
        """
        images = self.splits.calibration.images
        if not 0 < count <= len(images):
            raise ValueError(f"batch_size must lie in 1..{len(images)}, not {count}")
        order = torch.randperm(len(images), generator=self.generator(name))
        return images[order[:count]].to(self.device)

    def training_batches(self, batch_size: int, start: int = 0) -> Iterator[NoisedBatch]:
        """Endless noised batches; batch k is the same however the run was interrupted."""
        return noised_batches(
            self.splits.train, self.dense.scheduler, batch_size, self.seed, self.device, start
        )

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> NoisedBatch:
        """Put x0 at noise level t (forward process, Ho et al. 2020, Eq. 4)."""
        return noised(self.dense.scheduler, x0, noise, t)

    def example_inputs(self, batch: int = 1, device: torch.device | str | None = None) -> Edit:
        """Keyword arguments for one denoiser call, for counting and timing."""
        device = device or self.device
        return {
            "sample": torch.zeros(batch, *self.sample_shape, device=device),
            "timestep": torch.zeros(batch, dtype=torch.long, device=device),
        }


def noised(scheduler: DDIMScheduler, x0: Tensor, noise: Tensor, t: Tensor) -> NoisedBatch:
    """Noise x0 to level t and pair it with the target of the scheduler's prediction type."""
    x_t = scheduler.add_noise(x0, noise, t)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        target = noise
    elif kind == "v_prediction":
        target = scheduler.get_velocity(x0, noise, t)
    elif kind == "sample":
        target = x0
    else:
        raise ValueError(f"unknown prediction_type {kind!r} in the scheduler's config")
    return NoisedBatch(x0=x0, noise=noise, t=t, x_t=x_t, target=target)


def noised_batches(
    data: ImageSet,
    scheduler: DDIMScheduler,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    start: int = 0,
) -> Iterator[NoisedBatch]:
    """Endless batches; each epoch is a fresh permutation, each batch has its own generator.

    Timesteps are stratified over the batch (one uniform offset, then equal spacing), which
    lowers the variance of the loss and leaves its mean as it is.
    """
    per_epoch = len(data) // batch_size
    if per_epoch == 0:
        raise ValueError(f"batch_size {batch_size} is larger than the {len(data)} images")
    horizon = int(scheduler.config.num_train_timesteps)
    epoch, order = -1, torch.empty(0, dtype=torch.long)
    step = start
    while True:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = torch.randperm(len(data), generator=_seeded(seed, "epoch", epoch))
        first = (step % per_epoch) * batch_size
        x0 = data.images[order[first : first + batch_size]]
        draw = _seeded(seed, "batch", step)
        noise = torch.randn(x0.shape, generator=draw)
        position = (torch.rand(1, generator=draw) + torch.arange(batch_size) / batch_size) % 1.0
        t = (position * horizon).long().clamp_(max=horizon - 1)
        yield noised(scheduler, x0.to(device), noise.to(device), t.to(device))
        step += 1


def _seeded(seed: int, name: str, index: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
