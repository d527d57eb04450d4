"""LAPTOP-Diff's experiments: their arithmetic by hand, and one run of each at tiny size."""

from __future__ import annotations

import json
from math import prod

import pytest
import torch

from methods.experiments import laptop_additivity, laptop_distillation
from methods.harness import run
from methods.harness.depth import Unit
from methods.harness.run import Bench
from tests.experiments import tiny_lab
from tests.harness import small_task

UNITS = [Unit(name, "block", size, True) for name, size in (("a", 10), ("b", 20), ("c", 40))]


def rows(correlations, knapsack, random, greedy):
    empty = {column.key: None for column in laptop_additivity.COLUMNS}
    found = []
    for seed, correlation in enumerate(correlations):
        row = {"task": "fashion_dit", "seed": seed, "sets": 3, "ratio": 0.8}
        found.append(empty | row | {"what": "2 layers", "correlation": correlation})
        sets = {"knapsack": knapsack[seed], "random": random[seed], "greedy": greedy[seed]}
        found.append(empty | row | {"what": "0.5 of parameters"} | sets)
    return found


def test_additivity_needs_ranks_and_a_better_choice():
    high, low = [0.9, 0.91, 0.92], [0.1, 0.5, 0.9]
    good, bad = [0.1] * 3, [0.3] * 3
    found = laptop_additivity.judge(rows(high, good, bad, good))
    assert found.verdict == "shown"
    # Three correlations a hundredth apart: half width 4.302653 * 0.01 / sqrt(3).
    assert "rank correlation 0.91 (0.89 to 0.93) for 2 layers" in found.answer
    assert "0.333 (0.333 to 0.333, n=3) of the joint damage of random sets, 1 (1 to" in found.answer
    found = laptop_additivity.judge(rows(low, good, bad, good))
    assert found.verdict == "in part" and "rank correlation 0.5" in found.why
    found = laptop_additivity.judge(rows(high, bad, good, good))
    assert found.verdict == "in part" and "knapsack over random 3 " in found.why
    assert laptop_additivity.judge(rows(low, bad, good, good)).verdict == "not shown"


def test_greedy_takes_the_least_damage_a_parameter():
    damages = [1.0, 1.0, 8.0]  # a parameter: 0.1, 0.05, 0.2
    assert laptop_additivity.greedy_set(UNITS, damages, 20) == ["b"]
    assert laptop_additivity.greedy_set(UNITS, damages, 21) == ["b", "a"]
    assert laptop_additivity.greedy_set(UNITS, damages, 31) == ["b", "a", "c"]


def test_random_sets_meet_the_budget_and_differ():
    draw = torch.Generator().manual_seed(0)
    found = {tuple(laptop_additivity.random_set(UNITS, 30, draw)) for _ in range(60)}
    sizes = {unit.name: unit.params for unit in UNITS}
    for chosen in found:
        assert sum(sizes[name] for name in chosen) >= 30
        assert sum(sizes[name] for name in chosen[:-1]) < 30
    assert len(found) == 5  # c, ac, bc, ab, ba
    names = list("abcdef")
    some = laptop_additivity.random_sets(names, 3, 12, draw)
    assert len({tuple(chosen) for chosen in some}) == 12
    assert all(len(set(chosen)) == 3 and chosen == sorted(chosen) for chosen in some)
    assert len(laptop_additivity.random_sets(names, 2, 20, draw)) == 15  # there are no more


def test_additivity_at_tiny_size():
    config = laptop_additivity.Config(
        largest=3, sets=4, random=2, batch_size=2, timesteps=1, low=0.2, high=0.4
    )
    found = laptop_additivity.investigate(tiny_lab.lab(), config)
    assert len(found.rows) == 2 * 2 * (2 + 2)
    for row in found.rows:
        assert row["ratio"] > 0
        if row["correlation"] is None:
            assert prod((row["knapsack"], row["greedy"], row["random"])) > 0
        else:
            assert -1 <= row["correlation"] <= 1
    json.dumps(found.rows)


def distilled_rows(**answers):
    """Error to the dense answers by arm, equal for three seeds; distances ten times as large."""
    return [
        {
            "arm": arm,
            "seed": seed,
            "answer": answers.get(arm.replace(" ", "_"), 1.0),
            "frechet": 10 * answers.get(arm.replace(" ", "_"), 1.0),
            "agreement": 0.5,
            "mse_to_dense": 0.1,
        }
        for arm in laptop_distillation.ARMS
        for seed in range(3)
    ]


def test_distillation_has_two_rivals_to_beat():
    good = {"plain_features": 0.5, "norm": 0.25, "squared": 0.25}
    found = laptop_distillation.judge(distilled_rows(**good))
    assert found.verdict == "shown"
    assert "alone: plain features 0.5 (0.5 to 0.5, n=3), norm 0.25" in found.answer
    assert "over that with plain features: norm 0.5 (0.5 to 0.5, n=3)" in found.answer
    found = laptop_distillation.judge(distilled_rows(**good | {"squared": 0.6}))
    assert found.verdict == "in part"
    assert found.why == "no surely smaller error for squared against plain features"
    worse = {"plain_features": 2.0, "norm": 2.0, "squared": 2.0}
    assert laptop_distillation.judge(distilled_rows(**worse)).verdict == "not shown"


def test_agreement_is_of_all_that_was_asked():
    assert laptop_distillation.agreed({"agreement": {"class": 0.9, "all": 0.4}}) == 0.4
    assert laptop_distillation.agreed({"agreement": {"class": 0.9}}) == 0.9
    assert laptop_distillation.agreed({}) is None


def test_distillation_at_tiny_size(monkeypatch, tmp_path):
    """On the miniature of fashion_unet, whose images come from nowhere."""
    data = run.TaskData(small_task.splits, "random smooth images")
    monkeypatch.setitem(run.TASKS, small_task.TASK, data)
    monkeypatch.setenv("DIFFUSION_PRUNING_CACHE", str(tmp_path / "cache"))
    folder = small_task.write_base(tmp_path / "base")
    bench = Bench(small_task.TASK, small_task.PROTOCOL, model=str(folder))
    config = laptop_distillation.Config(
        params=0.8,
        scored=4,
        scored_timesteps=2,
        steps=8,
        batch_size=8,
        learning_rate=1e-3,
        held_out=8,
        timesteps=2,
    )
    rows = laptop_distillation.rate(bench, 0, config)
    assert [row["arm"] for row in rows] == list(laptop_distillation.ARMS)
    answers = {row["arm"]: row["answer"] for row in rows}
    assert len(set(answers.values())) == len(answers), "two arms did the same"
    # The base is random, so what pulls towards it is its answers, never the images.
    assert answers["plain features"] < answers["denoising loss"]
    json.dumps(rows)


def test_answer_error_of_the_dense_model_is_zero(monkeypatch, tmp_path):
    monkeypatch.setitem(run.TASKS, small_task.TASK, run.TaskData(small_task.splits, "random"))
    folder = small_task.write_base(tmp_path / "base")
    bench = Bench(small_task.TASK, small_task.PROTOCOL, model=str(folder))
    config = laptop_distillation.Config(held_out=4, timesteps=2)
    pipe = bench.dense.private_copy()
    assert laptop_distillation.answer_error(bench, pipe, 0, config) == 0
    with torch.no_grad():  # every answer is off by two hundredths, so its square by 4e-4
        pipe.denoiser.conv_out.bias.add_(0.02)
    found = laptop_distillation.answer_error(bench, pipe, 0, config)
    assert found == pytest.approx(4e-4, rel=1e-3)
