"""The fixed lists of BK-SDM: sizes of the published models, and what the student computes."""

from __future__ import annotations

import pytest
import torch

from methods import bk_sdm
from methods.harness import zoo
from methods.harness.denoise import predict
from methods.harness.pipeline import Pipeline
from tests.harness import tiny


def params(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("dense", "size", "expected"),
    [
        ("sd15", "base", 579_384_964),
        ("sd15", "small", 482_346_884),
        ("sd15", "tiny", 323_384_964),
        ("sd21", "base", 583_480_964),
        ("sd21", "small", 485_787_524),
        ("sd21", "tiny", 326_825_604),
    ],
)
def test_published_sizes_come_out_of_the_removal(dense, size, expected):
    model, _ = zoo.ARCHITECTURES[dense].on_meta()
    pipe = Pipeline(model, zoo.ddpm_scheduler())
    pipe, _ = bk_sdm.compress(pipe, None, bk_sdm.Config(size=size))
    assert params(pipe.denoiser) == expected


def renamed(name):
    """A name of the one-layer student, from the teacher's: up layer 2 becomes layer 1."""
    parts = name.split(".")
    if parts[0] == "up_blocks" and parts[2] in ("resnets", "attentions") and parts[3] == "2":
        parts[3] = "1"
    return ".".join(parts)


def test_the_student_is_one_built_small_with_copied_weights():
    pipe = tiny.conditional("t2i")
    student, _ = bk_sdm.compress(pipe.private_copy(), tiny.task(pipe), bk_sdm.Config())
    small = tiny.text_unet(seed=9, layers=1)
    weights = {renamed(n): tensor for n, tensor in student.denoiser.state_dict().items()}
    small.load_state_dict(weights, strict=True)
    batch = next(tiny.task(pipe).training_batches(3))
    with torch.no_grad():
        found = predict(student.denoiser, batch.x_t, batch.t, batch.condition)
        expected = predict(small, batch.x_t, batch.t, batch.condition)
    assert (found - expected).abs().max() <= 1e-5


def test_other_layer_counts_and_models_are_refused():
    with pytest.raises(ValueError, match="has 1 layers"):
        bk_sdm.removed_pairs(tiny.text_unet(layers=1))
    with pytest.raises(ValueError, match="not DiTTransformer2DModel"):
        bk_sdm.removed_pairs(tiny.dit())
