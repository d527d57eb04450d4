"""Do gates learned through the whole sampling run keep the right heads and neurons?

Three rankings keep equal numbers of heads and neurons in every layer of the trained bases: lambda
as `ecodiff` learns it, chance, and the norm of a unit's weights. Each is judged by the mean squared
error of the last latent to the dense model's, from noise that was not learned from. The paper and
its code differ in the penalty, and its weight is set for every model: here both penalties are
tried, the code's at two weights (it pulls a head much harder than a neuron, of which a layer has
many), and for each size the one is taken that does best on the noise that was learned from. The bar
is what an honest small-scale reproduction of EcoDiff has to meet: at equal sizes learned gates beat
chance and magnitude, over seeds and in pairs. Errors are compared on a logarithm, since what chance
does varies by factors.

At this scale: 16 requests, seen 8 times, settle the order on the DiT. On the text U-Net they beat
chance only where much is removed, and magnitude nowhere surely: between seeds the error of learned
gates varies as much as it differs from magnitude's.

Expect: `python -m methods experiment ecodiff_gates`, 15 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from methods import ecodiff
from methods.harness.experiment import Column, Finding, Lab, Paired, Value, paired_logs, verdict_of
from methods.harness.run import Bench
from methods.harness.trajectory import masked_error, start
from methods.harness.width import WidthLayer, unit_norms, width_layers

CARD = {
    "methods": ["ecodiff"],
    "task": None,
    "bar": "on every base and at both sizes the last latent's error of learned gates lies below "
    "that of random and of magnitude-ranked units, by the 95 % interval over seeds",
    "source": "EcoDiff, arXiv 2412.02852: learned gates keep what the finished image needs",
}
TASKS = ("fashion_dit", "fashion_t2i")
RIVALS = ("random", "magnitude")
COLUMNS = (
    Column("task", "base"),
    Column("ratio", "units removed", 2),
    Column("seed", "seed"),
    Column("penalty", "penalty"),
    Column("learned", "learned gates", 4),
    Column("random", "random", 4),
    Column("magnitude", "magnitude", 4),
)


@dataclass(frozen=True)
class Config:
    """What is learned from what, and how it is judged."""

    low: float = 0.2  # of all heads and of all neurons removed from every layer
    high: float = 0.4  # the same, the second size
    prompts: int = 16  # requests that are learned from
    epochs: int = 8
    batch_size: int = 8  # requests per optimizer step
    steps: int = 8  # sampling steps, of learning and of judging
    learning_rate: float = 0.2  # of lambda
    beta: float = 0.01  # weight of the code's penalty, l1; a tenth of it is tried too
    beta_l0: float = 1e-4  # weight of the paper's, the expected number of open gates
    held_out: int = 32  # requests that are judged with
    draws: int = 3  # random choices per seed; their errors are averaged


def investigate(lab: Lab, config: Config) -> Finding:
    """Learn, rank and judge for every base and seed."""
    rows = []
    for task in TASKS:
        for seed in lab.seeds:
            lab.report(f"{task}, seed {seed}: learn the gates")
            rows += rate(lab.bench(task), seed, config)
    return judge(rows)


def rate(bench: Bench, seed: int, config: Config) -> list[dict[str, Value]]:
    """One row for each size."""
    around = bench.task_at(seed)
    pipe = bench.dense.private_copy()
    pipe.denoiser.eval().requires_grad_(False)
    layers = width_layers(pipe.denoiser)
    known, origin = start(
        pipe, around, config.steps, config.prompts, "ecodiff"
    )  # what it learns from
    penalties: tuple[tuple[Literal["l1", "l0"], float], ...] = (
        ("l1", config.beta),
        ("l1", config.beta / 10),
        ("l0", config.beta_l0),
    )
    learned = {
        f"{kind}, {beta:g}": ecodiff.learn(pipe, around, layers, settings(config, kind, beta))[0]
        for kind, beta in penalties
    }
    run, x = start(pipe, around, config.steps, config.held_out, "ecodiff/held out")
    with torch.no_grad():
        target = run.latents(x)[-1]
        goal = known.latents(origin)[-1]

    def fit(penalty: str, ratio: float) -> float:
        keep = ecodiff.select_units(layers, learned[penalty], ratio, "local")
        return masked_error(known, origin, goal, layers, keep)

    def error(scores: Mapping[str, Tensor], ratio: float) -> float:
        keep = ecodiff.select_units(layers, scores, ratio, "local")
        return masked_error(run, x, target, layers, keep)

    norms = {layer.name: unit_norms(pipe.denoiser, layer) for layer in layers}
    draw = around.generator("ecodiff/random units")
    rows: list[dict[str, Value]] = []
    for ratio in (config.low, config.high):
        errors = {penalty: fit(penalty, ratio) for penalty in learned}
        best = min(errors, key=lambda penalty: errors[penalty])
        chance = [error(chances(layers, draw), ratio) for _ in range(config.draws)]
        rows.append(
            {
                "task": bench.task,
                "ratio": ratio,
                "seed": seed,
                "penalty": best,
                "learned": error(learned[best], ratio),
                "random": fmean(chance),
                "magnitude": error(norms, ratio),
            }
        )
    return rows


def settings(config: Config, kind: Literal["l1", "l0"], beta: float) -> ecodiff.Config:
    """How `ecodiff` learns here."""
    return ecodiff.Config(
        ratio=config.low,
        prompts=config.prompts,
        epochs=config.epochs,
        batch_size=config.batch_size,
        steps=config.steps,
        learning_rate=config.learning_rate,
        beta=beta,
        regulariser=kind,
    )


def chances(layers: Sequence[WidthLayer], draw: torch.Generator) -> dict[str, Tensor]:
    """A random score for every unit."""
    return {layer.name: torch.rand(layer.units, generator=draw) for layer in layers}


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict, from the intervals of log ratios over seeds."""
    found: dict[str, Paired] = {}
    for task, ratio in dict.fromkeys((row["task"], row["ratio"]) for row in rows):
        here = [row for row in rows if (row["task"], row["ratio"]) == (task, ratio)]
        for rival in RIVALS:
            pair = paired_logs(values(here, "learned"), values(here, rival))
            found[f"{task}, {ratio} removed, against {rival}"] = pair
    missed = [name for name, pair in found.items() if not pair.below]
    verdict = verdict_of(len(missed), len(found))
    answer = "Error of learned gates over the rival's: " + "; ".join(
        f"{name} {pair.ratio}" for name, pair in found.items()
    )
    why = f"no surely smaller error: {'; '.join(missed)}" if missed else ""
    return Finding(verdict, f"{answer}.", COLUMNS, tuple(rows), why)


def values(rows: Sequence[Mapping[str, Value]], key: str) -> list[float]:
    """One column as numbers."""
    return [float(row[key] or 0.0) for row in rows]
