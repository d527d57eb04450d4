"""Which layers can go, what stands in for them, and whole stages."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from methods import bk_sdm
from methods.harness import depth, zoo
from methods.harness.channels import channel_groups
from methods.harness.checkpoint import load_pruned, save_pruned
from methods.harness.denoise import predict
from methods.harness.edits import replay
from methods.harness.pipeline import Pipeline
from methods.harness.surgery import cut
from tests.harness import tiny


def answer(pipe, seed=0):
    batch = next(tiny.task(pipe, seed).training_batches(3))
    with torch.no_grad():
        return predict(pipe.denoiser, batch.x_t, batch.t, batch.condition)


@pytest.mark.parametrize(
    ("architecture", "kinds", "count", "resnets", "params"),
    [
        ("sd15", depth.LAYERS, 34, 18, 752_558_400),
        ("sdxl", depth.LAYERS, 24, 13, 2_484_749_440),
        ("sdxl", depth.FINE, 83, 13, 2_460_949_120),
    ],
)
def test_inventory_of_published_unets(architecture, kinds, count, resnets, params):
    model, _ = zoo.ARCHITECTURES[architecture].on_meta()
    found = depth.removable(model, kinds)
    assert len(found) == count
    assert sum(unit.kind == "resnet" for unit in found) == resnets
    assert sum(unit.params for unit in found) == params


def test_layers_that_change_the_width_cannot_go():
    model, _ = zoo.ARCHITECTURES["sd15"].on_meta()
    fixed = [unit.name for unit in depth.units(model) if not unit.removable]
    assert fixed == [
        "down_blocks.1.resnets.0",
        "down_blocks.2.resnets.0",
        "up_blocks.2.resnets.0",
        "up_blocks.3.resnets.0",
    ]
    with pytest.raises(ValueError, match=r"down_blocks.1.resnets.0 cannot be removed: reads"):
        depth.drop_units(model, ["down_blocks.1.resnets.0"])


def silent(model, name):
    """The layer's own branch silenced by its weights; written without the stand-ins."""
    layer = model.get_submodule(name)
    last = {"conv2": "conv2", "proj_out": "proj_out"}
    for attribute in last:
        if hasattr(layer, attribute):
            nn.init.zeros_(getattr(layer, attribute).weight)
            nn.init.zeros_(getattr(layer, attribute).bias)
            return
    for part in (layer.attn1.to_out[0], layer.ff.net[2]):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)


@pytest.mark.parametrize("kind", ["t2i", "dit"])
def test_a_removed_layer_equals_one_with_a_silent_branch(kind):
    """True of every layer that adds to its input; an up ResNet has a shortcut over the skip."""
    pipe = tiny.conditional(kind)
    tried = 0
    for unit in depth.removable(pipe.denoiser):
        if unit.name.startswith("up_blocks") and unit.kind == "resnet":
            continue
        muted = pipe.private_copy()
        silent(muted.denoiser, unit.name)
        dropped = depth.drop(pipe.private_copy(), [unit.name])
        assert (answer(dropped) - answer(muted)).abs().max() <= 1e-6, unit.name
        tried += 1
    assert tried >= 5


def test_an_up_resnet_passes_the_hidden_state_without_the_skip():
    pipe = tiny.conditional("t2i")
    name = "up_blocks.1.resnets.1"
    dropped = depth.drop(pipe.private_copy(), [name])
    block = dropped.denoiser.get_submodule(name)
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(block(x, None), x[:, :32])


@pytest.mark.parametrize("kind", ["t2i", "dit"])
def test_bypassing_is_dropping_and_leaves_no_trace(kind):
    pipe = tiny.conditional(kind)
    before, state = answer(pipe), copy.deepcopy(pipe.denoiser.state_dict())
    names = [unit.name for unit in depth.removable(pipe.denoiser)][::2]
    with depth.bypassed(pipe.denoiser, names):
        inside = answer(pipe)
    assert torch.equal(inside, answer(depth.drop(pipe.private_copy(), names)))
    assert torch.equal(before, answer(pipe))
    with pytest.raises(RuntimeError, match="stop"), depth.bypassed(pipe.denoiser, names):
        raise RuntimeError("stop")
    after = pipe.denoiser.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[k], state[k]) for k in state)


def test_a_width_changing_resnet_can_keep_its_shortcut():
    pipe = tiny.conditional("t2i")
    name = "down_blocks.1.resnets.0"
    muted = pipe.private_copy()
    silent(muted.denoiser, name)
    dropped = depth.drop(pipe.private_copy(), [name], shortcuts=True)
    assert (answer(dropped) - answer(muted)).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", ["t2i", "dit"])
def test_names_stay_and_edits_replay_on_meta(kind):
    pipe = tiny.conditional(kind)
    names = [unit.name for unit in depth.removable(pipe.denoiser)][1::2]
    dropped = depth.drop(pipe.private_copy(), names)
    if kind == "t2i":
        dropped = depth.drop_lowest_stage(dropped)
        assert torch.isfinite(answer(dropped)).all()
    else:
        assert dropped.denoiser.state_dict().keys() <= pipe.denoiser.state_dict().keys()
    with torch.device("meta"):
        fresh = tiny.conditional(kind).denoiser
    replay(fresh, dropped.edits)
    shapes = {name: tensor.shape for name, tensor in fresh.state_dict().items()}
    assert shapes == {name: t.shape for name, t in dropped.denoiser.state_dict().items()}


def test_a_stage_goes_only_from_two_of_one_width():
    """As BK-SDM-Tiny does; the last two widths of fashion_t2i differ, those of sd15 do not."""
    model, _ = zoo.ARCHITECTURES["fashion_t2i"].on_meta()
    before = str(model)
    message = r"down_blocks.1 gives 80 channels, up_blocks.1 reads 96; .*block_out_channels"
    with pytest.raises(ValueError, match=message):
        depth.drop_stage(model)
    assert str(model) == before
    task = tiny.task(tiny.conditional("t2i"))
    with pytest.raises(ValueError, match=message):
        bk_sdm.compress(Pipeline(model, zoo.cosine_scheduler()), task, bk_sdm.Config("tiny"))
    depth.drop_stage(zoo.ARCHITECTURES["sd15"].on_meta()[0])
    with pytest.raises(ValueError, match="not DiTTransformer2DModel"):
        depth.drop_stage(tiny.dit())


def test_removing_what_is_gone_or_inside_of_another_is_refused():
    model = tiny.text_unet()
    inner = "mid_block.attentions.0.transformer_blocks.0"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"{inner} is a part of mid_block.attentions.0"):
        depth.drop_units(model, ["mid_block.attentions.0", inner])
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    depth.drop_units(model, ["mid_block.attentions.0"])
    with pytest.raises(ValueError, match=r"mid_block.attentions.0 .*: it was removed before"):
        depth.drop_units(model, ["mid_block.attentions.0"])


def test_a_dropped_model_trains_under_autocast():
    pipe = depth.drop(tiny.conditional("dit"), ["transformer_blocks.0", "transformer_blocks.3"])
    batch = next(tiny.task(pipe).training_batches(4))
    with torch.autocast("cpu", torch.bfloat16):
        loss = predict(pipe.denoiser.train(), batch.x_t, batch.t, batch.condition).square().mean()
    loss.backward()
    assert pipe.denoiser.transformer_blocks[1].ff.net[2].weight.grad.abs().sum() > 0


def test_budgets():
    model = tiny.dit()
    candidates = depth.removable(model)
    assert depth.requested(model, candidates, 1.0, None) == 0
    assert depth.requested(model, candidates, None, 0.0) == 0
    wanted = depth.requested(model, candidates, 0.6, None)
    total = sum(p.numel() for p in model.parameters())
    assert total - wanted == int(0.6 * total)
    half = sum(unit.params for unit in candidates) / 2
    assert depth.requested(model, candidates, None, 0.5) == round(half)
    with pytest.raises(ValueError, match="without all removable layers"):
        depth.requested(tiny.dit(), candidates, 0.01, None)
    with pytest.raises(ValueError, match="either params"):
        depth.requested(model, candidates, None, None)
    with pytest.raises(ValueError, match="is no layer"):
        depth.drop_units(model, ["nowhere"])


def test_random_sets_meet_the_budget_with_nothing_to_spare():
    sizes = {"a": 10, "b": 20, "c": 30}
    units = [depth.Unit(name, "block", params, True) for name, params in sizes.items()]
    draw = torch.Generator().manual_seed(0)
    found = {tuple(sorted(depth.random_set(units, 30, draw))) for _ in range(60)}
    assert found == {("c",), ("a", "b")}  # of b, c only c stays
    assert depth.random_set(units, 0, draw) == []
    for wanted in range(1, 61):
        held = [sizes[name] for name in depth.random_set(units, wanted, draw)]
        assert sum(held) - min(held) < wanted <= sum(held)


@pytest.mark.parametrize("part", ["down_blocks.1.downsamplers.0", "up_blocks.0.upsamplers.0"])
def test_the_width_behind_a_sampler_is_that_of_the_sampler(part):
    """A cut of the sampler's own channels: the next ResNet no longer reads what it gives."""
    pipe = tiny.conditional("t2i")
    conv = f"{part}.conv"
    (group,) = (
        g
        for g in channel_groups(pipe.denoiser)
        if any((s.module, s.axis) == (conv, "out") for s in g.slots)
    )
    first, stage, _ = part.split(".", 2)
    behind = f"{first}.{int(stage) + 1}.resnets.0"
    before = {unit.name: unit for unit in depth.units(pipe.denoiser)}[behind]
    assert before.removable
    pipe = cut(pipe, {group.name: list(range(group.size * 3 // 4))})
    width = pipe.denoiser.get_submodule(conv).out_channels
    assert width < group.size
    unit = {unit.name: unit for unit in depth.units(pipe.denoiser)}[behind]
    assert unit.removable == (pipe.denoiser.get_submodule(behind).conv2.out_channels == width)
    for name in (unit.name for unit in depth.removable(pipe.denoiser)):
        with depth.bypassed(pipe.denoiser, [name]):
            assert torch.isfinite(answer(pipe)).all()


def test_a_middle_without_attention_has_none_to_remove():
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    names = {unit.name for unit in depth.units(model)}
    assert {"mid_block.resnets.0", "mid_block.resnets.1"} <= names
    assert not any("attentions" in name for name in names)


@pytest.mark.parametrize("kind", ["t2i", "dit"])
def test_a_repeated_layer_runs_twice_with_weights_of_its_own(kind):
    """By hand: the output hook of the layer runs the layer once more."""
    pipe = tiny.conditional(kind)
    for unit in depth.repeatable(pipe.denoiser):
        grown = depth.repeat(pipe.private_copy(), [unit.name])
        extra = sum(p.numel() for p in grown.denoiser.parameters())
        extra -= sum(p.numel() for p in pipe.denoiser.parameters())
        assert extra == sum(p.numel() for p in pipe.denoiser.get_submodule(unit.name).parameters())
        layer = pipe.denoiser.get_submodule(unit.name)
        plain = type(layer).forward

        def again(module, args, kwargs, output, plain=plain):
            hidden = output[0] if isinstance(output, tuple) else output
            rest = args[1:] if args else ()
            given = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            return plain(module, hidden, *rest, **given)

        handle = layer.register_forward_hook(again, with_kwargs=True)
        expected = answer(pipe)
        handle.remove()
        assert torch.equal(answer(grown), expected), unit.name
        # The copy can go again, and then nothing has changed.
        back = depth.drop(grown, [f"{unit.name}.second"])
        assert torch.equal(answer(back), answer(pipe)), unit.name


def test_an_up_resnet_reads_the_skip_and_cannot_be_repeated():
    pipe = tiny.conditional("t2i")
    names = [unit.name for unit in depth.repeatable(pipe.denoiser)]
    assert "up_blocks.1.attentions.0" in names and "down_blocks.1.resnets.1" in names
    assert not any(name.startswith("up_blocks") and "resnets" in name for name in names)
    with pytest.raises(ValueError, match=r"up_blocks.1.resnets.1' is no layer .* repeated"):
        depth.repeat(pipe, ["up_blocks.1.resnets.1"])


@pytest.mark.parametrize("kind", ["t2i", "dit"])
def test_a_grown_model_replays_and_loads_bit_exactly(kind, tmp_path):
    """Repeated, repeated once more, and one of the copies removed again."""
    pipe = tiny.conditional(kind)
    name = "mid_block.attentions.0" if kind == "t2i" else "transformer_blocks.0"
    grown = depth.repeat(pipe.private_copy(), [name])
    grown = depth.repeat(grown, [f"{name}.second"])
    grown = depth.drop(grown, [f"{name}.second.second"])
    with torch.no_grad():
        for parameter in grown.denoiser.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    save_pruned(grown, tmp_path, "tiny", {})
    # The tiny text model has no encoder to save: its requests are handed on.
    back = replace(load_pruned(tmp_path), conditioning=pipe.conditioning)
    assert torch.equal(answer(back), answer(grown))
    assert not torch.equal(answer(grown), answer(pipe))
