"""Attention heads and feed-forward neurons: gates on them, and layers that lose all of them.

Heads and neurons that go are cut by `surgery.cut` with rule "whole". A layer that loses all is
silenced: what is left of it is the bias of its output projection, which is what the dense layer
gives when every head or neuron is masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from .channels import ChannelGroup, channel_groups
from .pipeline import Pipeline
from .surgery import cut_channels


@dataclass(frozen=True)
class WidthLayer:
    """An attention with its heads or a feed-forward with its neurons."""

    name: str  # of the Attention or FeedForward module
    kind: Literal["heads", "neurons"]
    units: int
    group: str  # the channel group that holds them
    channels: int  # of the group; channels / units belong to one unit
    readers: tuple[str, ...]  # linear layers that read the units' output


def width_layers(model: nn.Module) -> tuple[WidthLayer, ...]:
    """Every attention and feed-forward of the transformers in a model, in forward order.

    Raises:
        ValueError: the model is of a class whose channels are not described.
    """
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
    return next(group for group in channel_groups(model) if group.name == name)


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

    With `joint` it answers for image and text tokens, as joint attention does.
    """

    bias: nn.Parameter | None
    added_bias: nn.Parameter | None

    def __init__(
        self, last: nn.Linear, joint: bool = False, added: nn.Linear | None = None
    ) -> None:
        super().__init__()
        self.width = last.out_features
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
    layers = {layer.name: layer for layer in width_layers(pipe.denoiser)}
    unknown = sorted(keep.keys() - layers.keys())
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no attention or feed-forward of this model")
    for name, indices in keep.items():
        if indices != sorted(set(indices)) or any(
            not 0 <= index < layers[name].units for index in indices
        ):
            raise ValueError(f"{name}: unit indices must be sorted, unique and in range")
    empty = sorted(name for name, indices in keep.items() if not indices)
    channels = {
        layers[name].group: _channels(layers[name], indices)
        for name, indices in keep.items()
        if indices and len(indices) < layers[name].units
    }
    if channels:
        cut_channels(pipe.denoiser, channels, "whole")
        pipe = pipe.edited({"op": "cut", "rule": "whole", "keep": channels})
    if empty:
        silence_layers(pipe.denoiser, empty)
        pipe = pipe.edited({"op": "silence", "layers": empty})
    return pipe


def _channels(layer: WidthLayer, indices: list[int]) -> list[int]:
    each = layer.channels // layer.units
    return [index * each + offset for index in indices for offset in range(each)]


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
        elif isinstance(block, FeedForward):
            stand_in = Silenced(block.net[2])
        else:
            raise ValueError(f"{name} is a {type(block).__name__}, no attention or feed-forward")
        stand_ins[name] = stand_in.train(block.training)
    for name, stand_in in stand_ins.items():
        parent, _, last_part = name.rpartition(".")
        setattr(model.get_submodule(parent), last_part, stand_in)
