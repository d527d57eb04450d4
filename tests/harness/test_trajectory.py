"""Sampling runs as linear steps, and gradients that cost the memory of one step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from methods.ecodiff import GateNoise
from methods.harness import trajectory, width, zoo
from methods.harness.sample import sample
from tests.harness import tiny


def setting(kind, steps):
    pipe = tiny.conditional(kind)
    pipe.denoiser.requires_grad_(False)
    scheduler = FlowMatchEulerDiscreteScheduler() if kind == "mmdit" else pipe.scheduler
    run = trajectory.Run(
        pipe.denoiser,
        trajectory.linear_steps(scheduler, steps),
        pipe.condition(torch.tensor([1, 2])),
        pipe.nothing(2),
        3.0,
    )
    layers = width.width_layers(pipe.denoiser)
    lambdas = {layer.name: torch.full((layer.units,), 1.0, requires_grad=True) for layer in layers}
    noise = tiny.task(pipe).noise(2, "start")
    return pipe, run, layers, lambdas, GateNoise(lambdas, 1e-6, 0, "test"), noise


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_linear_steps_are_diffusers_ddim(prediction):
    scheduler = zoo.cosine_scheduler(num_train_timesteps=100, prediction_type=prediction)
    steps = trajectory.linear_steps(scheduler, 7)
    scheduler.set_timesteps(7)
    draw = torch.Generator().manual_seed(0)
    x, out = torch.randn(2, 1, 4, 4, generator=draw), torch.randn(2, 1, 4, 4, generator=draw)
    for step, t in zip(steps, scheduler.timesteps, strict=True):
        expected = scheduler.step(out, t, x, eta=0.0).prev_sample
        assert (step.keep * x + step.add * out - expected).abs().max() <= 1e-4 * (
            1 + expected.abs().max()
        )


def test_a_run_is_what_the_sampler_draws():
    pipe, run, _, _, _, noise = setting("dit", 5)
    images = sample(pipe, noise, 5, rows=torch.tensor([1, 2]), guidance=3.0, precision="fp32")
    assert (run.latents(noise)[-1].clamp(-1, 1) - images).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", ["t2i", "dit", "mmdit"])
def test_checkpointed_gradients_are_those_of_the_whole_graph(kind):
    """With stochastic gates: the same noise is drawn when a step is run again."""
    _, run, layers, lambdas, gates, noise = setting(kind, 4)
    target = torch.zeros_like(noise)

    def loss(z):
        return (z - target).square().mean()

    whole = loss(run.latents(noise, layers, gates)[-1])
    whole.backward()
    expected = {name: values.grad.clone() for name, values in lambdas.items()}
    for values in lambdas.values():
        values.grad = None
    value = trajectory.checkpointed_backward(run, noise, layers, gates, loss)
    assert value == pytest.approx(float(whole.detach()), rel=1e-6)
    assert any(gradient.abs().sum() > 0 for gradient in expected.values())
    for name, values in lambdas.items():
        scale = expected[name].norm().clamp_min(1e-12)
        assert (values.grad - expected[name]).norm() <= 1e-5 * scale, name


def test_gates_of_flux_have_the_gradient_of_the_whole_graph():
    """Heads, neurons and modulation outputs; FLUX counts time from 0 to 1 and takes its guidance
    as an input, so one call is one step."""
    model = tiny.flux().requires_grad_(False)
    inputs = tiny.flux_inputs()
    start = inputs.pop("hidden_states")
    condition = {k: v for k, v in inputs.items() if k not in ("timestep", "return_dict")}
    steps = [
        replace(step, t=step.t / 1000)
        for step in trajectory.linear_steps(FlowMatchEulerDiscreteScheduler(), 3)
    ]
    run = trajectory.Run(model, steps, condition, {}, 1.0)
    layers = width.width_layers(model)
    assert {layer.kind for layer in layers} == {"heads", "neurons", "modulation"}
    lambdas = {layer.name: torch.ones(layer.units, requires_grad=True) for layer in layers}
    gates = GateNoise(lambdas, 1e-6, 0, "test")

    def loss(z):
        return z.square().mean()

    names = list(lambdas)
    whole = loss(run.latents(start, layers, gates)[-1])
    expected = torch.autograd.grad(whole, [lambdas[name] for name in names])
    trajectory.checkpointed_backward(run, start, layers, gates, loss)
    for name, gradient in zip(names, expected, strict=True):
        assert gradient.abs().sum() > 0, name
        assert (lambdas[name].grad - gradient).norm() <= 1e-5 * gradient.norm(), name


def held_bytes(kind, steps, checkpointed=True):
    """Most bytes that autograd holds at once, with gates that are random in every step."""
    _, run, layers, lambdas, gates, noise = setting(kind, steps)
    drawn = gates(0)[layers[0].name]
    assert not torch.equal(drawn, gates(1)[layers[0].name]) and drawn.unique().numel() > 2
    with trajectory.held_by_autograd(run.model) as held:
        if checkpointed:
            trajectory.checkpointed_backward(run, noise, layers, gates, lambda z: z.square().mean())
        else:
            run.latents(noise, layers, gates)[-1].square().mean().backward()
    assert all(values.grad.abs().sum() > 0 for values in lambdas.values())
    assert held.now == 0, "a graph was not freed"
    return held.most


@pytest.mark.parametrize("kind", ["dit", "t2i"])
def test_held_memory_does_not_grow_with_the_steps(kind):
    """Nor does what is measured stay still by itself: the whole graph grows with the steps."""
    assert held_bytes(kind, 16) < 1.05 * held_bytes(kind, 2)
    assert held_bytes(kind, 16, checkpointed=False) > 7 * held_bytes(kind, 2, checkpointed=False)


def test_held_bytes_by_hand():
    """exp saves its result of 5 floats, the product both factors, one of which is the same."""
    x = torch.ones(5, requires_grad=True)
    with trajectory.held_by_autograd(torch.nn.Linear(1, 1)) as held:
        y = x.exp()
        assert held.now == 20
        z = y * torch.ones(5, requires_grad=True)
        assert held.now == 40
        z.sum().backward()
        del z
        assert held.now == 0
    assert held.most == 40


def test_multistep_samplers_are_refused():
    with pytest.raises(ValueError, match="DPMSolverMultistepScheduler is not linear"):
        trajectory.linear_steps(DPMSolverMultistepScheduler(), 4)
