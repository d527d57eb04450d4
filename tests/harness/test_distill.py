"""Output and feature distillation: hand-computed terms, pairs, and what is left behind."""

from __future__ import annotations

import pytest
import torch

from methods.harness import depth, distill
from methods.harness.denoise import predict
from tests.harness import tiny


def test_feature_terms_by_hand():
    teacher = {"a": torch.tensor([2.0, 2.0]), "b": torch.tensor([4.0, 0.0])}
    student = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([4.0, 4.0])}
    pairs = {"a": "a", "b": "b"}
    losses = {
        kind: float(distill.feature_loss(teacher, student, pairs, kind))
        for kind in distill.NORMALISE
    }
    # Mean squared errors 1 and 8; mean squares of the teacher 4 and 8.
    assert losses["none"] == pytest.approx(9.0)
    assert losses["squared"] == pytest.approx(1 / 4 + 8 / 8)
    assert losses["norm"] == pytest.approx(1 / 2 + 8 / 8**0.5)


def test_scaling_a_stage_leaves_the_normalised_loss():
    draw = torch.Generator().manual_seed(0)
    teacher = {"a": torch.randn(3, 4, generator=draw)}
    student = {"a": torch.randn(3, 4, generator=draw)}
    pairs = {"a": "a"}
    scaled = [{"a": 7 * values["a"]} for values in (teacher, student)]
    plain = distill.feature_loss(teacher, student, pairs, "squared")
    assert torch.allclose(distill.feature_loss(*scaled, pairs, "squared"), plain, rtol=1e-5)
    assert distill.feature_loss(*scaled, pairs, "none") > plain


def test_a_width_that_was_pruned_is_left_out():
    teacher, student = {"a": torch.ones(2, 4)}, {"a": torch.zeros(2, 3)}
    assert float(distill.feature_loss(teacher, student, {"a": "a"}, "none")) == 0


@pytest.mark.parametrize("kind", ["t2i", "dit"])
def test_the_dense_model_has_nothing_to_learn_from_itself(kind):
    pipe = tiny.conditional(kind)
    batch = next(tiny.task(pipe).training_batches(2))
    student = pipe.private_copy().denoiser
    loss = distill.Distillation(pipe.denoiser, task_weight=0.0)(student, batch)
    assert float(loss.detach()) <= 1e-10


@pytest.mark.parametrize("kind", ["t2i", "dit"])
def test_the_whole_objective_is_the_sum_of_its_terms(kind):
    pipe = tiny.conditional(kind)
    around = tiny.task(pipe)
    batch = next(around.training_batches(2))
    names = [unit.name for unit in depth.removable(pipe.denoiser)][:2]
    student = depth.drop(pipe.private_copy(), names).denoiser
    total = distill.Distillation(pipe.denoiser, 0.5, 2.0, 3.0)(student, batch)
    pairs = distill.feature_pairs(pipe.denoiser, student)
    with torch.no_grad(), distill.recorded(pipe.denoiser, list(pairs)) as theirs:
        target = predict(pipe.denoiser, batch.x_t, batch.t, batch.condition)
    with torch.no_grad(), distill.recorded(student, list(pairs.values())) as ours:
        answer = predict(student, batch.x_t, batch.t, batch.condition)
    features = sum((theirs[a] - ours[b]).square().mean() for a, b in pairs.items())
    expected = (
        0.5 * (answer - batch.target).square().mean()
        + 2.0 * (answer - target).square().mean()
        + 3.0 * features
    )
    assert float(total.detach()) == pytest.approx(float(expected), rel=1e-5)
    for model in (pipe.denoiser, student):
        assert not any(module._forward_hooks for module in model.modules())


def test_a_dropped_stage_renumbers_the_up_blocks():
    pipe = tiny.conditional("t2i")
    student = depth.drop_lowest_stage(pipe.private_copy()).denoiser
    assert distill.feature_pairs(pipe.denoiser, student) == {
        "down_blocks.0": "down_blocks.0",
        "down_blocks.1": "down_blocks.1",
        "up_blocks.1": "up_blocks.0",
        "up_blocks.2": "up_blocks.1",
    }
