"""Remove layers at even distances: the depth baseline that looks at nothing.

No paper: every table of depth pruning has such a row (ShortGPT-like selections and TinyFusion, Fang
et al., CVPR 2025, arXiv 2412.01199, compare with fixed patterns). Removable layers in the order of
the forward pass are taken by a stride that spreads them as evenly as whole numbers allow, until
the request is met.

Expect: fewer parameters and MACs in proportion, and time with them, since whole layers go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .harness.depth import Unit, drop, removable, requested, until
from .harness.pipeline import Notes, Pipeline, Task

CARD = {
    "paper": None,
    "granularity": "structured",
    "unit": "layer",
    "role": "baseline",
    "tasks": ["fashion_unet", "fashion_dit", "fashion_t2i"],
}


@dataclass(frozen=True)
class Config:
    """Ask either by `params` or by `ratio`."""

    params: float | None = None  # denoiser parameters left at most, (0, 1]
    ratio: float | None = None  # of the removable layers' parameters, [0, 1)


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Choose by position and drop; needs no data."""
    candidates = removable(pipe.denoiser)
    wanted = requested(pipe.denoiser, candidates, config.params, config.ratio)
    for count in range(len(candidates) + 1):
        chosen = evenly(candidates, count)
        if sum(unit.params for unit in chosen) >= wanted:
            break
    names = until(chosen, wanted)
    return drop(pipe, names), {"removed": names}


def evenly(candidates: Sequence[Unit], count: int) -> list[Unit]:
    """`count` of the candidates, each in the middle of its equal share of them."""
    share = len(candidates) / max(1, count)
    return [candidates[int((k + 0.5) * share)] for k in range(count)]
