"""The two things that every method receives: a pipeline to compress and the task around it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor, nn

from .data import Images, Splits
from .denoise import Condition
from .text import Text

Edit = dict[str, Any]
REQUEST_DROPOUT = 0.1  # fraction of training requests that are emptied
Notes = dict[str, Any]  # JSON: kept channels, losses; never quality, size or speed


@dataclass(frozen=True)
class Conditioning:
    """All that a small denoiser may be asked for: one row for each class or caption.

    `tables` maps a keyword argument of the denoiser to its values (rows, ...); a method picks
    rows and never needs to know whether they are labels or embedded captions. Row `null` is the
    empty request of classifier-free guidance.
    """

    tables: dict[str, Tensor]
    null: int
    names: tuple[str, ...]  # one for each row: "coat", "a red coat on a yellow background"

    def of(self, rows: Tensor, device: torch.device | str | None = None) -> Condition:
        """Keyword arguments for `rows` (B,), on `device` (None: where the tables are)."""
        return {
            key: table[rows.to(table.device)].to(device or table.device)
            for key, table in self.tables.items()
        }

    def nothing(self, count: int, device: torch.device | str | None = None) -> Condition:
        """Keyword arguments for `count` empty requests."""
        return self.of(torch.full((count,), self.null), device)


@dataclass(frozen=True)
class Pipeline:
    """A denoiser with what it needs to sample, and the record of what was cut out of it.

    `edits` is replayed on the architecture when a saved model is loaded; `surgery` appends to
    it. `steps` is the number of sampling steps, never of optimizer steps; `guidance` is the
    weight w of classifier-free guidance (1 is none). With an `autoencoder` the denoiser works on
    latents, scaled by the autoencoder's `scaling_factor`.
    """

    denoiser: nn.Module
    scheduler: DDIMScheduler
    steps: int = 20
    guidance: float = 1.0
    conditioning: Conditioning | None = None
    autoencoder: AutoencoderKL | None = None
    text: Text | None = None
    edits: tuple[Edit, ...] = field(default=())

    def private_copy(self) -> Pipeline:
        """A pipeline that shares no tensor with this one."""
        return replace(
            self,
            denoiser=copy.deepcopy(self.denoiser),
            autoencoder=copy.deepcopy(self.autoencoder),
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
        if self.autoencoder is not None:
            self.autoencoder.to(device)
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] as the denoiser sees them: themselves, or latents."""
        if self.autoencoder is None:
            return images
        with torch.no_grad():
            latents: Tensor = self.autoencoder.encode(images).latent_dist.mode()
        return latents * self.autoencoder.config.scaling_factor

    def decode(self, x0: Tensor) -> Tensor:
        """What the denoiser made as images (B, C, H, W), not clipped; keeps gradients."""
        if self.autoencoder is None:
            return x0
        images: Tensor = self.autoencoder.decode(
            x0 / self.autoencoder.config.scaling_factor, return_dict=False
        )[0]
        return images

    def condition(self, rows: Tensor | None) -> Condition:
        """Keyword arguments of the denoiser for rows (B,) of the conditioning; {} without one."""
        if self.conditioning is None or rows is None:
            return {}
        return self.conditioning.of(rows, self.device)

    def nothing(self, count: int) -> Condition:
        """The empty request of classifier-free guidance; {} without conditioning."""
        return {} if self.conditioning is None else self.conditioning.nothing(count, self.device)


@dataclass(frozen=True)
class Examples:
    """Clean data with what it shows: x0 (B, C, H, W) as the denoiser sees it."""

    x0: Tensor
    rows: Tensor | None  # (B,) rows of the conditioning, None where there is none
    condition: Condition

    def __len__(self) -> int:
        return len(self.x0)


@dataclass(frozen=True)
class NoisedBatch:
    """One batch on its way into the denoiser: x0, noise and x_t are (B, C, H, W)."""

    x0: Tensor
    noise: Tensor
    t: Tensor  # (B,) integer timesteps, 0 is almost clean
    x_t: Tensor
    target: Tensor  # what the denoiser should answer, by the scheduler's prediction type
    condition: Condition = field(default_factory=dict)


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
        return seeded(self.seed, name)

    def noise(self, count: int, name: str) -> Tensor:
        """Standard normal noise (count, C, H, W), drawn on the CPU so that devices agree."""
        shape = (count, *self.sample_shape)
        return torch.randn(shape, generator=self.generator(name)).to(self.device)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the denoiser works on.

        Raises:
            ValueError: the denoiser is FLUX, or another without an image size of its own.
        """
        config = self.dense.config
        if "sample_size" not in config:
            raise ValueError(
                f"{type(self.dense.denoiser).__name__}: the harness cannot sample it, since it "
                "works on packed latents of no fixed size, whose number shifts the noise levels"
            )
        return (config.in_channels, config.sample_size, config.sample_size)

    @property
    def timesteps(self) -> int:
        """Length of the training noise schedule."""
        return int(self.dense.scheduler.config.num_train_timesteps)

    def calibration_batch(self, count: int, name: str = "calibration") -> Examples:
        """`count` examples of the calibration split, without replacement.

        Raises:
            ValueError: more images are wanted than the split holds.
        """
        data = self.splits.calibration
        if not 0 < count <= len(data):
            raise ValueError(f"batch_size must lie in 1..{len(data)}, not {count}")
        index = torch.randperm(len(data), generator=self.generator(name))[:count]
        rows = None if self.dense.conditioning is None else data.labels[index]
        return Examples(
            x0=self.dense.encode(data.take(index).to(self.device)),
            rows=rows,
            condition=self.dense.condition(rows),
        )

    def prompts(self, count: int, name: str) -> Tensor | None:
        """Rows (count,) to ask for, each class or caption about equally often; None without."""
        conditioning = self.dense.conditioning
        if conditioning is None:
            return None
        rows = torch.tensor([r for r in range(len(conditioning.names)) if r != conditioning.null])
        order = torch.randperm(len(rows), generator=self.generator(f"{name}/rows"))
        return rows[order[torch.arange(count) % len(rows)]]

    def training_batches(self, batch_size: int, start: int = 0) -> Iterator[NoisedBatch]:
        """Endless noised batches; batch k is the same however the run was interrupted."""
        return noised_batches(self.dense, self.splits.train, batch_size, self.seed, start)

    def noised(
        self, x0: Tensor, noise: Tensor, t: Tensor, condition: Condition | None = None
    ) -> NoisedBatch:
        """Put x0 at noise level t (forward process, Ho et al. 2020, Eq. 4)."""
        return noised(self.dense.scheduler, x0, noise, t, condition)

    def example_inputs(self, batch: int = 1, device: torch.device | str | None = None) -> Edit:
        """Keyword arguments for one denoiser call, for counting and timing."""
        device = torch.device(device or self.device)
        first = "sample" if "sample" in signature(self.dense.denoiser.forward).parameters else None
        condition = {k: v.to(device) for k, v in self.dense.nothing(batch).items()}
        return {
            first or "hidden_states": torch.zeros(batch, *self.sample_shape, device=device),
            "timestep": torch.zeros(batch, dtype=torch.long, device=device),
            **condition,
        }


def noised(
    scheduler: DDIMScheduler,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Condition | None = None,
) -> NoisedBatch:
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
    return NoisedBatch(x0, noise, t, x_t, target, condition or {})


def noised_batches(
    pipe: Pipeline, data: Images, batch_size: int, seed: int, start: int = 0
) -> Iterator[NoisedBatch]:
    """Endless batches; each epoch is a fresh permutation, each batch has its own generator.

    Timesteps are stratified over the batch (one uniform offset, then equal spacing), which
    lowers the variance of the loss and leaves its mean as it is. One request in ten is emptied
    (Ho and Salimans 2022), so that classifier-free guidance keeps working.
    """
    per_epoch = len(data) // batch_size
    if per_epoch == 0:
        raise ValueError(f"batch_size {batch_size} is larger than the {len(data)} images")
    horizon = int(pipe.scheduler.config.num_train_timesteps)
    epoch, order = -1, torch.empty(0, dtype=torch.long)
    step = start
    while True:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = torch.randperm(len(data), generator=seeded(seed, f"epoch/{epoch}"))
        first = (step % per_epoch) * batch_size
        index = order[first : first + batch_size]
        x0 = pipe.encode(data.take(index).to(pipe.device))
        draw = seeded(seed, f"batch/{step}")
        noise = torch.randn(x0.shape, generator=draw).to(pipe.device)
        position = (torch.rand(1, generator=draw) + torch.arange(batch_size) / batch_size) % 1.0
        t = (position * horizon).long().clamp_(max=horizon - 1)
        rows = None
        if pipe.conditioning is not None:
            dropped = torch.rand(batch_size, generator=draw) < REQUEST_DROPOUT
            rows = torch.where(dropped, pipe.conditioning.null, data.labels[index])
        yield noised(pipe.scheduler, x0, noise, t.to(pipe.device), pipe.condition(rows))
        step += 1


def seeded(seed: int, name: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the name alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
