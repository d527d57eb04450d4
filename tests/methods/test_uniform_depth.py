"""Layers at even distances, and how a request is met."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.harness import depth, zoo
from methods.harness.denoise import predict
from methods.uniform_depth import Config, compress, evenly, spread
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


def alternating(count=8):
    """Layers as a text U-Net has them: a ResNet, a transformer, a ResNet ..."""
    kinds = ("resnet", "attention")
    return [depth.Unit(f"{kind}.{k}", kind, 1, True) for k in range(count) for kind in kinds]


def test_alternating_kinds_are_taken_alternately_by_hand():
    """A stride of two through the alternating layers would take ResNets alone."""
    units = alternating()
    names = [[unit.name for unit in spread(units, wanted)] for wanted in range(5)]
    assert names[0] == []
    assert names[1] == ["resnet.4"]
    assert names[2] == ["resnet.4", "attention.4"]
    assert names[3] == ["resnet.2", "attention.4", "resnet.6"]
    assert names[4] == ["resnet.2", "attention.2", "resnet.6", "attention.6"]


@st.composite
def layers(draw):
    kinds = draw(st.lists(st.sampled_from(["resnet", "attention", "block"]), max_size=24))
    sizes = draw(st.lists(st.integers(1, 1000), min_size=len(kinds), max_size=len(kinds)))
    return [
        depth.Unit(str(index), kind, size, True)
        for index, (kind, size) in enumerate(zip(kinds, sizes, strict=True))
    ]


@settings(deadline=None)
@given(layers(), st.floats(0, 1))
def test_every_request_is_met_by_an_even_set(units, fraction):
    wanted = round(fraction * sum(unit.params for unit in units))
    chosen = spread(units, wanted)
    assert sum(unit.params for unit in chosen) >= wanted
    assert len({unit.name for unit in chosen}) == len(chosen)
    assert chosen == sorted(chosen, key=units.index), "the order of the forward pass"
    assert spread(units, 0) == []
    shares = []
    for kind in {unit.kind for unit in units}:
        own = [unit for unit in units if unit.kind == kind]
        lost = [own.index(unit) for unit in chosen if unit.kind == kind]
        shares.append((len(lost), len(own)))
        # One from each of as many equal shares: the middle one, so no end is spared.
        for k, index in enumerate(lost):
            middle = (k + 0.5) * len(own) / len(lost)
            assert middle - 1 < index <= middle
    for a, n in shares:
        for b, m in shares:
            assert (a - 0.5) / n <= (b + 0.5) / m + 1e-12, "no kind is more than its turn ahead"


@settings(deadline=None)
@given(layers(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_request_never_takes_fewer_layers(units, one, two):
    total = sum(unit.params for unit in units)
    low, high = sorted((round(one * total), round(two * total)))
    assert len(spread(units, low)) <= len(spread(units, high))


def test_late_and_early_layers_of_the_text_base_go_alike():
    """What an earlier rule got wrong: nine ResNets, no transformer, the late layers spared."""
    with torch.device("meta"):
        model = zoo.base("fashion_t2i").build()
    candidates = depth.removable(model)
    chosen = spread(candidates, depth.requested(model, candidates, 0.674, None))
    kinds = [unit.kind for unit in chosen]
    assert (kinds.count("resnet"), kinds.count("transformer")) == (5, 5)
    places = [candidates.index(unit) for unit in chosen]
    assert abs(sum(places) / len(places) - (len(candidates) - 1) / 2) <= 1.5


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
