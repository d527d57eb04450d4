"""Thresholds and short cuts of scoring: verdicts by hand, and one run of each at small size."""

from __future__ import annotations

import json

import pytest

from methods.experiments import diff_pruning_threshold, scoring_precision
from tests.experiments import small_lab


def threshold_rows(judged, zero, taylor):
    columns = {"threshold 0": zero, "threshold 0.05": judged, "taylor": taylor}
    return [
        {
            "criterion": name,
            "seed": seed,
            "stop": 10 if name == "threshold 0.05" else 999,
            "overlap": 0.75,
            "chance": 0.5,
            "frechet": 1.0,
            "retrained": value,
        }
        for name, values in columns.items()
        for seed, value in enumerate(values)
    ]


def test_a_threshold_must_beat_both_rivals():
    low, high = [10.0, 11.0, 12.0], [20.0, 21.5, 22.0]
    judge = diff_pruning_threshold.judge
    assert judge(threshold_rows(low, high, high)).verdict == "shown"
    mixed = judge(threshold_rows(low, low, high))
    assert mixed.verdict == "in part"
    assert mixed.why == "the interval against threshold 0 holds zero"
    worse = judge(threshold_rows(high, low, low))
    assert worse.verdict == "not shown"
    assert worse.why == "surely worse than threshold 0 and taylor"
    # Differences of -10 in every pair.
    even = judge(threshold_rows([10.0] * 3, [20.0] * 3, [20.0] * 3))
    assert "differs by -10 (-10 to -10, n=3) against threshold 0" in even.answer
    assert "0.750 at threshold 0.05 (last timestep 10)" in even.answer


def test_thresholds_at_small_size(tmp_path, monkeypatch):
    lab = small_lab.lab(tmp_path, monkeypatch)
    config = diff_pruning_threshold.Config(
        batch_size=4, stride=1, finetune_steps=2, finetune_batch=4, images_per_pass=16
    )
    found = diff_pruning_threshold.investigate(lab, config)
    assert len(found.rows) == 5 * 2  # criteria, seeds
    json.dumps(found.rows)
    for seed in (0, 1):
        rows = {row["criterion"]: row for row in found.rows if row["seed"] == seed}
        assert rows["threshold 0"]["overlap"] == 1.0
        assert rows["threshold 0"]["stop"] == rows["taylor"]["stop"] == 19
        stops = [rows[f"threshold {value}"]["stop"] for value in ("0", "0.02", "0.05", "0.2")]
        assert stops == sorted(stops, reverse=True)
        for row in rows.values():
            assert 0 < row["chance"] < 1 and 0 < row["overlap"] <= 1
            assert row["frechet"] > 0 and row["retrained"] > 0


def precision_rows(redrawn, bf16, strided):
    columns = {
        "full": [1.0] * len(redrawn),
        scoring_precision.REDRAWN: redrawn,
        "bf16": bf16,
        "stride 8": strided,
    }
    images = {"full": 1000, scoring_precision.REDRAWN: 1000, "bf16": 1000, "stride 8": 125}
    return [
        {
            "scoring": name,
            "seed": seed,
            "overlap": value,
            "chance": 0.5,
            "seconds": 1.0,
            "images": images[name],
            "memory_mb": 1.0,
        }
        for name, values in columns.items()
        for seed, value in enumerate(values)
    ]


def test_a_short_cut_must_move_less_than_a_redraw():
    redrawn = [0.90, 0.91, 0.92]
    good, bad = [0.99, 0.995, 1.0], [0.90, 0.92, 0.91]
    judge = scoring_precision.judge
    assert judge(precision_rows(redrawn, good, good)).verdict == "shown"
    mixed = judge(precision_rows(redrawn, good, bad))
    assert mixed.verdict == "in part" and mixed.why.endswith(": stride 8")
    assert "for 0.125 of the images" in mixed.answer and "0.9100 with other" in mixed.answer
    assert judge(precision_rows(redrawn, bad, bad)).verdict == "not shown"


def test_short_cuts_at_small_size(tmp_path, monkeypatch):
    lab = small_lab.lab(tmp_path, monkeypatch)
    config = scoring_precision.Config(
        threshold=0.0, stride=1, some=2, few=5, many=8, handful=4, images_per_pass=16
    )
    found = scoring_precision.investigate(lab, config)
    assert len(found.rows) == 7 * 2  # ways, seeds
    json.dumps(found.rows)
    for seed in (0, 1):
        rows = {row["scoring"]: row for row in found.rows if row["seed"] == seed}
        images = {name: row["images"] for name, row in rows.items()}
        assert images["full"] == images["bf16"] == 20 * 8
        assert images["stride 2"] == 10 * 8 and images["stride 5"] == 4 * 8
        assert images["4 images"] == 20 * 4 and images["all of them"] == 4 * 4
        assert rows["full"]["overlap"] == 1.0
        assert rows[scoring_precision.REDRAWN]["overlap"] < 1.0
        assert all(row["seconds"] > 0 for row in rows.values())


@pytest.mark.parametrize("module", [diff_pruning_threshold, scoring_precision])
def test_one_seed_is_refused_for_want_of_an_interval(module):
    rows = threshold_rows([1.0], [2.0], [3.0])
    if module is scoring_precision:
        rows = precision_rows([0.9], [1.0], [1.0])
    with pytest.raises(ValueError, match="two seeds"):
        module.judge(rows)
