"""Remove layers at even distances: the depth baseline that looks at nothing.

No paper: every table of depth pruning has such a row (ShortGPT-like selections and TinyFusion, Fang
et al., CVPR 2025, arXiv 2412.01199, compare with fixed patterns). Two rules make it even:

* within a kind of layer (ResNets, attention, transformers), c of its n layers in the order of the
  forward pass go, each from the middle of its share: number floor((k + 1/2) n / c), k = 0 .. c - 1;
* between kinds, layers are added one at a time to the kind that has lost the smallest share,
  smallest (c + 1/2) / n, ties to the kind that the forward pass meets first.

The first such set that meets the request goes whole: none of it is spared again, so that early and
late layers are treated alike, at the price of removing about one layer too much.

Expect: `python -m methods run uniform_depth --task fashion_t2i --set uniform_depth.params=0.5`. It
is a row of `python -m methods standard --task fashion_t2i`, whose records hold its time, machine,
cost and scores with their spread. Parameters, MACs and time fall together; in proportion
on a DiT, whose blocks are alike, while on a U-Net parameters fall faster than MACs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from .harness.depth import Unit, drop, removable, requested
from .harness.pipeline import Notes, Pipeline, Task

CARD = {
    "paper": None,
    "granularity": "structured",
    "unit": "layer",
    "role": "baseline",
    "tasks": ["fashion_unet", "fashion_dit", "fashion_t2i"],
    "try": ("uniform_depth.params=0.5",),
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
    names = [unit.name for unit in spread(candidates, wanted)]
    return drop(pipe, names), {"removed": names}


def spread(candidates: Sequence[Unit], wanted: int) -> list[Unit]:
    """The first even set, one layer larger each time, that holds `wanted` parameters.

    In the order of the forward pass; all candidates if they hold no more than that.
    """
    kinds: dict[str, list[Unit]] = {}
    for unit in candidates:
        kinds.setdefault(unit.kind, []).append(unit)
    counts = dict.fromkeys(kinds, 0)
    for _ in range(len(candidates)):
        chosen = [unit for kind in kinds for unit in evenly(kinds[kind], counts[kind])]
        if sum(unit.params for unit in chosen) >= wanted:
            return sorted(chosen, key=candidates.index)
        # Fractions compare exactly where floats would break ties by rounding.
        left = [kind for kind in kinds if counts[kind] < len(kinds[kind])]
        least = min(left, key=lambda kind: Fraction(2 * counts[kind] + 1, 2 * len(kinds[kind])))
        counts[least] += 1
    return list(candidates)


def evenly(layers: Sequence[Unit], count: int) -> list[Unit]:
    """`count` of the layers, each in the middle of its equal share of them."""
    return [layers[(2 * k + 1) * len(layers) // (2 * count)] for k in range(count)]
