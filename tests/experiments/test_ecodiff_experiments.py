"""EcoDiff's experiments: their arithmetic by hand, and one run of each at tiny size."""

from __future__ import annotations

import json

import pytest
import torch

from methods.experiments import ecodiff_gates, ecodiff_memory, ecodiff_objective
from methods.harness import trajectory
from methods.harness.width import keep_units, width_layers
from tests.experiments import tiny_lab
from tests.harness import tiny

SMALL = {"prompts": 4, "epochs": 1, "batch_size": 2, "steps": 2, "held_out": 3}


def gate_rows(learned, random, magnitude):
    return [
        {
            "task": "fashion_dit",
            "ratio": 0.2,
            "seed": seed,
            "penalty": "l1, 0.01",
            "learned": a,
            "random": b,
            "magnitude": c,
        }
        for seed, (a, b, c) in enumerate(zip(learned, random, magnitude, strict=True))
    ]


def test_gates_need_every_rival_beaten():
    better, worse = [0.1, 0.11, 0.12], [0.4, 0.41, 0.39]
    assert ecodiff_gates.judge(gate_rows(better, worse, worse)).verdict == "shown"
    mixed = ecodiff_gates.judge(gate_rows(better, worse, better))
    assert mixed.verdict == "in part" and "magnitude" in mixed.why and "random" not in mixed.why
    assert ecodiff_gates.judge(gate_rows(worse, better, better)).verdict == "not shown"
    # 0.1 against 0.4 in every pair: a quarter.
    found = ecodiff_gates.judge(gate_rows([0.1] * 3, [0.4] * 3, [0.4] * 3))
    assert "against random 0.25 (0.25 to 0.25, n=3)" in found.answer


def test_gates_at_tiny_size():
    config = ecodiff_gates.Config(**SMALL, draws=2)
    found = ecodiff_gates.investigate(tiny_lab.lab(), config)
    assert len(found.rows) == 2 * 2 * 2  # bases, seeds, sizes
    assert all(row[key] > 0 for row in found.rows for key in ("learned", "random", "magnitude"))
    for task in ("fashion_dit", "fashion_t2i"):  # more removed, more lost
        assert {row["penalty"] for row in found.rows} <= {"l1, 0.01", "l1, 0.001", "l0, 0.0001"}
        for seed in (0, 1):
            low, high = [
                row["random"] for row in found.rows if (row["task"], row["seed"]) == (task, seed)
            ]
            assert low < high
    json.dumps(found.rows)


def test_masked_error_is_the_error_of_the_pruned_model():
    """And that of single answers: gates stand for removal, step by step as at the end."""
    pipe = tiny.conditional("dit")
    around = tiny.task(pipe)
    run, x = trajectory.start(pipe, around, 3, 4, "held out")
    layers = width_layers(pipe.denoiser)
    keep = {layer.name: list(range(layer.units // 2)) for layer in layers}
    small = keep_units(pipe.private_copy(), keep)
    other, _ = trajectory.start(small, around, 3, 4, "held out")
    with torch.no_grad():
        dense = run.latents(x)
        expected = float((other.latents(x)[-1] - dense[-1]).square().mean())
        answers = []
        for index, step in enumerate(run.steps):
            t = torch.full((4,), int(step.t))
            both = [
                trajectory.guided(r.model, dense[index], t, r.condition, r.null, r.guidance)
                for r in (run, other)
            ]
            answers.append(float((both[0] - both[1]).square().mean()))
    found = trajectory.masked_error(run, x, dense[-1], layers, keep)
    assert found == pytest.approx(expected, rel=1e-4)
    found = trajectory.answers_error(run, dense, layers, keep)
    assert found == pytest.approx(sum(answers) / 3, rel=1e-3)


def objective_rows(l1, l0, step):
    return [
        {"ratio": 0.2, "seed": seed}
        | {f"{arm}_latent": v for arm, v in zip(ecodiff_objective.ARMS, latent, strict=True)}
        | {f"{arm}_answer": 0.5 for arm in ecodiff_objective.ARMS}
        for seed, latent in enumerate(zip(l1, l0, step, strict=True))
    ]


def test_objectives_are_judged_by_the_last_latent():
    good, bad = [0.1, 0.1, 0.1], [0.2, 0.2, 0.2]
    found = ecodiff_objective.judge(objective_rows(good, good, bad))
    assert found.verdict == "shown"
    assert "l1, 0.2 removed: 0.5 (0.5 to 0.5, n=3)" in found.answer
    assert "l0, 0.2 removed: 1 (1 to 1, n=3)" in found.answer  # single answers are equal
    found = ecodiff_objective.judge(objective_rows(good, bad, bad))
    assert found.verdict == "in part" and "l0" in found.why and "l1" not in found.why
    assert ecodiff_objective.judge(objective_rows(bad, bad, good)).verdict == "not shown"


def test_objectives_at_tiny_size():
    found = ecodiff_objective.investigate(
        tiny_lab.lab(), ecodiff_objective.Config(**SMALL, betas=2)
    )
    assert [row["ratio"] for row in found.rows] == [0.2, 0.4, 0.2, 0.4]
    assert all(value > 0 for row in found.rows for key, value in row.items() if key != "seed")
    errors = {tuple(row[f"{arm}_latent"] for row in found.rows) for arm in ("l1", "l0", "step")}
    assert len(errors) > 1, "the objectives chose the same units"


def memory_rows(checkpointed):
    return [
        {
            "steps": 2**k,
            "naive": float(2**k),
            "checkpointed": held,
            "latents": 0.1,
            "naive_seconds": 1.0,
            "seconds": 2.0,
            "replayed": "1e-7",
            "redrawn": 0.5,
        }
        for k, held in enumerate(checkpointed)
    ]


def test_memory_verdict_by_hand():
    found = ecodiff_memory.judge(memory_rows([1.0, 1.0, 1.04]), 1e-6)
    assert found.verdict == "shown" and "+4.0 %" in found.answer and "2.0 times" in found.answer
    found = ecodiff_memory.judge(memory_rows([0.5, 1.0, 1.06]), 1e-6)
    assert found.verdict == "in part" and "memory" in found.why
    found = ecodiff_memory.judge(memory_rows([1.0, 1.0, 1.0]), 2e-5)
    assert found.verdict == "in part" and "gradients" in found.why
    assert ecodiff_memory.judge(memory_rows([1.0, 1.0, 2.0]), 1.0).verdict == "not shown"


def test_redrawn_gates_are_the_same_once():
    gates = ecodiff_memory.GateNoise({"a": torch.zeros(20)}, 0.5, 0, "test")
    redrawn = ecodiff_memory.Redrawn(gates)
    assert torch.equal(redrawn(3)["a"], gates(3)["a"])
    assert torch.equal(redrawn(4)["a"], gates(4)["a"])
    again = redrawn(3)["a"]
    assert not torch.equal(again, gates(3)["a"]) and not torch.equal(redrawn(3)["a"], again)


def test_memory_at_tiny_size_meets_its_bar():
    """Replayed noise gives the gradient of the loss, noise drawn anew does not."""
    config = ecodiff_memory.Config(most=4, batch_size=2, repeats=1)
    found = ecodiff_memory.investigate(tiny_lab.lab(), config)
    assert found.verdict == "shown"
    assert [row["steps"] for row in found.rows] == [1, 2, 4]
    naive = [row["naive"] for row in found.rows]
    assert naive[2] > 1.8 * naive[1] > 3 * naive[0]
    for row in found.rows:
        assert float(row["replayed"]) < 1e-12
        assert row["redrawn"] > 0.01
