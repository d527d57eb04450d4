"""LAPTOP-Diff's experiments: their arithmetic by hand, and one run of each at tiny size."""

from __future__ import annotations

import json
from math import prod

import torch

from methods.experiments import laptop_additivity
from methods.harness.depth import Unit
from tests.experiments import tiny_lab

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
    assert "rank correlation 0.91" in found.answer and "joint 0.80 of the sum" in found.answer
    assert "random 0.333 (0.333 to 0.333, n=3) and greedy 1 (1 to 1, n=3)" in found.answer
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
