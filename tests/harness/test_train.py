"""The training loop: schedules by hand, resuming, failing loudly."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from methods.harness import train
from methods.harness.pipeline import noised_batches

from . import tiny


def batches(pipe, start=0, seed=0):
    data = tiny.task(pipe).splits.train
    return noised_batches(pipe, data, 8, seed, start)


RECIPE = train.Recipe(steps=6, batch_size=8, warmup=2, precision="fp32", learning_rate=1e-3)


def run(model, pipe, recipe, **more):
    return list(train.train(model, batches(pipe, more.get("start", 0)), recipe, **more))


def test_learning_rate_by_hand():
    recipe = train.Recipe(steps=100, learning_rate=1.0, warmup=4, decay_from=0.5)
    rates = [train.learning_rate(recipe, step) for step in (0, 1, 3, 49, 75, 100)]
    assert rates == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.5, 0.0], abs=1e-9)


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does():
    pipe = tiny.pipeline("one_head")
    whole, parts = copy.deepcopy(pipe.denoiser), copy.deepcopy(pipe.denoiser)
    full = run(whole, pipe, RECIPE)

    stopped = list(itertools.islice(train.train(parts, batches(pipe), RECIPE), 3))[-1]
    moments = {k: v.clone() for k, v in train.optimizer_tensors(stopped.optimizer).items()}
    average = {k: v.clone() for k, v in stopped.ema.items()}
    resumed = copy.deepcopy(pipe.denoiser)
    train.load_weights(resumed, train.weights(parts))
    rest = run(resumed, pipe, RECIPE, start=3, optimizer_state=moments, ema=average)

    assert [step.index for step in rest] == [4, 5, 6]
    assert [s.loss for s in rest] == pytest.approx([s.loss for s in full[3:]], abs=1e-6)
    for name, tensor in full[-1].ema.items():
        assert (rest[-1].ema[name] - tensor).abs().max() <= 1e-6, name
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert (a - b).abs().max() <= 1e-6, name


def test_the_average_is_the_recurrence():
    pipe = tiny.pipeline("one_head")
    model = copy.deepcopy(pipe.denoiser)
    name = "conv_in.weight"
    expected = dict(model.named_parameters())[name].detach().clone()
    for step in train.train(model, batches(pipe), RECIPE):
        decay = min(RECIPE.ema_decay, step.index / (9 + step.index))
        current = dict(model.named_parameters())[name].detach()
        expected = decay * expected + (1 - decay) * current
        assert (step.ema[name] - expected).abs().max() <= 1e-6


def test_batches_are_a_permutation_an_epoch_and_repeatable():
    pipe = tiny.pipeline("one_head")
    stream = batches(pipe)
    first = [next(stream) for _ in range(8)]
    seen = torch.cat([batch.x0 for batch in first]).flatten(1)
    assert len(torch.unique(seen, dim=0)) == 64
    again = next(batches(pipe, start=5))
    assert torch.equal(again.x_t, first[5].x_t)
    assert torch.equal(again.t, first[5].t)
    assert not torch.equal(next(batches(pipe, seed=1)).noise, first[0].noise)


def test_timesteps_are_stratified():
    pipe = tiny.pipeline("one_head")
    t = next(batches(pipe)).t
    assert sorted((t * 8 // 1000).tolist()) == list(range(8))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_targets_follow_the_prediction_type(kind):
    from methods.harness import zoo
    from methods.harness.pipeline import noised

    scheduler = zoo.ddpm_scheduler(prediction_type=kind)
    x0, noise = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    t = torch.tensor([3, 700])
    alpha = scheduler.alphas_cumprod[t].sqrt()[:, None, None, None]
    sigma = (1 - scheduler.alphas_cumprod[t]).sqrt()[:, None, None, None]
    batch = noised(scheduler, x0, noise, t)
    expected = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x0, "sample": x0}
    assert (batch.target - expected[kind]).abs().max() <= 1e-6
    assert (batch.x_t - (alpha * x0 + sigma * noise)).abs().max() <= 1e-6


def test_a_loss_that_explodes_stops_the_run():
    pipe = tiny.pipeline("one_head")

    def bad(model, batch):
        return next(model.parameters()).sum() * math.nan

    with pytest.raises(FloatingPointError, match="optimizer step 1"):
        list(train.train(copy.deepcopy(pipe.denoiser), batches(pipe), RECIPE, bad))


def test_bad_recipes_and_names_are_refused():
    with pytest.raises(ValueError, match="precision must be"):
        train.Recipe(steps=1, precision="fp8")
    with pytest.raises(ValueError, match="steps must be"):
        train.Recipe(steps=-1)
    with pytest.raises(ValueError, match="names differ, first: bias"):
        train.load_weights(nn.Linear(2, 2), {"weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="larger than the 64 images"):
        pipe = tiny.pipeline("one_head")
        next(tiny.task(pipe).training_batches(65))


def test_retrain_leaves_a_clean_model_in_eval_mode():
    pipe = tiny.pipeline("one_head")
    model = copy.deepcopy(pipe.denoiser)
    losses = train.retrain(model, batches(pipe), RECIPE)
    assert len(losses) == 6
    assert not model.training
    assert all(p.grad is None and p.is_contiguous() for p in model.parameters())
