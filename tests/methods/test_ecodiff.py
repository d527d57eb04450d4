"""EcoDiff's gates, regularisers and choice, by hand; planted redundancy is found."""

from __future__ import annotations

import math

import pytest
import torch

from methods import ecodiff
from methods.harness.width import WidthLayer, gated, width_layers
from tests.harness import tiny


def layer(name, kind, units):
    return WidthLayer(name, kind, units, name, units, ())


def test_gate_by_hand():
    found = ecodiff.hard_concrete(torch.tensor([3.0, -9.0]), torch.tensor([0.25, 0.5]), 0.5)
    logit = math.log(0.75) - math.log(1.25) + 3.0
    expected = 1.2 / (1 + math.exp(-logit / 0.83)) - 0.1
    assert found.tolist() == pytest.approx([min(expected, 1.0), 0.0], abs=1e-6)


def test_penalties_by_hand():
    lambdas = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([3.0])}
    assert float(ecodiff.penalty(lambdas, "l1")) == pytest.approx((1.5 + 3.0) / 2)
    shift = 0.83 * math.log(0.1 / 1.1)
    expected = sum(1 / (1 + math.exp(-(v - shift))) for v in (1.0, -2.0, 3.0))
    assert float(ecodiff.penalty(lambdas, "l0")) == pytest.approx(expected, rel=1e-6)


def test_expected_l0_is_the_chance_of_an_open_gate():
    """P(gate > 0) in closed form against 200,000 draws at delta near 0."""
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    lambdas = torch.full((200_000,), -1.0)
    share = float((ecodiff.hard_concrete(lambdas, u, 1e-9) > 0).float().mean())
    assert share == pytest.approx(float(ecodiff.penalty({"a": lambdas[:1]}, "l0")), abs=5e-3)


def test_local_and_global_choice():
    layers = [layer("a", "heads", 2), layer("b", "heads", 2), layer("f", "neurons", 2)]
    lambdas = {
        "a": torch.tensor([1.0, 2.0]),
        "b": torch.tensor([3.0, 4.0]),
        "f": torch.tensor([0.0, 9.0]),
    }
    local = ecodiff.select_units(layers, lambdas, 0.5, "local")
    assert local == {"a": [1], "b": [1], "f": [1]}
    everywhere = ecodiff.select_units(layers, lambdas, 0.5, "global")
    assert everywhere == {"a": [], "b": [0, 1], "f": [1]}


def test_noise_is_replayed_for_a_step_and_differs_between_steps():
    gates = ecodiff.GateNoise({"a": torch.zeros(50)}, 1e-6, 0, "test")
    assert torch.equal(gates(3)["a"], gates(3)["a"])
    assert not torch.equal(gates(3)["a"], gates(4)["a"])


def test_planted_redundancy_is_found():
    """Half of all units give nothing: their columns in the reading layer are almost zero."""
    pipe = tiny.conditional("dit")
    layers = width_layers(pipe.denoiser)
    draw = torch.Generator().manual_seed(0)
    idle = {}
    with torch.no_grad():
        for item in layers:
            idle[item.name] = set(
                torch.randperm(item.units, generator=draw)[: item.units // 2].tolist()
            )
            each = item.channels // item.units
            weight = pipe.denoiser.get_submodule(item.readers[0]).weight
            for unit in idle[item.name]:
                weight[:, unit * each : (unit + 1) * each] *= 1e-3
    around = tiny.task(pipe)
    config = ecodiff.Config(
        ratio=0.5, prompts=8, epochs=20, batch_size=4, steps=3, beta=0.02, learning_rate=0.1
    )
    lambdas, losses = ecodiff.learn(pipe, around, layers, config)
    assert losses[-1] == losses[-1]
    keep = ecodiff.select_units(layers, lambdas, 0.5, "local")
    total = sum(len(units) for units in idle.values())
    found = sum(len(idle[name] - set(units)) for name, units in keep.items())
    assert found >= 0.95 * total

    def error(kept):
        gates = {
            item.name: torch.tensor([float(k in kept[item.name]) for k in range(item.units)])
            for item in layers
        }
        steps = ecodiff.linear_steps(pipe.scheduler, 3)
        rows, noise = around.prompts(8, "held out"), around.noise(8, "held out")
        run = ecodiff.Run(pipe.denoiser, steps, pipe.condition(rows), pipe.nothing(8), 2.0)
        with torch.no_grad():
            dense = run.latents(noise)[-1]
            with gated(pipe.denoiser, layers, gates.get):
                return float((run.latents(noise)[-1] - dense).square().mean())

    chance = {
        item.name: sorted(torch.randperm(item.units, generator=draw)[item.units // 2 :].tolist())
        for item in layers
    }
    assert 20 * error(keep) <= error(chance)


def test_requests():
    model = tiny.dit()
    layers = width_layers(model)
    assert ecodiff.requested_ratio(model, layers, ecodiff.Config(params=1.0)) == 0
    with pytest.raises(ValueError, match="without all heads and neurons"):
        ecodiff.requested_ratio(model, layers, ecodiff.Config(params=0.05))
    with pytest.raises(ValueError, match="give either ratio"):
        ecodiff.requested_ratio(model, layers, ecodiff.Config())
