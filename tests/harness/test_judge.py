"""The judge's error by hand, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from methods.harness.data import ImageSet, Splits
from methods.harness.denoise import predict
from methods.harness.judge import Judge, held_out_judges
from methods.harness.pipeline import NoisedBatch
from tests.harness import tiny


class Line(nn.Module):
    """Answers slope x + offset label."""

    def __init__(self, slope, offset):
        super().__init__()
        self.slope, self.offset = slope, offset

    def forward(self, x, timestep, label, return_dict=False):
        return (self.slope * x + self.offset * label.reshape(-1, 1, 1, 1),)


def batch(value, label):
    x = torch.full((2, 1, 2, 2), value)
    return NoisedBatch(x, x, torch.zeros(2), x, x, {"label": torch.full((2,), label)})


def test_error_by_hand():
    """Guided: slope x + offset (null + w (label - null)), here with null label 1."""
    batches = [batch(1.0, 3.0), batch(2.0, 0.0)]
    judge = Judge.of(Line(1.0, 1.0), batches, (4.0, 1.0), {"label": torch.ones(2)})
    assert [float(a.mean()) for a in judge.wanted] == [1 + 9, 2 + 0]
    assert judge.error(Line(1.0, 1.0)) == 0
    # Differences: 9 - 2 * 9 with slope 1, then nothing, since that batch's request is 0.
    assert judge.error(Line(1.0, 2.0)) == pytest.approx(9.0**2 / 2)
    # Differences: 3 (1 - 4) and 3 (2 - 0).
    assert judge.error(Line(4.0, 1.0)) == pytest.approx((3.0**2 + 6.0**2) / 2)


def test_weight_one_is_the_plain_answer_and_an_unconditional_model_has_no_other():
    for pipe in (tiny.conditional("t2i"), tiny.pipeline()):
        batches = [next(tiny.task(pipe).training_batches(3))]
        weight = 1.0 if pipe.conditioning else 7.0
        judge = Judge.of(pipe.denoiser, batches, (weight,), pipe.nothing(3))
        with torch.no_grad():
            plain = predict(pipe.denoiser, batches[0].x_t, batches[0].t, batches[0].condition)
        assert torch.equal(judge.wanted[0], plain)


def test_every_batch_needs_its_weight():
    with pytest.raises(ValueError, match="1 batches need as many weights, not 2"):
        Judge.of(Line(1.0, 1.0), [batch(1.0, 1.0)], (1.0, 2.0), {"label": torch.ones(2)})


def test_held_out_judges_see_the_reference_split_alone():
    pipe = tiny.conditional("t2i")
    sets = [ImageSet(torch.full((8, 4, 8, 8), level), torch.arange(8)) for level in (0.1, 0.2, 0.3)]
    around = replace(tiny.task(pipe), splits=Splits(*sets))
    judges = held_out_judges(around, 4, 2, 7.5, "judged")
    for judge in judges.values():
        assert len(judge.batches) == 2 and judge.error(pipe.denoiser) == 0
        assert all((batch.x0 == torch.tensor(0.3)).all() for batch in judge.batches)
    assert judges["guided"].weights == (7.5, 7.5)
    assert judges["unguided"].weights == judges["null"].weights == (1.0, 1.0)
    empty = pipe.nothing(4)["encoder_hidden_states"]
    assert torch.equal(judges["null"].batches[0].condition["encoder_hidden_states"], empty)
    for plain, null, guided in zip(
        *(judges[name].wanted for name in ("unguided", "null", "guided")), strict=True
    ):
        assert (null + 7.5 * (plain - null) - guided).abs().max() <= 1e-4
