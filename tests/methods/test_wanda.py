"""Wanda's scores and masks against loops over outputs, columns and tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from methods import wanda
from methods.harness import calibration
from methods.wanda import Config, compress
from tests.harness import tiny


def inputs_of(pipe, around, name, config):
    """What one layer of the dense model sees on the calibration batches."""
    seen = []
    layer = pipe.denoiser.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for batch in calibration.calibration(around, config.batch_size, config.timesteps, "wanda"):
        with torch.no_grad():
            pipe.denoiser(batch.x_t, batch.t)
    handle.remove()
    return torch.cat(seen)


def score_by_loops(layer, x, samples):
    """|W| * sqrt(sum of squares / samples), each weight's inputs picked out of the padded image."""
    out = torch.zeros(layer.weight.shape, dtype=torch.float64)
    if isinstance(layer, nn.Linear):
        for j in range(layer.in_features):
            out[:, j] = (x[..., j].double().square().sum() / samples).sqrt()
    else:
        pad, step = layer.padding[0], layer.stride[0]
        x = nn.functional.pad(x.double(), (pad, pad, pad, pad))
        height = (x.shape[2] - layer.kernel_size[0]) // step + 1
        for c in range(layer.in_channels):
            for a in range(layer.kernel_size[0]):
                for b in range(layer.kernel_size[1]):
                    window = x[:, c, a : a + step * height : step, b : b + step * height : step]
                    out[:, c, a, b] = (window.square().sum() / samples).sqrt()
    return out * layer.weight.detach().double().abs()


LAYERS = (
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.downsamplers.0.conv",
    "down_blocks.0.resnets.0.time_emb_proj",
    "mid_block.attentions.0.to_q",
    "up_blocks.2.resnets.0.conv_shortcut",
)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("pattern", ["unstructured", "n:m"])
def test_masks_are_those_of_loops(name, pattern):
    base = tiny.pipeline()
    around = tiny.task(base)
    config = Config(ratio=0.4, pattern=pattern, batch_size=3, timesteps=2, stages=1)
    layer = base.denoiser.get_submodule(name)
    score = score_by_loops(layer, inputs_of(base, around, name, config), 6)
    pruned, notes = compress(base.private_copy(), around, config)
    found = pruned.denoiser.get_submodule(name).weight.detach() == 0

    expected = torch.zeros(score.shape, dtype=torch.bool)
    for out in range(len(score)):
        if pattern == "unstructured":
            row = score[out].flatten()
            expected[out].view(-1)[row.argsort(stable=True)[: int(len(row) * 0.4)]] = True
        else:
            lines = score[out].reshape(score.shape[1], -1)
            for position in range(lines.shape[1]):
                for start in range(0, len(lines), 4):
                    low = lines[start : start + 4, position].argsort(stable=True)[:2] + start
                    expected[out].view(score.shape[1], -1)[low, position] = True
    assert torch.equal(found, expected)
    assert notes["zeroed"][name] == int(expected.sum())
    kept = layer.weight.detach()[~found]
    assert torch.equal(pruned.denoiser.get_submodule(name).weight.detach()[~found], kept)


def test_ratio_zero_is_the_identity():
    base = tiny.pipeline()
    config = Config(ratio=0.0, batch_size=2, timesteps=1)
    pruned, _ = compress(base.private_copy(), tiny.task(base), config)
    before, after = base.denoiser.state_dict(), pruned.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_later_stages_see_pruned_inputs():
    base = tiny.pipeline()
    results = []
    for stages in (1, 4):
        config = Config(ratio=0.7, batch_size=4, timesteps=1, stages=stages)
        pruned, _ = compress(base.private_copy(), tiny.task(base), config)
        results.append({n: p == 0 for n, p in pruned.denoiser.named_parameters()})
    first, last = "down_blocks.0.resnets.0.conv1.weight", "up_blocks.2.resnets.2.conv2.weight"
    assert torch.equal(results[0][first], results[1][first])
    assert not torch.equal(results[0][last], results[1][last])


def test_a_loud_input_saves_a_small_weight():
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
    found = wanda.scores(layer, torch.tensor([9.0, 1.0]))
    assert found.tolist() == [[3.0, 2.0]]


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"ratio": 1.0}, "ratio"), ({"timesteps": 0}, "timesteps"), ({"stages": 0}, "stages")],
)
def test_bad_requests_are_refused(changes, word):
    base = tiny.pipeline()
    with pytest.raises(ValueError, match=word):
        compress(base.private_copy(), tiny.task(base), Config(**{"batch_size": 2} | changes))
