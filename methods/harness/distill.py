"""Learning from the dense model: its answers and the features on the way to them.

L = w_task L_task + w_out ||eps_T - eps_S||^2 + w_feat sum_l a_l ||f_T,l - f_S,l||^2, all means over
elements. a_l = 1 in BK-SDM (Kim et al., ECCV 2024, arXiv 2305.15798); LAPTOP-Diff (Zhang et al.,
arXiv 2404.11098) divides every term by the size of the teacher's feature, so that no stage drowns
the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from .denoise import predict
from .pipeline import NoisedBatch

Normalise = Literal["none", "norm", "squared"]
NORMALISE: tuple[Normalise, ...] = ("none", "norm", "squared")
_EPSILON = 1e-8


def feature_pairs(teacher: nn.Module, student: nn.Module) -> dict[str, str]:
    """Teacher module -> student module whose outputs are compared.

    U-Nets: every down block by its index, every up block counted from the output, since a removed
    lowest stage renumbers them. A stage that lost its sampler is compared before it, as BK-SDM-Tiny
    is: at the last transformer's `proj_out` on either side, else at the last layer. DiT: every
    block that the student still has.
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
            target, feature = f"{part}.{index + gone}", f"{part}.{index}"
            dense, pruned = teacher.get_submodule(target), student.get_submodule(feature)
            if _has_sampler(dense) != _has_sampler(pruned):
                inside = _before_sampler(dense, pruned)
                target, feature = f"{target}.{inside[0]}", f"{feature}.{inside[1]}"
            pairs[target] = feature
    return pairs


def _has_sampler(stage: nn.Module) -> bool:
    return any(getattr(stage, kind, None) is not None for kind in ("downsamplers", "upsamplers"))


def _before_sampler(teacher: nn.Module, student: nn.Module) -> tuple[str, str]:
    """Names inside the two stages of what gives the features before a sampler."""
    theirs, ours = _last_transformer(teacher), _last_transformer(student)
    if theirs and ours:
        return f"{theirs}.proj_out", f"{ours}.proj_out"
    return _last_layer(teacher), _last_layer(student)


def _last_transformer(stage: nn.Module) -> str:
    """The last transformer of a stage that was not removed, "" where there is none."""
    layers = enumerate(getattr(stage, "attentions", ()))
    found = [index for index, layer in layers if isinstance(layer, Transformer2DModel)]
    return f"attentions.{found[-1]}" if found else ""


def _last_layer(stage: nn.Module) -> str:
    """The last layer of a stage; if it was removed, its stand-in gives what the others left."""
    part = "attentions" if hasattr(stage, "attentions") else "resnets"
    return f"{part}.{len(getattr(stage, part)) - 1}"


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


@dataclass(frozen=True)
class Fit:
    """Which pairs of features can be compared: those of equal shape."""

    used: dict[str, str]  # teacher module -> student module
    left_out: dict[str, str]  # teacher module -> why it is not compared


def fit(
    teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], pairs: Mapping[str, str]
) -> Fit:
    """Sort pairs by whether their recorded features (B, ...) have equal shapes."""
    used, left_out = {}, {}
    for theirs, ours in pairs.items():
        target, feature = teacher[theirs].shape, student[ours].shape
        if target == feature:
            used[theirs] = ours
        else:
            shapes = f"{tuple(target[1:])} in the teacher, {tuple(feature[1:])} in the student"
            left_out[theirs] = shapes if ours == theirs else f"{shapes}'s {ours}"
    return Fit(used, left_out)


def feature_loss(
    teacher: Mapping[str, Tensor],
    student: Mapping[str, Tensor],
    pairs: Mapping[str, str],
    normalise: Normalise,
) -> Tensor:
    """Sum over pairs of equal shape of the squared difference, normalised.

    "none": mean squared error. "squared": over the mean square of the teacher's feature, which
    leaves the loss as it is when both are scaled alike. "norm": over its root mean square. Zero
    where no pair has equal shapes.
    """
    total = torch.zeros((), device=next(iter(student.values())).device if student else "cpu")
    for theirs, ours in fit(teacher, student, pairs).used.items():
        target, feature = teacher[theirs].detach().float(), student[ours].float()
        error = (feature - target).square().mean()
        size = target.square().mean()
        if normalise == "squared":
            error = error / (size + _EPSILON)
        elif normalise == "norm":
            error = error / (size.sqrt() + _EPSILON)
        total = total + error
    return total


@dataclass
class Distillation:
    """The objective; the teacher runs on the same noisy batch, without gradients.

    Made for one student: its first call decides which features are compared, and `points` tells.
    """

    teacher: nn.Module
    task_weight: float = 1.0
    output_weight: float = 1.0
    feature_weight: float = 1.0
    normalise: Normalise = "none"
    points: Fit | None = field(default=None, init=False)  # None: before a call, or weight 0

    def __call__(self, model: nn.Module, batch: NoisedBatch) -> Tensor:
        pairs = self._pairs(model) if self.feature_weight else {}
        with torch.no_grad(), recorded(self.teacher, list(pairs)) as theirs:
            target = predict(self.teacher, batch.x_t, batch.t, batch.condition).float()
        with recorded(model, list(pairs.values())) as ours:
            answer = predict(model, batch.x_t, batch.t, batch.condition).float()
        loss = self.task_weight * (answer - batch.target).square().mean()
        loss = loss + self.output_weight * (answer - target).square().mean()
        if self.feature_weight:
            if self.points is None:
                self.points = fit(theirs, ours, pairs)
            if self.points.used:
                features = feature_loss(theirs, ours, self.points.used, self.normalise)
                loss = loss + self.feature_weight * features
        return loss

    def _pairs(self, model: nn.Module) -> dict[str, str]:
        if self.points is not None:
            return self.points.used
        return feature_pairs(self.teacher, model)
