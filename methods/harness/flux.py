"""Heads, neurons and modulation outputs of FLUX: where they sit in its layers, and slicing them.

Its single blocks read heads and neurons with one fused projection, so there each of the two is a
range of columns. The norms of all blocks compute shift, scale and gate of every channel by one
linear layer of the timestep and prompt embedding. Such an output has no reader to be sliced with
it: a pruned one is zero, which leaves the channel's norm as it is (shift, scale) or closes the
channel's residual branch (gate).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor, nn

from .channels import ChannelGroup, Slot


class Scattered(nn.Module):
    """A linear layer that lost outputs: those are zero, the others are where they were."""

    in_features: int
    out_features: int  # as many as before: the removed ones are given as zeros
    weight: nn.Parameter  # (outputs kept, in_features)
    bias: nn.Parameter | None
    index: Tensor  # (outputs kept,) where they go

    def __init__(self, layer: nn.Linear | Scattered, keep: list[int]) -> None:
        """Keep these of the layer's present outputs, sorted."""
        super().__init__()
        old = layer.weight
        kept = torch.tensor(keep, dtype=torch.long, device=old.device)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = nn.Parameter(old.index_select(0, kept), old.requires_grad)
        bias = None if layer.bias is None else layer.bias.index_select(0, kept)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        if isinstance(layer, Scattered):
            places = layer.index[torch.tensor(keep, dtype=torch.long, device=layer.index.device)]
        else:  # a model on meta is filled with tensors later, but nothing fills this one
            places = torch.tensor(keep, device="cpu" if old.is_meta else old.device)
        # Not in the file: the recorded edit says which outputs were kept.
        self.register_buffer("index", places.long(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        answer = F.linear(x, self.weight, self.bias)
        zeros = answer.new_zeros(*answer.shape[:-1], self.out_features)
        return zeros.index_copy(-1, self.index, answer)

    def placed(self, values: Tensor, other: float) -> Tensor:
        """Values (outputs kept,) at their places among all outputs, `other` everywhere else."""
        full = values.new_full((self.out_features,), other)
        return full.index_copy(0, self.index, values)


def flux_groups(model: nn.Module) -> Iterator[ChannelGroup]:
    """Channels of heads and neurons of a FluxTransformer2DModel, in forward order."""
    for index, block in enumerate(model.get_submodule("transformer_blocks").children()):
        name = f"transformer_blocks.{index}"
        if isinstance(block.attn, FluxAttention):
            image, text = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
            yield _linear_group(
                [f"{name}.attn.{part}" for part in (*image, *text)],
                [f"{name}.attn.to_out.0", f"{name}.attn.to_add_out"],
                model,
                heads=block.attn.heads,
            )
        for part in ("ff", "ff_context"):
            if isinstance(getattr(block, part), FeedForward):
                inner = f"{name}.{part}.net"
                yield _linear_group([f"{inner}.0.proj"], [f"{inner}.2"], model)
    for index, block in enumerate(model.get_submodule("single_transformer_blocks").children()):
        name, start = f"single_transformer_blocks.{index}", 0
        if isinstance(block.attn, FluxAttention):
            projections = [f"{name}.attn.{part}" for part in ("to_q", "to_k", "to_v")]
            heads = block.attn.heads
            yield _linear_group(projections, [f"{name}.proj_out"], model, heads=heads)
            start = heads * block.attn.head_dim
        if block.get_submodule("proj_mlp").out_features:
            yield _linear_group([f"{name}.proj_mlp"], [f"{name}.proj_out"], model, start=start)


def modulations(model: nn.Module) -> Iterator[tuple[str, int]]:
    """(name, outputs it still computes) of every norm's linear layer, in forward order."""
    for stack, norms in (
        ("transformer_blocks", ("norm1", "norm1_context")),
        ("single_transformer_blocks", ("norm",)),
    ):
        for index in range(len(model.get_submodule(stack))):  # type: ignore[arg-type]
            for norm in norms:
                name = f"{stack}.{index}.{norm}.linear"
                yield name, len(model.get_submodule(name).get_parameter("weight"))


def _linear_group(
    producers: list[str], readers: list[str], model: nn.Module, heads: int = 1, start: int = 0
) -> ChannelGroup:
    size = model.get_submodule(producers[0]).out_features
    assert isinstance(size, int)
    slots = [Slot(module, "out", 0) for module in producers]
    slots += [Slot(module, "in", start) for module in readers]
    unit = size // heads
    return ChannelGroup(producers[0], size, tuple(slots), heads, heads, unit if heads > 1 else 1)


def cut_flux(model: nn.Module, channels: Mapping[str, list[int]]) -> None:
    """Slice every linear layer of FLUX that holds one of these channel groups."""
    gone: dict[tuple[str, str], set[int]] = {}
    for group in flux_groups(model):
        lost = set(range(group.size)) - set(channels.get(group.name, range(group.size)))
        for slot in group.slots:
            gone.setdefault((slot.module, slot.axis), set()).update(slot.start + i for i in lost)
    for (module, axis), lost in gone.items():
        layer = model.get_submodule(module)
        assert isinstance(layer, nn.Linear)
        if lost:
            _slice(layer, axis, lost)
    for block in model.modules():
        if isinstance(block, FluxAttention):
            block.inner_dim = block.to_q.out_features
            block.heads = block.inner_dim // block.head_dim


def _slice(layer: nn.Linear, axis: str, gone: set[int]) -> None:
    dim, names = (1, ("weight",)) if axis == "in" else (0, ("weight", "bias"))
    kept = [index for index in range(layer.weight.shape[dim]) if index not in gone]
    for name in names:
        old = getattr(layer, name)
        if old is not None:
            index = torch.tensor(kept, dtype=torch.long, device=old.device)
            setattr(layer, name, nn.Parameter(old.index_select(dim, index), old.requires_grad))
    layer.out_features, layer.in_features = layer.weight.shape


def scatter(model: nn.Module, keep: Mapping[str, list[int]]) -> None:
    """Remove all outputs of the named norm layers but `keep`, counted among those present."""
    for name, kept in keep.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear | Scattered)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, Scattered(layer, kept).train(layer.training))
