"""Claims about size, recomputed: parameters and MACs follow from the architecture alone.

Every result row of papers.yaml that names a known architecture (`zoo`) is taken apart on the
meta device: its dense numbers, and its pruned ones where the rule of the cut is known. A claim
agrees when it lies within one unit of its last printed digit, which also admits numbers that were
cut instead of rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import cache
from typing import Any

import torch
from torch import nn

from kb.schema import Bound, Literature, Measure, Metric, Paper, Result, SparsityKind

from . import zoo
from .measure import count_macs, count_params
from .surgery import MacsModel, cut_channels, ratio_widths, select

# BK-SDM's rows by the start of their id; its architectures are in the zoo.
_BK_SDM = {
    f"{prefix}{version}{size}": f"bk_sdm_{'v2_' if version == 'v2-' else ''}{size}"
    for size in ("base", "small", "tiny")
    for prefix, version in (("", "v1-"), ("", "v2-"), ("count-", ""), ("count-", "v2-"))
}


@dataclass(frozen=True)
class Claim:
    """One printed number beside what the architecture gives."""

    paper: str
    row: str
    metric: str
    what: str  # "dense" or "pruned"
    claimed: float  # in the metric's canonical unit
    unit: str
    recomputed: float | None
    assumption: str
    verdict: str  # agrees | differs | not recomputable

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def claims(literature: Literature) -> list[Claim]:
    """All claims on parameters and MACs of rows that name an architecture, in file order."""
    return [
        claim
        for paper in literature.papers
        for row in paper.results
        if row.zoo is not None
        for measure in row.measures
        for claim in _of_measure(paper, row, measure)
    ]


def summary(found: Sequence[Claim]) -> dict[str, int]:
    """How many claims agree, differ or cannot be recomputed."""
    verdicts = ("agrees", "differs", "not recomputable")
    return {verdict: sum(c.verdict == verdict for c in found) for verdict in verdicts}


def _of_measure(paper: Paper, row: Result, measure: Measure) -> Iterator[Claim]:
    if measure.metric not in (Metric.PARAMS, Metric.MACS) or row.zoo not in zoo.ARCHITECTURES:
        return
    assert row.zoo is not None
    if row.sparsity.kind is SparsityKind.NONE:
        yield _judge(paper, row, measure, "dense", measure.value, *_dense(row.zoo, measure.metric))
        return
    if measure.dense is not None:
        yield _judge(paper, row, measure, "dense", measure.dense, *_dense(row.zoo, measure.metric))
    yield _judge(paper, row, measure, "pruned", measure.value, *_pruned(paper, row, measure.metric))


def _judge(
    paper: Paper,
    row: Result,
    measure: Measure,
    what: str,
    printed: float,
    recomputed: float | None,
    assumption: str,
) -> Claim:
    unit = measure.unit or measure.metric.unit
    factor = measure.metric.units[unit] * _CANONICAL[measure.metric]
    verdict = "not recomputable"
    if recomputed is not None:
        slack = 0.05 * abs(printed) if measure.bound is Bound.ABOUT else last_digit(printed)
        gap = abs(printed - recomputed / factor)
        verdict = "agrees" if gap <= slack * (1 + 1e-9) else "differs"
    return Claim(
        paper=paper.id,
        row=row.id,
        metric=measure.metric.value,
        what=what,
        claimed=printed,
        unit=unit,
        recomputed=None if recomputed is None else round(recomputed / factor, 6),
        assumption=assumption,
        verdict=verdict,
    )


# What one canonical unit of kb.schema is worth: millions of parameters, giga-MACs.
_CANONICAL = {Metric.PARAMS: 1e6, Metric.MACS: 1e9}


def last_digit(printed: float) -> float:
    """One unit of the last printed digit: 0.1 for 35.7, 1 for 860."""
    exponent = Decimal(repr(printed)).normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return float(Decimal(1).scaleb(min(exponent, 0)))


@cache
def _sizes(name: str) -> dict[Metric, float]:
    model, inputs = zoo.ARCHITECTURES[name].on_meta()
    macs = count_macs(model, inputs)
    return {Metric.PARAMS: count_params(model), Metric.MACS: macs.conv_linear}


def _dense(name: str, metric: Metric) -> tuple[float, str]:
    if name == "dit_xl_2" and metric is Metric.PARAMS:
        return _published_dit(28), _DIT_LAYOUT
    what = "; convolution and linear layers of one call" if metric is Metric.MACS else ""
    return _sizes(name)[metric], f"`count {name}`{what}"


_DIT_LAYOUT = "embedders counted once and the position table as weights, as the official code does"


def _published_dit(blocks: int) -> int:
    """DiT-XL/2 of so many blocks in the layout of the official code.

    diffusers stores a timestep MLP and a label table in every block and the position table as a
    buffer.
    """
    model: Any = zoo.ARCHITECTURES["dit_xl_2"].on_meta()[0]
    block = model.transformer_blocks[0]
    embedders = _numel(block.norm1.emb)
    table = model.pos_embed.pos_embed.numel()
    in_blocks = blocks * (_numel(block) - embedders)
    return count_params(model) - 28 * _numel(block) + in_blocks + embedders + table


def _pruned(paper: Paper, row: Result, metric: Metric) -> tuple[float | None, str]:
    assert row.zoo is not None
    if paper.id == "diff-pruning" and row.zoo == "ddpm_cifar10":
        sizes = _channel_ratio("ddpm_cifar10", 0.3)
        return sizes[metric], "0.3 of the channels by the official counting rule"
    sparsity = row.sparsity
    if paper.id == "bk-sdm":
        for start, name in _BK_SDM.items():
            if row.id == start or row.id.startswith(f"{start}-"):
                return _sizes(name)[metric], f"`count {name}`"
    if (
        row.zoo == "dit_xl_2"
        and metric is Metric.PARAMS
        and sparsity.kind in (SparsityKind.LAYERS, SparsityKind.BLOCKS)
        and sparsity.value is not None
    ):
        blocks = round(28 * (1 - sparsity.value))
        return _published_dit(blocks), f"{blocks} of 28 blocks; {_DIT_LAYOUT}"
    if (
        sparsity.kind is SparsityKind.PRUNABLE_UNITS
        and sparsity.value is not None
        and metric is Metric.PARAMS
        and row.zoo in ("sdxl", "sd15", "sd21")
    ):
        left = _sizes(row.zoo)[metric] - sparsity.value * heads_and_neurons(row.zoo)
        return left, f"{sparsity.value:g} of every layer's heads and feed-forward neurons removed"
    return None, "the rule of the cut is not known well enough to recompute it"


@cache
def _channel_ratio(name: str, ratio: float) -> dict[Metric, float]:
    model, inputs = zoo.ARCHITECTURES[name].on_meta()
    cost = MacsModel.of(model, inputs)
    widths = ratio_widths(cost.groups, ratio)
    keep = {g.name: select(g, torch.zeros(g.size), widths[g.name]) for g in cost.groups}
    cut_channels(model, keep, "within")
    return {Metric.PARAMS: count_params(model), Metric.MACS: cost.macs(widths)}


@cache
def heads_and_neurons(name: str) -> int:
    """Parameters that go when all attention heads and feed-forward neurons of a U-Net go.

    Output biases stay: they belong to no head and no neuron.
    """
    model, _ = zoo.ARCHITECTURES[name].on_meta()
    total = 0
    module: Any
    for module_name, module in model.named_modules():
        leaf = module_name.rpartition(".")[2]
        if leaf in ("attn1", "attn2"):
            projections = [module.to_q, module.to_k, module.to_v]
            total += sum(_numel(p) for p in projections) + module.to_out[0].weight.numel()
        elif leaf == "ff":
            total += _numel(module.net[0].proj) + module.net[2].weight.numel()
    return total


def _numel(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters())
