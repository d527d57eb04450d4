"""Clipped guidance: a run at small size on the shipped base."""

from __future__ import annotations

from methods.experiments import clipped_guidance as clipped
from methods.harness.experiment import Lab
from methods.harness.run import Protocol


def test_every_combination_is_drawn_and_counted() -> None:
    lab = Lab(seeds=(0, 1), protocol=Protocol(precision="bf16"))
    found = clipped.investigate(lab, clipped.Config(images=4, most=3, some=2, few=1))
    assert [(r["seed"], r["guidance"], r["steps"]) for r in found.rows][:4] == [
        (0, 1.0, 1),
        (0, 1.0, 2),
        (0, 1.0, 3),
        (0, 2.0, 1),
    ]
    assert len(found.rows) == 12
    assert all(0 <= float(r[key] or 0) <= 1 for r in found.rows for key in ("clipped", "free"))
    assert "as asked at w = 2" in found.answer and "n=2" in found.answer
    # In one step nothing follows the prediction, and images are clipped to the range anyway.
    assert all(r["clipped"] == r["free"] for r in found.rows if r["steps"] == 1)


def rows(guided: float, plain: list[float]) -> list[dict[str, float]]:
    """Clipped shares of 0.5; what not clipping adds, guided in the most steps and unguided."""
    return [
        {"seed": seed, "guidance": w, "steps": steps, "clipped": 0.5, "free": 0.5 + gain}
        for seed, loss in enumerate(plain)
        for w, gain in ((1.0, loss), (2.0, guided))
        for steps in (8, 20, 50)
    ]


def test_a_loss_has_to_be_ruled_out() -> None:
    config = clipped.Config()
    assert clipped.judge(rows(0.3, [-0.01, -0.01]), 2.0, config).verdict == "shown"
    wide = clipped.judge(rows(0.3, [0.05, -0.05]), 2.0, config)  # none on average
    assert wide.verdict == "in part" and "not ruled out" in wide.why
    assert clipped.judge(rows(0.0, [-0.03, -0.03]), 2.0, config).verdict == "not shown"
