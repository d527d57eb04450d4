"""Step distillation: targets against float64 arithmetic, the oracle student, the ladder."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from methods.harness import step_distill, zoo
from methods.harness.denoise import clean_and_noise, ddim_step, predict
from methods.harness.pipeline import NoisedBatch
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
