"""Does a model distilled to few sampling steps beat the same model simply sampled in as few?

For every seed the base is distilled 16 -> 8 -> 4 with SnapFusion's loss (guided with the paper's
probability p, one w an iteration, teacher and student alike). Then base and students draw from the
same noise, for the same requests and with the same guidance weight, in 8 and in 4 steps. What p
does is asked by `step_distillation_guidance`.

At this scale: a halving is 100 optimizer steps of 32 images, and with the paper's p one in ten of
them shows the student guided answers, while images are drawn at w = 5. In 8 steps the
undistilled model is hard to beat (the mean squared difference of its images to those in 10 steps is
0.0006); in 4 steps (0.0081) the three seeds differ too much to tell.

Expect: `python -m methods experiment step_distillation`, 27 minutes of one core;
`--set step_distillation.task=fashion_dit` asks the same of the class-conditional DiT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from methods.harness.alignment import overall
from methods.harness.experiment import Column, Finding, Lab, Paired, Value, paired, paired_logs
from methods.harness.pipeline import Pipeline
from methods.harness.run import Bench
from methods.registry import Stage

CARD = {
    "methods": ["snapfusion"],
    "task": "fashion_t2i",
    "bar": "at equal guidance the Fréchet distance of the model distilled to the last number of "
    "steps with the paper's p lies below that of the undistilled model in as many steps, by the "
    "95 % interval over seeds",
    "source": "SnapFusion, arXiv 2306.00980, Table 2: 8 distilled steps against 8 steps of DPM and "
    "DPM++; there, other samplers and models",
}
KEYS = ("frechet", "agreement")
COLUMNS = (
    Column("seed", "seed"),
    Column("steps", "sampling steps"),
    Column("model", "model"),
    Column("frechet", "Fréchet distance", 1),
    Column("agreement", "agreement", 3),
    Column("mse", "MSE to dense", 4),
    Column("ssim", "SSIM to dense", 3),
)


@dataclass(frozen=True)
class Config:
    """The ladder, and how much is trained on each rung."""

    task: Literal["fashion_t2i", "fashion_dit"] = "fashion_t2i"  # the base
    from_steps: int = 16  # sampling steps of the first teacher
    first: int = 8  # sampling steps that are measured on the way
    last: int = 4  # sampling steps at the end
    distill_steps: int = 100  # optimizer steps for every halving
    batch_size: int = 32
    learning_rate: float = 2e-4
    probability: float = 0.1  # of the guided loss, p; the paper's
    precision: Literal["bf16", "fp32"] = "bf16"  # autocast dtype of training


def investigate(lab: Lab, config: Config) -> Finding:
    """Distil for every seed, then draw in few steps with and without."""
    bench = lab.bench(config.task)
    rows: list[dict[str, Value]] = []
    for seed in lab.seeds:
        for steps in (config.first, config.last):
            lab.report(f"seed {seed}: distil to {steps} steps")
            rows += rate(bench, seed, steps, config)
    return judge(rows)


def rate(bench: Bench, seed: int, steps: int, config: Config) -> list[dict[str, Value]]:
    """One row for the base and one for the student, both in `steps` steps."""
    models = {
        "undistilled": replace(bench.dense, steps=steps),
        "distilled": student(bench, seed, steps, config),
    }
    rows: list[dict[str, Value]] = []
    for name, pipe in models.items():
        _, quality = bench.quality(pipe, seed)
        rows.append(
            {
                "seed": seed,
                "steps": steps,
                "model": name,
                "frechet": quality["frechet"],
                "agreement": overall(quality["agreement"]),
                "mse": quality["mse_to_dense"],
                "ssim": quality["ssim_to_dense"],
            }
        )
    return rows


def student(bench: Bench, seed: int, steps: int, config: Config) -> Pipeline:
    """The base distilled to `steps` steps."""
    stage = Stage.of(
        "snapfusion",
        steps=steps,
        from_steps=config.from_steps,
        distill_steps=config.distill_steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        probability=config.probability,
        precision=config.precision,
    )
    return bench.compress((stage,), seed)[0]


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict at the fewest steps, from intervals over seeds."""
    said = []
    compared: list[tuple[Paired, Paired]] = []
    for steps in dict.fromkeys(row["steps"] for row in rows):
        before = {key: values(rows, steps, "undistilled", key) for key in KEYS}
        after = {key: values(rows, steps, "distilled", key) for key in KEYS}
        distance = paired_logs(after["frechet"], before["frechet"])
        agreement = paired(after["agreement"], before["agreement"])
        compared.append((distance, agreement))
        said.append(
            f"In {steps} steps, undistilled: Fréchet distance {fmean(before['frechet']):.1f}, "
            f"agreement {fmean(before['agreement']):.3f}. Distilled: "
            f"{fmean(after['frechet']):.1f}, ratio {distance.ratio}; "
            f"{fmean(after['agreement']):.3f}, difference {agreement}."
        )
    distance, agreement = compared[-1]  # in the fewest steps
    answer = " ".join(said)
    if distance.below:
        return Finding("shown", answer, COLUMNS, tuple(rows))
    why = f"in the fewest steps the distance is not surely smaller: ratio {distance.ratio}"
    if agreement.above:
        why += ", though more images show what was asked for"
        return Finding("in part", answer, COLUMNS, tuple(rows), why)
    return Finding("not shown", answer, COLUMNS, tuple(rows), why)


def values(rows: Sequence[Mapping[str, Value]], steps: Value, model: str, key: str) -> list[float]:
    """One column of one model at one number of steps, by seed."""
    return [
        float(row[key] or 0.0) for row in rows if (row["steps"], row["model"]) == (steps, model)
    ]
