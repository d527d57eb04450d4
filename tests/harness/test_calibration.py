"""The inputs of layers against the layers themselves, and the order that they are seen in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from methods.harness import calibration, masks
from tests.harness import tiny


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(5, 3),
        nn.Conv2d(4, 3, 3, padding=1),
        nn.Conv2d(4, 3, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2)),
        nn.Conv2d(4, 3, 1),
    ],
)
def test_columns_times_matrix_is_the_layer(layer):
    shape = (2, 7, 5) if isinstance(layer, nn.Linear) else (2, 4, 6, 7)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = layer(x)
        tokens = calibration.columns(layer, x) @ masks.as_matrix(layer.weight).T + layer.bias
    if isinstance(layer, nn.Conv2d):
        expected = expected.movedim(1, -1)
    assert (tokens - expected.reshape(-1, 3)).abs().max() <= 1e-5
    again = masks.as_weight(masks.as_matrix(layer.weight), layer.weight.shape)
    assert torch.equal(again, layer.weight)


def test_inputs_that_cannot_be_unfolded_are_refused():
    with pytest.raises(ValueError, match="groups"):
        calibration.columns(nn.Conv2d(4, 4, 3, groups=2), torch.zeros(1, 4, 5, 5))


def test_stages_follow_execution_and_leave_no_hook():
    pipe = tiny.pipeline()
    layers = masks.sparse_layers(pipe.denoiser)
    batches = calibration.calibration(tiny.task(pipe), 2, 2, "test")
    stages = calibration.in_stages(pipe.denoiser, batches[0], layers, 5)
    names = [name for stage in stages for name in stage]
    assert len(stages) == 5 and sorted(names) == sorted(layers)
    assert names[0].startswith("down_blocks.0") and names[-1].startswith("up_blocks.2")
    seen = []
    calibration.observe(pipe.denoiser, batches, stages[0], lambda name, _: seen.append(name))
    assert seen == 2 * list(stages[0])
    assert not any(module._forward_pre_hooks for module in pipe.denoiser.modules())


def test_a_layer_that_never_runs_is_named():
    pipe = tiny.pipeline()
    batch = calibration.calibration(tiny.task(pipe), 2, 1, "test")[0]
    with pytest.raises(ValueError, match="spare is never run"):
        calibration.in_stages(pipe.denoiser, batch, {"spare": nn.Linear(2, 2)}, 1)


def test_calibration_is_drawn_from_the_task_alone():
    pipe = tiny.pipeline()
    one, two = (calibration.calibration(tiny.task(pipe), 4, 2, "test") for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.x_t, b.x_t) and torch.equal(a.t, b.t)
    assert torch.equal(one[0].x0, one[1].x0) and not torch.equal(one[0].t, one[1].t)
    with pytest.raises(ValueError, match="timesteps"):
        calibration.calibration(tiny.task(pipe), 4, 0, "test")
