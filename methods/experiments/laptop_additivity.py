"""Is the damage of several removed layers the sum of what each does alone, and does it matter?

`laptop_diff` scores layers one by one and lets a knapsack choose, which is right if damages add up.
On the trained bases, random sets of layers of every size are removed together: does the sum rank
them as the joint damage does, and how far off is it? Then sets that meet a budget are compared by
their joint damage on noise and timesteps that nothing was chosen with: the knapsack's, the greedy
one's (least damage a parameter first) and random ones. Damage is the mean squared change of the
denoiser's answer; all sets see the same images, noise and timesteps. Random sets overshoot the
budget more than the knapsack's, which chooses sizes that fit.

At this scale: random sets of two to five layers add up on the text U-Net, and the less on the DiT
the more of them go. Sets that the knapsack chooses, of layers that do little alone, do more than
their own sum on both bases (at half of the parameters 3.2 times on the text U-Net, 2.3 times on the
DiT), and yet less than random sets, on the DiT surely so at a quarter only. A random set of the
U-Net often holds one layer that does nearly all of the damage, which then is the sum: our reading,
not a measurement.

Expect: `python -m methods experiment laptop_additivity`, 24 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from math import comb
from statistics import fmean, median

import torch
from scipy.stats import spearmanr

from methods import laptop_diff
from methods.harness.calibration import calibration
from methods.harness.depth import Unit, removable, requested
from methods.harness.experiment import (
    Column,
    Finding,
    Lab,
    Paired,
    Value,
    paired,
    paired_logs,
    verdict_of,
)
from methods.harness.knapsack import least_damage
from methods.harness.run import Bench

CARD = {
    "methods": ["laptop_diff"],
    "task": None,
    "bar": "on every base, within random sets of equal size, the rank correlation of sum and joint "
    "damage is above 0.5, and the knapsack's set does less joint damage than random sets that meet "
    "the same budget, both by the 95 % interval over seeds",
    "source": "LAPTOP-Diff, arXiv 2404.11098: a one-shot criterion with a good additivity property",
}
TASKS = ("fashion_dit", "fashion_t2i")
COLUMNS = (
    Column("task", "base"),
    Column("what", "sets of layers"),
    Column("seed", "seed"),
    Column("sets", "sets"),
    Column("correlation", "rank correlation", 3),
    Column("ratio", "joint / sum", 3),
    Column("knapsack", "joint: knapsack", 5),
    Column("greedy", "joint: greedy", 5),
    Column("random", "joint: random", 5),
)
LEAST = 0.5  # the rank correlation that the bar asks for


@dataclass(frozen=True)
class Config:
    """How many sets, and what they are measured with."""

    largest: int = 5  # layers in a random set, from 2
    sets: int = 15  # random sets of each size, or all that there are
    low: float = 0.25  # of the removable layers' parameters, the first budget
    high: float = 0.5  # the second budget
    random: int = 10  # random sets that meet a budget
    batch_size: int = 32  # calibration images
    timesteps: int = 4  # calibration batches, each with its own random timesteps


def investigate(lab: Lab, config: Config) -> Finding:
    """Score, remove together and choose, for every base and seed."""
    rows = []
    for task in TASKS:
        for seed in lab.seeds:
            lab.report(f"{task}, seed {seed}: layers alone, together and chosen")
            rows += rate(lab.bench(task), seed, config)
    return judge(rows)


def rate(bench: Bench, seed: int, config: Config) -> list[dict[str, Value]]:
    """One row for each size of random sets and one for each budget."""
    around = bench.task_at(seed)
    model = bench.dense.private_copy().denoiser
    candidates = removable(model)
    names = [unit.name for unit in candidates]

    def measure(name: str) -> Callable[[list[str]], float]:
        batches = calibration(around, config.batch_size, config.timesteps, name)
        answers = laptop_diff.outputs(model, batches)
        return lambda removed: laptop_diff.damage(model, batches, answers, removed)

    joint = measure("laptop_diff")
    damages = [joint([name]) for name in names]
    alone = dict(zip(names, damages, strict=True))
    draw = around.generator("laptop_diff/random sets")
    empty: dict[str, Value] = {column.key: None for column in COLUMNS}
    rows: list[dict[str, Value]] = []
    for size in range(2, min(config.largest, len(names) - 1) + 1):
        sets = random_sets(names, size, config.sets, draw)
        sums = [sum(alone[name] for name in chosen) for chosen in sets]
        found = [joint(chosen) for chosen in sets]
        rows.append(
            empty
            | {
                "task": bench.task,
                "what": f"{size} layers",
                "seed": seed,
                "sets": len(sets),
                "correlation": float(spearmanr(sums, found).statistic),
                "ratio": median(a / b for a, b in zip(found, sums, strict=True)),
            }
        )
    judged = measure("laptop_diff/held out")
    for budget in (config.low, config.high):
        wanted = requested(model, candidates, None, budget)
        by_sum = [
            names[k] for k in least_damage(damages, [unit.params for unit in candidates], wanted)
        ]
        chance = [judged(random_set(candidates, wanted, draw)) for _ in range(config.random)]
        rows.append(
            empty
            | {
                "task": bench.task,
                "what": f"{budget} of parameters",
                "seed": seed,
                "sets": config.random + 2,
                "ratio": joint(by_sum) / sum(alone[name] for name in by_sum),
                "knapsack": judged(by_sum),
                "greedy": judged(greedy_set(candidates, damages, wanted)),
                "random": fmean(chance),
            }
        )
    return rows


def random_sets(
    names: Sequence[str], size: int, count: int, draw: torch.Generator
) -> list[list[str]]:
    """`count` different sets, or all that there are."""
    if comb(len(names), size) <= count:
        return [list(chosen) for chosen in combinations(names, size)]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        chosen = torch.randperm(len(names), generator=draw)[:size]
        found[tuple(sorted(chosen.tolist()))] = None
    return [[names[k] for k in chosen] for chosen in found]


def random_set(candidates: Sequence[Unit], wanted: int, draw: torch.Generator) -> list[str]:
    """Layers in random order until `wanted` parameters are gone."""
    order = torch.randperm(len(candidates), generator=draw).tolist()
    return until_met([candidates[k] for k in order], wanted)


def greedy_set(candidates: Sequence[Unit], damages: Sequence[float], wanted: int) -> list[str]:
    """Layers of least damage a parameter first, until `wanted` parameters are gone."""
    order = sorted(range(len(candidates)), key=lambda k: damages[k] / candidates[k].params)
    return until_met([candidates[k] for k in order], wanted)


def until_met(order: Sequence[Unit], wanted: int) -> list[str]:
    """Names of the first layers that hold `wanted` parameters together."""
    gone = accumulate((unit.params for unit in order), initial=0)
    return [unit.name for unit, before in zip(order, gone, strict=False) if before < wanted]


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict, from intervals over seeds."""
    said, missed, checked = [], [], 0
    for task in dict.fromkeys(row["task"] for row in rows):
        ranks: dict[str, Paired] = {}
        chosen: dict[str, dict[str, Paired]] = {}
        ratios: dict[str, float] = {}
        for what in dict.fromkeys(str(row["what"]) for row in rows if row["task"] == task):
            here = [row for row in rows if (row["task"], row["what"]) == (task, what)]
            ratios[what] = fmean(values(here, "ratio"))
            if here[0]["correlation"] is not None:
                ranks[what] = paired(values(here, "correlation"), [LEAST] * len(here))
            else:
                chosen[what] = {
                    rival: paired_logs(values(here, "knapsack"), values(here, rival))
                    for rival in ("random", "greedy")
                }
        checked += len(ranks) + len(chosen)
        missed += [
            f"{task}, sets of {what}: rank correlation {correlation(pair)}, together "
            f"{ratios[what]:.2f} times the sum"
            for what, pair in ranks.items()
            if not pair.above
        ]
        missed += [
            f"{task}, {what}: knapsack over random {pairs['random'].ratio}"
            for what, pairs in chosen.items()
            if not pairs["random"].below
        ]
        levels = ", ".join(f"{correlation(pair)} for {what}" for what, pair in ranks.items())
        low, high = min(ratios[what] for what in ranks), max(ratios[what] for what in ranks)
        picks = "; ".join(
            f"at {what} the knapsack's set does {pairs['random'].ratio} of the joint damage of "
            f"random sets, {pairs['greedy'].ratio} of the greedy set's, and {ratios[what]:.2f} "
            "times its own sum"
            for what, pairs in chosen.items()
        )
        said.append(
            f"{task}: rank correlation {levels}; together layers do {low:.2f} to {high:.2f} times "
            f"the sum; {picks}"
        )
    verdict = verdict_of(len(missed), checked)
    why = f"the interval does not clear the bar for {'; '.join(missed)}" if missed else ""
    return Finding(verdict, f"{'. '.join(said)}.", COLUMNS, tuple(rows), why)


def correlation(pair: Paired) -> str:
    """What `pair` measures from LEAST as a correlation, which ends at 1."""
    low, high = max(pair.low + LEAST, -1.0), min(pair.high + LEAST, 1.0)
    return f"{pair.mean + LEAST:.2f} ({low:.2f} to {high:.2f})"


def values(rows: Sequence[Mapping[str, Value]], key: str) -> list[float]:
    """One column as numbers."""
    return [float(row[key] or 0.0) for row in rows]
