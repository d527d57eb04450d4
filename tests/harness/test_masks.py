"""Masks against a slow definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from methods.harness import masks
from methods.harness.masks import NOfM, Unstructured, removed
from tests.harness import tiny


def by_hand(values, count):
    """Indices of the `count` lowest, ties by index, from a plain sort."""
    return sorted(range(len(values)), key=lambda i: (values[i], i))[:count]


def lowest_of(rows, count):
    mask = torch.zeros(rows.shape, dtype=torch.bool)
    for row, out in zip(rows.tolist(), mask, strict=True):
        out[by_hand(row, count)] = True
    return mask


def draw(*shape, ties=False, seed=0):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.mul(2).round() if ties else values


def test_smallest_weights_by_hand():
    weight = torch.tensor([[3.0, -1.0], [0.5, -4.0]])
    assert masks.smallest(weight, 0.5).tolist() == [[False, True], [True, False]]
    assert masks.smallest(weight, 0.0).sum() == 0
    assert masks.smallest(torch.ones(2, 2), 0.5).tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.13, 0.5, 0.99])
def test_unstructured_masks_are_the_lowest(ratio, ties):
    scores = draw(6, 5, 3, 3, ties=ties)
    flat = lowest_of(scores.reshape(1, -1), int(scores.numel() * ratio))
    assert torch.equal(removed(scores, Unstructured(ratio)), flat.view_as(scores))
    rows = lowest_of(scores.reshape(6, -1), int(45 * ratio))
    assert torch.equal(removed(scores, Unstructured(ratio, per="row")), rows.view_as(scores))


@pytest.mark.parametrize("kind", ["random", "ties", "sorted", "one column counts"])
def test_long_layers_are_masked_as_short_ones(kind):
    """Long rows go through a sample, also where the sample says nothing."""
    scores = draw(600, 512, ties=kind == "ties")
    if kind == "sorted":
        scores = scores.flatten().sort().values.view(600, 512)
    if kind == "one column counts":
        scores = scores.flatten().index_fill(0, torch.arange(0, scores.numel(), 5), 9.0)
    for ratio in (0.001, 0.3, 0.8, 0.9999):
        count = int(scores.numel() * ratio)
        expected = torch.zeros(scores.numel(), dtype=torch.bool)
        expected[scores.flatten().argsort(stable=True)[:count]] = True
        assert torch.equal(removed(scores, Unstructured(ratio)).flatten(), expected)


def test_rows_are_selected_alike_on_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randint(0, 9, (7, 40), generator=torch.Generator().manual_seed(0)).float()
    alone = removed(scores, Unstructured(0.4, "row"))
    monkeypatch.setattr(masks, "_WORTH_THREADS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(removed(scores, Unstructured(0.4, "row")), alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("per", ["layer", "row"])
def test_other_precisions_are_ranked_exactly(dtype, per):
    """Half precision is full of ties; none may be decided by a conversion."""
    scores = draw(40, 30).to(dtype)
    rows = scores.reshape(1 if per == "layer" else 40, -1)
    expected = lowest_of(rows, rows.shape[1] // 2).view(40, 30)
    assert torch.equal(removed(scores, Unstructured(0.5, per)), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "pattern", [Unstructured(0.3), Unstructured(0.3, "row"), NOfM(2, 4), NOfM(5, 16)]
)
def test_a_gpu_makes_the_masks_of_a_cpu(pattern, ties):
    scores = draw(600, 512, ties=ties)
    assert torch.equal(removed(scores.cuda(), pattern).cpu(), removed(scores, pattern))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (4, 4), (1, 2), (7, 8), (5, 16)])
@pytest.mark.parametrize("along", ["input", "flattened"])
def test_runs_lose_their_lowest(n, m, along, ties):
    linear, conv = draw(6, 2 * m, ties=ties), draw(3, m, 3, 2, ties=ties)
    expected = lowest_of(linear.reshape(-1, m), m - n).view(6, 2 * m)
    assert torch.equal(removed(linear, NOfM(n, m, along)), expected)
    mask = removed(conv, NOfM(n, m, along))
    for out in range(3):
        for y in range(3):
            for x in range(2):
                run = conv[out, :, y, x]
                assert torch.equal(mask[out, :, y, x], lowest_of(run[None], m - n)[0])


def test_runs_are_masked_alike_in_one_piece_and_in_many(monkeypatch):
    scores = draw(16, 64, ties=True)
    whole = removed(scores, NOfM(2, 4))
    monkeypatch.setattr(masks, "_CHUNK", 12)
    assert torch.equal(removed(scores, NOfM(2, 4)), whole)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 4), (7, 8)])
def test_runs_are_masked_alike_by_comparing_all_pairs_at_once(n, m, ties):
    runs = draw(50, m, ties=ties)
    assert torch.equal(masks._lowest_by_pairs(runs, m - n), lowest_of(runs, m - n))


def test_flattened_runs_cross_rows_and_are_named():
    layers = {
        "good": nn.Linear(8, 2),
        "narrow": nn.Linear(6, 2),
        "first": nn.Conv2d(3, 4, 3),
    }
    scores = torch.tensor([[1.0, 2, 3, 4, 9, 8], [7, 6, 1, 2, 3, 4]])
    found = removed(scores, NOfM(2, 4, "flattened")).int().tolist()
    assert found == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    named = masks.crossing(layers, NOfM(2, 4, "flattened"))
    assert named.keys() == {"narrow", "first"}
    assert "rows" in named["narrow"] and "kernel positions" in named["first"]
    assert masks.crossing(layers, NOfM(2, 4)) == {}


def test_what_does_not_divide_is_refused_by_name():
    with pytest.raises(ValueError, match=r"mid.q: 6 inputs do not divide into runs of 4"):
        removed(torch.ones(2, 6), NOfM(2, 4), "mid.q")
    with pytest.raises(ValueError, match="last: 81 weights"):
        removed(torch.ones(3, 3, 3, 3), NOfM(2, 4, "flattened"), "last")
    with pytest.raises(ValueError, match=r"mid.q: a score is not a number"):
        removed(torch.tensor([[1.0, float("nan")]]), Unstructured(0.5), "mid.q")


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: NOfM(0, 4), "n must lie in 1..m"),
        (lambda: NOfM(5, 4), "n must lie in 1..m"),
        (lambda: NOfM(2, 4, "rows"), "along"),
        (lambda: Unstructured(1.0), "ratio"),
        (lambda: Unstructured(0.5, "column"), "per"),
        (lambda: masks.requested_pattern("rows", 0.5, 2, 4), "pattern must be unstructured or n:m"),
        (lambda: masks.requested_pattern("n:m", 0.5, 5, 4), "n must lie in 1..m"),
        (lambda: masks.requested_pattern("unstructured", 1.0, 2, 4), "ratio"),
        (lambda: masks.sparse_layers(nn.Linear(1, 1), "outer"), "layers"),
    ],
)
def test_bad_patterns_are_refused(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_the_shared_fields_ask_for_one_pattern():
    assert masks.requested_pattern("n:m", 0.3, 1, 8, per="row") == NOfM(1, 8)
    assert masks.requested_pattern("unstructured", 0.3, 1, 8) == Unstructured(0.3)
    assert masks.requested_pattern("unstructured", 0.3, 1, 8, "row") == Unstructured(0.3, "row")


def test_inner_layers_leave_out_both_ends_and_the_time_embedding():
    model = tiny.unet()
    every, inner = masks.sparse_layers(model, "all"), masks.sparse_layers(model)
    assert every.keys() - inner.keys() == {
        "conv_in",
        "conv_out",
        "time_embedding.linear_1",
        "time_embedding.linear_2",
    }
