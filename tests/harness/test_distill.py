"""Output and feature distillation: hand-computed terms, pairs, and what is left behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from methods import bk_sdm, magnitude
from methods import distill as distill_step
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


def test_a_width_that_was_pruned_is_left_out_and_named():
    teacher = {"a": torch.ones(2, 4), "b": torch.ones(2, 3)}
    student = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}
    pairs = {"a": "a", "b": "b"}
    assert float(distill.feature_loss(teacher, student, pairs, "none")) == 1
    found = distill.fit(teacher, student, pairs)
    assert found.used == {"b": "b"}
    assert found.left_out == {"a": "(4,) in the teacher, (3,) in the student"}


@pytest.mark.parametrize("pairs", [{"a": "a"}, {}])
def test_features_that_all_differ_cost_nothing(pairs):
    teacher, student = {"a": torch.ones(2, 4)}, {"a": torch.zeros(2, 3)}
    assert float(distill.feature_loss(teacher, student, pairs, "none")) == 0
    assert distill.fit(teacher, student, pairs).used == {}


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


def bk_sdm_tiny():
    """The tiny text U-Net, whose last widths are equal, without what BK-SDM-Tiny removes."""
    pipe = tiny.conditional("t2i")
    around = tiny.task(pipe)
    student, _ = bk_sdm.compress(pipe.private_copy(), around, bk_sdm.Config(size="tiny"))
    return pipe, around, student


# Every feature term of the specification but for the stage names, one stage fewer here: a stage by
# its index down, counted from the output up, and before the sampler where the student has none.
TINY_POINTS = {
    "down_blocks.0": "down_blocks.0",
    "down_blocks.1.attentions.1.proj_out": "down_blocks.1.attentions.0.proj_out",
    "up_blocks.1": "up_blocks.0",
    "up_blocks.2": "up_blocks.1",
}


def test_a_dropped_stage_renumbers_the_up_blocks():
    pipe, around, student = bk_sdm_tiny()
    assert distill.feature_pairs(pipe.denoiser, student.denoiser) == TINY_POINTS
    batch = next(around.training_batches(2))
    objective = distill.Distillation(pipe.denoiser)
    objective(student.denoiser, batch)
    assert objective.points == distill.Fit(TINY_POINTS, {})


def test_a_stage_without_transformers_is_compared_at_its_last_layer():
    pipe = tiny.conditional("t2i")
    gone = [f"down_blocks.1.attentions.{index}" for index in range(2)]
    student = depth.drop_lowest_stage(depth.drop(pipe.private_copy(), gone)).denoiser
    pairs = distill.feature_pairs(pipe.denoiser, student)
    assert pairs["down_blocks.1.attentions.1"] == "down_blocks.1.attentions.1"
    objective = distill.Distillation(pipe.denoiser)
    objective(student, next(tiny.task(pipe).training_batches(2)))
    assert objective.points == distill.Fit(pairs, {})


def test_bk_sdm_tiny_learns_from_all_of_its_features():
    _, around, student = bk_sdm_tiny()
    config = distill_step.Config(steps=3, batch_size=4, precision="fp32")
    student, notes = distill_step.compress(student, around, config)
    assert notes["feature_points"] == TINY_POINTS and notes["feature_points_left_out"] == {}
    assert len(notes["losses"]) == 3
    learnt = dict(student.denoiser.named_parameters())
    fresh = dict(bk_sdm_tiny()[2].denoiser.named_parameters())
    assert learnt.keys() == fresh.keys()
    assert not any(torch.equal(learnt[name], fresh[name]) for name in fresh)


def test_notes_tell_what_was_compared():
    pipe = tiny.conditional("t2i")
    around = tiny.task(pipe)
    narrow, _ = magnitude.compress(pipe.private_copy(), around, magnitude.Config(macs=0.4))
    config = distill_step.Config(steps=1, batch_size=2, precision="fp32")
    with_features, notes = distill_step.compress(narrow.private_copy(), around, config)
    pairs = distill.feature_pairs(pipe.denoiser, narrow.denoiser)
    assert notes["feature_points"] == {} and notes["feature_points_left_out"].keys() == set(pairs)
    without, notes = distill_step.compress(narrow, around, replace(config, feature_weight=0.0))
    assert notes["feature_points"] == {} == notes["feature_points_left_out"]
    learned = dict(without.denoiser.named_parameters())
    for name, parameter in with_features.denoiser.named_parameters():
        assert torch.equal(parameter, learned[name]), name  # answers are all there is to learn


def test_a_stage_whose_width_was_pruned_is_noted():
    pipe = tiny.pipeline("many_heads")
    around = tiny.task(pipe)
    narrow, _ = magnitude.compress(pipe.private_copy(), around, magnitude.Config(macs=0.7))
    config = distill_step.Config(steps=1, batch_size=2, precision="fp32")
    _, notes = distill_step.compress(narrow, around, config)
    used, left_out = notes["feature_points"], notes["feature_points_left_out"]
    assert used and left_out
    assert (
        used.keys() | left_out.keys()
        == distill.feature_pairs(pipe.denoiser, narrow.denoiser).keys()
    )
    assert all("in the teacher" in reason for reason in left_out.values())
