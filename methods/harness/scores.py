"""From tensors to one number per channel: group scores, shared by every channel criterion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .channels import ChannelGroup, backward_order, channel_groups
from .surgery import Keep, Rule, Widths, select

# (channels, everything else) of weights and of their gradients -> (channels,)
ChannelScore = Callable[[Tensor, Tensor | None], Tensor]
Order = Literal["sequential", "one-shot"]
ORDERS: tuple[Order, ...] = ("sequential", "one-shot")


@dataclass(frozen=True)
class GroupScore:
    """How the slices of a group become one score per channel.

    Two official implementations differ in everything but the idea:

    * `reduction`: "mean" over member tensors, divided by the mean over channels
      (Torch-Pruning's MagnitudeImportance), or plain "sum" (the code behind Diff-Pruning).
    * `norms`: whether GroupNorm's gamma is a member; biases never are.
    * `repeated`: a tensor that reads the group twice (both halves of a concatenation) is added
      half by half, or dropped. One that produces it twice, value and gate of a gated
      feed-forward, is added always: the official programs met none.
    """

    channel: ChannelScore
    reduction: Literal["mean", "sum"] = "mean"
    norms: bool = False
    repeated: Literal["add", "drop"] = "add"

    def __call__(
        self, group: ChannelGroup, weights: Mapping[str, Tensor], grads: Mapping[str, Tensor]
    ) -> Tensor:
        """Scores (C,), higher is more important."""
        total: Tensor | None = None
        members = 0
        for (module, axis), starts in group.members.items():
            reads_twice = axis != "out" and len(starts) > 1
            if (axis == "norm" and not self.norms) or (reads_twice and self.repeated == "drop"):
                continue
            weight, grad = weights[module], grads.get(module)
            if axis == "in":
                weight = weight.transpose(0, 1)
                grad = None if grad is None else grad.transpose(0, 1)
            found = self.channel(
                weight.flatten(1) if weight.dim() > 1 else weight[:, None],
                None if grad is None else grad.reshape(len(weight), -1),
            )
            share = sum(
                (found[start : start + group.size] for start in starts),
                start=torch.zeros_like(found[: group.size]),
            )
            total = share if total is None else total + share
            members += 1
        if total is None:
            raise ValueError(f"{group.name}: no tensor left to score")
        if self.reduction == "sum":
            return total
        mean = total / members
        scale = mean.mean()
        return mean / scale if scale > 0 else mean


def choose(
    model: nn.Module,
    score: Callable[[ChannelGroup, Mapping[str, Tensor], Mapping[str, Tensor]], Tensor],
    widths: Widths,
    *,
    rule: Rule = "within",
    order: Order = "one-shot",
) -> Keep:
    """Score every group and select its channels.

    "one-shot" scores all groups on the dense tensors. "sequential" is what the official code
    does: groups in `backward_order`, each scored without what earlier groups gave up.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
    groups: Sequence[ChannelGroup] = channel_groups(model)
    if order == "sequential":
        by_name = {group.name: group for group in groups}
        groups = [by_name[name] for name in backward_order(model)]
    weights, grads = _tensors(model)
    keep: Keep = {}
    for group in groups:
        if widths[group.name] == group.size:
            continue
        kept = select(group, score(group, weights, grads), widths[group.name], rule)
        keep[group.name] = kept
        if order == "sequential":
            _silence(group, kept, weights)
    return keep


def overlap(one: Keep, other: Keep) -> float:
    """The fraction of kept channels that two selections of equal widths share, [0, 1].

    Groups that keep all their channels are in neither and do not count.

    Raises:
        ValueError: the selections differ in groups or widths, or nothing is cut.
    """
    if {name: len(kept) for name, kept in one.items()} != {
        name: len(kept) for name, kept in other.items()
    }:
        raise ValueError("only selections of equal widths can be compared")
    total = sum(len(kept) for kept in one.values())
    if total == 0:
        raise ValueError("nothing is cut, so there is nothing to compare")
    return sum(len(set(kept) & set(other[name])) for name, kept in one.items()) / total


def chance_overlap(sizes: Mapping[str, int], keep: Keep) -> float:
    """What `overlap` is on average for a selection by chance: w^2 / C of C channels, w kept."""
    shared = sum(len(kept) ** 2 / sizes[name] for name, kept in keep.items())
    return shared / sum(len(kept) for kept in keep.values())


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights, grads = {}, {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter):
            weights[name] = weight.detach().float()
            if weight.grad is not None:
                grads[name] = weight.grad.detach().float()
    return weights, grads


def _silence(group: ChannelGroup, kept: Sequence[int], weights: dict[str, Tensor]) -> None:
    """Zero the weights of removed channels in the scoring copies, so that they score nothing."""
    gone = sorted(set(range(group.size)) - set(kept))
    for (module, axis), starts in group.members.items():
        copy = weights[module].clone()
        for start in starts:
            index = torch.tensor(gone, device=copy.device) + start
            copy.index_fill_(1 if axis == "in" else 0, index, 0.0)
        weights[module] = copy
