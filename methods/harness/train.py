"""One training loop for bases and for retraining: a generator that yields, callers decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .denoise import predict
from .pipeline import NoisedBatch

Objective = Callable[[nn.Module, NoisedBatch], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How to optimise; fractions refer to `steps`."""

    steps: int  # optimizer steps
    batch_size: int = 64
    learning_rate: float = 6e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 100  # optimizer steps of linear warm-up
    decay_from: float = 0.5  # fraction after which a cosine takes the rate to zero
    ema_decay: float = 0.9995
    gradient_clip: float = 1.0
    precision: str = "bf16"  # autocast dtype: bf16 or fp32
    channels_last: bool = False  # memory layout; which is faster depends on the machine

    def __post_init__(self) -> None:
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision must be bf16 or fp32, not {self.precision!r}")
        if self.steps < 0 or self.batch_size < 1:
            raise ValueError("steps must be >= 0 and batch_size >= 1")

    @classmethod
    def short(cls, steps: int, batch_size: int, learning_rate: float, precision: str) -> Recipe:
        """For some hundred steps: a tenth of them is warm-up, the average forgets quickly."""
        return cls(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup=max(1, steps // 10),
            ema_decay=0.98,
            precision=precision,
        )


@dataclass(frozen=True)
class Step:
    """What one optimizer step left behind; `model` and `ema` are live, not copies."""

    index: int  # steps done, from 1
    loss: float
    learning_rate: float
    images: int
    model: nn.Module
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer


def denoising_loss(model: nn.Module, batch: NoisedBatch) -> Tensor:
    """Mean squared error to the target (Ho et al. 2020, Eq. 14)."""
    prediction = predict(model, batch.x_t, batch.t, batch.condition)
    return (prediction.float() - batch.target).square().mean()


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, flat, then a cosine to zero; `step` counts from 0."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup))
    start = recipe.decay_from * recipe.steps
    if step < start:
        return recipe.learning_rate * warm
    progress = (step - start) / max(1.0, recipe.steps - start)
    return recipe.learning_rate * warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def ema_decay(recipe: Recipe, step: int) -> float:
    """Decay that starts small, so that the average forgets the initial weights."""
    return min(recipe.ema_decay, (1 + step) / (10 + step))


def train(
    model: nn.Module,
    batches: Iterator[NoisedBatch],
    recipe: Recipe,
    objective: Objective = denoising_loss,
    *,
    start: int = 0,
    optimizer_state: dict[str, Tensor] | None = None,
    ema: dict[str, Tensor] | None = None,
) -> Iterator[Step]:
    """Train in place and yield after every optimizer step.

    Weights stay float32; `recipe.precision` is the autocast dtype of the forward pass.
    To resume, pass the steps done as `start` with what `optimizer_tensors` and `ema` held.
    """
    device = next(model.parameters()).device
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
    )
    if optimizer_state is not None:
        load_optimizer_tensors(optimizer, optimizer_state, start)
    average = ema if ema is not None else weights(model)
    autocast = recipe.precision == "bf16"
    for step in range(start, recipe.steps):
        rate = learning_rate(recipe, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = next(batches)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = objective(model, batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss became {value} at optimizer step {step + 1}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
        optimizer.step()
        decay = ema_decay(recipe, step)
        with torch.no_grad():
            names, current = zip(*model.named_parameters(), strict=True)
            torch._foreach_lerp_([average[n] for n in names], list(current), 1.0 - decay)
        yield Step(
            index=step + 1,
            loss=value,
            learning_rate=rate,
            images=(step + 1) * len(batch.x0),
            model=model,
            ema=average,
            optimizer=optimizer,
        )


def retrain(
    model: nn.Module,
    batches: Iterator[NoisedBatch],
    recipe: Recipe,
    objective: Objective = denoising_loss,
) -> list[float]:
    """Train to the end, leave the averaged weights in the model, return the losses."""
    losses, average = [], None
    for step in train(model, batches, recipe, objective):
        losses.append(step.loss)
        average = step.ema
    if average is not None:
        load_weights(model, average)
    model.zero_grad(set_to_none=True)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    model.eval()
    return losses


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A detached copy of every parameter by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@torch.no_grad()
def load_weights(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy `values` into the parameters; names must match exactly."""
    parameters = dict(model.named_parameters())
    if parameters.keys() != values.keys():
        odd = sorted(parameters.keys() ^ values.keys())
        raise ValueError(f"parameter names differ, first: {odd[0]}")
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments by parameter position, for safetensors."""
    return {
        f"{index}.{key}": state[key]
        for index, p in enumerate(optimizer.param_groups[0]["params"])
        if (state := optimizer.state.get(p))
        for key in ("exp_avg", "exp_avg_sq")
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], step: int
) -> None:
    """Undo `optimizer_tensors`; `step` drives Adam's bias correction."""
    for index, p in enumerate(optimizer.param_groups[0]["params"]):
        optimizer.state[p] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"{index}.exp_avg"].to(p.device),
            "exp_avg_sq": tensors[f"{index}.exp_avg_sq"].to(p.device),
        }
