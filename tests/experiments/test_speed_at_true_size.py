"""Speed at true size: the ratio by hand, equal cuts, and a run on a small architecture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from methods.experiments import speed_at_true_size as speed
from methods.harness import zoo
from methods.harness.experiment import Lab
from methods.harness.measure import Macs, count_macs
from methods.harness.pipeline import Pipeline
from methods.harness.run import Protocol
from methods.harness.surgery import cut
from methods.harness.width import width_layers
from tests.experiments import text_lab


def test_realised_is_saved_time_over_saved_macs() -> None:
    # Half of the MACs gone, a quarter of the time saved: one half is realised.
    assert speed._realised((0.75,), (1.0,), Macs(40, 10), Macs(80, 20)) == [0.5]
    assert speed._realised((0.9, 0.8), (1.0, 1.0), Macs(9, 0), Macs(9, 0)) == [0.0, 0.0]


def test_inputs_grow_with_the_batch_and_positions_do_not() -> None:
    inputs = {
        "x": torch.ones(1, 3),
        "img_ids": torch.ones(5, 3),
        "added": {"text": torch.ones(1, 2)},
        "flag": True,
    }
    grown = speed.batched(inputs, 4)
    assert grown["x"].shape == (4, 3) and grown["added"]["text"].shape == (4, 2)
    assert grown["img_ids"].shape == (5, 3) and grown["flag"] is True


def test_units_keep_the_asked_share_in_aligned_numbers() -> None:
    model = zoo.ARCHITECTURES["fashion_dit"].on_meta()[0]
    keep = speed.units(model, 0.25, seed=0)
    for layer in width_layers(model):
        kept = keep[layer.name]
        assert kept == sorted(set(kept)) and len(kept) <= layer.units
        if layer.kind == "neurons":
            assert len(kept) % 16 == 0 and abs(len(kept) / layer.units - 0.75) < 0.02


def test_a_small_architecture_is_built_cut_and_timed() -> None:
    lab = Lab(seeds=(0,), protocol=Protocol(precision="fp32"))
    found = speed.investigate(lab, speed.Config(models="fashion_dit", batch=1, rounds=2))
    rows = {row["cut"]: row for row in found.rows}
    assert set(rows) == {"dense", "heads and neurons", "layers"}
    assert rows["dense"]["macs"] == 1.0 and rows["dense"]["realised"] is None
    assert rows["layers"]["macs"] < 0.8
    assert abs(rows["heads and neurons"]["macs"] - rows["layers"]["macs"]) < 0.03
    assert all(float(row["peak"]) > 0 for row in found.rows)
    assert found.answer.startswith("In CPU time, layers realise")
    with pytest.raises(ValueError, match="did you mean fashion_dit"):
        speed.investigate(lab, speed.Config(models="fashion_dt"))


def test_arms_of_stable_diffusion_are_cut_as_near_to_the_layers_macs_as_they_can_be(
    monkeypatch,
) -> None:
    """Built small, so that all of it can be called."""
    small = replace(zoo.ARCHITECTURES["fashion_t2i"], build=text_lab.two_layers)
    monkeypatch.setitem(zoo.ARCHITECTURES, "sd1_small", small)
    lab = Lab(seeds=(0,), protocol=Protocol(precision="fp32"))
    found = speed.investigate(lab, speed.Config(models="sd1_small", batch=1, rounds=2))
    rows = {row["cut"]: row for row in found.rows}
    assert set(rows) == {
        *("dense", "layers", "heads and neurons", "channels"),
        *("BK-SDM-Base", "BK-SDM-Small", "BK-SDM-Tiny"),
    }
    target = rows["layers"]["macs"]

    def off(ratio: float) -> float:
        model, inputs = zoo.ARCHITECTURES["sd1_small"].on_meta()
        whole = count_macs(model, inputs).total
        thin = cut(Pipeline(model, zoo.ddpm_scheduler()), speed.channels(model, ratio, 0))
        return abs(count_macs(thin.denoiser, inputs).total / whole - target)

    best = min(off(ratio) for ratio in (0.1, 0.3, 0.5, 0.7, 0.9))
    assert abs(rows["channels"]["macs"] - target) <= best + 1e-9


def test_without_layers_to_drop_there_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        speed._finding([], {})
