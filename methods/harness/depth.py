"""Removing whole layers: what can go, standing in for it, and meeting a parameter budget.

A removed unit is replaced by a stand-in without parameters, so that diffusers' own forward pass
runs and the names of what stays do not change. A ResNet of the down or middle part can go if it
keeps its width; one of the up part reads the hidden state and a skip, and can go if the hidden
width is the width it gives: the skip is then dropped. A removed ResNet of the down part still
pushes its (unchanged) input on the stack of skips.

The other way round, a layer can be repeated in place: what it gives goes through a copy of it that
has weights of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from .pipeline import Pipeline

Kind = Literal["resnet", "attention", "transformer", "transformer_block", "block"]
LAYERS: tuple[Kind, ...] = ("resnet", "attention", "transformer", "block")
FINE: tuple[Kind, ...] = ("resnet", "attention", "transformer_block", "block")


@dataclass(frozen=True)
class Unit:
    """A layer that might be removed; `params` are what its removal saves."""

    name: str
    kind: Kind
    params: int
    removable: bool
    reason: str = ""  # why it is not removable


class Skip(nn.Module):
    """Stands in for a removed layer: gives back its first argument.

    `channels` keeps that many leading channels (an up ResNet without its skip); `as_tuple` answers
    as a Transformer2DModel does.
    """

    def __init__(self, channels: int | None = None, as_tuple: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.as_tuple = as_tuple

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        kept = hidden_states if self.channels is None else hidden_states[:, : self.channels]
        return (kept,) if self.as_tuple else kept


class SkipToShortcut(nn.Module):
    """Stands in for a ResNet that changes the width: only its 1x1 shortcut is left."""

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.conv_shortcut = block.conv_shortcut
        self.output_scale_factor = block.output_scale_factor

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        shortcut: Tensor = self.conv_shortcut(hidden_states)
        return shortcut / self.output_scale_factor


class SkipKeepingEmbedding(nn.Module):
    """Stands in for DiT's first block, whose embedding of timestep and class the output layer
    uses."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.Module()
        self.norm1.emb = block.get_submodule("norm1.emb")

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


class Repeated(nn.Module):
    """A layer and a copy of it, one after the other; both get the other arguments unchanged."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first = layer
        self.second = copy.deepcopy(layer)

    @property
    def norm1(self) -> nn.Module:
        """DiT's output layer reads the embedding of the first block."""
        return self.first.get_submodule("norm1")

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        once = self.first(hidden_states, *args, **kwargs)
        hidden = once[0] if isinstance(once, tuple) else once
        return self.second(hidden, *args, **kwargs)


# --- what there is ---------------------------------------------------------------------------


def units(model: nn.Module, kinds: Sequence[Kind] = LAYERS) -> tuple[Unit, ...]:
    """The layers of these kinds, in the order of the forward pass.

    "attention" is UNet2DModel's, "transformer" a whole Transformer2DModel, "transformer_block"
    one BasicTransformerBlock in it, "block" a DiT block.

    Raises:
        ValueError: the model is of a class that is not described here.
    """
    if isinstance(model, DiTTransformer2DModel):
        found = [_dit_unit(model, index) for index in range(len(model.transformer_blocks))]
    elif isinstance(model, UNet2DModel | UNet2DConditionModel):
        found = [
            unit
            for layer, hidden in _unet_layers(model)
            for unit in _unet_units(model, layer, hidden)
        ]
    else:
        raise ValueError(
            f"depth pruning knows U-Nets and DiTTransformer2DModel, not {type(model).__name__}"
        )
    return tuple(unit for unit in found if unit.kind in kinds)


def removable(model: nn.Module, kinds: Sequence[Kind] = LAYERS) -> tuple[Unit, ...]:
    """The units that can go."""
    return tuple(unit for unit in units(model, kinds) if unit.removable)


def repeatable(model: nn.Module, kinds: Sequence[Kind] = LAYERS) -> tuple[Unit, ...]:
    """The units that can be repeated: they read what they give, an up ResNet also the skip."""
    return tuple(unit for unit in removable(model, kinds) if _reads_what_it_gives(model, unit))


def _reads_what_it_gives(model: nn.Module, unit: Unit) -> bool:
    layer = model.get_submodule(unit.name)
    if isinstance(layer, ResnetBlock2D):
        return bool(layer.conv1.in_channels == layer.conv2.out_channels)
    return True


def _dit_unit(model: nn.Module, index: int) -> Unit:
    name = f"transformer_blocks.{index}"
    block = model.get_submodule(name)
    kept = _size(block.get_submodule("norm1.emb")) if index == 0 else 0
    while isinstance(block, Repeated):  # of a repeated block the copy can go
        name, block, kept = f"{name}.second", block.second, 0
    if not isinstance(block, BasicTransformerBlock):
        return Unit(name, "block", 0, False, "already removed")
    return Unit(name, "block", _size(block) - kept, True)


def _unet_layers(model: Any) -> Iterator[tuple[str, int]]:
    """(name, width of the hidden state that it reads, skip not counted) in forward order."""
    hidden = model.get_submodule("conv_in").out_channels
    for part, blocks in (("down_blocks", model.down_blocks), ("up_blocks", model.up_blocks)):
        if part == "up_blocks" and model.mid_block is not None:
            yield "mid_block.resnets.0", hidden
            for index, attention in enumerate(model.mid_block.attentions):
                if attention is not None:  # as with add_attention=False
                    yield f"mid_block.attentions.{index}", hidden
                yield f"mid_block.resnets.{index + 1}", hidden
        for stage, block in enumerate(blocks):
            for index, resnet in enumerate(block.resnets):
                yield f"{part}.{stage}.resnets.{index}", hidden
                hidden = _width(resnet, hidden)
                if hasattr(block, "attentions"):
                    yield f"{part}.{stage}.attentions.{index}", hidden
            # A sampler's width is a channel group of its own, which pruning may have cut otherwise.
            for samplers in ("downsamplers", "upsamplers"):
                for sampler in getattr(block, samplers, None) or ():
                    hidden = _width(getattr(sampler, "conv", sampler), hidden)


def _width(layer: nn.Module, hidden: int) -> int:
    """What a ResNet, its stand-in or a sampler's convolution gives for `hidden` channels."""
    if isinstance(layer, nn.Conv2d):
        return int(layer.out_channels)
    if isinstance(layer, ResnetBlock2D):
        return int(layer.conv2.out_channels)
    if isinstance(layer, SkipToShortcut):
        return int(layer.conv_shortcut.out_channels)
    return hidden


def _unet_units(model: nn.Module, name: str, hidden: int) -> Iterator[Unit]:
    layer = model.get_submodule(name)
    if isinstance(layer, Repeated):  # the copy can go
        yield from _unet_units(model, f"{name}.second", hidden)
    elif isinstance(layer, ResnetBlock2D):
        reads, gives = int(layer.conv1.in_channels), int(layer.conv2.out_channels)
        # An up ResNet reads hidden state and skip: without it the skip is dropped.
        fits = hidden == gives
        reason = "" if fits else f"reads {hidden} of {reads} channels from below, gives {gives}"
        yield Unit(name, "resnet", _size(layer), fits, reason)
    elif isinstance(layer, Attention):
        yield Unit(name, "attention", _size(layer), True)
    elif isinstance(layer, Transformer2DModel):
        yield Unit(name, "transformer", _size(layer), True)
        for index, block in enumerate(layer.transformer_blocks):
            if isinstance(block, BasicTransformerBlock):
                inner = f"{name}.transformer_blocks.{index}"
                yield Unit(inner, "transformer_block", _size(block), True)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- removal ---------------------------------------------------------------------------------


def drop(pipe: Pipeline, names: Iterable[str], *, shortcuts: bool = False) -> Pipeline:
    """Remove units from the pipeline's denoiser, in place, and record it.

    With `shortcuts` a ResNet that changes the width may be named too; its shortcut stays.

    Raises:
        ValueError: a name is no unit, is not removable, lies in another one, or was removed before.
    """
    chosen = sorted(set(names))
    if not chosen:
        return pipe
    drop_units(pipe.denoiser, chosen, shortcuts=shortcuts)
    return pipe.edited({"op": "drop", "units": chosen, "shortcuts": shortcuts})


def drop_units(model: nn.Module, names: Iterable[str], *, shortcuts: bool = False) -> None:
    """`drop` on a bare denoiser; nothing is changed when it raises."""
    for name, stand_in in _stand_ins(model, names, shortcuts):
        _replace(model, name, stand_in)


def repeat(pipe: Pipeline, names: Iterable[str]) -> Pipeline:
    """Repeat units of the pipeline's denoiser in place, with the same weights, and record it.

    Raises:
        ValueError: a name is no unit that can be repeated.
    """
    chosen = sorted(set(names))
    if not chosen:
        return pipe
    repeat_units(pipe.denoiser, chosen)
    return pipe.edited({"op": "repeat", "units": chosen})


def repeat_units(model: nn.Module, names: Iterable[str]) -> None:
    """`repeat` on a bare denoiser; nothing is changed when it raises."""
    known = {unit.name for unit in repeatable(model, (*LAYERS, "transformer_block"))}
    chosen = list(names)
    for name in chosen:
        if name not in known:
            raise ValueError(f"{name!r} is no layer of this model that can be repeated")
    for name in chosen:
        _replace(model, name, Repeated(model.get_submodule(name)))


@contextmanager
def bypassed(model: nn.Module, names: Iterable[str], *, shortcuts: bool = False) -> Iterator[None]:
    """Inside, the model runs without the units; afterwards it is what it was.

    Raises:
        ValueError: as `drop`.
    """
    stand_ins = _stand_ins(model, names, shortcuts)
    originals = [(name, model.get_submodule(name)) for name, _ in stand_ins]
    try:
        for name, stand_in in stand_ins:
            _replace(model, name, stand_in)
        yield
    finally:
        for name, original in originals:
            _replace(model, name, original)


def _stand_ins(
    model: nn.Module, names: Iterable[str], shortcuts: bool
) -> list[tuple[str, nn.Module]]:
    known = {unit.name: unit for unit in units(model, (*LAYERS, "transformer_block"))}
    names, found = list(names), []
    for name in names:
        unit = known.get(name)
        if unit is None:
            raise ValueError(_unknown(model, name))
        outer = next((other for other in known if name.startswith(f"{other}.")), None)
        if outer in names:
            raise ValueError(f"{name} is a part of {outer}, which is to go as a whole")
        layer = model.get_submodule(name)
        if unit.removable:
            stand_in = _stand_in(name, layer, unit)
        elif shortcuts and isinstance(layer, ResnetBlock2D) and layer.conv_shortcut is not None:
            stand_in = SkipToShortcut(layer)
        else:
            raise ValueError(f"{name} cannot be removed: {unit.reason}")
        found.append((name, stand_in.train(layer.training)))
    return found


def _unknown(model: nn.Module, name: str) -> str:
    """Why a name cannot be removed that is no unit."""
    stand_ins = (Skip, SkipToShortcut, SkipKeepingEmbedding)
    if isinstance(dict(model.named_modules()).get(name), stand_ins):
        return f"{name} cannot be removed: it was removed before"
    return f"{name!r} is no layer of this model that depth pruning knows"


def _stand_in(name: str, layer: nn.Module, unit: Unit) -> nn.Module:
    if isinstance(layer, ResnetBlock2D):
        return Skip(channels=int(layer.conv2.out_channels))
    if unit.kind == "block" and name.endswith(".0"):
        return SkipKeepingEmbedding(layer)
    return Skip(as_tuple=unit.kind == "transformer")


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def drop_lowest_stage(pipe: Pipeline) -> Pipeline:
    """Remove the lowest resolution from a U-Net with its middle and its samplers; record it.

    What remains of the up part is renumbered: `up_blocks.k` was `up_blocks.{k + 1}`.

    Raises:
        ValueError: the denoiser is no text-conditional U-Net of at least two stages, or the lowest
            two differ in width.
    """
    drop_stage(pipe.denoiser)
    return pipe.edited({"op": "drop_stage"})


def drop_stage(model: nn.Module) -> None:
    """`drop_lowest_stage` on a bare denoiser; nothing is changed when it raises."""
    if not isinstance(model, UNet2DConditionModel):
        raise ValueError(
            f"a stage can be dropped from a UNet2DConditionModel, not {type(model).__name__}"
        )
    if len(model.down_blocks) < 2:
        raise ValueError("down_blocks has one stage only, which cannot be dropped")
    widths = dict(_unet_layers(model))
    gives = widths[f"down_blocks.{len(model.down_blocks) - 1}.resnets.0"]
    reads = widths["up_blocks.1.resnets.0"]
    if gives != reads:
        raise ValueError(
            f"the lowest stage cannot be dropped: down_blocks.{len(model.down_blocks) - 2} gives "
            f"{gives} channels, up_blocks.1 reads {reads}; the last two widths of the U-Net "
            "(block_out_channels) must be equal"
        )
    drop_middle_of(model)
    model.down_blocks = nn.ModuleList(list(model.down_blocks)[:-1])
    model.down_blocks[-1].downsamplers = None
    model.up_blocks = nn.ModuleList(list(model.up_blocks)[1:])
    model.num_upsamplers -= 1


def drop_middle(pipe: Pipeline) -> Pipeline:
    """Remove the middle block of a text-conditional U-Net and record it."""
    drop_middle_of(pipe.denoiser)
    return pipe.edited({"op": "drop_middle"})


def drop_middle_of(model: nn.Module) -> None:
    """`drop_middle` on a bare denoiser; diffusers' forward pass allows for None."""
    if not isinstance(model, UNet2DConditionModel):
        raise ValueError(
            f"the middle of a UNet2DConditionModel can go, not of a {type(model).__name__}"
        )
    model.mid_block = None


# --- budgets ---------------------------------------------------------------------------------


def requested(
    model: nn.Module, candidates: Sequence[Unit], params: float | None, ratio: float | None
) -> int:
    """Parameters to remove: a fraction of the model's, or of all that the candidates hold.

    `params` is the fraction of the denoiser's parameters that may stay, in (0, 1]; `ratio` the
    fraction of the candidates' parameters that has to go, in [0, 1).

    Raises:
        ValueError: both or neither are given, out of range, or more is asked than can go.
    """
    if (params is None) == (ratio is None):
        raise ValueError("give either params (fraction kept) or ratio (fraction removed)")
    total, available = _size(model), sum(unit.params for unit in candidates)
    if params is not None:
        if not 0 < params <= 1:
            raise ValueError(f"params must lie in (0, 1], not {params}")
        wanted = total - int(params * total)
        if wanted > available:
            least = 1 - available / total
            raise ValueError(
                f"params={params} cannot be met: without all removable layers {least:.3f} stays"
            )
        return wanted
    assert ratio is not None
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must lie in [0, 1), not {ratio}")
    return round(ratio * available)


def random_set(candidates: Sequence[Unit], wanted: int, draw: torch.Generator) -> list[str]:
    """Names of random layers that hold at least `wanted` parameters, none of them needlessly.

    Layers go in random order until enough are gone; those that are not needed then come back,
    since a set that overshoots would be damaged more than the budget asks for.
    """
    gone: list[Unit] = []
    spare = -wanted
    for k in torch.randperm(len(candidates), generator=draw).tolist():
        if spare >= 0:
            break
        gone.append(candidates[k])
        spare += candidates[k].params
    needed = []
    for unit in gone:
        if unit.params <= spare:
            spare -= unit.params
        else:
            needed.append(unit.name)
    return needed
