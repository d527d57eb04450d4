"""Single weights: verdicts by hand, layer errors from first principles, one run of each."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from methods.experiments import sparse_order, sparsedm_estimator
from methods.harness.masks import sparse_layers
from tests.experiments import small_lab
from tests.harness import tiny


def order_rows(error, frechet, trained):
    """One base, 2:4; each argument maps a method to its figures over seeds."""
    rows = [
        {
            "task": "fashion_unet",
            "pattern": "2:4",
            "method": method,
            "seed": seed,
            "layer_error": value,
            "frechet": frechet[method][seed],
        }
        for method, values in error.items()
        for seed, value in enumerate(values)
    ]
    return rows + [
        {
            "task": "fashion_unet",
            "pattern": "2:4",
            "method": method,
            "seed": seed,
            "layer_error": None,
            "frechet": value,
        }
        for method, values in trained.items()
        for seed, value in enumerate(values)
    ]


LOW, MIDDLE, HIGH = [1.0, 1.1, 1.2], [2.0, 2.2, 2.4], [8.0, 8.8, 9.6]
RIGHT = {"sparsegpt": LOW, "wanda": MIDDLE, "magnitude": HIGH}


def trained(following, fixed):
    return {sparse_order.FOLLOWING: following, sparse_order.FIXED: fixed}


def test_the_whole_order_must_hold():
    found = sparse_order.judge(order_rows(RIGHT, RIGHT, trained(LOW, HIGH)))
    assert found.verdict == "shown" and not found.why
    assert "layer error, wanda over magnitude 0.25 (0.25 to 0.25, n=3)" in found.answer
    swapped = RIGHT | {"wanda": HIGH, "magnitude": MIDDLE}
    mixed = sparse_order.judge(order_rows(RIGHT, swapped, trained(LOW, [1.2, 1.1, 1.0])))
    assert mixed.verdict == "in part"
    assert "surely the other way round: fashion_unet, 2:4, Fréchet distance, wanda" in mixed.why
    assert "holds one: fashion_unet, 2:4, Fréchet distance, sparsedm, trained" in mixed.why
    wrong = {"sparsegpt": HIGH, "wanda": MIDDLE, "magnitude": LOW}
    assert sparse_order.judge(order_rows(wrong, wrong, trained(HIGH, LOW))).verdict == "not shown"


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_layer_errors_are_those_of_the_layers_themselves(kind):
    """Run every layer of both models on the input that the dense one met, biases off."""
    pipe = tiny.pipeline() if kind == "unet" else tiny.conditional(kind)
    around = tiny.task(pipe)
    sparse = copy.deepcopy(pipe.denoiser)
    with torch.no_grad():
        for layer in sparse_layers(sparse).values():
            layer.weight.mul_((torch.rand_like(layer.weight) < 0.5).float())
    found = sparse_order.layer_error(pipe.denoiser, sparse, around, 3, 1)

    met = {}
    layers = sparse_layers(pipe.denoiser)
    handles = [
        layer.register_forward_pre_hook(lambda _, x, name=name: met.setdefault(name, x[0]))
        for name, layer in layers.items()
    ]
    batch = next(around.training_batches(3))
    with torch.no_grad():
        pipe.denoiser(batch.x_t, timestep=batch.t, **batch.condition)
    for handle in handles:
        handle.remove()
    ratios = []
    for name, x in met.items():
        pair = []
        for model in (pipe.denoiser, sparse):
            layer = copy.deepcopy(model.get_submodule(name)).double()
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            with torch.no_grad():
                pair.append(layer(x.double()))
        ratios.append((pair[1] - pair[0]).square().sum() / pair[0].square().sum())
    assert found == pytest.approx(float(torch.stack(ratios).mean()), rel=1e-5)
    assert sparse_order.layer_error(pipe.denoiser, pipe.denoiser, around, 3, 1) == 0


def test_the_order_at_small_size(tmp_path, monkeypatch):
    lab = small_lab.lab(tmp_path, monkeypatch, tasks=sparse_order.TASKS)
    config = sparse_order.Config(
        batch_size=4, timesteps=1, held_out=4, finetune_steps=2, finetune_batch=4
    )
    found = sparse_order.investigate(lab, config)
    assert len(found.rows) == 2 * 2 * 8  # bases, seeds, recipes
    json.dumps(found.rows)
    for row in found.rows:
        assert row["frechet"] > 0
        assert (row["layer_error"] is None) == row["method"].endswith("trained")
        assert row["layer_error"] is None or 0 < row["layer_error"] < 1
    for task in sparse_order.TASKS:
        errors = {
            method: sum(
                row["layer_error"]
                for row in found.rows
                if (row["task"], row["pattern"], row["method"]) == (task, "2:4", method)
            )
            for method in sparse_order.ORDER
        }
        assert errors["wanda"] < errors["magnitude"], "wanda weighs with inputs of the same model"


def estimator_rows(**columns):
    return [
        {
            "variant": name.replace("_", " "),
            "seed": seed,
            "frechet": value,
            "mse_to_dense": 0.1,
            "loss": None,
            "came_back": 0.0,
        }
        for name, values in columns.items()
        for seed, value in enumerate(values)
    ]


def test_every_part_of_the_estimator_must_help():
    judge = sparsedm_estimator.judge
    base = {"as_published": LOW, "masks_alone": HIGH}
    assert judge(estimator_rows(**base, no_decay=HIGH, progressive=MIDDLE)).verdict == "shown"
    mixed = judge(estimator_rows(**base, no_decay=[0.1, 0.2, 0.3], progressive=MIDDLE))
    assert mixed.verdict == "in part"
    assert mixed.why == "surely better than as published: no decay"
    level = judge(estimator_rows(**base, no_decay=[1.2, 1.1, 1.0]))
    assert level.verdict == "not shown" and level.why == "the interval holds zero: no decay"
    # 1, 1.1, 1.2 minus 2, 2.2, 2.4: mean -1.1.
    assert "no decay -1.1 (" in judge(estimator_rows(**base, no_decay=MIDDLE)).answer


def test_variants_differ_in_one_part_each():
    stages = sparsedm_estimator.variants(sparsedm_estimator.Config())
    published = stages[sparsedm_estimator.PUBLISHED].settings
    changed = {
        name: {k: v for k, v in stage.settings.items() if v != published[k]}
        for name, stage in stages.items()
    }
    assert changed == {
        "masks alone": {"steps": 0},
        "as published": {},
        "no decay": {"decay": 0.0},
        "no dense gradient": {"decay": 0.0, "dense_gradient": False},
        "progressive": {"progressive": True},
        "no teacher": {"teacher_weight": 0.0},
    }


def test_the_estimator_at_small_size(tmp_path, monkeypatch):
    lab = small_lab.lab(tmp_path, monkeypatch)
    config = sparsedm_estimator.Config(steps=4, batch_size=4, learning_rate=1e-2)
    found = sparsedm_estimator.investigate(lab, config)
    assert len(found.rows) == 6 * 2  # variants, seeds
    json.dumps(found.rows)
    for row in found.rows:
        alone = row["variant"] == sparsedm_estimator.UNTRAINED
        assert (row["loss"] is None) == alone
        assert (row["came_back"] == 0) == alone
