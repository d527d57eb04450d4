"""Which tensors of a diffusers model share channels: the knowledge that makes cutting exact.

A `ChannelGroup` is a set of channels that only exist together: the output rows that produce
them, the normalisations they pass, and the input columns that read them, through residual sums
and skip concatenations. Groups come from walking the architecture block by block as its forward
pass does; nothing is traced, so the walk also works on the meta device.

In transformers the channels inside attention (heads) and feed-forward (neurons) are groups. The
residual stream is not: LayerNorm looks at all of its channels, so none can go without changing
what the others are normalised by. Text and class embeddings are inputs and stay as wide as they
are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from diffusers import (
    AutoencoderKL,
    DiTTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.activations import GEGLU, GELU
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from .depth import Skip, SkipKeepingEmbedding, SkipToShortcut


@dataclass(frozen=True)
class Slot:
    """Where a group's channels lie: `size` positions from `start` on one axis of one module.

    `axis` is "out" (rows of a convolution or linear layer, and its bias), "in" (columns), "norm"
    (affine parameters) or "skip" (what stands in for a removed ResNet passes them on: no tensor).
    """

    module: str
    axis: str
    start: int


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that must be removed together, named after the layer that first produces them.

    `partitions` is the number of equal, contiguous parts that the channels fall into: GroupNorm
    groups, or attention heads. `whole_unit` is the smallest number of contiguous channels that
    fills whole parts in every normalisation they pass; 0 if no such unit leaves a remainder.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    partitions: int
    heads: int
    whole_unit: int

    @property
    def members(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """(module, axis) -> starts, tensors only; two where a concatenation holds it twice."""
        starts: dict[tuple[str, str], list[int]] = {}
        for slot in self.slots:
            if slot.axis == "skip":
                continue
            starts.setdefault((slot.module, slot.axis), []).append(slot.start)
        return {member: tuple(found) for member, found in starts.items()}


@dataclass(frozen=True)
class _Node:
    """One operation with what it reads, in the order of its arguments; for `backward_order`."""

    group: int | None  # the provisional group that a layer produces, None for other operations
    inputs: tuple[_Node, ...]


@dataclass(frozen=True)
class _Stream:
    """Provisional group numbers, concatenated along the channel axis, and their operation.

    A stream without groups has channels that cannot be cut: a transformer's residual stream.
    """

    groups: tuple[int, ...]
    node: _Node

    def then(self) -> _Stream:
        """Through an operation that keeps the channels (reshape, activation, slicing)."""
        return _Stream(self.groups, _Node(None, (self.node,)))


@dataclass
class _Walk:
    """Collects slots while the architecture is walked; sums merge provisional groups."""

    model: nn.Module
    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)
    slots: list[list[Slot]] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    last: _Node = field(default_factory=lambda: _Node(None, ()))

    def root(self, group: int) -> int:
        while self.parent[group] != group:
            group = self.parent[group]
        return group

    def produce(
        self, module: str, source: _Stream | None = None, heads: int = 1, *, gated: bool = False
    ) -> _Stream:
        """A layer's output rows become a new provisional group; gated: value and gate are one."""
        layer = self.model.get_submodule(module)
        if isinstance(layer, nn.Conv2d):
            if layer.groups != 1:
                raise ValueError(f"{module}: grouped convolutions cannot be cut")
            size = layer.out_channels
        elif isinstance(layer, nn.Linear):
            size = layer.out_features
        else:
            raise ValueError(f"{module}: cannot cut a {type(layer).__name__}")
        starts: tuple[int, ...] = (0,)
        if gated:
            size //= 2
            starts = (0, size)
        self.names.append(module)
        self.sizes.append(size)
        self.heads.append(heads)
        self.slots.append([Slot(module, "out", start) for start in starts])
        group = len(self.parent)
        self.parent.append(group)
        return _Stream((group,), _Node(group, (source.node,) if source else ()))

    def read(self, module: str, stream: _Stream, axis: str = "in") -> None:
        """A layer's input columns, or a normalisation's channels, follow the stream."""
        start = 0
        for group in stream.groups:
            self.slots[group].append(Slot(module, axis, start))
            start += self.sizes[group]

    def layer(self, module: str, stream: _Stream, heads: int = 1) -> _Stream:
        self.read(module, stream)
        return self.produce(module, stream, heads)

    def concatenate(self, left: _Stream, right: _Stream) -> _Stream:
        return _Stream(left.groups + right.groups, _Node(None, (left.node, right.node)))

    def add(self, left: _Stream, right: _Stream, where: str) -> _Stream:
        """A residual sum ties the channels of both sides."""
        if [self.sizes[g] for g in left.groups] != [self.sizes[g] for g in right.groups]:
            raise ValueError(f"{where}: residual sum of differently concatenated streams")
        for a, b in zip(left.groups, right.groups, strict=True):
            first, second = sorted((self.root(a), self.root(b)))
            self.parent[second] = first
        return _Stream(left.groups, _Node(None, (left.node, right.node)))

    def groups(self) -> tuple[ChannelGroup, ...]:
        merged: dict[int, list[int]] = {}
        for group in range(len(self.parent)):
            merged.setdefault(self.root(group), []).append(group)
        found = []
        for root, parts in merged.items():
            slots = tuple(slot for part in parts for slot in self.slots[part])
            heads = max(self.heads[part] for part in parts)
            found.append(self._group(self.names[root], self.sizes[root], slots, heads))
        return tuple(found)

    def _group(self, name: str, size: int, slots: tuple[Slot, ...], heads: int) -> ChannelGroup:
        partitions, unit = heads, size // heads if heads > 1 else 1
        for slot in slots:
            if slot.axis != "norm":
                continue
            norm = self.model.get_submodule(slot.module)
            assert isinstance(norm, nn.GroupNorm)
            width = norm.num_channels // norm.num_groups
            partitions = max(partitions, norm.num_groups)
            if slot.start % width:
                unit = 0
            elif unit:
                unit = math.lcm(unit, width)
        whole = unit if unit and unit < size and size % unit == 0 else 0
        return ChannelGroup(name, size, slots, partitions, heads, whole)


def channel_groups(model: nn.Module) -> tuple[ChannelGroup, ...]:
    """Every prunable group of channels, in the order in which the forward pass meets them.

    The image channels themselves (input of conv_in, output of conv_out) belong to no group.

    Raises:
        ValueError: the model, or a block in it, is of a kind that this walk does not know.
    """
    return _walk(model).groups()


def backward_order(model: nn.Module) -> tuple[str, ...]:
    """Names of the channel groups in the order in which DepGraph's tracer meets them.

    That tracer (Fang et al. 2023, arXiv 2301.12900, as released in Torch-Pruning) goes from the
    output backwards with a stack: an operation's inputs are listed in argument order, the last
    one is followed first. Sequential scoring depends on this order.
    """
    walk = _walk(model)
    name_of = {part: walk.names[walk.root(part)] for part in range(len(walk.parent))}
    order: dict[str, None] = {}
    stack, done = [walk.last], set[int]()
    while stack:
        node = stack.pop()
        if id(node) in done:
            continue
        done.add(id(node))
        for source in node.inputs:
            if source.group is not None:
                order.setdefault(name_of[source.group])
            stack.append(source)
    return tuple(order)


def _walk(model: nn.Module) -> _Walk:
    walk = _Walk(model)
    if isinstance(model, UNet2DModel):
        _walk_unet2d(walk, model)
    elif isinstance(model, UNet2DConditionModel):
        _walk_text_unet(walk, model)
    elif isinstance(model, DiTTransformer2DModel):
        _walk_dit(walk, model)
    elif isinstance(model, SD3Transformer2DModel):
        _walk_mmdit(walk, model)
    elif isinstance(model, AutoencoderKL):
        _walk_decoder(walk, model)
    else:
        raise ValueError(
            "channel pruning knows U-Nets, DiTTransformer2DModel, SD3Transformer2DModel and "
            f"AutoencoderKL's decoder, not {type(model).__name__}: its channels are not described "
            "in methods/harness/channels.py"
        )
    return walk


def _walk_unet2d(walk: _Walk, model: UNet2DModel) -> None:
    if model.class_embedding is not None:
        raise ValueError("class_embedding: class-conditional UNet2DModel is not described")
    time = _time_embedding(walk)
    hidden = walk.produce("conv_in")
    skips = [hidden]
    for index, block in enumerate(model.down_blocks):
        name = f"down_blocks.{index}"
        _require(block, name, ("DownBlock2D", "AttnDownBlock2D"))
        for layer in range(len(block.resnets)):
            hidden = _resnet(walk, f"{name}.resnets.{layer}", hidden, time)
            hidden = _block_attention(walk, block, name, layer, hidden)
            skips.append(hidden)
        if block.downsamplers is not None:
            hidden = _sampler(walk, f"{name}.downsamplers.0", hidden)
            skips.append(hidden)
    if model.mid_block is not None:
        _require(model.mid_block, "mid_block", ("UNetMidBlock2D",))
        hidden = _resnet(walk, "mid_block.resnets.0", hidden, time)
        for layer, attention in enumerate(model.mid_block.attentions):
            if attention is not None:
                hidden = _attention(walk, f"mid_block.attentions.{layer}", hidden)
            hidden = _resnet(walk, f"mid_block.resnets.{layer + 1}", hidden, time)
    for index, block in enumerate(model.up_blocks):
        name = f"up_blocks.{index}"
        _require(block, name, ("UpBlock2D", "AttnUpBlock2D"))
        for layer in range(len(block.resnets)):
            hidden = _up_resnet(walk, f"{name}.resnets.{layer}", hidden, skips.pop(), time)
            hidden = _block_attention(walk, block, name, layer, hidden)
        if block.upsamplers is not None:
            hidden = _sampler(walk, f"{name}.upsamplers.0", hidden)
    walk.read("conv_norm_out", hidden, "norm")
    walk.read("conv_out", hidden)
    walk.last = _Node(None, (hidden.node,))


def _walk_text_unet(walk: _Walk, model: UNet2DConditionModel) -> None:
    for name in ("class_embedding", "encoder_hid_proj", "time_embed_act"):
        if getattr(model, name, None) is not None:
            raise ValueError(f"{name}: a U-Net with it is not described")
    time = _time_embedding(walk)
    if getattr(model, "add_embedding", None) is not None:  # Stable Diffusion XL's sizes and crops
        added = walk.produce("add_embedding.linear_1")
        time = walk.add(time, walk.layer("add_embedding.linear_2", added), "add_embedding")
    hidden = walk.produce("conv_in")
    skips = [hidden]
    for index, block in enumerate(model.down_blocks):
        name = f"down_blocks.{index}"
        _require(block, name, ("DownBlock2D", "CrossAttnDownBlock2D"))
        for layer in range(len(block.resnets)):
            hidden = _resnet(walk, f"{name}.resnets.{layer}", hidden, time)
            if hasattr(block, "attentions"):
                hidden = _transformer(walk, f"{name}.attentions.{layer}", hidden)
            skips.append(hidden)
        if block.downsamplers is not None:
            hidden = _sampler(walk, f"{name}.downsamplers.0", hidden)
            skips.append(hidden)
    if model.mid_block is not None:
        _require(model.mid_block, "mid_block", ("UNetMidBlock2DCrossAttn",))
        hidden = _resnet(walk, "mid_block.resnets.0", hidden, time)
        for layer in range(len(model.mid_block.attentions)):
            hidden = _transformer(walk, f"mid_block.attentions.{layer}", hidden)
            hidden = _resnet(walk, f"mid_block.resnets.{layer + 1}", hidden, time)
    for index, block in enumerate(model.up_blocks):
        name = f"up_blocks.{index}"
        _require(block, name, ("UpBlock2D", "CrossAttnUpBlock2D"))
        for layer in range(len(block.resnets)):
            hidden = _up_resnet(walk, f"{name}.resnets.{layer}", hidden, skips.pop(), time)
            if hasattr(block, "attentions"):
                hidden = _transformer(walk, f"{name}.attentions.{layer}", hidden)
        if block.upsamplers is not None:
            hidden = _sampler(walk, f"{name}.upsamplers.0", hidden)
    walk.read("conv_norm_out", hidden, "norm")
    walk.read("conv_out", hidden)
    walk.last = _Node(None, (hidden.node,))


def _walk_dit(walk: _Walk, model: DiTTransformer2DModel) -> None:
    stream = _Stream((), _Node(None, ()))
    for index in range(len(model.transformer_blocks)):
        stream = _transformer_block(walk, f"transformer_blocks.{index}", stream)
    walk.last = _Node(None, (stream.node,))


def _walk_mmdit(walk: _Walk, model: SD3Transformer2DModel) -> None:
    stream = _Stream((), _Node(None, ()))
    for index, block in enumerate(model.transformer_blocks):
        name = f"transformer_blocks.{index}"
        if block.attn2 is not None:
            raise ValueError(f"{name}.attn2: dual attention is not described")
        if isinstance(block.attn, Attention):
            stream = _joint_attention(walk, f"{name}.attn", block.attn, stream)
        for part in ("ff", "ff_context"):
            layer = getattr(block, part)
            if isinstance(layer, FeedForward):
                stream = _feed_forward(walk, f"{name}.{part}", layer, stream)
    walk.last = _Node(None, (stream.node,))


def _joint_attention(walk: _Walk, name: str, block: Attention, stream: _Stream) -> _Stream:
    """Image and text tokens attend together: a head has rows in both sets of projections."""
    projections = ["to_q", "to_k", "to_v"]
    projections += [
        part
        for part in ("add_q_proj", "add_k_proj", "add_v_proj")
        if getattr(block, part, None) is not None
    ]
    mixed, *others = (
        walk.layer(f"{name}.{part}", stream, heads=block.heads).then() for part in projections
    )
    for other in others:
        mixed = walk.add(mixed, other, name)
    walk.read(f"{name}.to_out.0", mixed)
    if getattr(block, "to_add_out", None) is not None:
        walk.read(f"{name}.to_add_out", mixed)
    return _Stream((), mixed.node)


def _walk_decoder(walk: _Walk, model: AutoencoderKL) -> None:
    decoder = model.decoder
    hidden = walk.produce("decoder.conv_in")
    _require(decoder.mid_block, "decoder.mid_block", ("UNetMidBlock2D",))
    hidden = _resnet(walk, "decoder.mid_block.resnets.0", hidden, None)
    for layer, attention in enumerate(decoder.mid_block.attentions):
        if attention is not None:
            hidden = _attention(walk, f"decoder.mid_block.attentions.{layer}", hidden)
        hidden = _resnet(walk, f"decoder.mid_block.resnets.{layer + 1}", hidden, None)
    for index, block in enumerate(decoder.up_blocks):
        name = f"decoder.up_blocks.{index}"
        _require(block, name, ("UpDecoderBlock2D",))
        for layer in range(len(block.resnets)):
            hidden = _resnet(walk, f"{name}.resnets.{layer}", hidden, None)
        if block.upsamplers is not None:
            hidden = _sampler(walk, f"{name}.upsamplers.0", hidden)
    walk.read("decoder.conv_norm_out", hidden, "norm")
    walk.read("decoder.conv_out", hidden)
    walk.last = _Node(None, (hidden.node,))


def _require(block: nn.Module, name: str, known: tuple[str, ...]) -> None:
    if type(block).__name__ not in known:
        raise ValueError(f"{name}: {type(block).__name__} is not described; known: {known}")


def _time_embedding(walk: _Walk) -> _Stream:
    first = walk.produce("time_embedding.linear_1")
    return walk.layer("time_embedding.linear_2", first)


def _up_resnet(
    walk: _Walk, name: str, hidden: _Stream, skip: _Stream, time: _Stream | None
) -> _Stream:
    if isinstance(walk.model.get_submodule(name), Skip):
        walk.read(name, hidden, "skip")  # the skip connection went with the ResNet
        return hidden
    return _resnet(walk, name, walk.concatenate(hidden, skip), time)


def _resnet(walk: _Walk, name: str, stream: _Stream, time: _Stream | None) -> _Stream:
    block = walk.model.get_submodule(name)
    if isinstance(block, Skip):
        walk.read(name, stream, "skip")
        return stream
    if isinstance(block, SkipToShortcut):
        return walk.layer(f"{name}.conv_shortcut", stream)
    # A decoder knows no time: its ResNets have nothing to add, by whatever name.
    timeless = getattr(block, "time_emb_proj", None) is None
    additive = getattr(block, "time_embedding_norm", None) == "default"
    if not isinstance(block, ResnetBlock2D) or not (additive or timeless):
        raise ValueError(f"{name}: only ResnetBlock2D with an additive time embedding is described")
    if block.upsample is not None or block.downsample is not None:
        raise ValueError(f"{name}: a resnet that resamples is not described")
    walk.read(f"{name}.norm1", stream, "norm")
    inner = walk.layer(f"{name}.conv1", stream)
    if time is not None and block.time_emb_proj is not None:
        shift = walk.layer(f"{name}.time_emb_proj", time)
        inner = walk.add(inner, shift.then(), name)
    walk.read(f"{name}.norm2", inner, "norm")
    out = walk.layer(f"{name}.conv2", inner)
    if block.conv_shortcut is not None:
        stream = walk.layer(f"{name}.conv_shortcut", stream)
    return walk.add(stream, out, name).then()  # then: the division by output_scale_factor


def _block_attention(
    walk: _Walk, block: nn.Module, name: str, layer: int, stream: _Stream
) -> _Stream:
    if not hasattr(block, "attentions"):
        return stream
    return _attention(walk, f"{name}.attentions.{layer}", stream)


def _attention(walk: _Walk, name: str, stream: _Stream) -> _Stream:
    """Queries, keys and values share their channels, as the official grouping has it."""
    block = walk.model.get_submodule(name)
    if isinstance(block, Skip):
        return stream
    if not isinstance(block, Attention) or block.norm_q is not None or block.is_cross_attention:
        raise ValueError(f"{name}: only plain self-attention is described")
    if block.group_norm is not None:
        walk.read(f"{name}.group_norm", stream, "norm")
    query, key, value = (
        walk.layer(f"{name}.{projection}", stream, heads=block.heads).then()
        for projection in ("to_q", "to_k", "to_v")
    )
    scores = walk.add(query, key, name)
    mixed = walk.add(scores, value, name)
    # One operation reads all three (scaled dot-product attention).
    inner = _Stream(mixed.groups, _Node(None, (query.node, key.node, value.node)))
    out = walk.layer(f"{name}.to_out.0", inner).then()
    if block.residual_connection:
        out = walk.add(out, stream, name)
    return out.then()


def _transformer(walk: _Walk, name: str, stream: _Stream) -> _Stream:
    block = walk.model.get_submodule(name)
    if isinstance(block, Skip):
        return stream
    if not isinstance(block, Transformer2DModel):
        raise ValueError(f"{name}: {type(block).__name__} is not described")
    walk.read(f"{name}.norm", stream, "norm")
    walk.read(f"{name}.proj_in", stream)
    inner = _Stream((), stream.node)
    for index in range(len(block.transformer_blocks)):
        inner = _transformer_block(walk, f"{name}.transformer_blocks.{index}", inner)
    out = walk.produce(f"{name}.proj_out", inner)
    return walk.add(stream, out, name).then()


def _transformer_block(walk: _Walk, name: str, stream: _Stream) -> _Stream:
    """Heads and neurons between a residual stream that keeps its width."""
    block = walk.model.get_submodule(name)
    if isinstance(block, Skip | SkipKeepingEmbedding):  # stands in for a removed one
        return stream
    if not isinstance(block, BasicTransformerBlock):
        raise ValueError(f"{name}: {type(block).__name__} is not described")
    for part in ("attn1", "attn2"):
        if isinstance(getattr(block, part, None), Attention):
            stream = _inner_attention(walk, f"{name}.{part}", stream)
    if isinstance(block.ff, FeedForward):
        stream = _feed_forward(walk, f"{name}.ff", block.ff, stream)
    return stream


def _inner_attention(walk: _Walk, name: str, stream: _Stream) -> _Stream:
    block = walk.model.get_submodule(name)
    assert isinstance(block, Attention)
    if block.norm_q is not None or block.added_kv_proj_dim is not None:
        raise ValueError(f"{name}: normalised queries or added keys are not described")
    query, key, value = (
        walk.layer(f"{name}.{projection}", stream, heads=block.heads).then()
        for projection in ("to_q", "to_k", "to_v")
    )
    mixed = walk.add(walk.add(query, key, name), value, name)
    walk.read(f"{name}.to_out.0", mixed)
    return _Stream((), _Node(None, (query.node, key.node, value.node)))


def _feed_forward(walk: _Walk, name: str, block: FeedForward, stream: _Stream) -> _Stream:
    first = block.net[0]
    if not isinstance(first, GEGLU | GELU):
        raise ValueError(f"{name}: activation {type(first).__name__} is not described")
    hidden = walk.produce(f"{name}.net.0.proj", stream, gated=isinstance(first, GEGLU))
    walk.read(f"{name}.net.2", hidden)
    return _Stream((), hidden.node)


def _sampler(walk: _Walk, name: str, stream: _Stream) -> _Stream:
    block = walk.model.get_submodule(name)
    if not isinstance(block, Downsample2D | Upsample2D) or block.norm is not None:
        raise ValueError(f"{name}: {type(block).__name__} is not described")
    if not block.use_conv:
        return stream.then()
    return walk.layer(f"{name}.conv", stream)
