"""Does training with blocks left out make a model bear the loss of any single block?

The base is trained further twice, from the same weights, on the same batches and for equal numbers
of optimizer steps: plainly, and with every ResNet and transformer block left out at random (Eq. 5).
Then each removable block is taken out alone. Its damage is what that adds to the squared error of
guided answers, judged against the dense model on images, requests and noise that were not trained
on; with `samples`, in drawn images too, by what it takes from the fraction that shows what was
asked for.

At this scale: robust training has its price. With all blocks present the error is 0.228 after it
and 0.104 after plain training; with the mean damage added 0.472 against 0.922, two times and not
three. After plain training one block of 24 makes up about 40 % of the damage of all.

Expect: `python -m methods experiment snapfusion_robustness`, 26 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from torch import nn

from methods import snapfusion
from methods.harness.alignment import agreement, overall
from methods.harness.depth import bypassed, removable
from methods.harness.experiment import Column, Finding, Lab, Value, paired
from methods.harness.pipeline import Pipeline
from methods.harness.run import Bench
from methods.harness.sample import sample
from methods.harness.train import denoising_loss

CARD = {
    "methods": ["snapfusion"],
    "task": "fashion_t2i",
    "bar": "the mean damage of removing any single block is at least 2 times smaller after robust "
    "training than after as many plain optimizer steps, by the 95 % interval over seeds",
    "source": "SnapFusion, arXiv 2306.00980, Eq. 5: skipping blocks in training makes the U-Net "
    "bear changes of its architecture; the factor of 2 is ours",
}
COLUMNS = (
    Column("seed", "seed"),
    Column("training", "training"),
    Column("error", "error, all blocks there", 4),
    Column("damage", "mean damage of one block", 4),
    Column("worst", "worst damage", 4),
    Column("agreement", "agreement, all blocks there", 3),
    Column("lost", "mean agreement lost with one block", 3),
)
FACTOR = 2.0


@dataclass(frozen=True)
class Config:
    """How long is trained, and what is judged with."""

    task: Literal["fashion_t2i", "fashion_dit"] = "fashion_t2i"  # the base
    steps: int = 100  # optimizer steps of either training
    skip: float = 0.15  # probability that a block is left out
    batch_size: int = 32
    judged: int = 4  # batches of requests and noise for the error of answers
    samples: int = 0  # images drawn without each block; 0: none
    sampling_steps: int = 8  # of these images
    precision: Literal["bf16", "fp32"] = "bf16"  # autocast dtype of training


def investigate(lab: Lab, config: Config) -> Finding:
    """Train twice for every seed and take out each block."""
    bench = lab.bench(config.task)
    rows: list[dict[str, Value]] = []
    for seed in lab.seeds:
        for training in ("plain", "robust"):
            lab.report(f"seed {seed}: {config.steps} optimizer steps of {training} training")
            pipe = trained(bench, seed, training, config)
            lab.report(f"seed {seed}: take out every block after {training} training")
            rows.append({"seed": seed, "training": training, **damages(bench, pipe, seed, config)})
    return judge(rows)


def settings(config: Config) -> snapfusion.Config:
    """The method's own settings for this experiment."""
    return snapfusion.Config(
        skip=config.skip,
        batch_size=config.batch_size,
        judged=config.judged,
        precision=config.precision,
    )


def trained(bench: Bench, seed: int, training: str, config: Config) -> Pipeline:
    """The base after further training of one kind; both kinds see equal batches."""
    pipe = bench.dense.private_copy()
    run = snapfusion.Training(bench.task_at(seed), settings(config))
    if training == "robust":
        run.robust(pipe.denoiser, config.steps)
    else:
        run(pipe.denoiser, denoising_loss, config.steps)
    return pipe


def damages(bench: Bench, pipe: Pipeline, seed: int, config: Config) -> dict[str, Value]:
    """What the whole model does, and what it loses with each of its blocks."""
    around = bench.task_at(seed)
    answers = snapfusion.judge_of(around, bench.dense, settings(config))
    names = [unit.name for unit in removable(pipe.denoiser)]

    def shown(model: nn.Module) -> float | None:
        if not config.samples or bench.classifier is None:
            return None
        rows = around.prompts(config.samples, "snapfusion/robustness")
        assert rows is not None
        noise = around.noise(config.samples, "snapfusion/robustness")
        images = sample(
            replace(pipe, denoiser=model),
            noise,
            config.sampling_steps,
            rows=rows,
            batch_size=config.samples,
            precision=config.precision,
        )
        return overall(agreement(bench.classifier, images, rows))

    error, right = answers.error(pipe.denoiser), shown(pipe.denoiser)
    added, lost = [], []
    for name in names:
        with bypassed(pipe.denoiser, [name]):
            added.append(answers.error(pipe.denoiser) - error)
            without = shown(pipe.denoiser)
        if right is not None and without is not None:
            lost.append(right - without)
    return {
        "error": error,
        "damage": fmean(added),
        "worst": max(added),
        "agreement": right,
        "lost": fmean(lost) if lost else None,
    }


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict, from intervals over seeds."""
    plain, robust = (values(rows, kind, "damage") for kind in ("plain", "robust"))
    by_factor = paired(plain, [FACTOR * value for value in robust])
    smaller = paired(plain, robust)
    factor = fmean(plain) / fmean(robust) if fmean(robust) > 0 else float("inf")
    answer = (
        f"Taking out one block adds {fmean(plain):.4g} to the error of guided answers after plain "
        f"training and {fmean(robust):.4g} after robust training, {factor:.2f} times less; plain "
        f"less {FACTOR:g} times robust: {by_factor}."
    )
    if all(row["lost"] is not None for row in rows):
        lost = [values(rows, kind, "lost") for kind in ("plain", "robust")]
        answer += (
            f" Of the images that show what was asked for it takes {fmean(lost[0]):.1%} and "
            f"{fmean(lost[1]):.1%} of all; difference {paired(*lost)}."
        )
    if by_factor.above:
        return Finding("shown", answer, COLUMNS, tuple(rows))
    if smaller.above:
        why = f"the damage is surely smaller, but not surely {FACTOR:g} times: {by_factor}"
        return Finding("in part", answer, COLUMNS, tuple(rows), why)
    why = f"the damage is not surely smaller at all: plain less robust {smaller}"
    return Finding("not shown", answer, COLUMNS, tuple(rows), why)


def values(rows: Sequence[Mapping[str, Value]], training: str, key: str) -> list[float]:
    """One column of one kind of training, by seed."""
    return [float(row[key] or 0.0) for row in rows if row["training"] == training]
