"""SparseGPT against optimal brain surgery written row by row, with inverses taken anew."""

from __future__ import annotations

import pytest
import torch

from methods.harness import calibration, masks
from methods.harness.masks import NOfM, Unstructured, removed
from methods.sparsegpt import Config, compress, solve
from tests.harness import tiny


def problem(rows, cols, tokens, seed=0):
    """Weights, and inputs that are strongly correlated and unequal in size."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(cols, cols, generator=draw, dtype=torch.float64) / cols**0.5
    mix = mix + 0.3 * torch.eye(cols)
    x = torch.randn(tokens, cols, generator=draw, dtype=torch.float64) @ mix
    x = x * torch.linspace(0.3, 2.0, cols)
    w = torch.randn(rows, cols, generator=draw, dtype=torch.float64)
    return w, x, 2 / tokens * x.T @ x


def surgery(weight, hessian, mask, damp=0.01):
    """Each row, from left to right: remove, and move what lies ahead to the constrained optimum."""
    weight = weight.clone()
    cols = weight.shape[1]
    hessian = hessian + damp * hessian.diagonal().mean() * torch.eye(cols, dtype=hessian.dtype)
    for row in range(len(weight)):
        for j in range(cols):
            if mask[row, j]:
                inverse = torch.linalg.inv(hessian[j:, j:])
                weight[row, j:] -= weight[row, j] / inverse[0, 0] * inverse[0]
    return weight.masked_fill(mask, 0.0)


@pytest.mark.parametrize("block", [1, 4, 5, 128])
@pytest.mark.parametrize("pattern", [Unstructured(0.5), Unstructured(0.8), NOfM(2, 4), NOfM(1, 4)])
def test_weights_are_those_of_optimal_brain_surgery(pattern, block):
    weight, _, hessian = problem(5, 12, 60)
    found, mask = solve(weight, hessian, pattern, block)
    assert (found - surgery(weight, hessian, mask)).abs().max() <= 1e-9
    single, mask32 = solve(weight.float(), hessian.float(), pattern, block)
    assert torch.equal(mask, mask32)
    assert (single - surgery(weight, hessian, mask)).abs().max() <= 1e-5


def test_masks_are_chosen_from_compensated_weights():
    """The same choice made with inverses of what is left instead of a Cholesky factor."""
    weight, _, hessian = problem(6, 12, 60, seed=3)
    _, mask = solve(weight, hessian, NOfM(2, 4))
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(12)
    expected = torch.zeros(6, 12, dtype=torch.bool)
    for start in range(0, 12, 4):
        now = surgery(weight, hessian, expected)
        price = [torch.linalg.inv(damped[j:, j:])[0, 0] for j in range(start, start + 4)]
        cost = now[:, start : start + 4].square() / torch.stack(price)
        low = cost.argsort(dim=1, stable=True)[:, :2] + start
        expected.scatter_(1, low, True)
    assert torch.equal(mask, expected)
    assert not torch.equal(mask, removed(weight.abs(), NOfM(2, 4)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pattern", [Unstructured(0.5), NOfM(2, 4)])
def test_second_order_beats_wanda_beats_magnitude(pattern, seed):
    weight, x, hessian = problem(32, 64, 512, seed)
    per_row = Unstructured(0.5, per="row") if isinstance(pattern, Unstructured) else pattern
    magnitude = weight.masked_fill(removed(weight.abs(), pattern), 0.0)
    score = weight.abs() * x.square().sum(dim=0).sqrt()
    wanda = weight.masked_fill(removed(score, per_row), 0.0)
    second, mask = solve(weight, hessian, pattern)
    errors = [float((x @ (w - weight).T).square().mean()) for w in (second, wanda, magnitude)]
    assert errors[0] < errors[1] < errors[2]
    assert mask.sum() == weight.numel() // 2


@pytest.mark.parametrize("changes", [{"ratio": 0.0}, {"pattern": "n:m", "n": 4, "m": 4}])
def test_a_pattern_that_takes_nothing_is_the_identity(changes):
    base = tiny.pipeline()
    config = Config(batch_size=2, timesteps=1, **changes)
    pruned, notes = compress(base.private_copy(), tiny.task(base), config)
    before, after = base.denoiser.state_dict(), pruned.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(notes["zeroed"].values()) == {0}


@pytest.mark.parametrize("pattern", [Unstructured(0.0), NOfM(4, 4)])
def test_nothing_taken_leaves_columns_without_input_too(pattern):
    weight, x, _ = problem(4, 8, 40)
    x[:, 2] = 0.0
    found, mask = solve(weight, 2 / 40 * x.T @ x, pattern)
    assert torch.equal(found, weight) and not mask.any()


@pytest.mark.parametrize("pattern", [Unstructured(0.5), Unstructured(0.125), NOfM(2, 4)])
def test_columns_without_input_are_cleared_counted_and_do_no_harm(pattern):
    weight, x, _ = problem(4, 8, 40)
    x[:, [0, 1, 2]] = 0.0
    found, mask = solve(weight, 2 / 40 * x.T @ x, pattern)
    assert (found[:, :3] == 0).all() and found.isfinite().all()
    assert torch.equal(mask, found == 0)
    # What the pattern asks for, and in full columns what it would have left.
    taken = {Unstructured(0.5): 16, Unstructured(0.125): 12, NOfM(2, 4): 4 * (3 + 2)}
    assert int(mask.sum()) == taken[pattern]


def test_notes_count_columns_without_input():
    """Two of sixteen channels are silent at a layer that is to lose a tenth of its weights."""
    base = tiny.pipeline()
    block = base.denoiser.down_blocks[0].resnets[0]
    with torch.no_grad():
        block.norm1.weight[:2], block.norm1.bias[:2] = 0.0, 0.0
    config = Config(ratio=0.1, batch_size=2, timesteps=1)
    pruned, notes = compress(base.private_copy(), tiny.task(base), config)
    name = "down_blocks.0.resnets.0.conv1"
    weight = pruned.denoiser.get_submodule(name).weight
    assert (weight[:, :2] == 0).all()
    assert notes["zeroed"][name] == int((weight == 0).sum()) >= weight.numel() // 8


@pytest.mark.parametrize("pattern", ["unstructured", "n:m"])
def test_a_model_keeps_its_pattern_and_loses_less_than_by_zeroing(pattern):
    base = tiny.pipeline()
    around = tiny.task(base)
    config = Config(pattern=pattern, batch_size=16, timesteps=2, stages=3)
    pruned, notes = compress(base.private_copy(), around, config)
    zeroed = base.private_copy()
    for name, layer in masks.sparse_layers(pruned.denoiser).items():
        mask = layer.weight == 0
        assert int(mask.sum()) == notes["zeroed"][name]
        assert abs(float(mask.float().mean()) - 0.5) < 0.01, name
        if pattern == "n:m":
            runs = masks.as_matrix(layer.weight).reshape(-1, 4)
            assert ((runs != 0).sum(dim=1) == 2).all(), name
        zeroed.denoiser.get_submodule(name).weight.data.masked_fill_(mask, 0.0)
    batch = calibration.calibration(around, 16, 1, "held out")[0]
    with torch.no_grad():
        answers = [p.denoiser(batch.x_t, batch.t).sample for p in (base, pruned, zeroed)]
    kept, cleared = ((answer - answers[0]).square().mean() for answer in answers[1:])
    assert kept < cleared, "compensation must help beyond its own mask"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"ratio": 1.0}, "ratio"),
        ({"damp": 0.0}, "damp"),
        ({"block": 0}, "block"),
        ({"pattern": "n:m", "m": 5}, "16 inputs do not divide into runs of 5"),
    ],
)
def test_bad_requests_are_refused(changes, word):
    base = tiny.pipeline()
    with pytest.raises(ValueError, match=word):
        compress(base.private_copy(), tiny.task(base), Config(**{"batch_size": 2} | changes))


def test_inputs_that_are_not_finite_name_the_layer():
    with pytest.raises(ValueError, match=r"mid.q: its inputs give no positive Hessian"):
        solve(torch.ones(2, 2), torch.full((2, 2), float("nan")), NOfM(1, 2), name="mid.q")
