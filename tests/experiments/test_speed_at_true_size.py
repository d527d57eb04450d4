"""Speed at true size: the ratio by hand, equal cuts, and a run on a small architecture."""

from __future__ import annotations

import pytest
import torch

from methods.experiments import speed_at_true_size as speed
from methods.harness import zoo
from methods.harness.experiment import Lab
from methods.harness.measure import Macs
from methods.harness.run import Protocol
from methods.harness.width import width_layers


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
    assert rows["layers"]["macs"] < 0.8 and rows["heads and neurons"]["macs"] < 0.85
    assert all(float(row["peak"]) > 0 for row in found.rows)
    with pytest.raises(ValueError, match="did you mean fashion_dit"):
        speed.investigate(lab, speed.Config(models="fashion_dt"))
