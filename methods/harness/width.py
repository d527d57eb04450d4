"""Attention heads and feed-forward neurons: gates on them, and layers that lose all of them.

In FLUX the outputs of the norms' modulation layers are units as well (see `flux`).

Heads and neurons that go are cut as `surgery.cut` does with rule "whole". A layer that loses all
is silenced: what is left of it is the bias of its output projection, which is what the dense layer
gives when every head or neuron is masked.
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

from .channels import ChannelGroup, channel_groups
from .flux import Scattered, cut_flux, flux_groups, modulations, scatter
from .pipeline import Pipeline
from .surgery import cut_channels

Kind = Literal["heads", "neurons", "modulation"]
KINDS: tuple[Kind, ...] = ("heads", "neurons", "modulation")


@dataclass(frozen=True)
class WidthLayer:
    """An attention with its heads, a feed-forward with its neurons, a norm's linear layer."""

    name: str  # of the module; `proj_mlp` in FLUX's single blocks
    kind: Kind
    units: int
    group: str  # the channel group that holds them; the layer itself for modulation
    channels: int  # of the group; channels / units belong to one unit
    readers: tuple[str, ...]  # linear layers that read the units' output; none for modulation
    start: int = 0  # first of the readers' columns that belong to the units


def width_layers(model: nn.Module) -> tuple[WidthLayer, ...]:
    """Every attention and feed-forward of the transformers in a model, in forward order.

    In FLUX the norms' linear layers follow them.

    Raises:
        ValueError: the model is of a class whose channels are not described.
    """
    if isinstance(model, FluxTransformer2DModel):
        return (
            *(_flux_layer(group) for group in flux_groups(model)),
            *(WidthLayer(n, "modulation", size, n, size, ()) for n, size in modulations(model)),
        )
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


def unit_params(model: nn.Module, layer: WidthLayer) -> int:
    """Parameters that go with one unit of the layer."""
    if layer.kind == "modulation":
        alone = model.get_submodule(layer.name)
        bias = getattr(alone, "bias", None) is not None
        return alone.get_parameter("weight").shape[1] + int(bias)
    group = _group(model, layer.group)
    total = 0
    for slot in group.slots:
        module = model.get_submodule(slot.module)
        weight = module.get_parameter("weight")
        total += weight.numel() // weight.shape[1 if slot.axis == "in" else 0]
        if slot.axis != "in" and getattr(module, "bias", None) is not None:
            total += 1
    return total * (layer.channels // layer.units)


@torch.no_grad()
def unit_norms(model: nn.Module, layer: WidthLayer) -> Tensor:
    """Euclidean norm of all weights that go with each unit, biases aside: (units,)."""
    if layer.kind == "modulation":
        return model.get_submodule(layer.name).get_parameter("weight").float().norm(dim=1)
    group = _group(model, layer.group)
    squares = []
    for slot in group.slots:
        weight = model.get_submodule(slot.module).get_parameter("weight").float()
        weight = weight.transpose(0, 1) if slot.axis == "in" else weight
        rows = weight[slot.start : slot.start + group.size]
        squares.append(rows.reshape(layer.units, -1).square().sum(dim=1))
    return torch.stack(squares).sum(dim=0).sqrt()


def _group(model: nn.Module, name: str) -> ChannelGroup:
    flux = isinstance(model, FluxTransformer2DModel)
    groups = flux_groups(model) if flux else iter(channel_groups(model))
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
    projection; neurons after the activation (the product, for GEGLU); modulation outputs as the
    linear layer gives them, bias included.
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

    def output_hook(layer: WidthLayer) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def multiply(module: nn.Module, _: Any, output: Tensor) -> Tensor | None:
            values = gate(layer.name)
            if values is None:
                return None
            if isinstance(module, Scattered):
                values = module.placed(values, other=1.0)
            return output * values.to(output.dtype)

        return multiply

    handles = [
        model.get_submodule(reader).register_forward_pre_hook(hook(layer))
        for layer in layers
        for reader in layer.readers
    ]
    handles += [
        model.get_submodule(layer.name).register_forward_hook(output_hook(layer))
        for layer in layers
        if layer.kind == "modulation"
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def closed(
    layers: Iterable[WidthLayer], keep: Mapping[str, list[int]], device: torch.device | str
) -> dict[str, Tensor]:
    """Gates that are 1 for the units in `keep` and 0 for all others; as removal, without it."""
    found = {}
    for layer in layers:
        gate = torch.zeros(layer.units, device=device)
        gate[torch.tensor(keep[layer.name], dtype=torch.long, device=device)] = 1.0
        found[layer.name] = gate
    return found


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
    """Remove all units but `keep` (layer name -> sorted unit indices), and record it.

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
    outputs = {n: units for n, units in keep.items() if layers[n].kind == "modulation"}
    keep = {name: units for name, units in keep.items() if name not in outputs}
    empty = sorted(name for name, units in keep.items() if not units)
    channels = {
        layers[name].group: _channels(layers[name], units)
        for name, units in keep.items()
        if len(units) < layers[name].units
    }
    if isinstance(model, FluxTransformer2DModel):
        cut_flux(model, channels)
        scatter(model, {n: kept for n, kept in outputs.items() if len(kept) < layers[n].units})
        empty = [name for name in empty if not name.endswith(".proj_mlp")]  # an empty layer now
    else:
        cut_channels(model, {name: kept for name, kept in channels.items() if kept}, "whole")
    silence_layers(model, empty)


def _channels(layer: WidthLayer, units: list[int]) -> list[int]:
    each = layer.channels // layer.units
    return [unit * each + offset for unit in units for offset in range(each)]


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
