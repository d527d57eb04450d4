"""Layers at even distances, and how a request is met."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

from methods.harness import depth
from methods.harness.denoise import predict
from methods.uniform_depth import Config, compress, evenly
from tests.harness import tiny


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def answer(pipe):
    batch = next(tiny.task(pipe).training_batches(3))
    with torch.no_grad():
        return predict(pipe.denoiser, batch.x_t, batch.t, batch.condition)


@pytest.mark.parametrize(
    ("count", "positions"),
    [(0, []), (1, [4]), (2, [2, 6]), (4, [1, 3, 5, 7]), (8, [0, 1, 2, 3, 4, 5, 6, 7])],
)
def test_positions_among_eight(count, positions):
    blocks = [depth.Unit(str(index), "block", 1, True) for index in range(8)]
    assert [int(unit.name) for unit in evenly(blocks, count)] == positions


@pytest.mark.parametrize("count", range(1, 35))
def test_every_share_gives_one_and_gaps_differ_by_one_at_most(count):
    blocks = [depth.Unit(str(index), "block", 1, True) for index in range(34)]
    chosen = [int(unit.name) for unit in evenly(blocks, count)]
    gaps = {after - before for before, after in pairwise(chosen)}
    assert len(set(chosen)) == count
    assert len(gaps) <= 2 and max(gaps, default=0) - min(gaps, default=0) <= 1


@pytest.mark.parametrize("exactly", [False, True])
def test_half_of_a_dit_is_every_other_block(exactly):
    """Six blocks; the first one keeps its embedding, so three others already reach a half."""
    base = tiny.conditional("dit")
    saved = [unit.params for unit in depth.removable(base.denoiser)]
    ratio = sum(saved[1::2]) / sum(saved) if exactly else 0.5
    pruned, notes = compress(base.private_copy(), tiny.task(base), Config(ratio=ratio))
    assert notes["removed"] == [f"transformer_blocks.{index}" for index in (1, 3, 5)]
    independent = copy.deepcopy(base.denoiser)
    independent.transformer_blocks = torch.nn.ModuleList(
        independent.transformer_blocks[index] for index in (0, 2, 4)
    )
    batch = next(tiny.task(base).training_batches(3))
    with torch.no_grad():
        expected = predict(independent, batch.x_t, batch.t, batch.condition)
    assert (answer(pruned) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", ["t2i", "dit"])
@pytest.mark.parametrize("request_", [{"ratio": 0.0}, {"params": 1.0}])
def test_nothing_asked_is_the_identity(kind, request_):
    base = tiny.conditional(kind)
    pruned, notes = compress(base.private_copy(), tiny.task(base), Config(**request_))
    assert notes["removed"] == [] and pruned.edits == ()
    assert torch.equal(answer(pruned), answer(base))


@pytest.mark.parametrize("kind", ["t2i", "dit"])
@pytest.mark.parametrize("params", [0.9, 0.7, 0.5])
def test_what_stays_fits_the_budget_and_dense_is_untouched(kind, params):
    base = tiny.conditional(kind)
    before, total = copy.deepcopy(base.denoiser.state_dict()), size(base.denoiser)
    pruned, notes = compress(base.private_copy(), tiny.task(base), Config(params=params))
    saved = {unit.name: unit.params for unit in depth.removable(base.denoiser)}
    assert size(pruned.denoiser) == total - sum(saved[name] for name in notes["removed"])
    assert size(pruned.denoiser) <= params * total
    assert all(torch.equal(value, before[k]) for k, value in base.denoiser.state_dict().items())
    for name, value in pruned.denoiser.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(), "either params"),
        (Config(params=0.5, ratio=0.5), "either params"),
        (Config(params=0.0), r"params must lie in \(0, 1\]"),
        (Config(ratio=1.0), r"ratio must lie in \[0, 1\)"),
    ],
)
def test_requests_that_make_no_sense(config, message):
    base = tiny.conditional("dit")
    with pytest.raises(ValueError, match=message):
        compress(base.private_copy(), tiny.task(base), config)


def test_too_small_a_budget_names_the_smallest():
    base = tiny.conditional("dit")
    total = size(base.denoiser)
    least = 1 - sum(unit.params for unit in depth.removable(base.denoiser)) / total
    with pytest.raises(ValueError, match=f"params=0.01 cannot be met.* {least:.3f} stays"):
        compress(base.private_copy(), tiny.task(base), Config(params=0.01))
    pruned, _ = compress(base.private_copy(), tiny.task(base), Config(params=least + 1e-6))
    assert size(pruned.denoiser) == round(least * total)
