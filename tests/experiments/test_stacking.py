"""Stacking: parts and sums by hand, int8 against the layer it stands for."""

from __future__ import annotations

import json
import math

import pytest
import torch

from methods.experiments import stacking_t2i
from methods.harness import stacking
from tests.experiments import text_lab
from tests.harness import tiny


def test_errors_of_parts_add_up_by_hand() -> None:
    start = ("dense", "fp32", "ddim", 50)
    cells = {
        start: torch.zeros(3),
        ("pruned", "fp32", "ddim", 50): torch.tensor([1.0, 2.0, 3.0]),
        ("dense", "int8", "ddim", 50): torch.tensor([0.5, 0.5, 0.5]),
        ("dense", "fp32", "dpm++", 8): torch.tensor([1.0, 1.0, 1.0]),
        ("pruned", "int8", "dpm++", 8): torch.tensor([5.0, 6.5, 8.0]),
        ("pruned", "int8", "ddim", 50): torch.tensor([1.5, 2.5, 3.5]),
    }
    error, alone, interval = stacking.excess(cells, ("pruned", "int8", "dpm++", 8), 50)
    assert math.isclose(error, 6.5) and math.isclose(alone, 3.5)
    assert interval is not None and interval[0] > 0  # 2.5, 3.0, 3.5: surely more
    error, alone, interval = stacking.excess(cells, ("pruned", "int8", "ddim", 50), 50)
    assert error == alone == 2.5 and interval == (0.0, 0.0)
    assert stacking.excess(cells, start, 50) == (0.0, 0.0, None)
    assert stacking.excess(cells, ("dense", "int8", "ddim", 50), 50)[2] is None  # a part itself


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (None, ""),
        ((-1.0, 0.2), ""),  # the sum is 2, a tenth of it 0.2
        ((0.1, 0.2), stacking.SURELY),  # if by no more than the margin
        ((-1.0, 0.21), stacking.PERHAPS),
        ((0.01, 0.21), stacking.SURELY),
    ],
)
def test_what_is_not_ruled_out_is_flagged_too(interval, expected) -> None:
    assert stacking.flag(2.0, interval) == expected


def test_two_images_show_nothing() -> None:
    """Errors that add up exactly on average are no evidence while the images disagree."""
    rows = [
        {"model": model, "precision": precision, "sampler": "ddim", "steps": 50, "error": error}
        | {"alone": 2.0, "most": most, "more": stacking.flag(2.0, interval)}
        | {"frechet": 100.0, "agreement": None, "speedup": 1.0, "bytes": 1.0}
        for model, precision, error, most, interval in (
            ("dense", "fp32", 0.0, None, None),
            ("dense", "int8", 1.0, None, None),
            ("pruned", "bf16", 2.0, 3.0, (-2.0, 2.0)),
            ("pruned", "int8", 2.0, 1.05, (-0.1, 0.1)),
        )
    ]
    finding = stacking._finding(rows, 50)
    assert finding.verdict == "in part" and "1 of 2" in finding.why
    assert "pruned, bf16, ddim with 50 steps: up to 3.00 times" in finding.why
    assert stacking._finding([*rows[:2], rows[3]], 50).verdict == "shown"
    assert stacking._finding(rows[:3], 50).verdict == "not shown"
    with pytest.raises(ValueError, match="at least two"):
        stacking.investigate(None, "fashion_dit", dict.fromkeys(stacking.MODELS[1:]), (2,), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["t2i", "dit"])
def test_int8_stays_near_and_is_smaller(name: str) -> None:
    pipe = tiny.conditional(name)
    around = tiny.task(pipe)
    small = stacking.int8(pipe)
    inputs = around.example_inputs(2)
    key = "sample" if "sample" in inputs else "hidden_states"
    inputs[key] = torch.randn(inputs[key].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        dense, quantized = pipe.denoiser(**inputs)[0], small.denoiser(**inputs)[0]
    error = (dense - quantized).abs().max() / dense.abs().max()
    assert 0 < error < 0.2
    linear = [m for m in pipe.denoiser.modules() if isinstance(m, torch.nn.Linear)]
    saved = 3 * sum(m.weight.numel() for m in linear)
    before = sum(p.numel() * 4 for p in pipe.denoiser.state_dict().values())
    after = stacking.quantized_bytes(small.denoiser)
    # Each weight gives up three bytes of four; scales and zero points cost a little.
    assert before - saved <= after <= before - saved + 200 * len(linear)


def test_intervals_hold_for_all_combinations_together() -> None:
    """Four images, two combinations: each gets 97.5 %, of which t with 3 degrees is 4.177."""
    start = ("dense", "fp32", "ddim", 50)
    cells = {
        start: torch.zeros(4),
        ("pruned", "fp32", "ddim", 50): torch.zeros(4),
        ("dense", "int8", "ddim", 50): torch.zeros(4),
        ("dense", "fp32", "ddim", 8): torch.zeros(4),
        ("pruned", "int8", "ddim", 50): torch.tensor([0.0, 1.0, 2.0, 3.0]),
        ("pruned", "fp32", "ddim", 8): torch.zeros(4),
    }
    _, _, interval = stacking.excess(cells, ("pruned", "int8", "ddim", 50), 50)
    half = 4.1765 * math.sqrt(5 / 3) / 2  # sample variance 5 / 3
    assert interval == pytest.approx((1.5 - half, 1.5 + half), abs=1e-3)


def test_every_combination_at_small_size(tmp_path, monkeypatch) -> None:
    config = stacking_t2i.Config(
        params=0.9,
        distill_steps=1,
        distill_batch=4,
        images=3,
        most_steps=3,
        some_steps=2,
        few_steps=1,
    )
    found = stacking_t2i.investigate(text_lab.lab(tmp_path, monkeypatch), config)
    assert json.dumps(found.rows)
    cells = {(r["model"], r["precision"], r["sampler"], r["steps"]): r for r in found.rows}
    assert len(cells) == len(found.rows) == 3 * 3 * 2 * 3
    start = cells["dense", "fp32", "ddim", 3]
    assert start["error"] == 0 and start["speedup"] == 1
    assert all(row["error"] > 0 for row in found.rows if row is not start)
    assert cells["pruned", "int8", "ddim", 3]["bytes"] < cells["dense", "int8", "ddim", 3]["bytes"]
    assert "Of 44 combinations" in found.answer


def test_other_models_than_the_three_are_refused() -> None:
    with pytest.raises(ValueError, match="pruned, distilled"):
        stacking.investigate(None, "fashion_dit", {}, (2,), 2)  # type: ignore[arg-type]
