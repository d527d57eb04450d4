"""Heads and neurons: counts, gates, removal for every mask."""

from __future__ import annotations

import random

import pytest
import torch

from methods.harness import width, zoo
from methods.harness.denoise import predict
from methods.harness.edits import replay
from methods.harness.pipeline import Pipeline
from tests.harness import tiny

KINDS = ("t2i", "dit", "mmdit")


@pytest.mark.parametrize(
    ("architecture", "attentions", "heads", "feed_forwards", "neurons"),
    [
        ("sd15", 32, 256, 16, 49_920),
        ("sdxl", 140, 2_600, 70, 332_800),
        ("sd3_medium", 24, 576, 47, 288_768),
        ("dit_xl_2", 28, 448, 28, 129_024),
    ],
)
def test_inventory_of_published_models(architecture, attentions, heads, feed_forwards, neurons):
    model, _ = zoo.ARCHITECTURES[architecture].on_meta()
    layers = width.width_layers(model)
    first = [layer for layer in layers if layer.kind == "heads"]
    second = [layer for layer in layers if layer.kind == "neurons"]
    assert (len(first), sum(layer.units for layer in first)) == (attentions, heads)
    assert (len(second), sum(layer.units for layer in second)) == (feed_forwards, neurons)


@pytest.mark.parametrize(("ratio", "billions"), [(0.2, 2.1305), (0.3, 1.9121)])
def test_sizes_of_pruned_sdxl_come_out_of_the_cut(ratio, billions):
    """The sizes that EcoDiff and OBS-Diff print for 20 and 30 % of heads and neurons."""
    model, _ = zoo.ARCHITECTURES["sdxl"].on_meta()
    layers = width.width_layers(model)
    keep = {layer.name: list(range(layer.units - round(ratio * layer.units))) for layer in layers}
    width.keep_units(Pipeline(model, zoo.ddpm_scheduler()), keep)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=2e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trial", range(4))
def test_removed_equals_masked_for_every_mask(kind, trial):
    """Among them layers with one unit left and layers with none."""
    pipe = tiny.conditional(kind)
    layers = width.width_layers(pipe.denoiser)
    chance = random.Random(trial)
    keep = {}
    for layer in layers:
        everything = list(range(layer.units))
        options = [[], [chance.choice(everything)], everything]
        options.append(sorted(chance.sample(everything, layer.units // 2)))
        keep[layer.name] = chance.choice(options) if trial else []
    gates = {
        layer.name: torch.tensor([float(k in keep[layer.name]) for k in range(layer.units)])
        for layer in layers
    }
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


def test_bad_requests_are_named():
    pipe = tiny.conditional("dit")
    with pytest.raises(ValueError, match="no attention or feed-forward"):
        width.keep_units(pipe, {"nowhere": [0]})
    with pytest.raises(ValueError, match="sorted, unique and in range"):
        width.keep_units(pipe, {"transformer_blocks.0.attn1": [1, 0]})
