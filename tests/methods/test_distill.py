"""Distillation as a recipe step: what is trained, on which loss, from which teacher."""

from __future__ import annotations

import copy

import pytest
import torch

from methods import distill
from methods.harness.depth import drop, removable
from methods.harness.distill import Distillation
from methods.harness.train import Recipe, retrain
from tests.harness import tiny


def pruned(kind):
    """A dense pipeline, and one that lacks two of its layers."""
    base = tiny.conditional(kind)
    names = [unit.name for unit in removable(base.denoiser)][1:3]
    return base, drop(base.private_copy(), names)


@pytest.mark.parametrize("kind", ["t2i", "dit"])
def test_a_run_is_retraining_on_the_weighted_terms(kind):
    """Every weight has a value of its own, so that none can stand in another's place."""
    base, student = pruned(kind)
    model = copy.deepcopy(student.denoiser)
    config = distill.Config(
        steps=3,
        batch_size=4,
        learning_rate=1e-2,
        task_weight=0.5,
        output_weight=2.0,
        feature_weight=3.0,
        normalise="squared",
        ema_decay=0.6,
        precision="fp32",
    )
    tuned, notes = distill.compress(student, tiny.task(base), config)

    recipe = Recipe(
        steps=3, batch_size=4, learning_rate=1e-2, warmup=1, ema_decay=0.6, precision="fp32"
    )
    loss = Distillation(base.denoiser, 0.5, 2.0, 3.0, "squared")
    losses = retrain(model, tiny.task(base).training_batches(4), recipe, loss)
    assert notes["losses"] == losses
    expected, found = model.state_dict(), tuned.denoiser.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_feature_points_are_those_of_the_layers_that_are_left():
    base, student = pruned("dit")
    config = distill.Config(steps=1, batch_size=2, precision="fp32")
    _, notes = distill.compress(student, tiny.task(base), config)
    left = [f"transformer_blocks.{index}" for index in (0, 3, 4, 5)]
    assert notes["feature_points"] == {name: name for name in left}
