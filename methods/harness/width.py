"""Attention heads and feed-forward neurons: gates on them, and layers that lose all of them.

Heads and neurons that go are cut as `surgery.cut` does with rule "whole". A layer that loses all
is silenced: what is left of it is the bias of its output projection, which is what the dense layer
gives when every head or neuron is masked.

FLUX is described here alone, since only heads and neurons can go in it. Its single blocks read
heads and neurons with one fused projection, so there each of the two is a range of its columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor, nn

from .channels import ChannelGroup, Slot, channel_groups
from .pipeline import Pipeline
from .surgery import cut_channels


@dataclass(frozen=True)
class WidthLayer:
    """An attention with its heads or a feed-forward with its neurons."""

    name: str  # of the attention or feed-forward module; `proj_mlp` in FLUX's single blocks
    kind: Literal["heads", "neurons"]
    units: int
    group: str  # the channel group that holds them
    channels: int  # of the group; channels / units belong to one unit
    readers: tuple[str, ...]  # linear layers that read the units' output
    start: int = 0  # first of the readers' columns that belong to the units


def width_layers(model: nn.Module) -> tuple[WidthLayer, ...]:
    """Every attention and feed-forward of the transformers in a model, in forward order.

    Raises:
        ValueError: the model is of a class whose channels are not described.
    """
    if isinstance(model, FluxTransformer2DModel):
        return tuple(_flux_layer(group) for group in _flux_groups(model))
    found = []
    for group in channel_groups(model):
        name, _, last = group.name.rpartition(".")
        if last == "to_q" and _is_inner_attention(model, name):
            readers = tuple(slot.module for slot in group.slots if slot.axis == "in")
            found.append(WidthLayer(name, "heads", group.heads, group.name, group.size, readers))
        elif group.name.endswith(".net.0.proj"):
            name = group.name.removesuffix(".net.0.proj")
            readers = (f"{name}.net.2",)
            found.append(WidthLayer(name, "neurons", group.size, group.name, group.size, readers))
    return tuple(found)


def _is_inner_attention(model: nn.Module, name: str) -> bool:
    block = model.get_submodule(name)
    return isinstance(block, Attention) and block.group_norm is None


def _flux_layer(group: ChannelGroup) -> WidthLayer:
    readers = [slot for slot in group.slots if slot.axis == "in"]
    name = group.name.removesuffix(".to_q").removesuffix(".net.0.proj")
    heads = group.name.endswith(".to_q")
    return WidthLayer(
        name,
        "heads" if heads else "neurons",
        group.heads if heads else group.size,
        group.name,
        group.size,
        tuple(slot.module for slot in readers),
        readers[0].start,
    )


def _flux_groups(model: nn.Module) -> Iterator[ChannelGroup]:
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


def _linear_group(
    producers: list[str], readers: list[str], model: nn.Module, heads: int = 1, start: int = 0
) -> ChannelGroup:
    size = model.get_submodule(producers[0]).out_features
    assert isinstance(size, int)
    slots = [Slot(module, "out", 0) for module in producers]
    slots += [Slot(module, "in", start) for module in readers]
    unit = size // heads
    return ChannelGroup(producers[0], size, tuple(slots), heads, heads, unit if heads > 1 else 1)


def unit_params(model: nn.Module, layer: WidthLayer) -> int:
    """Parameters that go with one unit of the layer."""
    group = _group(model, layer.group)
    total = 0
    for slot in group.slots:
        module = model.get_submodule(slot.module)
        weight = module.get_parameter("weight")
        total += weight.numel() // weight.shape[1 if slot.axis == "in" else 0]
        if slot.axis != "in" and getattr(module, "bias", None) is not None:
            total += 1
    return total * (layer.channels // layer.units)


def _group(model: nn.Module, name: str) -> ChannelGroup:
    flux = isinstance(model, FluxTransformer2DModel)
    groups = _flux_groups(model) if flux else iter(channel_groups(model))
    return next(group for group in groups if group.name == name)


# --- gates -----------------------------------------------------------------------------------


@contextmanager
def gated(
    model: nn.Module,
    layers: Iterable[WidthLayer],
    gate: Callable[[str], Tensor | None],
) -> Iterator[None]:
    """Inside, the output of every unit is multiplied by its gate before the layer's last linear.

    `gate(name)` gives (units,) for a layer each time that it runs, or None for no gate; it may
    require gradients. Heads are multiplied after softmax times values, before the output
    projection; neurons after the activation (the product, for GEGLU).
    """

    def hook(layer: WidthLayer) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
        def multiply(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
            values = gate(layer.name)
            if values is None:
                return None
            wide = values.repeat_interleave(layer.channels // layer.units)
            behind = inputs[0].shape[-1] - layer.start - layer.channels
            if layer.start or behind:
                wide = F.pad(wide, (layer.start, behind), value=1.0)  # what others read as well
            return (inputs[0] * wide.to(inputs[0].dtype), *inputs[1:])

        return multiply

    handles = [
        model.get_submodule(reader).register_forward_pre_hook(hook(layer))
        for layer in layers
        for reader in layer.readers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# --- removal ---------------------------------------------------------------------------------


class Silenced(nn.Module):
    """Stands in for an attention or feed-forward without units: its output projection's bias.

    With `joint` it answers for image and text tokens, as joint attention does. Without a last
    layer (FLUX's single blocks) it gives no channels at all.
    """

    bias: nn.Parameter | None
    added_bias: nn.Parameter | None

    def __init__(
        self, last: nn.Linear | None, joint: bool = False, added: nn.Linear | None = None
    ) -> None:
        super().__init__()
        self.width = 0 if last is None else last.out_features
        self.joint = joint
        for name, layer in (("bias", last), ("added_bias", added)):
            bias = None if layer is None or layer.bias is None else layer.bias.detach()
            self.register_parameter(name, None if bias is None else nn.Parameter(bias))

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Any:
        image = self._constant(hidden_states, self.bias)
        if not self.joint or encoder_hidden_states is None:
            return image
        return image, self._constant(encoder_hidden_states, self.added_bias)

    def _constant(self, like: Tensor, bias: Tensor | None) -> Tensor:
        shape = (*like.shape[:-1], self.width)
        if bias is None:
            return like.new_zeros(shape)
        # Under autocast the dense layer would answer in the reduced precision as well.
        return bias.to(like.dtype).expand(shape)


def keep_units(pipe: Pipeline, keep: Mapping[str, list[int]]) -> Pipeline:
    """Remove all heads and neurons but `keep` (layer name -> sorted unit indices), and record it.

    Layers that are not named stay whole; an empty list silences the layer.

    Raises:
        ValueError: an unknown layer, or indices that are not sorted, unique and in range.
    """
    whole = {layer.name: layer.units for layer in width_layers(pipe.denoiser)}
    kept = {name: list(units) for name, units in keep.items() if len(units) != whole.get(name)}
    cut_units(pipe.denoiser, keep)
    return pipe.edited({"op": "width", "keep": kept}) if kept else pipe


@torch.no_grad()
def cut_units(model: nn.Module, keep: Mapping[str, list[int]]) -> None:
    """`keep_units` on a bare denoiser; nothing is changed when it raises."""
    layers = {layer.name: layer for layer in width_layers(model)}
    unknown = sorted(keep.keys() - layers.keys())
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no attention or feed-forward of this model")
    for name, units in keep.items():
        whole = isinstance(units, list) and all(type(unit) is int for unit in units)
        if (
            not whole
            or units != sorted(set(units))
            or not all(0 <= unit < layers[name].units for unit in units)
        ):
            raise ValueError(f"{name}: unit indices must be sorted, unique and in range")
    empty = sorted(name for name, units in keep.items() if not units)
    channels = {
        layers[name].group: _channels(layers[name], units)
        for name, units in keep.items()
        if len(units) < layers[name].units
    }
    if isinstance(model, FluxTransformer2DModel):
        _cut_flux(model, channels)
        empty = [name for name in empty if not name.endswith(".proj_mlp")]  # an empty layer now
    else:
        cut_channels(model, {name: kept for name, kept in channels.items() if kept}, "whole")
    silence_layers(model, empty)


def _channels(layer: WidthLayer, units: list[int]) -> list[int]:
    each = layer.channels // layer.units
    return [unit * each + offset for unit in units for offset in range(each)]


def _cut_flux(model: nn.Module, channels: Mapping[str, list[int]]) -> None:
    """Slice every linear layer of FLUX that holds one of these channel groups."""
    gone: dict[tuple[str, str], set[int]] = {}
    for group in _flux_groups(model):
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


@torch.no_grad()
def silence_layers(model: nn.Module, names: Iterable[str]) -> None:
    """Replace attentions and feed-forwards by the bias of their output projection.

    Raises:
        ValueError: a name is no attention or feed-forward.
    """
    stand_ins = {}
    for name in names:
        try:
            block = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"{name!r} is not in this model") from error
        if isinstance(block, Attention):
            joint = block.added_kv_proj_dim is not None
            stand_in = Silenced(block.to_out[0], joint, getattr(block, "to_add_out", None))
        elif isinstance(block, FluxAttention):
            joint = block.added_kv_proj_dim is not None
            last = None if block.pre_only else block.to_out[0]
            stand_in = Silenced(last, joint, getattr(block, "to_add_out", None))
        elif isinstance(block, FeedForward):
            stand_in = Silenced(block.net[2])
        else:
            raise ValueError(f"{name} is a {type(block).__name__}, no attention or feed-forward")
        stand_ins[name] = stand_in.train(block.training)
    for name, stand_in in stand_ins.items():
        parent, _, last_part = name.rpartition(".")
        setattr(model.get_submodule(parent), last_part, stand_in)
