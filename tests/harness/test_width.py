"""Heads and neurons: counts, gates, removal for every mask."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler

from methods.harness import flux as flux_layers
from methods.harness import width, zoo
from methods.harness.checkpoint import load_pruned, save_pruned
from methods.harness.denoise import predict
from methods.harness.edits import replay
from methods.harness.pipeline import Pipeline
from methods.harness.trajectory import linear_steps
from tests.harness import tiny

KINDS = ("t2i", "dit", "mmdit")


@pytest.mark.parametrize(
    ("architecture", "attentions", "heads", "feed_forwards", "neurons"),
    [
        ("sd15", 32, 256, 16, 49_920),
        ("sdxl", 140, 2_600, 70, 332_800),
        ("sd3_medium", 24, 576, 47, 288_768),
        ("dit_xl_2", 28, 448, 28, 129_024),
        ("flux_dev", 57, 1_368, 76, 933_888),
    ],
)
def test_inventory_of_published_models(architecture, attentions, heads, feed_forwards, neurons):
    model, _ = zoo.ARCHITECTURES[architecture].on_meta()
    layers = width.width_layers(model)
    first = [layer for layer in layers if layer.kind == "heads"]
    second = [layer for layer in layers if layer.kind == "neurons"]
    assert (len(first), sum(layer.units for layer in first)) == (attentions, heads)
    assert (len(second), sum(layer.units for layer in second)) == (feed_forwards, neurons)


@pytest.mark.parametrize(("ratio", "billions"), [(0.15, 2.2372), (0.2, 2.1305), (0.3, 1.9121)])
def test_sizes_of_pruned_sdxl_come_out_of_the_cut(ratio, billions):
    """The sizes that EcoDiff and OBS-Diff print for 15, 20 and 30 % of heads and neurons."""
    model, _ = zoo.ARCHITECTURES["sdxl"].on_meta()
    layers = width.width_layers(model)
    keep = {layer.name: list(range(layer.units - round(ratio * layer.units))) for layer in layers}
    width.keep_units(Pipeline(model, zoo.ddpm_scheduler()), keep)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=2e-4)


@pytest.mark.parametrize(("modulation", "billions"), [(False, 10.3), (True, 9.6)])
def test_size_of_pruned_flux_is_counted_by_hand(modulation, billions):
    """4 of 24 heads and 2457 of 12288 neurons go everywhere; 19 double and 38 single blocks.

    EcoDiff prints 9.6 billion for FLUX at 20 %: that size needs the modulation outputs too. (Its
    code keeps int(0.8 * 24) = 19 heads, which would be 9.5.)
    """
    model, _ = zoo.ARCHITECTURES["flux_dev"].on_meta()
    dense = sum(p.numel() for p in model.parameters())
    layers = width.width_layers(model)
    if not modulation:
        layers = tuple(n for n in layers if n.kind != "modulation")
    width.cut_units(model, {n.name: list(range(n.units - int(0.2 * n.units))) for n in layers})
    row, channels = 3072 + 1, 4 * 128  # weights of one output with its bias; of four heads
    gone = 19 * channels * (6 * row + 2 * 3072)  # six projections in, two out
    gone += 38 * channels * (3 * row + 3072)  # out: columns of the fused projection
    gone += (2 * 19 + 38) * 2457 * (row + 3072)
    if modulation:
        gone += (2 * 19 * int(0.2 * 18_432) + 38 * int(0.2 * 9_216)) * row
    left = sum(p.numel() for p in model.parameters())
    assert left == dense - gone
    assert round(left / 1e9, 1) == billions


def test_modulation_outputs_of_flux():
    """Six for every channel in both norms of a double block, three in a single block."""
    model, _ = zoo.ARCHITECTURES["flux_dev"].on_meta()
    found = [n for n in width.width_layers(model) if n.kind == "modulation"]
    assert len(found) == 76
    assert sum(n.units for n in found) == 19 * 2 * 6 * 3072 + 38 * 3 * 3072 == 1_050_624
    assert {width.unit_params(model, n) for n in found} == {3072 + 1}


def masks(layers, trial):
    """All off, one unit of each layer, and mixtures of none, one, half and all."""
    chance = random.Random(trial)
    keep = {}
    for layer in layers:
        everything = list(range(layer.units))
        options = [[], [chance.choice(everything)], everything]
        options.append(sorted(chance.sample(everything, layer.units // 2)))
        keep[layer.name] = options[trial] if trial < 2 else chance.choice(options)
    return keep


def gates_of(layers, keep):
    return {
        layer.name: torch.tensor([float(k in keep[layer.name]) for k in range(layer.units)])
        for layer in layers
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trial", range(5))
def test_removed_equals_masked_for_every_mask(kind, trial):
    """Among them layers with one unit left and layers with none."""
    pipe = tiny.conditional(kind)
    layers = width.width_layers(pipe.denoiser)
    keep = masks(layers, trial)
    gates = gates_of(layers, keep)
    batch = next(tiny.task(pipe).training_batches(2))
    with torch.no_grad(), width.gated(pipe.denoiser, layers, gates.get):
        masked = predict(pipe.denoiser, batch.x_t, batch.t, batch.condition)
    small = width.keep_units(pipe.private_copy(), keep)
    with torch.no_grad():
        found = predict(small.denoiser, batch.x_t, batch.t, batch.condition)
    assert (found - masked).abs().max() <= 1e-5
    with torch.device("meta"):
        fresh = tiny.conditional(kind).denoiser
    replay(fresh, small.edits)
    assert {n: t.shape for n, t in fresh.state_dict().items()} == {
        n: t.shape for n, t in small.denoiser.state_dict().items()
    }


def test_removed_modulation_gives_zeros_where_it_was():
    """By hand: three outputs, the second goes, then the first of those left."""
    layer = torch.nn.Linear(2, 3)
    x = torch.tensor([[1.0, 2.0]])
    once = flux_layers.Scattered(layer, [0, 2])
    full = F.linear(x, layer.weight, layer.bias)
    assert torch.equal(once(x), full * torch.tensor([1.0, 0.0, 1.0]))
    assert once.placed(torch.tensor([7.0, 8.0]), other=1.0).tolist() == [7.0, 1.0, 8.0]
    twice = flux_layers.Scattered(once, [1])
    assert torch.equal(twice(x), full * torch.tensor([0.0, 0.0, 1.0]))
    nothing = flux_layers.Scattered(twice, [])
    assert torch.equal(nothing(x), torch.zeros(1, 3))
    assert [tuple(p.shape) for p in nothing.parameters()] == [(0, 2), (0,)]


@pytest.mark.parametrize("trial", range(5))
def test_removed_equals_masked_in_flux(trial):
    """Single blocks read heads and neurons with one projection, and may lose either or both."""
    dense, inputs = tiny.flux(), tiny.flux_inputs()
    layers = width.width_layers(dense)
    keep = masks(layers, trial)
    with torch.no_grad(), width.gated(dense, layers, gates_of(layers, keep).get):
        masked = dense(**inputs)[0]
    before = dense(**inputs)[0]
    small = width.keep_units(Pipeline(tiny.flux(), zoo.ddpm_scheduler()), keep)
    with torch.no_grad():
        found = small.denoiser(**inputs)[0]
    assert (found - masked).abs().max() <= 1e-5
    assert (found - before).abs().max() > 1e-3
    gone = sum(
        (n.units - len(keep[n.name])) * width.unit_params(dense, n) for n in layers if keep[n.name]
    )
    sizes = [sum(p.numel() for p in m.parameters()) for m in (dense, small.denoiser)]
    assert sizes[0] - sizes[1] >= gone


def test_a_second_cut_of_flux_counts_what_is_left():
    """Units are numbered among those present: two cuts equal the one that they amount to."""
    inputs = tiny.flux_inputs()
    pipe = Pipeline(tiny.flux(), zoo.ddpm_scheduler())
    layers = width.width_layers(pipe.denoiser)
    first = {n.name: list(range(1, n.units)) for n in layers}
    second = {n.name: list(range(n.units - 2)) for n in layers}
    pipe = width.keep_units(width.keep_units(pipe, first), second)
    at_once = {n.name: list(range(1, n.units - 1)) for n in layers}
    other = width.keep_units(Pipeline(tiny.flux(), zoo.ddpm_scheduler()), at_once)
    gates = {n.name: torch.linspace(0.1, 0.9, n.units) for n in width.width_layers(pipe.denoiser)}
    with torch.no_grad():
        assert torch.equal(pipe.denoiser(**inputs)[0], other.denoiser(**inputs)[0])
        again = width.width_layers(pipe.denoiser)
        assert [n.units for n in again] == [n.units - 2 for n in layers]
        with width.gated(pipe.denoiser, again, gates.get):
            narrow = pipe.denoiser(**inputs)[0]
        wide = {n.name: F.pad(gates[n.name], (1, 1)) for n in layers}
        dense = tiny.flux()
        with width.gated(dense, layers, wide.get):
            assert (narrow - dense(**inputs)[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("trial", range(4))
def test_flux_comes_back_bit_for_bit(trial, tmp_path):
    """Weights, the places of pruned modulation outputs, the scheduler, and what it answers."""
    inputs = tiny.flux_inputs()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    layers = width.width_layers(tiny.flux())
    small = width.keep_units(Pipeline(tiny.flux(), scheduler), masks(layers, trial))
    save_pruned(small, tmp_path / "model", "tiny", {})
    back = load_pruned(tmp_path / "model")
    state, other = small.denoiser.state_dict(), back.denoiser.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert isinstance(back.scheduler, FlowMatchEulerDiscreteScheduler)
    assert back.scheduler.config.shift == 3.0
    with torch.no_grad():
        assert torch.equal(small.denoiser(**inputs)[0], back.denoiser(**inputs)[0])


@pytest.mark.parametrize("part", ["attn", "ff"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_without_units_gives_its_output_bias(kind, part):
    pipe = tiny.conditional(kind)
    name = next(n.name for n in width.width_layers(pipe.denoiser) if f".{part}" in n.name)
    layer = pipe.denoiser.get_submodule(name)
    bias = (layer.to_out[0] if part == "attn" else layer.net[2]).bias.detach().clone()
    small = width.keep_units(pipe, {name: []}).denoiser.get_submodule(name)
    x = torch.randn(2, 3, 32)
    answer = small(x)
    image = answer[0] if isinstance(answer, tuple) else answer
    assert torch.equal(image, bias.expand(2, 3, len(bias)))
    assert sum(p.numel() for p in small.parameters()) <= 2 * len(bias)


@pytest.mark.parametrize("trial", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_comes_back_bit_for_bit(kind, trial, tmp_path):
    pipe = tiny.conditional(kind)
    keep = masks(width.width_layers(pipe.denoiser), trial)
    small = width.keep_units(pipe, keep)
    save_pruned(small, tmp_path / "model", "tiny", {})
    back = load_pruned(tmp_path / "model").denoiser.state_dict()
    state = small.denoiser.state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_saved_mmdit_keeps_its_flow_matching_and_its_answers(tmp_path):
    pipe = tiny.conditional("mmdit")
    batch = next(tiny.task(pipe).training_batches(2))
    keep = masks(width.width_layers(pipe.denoiser), 3)
    flow = replace(pipe, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    small = width.keep_units(flow, keep)
    save_pruned(small, tmp_path / "model", "tiny", {})
    back = load_pruned(tmp_path / "model")
    assert linear_steps(back.scheduler, 5) == linear_steps(flow.scheduler, 5)
    with torch.no_grad():
        answers = [predict(p.denoiser, batch.x_t, batch.t, batch.condition) for p in (small, back)]
    assert torch.equal(*answers)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_keep_their_width_and_temperature(kind):
    pipe = tiny.conditional(kind)
    layer = next(n for n in width.width_layers(pipe.denoiser) if n.kind == "heads")
    dense = pipe.denoiser.get_submodule(layer.name)
    cut = width.keep_units(pipe.private_copy(), {layer.name: [1, 2]}).denoiser
    small = cut.get_submodule(layer.name)
    assert (small.heads, small.inner_dim) == (2, dense.inner_dim // 2)
    assert small.scale == dense.scale
    rows = slice(layer.channels // 4, 3 * layer.channels // 4)
    assert torch.equal(small.to_q.weight, dense.to_q.weight[rows])


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_everything_is_no_edit(kind):
    pipe = tiny.conditional(kind)
    layers = width.width_layers(pipe.denoiser)
    before = {name: tensor.clone() for name, tensor in pipe.denoiser.state_dict().items()}
    after = width.keep_units(pipe, {n.name: list(range(n.units)) for n in layers})
    assert after.edits == ()
    assert all(torch.equal(v, before[k]) for k, v in after.denoiser.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_gated_and_pruned_models_run_under_bf16_autocast(kind):
    pipe = tiny.conditional(kind)
    layers = width.width_layers(pipe.denoiser)
    keep = masks(layers, 3)
    batch = next(tiny.task(pipe).training_batches(2))
    inputs = (batch.x_t, batch.t, batch.condition)
    gates = gates_of(layers, keep)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with width.gated(pipe.denoiser, layers, gates.get):
            masked = predict(pipe.denoiser, *inputs)
        small = predict(width.keep_units(pipe.private_copy(), keep).denoiser, *inputs)
    error = (small.float() - masked.float()).abs().max()
    assert error <= 0.1 * masked.float().abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_open_gates_change_nothing_and_leave_no_hook(kind):
    pipe = tiny.conditional(kind)
    layers = width.width_layers(pipe.denoiser)
    batch = next(tiny.task(pipe).training_batches(2))
    ones = {layer.name: torch.ones(layer.units) for layer in layers}
    with torch.no_grad():
        plain = predict(pipe.denoiser, batch.x_t, batch.t, batch.condition)
        with width.gated(pipe.denoiser, layers, ones.get):
            gated = predict(pipe.denoiser, batch.x_t, batch.t, batch.condition)
    assert torch.equal(plain, gated)
    assert not any(module._forward_pre_hooks for module in pipe.denoiser.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_unit_params_are_what_removal_saves(kind):
    pipe = tiny.conditional(kind)
    for layer in width.width_layers(pipe.denoiser):
        small = width.keep_units(
            pipe.private_copy(), {layer.name: list(range(1, layer.units))}
        ).denoiser
        saved = sum(p.numel() for p in pipe.denoiser.parameters())
        saved -= sum(p.numel() for p in small.parameters())
        assert saved == width.unit_params(pipe.denoiser, layer), layer.name


@torch.no_grad()
def test_unit_norms_by_hand():
    """One head: its rows of queries, keys and values and its columns of the output projection."""
    model = tiny.dit()
    heads, neurons = width.width_layers(model)[:2]
    attention = model.transformer_blocks[0].attn1
    rows, total = slice(8, 16), 0.0
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        total += float(layer.weight[rows].square().sum())
    total += float(attention.to_out[0].weight[:, rows].square().sum())
    assert float(width.unit_norms(model, heads)[1]) == pytest.approx(total**0.5, rel=1e-5)
    forward = model.transformer_blocks[0].ff.net
    total = float(forward[0].proj.weight[3].square().sum() + forward[2].weight[:, 3].square().sum())
    assert float(width.unit_norms(model, neurons)[3]) == pytest.approx(total**0.5, rel=1e-5)
    geglu = tiny.text_unet()
    layer = next(n for n in width.width_layers(geglu) if n.kind == "neurons")
    block = geglu.get_submodule(layer.name).net
    both = block[0].proj.weight[[2, 2 + layer.units]].square().sum()
    total = float(both + block[2].weight[:, 2].square().sum())
    assert float(width.unit_norms(geglu, layer)[2]) == pytest.approx(total**0.5, rel=1e-5)


def test_closed_gates_by_hand():
    layer = next(n for n in width.width_layers(tiny.dit()) if n.kind == "heads")
    assert width.closed([layer], {layer.name: [0, 2]}, "cpu")[layer.name].tolist() == [1, 0, 1, 0]
    assert not width.closed([layer], {layer.name: []}, "cpu")[layer.name].any()


def test_bad_requests_are_named():
    pipe = tiny.conditional("dit")
    with pytest.raises(ValueError, match="no attention or feed-forward"):
        width.keep_units(pipe, {"nowhere": [0]})
    with pytest.raises(ValueError, match="sorted, unique and in range"):
        width.keep_units(pipe, {"transformer_blocks.0.attn1": [1, 0]})
    with pytest.raises(ValueError, match="sorted, unique and in range"):
        width.keep_units(pipe, {"transformer_blocks.0.attn1": [True]})
    with pytest.raises(ValueError, match="without its kept units"):
        replay(pipe.denoiser, [{"op": "width"}])
