"""Is the value of a block, quality lost for latency saved, the right order to remove blocks in?

A robustly trained base is shrunk to the same share of its measured latency in several orders:
lowest value first, as Algorithm 1 has it; highest value first; in random order. All start from the
same weights, use one latency table, train robustly on the same batches after each removal, and
train plainly until all have taken equally many optimizer steps. Then images are drawn and denoisers
timed, dense and pruned in turn.

The paper's quality is a CLIP score of drawn images, ours the error of single guided answers. So
values can be taken once more from drawn images, by the log probability that a classifier gives to
the garment asked for (`--set snapfusion_value_order.shown=64`, several times the work); it decides
nothing of the verdict.

At this scale: with every seed the order by value is the best of the three. Random orders differ so
much among themselves (Fréchet distances from 723 to 1371) that three of them leave the interval
open; the inverse order is surely worse. All that meet the target end below it, since a whole block
is the least that can go.

Expect: `python -m methods experiment snapfusion_value_order`, 46 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn

from methods import snapfusion
from methods.harness.alignment import GarmentClassifier, overall, surprise
from methods.harness.block_costs import block_costs
from methods.harness.depth import removable
from methods.harness.experiment import Column, Finding, Lab, Value, paired, paired_logs
from methods.harness.measure import count_params, time_denoisers
from methods.harness.pipeline import Pipeline, Task
from methods.harness.run import Bench
from methods.harness.sample import DTYPES, Precision, sample
from methods.harness.train import denoising_loss

CARD = {
    "methods": ["snapfusion"],
    "task": "fashion_t2i",
    "bar": "at the same latency target the Fréchet distance after removal by value lies below that "
    "after random and after inverse order, and the pruned denoiser is measurably faster than the "
    "dense one, all by the 95 % interval over seeds",
    "source": "SnapFusion, arXiv 2306.00980, Alg. 1: evolve by the quality lost for each "
    "millisecond saved",
}
RIVALS = ("random", "inverse")
ORDERS = ("value", "classifier", *RIVALS)
COLUMNS = (
    Column("seed", "seed"),
    Column("order", "order"),
    Column("removed", "blocks removed"),
    Column("params", "parameters left", 3),
    Column("target", "latency left by the table", 3),
    Column("latency", "latency left, measured", 3),
    Column("frechet", "Fréchet distance", 1),
    Column("agreement", "agreement", 3),
    Column("mse", "MSE to dense", 4),
)


@dataclass(frozen=True)
class Config:
    """How far is pruned, and how much is trained."""

    task: Literal["fashion_t2i", "fashion_dit"] = "fashion_t2i"  # the base
    latency: float = 0.7  # of the dense denoiser's that may be left
    clock: Literal["measured", "macs"] = "measured"  # what a block costs
    robust_steps: int = 80  # optimizer steps before the first removal
    between_steps: int = 5  # robust optimizer steps after every removal
    block_steps: int = 200  # optimizer steps of every order in all, the rest being plain training
    skip: float = 0.15  # probability that a block is left out
    batch_size: int = 32
    judged: int = 2  # batches of requests and noise that values come from
    shown: int = 0  # images that the classifier's values come from; 0: leave that order out
    sampling_steps: int = 8  # of these images
    precision: Literal["bf16", "fp32"] = "bf16"  # autocast dtype of training


def investigate(lab: Lab, config: Config) -> Finding:
    """Shrink in three orders for every seed, and measure."""
    bench = lab.bench(config.task)
    rows: list[dict[str, Value]] = []
    for seed in lab.seeds:
        rows += rate(lab, bench, seed, config)
    return judge(rows)


def rate(lab: Lab, bench: Bench, seed: int, config: Config) -> list[dict[str, Value]]:
    """One row for each order."""
    around = bench.task_at(seed)
    chosen = snapfusion.Config(
        latency=config.latency,
        skip=config.skip,
        between_steps=config.between_steps,
        batch_size=config.batch_size,
        judged=config.judged,
        precision=config.precision,
    )
    lab.report(f"seed {seed}: robust training, latency of every block")
    robust = bench.dense.private_copy()
    training = snapfusion.Training(around, chosen)
    training.robust(robust.denoiser, config.robust_steps)
    names = [unit.name for unit in removable(robust.denoiser)]
    inputs = around.example_inputs(config.batch_size)
    costs = block_costs(robust.denoiser, names, inputs, config.clock)
    answers = snapfusion.judge_of(around, bench.dense, chosen)
    pruned: dict[str, Pipeline] = {}
    rows: list[dict[str, Value]] = []
    for name in ORDERS:
        if name == "classifier" and not config.shown:
            continue
        lab.report(f"seed {seed}: remove blocks in {name} order")
        evolution = snapfusion.Evolution(
            chosen,
            drawn_images(bench, seed, config) if name == "classifier" else answers,
            costs,
            snapfusion.Training(around, chosen, training.done),
            order(name, around),
        )
        pruned[name], _ = evolution.run(robust.private_copy())
        left = config.block_steps - evolution.training.done
        if left < 0:
            raise ValueError(f"block_steps={config.block_steps}: {name} order took {-left} more")
        evolution.training(pruned[name].denoiser, denoising_loss, left)
        _, quality = bench.quality(pruned[name], seed)
        rows.append(
            {
                "seed": seed,
                "order": name,
                "removed": len(evolution.removed),
                "params": count_params(pruned[name].denoiser) / count_params(robust.denoiser),
                "target": evolution.left,
                "frechet": quality["frechet"],
                "agreement": overall(quality["agreement"]),
                "mse": quality["mse_to_dense"],
            }
        )
    taken = latencies(bench, around, pruned)
    return [row | {"latency": taken[str(row["order"])]} for row in rows]


@dataclass(frozen=True)
class DrawnImages:
    """Judges a denoiser by whether a classifier sees in its images what was asked for."""

    pipe: Pipeline
    noise: Tensor
    rows: Tensor
    classifier: GarmentClassifier
    precision: Precision

    def error(self, model: nn.Module) -> float:
        """Mean -log p(garment asked for) of images from the same noise and requests."""
        images = sample(
            replace(self.pipe, denoiser=model),
            self.noise,
            rows=self.rows,
            batch_size=len(self.noise),
            precision=self.precision,
        )
        return surprise(self.classifier, images, self.rows)


def drawn_images(bench: Bench, seed: int, config: Config) -> DrawnImages:
    """The judge for one seed."""
    around = bench.task_at(seed)
    rows = around.prompts(config.shown, "snapfusion/drawn")
    assert rows is not None and bench.classifier is not None
    noise = around.noise(config.shown, "snapfusion/drawn")
    pipe = replace(bench.dense, steps=config.sampling_steps)
    return DrawnImages(pipe, noise, rows, bench.classifier, config.precision)


def order(name: str, around: Task) -> snapfusion.Order:
    """Who goes first: by value, against it, or by chance."""
    if name in ("value", "classifier"):
        return snapfusion.lowest_first
    if name == "inverse":
        return lambda values: snapfusion.lowest_first(values)[::-1]
    draw = around.generator("snapfusion/random order")
    return lambda values: torch.randperm(len(values), generator=draw).tolist()


def latencies(bench: Bench, around: Task, pruned: Mapping[str, Pipeline]) -> dict[str, float]:
    """Measured time of each pruned denoiser over the dense one's, timed in turn."""
    protocol, device = bench.protocol, bench.latency_device
    timings = time_denoisers(
        {"dense": bench.dense.denoiser} | {name: pipe.denoiser for name, pipe in pruned.items()},
        around.example_inputs(protocol.latency_batch, device),
        rounds=protocol.latency_rounds,
        threads=protocol.latency_threads,
        device=device,
        dtype=DTYPES[protocol.precision],
    )
    clock = "wall" if device.type == "cuda" else "cpu"
    seconds = {name: getattr(timing, clock).median for name, timing in timings.items()}
    return {name: seconds[name] / seconds["dense"] for name in pruned}


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict, from intervals over seeds."""
    by_value = values(rows, "value", "frechet")
    rivals = {name: paired_logs(by_value, values(rows, name, "frechet")) for name in RIVALS}
    shown = {
        name: paired(values(rows, "value", "agreement"), values(rows, name, "agreement"))
        for name in RIVALS
    }
    latency = values(rows, "value", "latency")
    faster = paired(latency, [1.0] * len(latency))
    answer = (
        "Fréchet distance by value over "
        + ", ".join(f"{name} order {pair.ratio}" for name, pair in rivals.items())
        + "; agreement by value less "
        + ", ".join(f"{name} order {pair}" for name, pair in shown.items())
        + f". Measured latency left: {fmean(latency):.3f} of the dense denoiser's; less 1: "
        f"{faster}."
    )
    if classifier := values(rows, "classifier", "frechet"):
        other = paired_logs(classifier, by_value)
        answer += f" Values by the classifier: Fréchet distance {other.ratio} of that by answers."
    missed = [f"over {name} {pair.ratio}" for name, pair in rivals.items() if not pair.below]
    if missed:
        missed = [f"Fréchet distance {', '.join(missed)}"]
    if not faster.below:
        missed.append(f"latency less 1 {faster}")
    if not missed:
        return Finding("shown", answer, COLUMNS, tuple(rows))
    partly = any(pair.below for pair in rivals.values())
    why = f"the interval does not clear the bar for {'; '.join(missed)}"
    return Finding("in part" if partly else "not shown", answer, COLUMNS, tuple(rows), why)


def values(rows: Sequence[Mapping[str, Value]], order: str, key: str) -> list[float]:
    """One column of one order, by seed."""
    return [float(row[key] or 0.0) for row in rows if row["order"] == order]
