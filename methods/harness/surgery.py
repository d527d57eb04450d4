"""Cutting channels out of a model, exactly, and asking for a size.

Two rules say which channels of a group may go together:

* "within": equal counts from every GroupNorm group or head, the rule of Diff-Pruning (Fang et
  al. 2023; Torch-Pruning up to 1.4.0). Group counts stay, statistics change: the pruned model
  equals a dense one whose GroupNorm looks at the kept channels only.
* "whole": whole GroupNorm groups or whole heads; `num_groups` shrinks. Statistics of what stays
  are untouched: the pruned model equals the dense one with those channels masked to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from .channels import ChannelGroup, channel_groups
from .depth import Skip
from .pipeline import Pipeline

Rule = Literal["within", "whole"]
RULES: tuple[Rule, ...] = ("within", "whole")
Keep = dict[str, list[int]]  # group name -> sorted indices of the channels that stay
Widths = dict[str, int]  # group name -> number of channels that stay

MACS_TOLERANCE = 0.02  # a MACs target is met within this fraction of the dense MACs, or refused


# --- how many channels -----------------------------------------------------------------------


def ratio_widths(groups: Sequence[ChannelGroup], ratio: float, rule: Rule = "within") -> Widths:
    """Widths that remove the fraction `ratio` of every group's channels, rounded to the rule.

    "within" is the paper's arithmetic: n = C - int(C * (1 - ratio)) channels are wanted,
    n // G go from each of the G partitions. At 32 groups, 0.3 of 128 is therefore 32, not 38.

    Raises:
        ValueError: ratio is not in [0, 1) or the rule is unknown.
    """
    check_fraction("ratio", ratio)
    widths = {}
    for group in groups:
        step, most = _step(group, rule)
        wanted = group.size - int(group.size * (1.0 - ratio))
        widths[group.name] = group.size - step * min(wanted // step if step else 0, most)
    return widths


def _step(group: ChannelGroup, rule: Rule) -> tuple[int, int]:
    """The smallest number of channels that can go, and how many such steps at most."""
    if rule == "within":
        return group.partitions, group.size // group.partitions - 1
    if rule == "whole":
        unit = group.whole_unit
        return unit, (group.size // unit - 1 if unit else 0)
    raise ValueError(f"rule must be one of {', '.join(RULES)}, not {rule!r}")


def _neighbours(group: ChannelGroup, width: int, rule: Rule) -> list[int]:
    """Widths one step away."""
    step, most = _step(group, rule)
    smallest = group.size - step * most
    return [w for w in (width - step, width + step) if smallest <= w <= group.size and step]


def check_fraction(name: str, value: float) -> None:
    """Refuse what is not a number in [0, 1), naming the field."""
    if not (isinstance(value, int | float) and math.isfinite(value) and 0.0 <= value < 1.0):
        raise ValueError(f"{name} must be a number in [0, 1), not {value!r}")


@dataclass(frozen=True)
class MacsModel:
    """Convolution and linear MACs of a denoiser as a function of its widths, without running it."""

    groups: tuple[ChannelGroup, ...]
    per_weight: dict[str, int]  # module -> output positions x kernel positions, for one image
    shapes: dict[str, tuple[int, int]]  # module -> (rows, columns) when dense

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Mapping[str, Any]) -> MacsModel:
        """Record how often every weight is used in one forward pass on the meta device."""
        per_weight: dict[str, int] = {}
        shapes: dict[str, tuple[int, int]] = {}
        meta = _on_meta(model)
        handles = []

        def record(name: str) -> Callable[..., None]:
            def hook(layer: nn.Module, _: Any, output: Tensor) -> None:
                batch = output.shape[0]
                if isinstance(layer, nn.Conv2d):
                    kernel = math.prod(layer.kernel_size)
                    uses = math.prod(output.shape[2:]) * kernel
                    shapes[name] = (layer.out_channels, layer.in_channels // layer.groups)
                else:
                    assert isinstance(layer, nn.Linear)
                    uses = math.prod(output.shape[:-1]) // batch
                    shapes[name] = (layer.out_features, layer.in_features)
                per_weight[name] = per_weight.get(name, 0) + uses

            return hook

        for name, layer in meta.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                handles.append(layer.register_forward_hook(record(name)))
        inputs = {
            key: value.to("meta") if isinstance(value, Tensor) else value
            for key, value in example_inputs.items()
        }
        with torch.no_grad():
            meta(**inputs)
        for handle in handles:
            handle.remove()
        return cls(channel_groups(model), per_weight, shapes)

    def macs(self, widths: Widths) -> int:
        """MACs for one image when the groups have these widths; absent groups stay dense."""
        uses, rows, columns, in_rows, in_columns = self._counts
        gone = np.array([g.size - widths.get(g.name, g.size) for g in self.groups], dtype=np.int64)
        return int((uses * (rows - in_rows @ gone) * (columns - in_columns @ gone)).sum())

    @cached_property
    def _counts(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Uses, rows and columns (layers,), and how often each group is in them (layers, groups).

        A search for widths asks for thousands of sizes: what it needs is counted once.
        """
        place = {name: index for index, name in enumerate(self.per_weight)}
        found = {
            axis: np.zeros((len(place), len(self.groups)), dtype=np.int64) for axis in ("out", "in")
        }
        for index, group in enumerate(self.groups):
            for (module, axis), starts in group.members.items():
                if module in place and axis in found:
                    found[axis][place[module], index] += len(starts)
        uses = np.array(list(self.per_weight.values()), dtype=np.int64)
        shapes = np.array([self.shapes[name] for name in place], dtype=np.int64).reshape(-1, 2)
        return uses, shapes[:, 0], shapes[:, 1], found["out"], found["in"]


def _on_meta(model: nn.Module) -> nn.Module:
    """The same architecture, at its present widths, without memory for weights."""
    import copy

    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = (
            nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        )
    return copy.deepcopy(model, memo)


def macs_widths(
    model: nn.Module, example_inputs: Mapping[str, Any], macs: float, rule: Rule = "within"
) -> Widths:
    """Widths that leave the fraction `macs` of the dense convolution and linear MACs.

    The uniform ratio that stays just above the target is found by bisection; then the single step
    (one channel per partition, or one whole unit, more or less) that lands closest is taken as
    long as one helps. Widths depend on the architecture alone, never on scores: every criterion
    is compared at equal shapes.

    Raises:
        ValueError: the fraction is not in (0, 1] or cannot be met within two points; the
            message names the nearest that can be had.
    """
    if not (isinstance(macs, int | float) and math.isfinite(macs) and 0.0 < macs <= 1.0):
        raise ValueError(f"macs must be a number in (0, 1], not {macs!r}")
    cost = MacsModel.of(model, example_inputs)
    dense = cost.macs({})
    target = macs * dense
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if cost.macs(ratio_widths(cost.groups, middle, rule)) >= target:
            low = middle
        else:
            high = middle
    widths = ratio_widths(cost.groups, low, rule)
    best = cost.macs(widths)
    while True:
        trials = [
            widths | {group.name: width}
            for group in cost.groups
            for width in _neighbours(group, widths[group.name], rule)
        ]
        gaps = [abs(cost.macs(trial) - target) for trial in trials]
        if not gaps or min(gaps) >= abs(best - target):
            break
        widths = trials[gaps.index(min(gaps))]
        best = cost.macs(widths)
    if abs(best - target) > MACS_TOLERANCE * dense:
        raise ValueError(
            f"macs={macs:g} cannot be met by rule {rule!r} on this model; the nearest is "
            f"{best / dense:.3f}"
        )
    return widths


def requested_widths(
    model: nn.Module,
    example_inputs: Mapping[str, Any],
    ratio: float | None,
    macs: float | None,
    rule: Rule,
) -> Widths:
    """Widths for a method's config, which asks by channel ratio or by MACs left, else 0.3."""
    if macs is None:
        return ratio_widths(channel_groups(model), 0.3 if ratio is None else ratio, rule)
    if ratio is not None:
        raise ValueError("set either ratio (channels removed) or macs (MACs left), not both")
    return macs_widths(model, example_inputs, macs, rule)


# --- which channels --------------------------------------------------------------------------


def select(group: ChannelGroup, scores: Tensor, width: int, rule: Rule = "within") -> list[int]:
    """Indices of the `width` channels to keep, the lowest scores removed first.

    `scores` is (C,), higher is more important. "within" ranks inside every partition; "whole"
    ranks units by the mean of their channels. Ties go to the lower index (stable sort).

    Raises:
        ValueError: scores are not finite or the width does not fit the rule.
    """
    if scores.shape != (group.size,):
        raise ValueError(f"{group.name}: scores {tuple(scores.shape)}, expected ({group.size},)")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(f"{group.name}: scores are not finite")
    step, _ = _step(group, rule)
    removed = group.size - width
    if width < 1 or removed < 0 or (removed and (step == 0 or removed % step)):
        raise ValueError(f"{group.name}: width {width} of {group.size} does not fit rule {rule!r}")
    if removed == 0:
        return list(range(group.size))
    if rule == "within":
        table = scores.view(group.partitions, -1)  # (G, C/G)
        order = torch.argsort(table, dim=1, stable=True)
        gone = order[:, : removed // group.partitions]
        gone = gone + torch.arange(group.partitions, device=gone.device)[:, None] * table.shape[1]
    else:
        units = scores.view(-1, step).mean(dim=1)
        lowest = torch.argsort(units, stable=True)[: removed // step]
        gone = lowest[:, None] * step + torch.arange(step, device=lowest.device)
    lost = set(gone.flatten().tolist())
    return [index for index in range(group.size) if index not in lost]


# --- the cut ---------------------------------------------------------------------------------


def cut(pipe: Pipeline, keep: Keep, rule: Rule = "within") -> Pipeline:
    """Remove all channels but `keep` from the pipeline's denoiser, in place, and record it.

    Raises:
        ValueError: unknown group, indices that are not sorted, unique and in range, or a
            selection that the rule forbids.
    """
    cut_channels(pipe.denoiser, keep, rule)
    return pipe.edited({"op": "cut", "rule": rule, "keep": keep})


def decoder_widths(autoencoder: nn.Module, ratio: float) -> Widths:
    """Widths that remove the fraction `ratio` of the decoder's channels in every group."""
    return ratio_widths(channel_groups(autoencoder), ratio)


def cut_decoder(pipe: Pipeline, keep: Keep, rule: Rule = "within") -> Pipeline:
    """`cut` for the channels of the autoencoder's decoder; latents and image keep their width.

    Raises:
        ValueError: as `cut`, or the pipeline has no autoencoder.
    """
    if pipe.autoencoder is None:
        raise ValueError("the pipeline has no autoencoder whose decoder could be cut")
    cut_channels(pipe.autoencoder, keep, rule)
    return pipe.edited({"op": "cut", "part": "autoencoder", "rule": rule, "keep": keep})


@torch.no_grad()
def cut_channels(model: nn.Module, keep: Keep, rule: Rule) -> None:
    """`cut` on a bare denoiser."""
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, not {rule!r}")
    groups = {group.name: group for group in channel_groups(model)}
    for name, indices in keep.items():
        if name not in groups:
            raise ValueError(f"unknown channel group {name!r}")
        _check_indices(groups[name], indices)
    pieces: dict[tuple[str, str], list[tuple[int, int, Sequence[int]]]] = {}
    for group in groups.values():
        kept = keep.get(group.name, range(group.size))
        for slot in group.slots:
            pieces.setdefault((slot.module, slot.axis), []).append((slot.start, group.size, kept))
    indices_of = {
        member: [start + i for start, _, kept in sorted(parts, key=_by_start) for i in kept]
        for member, parts in pieces.items()
        if any(len(kept) < size for _, size, kept in parts)
    }
    num_groups = {
        module: _new_num_groups(model, module, kept, rule)
        for (module, axis), kept in indices_of.items()
        if axis == "norm"
    }
    head_counts = {
        group.name: _new_heads(group, keep[group.name], rule)
        for group in groups.values()
        if group.heads > 1 and group.name in keep
    }
    # Everything is checked; from here on nothing raises.
    for (module, axis), kept in indices_of.items():
        _slice(model.get_submodule(module), axis, kept)
    for module, count in num_groups.items():
        norm = model.get_submodule(module)
        assert isinstance(norm, nn.GroupNorm)
        norm.num_groups = count
    _refit_attributes(model, head_counts)


def _by_start(piece: tuple[int, int, Sequence[int]]) -> int:
    return piece[0]


def _check_indices(group: ChannelGroup, indices: Any) -> None:
    whole = isinstance(indices, list) and all(type(i) is int for i in indices)
    if not whole or not indices or indices != sorted(set(indices)):
        raise ValueError(f"{group.name}: kept indices must be a sorted list without repeats")
    if indices[0] < 0 or indices[-1] >= group.size:
        raise ValueError(f"{group.name}: kept indices must lie in 0..{group.size - 1}")


def _new_num_groups(model: nn.Module, module: str, kept: Sequence[int], rule: Rule) -> int:
    norm = model.get_submodule(module)
    assert isinstance(norm, nn.GroupNorm)
    if rule == "within":
        if len(kept) % norm.num_groups:
            raise ValueError(
                f"{module}: {len(kept)} channels do not divide into {norm.num_groups} groups"
            )
        return norm.num_groups
    width = norm.num_channels // norm.num_groups
    members: dict[int, int] = {}
    for index in kept:
        members[index // width] = members.get(index // width, 0) + 1
    torn = [group for group, count in members.items() if count != width]
    if torn:
        raise ValueError(f"{module}: GroupNorm group {torn[0]} would be torn by rule 'whole'")
    return len(members)


def _new_heads(group: ChannelGroup, kept: Sequence[int], rule: Rule) -> int:
    width = group.size // group.heads
    counts = [0] * group.heads
    for index in kept:
        counts[index // width] += 1
    if rule == "within":
        if len(set(counts)) != 1:
            raise ValueError(f"{group.name}: unequal counts in the heads under rule 'within'")
        return group.heads
    if any(count not in (0, width) for count in counts):
        raise ValueError(f"{group.name}: a head would be torn by rule 'whole'")
    return sum(count == width for count in counts)


def _slice(layer: nn.Module, axis: str, kept: Sequence[int]) -> None:
    if isinstance(layer, Skip):
        if layer.channels is not None:
            layer.channels = len(kept)
        return
    dim = 1 if axis == "in" else 0
    names = ("weight",) if axis == "in" else ("weight", "bias")
    for name in names:
        parameter = getattr(layer, name, None)
        if parameter is None:
            continue
        index = torch.tensor(kept, device=parameter.device)
        smaller = nn.Parameter(parameter.index_select(dim, index), parameter.requires_grad)
        if parameter.grad is not None:
            smaller.grad = parameter.grad.index_select(dim, index)
        setattr(layer, name, smaller)
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = len(kept)


def _refit_attributes(model: nn.Module, head_counts: Mapping[str, int]) -> None:
    """Bring what diffusers' modules remember of their widths in line with their tensors."""
    for name, block in model.named_modules():
        if isinstance(block, Downsample2D | Upsample2D) and block.use_conv:
            block.channels, block.out_channels = block.conv.in_channels, block.conv.out_channels
        elif isinstance(block, ResnetBlock2D):
            block.in_channels = block.conv1.in_channels
            block.out_channels = block.conv2.out_channels
        elif isinstance(block, Attention):
            _refit_attention(block, head_counts.get(f"{name}.to_q", block.heads))


def _refit_attention(block: Attention, heads: int) -> None:
    old_width = block.inner_dim // block.heads
    block.inner_dim = block.inner_kv_dim = block.to_q.out_features
    block.query_dim, block.cross_attention_dim = block.to_q.in_features, block.to_k.in_features
    block.out_dim = block.to_out[0].out_features
    block.heads = heads
    width = block.inner_dim // heads
    if width != old_width:
        # Attention divides by sqrt(head width); the pruned head must keep the dense divisor.
        factor = math.sqrt(width / old_width)
        block.to_q.weight.mul_(factor)
        if block.to_q.bias is not None:
            block.to_q.bias.mul_(factor)
        block.scale = width**-0.5
