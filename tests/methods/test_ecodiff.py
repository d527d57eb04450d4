"""EcoDiff's gates, regularisers and choice, by hand; planted redundancy is found."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from methods import ecodiff
from methods.harness.data import ImageSet, Splits
from methods.harness.denoise import predict
from methods.harness.pipeline import Pipeline, Task
from methods.harness.width import WidthLayer, closed, gated, keep_units, width_layers
from tests.harness import tiny


def layer(name, kind, units):
    return WidthLayer(name, kind, units, name, units, ())


def test_gate_by_hand():
    found = ecodiff.hard_concrete(torch.tensor([3.0, -9.0]), torch.tensor([0.25, 0.5]), 0.5)
    logit = math.log(0.75) - math.log(1.25) + 3.0
    expected = 1.2 / (1 + math.exp(-logit / 0.83)) - 0.1
    assert found.tolist() == pytest.approx([min(expected, 1.0), 0.0], abs=1e-6)


def test_penalties_by_hand():
    layers = [layer("a", "heads", 2), layer("b", "heads", 1), layer("f", "neurons", 2)]
    lambdas = {
        "a": torch.tensor([1.0, -2.0]),
        "b": torch.tensor([3.0]),
        "f": torch.tensor([-4.0, 5.0]),
    }
    values = (1.0, -2.0, 3.0, -4.0, 5.0)
    # Heads: mean over two layers of 3/2 and 3; neurons: one layer of 9/2.
    assert float(ecodiff.penalty(layers, lambdas, "l1")) == pytest.approx(2.25 + 4.5)
    assert float(ecodiff.penalty(layers[:2], lambdas, "l1")) == pytest.approx(2.25)
    a, minus, b, c, d = (1 / (1 + math.exp(-(0.4 * v + 1))) for v in values)
    expected = ((a + minus) / 2 + b) / 2 + (c + d) / 2
    assert float(ecodiff.penalty(layers, lambdas, "l1_sigmoid")) == pytest.approx(expected)
    shift = 0.83 * math.log(0.1 / 1.1)
    expected = sum(1 / (1 + math.exp(-(v - shift))) for v in values)
    assert float(ecodiff.penalty(layers, lambdas, "l0")) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("regulariser", "slope"),
    [
        ("l1", 1 / 4),  # sign / (layers of the kind * units)
        ("l1_sigmoid", 0.4 * math.exp(-1.4) / (1 + math.exp(-1.4)) ** 2 / 4),
        ("l0", None),
    ],
)
def test_slopes_of_the_penalties_by_hand(regulariser, slope):
    """At lambda = 1 in one of two layers of two heads."""
    layers = [layer("a", "heads", 2), layer("b", "heads", 2)]
    lambdas = {name: torch.ones(2, requires_grad=True) for name in ("a", "b")}
    ecodiff.penalty(layers, lambdas, regulariser).backward()
    if slope is None:  # s (1 - s), where s is the chance that the gate is open
        s = 1 / (1 + math.exp(-(1.0 - 0.83 * math.log(0.1 / 1.1))))
        slope = s * (1 - s)
    assert lambdas["a"].grad.tolist() == pytest.approx([slope, slope], rel=1e-5)


def test_expected_l0_is_the_chance_of_an_open_gate():
    """P(gate > 0) in closed form against 200,000 draws at delta near 0."""
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    lambdas = torch.full((200_000,), -1.0)
    share = float((ecodiff.hard_concrete(lambdas, u, 1e-9) > 0).float().mean())
    assert share == pytest.approx(
        float(ecodiff.penalty([layer("a", "heads", 1)], {"a": lambdas[:1]}, "l0")), abs=5e-3
    )


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
    assert len(losses) == 20 * 2 and all(map(math.isfinite, losses))
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
    assert losses[-1] < error(chance), "the gates learn to spare what the image needs"


@pytest.mark.parametrize("kind", ["t2i", "dit", "mmdit"])
def test_single_answers_have_the_gradients_of_their_sum_over_the_steps(kind):
    """One graph over all steps, guidance written out, against one step at a time."""
    pipe = tiny.conditional(kind)
    pipe.denoiser.requires_grad_(False)
    layers = width_layers(pipe.denoiser)
    lambdas = {item.name: torch.ones(item.units, requires_grad=True) for item in layers}
    gates = ecodiff.GateNoise(lambdas, 1e-6, 0, "test")
    condition, null = pipe.condition(torch.tensor([1, 2])), pipe.nothing(2)
    run = ecodiff.Run(pipe.denoiser, ecodiff.linear_steps(pipe.scheduler, 3), condition, null, 2.0)
    with torch.no_grad():
        dense = run.latents(tiny.task(pipe).noise(2, "start"))

    def answer(step, x):
        t = torch.full((2,), int(step.t))
        one, nothing = (predict(pipe.denoiser, x, t, asked) for asked in (condition, null))
        return nothing + 2.0 * (one - nothing)

    errors = []
    for index, step in enumerate(run.steps):
        drawn = gates(index)
        with gated(pipe.denoiser, layers, drawn.get):
            found = answer(step, dense[index])
        errors.append((found - answer(step, dense[index])).square().mean())
    whole = sum(errors) / 3
    expected = torch.autograd.grad(whole, list(lambdas.values()))
    value = ecodiff.step_backward(run, dense, layers, gates)
    assert value == pytest.approx(float(whole.detach()), rel=1e-5)
    for (name, found), gradient in zip(lambdas.items(), expected, strict=True):
        assert gradient.abs().sum() > 0, name
        assert (found.grad - gradient).norm() <= 1e-4 * gradient.norm(), name


def settled(kind, **changes):
    """A short run on a tiny model: (dense pipeline, pruned one, notes)."""
    pipe = tiny.conditional(kind)
    if kind == "mmdit":
        pipe = replace(pipe, scheduler=FlowMatchEulerDiscreteScheduler())
    config = ecodiff.Config(prompts=4, epochs=2, batch_size=2, steps=3, **changes)
    return pipe, *ecodiff.compress(pipe.private_copy(), tiny.task(pipe), config)


@pytest.mark.parametrize("objective", ["trajectory", "step"])
def test_a_model_of_stable_diffusion_3s_class_is_learned_on_and_cut(objective):
    """Euler steps of flow matching from noise to latents, joint attention of image and text."""
    pipe, small, notes = settled("mmdit", ratio=0.5, objective=objective)
    layers = width_layers(pipe.denoiser)
    assert {item.kind for item in layers} == {"heads", "neurons"}
    assert notes["kept"] == {item.name: item.units // 2 for item in layers}
    assert {item.name: item.units for item in width_layers(small.denoiser)} == notes["kept"]
    assert all(map(math.isfinite, notes["losses"])) and min(notes["losses"]) > 0

    keep = {}
    for item in layers:
        ranks = torch.tensor(notes["lambda"][item.name])
        assert (ranks != 3.0).all(), f"{item.name}: lambda did not move"
        keep[item.name] = small.edits[-1]["keep"][item.name]
        gone = sorted(set(range(item.units)) - set(keep[item.name]))
        assert ranks[keep[item.name]].min() >= ranks[gone].max()
    steps = ecodiff.linear_steps(pipe.scheduler, 3)
    rows, noise = torch.tensor([1, 2]), tiny.task(pipe).noise(2, "held out")
    latents = [
        ecodiff.Run(p.denoiser, steps, p.condition(rows), p.nothing(2), 2.0) for p in (pipe, small)
    ]
    with torch.no_grad():
        last = latents[1].latents(noise)[-1]
        with gated(pipe.denoiser, layers, closed(layers, keep, "cpu").get):
            masked = latents[0].latents(noise)[-1]
    assert (last - masked).abs().max() <= 1e-4 * masked.abs().max()


@pytest.mark.parametrize("dynamic", [False, True])
def test_flux_is_refused_by_name_before_anything_is_computed(dynamic):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic)
    pipe = Pipeline(tiny.flux(), scheduler, 3)
    around = Task("tiny", pipe, Splits(*[ImageSet(torch.zeros(1, 3, 8, 8), torch.zeros(1))] * 3))
    before = {name: tensor.clone() for name, tensor in pipe.denoiser.state_dict().items()}
    with pytest.raises(ValueError, match=r"FluxTransformer2DModel: .* packed .* shift"):
        ecodiff.compress(pipe, around, ecodiff.Config(ratio=0.2))
    after = pipe.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad for p in pipe.denoiser.parameters())


def test_requests():
    model = tiny.dit()
    layers = width_layers(model)
    lambdas = {n.name: torch.zeros(n.units) for n in layers}
    assert ecodiff.choose(model, layers, lambdas, ecodiff.Config(params=1.0))[0] == 0
    with pytest.raises(ValueError, match="without all heads and neurons"):
        ecodiff.check_request(model, layers, ecodiff.Config(params=0.05))
    with pytest.raises(ValueError, match="give either ratio"):
        ecodiff.check_request(model, layers, ecodiff.Config())
    with pytest.raises(ValueError, match="round_to must be at least 1"):
        ecodiff.check_request(model, layers, ecodiff.Config(ratio=0.5, round_to=0))
    with pytest.raises(ValueError, match="no attention head or feed-forward neuron left"):
        ecodiff.check_request(model, (), ecodiff.Config(ratio=0.5))


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("params", [0.95, 0.8, 0.7])
def test_a_budget_is_met_and_no_smaller_ratio_meets_it(scope, round_to, params):
    """Whatever the ranking is: global ranks remove unlike numbers of heads from layers."""
    pipe = tiny.conditional("t2i")
    layers = width_layers(pipe.denoiser)
    draw = torch.Generator().manual_seed(1)
    lambdas = {n.name: torch.randn(n.units, generator=draw) for n in layers}
    config = ecodiff.Config(params=params, scope=scope, round_to=round_to)
    ratio, keep = ecodiff.choose(pipe.denoiser, layers, lambdas, config)
    total = sum(p.numel() for p in pipe.denoiser.parameters())
    small = keep_units(pipe.private_copy(), keep)
    assert sum(p.numel() for p in small.denoiser.parameters()) <= params * total
    less = ecodiff.select_units(layers, lambdas, ratio - 0.001, scope, round_to)
    larger = keep_units(pipe.private_copy(), less)
    assert sum(p.numel() for p in larger.denoiser.parameters()) > params * total
    if round_to == 8:
        for item in layers:
            count = len(keep[item.name])
            assert item.kind == "heads" or count % 8 == 0 or count == item.units


def test_neurons_are_rounded_up_and_heads_are_not():
    layers = [layer("f", "neurons", 10), layer("a", "heads", 4)]
    lambdas = {"f": torch.arange(10.0), "a": torch.arange(4.0)}
    keep = ecodiff.select_units(layers, lambdas, 0.5, "local", round_to=4)
    assert keep == {"f": [2, 3, 4, 5, 6, 7, 8, 9], "a": [2, 3]}
    keep = ecodiff.select_units(layers, lambdas, 0.1, "local", round_to=4)
    assert keep == {"f": list(range(10)), "a": list(range(4))}


def test_learning_rates_by_kind():
    config = ecodiff.Config(learning_rate=0.5, neuron_rate=0.1)
    rates = [
        ecodiff.learning_rate(layer("x", kind, 1), config)
        for kind in ("heads", "neurons", "modulation")
    ]
    assert rates == [0.5, 0.1, 0.5]


@pytest.mark.parametrize(("objective", "calls"), [("trajectory", 2), ("step", 2)])
def test_the_dense_model_runs_once_however_many_epochs(objective, calls):
    """Denoiser calls: one dense run, then per epoch the gated run and its replay, or, step by
    step, the dense answer and the gated one."""
    pipe = tiny.conditional("dit")
    layers = width_layers(pipe.denoiser)
    seen = []
    pipe.denoiser.register_forward_pre_hook(lambda *_: seen.append(1))
    config = ecodiff.Config(
        ratio=0.5, prompts=4, epochs=3, batch_size=2, steps=5, objective=objective
    )
    ecodiff.learn(pipe, tiny.task(pipe), layers, config)
    assert len(seen) == 2 * 5 * (1 + calls * 3)
