"""SparseDM: the estimator against an evaluation by hand, and what a finished model keeps."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods import sparsedm
from methods.harness.calibration import calibration
from methods.harness.masks import NOfM, as_matrix, removed, sparse_layers
from methods.harness.train import Recipe, retrain
from methods.sparsedm import Config, SparseLoss, SparseWeight, compress, schedule
from tests.harness import tiny

DECAY = 0.3  # large, so that a missing term cannot hide


def mask_by_loops(weight, n, m):
    """Removal mask along input channels, one run at a time."""
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    positions = [()] if weight.ndim == 2 else [(y, x) for y in range(3) for x in range(3)]
    for out in range(len(weight)):
        for position in positions:
            line = weight[(out, slice(None), *position)].detach()
            for start in range(0, len(line), m):
                run = line[start : start + m].abs().tolist()
                for i in sorted(range(m), key=lambda i: (run[i], i))[: m - n]:
                    mask[(out, start + i, *position)] = True
    return mask


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4)])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_mask_output_and_gradient_are_exact(kind, n, m):
    torch.manual_seed(0)
    layer = nn.Linear(8, 6) if kind == "linear" else nn.Conv2d(8, 6, 3, padding=1)
    x = torch.randn(5, 8) if kind == "linear" else torch.randn(2, 8, 4, 4)
    mask = mask_by_loops(layer.weight, n, m)

    model = nn.Sequential(layer)
    sparse = sparsedm.sparse_weights(model, ("0",), NOfM(n, m), DECAY)["0.weight"]
    assert torch.equal(sparse == 0, mask)
    run = F.linear if kind == "linear" else lambda *a: F.conv2d(*a, padding=1)
    output = run(x, sparse, layer.bias)
    output.sin().sum().backward()

    # The same in double precision, the derivative of the output written out for every weight.
    w = layer.weight.detach().double().masked_fill(mask, 0.0)
    columns = x.double()[:, :, None] if kind == "linear" else F.unfold(x.double(), 3, padding=1)
    expected = torch.einsum("oc,bcl->bol", w.flatten(1), columns) + layer.bias.double()[:, None]
    gradient = torch.einsum("bol,bcl->oc", expected.cos(), columns).view_as(w)
    gradient = gradient + DECAY * mask * layer.weight.detach().double()
    assert (output.flatten() - expected.flatten()).abs().max() <= 1e-6 * expected.abs().max()
    assert (layer.weight.grad - gradient).abs().max() <= 1e-5
    assert (gradient[mask].abs() > 0).all(), "masked weights get the upstream gradient too"


def test_without_a_data_gradient_masked_weights_shrink_by_the_power():
    torch.manual_seed(1)
    weight = nn.Parameter(torch.randn(4, 8, dtype=torch.float64))
    start, mask = weight.detach().clone(), mask_by_loops(weight, 2, 4)
    rate, count = 0.1, 7
    optimizer = torch.optim.SGD([weight], lr=rate)
    model = nn.Module()
    model.layer = nn.Module()
    model.layer.weight = weight
    for _ in range(count):
        optimizer.zero_grad()
        sparse = sparsedm.sparse_weights(model, ("layer",), NOfM(2, 4), DECAY)["layer.weight"]
        (0.0 * sparse).sum().backward()
        optimizer.step()
    shrunk = start * (1 - rate * DECAY) ** count
    assert (weight.detach()[mask] - shrunk[mask]).abs().max() <= 1e-15
    assert torch.equal(weight.detach()[~mask], start[~mask])


def test_the_estimator_by_hand_with_and_without_the_dense_gradient():
    mask = torch.tensor([[True, True, False, False]])
    found = []
    for dense_gradient in (True, False):
        weight = torch.tensor([[1.0, -2.0, 3.0, 4.0]], requires_grad=True)
        out = SparseWeight.apply(weight, mask, 0.5, dense_gradient)
        (out * torch.tensor([[10.0, 20.0, 30.0, 40.0]])).sum().backward()
        found.append(weight.grad.tolist())
    assert found == [[[10.5, 19.0, 30.0, 40.0]], [[0.5, -1.0, 30.0, 40.0]]]


def test_without_the_dense_gradient_masked_weights_learn_nothing():
    pipe = tiny.pipeline()
    layers = sparse_layers(pipe.denoiser)
    batch = calibration(tiny.task(pipe), 4, 1, "test")[0]
    for dense_gradient in (True, False):
        student = tiny.unet(seed=3)
        loss = SparseLoss(NOfM(2, 4), tuple(layers), 0.0, pipe.denoiser, 1.0, 0.0, dense_gradient)
        loss(student, batch).backward()
        for name, layer in sparse_layers(student).items():
            mask = removed(layer.weight.detach().abs(), NOfM(2, 4))
            assert layer.weight.grad[~mask].abs().sum() > 0, name
            assert (layer.weight.grad[mask].abs().sum() > 0) == dense_gradient, name


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.0, 1.0), (1.0, 0.1)])
def test_loss_is_that_of_a_masked_copy(a, b):
    pipe = tiny.pipeline()
    names = tuple(sparse_layers(pipe.denoiser))
    batch = calibration(tiny.task(pipe), 4, 1, "test")[0]
    student = tiny.unet(seed=3)
    masked = copy.deepcopy(student)
    with torch.no_grad():
        for name in names:
            weight = masked.get_parameter(f"{name}.weight")
            matrix = as_matrix(weight).reshape(-1, 4)
            order = matrix.abs().argsort(dim=1, stable=True)[:, :2]
            matrix = matrix.scatter(1, order, 0.0)
            back = matrix.reshape(len(weight), *weight.shape[2:], weight.shape[1])
            weight.copy_(back.movedim(-1, 1))
        answer = masked(batch.x_t, batch.t).sample
        dense = pipe.denoiser(batch.x_t, batch.t).sample
        expected = a * (answer - batch.target).pow(2).mean() + b * (answer - dense).pow(2).mean()
    loss = SparseLoss(NOfM(2, 4), names, 2e-4, pipe.denoiser, a, b)(student, batch)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in pipe.denoiser.parameters()), "the teacher is frozen"
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize(
    "changes", [{}, {"n": 1}, {"progressive": True}, {"n": 3, "layers": "inner"}]
)
def test_every_run_of_the_result_keeps_at_most_n(changes):
    base = tiny.pipeline()
    config = Config(steps=8, batch_size=4, learning_rate=1e-2, precision="fp32", **changes)
    pruned, notes = compress(base.private_copy(), tiny.task(base), config)
    for name, layer in sparse_layers(pruned.denoiser).items():
        runs = as_matrix(layer.weight).reshape(-1, 4)
        assert ((runs != 0).sum(dim=1) == config.n).all(), name
        assert notes["zeroed"][name] == runs.shape[0] * (4 - config.n)
    assert len(notes["losses"]) == 8
    assert 0 < notes["came_back"] < 0.5
    assert (pruned.denoiser.conv_in.weight != 0).all()


def test_training_under_masks_lowers_the_loss():
    base = tiny.pipeline()
    config = Config(steps=60, batch_size=16, learning_rate=3e-3, precision="fp32")
    _, notes = compress(base.private_copy(), tiny.task(base), config)
    assert sum(notes["losses"][-5:]) < 0.8 * sum(notes["losses"][:5])


def test_progressive_phases_are_the_papers():
    phases = schedule(NOfM(2, 4), 103)
    assert [str(pattern) for pattern, _ in phases] == ["6:8", "5:8", "4:8", "2:4"]
    assert [steps for _, steps in phases] == [25, 25, 25, 28]


@pytest.mark.parametrize(
    "changes",
    [
        {"decay": 0.2, "noise_weight": 0.7, "teacher_weight": 2.0},
        {"dense_gradient": False, "noise_weight": 0.0, "teacher_weight": 0.5},
        {"n": 1, "progressive": True, "decay": 0.2, "layout": "flattened"},
    ],
)
def test_a_run_is_its_phases_trained_one_after_the_other(changes):
    """Written out with every setting of its own, so that none can stand in another's place."""
    base = tiny.pipeline()
    student = tiny.pipeline(seed=3)
    config = Config(
        steps=6,
        batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.05,
        ema_decay=0.6,
        precision="fp32",
        **changes,
    )
    model = copy.deepcopy(student.denoiser)
    pruned, notes = compress(student, tiny.task(base), config)

    layers = sparse_layers(model)
    target = NOfM(config.n, 4, config.layout)
    phases = [(target, 6)]
    if config.progressive:
        phases = [(NOfM(k, 8, config.layout), 1) for k in (5, 3, 2)] + [(target, 3)]
    first = {name: removed(layer.weight.detach().abs(), target) for name, layer in layers.items()}
    batches, losses = tiny.task(base).training_batches(4), []
    for pattern, steps in phases:
        recipe = Recipe(
            steps=steps,
            batch_size=4,
            learning_rate=1e-2,
            betas=(0.99, 0.999),
            weight_decay=0.05,
            warmup=1,
            ema_decay=0.6,
            precision="fp32",
        )
        loss = SparseLoss(
            pattern,
            tuple(layers),
            decay=config.decay,
            teacher=base.denoiser,
            noise_weight=config.noise_weight,
            teacher_weight=config.teacher_weight,
            dense_gradient=config.dense_gradient,
        )
        losses += retrain(model, batches, recipe, loss)
    moved = 0
    with torch.no_grad():
        for name, layer in layers.items():
            mask = removed(layer.weight.abs(), target)
            moved += int((mask != first[name]).sum())
            layer.weight.masked_fill_(mask, 0.0)
    assert moved > 0, "the masks of the start would pass for those of the end"
    assert notes["losses"] == losses
    expected, found = model.state_dict(), pruned.denoiser.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_phase_has_an_optimizer_of_its_own(monkeypatch):
    made = []
    real = torch.optim.AdamW

    class Counted(real):
        def __init__(self, *args, **kwargs):
            made.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "AdamW", Counted)
    base = tiny.pipeline()
    compress(base.private_copy(), tiny.task(base), Config(steps=4, batch_size=2, progressive=True))
    assert len(made) == 4


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"n": 5}, "n must lie in 1..m"),
        ({"decay": -1.0}, "decay must not be negative"),
        ({"noise_weight": 0.0, "teacher_weight": 0.0}, "nothing to learn"),
        ({"m": 5}, "down_blocks.0.resnets.0.conv1: 16 inputs do not divide into runs of 5"),
        ({"layers": "all"}, "conv_in: 1 inputs do not divide"),
    ],
)
def test_bad_requests_are_refused_before_training(changes, word):
    base = tiny.pipeline()
    pipe = base.private_copy()
    with pytest.raises(ValueError, match=word):
        compress(pipe, tiny.task(base), Config(**changes))
    before, after = base.denoiser.state_dict(), pipe.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_authors_layout_names_its_crossing_layers():
    base = tiny.pipeline()
    config = Config(steps=0, layout="flattened", layers="all")
    pruned, notes = compress(base.private_copy(), tiny.task(base), config)
    assert notes["crossing"].keys() == {"conv_in"}
    assert (
        int((pruned.denoiser.conv_in.weight == 0).sum())
        == pruned.denoiser.conv_in.weight.numel() // 2
    )
