"""How far a model's answers lie from another's: fixed data, noise, requests and guidance.

Criteria that drop layers ask it of the dense model, whose answers it holds, as often as they need.
The answers are the guided ones, since those are what a sampler uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .calibration import calibration
from .data import Splits
from .denoise import Condition, guided
from .pipeline import NoisedBatch, Task


@dataclass(frozen=True)
class Judge:
    """Batches, each with its guidance weight, and the answers (B, C, H, W) that are wanted."""

    batches: tuple[NoisedBatch, ...]
    weights: tuple[float, ...]  # w of each batch; 1 is no guidance
    null: Condition  # empty requests for one batch; {} without conditioning
    wanted: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Sequence[NoisedBatch],
        weights: Sequence[float],
        null: Condition,
    ) -> Judge:
        """A judge for which `model` is right.

        Raises:
            ValueError: not one weight for each batch.
        """
        if len(weights) != len(batches):
            raise ValueError(f"{len(batches)} batches need as many weights, not {len(weights)}")
        unjudged = cls(tuple(batches), tuple(weights), null, ())
        return cls(tuple(batches), tuple(weights), null, tuple(unjudged.answers(model)))

    @torch.no_grad()
    def answers(self, model: nn.Module) -> list[Tensor]:
        """Guided answers (B, C, H, W) to every batch; the model is left in evaluation mode."""
        model.eval()
        return [
            guided(model, batch.x_t, batch.t, batch.condition, self.null, w)
            for batch, w in zip(self.batches, self.weights, strict=True)
        ]

    def error(self, model: nn.Module) -> float:
        """Mean squared difference to the wanted answers, a mean over batches; 0 is the best."""
        found = zip(self.answers(model), self.wanted, strict=True)
        return float(torch.stack([(a - b).square().mean() for a, b in found]).mean())


def held_out_judges(
    task: Task, images: int, timesteps: int, guidance: float, name: str
) -> dict[str, Judge]:
    """Who compares with the dense model on reference images, which nothing was trained on.

    "guided" answers at that weight, "unguided" ones, and "null", those to the empty request.
    """
    dense = task.dense
    reference = replace(task, splits=Splits(*(task.splits.reference,) * 3))
    batches = calibration(reference, images, timesteps, name)
    null = dense.nothing(images)
    empty = [replace(batch, condition=null) for batch in batches]
    plain = [1.0] * len(batches)
    return {
        "guided": Judge.of(dense.denoiser, batches, [guidance] * len(batches), null),
        "unguided": Judge.of(dense.denoiser, batches, plain, null),
        "null": Judge.of(dense.denoiser, empty, plain, null),
    }
