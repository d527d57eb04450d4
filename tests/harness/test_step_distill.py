"""Step distillation: targets against float64 arithmetic, the oracle student, the ladder."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from methods.harness import step_distill, zoo
from methods.harness.denoise import clean_and_noise, ddim_step, guided, ladder, predict
from methods.harness.pipeline import NoisedBatch, seeded
from tests.harness import tiny


def schedule():
    scheduler = zoo.cosine_scheduler(num_train_timesteps=64)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    return scheduler


@pytest.mark.parametrize(("t", "t_end"), [(40, 20), (7, 3), (15, -1)])
def test_target_and_weight_by_hand(t, t_end):
    scheduler = schedule()
    draw = torch.Generator().manual_seed(0)
    z, z_end = torch.randn(2, 1, 1, 2, 2, generator=draw, dtype=torch.float64)
    found = step_distill.clean_target(scheduler, z, z_end, torch.tensor([t]), torch.tensor([t_end]))
    a, s = (math.sqrt(v) for v in (scheduler.alphas_cumprod[t], 1 - scheduler.alphas_cumprod[t]))
    end = 1.0 if t_end < 0 else float(scheduler.alphas_cumprod[t_end])
    a2, s2 = math.sqrt(end), math.sqrt(1 - end)
    expected = (z_end - s2 / s * z) / (a2 - s2 / s * a)
    assert (found - expected).abs().max() <= 1e-9
    weight = step_distill.truncated_snr(scheduler, torch.tensor([t]))
    assert float(weight) == pytest.approx(max(a * a / (s * s), 1.0), rel=1e-9)


def test_the_target_takes_one_step_where_the_teacher_took_two():
    scheduler = schedule()
    draw = torch.Generator().manual_seed(1)
    z = torch.randn(1, 1, 2, 2, generator=draw, dtype=torch.float64)
    z_end = torch.randn(1, 1, 2, 2, generator=draw, dtype=torch.float64)
    t, end = torch.tensor([47]), torch.tensor([15])
    clean = step_distill.clean_target(scheduler, z, z_end, t, end)
    alpha, sigma = (scheduler.alphas_cumprod[47].sqrt(), (1 - scheduler.alphas_cumprod[47]).sqrt())
    v = (alpha * z - clean) / sigma  # the v whose clean image this is
    assert (ddim_step(scheduler, v, z, t, end) - z_end).abs().max() <= 1e-9


class Oracle(nn.Module):
    """Answers with the v that lands where two steps of the teacher land."""

    def __init__(self, teacher, scheduler, ladder):
        super().__init__()
        self.teacher, self.scheduler = teacher, scheduler
        self.paths = {rung.t: (rung.t, *rung.stops, rung.t_end) for rung in ladder}

    def forward(self, x, timestep, return_dict=False, **condition):
        path = torch.tensor([self.paths[int(t)] for t in timestep]).unbind(dim=1)
        z = x
        with torch.no_grad():
            for now, after in pairwise(path):
                answer = predict(self.teacher, z, now, condition)
                z = ddim_step(self.scheduler, answer, z, now, after)
        clean = step_distill.clean_target(self.scheduler, x, z, timestep, path[-1])
        alpha = self.scheduler.alphas_cumprod[timestep].sqrt().reshape(-1, 1, 1, 1)
        sigma = (1 - self.scheduler.alphas_cumprod[timestep]).sqrt().reshape(-1, 1, 1, 1)
        return ((alpha * x - clean) / sigma,)


def objective(pipe, steps=5, **changes):
    settings = {"probability": 0.0, "original": 0.0} | changes
    return step_distill.StepDistillation(
        pipe.denoiser, pipe.scheduler, steps, pipe.nothing, 0, **settings
    )


def batch(pipe) -> NoisedBatch:
    return next(tiny.task(pipe).training_batches(4))


@pytest.mark.parametrize(("steps", "stride"), [(5, 2), (5, 4), (4, 5)])
def test_an_oracle_has_no_loss(steps, stride):
    pipe = tiny.conditional("dit")
    loss = objective(pipe, steps, stride=stride)
    oracle = Oracle(pipe.denoiser, pipe.scheduler, loss.ladder)
    own = float(loss(pipe.denoiser, batch(pipe)).detach())
    assert float(loss(oracle, batch(pipe))) <= 1e-6 * max(own, 1.0)
    assert own > 1e-4


class Recorded(nn.Module):
    """The model inside, with the timesteps that it was asked at."""

    def __init__(self, model):
        super().__init__()
        self.model, self.times = model, []

    def forward(self, x, timestep, **rest):
        self.times.append(timestep)
        return self.model(x, timestep=timestep, **rest)


def in_float64(kind="dit"):
    pipe = tiny.conditional(kind)
    scheduler = zoo.cosine_scheduler(num_train_timesteps=100)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    pipe = replace(pipe, denoiser=pipe.denoiser.double(), scheduler=scheduler)
    around = batch(pipe)
    return pipe, replace(around, x0=around.x0.double(), noise=around.noise.double())


@pytest.mark.parametrize("w", [1.0, 7.5])
def test_the_loss_is_the_equations_in_float64(w):
    """Eq. 6, 7, 9, 10 and 11 written out for one image at a time."""
    pipe, examples = in_float64()
    student = tiny.dit(seed=3).double()
    settings = {"probability": float(w != 1.0), "w_low": w, "w_high": w, "original": 0.2}
    loss = objective(pipe, **settings)
    seen = Recorded(student)
    found = float(loss(seen, examples).detach())
    middles = {rung.t: (rung.stops[0], rung.t_end) for rung in loss.ladder}
    condition, null = examples.condition["class_labels"], torch.tensor([10])

    def alpha_sigma(t):
        product = 1.0 if t < 0 else float(pipe.scheduler.alphas_cumprod[t])
        return math.sqrt(product), math.sqrt(1 - product)

    def answers(model, z, t, label):
        """(guided, plain) v of one image."""
        with torch.no_grad():
            cond, none = (
                model(z, timestep=torch.tensor([t]), class_labels=c, return_dict=False)[0]
                for c in (label, null)
            )
        return w * cond - (w - 1) * none, cond

    distilled, original = [], []
    for k, t in enumerate(int(t) for t in seen.times[0][: len(examples.x0)]):
        middle, end = middles[t]
        x, noise = examples.x0[k : k + 1], examples.noise[k : k + 1]
        (a, s), (a1, s1), (a2, s2) = (alpha_sigma(i) for i in (t, middle, end))
        z = a * x + s * noise
        v, _ = answers(pipe.denoiser, z, t, condition[k : k + 1])
        z1 = a1 * (a * z - s * v) + s1 * (s * z + a * v)
        v, _ = answers(pipe.denoiser, z1, middle, condition[k : k + 1])
        z2 = a2 * (a1 * z1 - s1 * v) + s2 * (s1 * z1 + a1 * v)
        clean = (z2 - s2 / s * z) / (a2 - s2 / s * a)
        v, plain = answers(student, z, t, condition[k : k + 1])
        error = (a * z - s * v - clean).square().mean()
        distilled.append(max(a * a / (s * s), 1.0) * float(error))
        original.append(float((plain - (a * noise - s * x)).square().mean()))
    value, plain = (sum(part) / len(part) for part in (distilled, original))
    expected = value + 0.2 * (value / plain) * plain
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_guided_oracle_has_no_loss():
    """A student whose every answer lands where the guided teacher lands, in float64."""
    pipe, examples = in_float64()
    w = 5.0
    loss = objective(pipe, probability=1.0, w_low=w, w_high=w)

    class Guided(nn.Module):
        def forward(self, x, timestep, return_dict=False, **condition):
            null = {k: torch.full_like(v, 10) for k, v in condition.items()}
            return (guided(pipe.denoiser, x, timestep, condition, null, w),)

    inner = Oracle(Guided(), pipe.scheduler, loss.ladder)

    class Student(nn.Module):
        """The empty half has to give the same, so that guidance leaves it as it is."""

        def forward(self, x, timestep, return_dict=False, class_labels=None):
            asked = class_labels[len(class_labels) // 2 :].repeat(2)
            return inner(x, timestep, class_labels=asked)

    own = float(loss(pipe.denoiser, examples).detach())
    again = replace(loss, calls=0)
    assert float(again(Student(), examples)) <= 1e-18 < 1e-4 < own


def test_w_is_drawn_once_an_iteration_with_probability_p():
    loss = objective(tiny.conditional("dit"), probability=0.1)
    drawn = [loss.guidance(seeded(k, "w")) for k in range(4000)]
    guided_ones = [w for w in drawn if w != 1.0]
    assert len(guided_ones) / 4000 == pytest.approx(0.1, abs=0.015)
    assert 2.0 <= min(guided_ones) < 2.5 and 13.5 < max(guided_ones) <= 14.0
    assert sum(guided_ones) / len(guided_ones) == pytest.approx(8.0, abs=0.6)
    assert {objective(tiny.conditional("dit")).guidance(seeded(k, "w")) for k in range(50)} == {1.0}


def test_a_guided_iteration_asks_the_student_once():
    """Guided and plain answers come from one pass over both halves."""
    pipe = tiny.conditional("t2i")
    student = Recorded(tiny.text_unet(seed=3))
    objective(pipe, probability=1.0, original=0.2)(student, batch(pipe))
    assert [len(times) for times in student.times] == [8]


def test_the_teacher_steps_as_diffusers_samples_it():
    """Also where the scheduler clips the clean image, as on pixels."""
    for clip in (False, True):
        scheduler = zoo.cosine_scheduler(num_train_timesteps=100, clip_sample=clip)
        scheduler.set_timesteps(10)
        draw = torch.Generator().manual_seed(3)
        z, v = (3 * torch.randn(2, 1, 4, 4, generator=draw) for _ in range(2))
        for t, after in ladder(scheduler, 10):
            expected = scheduler.step(v, t, z, eta=0.0).prev_sample
            found = ddim_step(scheduler, v, z, torch.tensor([t, t]), torch.tensor([after, after]))
            assert (found - expected).abs().max() <= 1e-5 * (1 + expected.abs().max())


def test_the_original_loss_is_rescaled_to_the_distillation_loss():
    """Its share of the value is gamma exactly, whatever the sizes."""
    pipe = tiny.conditional("dit")
    student = tiny.dit(seed=3)
    alone = float(objective(pipe)(student, batch(pipe)).detach())
    both = float(objective(pipe, original=0.2)(student, batch(pipe)).detach())
    assert both == pytest.approx(1.2 * alone, rel=1e-4)


def test_guided_and_plain_losses_differ_and_repeat():
    pipe = tiny.conditional("t2i")
    student = tiny.text_unet(seed=3)
    values = [
        float(objective(pipe, probability=p)(student, batch(pipe)).detach())
        for p in (0.0, 1.0, 1.0)
    ]
    assert values[0] != values[1] and values[1] == values[2]


def test_rungs_and_halvings():
    scheduler = zoo.cosine_scheduler()
    rungs = step_distill.rungs(scheduler, 4)
    assert [(r.t, r.stops, r.t_end) for r in rungs] == [
        (999, (874,), 749),
        (749, (624,), 499),
        (499, (374,), 249),
        (249, (124,), -1),
    ]
    assert step_distill.halvings(16, 4) == [8, 4]
    with pytest.raises(ValueError, match="cannot be reached"):
        step_distill.halvings(25, 8)
    thirds = step_distill.rungs(scheduler, 8, stride=3)
    assert [t.t for t in thirds] == [r.t for r in step_distill.rungs(scheduler, 8)]
    assert thirds[0].stops == (957, 916) and thirds[-1] == step_distill.Rung(124, (82, 41), -1)
    clean, noise = clean_and_noise(
        scheduler, torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.tensor([500])
    )
    assert torch.isfinite(clean).all() and torch.isfinite(noise).all()


def test_a_schedule_that_was_moved_in_part_serves_on_both_devices():
    """add_noise moves one of the schedule's two tensors; meta stands for another device here."""
    scheduler = zoo.cosine_scheduler(num_train_timesteps=100)
    x = torch.zeros(2, 1, 4, 4, device="meta")
    t = torch.tensor([3, 99], device="meta")
    scheduler.add_noise(x, x, t)
    assert (scheduler.alphas_cumprod.device.type, scheduler.final_alpha_cumprod.device.type) == (
        "meta",
        "cpu",
    )
    alpha, sigma = step_distill.alpha_sigma(scheduler, t)
    assert alpha.device.type == sigma.device.type == "meta" and alpha.shape == (2, 1, 1, 1)


def test_a_scheduler_that_clips_is_refused():
    scheduler = zoo.cosine_scheduler(num_train_timesteps=64)
    clipping = type(scheduler).from_config(scheduler.config, clip_sample=True)
    with pytest.raises(ValueError, match="clips predicted images"):
        step_distill.rungs(clipping, 8)
