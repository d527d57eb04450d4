"""Learning from the dense model: its answers and the features on the way to them.

L = w_task L_task + w_out ||eps_T - eps_S||^2 + w_feat sum_l a_l ||f_T,l - f_S,l||^2, all means over
elements. a_l = 1 in BK-SDM (Kim et al., ECCV 2024, arXiv 2305.15798); LAPTOP-Diff (Zhang et al.,
arXiv 2404.11098) divides every term by the size of the teacher's feature, so that no stage drowns
the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from .denoise import predict
from .pipeline import NoisedBatch

Normalise = Literal["none", "norm", "squared"]
NORMALISE: tuple[Normalise, ...] = ("none", "norm", "squared")
_EPSILON = 1e-8


def feature_pairs(teacher: nn.Module, student: nn.Module) -> dict[str, str]:
    """Teacher module -> student module whose outputs are compared.

    U-Nets: every down block by its index, every up block counted from the output, since a removed
    lowest stage renumbers them. DiT: every block that the student still has.
    """
    if isinstance(teacher, DiTTransformer2DModel):
        blocks = teacher.transformer_blocks
        names = [f"transformer_blocks.{index}" for index in range(len(blocks))]
        return {
            name: name
            for name in names
            if isinstance(student.get_submodule(name), BasicTransformerBlock)
        }
    pairs = {}
    for part in ("down_blocks", "up_blocks"):
        theirs, ours = len(getattr(teacher, part)), len(getattr(student, part))
        gone = theirs - ours if part == "up_blocks" else 0
        for index in range(ours):
            pairs[f"{part}.{index + gone}"] = f"{part}.{index}"
    return pairs


@contextmanager
def recorded(model: nn.Module, names: Iterator[str] | list[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, each named module's output (a tuple's first element) is kept under its name."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return keep

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def feature_loss(
    teacher: Mapping[str, Tensor],
    student: Mapping[str, Tensor],
    pairs: Mapping[str, str],
    normalise: Normalise,
) -> Tensor:
    """Sum over pairs of equal shape of the squared difference, normalised.

    "none": mean squared error. "squared": over the mean square of the teacher's feature, which
    leaves the loss as it is when both are scaled alike. "norm": over its root mean square.
    """
    total = torch.zeros((), device=next(iter(student.values())).device)
    for theirs, ours in pairs.items():
        target, feature = teacher[theirs].detach().float(), student[ours].float()
        if target.shape != feature.shape:
            continue
        error = (feature - target).square().mean()
        size = target.square().mean()
        if normalise == "squared":
            error = error / (size + _EPSILON)
        elif normalise == "norm":
            error = error / (size.sqrt() + _EPSILON)
        total = total + error
    return total


@dataclass(frozen=True)
class Distillation:
    """The objective; the teacher runs on the same noisy batch, without gradients."""

    teacher: nn.Module
    task_weight: float = 1.0
    output_weight: float = 1.0
    feature_weight: float = 1.0
    normalise: Normalise = "none"

    def __call__(self, model: nn.Module, batch: NoisedBatch) -> Tensor:
        pairs = feature_pairs(self.teacher, model) if self.feature_weight else {}
        with torch.no_grad(), recorded(self.teacher, list(pairs)) as theirs:
            target = predict(self.teacher, batch.x_t, batch.t, batch.condition).float()
        with recorded(model, list(pairs.values())) as ours:
            answer = predict(model, batch.x_t, batch.t, batch.condition).float()
        loss = self.task_weight * (answer - batch.target).square().mean()
        loss = loss + self.output_weight * (answer - target).square().mean()
        if pairs:
            features = feature_loss(theirs, ours, pairs, self.normalise)
            loss = loss + self.feature_weight * features
        return loss
