"""The output-loss criterion and the budget of LAPTOP-Diff."""

from __future__ import annotations

from dataclasses import replace
from itertools import compress, product

import pytest
import torch

from methods import laptop_diff
from methods.harness.calibration import calibration
from methods.harness.denoise import predict
from methods.harness.depth import drop, removable
from tests.harness import tiny


def setting(kind):
    pipe = tiny.conditional(kind)
    around = tiny.task(pipe)
    batches = calibration(around, 4, 3, "laptop_diff")
    return pipe, around, batches


@pytest.mark.parametrize("kind", ["t2i", "dit"])
def test_damage_is_the_mean_squared_change_of_the_answer(kind):
    pipe, _, batches = setting(kind)
    answers = laptop_diff.outputs(pipe.denoiser, batches)
    unit = removable(pipe.denoiser)[1]
    without = drop(pipe.private_copy(), [unit.name]).denoiser
    total = 0.0
    with torch.no_grad():
        for batch in batches:
            full = predict(pipe.denoiser, batch.x_t, batch.t, batch.condition)
            less = predict(without, batch.x_t, batch.t, batch.condition)
            total += float((full - less).square().mean()) / len(batches)
    found = laptop_diff.damage(pipe.denoiser, batches, answers, [unit.name])
    assert found == pytest.approx(total, rel=1e-5)
    assert laptop_diff.damage(pipe.denoiser, batches, answers, []) == 0


@pytest.mark.parametrize("kind", ["t2i", "dit"])
@pytest.mark.parametrize("params", [0.9, 0.7])
def test_the_budget_is_met_with_the_least_predicted_damage(kind, params):
    pipe, around, _ = setting(kind)
    config = laptop_diff.Config(params=params, batch_size=4, timesteps=3)
    small, notes = laptop_diff.compress(pipe.private_copy(), around, config)
    sizes = [sum(p.numel() for p in m.denoiser.parameters()) for m in (small, pipe)]
    assert sizes[0] <= params * sizes[1]
    by_name = {unit.name: unit.params for unit in removable(pipe.denoiser)}
    gone = sum(by_name[name] for name in notes["removed"])
    for name in notes["removed"]:  # nothing that was removed could have stayed
        slack = gone - by_name[name] >= sizes[1] - int(params * sizes[1])
        assert not slack or notes["damage"][name] <= 0
    assert notes["predicted"] == pytest.approx(sum(notes["damage"][n] for n in notes["removed"]))
    assert notes["joint"] > 0


@pytest.mark.parametrize("kind", ["t2i", "dit"])
def test_what_goes_is_the_best_of_all_sets_and_its_joint_damage_that_of_the_result(kind):
    pipe, _, _ = setting(kind)
    if kind == "t2i":  # few enough layers to try every set
        pipe = replace(pipe, denoiser=tiny.text_unet(layers=1))
    around = tiny.task(pipe)
    config = laptop_diff.Config(params=0.7, batch_size=4, timesteps=3)
    small, notes = laptop_diff.compress(pipe.private_copy(), around, config)

    units = removable(pipe.denoiser)
    total = sum(p.numel() for p in pipe.denoiser.parameters())
    wanted = total - int(0.7 * total)
    best = min(
        (
            chosen
            for chosen in product((False, True), repeat=len(units))
            if sum(unit.params for unit in compress(units, chosen)) >= wanted
        ),
        key=lambda chosen: sum(notes["damage"][unit.name] for unit in compress(units, chosen)),
    )
    assert set(notes["removed"]) == {unit.name for unit in compress(units, best)}

    errors = []
    with torch.no_grad():
        for batch in calibration(around, 4, 3, "laptop_diff"):
            inputs = (batch.x_t, batch.t, batch.condition)
            change = predict(small.denoiser, *inputs) - predict(pipe.denoiser, *inputs)
            errors.append(float(change.square().mean()))
    assert notes["joint"] == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert notes["joint"] != pytest.approx(notes["predicted"], rel=1e-3)


def test_nothing_asked_is_the_identity():
    pipe, around, _ = setting("dit")
    small, notes = laptop_diff.compress(
        pipe.private_copy(), around, laptop_diff.Config(params=1.0, batch_size=4, timesteps=1)
    )
    assert notes["removed"] == [] and not small.edits
